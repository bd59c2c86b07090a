"""From flagged places to events that someone can act on.

A flag is not yet an alert: single flags come and go, and one fault raises hundreds of them. An event opens when `count` of
`within` neighbouring places are flagged (N of M), starts at the first of them, and lasts until nothing was flagged for
`within` places. What follows within `cool_down` places of its end belongs to it, so one fault alerts once, and a level shift
that stays is one event however long it lasts.

Flags reach up to a window farther than what caused them, so when an event began and ended is asked of evidence, which is sharper (`tabdiff.onset`).

Places are fed one by one or all at once with the same result; the state is plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from tabdiff.errors import ConfigError
from tabdiff.onset import Onset

_Flag = tuple[int, float, tuple[float, ...]]


@dataclass(frozen=True)
class Evidence:
    """Where to look for the beginning and end of an event.

    Attributes:
        between: of the places from one to another: by how much the evidence against each sensor passes what is usual; None if too little is known.
        first: the first place that can be asked for.
        back: how many places before the one that opens an event can be asked for, in every part of a stream.
        reach: how many places before its first flag an event may have begun.
        before, after: how many places the evidence of a place looks back and ahead.
    """

    between: Callable[[int, int], Float64[np.ndarray, "k c"] | None]
    first: int
    back: int
    reach: int
    before: int
    after: int


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
        span: first and last place that was out of the ordinary, by the evidence against the sensors that carry it; None if there is none. A
            window is abnormal as a whole, so flags begin up to a window before what caused them, or after it where it begins weakly.
        open: it may still go on.
    """

    start: int
    end: int
    peak: int
    severity: float
    flagged: int
    contributions: tuple[float, ...]
    span: tuple[int, int] | None = None
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
        waiting: (place, score, contributions) of recent flags that have not opened an event.
        current: the event that may still go on.
        onset: what the evidence of its places says.
        free: the first place that belongs to no event before.
    """

    rules: EventRules
    waiting: list[_Flag] = field(default_factory=list)
    current: Event | None = None
    onset: Onset | None = None
    free: int | None = None

    def push(
        self,
        first: int,
        scores: Float[np.ndarray, " k"],
        flagged: Bool[np.ndarray, " k"],
        contributions: Float[np.ndarray, "k c"],
        evidence: Evidence | None = None,
    ) -> list[Event]:
        """Take K places from `first` on, later than all before; return the events that have ended."""
        ended = []
        for index in np.flatnonzero(flagged).tolist():
            place = first + index
            ended += self._close_before(place, evidence)
            flag = (place, float(scores[index]), tuple(contributions[index].tolist()))
            if self.current is not None:
                self.current = _longer(self.current, flag)
                continue
            self.waiting = [old for old in self.waiting if place - old[0] < self.rules.within] + [flag]
            if len(self.waiting) >= self.rules.count:
                self.current = _opened(self.waiting)
                self.waiting = []
                if evidence is not None:
                    begin = max(self.current.start - evidence.reach, place - evidence.back, evidence.first)
                    self.onset = Onset.at(max(begin, self.free or begin), contributions.shape[1])
        ended += self._close_before(first + len(scores), evidence)
        if self.current is not None:
            self._ask(first + len(scores), evidence)
        return ended

    def finish(self) -> list[Event]:
        """The event that is still open, if there is one."""
        return [self.current] if self.current is not None else []

    def _close_before(self, place: int, evidence: Evidence | None) -> list[Event]:
        """End the current event if it has been quiet for long enough when `place` comes."""
        quiet = self.rules.within + self.rules.cool_down
        if self.current is None or place - self.current.end <= quiet:
            return []
        self.free = self.current.end + quiet + 1
        self._ask(self.free, evidence)
        closed = replace(self.current, open=False)
        self.current = self.onset = None
        return [closed]

    def _ask(self, end: int, evidence: Evidence | None) -> None:
        """What the evidence of the places up to one says of the event that is open."""
        if self.current is None or self.onset is None or evidence is None:
            return
        if self.onset.next < end:
            excess = evidence.between(self.onset.next, end)
            if excess is None:
                return
            self.onset.take(excess)
        span = self.onset.interval(self.current.contributions, evidence.before, evidence.after)
        self.current = replace(self.current, span=span)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EventTracker:
        """Rebuild from `to_json`. States of earlier versions know no evidence: the event that was open is told by its flags."""
        current, onset = values["current"], values.get("onset")
        if current is not None:
            known = {each.name: current[each.name] for each in fields(Event) if each.name in current}
            span = known.get("span")
            known |= {"contributions": tuple(known["contributions"]), "span": None if span is None else tuple(span)}
            current = Event(**known)
        waiting = [(place, score, tuple(parts)) for place, score, parts, *_ in values["waiting"]]
        onset = None if onset is None else Onset.from_json(onset)
        return cls(EventRules(**values["rules"]), waiting, current, onset, values.get("free"))


def _opened(flags: list[_Flag]) -> Event:
    place, score, parts = flags[0]
    event = Event(place, place, place, score, 1, parts, open=True)
    for flag in flags[1:]:
        event = _longer(event, flag)
    return event


def _longer(event: Event, flag: _Flag) -> Event:
    place, score, parts = flag
    higher = score > event.severity
    return Event(
        event.start,
        place,
        place if higher else event.peak,
        score if higher else event.severity,
        event.flagged + 1,
        tuple(a + b for a, b in zip(event.contributions, parts, strict=True)),
        event.span,
        open=True,
    )
