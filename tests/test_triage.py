"""Alerts as people work through them, on both databases: order, states, filters, counts, and saved rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa

from tabdiff.errors import StoreError
from tabdiff.operations import ScoreJob, score_new
from tabdiff.store import Workspace
from tabdiff.store import tables as t
from tabdiff.store.scores import Alert, Part
from tabdiff.store.triage import Filter
from tests.workspaces import orders, with_champion

NIGHT = datetime(2026, 3, 1, 23, 40, tzinfo=UTC)
REASONS = [{"column": "price", "part": 3.0, "expected": "2"}]


@pytest.fixture
def workspace(tmp_path: Path, database_url: str, small_bundle: Path) -> Workspace:
    """Two sources; alerts 1 to 6 by number, excess and time."""
    made = with_champion(tmp_path / "home", database_url, small_bundle)
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        made.sources.add(name, location=str(tmp_path / name))
    for name, excesses in (("left", (0.5, 3.0, 1.5, None)), ("right", (2.5, 0.1))):
        stream = made.scores.stream(made.sources.get(name)[0], "orders")
        alerts = [
            Alert(
                *(row, 10.0 + row, 0.01, REASONS, {"price": 9}),
                at=None if excess is None else NIGHT + timedelta(minutes=15 * row),
                entity=f"{name}-{row % 2}",
                excess=excess,
            )
            for row, excess in enumerate(excesses)
        ]
        with made.runs.start("score", name) as run:
            part = Part("file", 0, True, None, 100)
            version = made.models.get("orders")
            options = {"flagged": len(alerts), "model_id": version.id, "run_id": run.id, "watermark": None}
            made.scores.commit(stream, part, pl.DataFrame({"score": [1.0]}), alerts, **options)
    return made


def ids(workspace: Workspace, **chosen: object) -> list[int]:
    filters = Filter(**{"state": "all", **chosen})  # type: ignore[arg-type]
    found = [alert["id"] for alert in workspace.triage.queue(filters)]
    assert workspace.triage.count(filters) == len(found)
    return found


def test_the_queue_is_ordered_filtered_and_cut_into_pages(workspace: Workspace) -> None:
    assert ids(workspace) == [2, 5, 3, 1, 6, 4]  # by excess; what was never rated is last
    assert ids(workspace, source="left", severities=("high", "low")) == [2, 1]
    assert ids(workspace, severities=("unrated",)) == [4]
    assert ids(workspace, entity="right-0") == [5]
    assert ids(workspace, since=NIGHT + timedelta(minutes=15), before=NIGHT + timedelta(minutes=30)) == [2, 6]
    pages = [[a["id"] for a in workspace.triage.queue(Filter(), limit=4, offset=offset)] for offset in (0, 4, 8)]
    assert pages == [[2, 5, 3, 1], [6, 4], []]
    newest = [alert["id"] for alert in workspace.triage.queue(Filter(source="left"), newest=True)]
    assert newest == [4, 3, 2, 1]  # 4 has no time of its own: that of its scoring
    first = workspace.triage.queue(Filter(), limit=1)[0]
    assert (first["source"], first["model"], first["severity"], first["entity"]) == ("left", "orders", "high", "left-1")
    assert first["when"] == NIGHT + timedelta(minutes=15)
    assert first["when"].tzinfo is not None
    assert workspace.triage.names()["entity"] == ["left-0", "left-1", "right-0", "right-1"]


def test_states_follow_the_verdicts(workspace: Workspace) -> None:
    judge, hour = workspace.scores.judge, timedelta(hours=1)
    now = datetime.now(UTC)
    judge([1, 2], "anomaly", author="ann", note="both")
    judge(3, "snooze", author="ann", until=now + hour)
    judge(5, "snooze", author="ann", until=now - hour)  # over
    assert ids(workspace, state="judged") == [2, 1]
    assert ids(workspace, state="snoozed") == [3]
    assert ids(workspace, state="open") == [5, 6, 4]
    judge(2, "normal", author="bob")
    judge(2, "snooze", author="bob", until=now + hour)
    found = workspace.triage.get(2)
    assert found["verdict"] == "normal"  # a snooze is no verdict
    assert [(entry["verdict"], entry["author"]) for entry in found["history"]] == [
        *(("anomaly", "ann"), ("normal", "bob"), ("snooze", "bob"))
    ]
    assert [alert["id"] for alert in workspace.triage.judged("orders")] == [2, 1]
    assert sorted(verdict for _, verdict in workspace.scores.judged("orders")) == ["anomaly", "normal"]


def test_verdicts_are_all_or_nothing_and_never_change(workspace: Workspace) -> None:
    judge = workspace.scores.judge
    with pytest.raises(StoreError, match="no alert has the number 99"):
        judge([1, 99], "anomaly", author="ann")
    with pytest.raises(StoreError, match="none given"):
        judge([], "anomaly", author="ann")
    with pytest.raises(StoreError, match="says until when"):
        judge(1, "snooze", author="ann")
    with pytest.raises(StoreError, match="says until when"):
        judge(1, "normal", author="ann", until=NIGHT)
    assert workspace.triage.get(1)["history"] == []
    with pytest.raises(StoreError, match="no alert has the number 99"):
        workspace.triage.get(99)
    judge(1, "anomaly", author="ann")
    for change in (t.verdicts.update().values(verdict="normal"), t.verdicts.delete()):
        with pytest.raises((StoreError, sa.exc.IntegrityError), match="append-only"):
            workspace.database.write(lambda connection, change=change: connection.execute(change))  # type: ignore[misc]


def test_counts_by_time_know_the_day_of_any_zone(workspace: Workspace) -> None:
    workspace.scores.judge(1, "anomaly", author="ann")
    tally = workspace.triage.tally(Filter(source="left", state="all", before=NIGHT + timedelta(days=1)))
    assert [(row["slot"], row["severity"], row["verdict"], row["alerts"]) for row in tally] == [
        ("2026-03-01 23:4", "low", "anomaly", 1),
        ("2026-03-01 23:5", "high", None, 1),
        ("2026-03-02 00:1", "medium", None, 1),
    ]


def test_a_saved_rule_decides_what_scoring_flags(workspace: Workspace, tmp_path: Path) -> None:
    save, stream = workspace.triage.save_rule, workspace.scores.stream(workspace.sources.get("left")[0], "orders")

    def flagged(number: int, **options: object) -> int:
        orders(100, 100 * number, seed=number).write_parquet(tmp_path / "left" / f"{number}.parquet")
        done = score_new(workspace, ScoreJob.of(source="left", model="orders", contamination=0.05, **options))
        return int(done["flagged"])

    assert flagged(1) == 5
    save(stream.id, {"contamination": 0.2}, author="ann", note="too few")
    assert flagged(2) == 20
    assert flagged(3, saved_rule=False) == 5
    save(stream.id, {"alerts_per_day": 30, "rows_per_day": 100}, author="ann")
    model_flags = flagged(4)
    assert model_flags == int((pl.read_parquet(_newest(workspace))["flagged"]).sum())
    assert 10 < model_flags < 60  # about 30 of 100 normal rows
    save(stream.id, {}, author="ann", note="as before")
    assert flagged(5) == 5
    assert [(rule["rule"], rule["note"]) for rule in workspace.triage.rules(stream.id)] == [
        ({}, "as before"),
        ({"alerts_per_day": 30, "rows_per_day": 100}, ""),
        ({"contamination": 0.2}, "too few"),
    ]
    for wrong in ({"fdr": 0.1, "contamination": 0.1}, {"magic": 1.0}, {"rows_per_day": 5.0}):
        with pytest.raises(StoreError, match="a rule is one of"):
            save(stream.id, wrong, author="ann")
    with pytest.raises(StoreError, match="no stream has the number 99"):
        save(99, {"fdr": 0.1}, author="ann")


def _newest(workspace: Workspace) -> str:
    return str(workspace.scores.partitions(limit=1)[0]["file"])


def test_scoring_keeps_time_and_severity_of_an_alert(workspace: Workspace, tmp_path: Path) -> None:
    rows = orders(50, 0, seed=3).with_columns(
        pl.when(pl.int_range(50) == 7).then(1e6).otherwise("price").alias("price")
    )
    rows.write_parquet(tmp_path / "left" / "odd.parquet")
    score_new(workspace, ScoreJob.of(source="left", model="orders", contamination=0.02))
    alert = workspace.triage.queue(Filter(source="left"), limit=1)[0]
    assert alert["row"] == 7
    import tabdiff

    model = tabdiff.load(workspace.models.get("orders").folder / "bundle")  # type: ignore[operator]
    assert alert["excess"] == pytest.approx(alert["score"] / max(model.calibration.normal))
    assert alert["severity"] == ("high" if alert["excess"] >= 2 else "medium" if alert["excess"] >= 1 else "low")
