"""What the clock and the calendar say of a number: a daily, weekly and yearly profile that is known at every place.

A number is taken to be ``level + mean(calendar) + spread(calendar) * rest``. The rest is what windows are made of: it is scored,
drawn and filled, and the calendar is put back afterwards. So a dip that belongs to the weekend is no fault, the same dip on a
working day is one, and a series that is drawn for a year has its nights and Sundays, however short the windows are.

Profiles are tables of nodes with straight lines between them, fitted as additive effects next to the level of each cycle, and shrunk
by how much cycles differ (empirical Bayes, Efron & Morris 1975). A term enters for a number if it explains days, weeks or years
that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int

from tabdiff.errors import ConfigError

Term = Literal["hour", "weekday", "week", "month"]
TERMS: tuple[Term, ...] = ("hour", "weekday", "week", "month")
_HOUR = 3_600_000_000  # microseconds
_DAY = 24 * _HOUR
_STATES = {"hour": 24, "weekday": 7, "month": 12}
_CYCLE = {"hour": "day", "weekday": "week", "week": "week", "month": "year"}
_CYCLE_LENGTH = {"hour": _DAY, "weekday": 7 * _DAY, "week": 7 * _DAY, "month": round(365.25 * _DAY)}
# Cycles, at least half recorded, for a term to be tried. Of days a week: what holds from Monday to Thursday may not on Sunday.
_ENOUGH = {"hour": 7, "weekday": 4, "week": 4, "month": 3}
_FEWEST = 2  # cycles for a term that is asked for
_MOST_NODES = 96  # of a day
_MOST_PLACES = 100_000  # that a profile is fitted to
_FOLDS = 5
_DOUBT = 2.5  # standard errors, and more for few cycles, that the gain in held-out cycles must lie above zero
_LEAST_GAIN = {"mean": 0.01, "spread": 0.02}  # share of the variance within cycles; nats a place
_WIDEST = 3.0  # times the usual spread, or the part of it
_FARTHEST = 16.0  # squared deviations of the rest, in its variance, count for so much at most
_PASSES = 5  # of the two-way fit; it is exact at once where no cycle has gaps


@dataclass(frozen=True)
class Clock:
    """Reads the calendar at places of a grid of times.

    Attributes:
        interval, phase: of the grid, in microseconds.
        zone: where the clock hangs; UTC if None.
    """

    interval: int
    phase: int
    zone: str | None = None

    def local(self, places: Int[np.ndarray, " k"]) -> pl.Series:
        """Wall time at places."""
        stamps = pl.Series("at", places * self.interval + self.phase, dtype=pl.Int64).cast(pl.Datetime("us"))
        if self.zone is None:
            return stamps
        return stamps.dt.replace_time_zone("UTC").dt.convert_time_zone(self.zone).dt.replace_time_zone(None)

    def nodes(self, term: Term) -> int:
        """How many nodes the table of a term has."""
        day = int(np.clip(_DAY // self.interval, 24, _MOST_NODES))
        return {"hour": day, "weekday": 7, "week": 168, "month": 12}[term]

    def fits(self, term: Term) -> bool:
        """Whether a cycle holds several places."""
        return 2 * self.interval <= _CYCLE_LENGTH[term]

    def cycles(self, term: Term, local: pl.Series) -> Int[np.ndarray, " k"]:
        """The number of the day, week or year that each place is in."""
        if term == "month":
            return np.asarray(local.dt.year().to_numpy(), dtype=np.int64)
        days = np.asarray(local.to_physical().to_numpy() // _DAY)
        return days if term == "hour" else (days + 3) // 7  # the first of January 1970 was a Thursday

    def weights(self, term: Term, local: pl.Series) -> _Between:
        """Between which two nodes each place lies, and how near to the second."""
        count, time = self.nodes(term), local.to_physical().to_numpy()
        if term == "weekday":
            day = np.asarray((time // _DAY + 3) % 7)
            return _Between(day, day, np.zeros(len(day)))
        if term == "month":
            position = local.dt.ordinal_day().to_numpy() / 365.25 * 12 - 0.5
        else:
            # Nodes of readings every hour or less often lie where the readings do.
            shift = self.phase % _HOUR if self.interval >= _HOUR else 0
            length = _CYCLE_LENGTH[term]
            position = ((time + (3 * _DAY if term == "week" else 0) - shift) % length) / length * count
        low = np.floor(position).astype(np.int64)
        return _Between(low % count, (low + 1) % count, position - low)


@dataclass(frozen=True)
class _Between:
    """K places between nodes."""

    low: Int[np.ndarray, " k"]
    high: Int[np.ndarray, " k"]
    share: Float64[np.ndarray, " k"]

    def read(self, nodes: Sequence[float] | Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " k"]:
        """Straight lines between the nodes."""
        table = np.asarray(nodes, dtype=np.float64)
        return np.asarray(table[self.low] * (1 - self.share) + table[self.high] * self.share)


@dataclass(frozen=True)
class Profile:
    """One number's calendar.

    Attributes:
        level: what the spread is measured from.
        mean: for each term its nodes, added up.
        spread: for each term the logarithms of its nodes, added up.
    """

    level: float
    mean: Mapping[str, Sequence[float]]
    spread: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Rhythm:
    """The calendar of all numbers that have one.

    Attributes:
        clock: reads the calendar; None if there is none.
        profiles: by name.
    """

    clock: Clock | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    @property
    def terms(self) -> list[str]:
        """The terms that some number has, longest cycle last."""
        used = {term for profile in self.profiles.values() for term in (*profile.mean, *profile.spread)}
        return [term for term in TERMS if term in used]

    def at(
        self, places: Int[np.ndarray, " k"]
    ) -> dict[str, tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]]:
        """For each number that has a calendar what is added, and what the rest about the level is multiplied by."""
        if self.clock is None or not self.profiles:
            return {}
        local = self.clock.local(places)
        weights = {term: self.clock.weights(term, local) for term in TERMS if term in self.terms}
        found = {}
        for name, profile in self.profiles.items():
            mean, spread = np.zeros(len(places)), np.zeros(len(places))
            for term, between in weights.items():
                if term in profile.mean:
                    mean += between.read(profile.mean[term])
                if term in profile.spread:
                    spread += between.read(profile.spread[term])
            found[name] = (mean, np.exp(spread))
        return found

    @property
    def dials(self) -> list[tuple[str, int]]:
        """What a network is shown of the calendar, and how many states each has: where the numbers have one, the rest has one, too."""
        shown = {"hour": {"hour", "week"}, "weekday": {"weekday", "week"}, "month": {"month"}}
        return [(name, _STATES[name]) for name, terms in shown.items() if terms & set(self.terms)]

    def shown(self, places: Int[np.ndarray, " k"]) -> Float32[np.ndarray, "k s"]:
        """The states of the dials at places, each as one of so many slots."""
        if self.clock is None or not self.dials:
            return np.zeros((len(places), 0), np.float32)
        local = self.clock.local(places)
        read = {"hour": local.dt.hour(), "weekday": local.dt.weekday() - 1, "month": local.dt.month() - 1}
        return np.hstack([np.eye(states, dtype=np.float32)[read[name].to_numpy()] for name, states in self.dials])

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Rhythm:
        """Rebuild from `to_json`; models of earlier versions have none."""
        if not values or values["clock"] is None:
            return cls()
        profiles = {name: Profile(**profile) for name, profile in values["profiles"].items()}
        return cls(Clock(**values["clock"]), profiles)


@dataclass(frozen=True)
class Readings:
    """Numbers of one recording, K places from `first` on; NaN where nothing was read."""

    first: int
    values: Mapping[str, Float64[np.ndarray, " k"]]


def find_rhythm(clock: Clock, recordings: Sequence[Readings], wanted: Sequence[str] | None = None) -> Rhythm:
    """The calendar of each number.

    Args:
        recordings: all with the same numbers.
        wanted: terms that every number has, whether they help or not; if None, those that prove themselves in held-out cycles.

    Raises:
        ConfigError: a term is wanted for which there are too few cycles or too long an interval.
    """
    asked: list[Term] | None = None
    if wanted is not None:
        both = "hour" in wanted and "weekday" in wanted
        asked = [term for term in TERMS if term in wanted or (term == "week" and both)]
    calendar = _Calendar.of(clock, recordings)
    terms = [term for term in TERMS if calendar.offers(term, asked)]
    profiles = {}
    for name in recordings[0].values if terms else ():
        profile = calendar.profile(calendar.gather(name), terms, terms if asked is not None else None)
        if profile is not None:
            profiles[name] = profile
    return Rhythm(clock, profiles)


def refit_rhythm(rhythm: Rhythm, recordings: Sequence[Readings]) -> Rhythm:
    """The same terms of the same numbers, from other readings."""
    if rhythm.clock is None or not rhythm.profiles:
        return rhythm
    calendar = _Calendar.of(rhythm.clock, recordings)
    profiles = {}
    for name, before in rhythm.profiles.items():
        found = calendar.profile(calendar.gather(name), list(before.mean), list(before.mean), list(before.spread))
        profiles[name] = found or before
    return Rhythm(rhythm.clock, profiles)


@dataclass(frozen=True)
class _Calendar:
    """Places of all recordings, one after the other, on the calendar; of very many every so many-th."""

    clock: Clock
    recordings: Sequence[Readings]
    stride: int
    local: pl.Series
    recording: Int[np.ndarray, " k"]

    @classmethod
    def of(cls, clock: Clock, recordings: Sequence[Readings]) -> _Calendar:
        lengths = [len(next(iter(each.values.values()))) if each.values else 0 for each in recordings]
        # Places that lie between the same nodes say nearly the same.
        stride = max(1, min(_DAY // _MOST_NODES // clock.interval, sum(lengths) // _MOST_PLACES))
        places = [each.first + np.arange(0, length, stride) for each, length in zip(recordings, lengths, strict=True)]
        which = np.repeat(np.arange(len(recordings)), [len(each) for each in places])
        return cls(clock, recordings, stride, clock.local(np.concatenate(places)), which)

    def gather(self, name: str) -> Float64[np.ndarray, " k"]:
        return np.concatenate([each.values[name][:: self.stride] for each in self.recordings])

    def offers(self, term: Term, asked: Sequence[Term] | None) -> bool:
        """Whether there is enough time for a term."""
        if asked is not None and term not in asked:
            return False
        _, size = np.unique(self.clock.cycles(term, self.local), return_counts=True)
        count = int((2 * size * self.stride * self.clock.interval >= _CYCLE_LENGTH[term]).sum())
        if asked is None:
            return self.clock.fits(term) and count >= _ENOUGH[term]
        if not self.clock.fits(term):
            raise ConfigError(
                f"series.calendar={term} needs several places in a {_CYCLE[term]}; the interval is too long. Leave it out."
            )
        if count < _FEWEST:
            raise ConfigError(
                f"series.calendar={term} needs at least {_FEWEST} {_CYCLE[term]}s, at least half recorded; there are {count}. Leave it out, or give more rows."
            )
        return True

    def profile(
        self,
        values: Float64[np.ndarray, " k"],
        terms: Sequence[str],
        forced: Sequence[str] | None,
        spread: Sequence[str] | None = None,
    ) -> Profile | None:
        """Term after term, each fitted to what the ones before leave over. None if there is none."""
        seen = np.flatnonzero(~np.isnan(values))
        if len(seen) < 2 or np.ptp(values[seen]) == 0:
            return None
        level = float(values[seen].mean())
        rest = values[seen] - level
        means: dict[str, list[float]] = {}
        for term in TERMS:
            if term not in terms:
                continue
            visits = self._visits(term, seen)
            if forced is not None or visits.explains(rest, "mean"):
                nodes = visits.nodes(rest, "mean")
                rest = rest - visits.between.read(nodes)
                means[term] = nodes.tolist()
        spreads: dict[str, list[float]] = {}
        variance = float((rest**2).mean())
        squares = np.minimum(rest**2 / max(variance, 1e-300), _FARTHEST)
        for term in ("hour", "weekday"):
            if variance == 0 or term not in (terms if spread is None else spread):
                continue
            visits = self._visits(term, seen)
            if spread is not None or (forced is None and visits.explains(squares, "spread")):
                nodes = visits.nodes(squares, "spread")
                squares = squares * np.exp(-2 * visits.between.read(nodes))
                spreads[term] = nodes.tolist()
        return Profile(level, means, spreads) if means or spreads else None

    def _visits(self, term: Any, seen: Int[np.ndarray, " n"]) -> _Visits:
        local = self.local.gather(seen)
        cycle = self.clock.cycles(term, local)
        _, number = np.unique(cycle, return_inverse=True)
        number = number.ravel()
        _, row = np.unique(self.recording[seen] * (int(number.max()) + 1) + number, return_inverse=True)
        return _Visits(self.clock.weights(term, local), self.clock.nodes(term), row.ravel(), number)


@dataclass(frozen=True)
class _Visits:
    """Places of one term: between which nodes they lie, in which cycle of which recording (`row`), in which cycle."""

    between: _Between
    count: int
    row: Int[np.ndarray, " k"]
    cycle: Int[np.ndarray, " k"]

    def _sums(
        self, values: Float64[np.ndarray, " k"], some: Bool[np.ndarray, " k"]
    ) -> tuple[Float64[np.ndarray, "r n"], Float64[np.ndarray, "r n"]]:
        """Sums and weights of the nodes in each row."""
        rows, size = int(self.row.max()) + 1, self.count
        total, weight = np.zeros(rows * size), np.zeros(rows * size)
        row, x = self.row[some] * size, values[some]
        for node, share in (
            (self.between.low[some], 1 - self.between.share[some]),
            (self.between.high[some], self.between.share[some]),
        ):
            total += np.bincount(row + node, share * x, rows * size)
            weight += np.bincount(row + node, share, rows * size)
        return total.reshape(rows, size), weight.reshape(rows, size)

    def nodes(
        self, values: Float64[np.ndarray, " k"], kind: str, some: Bool[np.ndarray, " k"] | None = None
    ) -> Float64[np.ndarray, " n"]:
        """Effects of the nodes, shrunk; of squares in units of their variance, logarithms of spreads."""
        total, weight = self._sums(values, np.ones(len(values), bool) if some is None else some)
        by_row, by_node = weight.sum(axis=1), weight.sum(axis=0)
        seen, filled = by_node > 0, by_row > 0
        level, effect = np.zeros(len(weight)), np.zeros(self.count)
        if kind == "spread":
            level[:] = total.sum() / weight.sum()
        for _ in range(_PASSES if kind == "mean" else 1):
            if kind == "mean":
                level[filled] = (total - weight * effect).sum(axis=1)[filled] / by_row[filled]
            effect[seen] = (total - weight * level[:, None]).sum(axis=0)[seen] / by_node[seen]
            effect[seen] -= np.average(effect[seen], weights=by_node[seen])
        visited = weight > 0
        off = np.where(visited, total / np.where(visited, weight, 1.0) - level[:, None] - effect, 0.0)
        number = np.where(seen, by_node**2 / np.maximum((weight**2).sum(axis=0), 1e-300), 1.0)
        scatter = (weight * off**2).sum() / weight.sum() * np.mean(number[seen] / np.maximum(number[seen] - 1, 0.5))
        noise = scatter / number
        between = max(0.0, float(np.average((effect**2 - noise)[seen], weights=by_node[seen])))
        effect *= between / np.maximum(between + noise, 1e-300)
        if kind == "mean":
            return effect
        return np.asarray(0.5 * np.log(np.clip(1 + effect / level[0], _WIDEST**-2, _WIDEST**2)))

    def explains(self, values: Float64[np.ndarray, " k"], kind: str) -> bool:
        """Whether nodes that are fitted to the other cycles make the values of a cycle less surprising."""
        cycles = int(self.cycle.max()) + 1
        turns = min(_FOLDS, cycles)
        fold = self.cycle * turns // cycles
        guess = np.zeros(len(values))
        for turn in range(turns):
            mine = fold == turn
            if mine.any() and not mine.all():
                guess[mine] = self.between.read(self.nodes(values, kind, ~mine))[mine]
        if kind == "mean":
            left, whole = self._within(values - guess), self._within(values)
            gain, unit = whole**2 - left**2, float((whole**2).mean())
        else:
            gain, unit = 0.5 * values * (1 - np.exp(-2 * guess)) - guess, 1.0
        each = np.bincount(self.cycle, gain, cycles) / len(values) * cycles
        error = float(each.std(ddof=1)) / cycles**0.5 * (1 + 3 / max(1, cycles - 1))
        return bool(each.mean() > max(_DOUBT * error, _LEAST_GAIN[kind] * unit))

    def _within(self, values: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
        """Values less the mean of their row."""
        count = np.maximum(np.bincount(self.row), 1)
        return np.asarray(values - (np.bincount(self.row, values) / count)[self.row])
