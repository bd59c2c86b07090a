"""What the page Series asks of the workspace: recordings, stretches of them in at most so many buckets, and the events in a stretch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from dashboard.queries import MOST_ROWS, cached
from tabdiff.operations import tracing
from tabdiff.operations.tracing import Trace
from tabdiff.store import Workspace
from tabdiff.store.triage import Filter

Place = datetime | int | float  # a time with its zone, or a step
BUCKETS = 1000  # of a chart: about one for each of its pixels
_STRIP = 400


@cached(None)
def traces(workspace: Workspace) -> list[Trace]:
    """Every recording that a series model has scored."""
    return tracing.traces(workspace)


@cached(None)
def span(workspace: Workspace, stream: int, entity: str | None) -> tuple[Place, Place] | None:
    """First and last time that was scored; None if nothing was."""
    first, last = tracing.span(workspace, stream, entity)
    return None if first is None else (zoned(first), zoned(last))


@cached(None)
def stretch(
    workspace: Workspace,
    stream: int,
    entity: str | None,
    start: Place,
    end: Place,
    sensors: tuple[str, ...],
    buckets: int = BUCKETS,
) -> pl.DataFrame:
    """Places from one time to another, or buckets of them that hide no peak: see `tabdiff.operations.tracing.trace`."""
    found = tracing.trace(workspace, stream, entity, start, end, sensors, buckets)
    times = [name for name in ("start", "end") if name in found.columns and found.schema[name] == pl.Datetime]
    return found.with_columns(pl.col(name).dt.replace_time_zone("UTC") for name in times)


@cached(None)
def strip(workspace: Workspace, stream: int, entity: str | None) -> pl.DataFrame:
    """The highest scores of all that was scored: `start`, `end`, `score`."""
    whole = span.of(workspace, stream, entity)
    if whole is None:
        return pl.DataFrame()
    found = stretch.of(workspace, stream, entity, *whole, (), _STRIP)
    return found.select("start", "end", "score", "gap")


@cached(None)
def events(
    workspace: Workspace, source: str, model: str, entity: str | None, start: Place, end: Place
) -> list[dict[str, Any]]:
    """Alerts of a recording that touch a stretch of time, first to last: those that last (`at` to `ended`), whatever was said of them."""
    chosen = Filter(
        source=source,
        model=model,
        entity=entity,
        state="all",
        before=end + timedelta(microseconds=1) if isinstance(end, datetime) else None,
    )
    found = workspace.triage.queue(chosen, newest=True, limit=MOST_ROWS)
    if isinstance(start, datetime):
        found = [one for one in found if one["at"] is not None and (one["ended"] or one["at"]) >= start]
    else:
        found = [
            one
            for one in found
            if one["first_place"] is not None and start <= one["last_place"] and one["first_place"] <= end
        ]
    return sorted(found, key=lambda one: (one["at"] or one["first_place"], one["id"]))


def zoned(place: Any) -> Place:
    """A time of a score file, with the zone it is in."""
    return place.replace(tzinfo=UTC) if isinstance(place, datetime) and place.tzinfo is None else place
