"""The demo's workspace: what was planted into the pumps is what the queue holds, and the failing one comes first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from tabdiff.demo_workspace import FAILED, last_night, make, readings
from tabdiff.operations.tracing import traces
from tabdiff.store import Workspace
from tabdiff.store.triage import Filter

NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)


@pytest.mark.filterwarnings("ignore::tabdiff.errors.TabdiffWarning")
def test_the_failing_pump_is_first_and_nothing_else_is_told(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "home")
    found = make(workspace, until=NOW, steps=15)
    assert found["pumps"]["rows"] == readings(NOW).height
    queue = workspace.triage.queue(Filter(source="pumps", state="all"))
    assert {alert["kind"] for alert in queue} == {"event"}
    first = queue[0]
    assert (first["entity"], first["open"]) == (FAILED, True)
    # A worn bearing shakes and heats: which of the two is named first is a matter of units.
    assert {reason["column"] for reason in first["reasons"][:2]} == {"vibration_mm_s", "temperature_c"}
    begun = last_night(NOW)
    assert abs(first["at"] - begun) <= timedelta(hours=1)
    assert abs(first["ended"] - begun - timedelta(hours=3.5)) <= timedelta(hours=2.5)
    stuck = [alert for alert in queue if alert["entity"] == "pump-1"]
    assert [alert["reasons"][0]["column"] for alert in stuck] == ["pressure_bar"]
    assert stuck[0]["at"] <= NOW - timedelta(days=2) <= stuck[0]["ended"]
    # Single readings of the fourth pump are off; in time, the machine was known to be sound.
    assert {alert["reasons"][0]["column"] for alert in queue if alert["entity"] == "pump-4"} == {"current_a"}
    assert "pump-2" not in {alert["entity"] for alert in queue}
    assert len(queue) <= 6
    (about,) = traces(workspace)
    assert (about.source, about.interval, about.entities) == (
        "pumps",
        "every 15 min",
        tuple(f"pump-{i}" for i in (1, 2, 3, 4)),
    )
    kinds = {alert["kind"] for alert in workspace.triage.queue(Filter(source="tumours", state="all"))}
    assert kinds == {"row"}
    parts = [part for part in workspace.scores.partitions() if part["source"] == "pumps" and part["file"]]
    assert sum(pl.read_parquet(part["file"]).height for part in parts) == readings(NOW).height - 4 * 32
