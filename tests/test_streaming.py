"""Tables larger than memory: the same rows as in one go, in order, none lost or repeated, whatever kills the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from tabdiff import Model
from tabdiff.cli import app
from tabdiff.commands import streams
from tabdiff.errors import ConfigError, SchemaError, SourceError, TrainingError
from tabdiff.flags import Rule
from tabdiff.limits import find_limit
from tabdiff.streaming import PartEvent, _seed_of, sample_file, score_file
from tests.conftest import make_mixed_table

ROWS = 700


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return make_mixed_table(ROWS, seed=2)


@pytest.fixture
def source(tmp_path: Path, frame: pl.DataFrame) -> Path:
    path = tmp_path / "in.parquet"
    frame.write_parquet(path, row_group_size=64)
    return path


def read_csv(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, infer_schema_length=None)  # expected values are of several kinds


def read(path: Path) -> pl.DataFrame:
    return {".csv": read_csv, ".parquet": pl.read_parquet, ".arrow": pl.read_ipc}[path.suffix](path)


def whole(model: Model, frame: pl.DataFrame, **rule: float) -> pl.DataFrame:
    scored = model.score(frame, **rule).to_frame()
    return scored.select(frame["order_id"], *scored.columns)


# ------------------------------------------------------------------------------------------------ the same as at once


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
@pytest.mark.parametrize(
    "rule", [{"contamination": 0.05}, {"fdr": 0.4}, {"alerts_per_day": 5, "rows_per_day": 100}, {}]
)
def test_streamed_scores_are_those_of_one_go(
    small_model: Model, source: Path, frame: pl.DataFrame, tmp_path: Path, suffix: str, rule: dict[str, float]
) -> None:
    out = tmp_path / f"out{suffix}"
    events: list[PartEvent] = []
    values = score_file(small_model, source, out, small_model.rule(**rule), part_rows=150, on_event=events.append)
    expected = whole(small_model, frame, **rule)
    found = read(out)
    if suffix == ".csv":
        (tmp_path / "expected.csv").write_text(expected.write_csv())
        expected = read_csv(tmp_path / "expected.csv")
    assert_frame_equal(found, expected, abs_tol=2e-4)
    assert values["flagged"] == expected["flagged"].sum()
    assert [event.rows for event in events] == [150, 300, 450, 600, 700]
    assert events[-1].left == 0
    assert all(event.rows_per_second > 0 for event in events)
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


def test_files_of_a_folder_and_parts_of_any_size_give_the_same(
    small_model: Model, frame: pl.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for index, start in enumerate((0, 130, 500)):
        stop = (130, 500, ROWS)[index]
        frame[start:stop].write_parquet(tmp_path / "in" / f"{index}.parquet")
    results = []
    for part_rows in (1, 64, 10_000)[1:]:
        score_file(
            small_model,
            tmp_path / "in",
            tmp_path / "out.parquet",
            small_model.rule(contamination=0.02),
            part_rows=part_rows,
        )
        results.append(read(tmp_path / "out.parquet"))
    assert_frame_equal(*results, abs_tol=2e-4)
    assert results[0]["row"].to_list() == list(range(ROWS))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_streamed_samples_are_those_of_their_parts(small_model: Model, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"rows{suffix}"
    sample_file(small_model, 250, out, given={"channel": "web"}, seed=4, part_rows=100)
    seeds = [4, _seed_of(4, 1), _seed_of(4, 2)]
    assert len(set(seeds)) == 3
    sizes = (100, 100, 50)
    parts = [small_model.sample(n, given={"channel": "web"}, seed=s) for n, s in zip(sizes, seeds, strict=True)]
    expected = pl.concat(parts)
    assert expected["weight"].n_unique() > 150
    found = read(out)
    if suffix == ".csv":
        (tmp_path / "e.csv").write_text(expected.write_csv())
        expected = read_csv(tmp_path / "e.csv")
    assert_frame_equal(found, expected)


@given(
    st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0, 1.5, 1e-300, 1e300, 3.25]), min_size=1, max_size=60),
    st.integers(1, 9),
    st.floats(0.001, 0.999),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_limits_are_those_of_flag(scores: list[float], size: int, share: float, by_fdr: bool, seed: int) -> None:
    score = np.array(scores)
    p = np.random.default_rng(seed).integers(1, 20, len(score)) / 20
    rule, normal = Rule("fdr" if by_fdr else "contamination", share), np.zeros(0)
    chunks = [(score[i : i + size], p[i : i + size]) for i in range(0, len(score), size)]
    limit = find_limit(lambda: iter(chunks), rule, normal)
    np.testing.assert_array_equal(np.concatenate([limit(*chunk) for chunk in chunks]), rule.flag(score, p, normal))


# ------------------------------------------------------------------------------------------------ kills


RUN = "from tests.test_streaming import run_until_killed; run_until_killed({args!r})"


def run_until_killed(args: list[str]) -> None:
    """What the killed process runs: the command, with small parts that take a moment each."""
    from tabdiff import streaming

    streaming.PART_ROWS = 20
    real = streaming.score_file

    def slow(*values: object, **options: object) -> object:
        def event(_: PartEvent) -> None:
            print("part", flush=True)
            time.sleep(0.02)

        return real(*values, **{**options, "part_rows": 20, "on_event": event})  # type: ignore[arg-type]

    streaming.score_file = slow  # type: ignore[assignment]
    app(args, standalone_mode=False)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_without_losing_or_repeating_a_row(
    small_bundle: Path, small_model: Model, source: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    out.write_bytes(b"an older result")
    rng = np.random.default_rng(0)
    args = ["score", str(small_bundle), str(source), "--out", str(out), "--contamination", "0.05", "--stream"]
    kills = 0
    for attempt in range(12):
        call = [*args, "--resume"] if attempt else args
        process = subprocess.Popen([sys.executable, "-c", RUN.format(args=call)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        # Any moment from before the first part of this run until after the sixth.
        wanted = int(rng.integers(0, 7)) if attempt < 5 else 10_000
        for _ in range(wanted):
            if not process.stdout.readline().startswith("part"):
                break
        if attempt < 5:
            time.sleep(float(rng.uniform(0, 0.05)))
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
        assert out.read_bytes() == b"an older result"
    assert kills >= 4
    assert_frame_equal(pl.read_parquet(out), whole(small_model, frame, contamination=0.05), abs_tol=2e-4)
    assert not (tmp_path / "out.parquet.parts").exists()
    assert not list(tmp_path.glob(".*tmp"))


def interrupted(model: Model, source: Path, out: Path, after: int) -> None:
    def stop(event: PartEvent) -> None:
        if event.rows >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_file(model, source, out, model.rule(contamination=0.05), part_rows=100, on_event=stop)


def test_only_missing_parts_are_done_again(
    small_model: Model, source: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    interrupted(small_model, source, out, 300)
    assert len(list((tmp_path / "out.parquet.parts").glob("part-*"))) == 3
    (tmp_path / "out.parquet.parts" / ".part-0000003.parquet.abcd.tmp").write_bytes(b"half a part")
    events: list[PartEvent] = []
    score_file(
        small_model,
        source,
        out,
        small_model.rule(contamination=0.05),
        part_rows=100,
        resume=True,
        on_event=events.append,
    )
    assert [event.rows for event in events] == [400, 500, 600, 700]
    assert events[-1].fresh == 400
    assert_frame_equal(pl.read_parquet(out), whole(small_model, frame, contamination=0.05), abs_tol=2e-4)


def test_what_is_left_of_other_work_is_not_mixed_in(
    small_model: Model, source: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    interrupted(small_model, source, out, 100)
    with pytest.raises(TrainingError, match=r"cut off. Add --resume"):
        score_file(small_model, source, out, part_rows=100)
    with pytest.raises(TrainingError, match=r"other work .part_rows differ"):
        score_file(small_model, source, out, part_rows=50, resume=True)
    with pytest.raises(TrainingError, match=r"other work"):
        sample_file(small_model, 3000, out, resume=True)
    frame[:600].write_parquet(source)
    with pytest.raises(TrainingError, match=r"rows, source differ"):
        score_file(small_model, source, out, part_rows=100, resume=True)
    (tmp_path / "out.parquet.parts" / "work.json").write_text("[")
    with pytest.raises(TrainingError, match=r"other work"):
        score_file(small_model, source, out, part_rows=100, resume=True)


# ------------------------------------------------------------------------------------------------ refusals, command line


def test_a_bad_row_is_refused_by_its_part_and_nothing_is_written(
    small_model: Model, frame: pl.DataFrame, tmp_path: Path
) -> None:
    bad = frame.with_columns(price=pl.when(pl.int_range(pl.len()) == 450).then(float("inf")).otherwise("price"))
    bad.write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(SchemaError, match=r"'price'.*in rows 401 to 500"):
        score_file(small_model, tmp_path / "bad.parquet", tmp_path / "out.parquet", part_rows=100)
    assert not (tmp_path / "out.parquet").exists()
    with pytest.raises(SourceError, match=r"database"):
        score_file(small_model, "sqlite:///a.db", tmp_path / "out.parquet")
    with pytest.raises(ConfigError, match=r"part_rows"):
        score_file(small_model, tmp_path / "bad.parquet", tmp_path / "other.parquet", part_rows=0)
    with pytest.raises(ConfigError, match=r"rows is how many"):
        sample_file(small_model, 0, tmp_path / "out.parquet")


def test_a_damaged_file_is_a_source_error(small_model: Model, source: Path, tmp_path: Path) -> None:
    content = bytearray(source.read_bytes())
    content[4:2000] = bytes(1996)
    source.write_bytes(content)
    with pytest.raises(SourceError, match=r"in\.parquet"):
        score_file(small_model, source, tmp_path / "out.parquet", part_rows=100)


def test_the_commands_stream_large_tables_by_themselves(
    small_bundle: Path,
    small_model: Model,
    source: Path,
    frame: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "_ROWS", 500)
    out = tmp_path / "scores.parquet"
    done = CliRunner().invoke(
        app, ["score", str(small_bundle), str(source), "-o", str(out), "--contamination", "0.1", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["flagged"] == 70
    assert "700 of 700 rows" in done.stderr
    assert_frame_equal(pl.read_parquet(out), whole(small_model, frame, contamination=0.1), abs_tol=2e-4)
    done = CliRunner().invoke(app, ["sample", str(small_bundle), "-n", "600", "-o", str(out), "--seed", "2"])
    assert done.exit_code == 0, done.output
    assert_frame_equal(pl.read_parquet(out), small_model.sample(600, seed=2))
    for arguments, message in (
        (["--resume", "--restart"], "got both"),
        (["--no-stream", "--resume"], "got --no-stream"),
    ):
        done = CliRunner().invoke(app, ["score", str(small_bundle), str(source), "-o", str(out), *arguments])
        assert done.exit_code == 1
        assert message in done.stderr
    interrupted(small_model, source, out, 100)
    done = CliRunner().invoke(app, ["score", str(small_bundle), str(source), "-o", str(out)])
    assert done.exit_code == 1
    assert "--resume" in done.stderr
    done = CliRunner().invoke(app, ["score", str(small_bundle), str(source), "-o", str(out), "--restart"])
    assert done.exit_code == 0, done.output
