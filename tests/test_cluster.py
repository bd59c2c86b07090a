"""Scoring on Ray workers: the scores of the loop to the last bit, with one of the workers killed on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

import tabdiff
from tabdiff import cluster
from tabdiff.cli import app
from tabdiff.cluster import RayWorkers
from tabdiff.errors import ConfigError, RuntimeUnavailable
from tabdiff.streaming import Task, score_file
from tests.conftest import make_mixed_table

ROOT = Path(__file__).parent.parent
# In a process of its own: Ray starts threads and processes that would outlive a test.
_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import tabdiff
from tabdiff.cluster import RayWorkers
from tabdiff.streaming import score_file

folder, seen = Path(sys.argv[1]), {"killed": []}

def commands():
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace"), (entry / "environ").read_bytes()
            except OSError:
                pass

def listening(pids):
    owned = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                owned.add(os.readlink(handle))
            except OSError:
                pass
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in owned:
                yield fields[1]

def on_event(event):
    if seen["killed"]:
        return
    import ray
    session = ray._private.worker._global_node.get_session_dir_path()
    ours = [pid for pid, _, environment in commands() if str(session).encode() in environment or pid == os.getpid()]
    ours += [pid for pid, command, _ in commands() if str(session) in command]
    seen["addresses"] = sorted(set(listening(set(ours))))
    seen["processes"], seen["cpus"] = len(set(ours)), ray.cluster_resources()["CPU"]
    seen["dashboard"] = ray._private.worker._global_node.address_info["webui_url"]
    seen["mode"] = os.environ["RAY_AUTH_MODE"]
    for pid, command, _ in commands():
        if command.startswith("ray::") and "_Scorer" in command and os.getppid() != pid:
            seen["done"] = event.rows
            seen["killed"].append(pid)
            os.kill(pid, signal.SIGKILL)

model = tabdiff.load(folder / "model")
workers = RayWorkers(folder / "model", model.runtime.provider)
seen["result"] = score_file(
    model, folder / "data", folder / "cluster.parquet", model.rule(contamination=0.02), part_rows=200, workers=workers, on_event=on_event
)
print("SEEN", json.dumps(seen))
"""


@pytest.mark.slow
def test_workers_score_what_the_loop_scores_even_if_one_dies(small_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "model").symlink_to(small_bundle)
    (tmp_path / "data").mkdir()
    for index, rows in enumerate((450, 1, 777, 1300)):
        make_mixed_table(rows, seed=index).write_parquet(tmp_path / "data" / f"{index}.parquet")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    call = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=600)
    assert "SEEN " in done.stdout, done.stdout + done.stderr
    seen = json.loads(done.stdout.partition("SEEN ")[2])
    assert len(seen["killed"]) == 1
    assert seen["done"] < 2000  # there was work left for its successor
    model = tabdiff.load(tmp_path / "model")
    alone = score_file(
        model, tmp_path / "data", tmp_path / "alone.parquet", model.rule(contamination=0.02), part_rows=200
    )
    assert {**seen["result"], "seconds": 0} == {**alone, "seconds": 0}
    expected, found = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("alone", "cluster"))
    assert found["row"].to_list() == list(range(2528))
    assert found["order_id"].to_list() == pl.read_parquet(tmp_path / "data")["order_id"].to_list()
    assert_frame_equal(found, expected, check_exact=True)
    # What Ray is allowed to open, and to take.
    assert seen["mode"] == "token"
    assert not seen["dashboard"]
    assert seen["cpus"] == 2
    assert seen["processes"] > 3
    assert seen["addresses"]
    assert all(address.rpartition(":")[0].endswith("0100007F") for address in seen["addresses"]), seen["addresses"]


def workers(folder: Path, **options: object) -> RayWorkers:
    return RayWorkers(folder, "torch cpu", **options)  # type: ignore[arg-type]


def test_workers_never_take_every_cpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must leave a CPU"):
        workers(tmp_path, count=max(2, os.cpu_count() or 1))
    with pytest.raises(ConfigError, match="at least 1"):
        workers(tmp_path, count=0)


def test_the_command_hands_parts_to_workers(small_bundle: Path, tmp_path: Path) -> None:
    make_mixed_table(20).write_parquet(tmp_path / "a.parquet")
    call = ["score", str(small_bundle), str(tmp_path / "a.parquet"), "--out", str(tmp_path / "scores.parquet")]
    for options, message in (
        (["--ray", str(max(2, os.cpu_count() or 1))], "must leave a CPU"),
        (["--ray", "1", "--no-stream"], "part by part"),
        (["--ray-address", "10.0.0.1:6379"], "goes with --ray"),
    ):
        done = CliRunner().invoke(app, [*call, *options])
        assert done.exit_code == 1
        assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]  # nothing was begun


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeUnavailable, match=r"tabdiff\[ray\]"):
        workers(tmp_path)([Task(0, 1, 1, "x")], tmp_path, print)


def test_workers_that_make_no_progress_are_given_up() -> None:
    import threading

    stuck = threading.Event()

    def results():  # type: ignore[no-untyped-def]
        yield "first"
        stuck.wait(30)

    found = cluster._patiently(results(), 0.2)
    assert next(found) == "first"
    with pytest.raises(RuntimeUnavailable, match="no Ray worker has finished a part"):
        next(found)
    stuck.set()
