"""Sources as they grow: what a data engineer meets in the first weeks, each from a table made here."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

import tabdiff
from tabdiff.errors import SchemaError, TabdiffWarning
from tabdiff.evaluate.report import evaluate
from tabdiff.operations import ScoreJob, TrainJob, score_new, train
from tabdiff.operations.training import columns_of
from tabdiff.store import Workspace
from tabdiff.store.ledger import in_words
from tabdiff.store.spec import SourceSpec
from tests.workspaces import QUICK, orders, scored_ids, with_champion


@pytest.fixture
def on_sqlite(tmp_path: Path, small_bundle: Path) -> Workspace:
    return with_champion(tmp_path / "home", None, small_bundle)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def hours(rows: int, first: int) -> pl.DataFrame:
    """Orders of which one comes every minute."""
    at = [datetime(2026, 3, 28) + timedelta(minutes=minute) for minute in range(first, first + rows)]
    return orders(rows, first, seed=first).drop("ordered").with_columns(at=pl.Series(at))


def test_later_rows_are_not_abnormal_for_being_later(tmp_path: Path, data: Path) -> None:
    """The column that tells new rows lies beyond the rows of the fit for ever: it says when an alert was, and is no reason for one."""
    workspace = Workspace.create(tmp_path / "home")
    workspace.sources.add("orders", location=str(data), new="column", column="at")
    hours(150, 0).write_parquet(data / "a.parquet")
    options = {"source": "orders", "model": "orders"}
    assert train(workspace, TrainJob.of(**options, fit=QUICK, compiled=False))["decision"] == "promoted"
    score_new(workspace, ScoreJob.of(**options))
    hours(100, 50_000).write_parquet(data / "b.parquet")
    assert score_new(workspace, ScoreJob.of(**options, contamination=0.05))["flagged"] == 5
    (alert, *_) = workspace.scores.alerts(5)
    assert alert["at"] >= datetime(2026, 5, 1).astimezone()
    assert "at" not in {reason["column"] for each in workspace.scores.alerts(5) for reason in each["reasons"]}


def test_the_role_that_the_job_gives_counts() -> None:
    spec = SourceSpec(location="/data", new="column", column="at")
    for frame, said, found in (
        (hours(3, 0), {}, {"at": {"role": "time"}}),
        (hours(3, 0), {"at": {"role": "feature"}}, {"at": {"role": "feature"}}),
        (hours(3, 0), {"at": {"kind": "datetime"}}, {"at": {"kind": "datetime", "role": "time"}}),
        (hours(3, 0), {"paid": {"role": "time"}}, {"paid": {"role": "time"}, "at": {"role": "id"}}),
        (hours(3, 0).with_columns(at=pl.lit(7)), {}, {"at": {"role": "id"}}),
        (hours(3, 0).drop("at"), {}, {}),
    ):
        assert columns_of(TrainJob.of(source="a", model="a", columns=said), spec, frame) == found
    assert columns_of(TrainJob.of(source="a", model="a"), SourceSpec(location="/data"), hours(3, 0)) == {}


def score(workspace: Workspace, **options: object) -> dict[str, object]:
    found: dict[str, object] = score_new(
        workspace, ScoreJob.of(**{"source": "orders", "model": "orders", "contamination": 0.05, **options})
    )
    return found


@pytest.mark.parametrize("keys", [("order_id",), ()])
def test_a_file_delivered_twice_under_another_name(on_sqlite: Workspace, data: Path, keys: tuple[str, ...]) -> None:
    on_sqlite.sources.add("orders", location=str(data), keys=keys)
    orders(20, 0).write_parquet(data / "a.parquet")
    orders(20, 20).write_parquet(data / "b.parquet")  # of another content, and perhaps of the same size
    assert score(on_sqlite)["findings"] == []
    shutil.copy(data / "b.parquet", data / "b (1).parquet")
    orders(1, 0).head(0).write_parquet(data / "c.parquet")
    orders(1, 0).head(0).write_parquet(data / "d.parquet")  # an hour without rows is like another
    done = score(on_sqlite)
    assert done["rows"] == (0 if keys else 20)
    (finding,) = done["findings"]  # type: ignore[misc]
    assert (finding["kind"], finding["subject"]) == ("duplicate", "b (1).parquet")
    assert "the same bytes as b.parquet" in finding["reason"]
    if keys:
        assert scored_ids(on_sqlite) == list(range(40))


def test_a_file_that_changed_says_what_to_do(on_sqlite: Workspace, data: Path) -> None:
    on_sqlite.sources.add("orders", location=str(data), keys=("order_id",))
    orders(20, 0).write_parquet(data / "a.parquet")
    score(on_sqlite)
    orders(5, 0).write_parquet(data / "a.parquet")
    done = score(on_sqlite)
    assert (done["rows"], "tabdiff sources rescore" in str(done["findings"])) == (0, True)


def test_a_new_column_is_told_of_once(on_sqlite: Workspace, data: Path) -> None:
    on_sqlite.sources.add("orders", location=str(data))
    for part in range(2):
        orders(10, 10 * part).with_columns(cabin=pl.lit("x")).write_parquet(data / f"{part}.parquet")
        with pytest.warns(TabdiffWarning, match="cabin"):
            assert score(on_sqlite)["findings"] == []  # nothing that ends a strict run with 1
    (event,) = on_sqlite.events.latest()
    assert (event["kind"], event["subject"]) == ("source_new_column", "orders/cabin")
    assert event["severity"] == "info"
    assert "0.parquet has it" in event["detail"]["reason"]


def test_a_growing_source_that_stops_says_where(on_sqlite: Workspace, data: Path) -> None:
    on_sqlite.sources.add("orders", location=str(data), new="column", column="order_id")
    orders(20, 0).drop("price").write_parquet(data / "a.parquet")
    with pytest.raises(SchemaError, match=r"source 'orders', rows \(start,19\](.|\n)*column 'price'") as caught:
        score(on_sqlite)
    assert caught.value.problems[0].column == "price"


def test_a_column_without_a_name_is_carried_along_or_refused() -> None:
    """Spreadsheets and pandas write an index under an empty heading."""
    frame = pl.DataFrame({"": range(30), "a": [n % 7 + 0.5 for n in range(30)]})
    schema = tabdiff.Schema.infer(frame)
    assert schema.conform(frame).equals(frame)
    numbers = frame.with_columns(pl.col("a").alias(""))
    with pytest.raises(SchemaError, match=r"needs a name; .* role = \"ignore\""):
        tabdiff.Schema.infer(numbers)
    assert tabdiff.Schema.infer(numbers, overrides={"": {"role": "ignore"}}).conform(numbers).columns == ["", "a"]


def test_a_name_is_suggested_for_one_missing_column() -> None:
    schema = tabdiff.Schema.infer(
        pl.DataFrame({"Age": [1.5, 2.5, 3.5], "Fare": [1.5, 2.5, 3.5], "Weight": [1.0, 2.0, 4.5]})
    )
    with pytest.warns(TabdiffWarning, match="weigth"), pytest.raises(SchemaError) as caught:
        schema.conform(pl.DataFrame({"age": [1.5], "weigth": [2.0], "x": [0.5]}))
    cures = {problem.column: problem.cure for problem in caught.value.problems}
    assert cures["Age"] == "Rename 'age'."
    assert cures["Weight"] == "Rename 'weigth'."
    assert "Rename" not in cures["Fare"]


def test_a_table_that_is_its_own_copy_is_not_praised_for_privacy() -> None:
    frame = pl.DataFrame({"a": [n * 1.5 for n in range(60)], "b": ["x", "y", "z"] * 20})
    (check,) = evaluate(frame, frame).privacy.checks
    assert not check.tested
    assert "60 of 60 rows equal a real one" in check.found


def test_events_are_told_in_words() -> None:
    for detail, words in (
        ({"reason": "1 problem:\n  - column 'a'"}, "1 problem: - column 'a'"),
        ({"version": 2, "reasons": ["there was no champion"]}, "version 2; there was no champion"),
        ({"findings": ["a drifted", "b drifted"], "verdict": "drifted"}, "a drifted; b drifted"),
        (
            {"rows": 1200, "watermark": {"kind": "int", "value": 7}},
            "1,200 rows came at or below 7 after it was passed; they are not scored",
        ),
        ({"version": 3, "by": "ann"}, "version 3, by ann"),
    ):
        assert in_words(detail) == words
