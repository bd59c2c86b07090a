"""What a reading of a series should have been: the conditional Gaussian given the other readings near in time, in closed form.

With the precision matrix P of a few steps, what cells c are expected to hold given all others is x_c - P_cc^-1 (P (x - mean))_c
(Rue & Held 2005, theorem 2.3). Readings that are not to be believed are left out: with these cells h unknown, P is that of the rest,
P - P_.h P_hh^-1 P_h. (the Schur complement), and what is expected is known less well. How far off normal readings are is measured on held-out time,
so the band needs no Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from tabdiff.codec import Codec
from tabdiff.codes import NumberCode
from tabdiff.windows import FARTHEST, LOWEST_NOISE, Gaussian, Span

_EVIDENCE_STEPS, _EVIDENCE_RIDGE = 16, 0.5
_STEPS, _RIDGES = (4, 16), (LOWEST_NOISE, 0.3, 1.0)
_NEAR = 8  # places on either side of one in which a sensor is not believed, to find out how well the others tell of it
_ROWS = 20_000


@dataclass(frozen=True)
class Reach:
    """How much is looked at to say what is expected.

    Attributes:
        steps: places in time; as many as the span has if None.
        ridge: noise that is added to each reading, in standard deviations: the more, the less a short history is taken at its word.
    """

    steps: int | None = None
    ridge: float = LOWEST_NOISE

    def to_json(self) -> dict[str, Any]:
        """Plain values; `Reach(**values)` reads them."""
        return asdict(self)

    @classmethod
    def all(cls, longest: int) -> list[Reach]:
        """Those that a fit chooses from, by how far off they are in held-out time."""
        steps = [*(few for few in _STEPS if few < longest), longest]
        return [cls(each, ridge) for each in steps for ridge in _RIDGES]


class Expectation:
    """Expected numbers of places.

    Args:
        codec: how places become arrays.
        tensors: of the bundle.
        spans: of the scoring program; the longest that is not averaged is used.
        reach: how much of it.
    """

    def __init__(
        self, codec: Codec, tensors: Mapping[str, np.ndarray], spans: Sequence[Span], reach: Reach | None = None
    ) -> None:
        self.codec = codec
        span = [span for span in spans if span.pool == 1][-1]
        self.span, self.reach = span.length, reach or Reach()
        self.steps = self.reach.steps or span.length
        self._gaussian = Gaussian.of(tensors, span)

    def reaching(self, reach: Reach) -> Expectation:
        """The same with another reach."""
        other = copy(self)
        other.__dict__.pop("_precision", None)
        other.reach, other.steps = reach, reach.steps or self.span
        return other

    @property
    def width(self) -> int:
        """R: slots of a place."""
        return len(self.codec.layout.view_columns)

    @property
    def evidence_steps(self) -> int:
        """Places that the evidence of a place looks at."""
        return min(self.span, _EVIDENCE_STEPS)

    @cached_property
    def _slots(self) -> dict[str, int]:
        """Where the numbers lie in the raw view."""
        starts, offset = {}, 0
        for name, code in self.codec.codes.items():
            if isinstance(code, NumberCode):
                starts[name] = offset
            offset += code.view_width
        return starts

    def columns(self) -> tuple[str, ...]:
        """The number columns."""
        return tuple(self._slots)

    def raw(self, x: Float32[np.ndarray, "k w"]) -> Float64[np.ndarray, "k r"]:
        """The view that expectations are about, within the range that scores look at."""
        return np.clip(x[:, self.codec.layout.view("raw")].astype(np.float64), -FARTHEST, FARTHEST)

    def given_others(self, raw: Float64[np.ndarray, "k r"]) -> Float64[np.ndarray, "k r"]:
        """Each sensor at K places given the other sensors there, and all at the places around; K is at least `steps`."""
        pulls, step = self._pulls(raw)
        expected = np.empty_like(raw)
        for each in np.unique(step):
            expected[step == each] = raw[step == each] - pulls[step == each] @ self._apart(each)
        return expected

    def leaving_out(
        self,
        raw: Float64[np.ndarray, "k r"],
        places: Int[np.ndarray, " n"],
        hidden: Callable[[int, slice], Bool[np.ndarray, "t c"]],
    ) -> tuple[Float64[np.ndarray, "n r"], Float64[np.ndarray, "n r"]]:
        """Each sensor at N of K places given the others, where some readings are not to be believed.

        Args:
            hidden: which those are, for the number of a place (of N) and the T places around it that are looked at.

        Returns:
            What is expected, and how uncertain it is beside what it is with nothing left out: the ratio of standard deviations.
        """
        width, precision = self.width, self._precision
        owner, usual = np.asarray(self.codec.layout.view_columns), np.diag(self._apart(self.steps // 2))
        expected, ratio = np.empty((len(places), width)), np.empty((len(places), width))
        for number, (place, start) in enumerate(zip(places, self._starts(places, len(raw)), strict=True)):
            around = slice(start, start + self.steps)
            pull = precision @ (raw[around].reshape(-1) - self._mean)
            own = np.arange((place - start) * width, (place - start + 1) * width)
            out = np.flatnonzero(hidden(number, around)[:, owner])
            known = ~np.isin(own, out)
            rest, pulled = precision[np.ix_(own, own)], pull[own]
            off, variance = np.zeros(width), np.zeros(width)
            if len(out):
                cross, mine = precision[np.ix_(out, own)], np.isin(out, own)  # mine are in the order of own
                wanted = (out[:, None] == own[~known]).astype(np.float64)
                solved = np.linalg.solve(precision[np.ix_(out, out)], np.column_stack([pull[out], cross, wanted]))
                pulled, rest = pulled - cross.T @ solved[:, 0], rest - cross.T @ solved[:, 1 : 1 + width]
                off[~known], variance[~known] = solved[mine, 0], np.diag(solved[mine, 1 + width :])
            inverse = np.linalg.inv(_by_owner(rest[np.ix_(known, known)], owner[known]))
            off[known], variance[known] = inverse @ pulled[known], np.diag(inverse)
            expected[number], ratio[number] = raw[place] - off, np.sqrt(variance / usual)
        return expected, ratio

    def miss(
        self, raw: Float64[np.ndarray, "k r"], seen: Bool[np.ndarray, "k c"], places: Int[np.ndarray, " n"]
    ) -> float:
        """How far off expectations of numbers are at N of K places of normal time, while one sensor, another at each, is not believed near it.

        The mean squared error of that sensor, plus that of the others, in variances. What was not recorded does not count.
        """
        columns = len(self.codec.columns)

        def hidden(number: int, around: slice) -> Bool[np.ndarray, "t c"]:
            near = np.abs(np.arange(around.start, around.stop) - places[number]) <= _NEAR
            return np.asarray(near[:, None] & (np.arange(columns) == number % columns))

        off = raw[places] - self.leaving_out(raw, places, hidden)[0]
        owner = np.asarray(self.codec.layout.view_columns)
        slots = list(self._slots.values())
        mine = (np.arange(len(places)) % columns)[:, None] == owner[slots]
        counts = seen[places][:, owner[slots]]
        squared = off[:, slots] ** 2
        return float(sum(squared[counts & part].mean() for part in (mine, ~mine) if (counts & part).any()))

    def _starts(self, places: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " n"]:
        """Where the steps around places begin."""
        return np.asarray(np.clip(places - self.steps // 2, 0, count - self.steps))

    def _pulls(self, raw: Float64[np.ndarray, "k r"]) -> tuple[Float64[np.ndarray, "k r"], Int[np.ndarray, " k"]]:
        """(P (x - mean))_s of each place, where s are its readings and x those around it; and which step of those it is."""
        width, steps, precision = self.width, self.steps, self._precision
        pulls, places = np.empty_like(raw), np.arange(len(raw))
        start = self._starts(places, len(raw))
        step = places - start
        for begin in range(0, len(raw), _ROWS):
            own = places[begin : begin + _ROWS]
            for each in np.unique(step[own]):
                rows = own[step[own] == each]
                windows = raw[start[rows][:, None] + np.arange(steps)].reshape(-1, steps * width) - self._mean
                pulls[rows] = windows @ precision[:, each * width : (each + 1) * width]
        return pulls, step

    @property
    def _mean(self) -> Float64[np.ndarray, " d"]:
        return np.asarray(self._gaussian.mean[: self.steps * self.width])

    @cached_property
    def _precision(self) -> Float64[np.ndarray, "d d"]:
        return self._precision_of(self.steps, self.reach.ridge)

    def _precision_of(self, steps: int, ridge: float) -> Float64[np.ndarray, "d d"]:
        """P of so many steps under so much noise. Spans are cut at every place, so any steps of them are like the first."""
        size, axes = steps * self.width, self._gaussian.axes
        covariance = ((axes * self._gaussian.variance) @ axes.T)[:size, :size]
        return np.asarray(np.linalg.inv(covariance + ridge**2 * np.eye(size)))

    def _apart(self, step: int) -> Float64[np.ndarray, "r r"]:
        """P_cc^-1 of each sensor at a step, as one matrix of blocks."""
        own = slice(step * self.width, (step + 1) * self.width)
        return np.asarray(
            np.linalg.inv(_by_owner(self._precision[own, own], np.asarray(self.codec.layout.view_columns)))
        )

    def evidence(self, raw: Float64[np.ndarray, "k r"], places: Int[np.ndarray, " n"]) -> Float64[np.ndarray, "n c"]:
        """How much less abnormal the steps around each place would be without one of C sensors.

        With u = P (x - mean) the squared distance falls by u_c' P_cc^-1 u_c when sensor c is left out: a fault of one sensor
        pulls all that depend on it, but only leaving out the broken one makes the rest fit (reconstruction-based
        contribution, Alcala & Qin 2009). P is that of a few steps under more noise than expectations have: a covariance
        of few recorded windows has directions of no variance, in which any difference would count without end.
        """
        steps, owner, precision, inverses = self._parts
        mean = self._gaussian.mean[: steps * self.width]
        found = np.zeros((len(places), len(inverses)))
        start = np.clip(places - steps // 2, 0, len(raw) - steps)
        for begin in range(0, len(places), _ROWS // 4):
            some = slice(begin, begin + _ROWS // 4)
            windows = raw[start[some][:, None] + np.arange(steps)].reshape(-1, steps * self.width) - mean
            pull = windows @ precision
            for column, inverse in enumerate(inverses):
                part = pull[:, owner == column]
                found[some, column] = np.einsum("ns,st,nt->n", part, inverse, part, optimize=True)
        return np.maximum(found, 0.0)

    def unchanged(self, raw: Float64[np.ndarray, "k r"]) -> Bool[np.ndarray, "k c"]:
        """Whether each of C sensors has the reading of the place before; the first place has none."""
        owner = np.asarray(self.codec.layout.view_columns)
        same = np.vstack([np.zeros((1, self.width), dtype=bool), raw[1:] == raw[:-1]])[: len(raw)]
        return np.stack([same[:, owner == column].all(axis=1) for column in range(len(self.codec.columns))], axis=1)

    def surprise(
        self, fault: Float64[np.ndarray, "l r"], normal: Float64[np.ndarray, "k r"], place: int
    ) -> tuple[float, float]:
        """What a matched filter of this very fault gives where it was added to normal time, and at most without it.

        The filter is the precision times the difference that the fault makes: the best detector there is of a known shape in
        Gaussian noise, which no detector that must do without the shape can pass.

        Args:
            fault: what was added to L places.
            normal: without it; the fault begins at `place`.
        """
        steps, length = self.steps, len(fault)
        around = np.zeros((length + 2 * steps, self.width))
        around[steps : steps + length] = fault
        matched = self._pulls(around)[0] - self._pulls(np.zeros_like(around))[0]  # of the difference, whatever the mean
        padded = np.pad(normal, ((steps, steps), (0, 0)), mode="edge")
        without = np.zeros(len(padded) - len(matched) + 1)
        for slot in np.flatnonzero(np.abs(matched).max(axis=0) > 0):
            without += np.correlate(padded[:, slot], matched[:, slot], "valid")
        return float(without[place] + (matched * around).sum()), float(without.max())

    @cached_property
    def _parts(self) -> tuple[int, Any, Any, list[Any]]:
        """Steps, the column of each slot, the precision under evidence's noise, and for each column P_cc^-1."""
        steps = self.evidence_steps
        precision = self._precision_of(steps, _EVIDENCE_RIDGE)
        owner = np.tile(np.asarray(self.codec.layout.view_columns), steps)
        columns = range(len(self.codec.columns))
        return steps, owner, precision, [np.linalg.inv(precision[np.ix_(owner == c, owner == c)]) for c in columns]

    def deviations(self) -> dict[str, float]:
        """Standard deviation of each number around what is expected, by the Gaussian itself."""
        usual = np.sqrt(np.diag(self._apart(self.steps // 2)))[None]
        high, low = self.numbers(usual), self.numbers(0 * usual)
        return {name: float(high[name][0] - low[name][0]) for name in high}

    def of_numbers(self, raw: Float64[np.ndarray, "k r"]) -> dict[str, Float64[np.ndarray, " k"]]:
        """The slots of the number columns."""
        return {name: raw[:, slot] for name, slot in self._slots.items()}

    def numbers(self, raw: Float64[np.ndarray, "k r"]) -> dict[str, Float64[np.ndarray, " k"]]:
        """Values of the number columns, in the units that the codec reads."""
        values = {}
        for name, slot in self._slots.items():
            code: Any = self.codec.codes[name]
            mean, std = code.view_moments[0]
            values[name] = (raw[:, slot] * std + mean) * code.scale + code.mean
        return values


def _by_owner(matrix: Float64[np.ndarray, "r r"], owner: Int[np.ndarray, " r"]) -> Float64[np.ndarray, "r r"]:
    """What belongs to one column, the rest 0."""
    return np.asarray(np.where(owner[:, None] == owner, matrix, 0.0))
