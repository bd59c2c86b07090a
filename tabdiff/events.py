"""From flagged places to events that someone can act on.

A flag is not yet an alert: single flags come and go, and one fault raises hundreds of them. An event opens when `count` of
`within` neighbouring places are flagged (N of M), starts at the first of them, and lasts until nothing was flagged for
`within` places. What follows within `cool_down` places of its end belongs to it, so one fault alerts once, and a level shift
that stays is one event however long it lasts.

Places are fed one by one or all at once with the same result; the state is plain values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from tabdiff.errors import ConfigError

_Flag = tuple[int, float, tuple[float, ...], bool]


@dataclass(frozen=True)
class EventRules:
    """When flags become an event.

    Attributes:
        count: flags needed to open one.
        within: places among which they must fall; also how many quiet places close it.
        cool_down: places after the end in which flags still belong to it.
    """

    count: int = 1
    within: int = 1
    cool_down: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.within or self.cool_down < 0:
            raise ConfigError(
                "an event needs count flags within so many places, 1 <= count <= within, and a cool_down of 0 or more; "
                f"got count={self.count}, within={self.within}, cool_down={self.cool_down}."
            )


@dataclass(frozen=True)
class Event:
    """A stretch of abnormal places of one recording.

    Attributes:
        start, end: first and last flagged place.
        peak: place of the highest score.
        severity: that score.
        flagged: how many places are flagged.
        contributions: what each sensor adds to the scores of the flagged places, summed.
        core: first and last flagged place that itself held something unexpected. A window is abnormal as a whole, so flags
            reach about half a window farther than what caused them.
        open: it may still go on.
    """

    start: int
    end: int
    peak: int
    severity: float
    flagged: int
    contributions: tuple[float, ...]
    core: tuple[int, int] | None = None
    open: bool = False

    def sensors(self, names: Iterable[str], share: float = 0.8) -> list[tuple[str, float]]:
        """The fewest sensors that carry `share` of the event, each with its part of the whole, largest first."""
        total = sum(self.contributions) or 1.0
        ranked = sorted(zip(names, self.contributions, strict=True), key=lambda pair: -pair[1])
        kept, carried = [], 0.0
        for name, part in ranked:
            kept.append((name, part / total))
            carried += part / total
            if carried >= share:
                break
        return kept


@dataclass
class EventTracker:
    """The state between places: flags that may still open an event, and the event that is open.

    Attributes:
        waiting: (place, score, contributions, unexpected) of recent flags that have not opened an event.
        current: the event that may still go on.
    """

    rules: EventRules
    waiting: list[_Flag] = field(default_factory=list)
    current: Event | None = None

    def push(
        self,
        first: int,
        scores: Float[np.ndarray, " k"],
        flagged: Bool[np.ndarray, " k"],
        contributions: Float[np.ndarray, "k c"],
        unexpected: Bool[np.ndarray, " k"] | None = None,
    ) -> list[Event]:
        """Take K places from `first` on, later than all before; return the events that have ended."""
        ended = []
        for index in np.flatnonzero(flagged).tolist():
            place = first + index
            ended += self._close_before(place)
            own = unexpected is not None and bool(unexpected[index])
            flag = (place, float(scores[index]), tuple(contributions[index].tolist()), own)
            if self.current is not None:
                self.current = _longer(self.current, flag)
                continue
            self.waiting = [old for old in self.waiting if place - old[0] < self.rules.within] + [flag]
            if len(self.waiting) >= self.rules.count:
                self.current = _opened(self.waiting)
                self.waiting = []
        ended += self._close_before(first + len(scores))
        return ended

    def finish(self) -> list[Event]:
        """The event that is still open, if there is one."""
        return [self.current] if self.current is not None else []

    def _close_before(self, place: int) -> list[Event]:
        """End the current event if it has been quiet for long enough when `place` comes."""
        if self.current is None or place - self.current.end <= self.rules.within + self.rules.cool_down:
            return []
        closed = Event(**{**asdict(self.current), "open": False})
        self.current = None
        return [closed]

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EventTracker:
        """Rebuild from `to_json`."""
        current = values["current"]
        if current is not None:
            core = None if current["core"] is None else tuple(current["core"])
            current = Event(**{**current, "contributions": tuple(current["contributions"]), "core": core})
        waiting = [(place, score, tuple(parts), own) for place, score, parts, own in values["waiting"]]
        return cls(EventRules(**values["rules"]), waiting, current)


def _opened(flags: list[_Flag]) -> Event:
    place, score, parts, own = flags[0]
    event = Event(place, place, place, score, 1, parts, (place, place) if own else None, open=True)
    for flag in flags[1:]:
        event = _longer(event, flag)
    return event


def _longer(event: Event, flag: _Flag) -> Event:
    place, score, parts, own = flag
    core = event.core
    if own:
        core = (core[0] if core else place, place)
    higher = score > event.severity
    return Event(
        event.start,
        place,
        place if higher else event.peak,
        score if higher else event.severity,
        event.flagged + 1,
        tuple(a + b for a, b in zip(event.contributions, parts, strict=True)),
        core,
        open=True,
    )
