"""From events of a series to alerts: one fault alerts once, and its alert is told of again while it lasts.

Events come in two kinds: those that have ended and are final, and those that are still going on or lie in the newest places, whose
scores are provisional. An event belongs to the open alert of its entity that it touches; one that touches none is new. An open alert
that no event touches any more stays as it was last told, and is closed once its places are final: a provisional flag may come and go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import polars as pl

from tabdiff.operations.judges import plain
from tabdiff.series import Grid
from tabdiff.store.scores import Alert
from tabdiff.store.triage import SEVERITIES

_TEXT = 200  # characters of an entity


@dataclass(frozen=True)
class Told:
    """An event as alerts know it.

    Attributes:
        key: of the recording in a model's state.
        entity: of which recording; None where there is one.
        kind: "event" or "silent".
        first, last, peak: places.
        severity, p_value, excess: as of `Alert`.
        sensors: (name, share), largest first.
        open: it goes on, or its places are not final.
    """

    key: str
    entity: str | None
    kind: str
    first: int
    last: int
    peak: int
    severity: float
    p_value: float
    excess: float | None
    sensors: tuple[tuple[str, float], ...]
    open: bool


@dataclass(frozen=True)
class Seen:
    """What was recorded and expected at one place: for each sensor (value, expected, low, high), as far as there are such."""

    sensors: Mapping[str, Sequence[Any]]


def settle(
    events: Sequence[Told],
    opened: Sequence[Mapping[str, Any]],
    final: Mapping[str | None, int | None],
    *,
    reach: int,
    seen: Callable[[Told], Seen | None],
    stamp: Callable[[int], Any],
    time: str,
) -> tuple[list[Alert], dict[int, Alert]]:
    """New alerts, and what open ones become.

    Args:
        events: of the entities that were looked at, final ones first, each kind in order of time.
        opened: open alerts of the stream, as `Scores.open_alerts` gives them; `begun` is the first place of one of another version.
        final: of the entities that were looked at, the place before which all are final; None for all. Alerts of others stay as they are.
        reach: places between an event and an alert within which they are the same.
        seen: what was recorded at the peak of an event; None if that is not known any more.
        stamp: time of a place.
        time: name of the time column.
    """
    new: list[Alert] = []
    changed: dict[int, Alert] = {}
    waiting = [alert for alert in opened if alert["entity"] in final]
    for event in events:
        match = next((alert for alert in waiting if _touches(event, alert, reach)), None)
        if match is None:
            new.append(_alert(len(new), event, None, seen(event), stamp, time))
        else:
            waiting.remove(match)
            changed[match["id"]] = _alert(match["row"], event, match, seen(event), stamp, time)
    for alert in waiting:
        border = final[alert["entity"]]
        if alert["kind"] != "event" or border is None or alert["last_place"] < border:
            changed[alert["id"]] = closed(alert)
    return new, changed


def risen(opened: Sequence[Mapping[str, Any]], changed: Mapping[int, Alert]) -> int:
    """How many open alerts are of a higher severity now than they were told of: a fault may come while something slight goes on."""

    def step(excess: float | None) -> int:
        return sum((excess or 0.0) >= limit for limit in SEVERITIES.values())

    return sum(step(changed[alert["id"]].excess) > step(alert["excess"]) for alert in opened if alert["id"] in changed)


def closed(alert: Mapping[str, Any]) -> Alert:
    """A stored alert, as it is from its end on."""
    return Alert(**{each.name: alert[each.name] for each in fields(Alert)} | {"open": False})


def _touches(event: Told, alert: Mapping[str, Any], reach: int) -> bool:
    same = event.entity == alert["entity"] and event.kind == alert["kind"]
    if event.kind == "silent":
        same = same and {name for name, _ in event.sensors} == {reason["column"] for reason in alert["reasons"]}
    return bool(same and event.first <= alert["last_place"] + reach and event.last >= alert["first_place"] - reach)


def _alert(
    row: int,
    event: Told,
    before: Mapping[str, Any] | None,
    seen: Seen | None,
    stamp: Callable[[int], Any],
    time: str,
) -> Alert:
    """The alert of an event. Where what was seen at the peak is not known any more, that of the alert before is kept.

    An alert that another version raised keeps its beginning, of which this one knows nothing.
    """
    first = event.first if before is None else min(event.first, before.get("begun", event.first))
    if seen is None and before is not None and before["values"]:
        values, known = before["values"], {reason["column"]: reason for reason in before["reasons"]}
    else:
        held = seen.sensors if seen is not None else {}
        values = {time: plain(stamp(event.peak)), **{name: plain(found[0]) for name, found in held.items()}}
        known = {
            name: dict(zip(("value", "expected", "low", "high"), map(plain, found), strict=False))
            for name, found in held.items()
        }
    reasons = []
    for name, share in event.sensors[:3]:
        of_sensor = {key: known.get(name, {}).get(key) for key in ("expected", "value", "low", "high")}
        reasons.append({"column": name, "part": share * event.severity, **of_sensor})
    return Alert(
        row=row,
        score=event.severity,
        p_value=event.p_value,
        reasons=reasons,
        values=values,
        at=_moment(stamp(first)),
        entity=event.entity,
        excess=event.excess if event.excess is None or math.isfinite(event.excess) else None,
        kind=event.kind,
        ended=_moment(stamp(event.last)),
        open=event.open,
        first_place=first,
        last_place=event.last,
    )


def places_of(alert: Mapping[str, Any], grid: Grid) -> tuple[int, int]:
    """First and last place of a stored event on a grid; by its times if it has some, as the version that alerted may have had another grid."""
    if alert["at"] is None or alert["ended"] is None:
        return alert["first_place"], alert["last_place"]
    times = [alert[end].astimezone(UTC).replace(tzinfo=None) for end in ("at", "ended")]
    first, last = grid.places_of(pl.Series(grid.time, times)).tolist()
    return first, last


def entity_text(entity: Any) -> str | None:
    """An entity as alerts name it."""
    return None if entity is None else str(entity)[:_TEXT]


def _moment(value: Any) -> datetime | None:
    """A time with its zone; steps and seconds are none."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else None
