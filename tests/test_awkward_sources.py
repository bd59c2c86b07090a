"""Sources as they grow: what a data engineer meets in the first weeks, each from a table made here."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from tabdiff.operations import ScoreJob, TrainJob, score_new, train
from tabdiff.operations.training import columns_of
from tabdiff.store import Workspace
from tabdiff.store.spec import SourceSpec
from tests.workspaces import QUICK, orders, with_champion


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
