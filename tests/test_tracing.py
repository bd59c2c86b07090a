"""Series for pages: places and buckets compared with the rows that were written, peaks kept, gaps told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tabdiff.errors import StoreError
from tabdiff.operations.tracing import span, trace, traces
from tabdiff.store import Workspace
from tabdiff.store.scores import Part

START = datetime(2026, 3, 1)
ABOUT: dict[str, Any] = {
    "time": "at",
    "entity": "machine",
    "interval": "every 1 min",
    "interval_us": 60_000_000,
    "steps": None,
    "window": 32,
    "numbers": ["flow"],
    "categories": ["valve"],
    "threshold": 5.0,
}


def places(machine: str, first: int, count: int) -> pl.DataFrame:
    rng = np.random.default_rng(first)
    flow = rng.normal(size=count)
    return pl.DataFrame(
        {
            "machine": [machine] * count,
            "at": [START + timedelta(minutes=first + i) for i in range(count)],
            "score": rng.gamma(2.0, size=count),
            "flagged": rng.random(count) < 0.01,
            "value:flow": flow,
            "expected:flow": flow + 0.1,
            "low:flow": flow - 1,
            "high:flow": flow + 1,
            "value:valve": rng.choice(["open", "shut"], count),
            "part:flow": rng.random(count),
            "part:valve": rng.random(count),
        }
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A table's stream, and a series of two machines in three parts, with a gap of an hour."""
    made = Workspace.create(tmp_path / "home")
    for name, metrics in (("table", {}), ("fleet", {"series": ABOUT})):
        folder = made.home / "models" / name / "one"
        folder.mkdir(parents=True)
        made.models.add(name, f"models/{name}/one", name, "options", metrics)
        made.models.promote(name, 1)
        made.sources.add(name, location=str(tmp_path / name))
        stream = made.scores.stream(made.sources.get(name)[0], name)
        tables = [places("a", 0, 500).vstack(places("b", 0, 300)), places("a", 560, 440), places("b", 300, 50)]
        for number, table in enumerate(tables):
            with made.runs.start("score", name) as run:
                part = Part(f"{number}", 0, True, None, table.height)
                options = {"flagged": 0, "model_id": made.models.get(name).id, "run_id": run.id, "watermark": None}
                made.scores.commit(stream, part, table, [], **options)
            stream = made.scores.stream(made.sources.get(name)[0], name)
    return made


def test_streams_of_series_are_listed(workspace: Workspace) -> None:
    (found,) = traces(workspace)
    assert (found.source, found.entities, found.sensors, found.window) == ("fleet", ("a", "b"), ("flow", "valve"), 32)
    assert span(workspace, found.stream_id, "a") == (START, START + timedelta(minutes=999))
    assert span(workspace, found.stream_id, "b") == (START, START + timedelta(minutes=349))
    assert span(workspace, found.stream_id, "c") == (None, None)
    with pytest.raises(StoreError, match="no stream of a series"):
        span(workspace, found.stream_id - 1)


def test_few_places_are_shown_as_they_are(workspace: Workspace) -> None:
    (about,) = traces(workspace)
    zone = datetime(2026, 3, 1, 8, tzinfo=UTC)
    found = trace(workspace, about.stream_id, "a", zone, zone + timedelta(hours=2), ["flow"])
    whole = places("a", 0, 500).vstack(places("a", 560, 440))
    expected = whole.filter(pl.col("at").is_between(START + timedelta(hours=8), START + timedelta(hours=10)))
    assert found.height == expected.height == 61
    assert found["start"].equals(expected["at"].alias("start"))
    assert found["gap"].arg_true().to_list() == [int((expected["at"] >= START + timedelta(minutes=560)).arg_max())]  # type: ignore[arg-type]
    for name in ("value:flow", "part:flow", "score", "flagged"):
        assert found[name].equals(expected[name])
    assert "part:valve" not in found.columns
    assert trace(workspace, about.stream_id, "c").is_empty()


def test_no_peak_is_hidden_in_buckets(workspace: Workspace) -> None:
    (about,) = traces(workspace)
    found = trace(workspace, about.stream_id, "a", buckets=40)
    whole = places("a", 0, 500).vstack(places("a", 560, 440))
    assert found.height <= 40
    assert found["places"].sum() == whole.height
    assert found["flagged"].sum() >= 1
    for row in found.iter_rows(named=True):  # each against the rows between its ends
        mine = whole.filter(pl.col("at").is_between(row["start"], row["end"]))
        assert row["places"] == mine.height
        assert (row["min:flow"], row["max:flow"]) == (mine["value:flow"].min(), mine["value:flow"].max())
        assert (row["low:flow"], row["high:flow"]) == (mine["low:flow"].min(), mine["high:flow"].max())
        assert (row["score"], row["part:flow"]) == (mine["score"].max(), mine["part:flow"].max())
        assert row["value:flow"] == pytest.approx(mine["value:flow"].mean())
        assert row["value:valve"] == mine["value:valve"][-1]
        assert row["flagged"] == mine["flagged"].any()


def test_a_sensor_that_is_new_and_a_file_of_other_names_cost_nothing(workspace: Workspace) -> None:
    """A champion that learned a sensor since; a stream's file from when its entity column was called otherwise."""
    (before,) = traces(workspace)
    rows = trace(workspace, before.stream_id, "a")
    folder = workspace.home / "models" / "fleet" / "two"
    folder.mkdir(parents=True)
    metrics = {"series": {**ABOUT, "numbers": ["flow", "heat"]}}
    workspace.models.add("fleet", "models/fleet/two", "other", "options", metrics)
    workspace.models.promote("fleet", 2)
    old = places("a", 5000, 10).rename({"machine": "pump"})
    with workspace.runs.start("score", "fleet:fleet") as run:
        stream = workspace.scores.stream(workspace.sources.get("fleet")[0], "fleet")
        options = {"flagged": 0, "model_id": workspace.models.get("fleet").id, "run_id": run.id, "watermark": None}
        workspace.scores.commit(stream, Part("old", 0, True, None, 10), old, [], **options)  # type: ignore[arg-type]
    (about,) = traces(workspace, "fleet")
    assert traces(workspace, "table") == []
    assert about.entities == before.entities
    found = trace(workspace, about.stream_id, "a")
    assert found["value:heat"].null_count() == found.height
    assert found.select(rows.columns).equals(rows)
