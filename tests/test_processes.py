"""One fit on two processes, started by torchrun: the same losses and the same model as on one, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tabdiff
from tabdiff.config import FitConfig
from tabdiff.errors import RuntimeUnavailable
from tests.conftest import make_mixed_table

ROOT = Path(__file__).parent.parent
# Batches of 51 do not come out even; dropout is that of the defaults.
OPTIONS = {
    "network": {"width": 32, "blocks": 2},
    "train": {"steps": 60, "batch_size": 51, "evaluate_every": 10, "device": "cpu"},
    "data": {"bins": 0},
    "score": {"turns": 1},
}
_FIT = """
import json, os, sys
from pathlib import Path
import tabdiff
from tabdiff.config import FitConfig
from tests.conftest import make_mixed_table
folder, options, events = Path(sys.argv[1]), json.loads(sys.argv[2]), []
model = tabdiff.fit(make_mixed_table(300), FitConfig.model_validate(options), checkpoint=folder / "checkpoint",
                    on_event=lambda event: events.append([event.step, event.loss, event.held_out]))
rank = os.environ["RANK"]
model.save(folder / f"model-{rank}")
(folder / f"events-{rank}.json").write_text(json.dumps(events))
"""


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    call += [sys.executable, *command]
    return subprocess.run(call, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=300)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    done = torchrun("-c", _FIT, str(tmp_path), json.dumps(OPTIONS))
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / f"events-{rank}.json").read_text()) for rank in "01")
    assert first == second
    alone: list[list[float]] = []
    table = make_mixed_table(300)
    model = tabdiff.fit(
        table,
        FitConfig.model_validate(OPTIONS),
        on_event=lambda event: alone.append([event.step, event.loss, event.held_out]),
    )
    assert len(first) == 6
    np.testing.assert_allclose(first, alone, rtol=2e-4)
    models = [tabdiff.load(tmp_path / f"model-{rank}") for rank in "01"]
    for name, value in models[0].bundle.tensors.items():
        np.testing.assert_array_equal(value, models[1].bundle.tensors[name], err_msg=name)
        np.testing.assert_allclose(value, model.bundle.tensors[name], rtol=0.05, atol=2e-3, err_msg=name)
    assert (tmp_path / "checkpoint" / "progress.json").exists()


@pytest.mark.slow
def test_the_command_tells_and_writes_once(tmp_path: Path) -> None:
    make_mixed_table(100).write_parquet(tmp_path / "table.parquet")
    arguments = ["fit", str(tmp_path / "table.parquet"), "--out", str(tmp_path / "model"), "--json"]
    quick = ["--set", "train.steps=4", "--set", "network.width=16", "--set", "score.turns=1"]
    done = torchrun("-c", "from tabdiff.cli import main; main()", *arguments, *quick)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["model"]  # one object, so one process has written it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "table.parquet"]
    assert tabdiff.load(tmp_path / "model").score(make_mixed_table(10)).score.shape == (10,)


def test_processes_that_cannot_meet_are_an_error_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeUnavailable, match=r"cannot meet.*torchrun"):
        tabdiff.fit(make_mixed_table(50))
