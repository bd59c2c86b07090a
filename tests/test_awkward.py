"""Tables as they come: columns of every kind, odd files, rows that nobody thought of. From end to end, on tables made here."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer

import tabdiff
from tabdiff import imputation
from tabdiff.cli import app
from tabdiff.files import atomic_write, part_writer, write
from tabdiff.operations import MonitorJob, ScoreJob, TrainJob, comparing, monitor, new_rows, score_new, train
from tabdiff.operations.inspection import as_rows, inspect
from tabdiff.operations.judges import RowJudge, plain
from tabdiff.operations.reading import newest_rows, reads_as
from tabdiff.operations.training import split
from tabdiff.sources import load
from tabdiff.store import Workspace
from tabdiff.store.spec import SourceSpec
from tests.workspaces import QUICK, orders, scored_ids, with_champion


def shifts(rows: int, seed: int = 0) -> pl.DataFrame:
    """Work in a plant: kinds of columns that polars does not cast to text."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "lasted": [timedelta(seconds=int(s)) for s in rng.integers(1, 90_000, rows)],
            "began": [clock(int(m) // 60, int(m) % 60) for m in rng.integers(0, 1440, rows)],
            "load": rng.normal(50, 5, rows),
            "team": rng.choice(["a", "b b", "ü"], rows),
            "tags": [[int(n), 2] for n in rng.integers(0, 9, rows)],
            "photo": [bytes([255, int(n)]) for n in rng.integers(0, 9, rows)],
        }
    )


@pytest.fixture
def on_sqlite(tmp_path: Path, small_bundle: Path) -> Workspace:
    return with_champion(tmp_path / "home", None, small_bundle)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def job(**options: object) -> ScoreJob:
    made: ScoreJob = ScoreJob.of(**{"source": "orders", "model": "orders", "contamination": 0.05, **options})
    return made


@pytest.mark.filterwarnings("ignore:column .* cannot be modelled")
def test_durations_lists_and_bytes_are_trained_scored_and_explained(tmp_path: Path, data: Path) -> None:
    workspace = Workspace.create(tmp_path / "home")
    workspace.sources.add("shifts", location=str(data))
    frame = shifts(120)
    frame.write_parquet(data / "a.parquet")
    options = TrainJob.of(source="shifts", model="shifts", fit=QUICK, compiled=False)
    assert train(workspace, options)["decision"] == "promoted"
    done = score_new(workspace, ScoreJob.of(source="shifts", model="shifts", contamination=0.05))
    assert (done["rows"], done["flagged"]) == (120, 6)
    alert = workspace.scores.alerts()[0]
    found = inspect(workspace, alert["id"])
    row = frame.row(alert["row"], named=True)
    held = {reason["column"]: reason["value"] for reason in found["reasons"]}
    assert held == {name: row[name] for name in held}


def test_rows_of_alerts_are_read_as_they_were() -> None:
    frame = shifts(50).drop("tags", "photo").with_columns(at=pl.lit(datetime(2026, 7, 1, 12, 30, 0, 5, tzinfo=UTC)))
    schema = tabdiff.Schema.infer(frame)
    kept = [{name: plain(value) for name, value in row.items()} for row in frame.iter_rows(named=True)]
    assert schema.conform(as_rows(kept, schema)).equals(schema.conform(frame))


def test_times_of_day_and_durations_come_back_from_csv(tmp_path: Path) -> None:
    frame = shifts(50).drop("tags", "photo").with_columns(lasted=-pl.col("lasted"))
    schema = tabdiff.Schema.infer(frame)
    write(frame, tmp_path / "a.csv")
    assert schema.conform(load(tmp_path / "a.csv")).equals(schema.conform(frame))
    with pytest.raises(tabdiff.SchemaError, match="soon"):
        schema.conform(frame.with_columns(lasted=pl.lit("soon")))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv"])
def test_parts_of_a_file_may_have_other_categories(tmp_path: Path, suffix: str) -> None:
    parts = [pl.DataFrame({"c": pl.Series(names, dtype=pl.Categorical)}) for names in (["a", "b"], ["c", None], ["b"])]
    path = tmp_path / f"t{suffix}"
    with atomic_write(path) as temporary, part_writer(temporary, path) as add:
        for part in parts:
            add(part.with_columns(lasted=pl.lit(timedelta(hours=30))))
    read = {".parquet": pl.read_parquet, ".arrow": pl.read_ipc, ".csv": pl.read_csv}[suffix]
    assert read(path)["c"].cast(pl.String).to_list() == ["a", "b", "c", None, "b"]


def test_which_rows_judge_does_not_depend_on_the_kind_of_column() -> None:
    frame = shifts(400)
    rest, judges = split(frame, 0.2)
    assert 40 < judges.height < 120
    assert split(frame.reverse(), 0.2)[1].sort("load").equals(judges.sort("load"))
    assert rest.height + judges.height == 400


def test_verdicts_of_before_a_column_was_added_do_not_stop_training(small_model: tabdiff.Model) -> None:
    rows = orders(40, 0, seed=5)
    verdicts = [
        ({name: plain(value) for name, value in row.items()}, "anomaly" if place % 2 else "normal")
        for place, row in enumerate(rows.head(20).iter_rows(named=True))
    ]
    assert "agreement" in comparing.measure(small_model, rows, verdicts)
    older = [({name: value for name, value in row.items() if name != "price"}, said) for row, said in verdicts]
    assert "agreement" not in comparing.measure(small_model, rows, older)
    other = [({**row, "price": "cheap"}, said) for row, said in verdicts]
    assert "agreement" not in comparing.measure(small_model, rows, other)


def test_gaps_are_filled_in_a_type_that_holds_what_was_drawn() -> None:
    narrow = pl.Series([1, None], dtype=pl.Int8)
    assert [each.dtype for each in imputation._of_one_type(narrow, pl.Series([1, 100]))] == [pl.Int8, pl.Int8]
    assert [each.dtype for each in imputation._of_one_type(narrow, pl.Series([1, 300]))] == [pl.Int64, pl.Int64]
    words, known = pl.Series(["a", None], dtype=pl.Enum(["a"])), pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"]))
    assert [each.to_list() for each in imputation._of_one_type(words, known)] == [["a", None], ["a", "b"]]


def test_draws_of_one_seed_are_not_those_of_the_next() -> None:
    of = [{imputation._seed(seed, draw) for draw in range(15)} for seed in range(3)]
    assert len(set.union(*of)) == 45
    assert imputation._seed(7, 0) == 7


def test_where_no_row_was_put_aside_there_is_nothing_to_compare_with(on_sqlite: Workspace, data: Path) -> None:
    folder = on_sqlite.models.get("orders").folder
    assert folder is not None
    orders(1, 0).head(0).write_parquet(folder / "reference.parquet")
    on_sqlite.sources.add("orders", location=str(data))
    orders(60, 0).write_parquet(data / "a.parquet")
    assert score_new(on_sqlite, job())["flagged"] == 3
    assert monitor(on_sqlite, MonitorJob.of(source="orders", model="orders"))["verdict"] == "fine"
    assert inspect(on_sqlite, on_sqlite.scores.alerts()[0]["id"])["nearest"] == []


@pytest.mark.parametrize("text", ["01.03.2026 14:30", "2026-03-01T15:30:00+01:00"])
def test_times_kept_as_text_say_when_an_alert_was(small_model: tabdiff.Model, text: str) -> None:
    frame = orders(30, 0).with_columns(ordered=pl.lit(text))
    schema = tabdiff.Schema.infer(frame, overrides={"ordered": {"role": "time"}})
    model = SimpleNamespace(schema=schema, calibration=small_model.calibration)
    judge = RowJudge(model, None, SourceSpec(location="/data"), {}, 10)  # type: ignore[arg-type]
    alert = judge._alert({"row": 3, "score": 9.0, "p_value": 0.01}, frame)
    assert alert.at == datetime(2026, 3, 1, 14, 30, tzinfo=UTC)


# ---------------------------------------------------------------------------------------------- files of a source


def test_a_folder_whose_name_looks_like_a_pattern(on_sqlite: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "incoming [eu]"
    folder.mkdir()
    orders(20, 0).write_parquet(folder / "a.parquet")
    on_sqlite.sources.add("orders", location=str(folder))
    assert score_new(on_sqlite, job())["rows"] == 20


def test_rows_without_a_value_that_tells_new_ones_are_told_of(on_sqlite: Workspace, data: Path) -> None:
    frame = orders(20, 0).with_columns(order_id=pl.when(pl.col("order_id") < 17).then("order_id"))
    frame.write_parquet(data / "a.parquet")
    on_sqlite.sources.add("orders", location=str(data), new="column", column="order_id")
    for rows in (17, 0):
        done = score_new(on_sqlite, job())
        assert done["rows"] == rows
        assert [finding["kind"] for finding in done["findings"]] == ["unplaced"]
        assert "3 rows have no order_id" in done["findings"][0]["reason"]
    assert len(on_sqlite.events.latest()) == 1  # told once


def test_one_odd_file_is_not_learned_from_unless_the_newest_are_all_like_it(on_sqlite: Workspace, data: Path) -> None:
    fits = reads_as(on_sqlite.models.get("orders"))
    for part in range(4):
        frame = orders(5, 5 * part)
        odd = frame.with_columns(price=pl.col("price").cast(pl.String) + " EUR") if part in (1, 3) else frame
        odd.write_csv(data / f"{part}.csv")
    spec = SourceSpec(location=str(data))
    frame, findings = newest_rows(spec, 100, fits)
    assert frame["order_id"].to_list() == [*range(5), *range(10, 15)]
    assert (frame["price"].dtype, [finding.subject for finding in findings]) == (pl.Float64, ["3.csv", "1.csv"])
    for part in (4, 5):
        orders(5, 5 * part).drop("price").write_csv(data / f"{part}.csv")
    frame, _ = newest_rows(spec, 100, fits)
    assert (frame["order_id"].to_list(), "price" in frame) == ([*range(20, 30)], False)
    assert reads_as(None) is None


def test_an_hour_without_rows_is_nothing_to_tell_of(on_sqlite: Workspace, data: Path) -> None:
    on_sqlite.sources.add("orders", location=str(data), settle=0.0)
    (data / "1.csv").write_text(",".join(orders(1, 0).columns) + "\n")
    orders(8, 0).write_csv(data / "2.csv")
    (data / "3.csv").write_text(",".join(orders(1, 0).columns) + "\n")
    done = score_new(on_sqlite, job())
    assert (done["rows"], done["parts"], done["findings"]) == (8, 3, [])
    assert score_new(on_sqlite, job())["parts"] == 0
    found, findings = newest_rows(on_sqlite.sources.get("orders")[1], 100)
    assert (found["items"].dtype, found.height, findings) == (pl.Int64, 8, [])


def test_many_files_without_an_end_mark_are_waited_for_once(
    on_sqlite: Workspace, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_sqlite.sources.add("orders", location=str(data), settle=0.2, keys=("order_id",))
    for part in range(5):
        orders(4, 4 * part).write_csv(data / f"{part}.csv")
    waits: list[float] = []
    monkeypatch.setattr(new_rows.time, "sleep", waits.append)
    assert score_new(on_sqlite, job())["rows"] == 20
    assert scored_ids(on_sqlite) == list(range(20))
    assert waits == [0.2]
    assert score_new(on_sqlite, job())["rows"] == 0
    assert waits == [0.2]  # nothing is new, so nothing is waited for


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text("n\n1\n")
    files = [tmp_path / "a" / "x.csv", tmp_path / "b" / "x.csv"]
    before = new_rows.states_of(files)
    time.sleep(0.01)
    files[0].write_text("n\n2\n")
    assert new_rows.states_of(files) != before
    files[0].unlink()
    assert list(new_rows.states_of(files)) == files[1:]


def test_older_files_may_have_another_order_and_are_left_out_if_their_types_do_not_fit(data: Path) -> None:
    at = datetime(2026, 1, 1)
    pl.DataFrame({"at": [at], "n": [1]}).write_parquet(data / "1.parquet")
    pl.DataFrame({"at": [at.replace(tzinfo=UTC)], "n": [2]}).write_parquet(data / "2.parquet")
    pl.DataFrame({"n": [None], "at": [at.replace(tzinfo=UTC)]}).write_parquet(data / "3.parquet")
    pl.DataFrame({"at": [at.replace(tzinfo=UTC)], "n": [4.5]}).write_parquet(data / "4.parquet")
    frame, findings = newest_rows(SourceSpec(location=str(data)), 100)
    assert frame["n"].to_list() == [2.0, None, 4.5]
    assert [finding.reason for finding in findings] == [
        "1 older files have other columns, or other types in them; left out"
    ]


# ---------------------------------------------------------------------------------------------- messages


def test_commands_that_messages_name_exist() -> None:
    commands: Any = typer.main.get_command(app)
    known = {
        name: set(getattr(command, "commands", ())) for name, command in commands.commands.items()
    }  # a group has commands of its own
    root = Path(tabdiff.__file__).parent.parent
    named = re.compile(r"(?:Run|run|[.;] |`)tabdiff ([a-z][a-z-]*)(?: ([a-z-]+))?")
    found = 0
    for path in [
        path for folder in ("tabdiff", "flows", "dashboard", "onnx_export") for path in (root / folder).rglob("*.py")
    ]:
        for first, second in named.findall(path.read_text(encoding="utf-8").replace("Run tabdiff", "run tabdiff")):
            found += 1
            assert first in known, f"{path.name}: tabdiff {first}"
            assert not known[first] or second in known[first], f"{path.name}: tabdiff {first} {second}"
    assert found > 20
