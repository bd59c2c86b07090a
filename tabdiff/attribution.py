"""Which sensor carries what is abnormal: the evidence against each, beside what it shows elsewhere.

Evidence (`Expectation.evidence`) says how much better the rest would fit without a sensor, so a broken sensor is told from those that it pulls
along. What it cannot tell is a broken sensor from one that is out of the ordinary for hours, in a way that training did not show: a new
level, another mode. So the evidence of a short spell is also compared with that of the time around it, and with that of the other sensors, which
rises with it when what they watch begins to move. A sensor that never moved, as a command that was not given yet, shows so little that any reading
passes it many times over: less than noise would give is nothing. One whose readings do not change, though they used to, is suspected for that: stuck values
are too smooth to stand out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

_SPELL = 8  # places on either side that are judged together
_AROUND = 16  # places' worth of what is usual, beside the evidence of the time around
_LASTING = 0.1  # what counts of a spell that differs from normal time, though not from the time around it
_STRIDE = 4  # places from one spell to the next
_LEAST_LEVEL, _LEAST_SCATTER = 0.1, 0.1  # of few held-out windows some are alike by chance
_LEAST_WEIGHT = 3.0
_WHOLE = 0.03  # what a whole window counts, beside a spell
_NOTHING = 1.0  # evidence for each step that it looks at, below which a sensor is not suspected, however little it has shown before ...
_LITTLE = 0.05  # ... or no more than this, which decides if nothing else is wrong
_LEAST_EXCESS = 1.5  # deviations
_UNSEEN = 0.5  # by how much windows of different stretches differ (logarithm), until several stretches tell


@dataclass(frozen=True)
class Habits:
    """What held-out normal time shows of C sensors.

    Attributes:
        level: geometric mean of the evidence of a spell.
        scatter: standard deviation of its logarithm within a stretch.
        surprise: of one unchanged reading, in nats: minus the logarithm of how often readings stay the same.
        calm: the largest share of a spell that readings stayed the same.
        highest: the largest suspicion of a spell, and a little more.
        long_level, long_scatter: mean and standard deviation of the logarithm of the evidence of a window, within stretches and between them.
        beside: (other, sensor) what the deviations of the others count for each: deviations times this are those from what the others lead to expect.
    """

    level: Float64[np.ndarray, " c"]
    scatter: Float64[np.ndarray, " c"]
    surprise: Float64[np.ndarray, " c"]
    calm: Float64[np.ndarray, " c"]
    highest: Float64[np.ndarray, " c"]
    long_level: Float64[np.ndarray, " c"]
    long_scatter: Float64[np.ndarray, " c"]
    beside: Float64[np.ndarray, "c c"]

    @classmethod
    def fit(
        cls, stretches: Sequence[tuple[Float64[np.ndarray, "_ c"], Bool[np.ndarray, "_ c"]]], window: int, steps: int
    ) -> Habits:
        """Habits in stretches of normal time.

        Args:
            stretches: evidence for each place and sensor, and whether its reading is that of the place before.
            window, steps: places in a window, and in what evidence looks at.
        """
        logs = [np.log(np.maximum(_means(evidence, _SPELL), _LEAST_LEVEL)) for evidence, _ in stretches]
        whole = [np.log(np.maximum(_means(evidence, window // 2), _LEAST_LEVEL)) for evidence, _ in stretches]
        middles = np.array([each.mean(axis=0) for each in whole])
        between = (((middles - middles.mean(axis=0)) ** 2).sum(axis=0) + _UNSEEN**2) / len(middles)
        places = sum(len(unchanged) for _, unchanged in stretches)
        same = np.sum([unchanged.sum(axis=0) for _, unchanged in stretches], axis=0)
        scatter = np.mean([each.std(axis=0) for each in logs], axis=0) + _LEAST_SCATTER
        habits = cls(
            np.exp(np.mean([each.mean(axis=0) for each in logs], axis=0)),
            scatter,
            -np.log((same + 1) / (places + 2)),
            np.max([_means(unchanged.astype(np.float64), _SPELL).max(axis=0) for _, unchanged in stretches], axis=0),
            np.ones(len(same)),
            middles.mean(axis=0),
            np.sqrt(np.mean([each.var(axis=0) for each in whole], axis=0) + between) + _LEAST_SCATTER / 2,
            _beside(logs),
        )
        found = [
            habits.suspicion(evidence, unchanged, np.arange(window // 4, len(evidence), window // 2), window, steps)
            for evidence, unchanged in stretches
        ]
        highest = np.concatenate(found).max(axis=0) + _LEAST_WEIGHT
        return replace(habits, highest=highest)

    @classmethod
    def from_json(cls, calibration: Mapping[str, Any]) -> Habits:
        """Of a stored calibration. Models of earlier versions know the level and scatter of windows only."""
        known = calibration.get("habits")
        if known is not None:
            values = {name: np.asarray(values, dtype=np.float64) for name, values in known.items()}
            return cls(**{"beside": np.eye(len(values["level"]))} | values)
        level = np.asarray(calibration["usual"], dtype=np.float64)
        nothing = np.zeros(len(level))
        scatter = np.asarray(calibration.get("scatter", nothing + 1.0), dtype=np.float64)
        highest, long_level = nothing + _LEAST_WEIGHT, np.log(np.maximum(level, 1e-12))
        return cls(level, scatter, nothing, nothing, highest, long_level, scatter, np.eye(len(level)))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return {"habits": {field.name: getattr(self, field.name).tolist() for field in fields(self)}}

    def excess(self, evidence: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
        """By how many deviations the evidence of N places lies above what is usual, less those by which it often does."""
        above = np.log(np.maximum(evidence, _LEAST_LEVEL) / self.level) / self.scatter
        return np.asarray(above - _LEAST_EXCESS)

    def weigh(
        self,
        evidence: Float64[np.ndarray, "m c"],
        unchanged: Bool[np.ndarray, "m c"],
        places: Int[np.ndarray, " n"],
        window: int,
        steps: int,
    ) -> Float64[np.ndarray, "n c"]:
        """How much each sensor is suspected at each of N places: of a spell, beside the most that it is in normal time; and of the whole window."""
        total, same, reach = _sums(evidence), _sums(unchanged), min(window // 2, far_of(window, steps))
        found = self._most(total, same, places, window, steps, _NOTHING * steps) / self.highest
        little = self._most(total, same, places, window, steps, _LEAST_LEVEL) / self.highest
        mean = _around(total, places, reach)
        usual = np.maximum(self.long_level, np.log(_NOTHING * steps))
        above = np.maximum(np.log(np.maximum(mean, _LEAST_LEVEL)) - usual, 0.0) / self.long_scatter
        return np.asarray(found + _LITTLE * np.minimum(little, 1.0) + _WHOLE * above**2)

    def suspicion(
        self,
        evidence: Float64[np.ndarray, "m c"],
        unchanged: Bool[np.ndarray, "m c"],
        places: Int[np.ndarray, " n"],
        window: int,
        steps: int,
    ) -> Float64[np.ndarray, "n c"]:
        """The most that a spell within half a window says against each sensor.

        That is by how many of its deviations its evidence lies above what is usual beside that of the other sensors, times the logarithm of how
        far it lies above that of the time around; and for readings that stay the same longer than they used to, the surprise of that.

        Args:
            evidence, unchanged: of the M places of which some are asked for; no place counts that is farther than `far_of` from them.
            places: those asked for.
            window, steps: places in a window, and in what evidence looks at.
        """
        return self._most(_sums(evidence), _sums(unchanged), places, window, steps, _NOTHING * steps)

    def _most(
        self,
        total: Float64[np.ndarray, "s c"],
        same: Float64[np.ndarray, "s c"],
        places: Int[np.ndarray, " n"],
        window: int,
        steps: int,
        least: float,
    ) -> Float64[np.ndarray, "n c"]:
        """The suspicion of a spell, from sums of evidence and of unchanged readings; less evidence than the least is nothing."""
        m, far, reach = len(total) - 1, far_of(window, steps), min(window // 2, far_of(window, steps))
        level = np.maximum(self.level, least)
        first, end = np.maximum(places - far, 0), np.minimum(places + far + 1, m)
        around = total[end] - total[first]
        most = np.zeros((len(places), total.shape[1]))
        for offset in range(-reach, reach + 1, _STRIDE):
            middle = places + offset
            here = np.flatnonzero((middle >= 0) & (middle < m))
            low, high, c = first[here], end[here], middle[here]
            begin, stop = np.maximum(c - _SPELL, low), np.minimum(c + _SPELL + 1, high)
            inner, outer = np.maximum(c - 2 * _SPELL, low), np.minimum(c + 2 * _SPELL + 1, high)
            count = (stop - begin)[:, None]
            mean = (total[stop] - total[begin]) / count
            others = (high - low - (outer - inner))[:, None]
            beside = np.maximum(around[here] - (total[outer] - total[inner]), 0.0)
            base = (_AROUND * level + beside) / (_AROUND + others)
            off = np.log(np.maximum(mean, least) / level) / self.scatter
            above = np.where(off > 0, np.maximum(off @ self.beside, 0.0), 0.0)
            rise = np.maximum(np.log(np.maximum(mean, 1e-12) / base), 0.0)
            stuck = np.maximum((same[stop] - same[begin]) / count - self.calm, 0.0) * self.surprise
            most[here] = np.maximum(most[here], (rise + _LASTING) * above + stuck)
        return most


def _beside(logs: Sequence[Float64[np.ndarray, "_ c"]]) -> Float64[np.ndarray, "c c"]:
    """The inverse of how evidence goes together within stretches, each column by the root of its diagonal.

    With few spells for each sensor it is drawn towards the identity: then each sensor is judged by itself.
    """
    own = [each - each.mean(axis=0) for each in logs]
    covariance = np.mean([each.T @ each / len(each) for each in own], axis=0)
    scatter = np.sqrt(np.diag(covariance)) + _LEAST_SCATTER
    spells = sum(map(len, logs)) / (2 * _SPELL + 1)
    drawn = min(1.0, len(covariance) / spells)
    together = (1 - drawn) * covariance / np.outer(scatter, scatter)
    np.fill_diagonal(together, 1.0)
    inverse = np.linalg.inv(together)
    return np.asarray(inverse / np.sqrt(np.diag(inverse)))


def far_of(window: int, steps: int) -> int:
    """How far from a place its evidence may lie: what it is computed from lies within one window, so a stream knows it when the place is final."""
    return window - (steps + 1) // 2


def _sums(values: Float64[np.ndarray, "k c"] | Bool[np.ndarray, "k c"]) -> Float64[np.ndarray, "k+1 c"]:
    return np.pad(np.cumsum(values, axis=0, dtype=np.float64), ((1, 0), (0, 0)))


def _means(values: Float64[np.ndarray, "k c"], reach: int) -> Float64[np.ndarray, "k c"]:
    """Means over the places around each."""
    return _around(_sums(values), np.arange(len(values)), reach)


def _around(total: Float64[np.ndarray, "s c"], places: Int[np.ndarray, " n"], reach: int) -> Float64[np.ndarray, "n c"]:
    """Means over the places around some, from sums."""
    begin, end = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(total) - 1)
    return np.asarray((total[end] - total[begin]) / (end - begin)[:, None])
