"""What a place of a series should have held: the conditional Gaussian of one place given its neighbours in time, in closed form.

With the precision matrix P of a stretch of steps, what step s is expected to hold given all others is
x_s - P_ss^-1 (P (x - mean))_s (Rue & Held 2005, theorem 2.3). How far off normal places are is measured on held-out time, so
the band needs no Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from tabdiff.codec import Codec
from tabdiff.codes import NumberCode
from tabdiff.windows import FARTHEST, LOWEST_NOISE, Gaussian, Span

_EVIDENCE_STEPS, _EVIDENCE_RIDGE = 16, 0.5
_ROWS = 20_000


class Expectation:
    """Expected numbers of places.

    Args:
        codec: how places become arrays.
        tensors: of the bundle.
        spans: of the scoring program; the longest that is not averaged is used.
    """

    def __init__(self, codec: Codec, tensors: Mapping[str, np.ndarray], spans: Sequence[Span]) -> None:
        self.codec = codec
        span = [span for span in spans if span.pool == 1][-1]
        self.steps = span.length
        self._gaussian = Gaussian.of(tensors, span)
        self._mean, axes = self._gaussian.mean, self._gaussian.axes
        # keep = s^2 / (lambda + s^2) at the lowest level s, which is the ridge of the precision matrix.
        self._precision = (axes * (self._gaussian.keep[0] / LOWEST_NOISE**2)) @ axes.T

    @property
    def width(self) -> int:
        """R: slots of a place."""
        return len(self.codec.layout.view_columns)

    @property
    def evidence_steps(self) -> int:
        """Places that the evidence of a place looks at."""
        return min(self.steps, _EVIDENCE_STEPS)

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

    def given_neighbours(self, raw: Float64[np.ndarray, "k r"]) -> Float64[np.ndarray, "k r"]:
        """Each of K places given the steps around it, itself left out; K is at least the number of steps."""
        width, steps, places = self.width, self.steps, len(raw)
        expected = np.empty_like(raw)
        for begin in range(0, places, _ROWS):
            own = np.arange(begin, min(begin + _ROWS, places))
            start = np.clip(own - steps // 2, 0, places - steps)
            step = own - start
            for each in np.unique(step):
                rows = step == each
                windows = raw[start[rows][:, None] + np.arange(steps)].reshape(-1, steps * width) - self._mean
                block = slice(each * width, (each + 1) * width)
                pull = windows @ self._precision[:, block]
                expected[own[rows]] = raw[own[rows]] - pull @ np.linalg.inv(self._precision[block, block])
        return expected

    def evidence(self, raw: Float64[np.ndarray, "k r"], places: Int[np.ndarray, " n"]) -> Float64[np.ndarray, "n c"]:
        """How much less abnormal the steps around each place would be without one of C sensors.

        With u = P (x - mean) the squared distance falls by u_c' P_cc^-1 u_c when sensor c is left out: a fault of one sensor
        pulls all that depend on it, but only leaving out the broken one makes the rest fit (reconstruction-based
        contribution, Alcala & Qin 2009). P is that of a few steps under more noise than expectations have: a covariance
        of few recorded windows has directions of no variance, in which any difference would count without end.
        """
        steps, owner, precision, inverses = self._parts
        mean = self._mean[: steps * self.width]
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
        middle = slice((steps // 2) * self.width, (steps // 2 + 1) * self.width)
        # What neighbours lead to expect is affine: of the difference it is that of the difference, less that of nothing.
        left = around - (self.given_neighbours(around) - self.given_neighbours(np.zeros_like(around)))
        matched = left @ self._precision[middle, middle]
        padded = np.pad(normal, ((steps, steps), (0, 0)), mode="edge")
        without = np.zeros(len(padded) - len(matched) + 1)
        for slot in np.flatnonzero(np.abs(matched).max(axis=0) > 0):
            without += np.correlate(padded[:, slot], matched[:, slot], "valid")
        return float(without[place] + (matched * around).sum()), float(without.max())

    @cached_property
    def _parts(self) -> tuple[int, Any, Any, list[Any]]:
        """Steps, the column of each slot, the precision under evidence's noise, and for each column P_cc^-1."""
        steps = self.evidence_steps
        size = steps * self.width
        axes = self._gaussian.axes
        covariance = ((axes * self._gaussian.variance) @ axes.T)[:size, :size]
        precision = np.linalg.inv(covariance + _EVIDENCE_RIDGE**2 * np.eye(size))
        owner = np.tile(np.asarray(self.codec.layout.view_columns), steps)
        columns = range(len(self.codec.columns))
        return steps, owner, precision, [np.linalg.inv(precision[np.ix_(owner == c, owner == c)]) for c in columns]

    def numbers(self, raw: Float64[np.ndarray, "k r"]) -> dict[str, Float64[np.ndarray, " k"]]:
        """Values of the number columns, in the units that the codec reads."""
        values = {}
        for name, slot in self._slots.items():
            code: Any = self.codec.codes[name]
            mean, std = code.view_moments[0]
            values[name] = (raw[:, slot] * std + mean) * code.scale + code.mean
        return values
