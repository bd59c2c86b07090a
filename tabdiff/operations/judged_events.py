"""Events of a series that people judged: the rows around them, and whether a version says the same.

A version agrees if it raises an alarm within an event that was called an anomaly, or none within one that was called normal. The events
are those that some champion alerted on, so what no version ever found is not among them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tabdiff.errors import ConfigError, SchemaError, TabdiffWarning
from tabdiff.operations.levels import ACCEPTED
from tabdiff.operations.series_alerts import places_of
from tabdiff.operations.series_trials import wide
from tabdiff.operations.tracing import Trace, trace, trace_of, traces
from tabdiff.store import Workspace

if TYPE_CHECKING:
    from tabdiff.series_model import SeriesModel

_MOST, _MOST_TOLD = 200, 100  # judged last
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


def judged_events(workspace: Workspace, name: str, champion: SeriesModel) -> list[JudgedEvent]:
    """Judged events of a model's streams whose rows are still in score files, judged last first."""
    alerts = workspace.triage.judged(name, _MOST, kind="event", verdicts=("anomaly", "normal"))
    streams = {about.stream_id: about for about in traces(workspace, name)} if alerts else {}
    known = [(streams[alert["stream_id"]], alert) for alert in alerts if alert["stream_id"] in streams]
    found = [_event(workspace, about, alert, champion) for about, alert in known]
    return [event for event in found if event is not None]


def _event(workspace: Workspace, about: Trace, alert: Mapping[str, Any], champion: SeriesModel) -> JudgedEvent | None:
    """An alert with the rows around it; None if these were removed by gc."""
    grid = champion.plan.grid
    places = np.array(places_of(alert, grid))
    begin, end = grid.stamp(places + champion.window * np.array([-_BEFORE, _AFTER])).to_list()
    length = int(places[1] - places[0]) + (_BEFORE + _AFTER) * champion.window + 1
    seen = trace(workspace, about, alert["entity"], begin, end, buckets=2 * length)
    if not seen.height:
        return None
    values = [pl.col(f"value:{sensor}").alias(sensor) for sensor in about.sensors]
    who = [] if about.entity is None else [pl.lit(alert["entity"]).alias(about.entity)]
    first, last = grid.stamp(places).to_list()
    rows = seen.select(pl.col("start").alias(about.time), *who, *values)
    return JudgedEvent(rows, first, last, alert["verdict"] == "anomaly")


def with_false_alarms(
    model: SeriesModel, workspace: Workspace, name: str, stream_id: int
) -> tuple[SeriesModel, dict[str, int]]:
    """A model that was told of the last hundred false alarms of a stream, and of how many (`false_alarms`).

    Not of those that are false alarms because their level was accepted: seen from the new level the time before them is abnormal, and a fall
    back to the old one must be told.
    """
    alerts = workspace.triage.judged(name, _MOST_TOLD, kind="event", verdicts=("normal",), stream_id=stream_id)
    versions = workspace.models.all(name)
    accepted = {known.get("alert") for version in versions for known in version.metrics.get(ACCEPTED, [])}
    alerts = [alert for alert in alerts if alert["id"] not in accepted]
    if not alerts:
        return model, {"false_alarms": 0}
    about, reader, alarms = trace_of(workspace, stream_id), wide(model), []
    for alert in alerts:
        event = _event(workspace, about, alert, model)
        # Its entity or its columns may be none of this version's.
        with contextlib.suppress(SchemaError, ConfigError):
            if event is not None:
                alarms.append(reader.false_alarm(model.schema.restore(event.rows), event.first, event.last))
    return model.with_false_alarms(reversed(alarms)) if alarms else model, {"false_alarms": len(alarms)}


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
