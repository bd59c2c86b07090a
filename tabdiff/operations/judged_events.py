"""Events of a series that people judged: the rows around them, and whether a version says the same.

A version agrees if it raises an alarm within an event that was called an anomaly, or none within one that was called normal. The events
are those that some champion alerted on, so what no version ever found is not among them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tabdiff.errors import ConfigError, SchemaError, TabdiffWarning
from tabdiff.operations.series_trials import wide
from tabdiff.operations.tracing import trace, traces
from tabdiff.store import Workspace

if TYPE_CHECKING:
    from tabdiff.series_model import SeriesModel

_MOST = 200  # judged last
_BEFORE, _AFTER = 4, 1  # windows of rows around an event
FEWEST = 5  # events that a comparison takes


@dataclass(frozen=True)
class JudgedEvent:
    """An event with the rows around it, wide, times in UTC, seconds or steps.

    Attributes:
        rows: of its entity, from four windows before it to one after.
        first, last: its times.
        anomaly: what people called it.
    """

    rows: pl.DataFrame
    first: Any
    last: Any
    anomaly: bool


def judged_events(
    workspace: Workspace,
    name: str,
    champion: SeriesModel,
    verdicts: Sequence[str] = ("anomaly", "normal"),
    stream_id: int | None = None,
) -> list[JudgedEvent]:
    """Judged events of a model's streams (or of one of them) whose rows are still in score files, judged last first."""
    streams = {about.stream_id: about for about in traces(workspace) if about.model == name}
    grid, found = champion.plan.grid, []
    for alert in workspace.triage.judged(name, _MOST):
        about = streams.get(alert["stream_id"])
        if about is None or alert["kind"] != "event" or alert["verdict"] not in verdicts:
            continue
        if stream_id not in (None, about.stream_id):
            continue
        places = np.array([alert["first_place"], alert["last_place"]])
        if alert["at"] is not None and alert["ended"] is not None:
            # The version that alerted may have had another grid.
            times = [alert[end].astimezone(UTC).replace(tzinfo=None) for end in ("at", "ended")]
            places = grid.places_of(pl.Series(grid.time, times))
        around = grid.stamp(places + champion.window * np.array([-_BEFORE, _AFTER]))
        length = int(places[1] - places[0]) + (_BEFORE + _AFTER) * champion.window + 1
        begin, end = around.to_list()
        seen = trace(workspace, about.stream_id, alert["entity"], begin, end, buckets=2 * length)
        if not seen.height:
            continue  # removed by gc
        values = [pl.col(f"value:{sensor}").alias(sensor) for sensor in about.sensors]
        who = [] if about.entity is None else [pl.lit(alert["entity"]).alias(about.entity)]
        first, last = grid.stamp(places).to_list()
        rows = seen.select(pl.col("start").alias(about.time), *who, *values)
        found.append(JudgedEvent(rows, first, last, alert["verdict"] == "anomaly"))
    return found


def told_of_events(workspace: Workspace, name: str, stream_id: int, model: SeriesModel) -> SeriesModel:
    """A model that was told of the false alarms of a stream, of the last 200 judged events."""
    reader, alarms = wide(model), []
    for event in judged_events(workspace, name, model, ("normal",), stream_id):
        # Its entity or its columns may be none of this version's.
        with contextlib.suppress(SchemaError, ConfigError):
            alarms.append(reader.false_alarm(model.schema.restore(event.rows), event.first, event.last))
    return model.with_false_alarms(reversed(alarms)) if alarms else model


def agreement(
    challenger: SeriesModel, champion: SeriesModel, events: Sequence[JudgedEvent]
) -> tuple[dict[str, float], dict[str, float]]:
    """Share of the events on which each version says what people said, as `agreement`, and of how many (`judged`).

    Both are empty if fewer than five events can be read by both.
    """
    versions = [(wide(version), version.rule().threshold(version.blocks)) for version in (challenger, champion)]
    said = [[_agrees(*version, event) for version in versions] for event in events]
    both = [(new, old) for new, old in said if new is not None and old is not None]
    if len(both) < FEWEST:
        return {}, {}
    new, old = (float(np.mean([pair[which] for pair in both])) for which in (0, 1))
    return {"agreement": new, "judged": float(len(both))}, {"agreement": old, "judged": float(len(both))}


def _agrees(model: SeriesModel, threshold: float, event: JudgedEvent) -> bool | None:
    """Whether a version for wide rows says the same; None if it cannot read them, or has no score within the event."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TabdiffWarning)  # of new columns
            places = model.score(model.schema.restore(event.rows)).places
    except SchemaError:
        return None
    inside = places.filter(pl.col(model.plan.grid.time).is_between(event.first, event.last))["score"].drop_nulls()
    if not len(inside):
        return None
    highest: Any = inside.max()
    return bool(highest > threshold) == event.anomaly
