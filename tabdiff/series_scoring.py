"""Scores of the places of a track, all at once or as they come.

There is one way: a track is pushed in parts of any size, and a place is scored when every window that holds it has been seen,
T - 1 places later. `finish` scores the rest with the windows there are. What lies between two parts is the `State`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from tabdiff.attribution import Habits, far_of
from tabdiff.calibration import Calibration
from tabdiff.excuses import Excuses
from tabdiff.expectation import Expectation
from tabdiff.runtime import Runtime
from tabdiff.windows import Span, Stitch, cut, window_starts

UNUSUAL = 0.1  # p-value
_DISBELIEVED = 3  # sensors of an unusual place, at most ...
_LEAST_PART = 0.1  # ... that carry at least so much of what the first carries
_TOGETHER = 8  # windows: products of matrices of one to three rows are summed in another order than those of more
_PIECE = 16_384  # places that are pushed together
_CELLS = 4_000_000  # numbers in the errors of one chunk of windows: memory does not grow with the series


@dataclass(frozen=True)
class PlaceErrors:
    """Errors of K places, from place `first` of the grid on.

    Attributes:
        errors: (K, V, C) as of a table's rows; a view that no window gave is NaN.
        judged: (K,) False where the recording holds too little.
    """

    first: int
    errors: Float[np.ndarray, "k v c"]
    judged: Bool[np.ndarray, " k"]


class TrackScorer:
    """Errors of one recording, part by part.

    Args:
        runtime: runs the scoring program.
        spans: what each view looks at.
        length: T, places in a window.
        columns: C.
        first: place of the first row to come.
        excuses: what is taken out of errors; None if there is nothing.
    """

    def __init__(
        self,
        runtime: Runtime,
        spans: tuple[Span, ...],
        length: int,
        columns: int,
        first: int,
        excuses: Excuses | None = None,
    ) -> None:
        self.runtime, self.length, self.first, self.excuses = runtime, length, first, excuses
        self.stitch = Stitch(spans, columns)
        self._x: Any = None
        self._present: Any = None
        self._recorded = np.zeros(0, dtype=bool)

    def push(
        self,
        x: Float32[np.ndarray, "n w"],
        present: Bool[np.ndarray, "n u"],
        recorded: Bool[np.ndarray, " n"],
    ) -> PlaceErrors:
        """Take in the next places; return those that are final now."""
        known = len(self._recorded)
        self._x = x if self._x is None else np.concatenate([self._x, x])
        self._present = present if self._present is None else np.concatenate([self._present, present])
        self._recorded = np.concatenate([self._recorded, recorded])
        self.stitch.grow(len(x))
        starts = window_starts(self._recorded, self.length)
        starts = starts[starts + self.length > known]  # the others were seen with an earlier part
        views = len(self.stitch.spans)
        chunk = max(1, min(self.runtime.chunk_rows, _CELLS // (self.length * views * self.stitch.columns)))
        for begin in range(0, len(starts), chunk):
            some = starts[begin : begin + chunk]
            whole = np.resize(some, -(-len(some) // _TOGETHER) * _TOGETHER)
            windows, seen = cut(self._x, whole, self.length), self._present[whole[:, None] + np.arange(self.length)]
            errors = self.runtime.score(windows, seen)[: len(some)]
            self.stitch.add(some, errors if self.excuses is None else self.excuses.apply(windows[: len(some)], errors))
        return self._take(max(0, len(self._recorded) - (self.length - 1)))

    def finish(self) -> PlaceErrors:
        """The places that are left, with the windows there are."""
        return self._take(len(self._recorded))

    def _take(self, places: int) -> PlaceErrors:
        errors, judged = self.stitch.errors(places)
        taken = PlaceErrors(self.first, errors, judged)
        self.stitch.drop(places)
        self.first += places
        self._recorded = self._recorded[places:]
        if self._x is not None:
            self._x, self._present = self._x[places:], self._present[places:]
        return taken

    def to_json(self) -> dict[str, Any]:
        """Plain values that `resume` reads: the last T - 1 places and their sums."""
        return {
            "first": self.first,
            "x": [] if self._x is None else self._x.tolist(),
            "present": [] if self._present is None else self._present.tolist(),
            "recorded": self._recorded.tolist(),
            "log": self.stitch.log.tolist(),
            "count": self.stitch.count.tolist(),
            "parts": self.stitch.parts.tolist(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `to_json`."""
        self.first = int(state["first"])
        self._recorded = np.asarray(state["recorded"], dtype=bool)
        if len(self._recorded):
            self._x, self._present = np.asarray(state["x"], np.float32), np.asarray(state["present"], bool)
            self.stitch.log, self.stitch.count = np.asarray(state["log"]), np.asarray(state["count"])
            self.stitch.parts = np.asarray(state["parts"])


def track_errors(
    scorer: TrackScorer,
    x: Float32[np.ndarray, "k w"],
    present: Bool[np.ndarray, "k u"],
    recorded: Bool[np.ndarray, " k"],
) -> Iterator[PlaceErrors]:
    """Errors of all places of a recording, a piece at a time, so that those of its windows never lie in memory together."""
    for begin in range(0, len(x), _PIECE):
        piece = slice(begin, begin + _PIECE)
        yield scorer.push(x[piece], present[piece], recorded[piece])
    yield scorer.finish()


@dataclass(frozen=True)
class Judged:
    """What is known of K places.

    Attributes:
        score: NaN where too little is recorded.
        contributions: what each of C sensors adds to it.
        unusual: the places that evidence was asked of.
        evidence: of the M places given, of which some lie before and after: that against each sensor, 0 where it was not asked for.
    """

    score: Float64[np.ndarray, " k"]
    contributions: Float64[np.ndarray, "k c"]
    unusual: Int[np.ndarray, " n"]
    evidence: Float64[np.ndarray, "m c"]


def judge_places(
    calibration: Calibration,
    expectation: Expectation,
    habits: Habits | None,
    parts: Sequence[PlaceErrors],
    raw: Float64[np.ndarray, "m r"],
    window: int,
    past: int = 0,
    unusual_below: float = UNUSUAL,
) -> Judged:
    """Scores of places, and what each sensor adds to them.

    A view that no window gave finds nothing unusual. Ordinary places share their score as the windows' errors do; unusual ones
    by the evidence for each sensor, which costs more.

    Args:
        habits: of the sensors; None while they are not known yet, and nothing is weighed.
        parts: errors of K places.
        raw: what M places hold (`Expectation.raw`), of which `past` lie before the first of them.
        window: places in a window.
        unusual_below: p-value up to which places count as unusual.
    """
    errors = np.concatenate([part.errors for part in parts])
    judged = np.concatenate([part.judged for part in parts])
    typical = np.exp(np.asarray(calibration.center))[None, :, None] / errors.shape[2]
    score, contributions = calibration.combine(np.where(np.isnan(errors), typical, errors))
    unusual = np.flatnonzero(judged & (calibration.p_value(score) <= unusual_below))
    evidence = np.zeros((len(raw), errors.shape[2]))
    if habits is None or len(raw) < expectation.span:
        unusual = unusual[:0]
    if habits is not None and len(unusual):
        places, steps = past + unusual, expectation.evidence_steps
        some = _near(places, far_of(window, steps), len(raw))
        evidence[some] = expectation.evidence(raw, some)
        weight = habits.weigh(evidence, expectation.unchanged(raw), places, window, steps) + 1e-12
        contributions[unusual] = score[unusual, None] * weight / weight.sum(axis=1, keepdims=True)
    return Judged(np.where(judged, score, np.nan), np.where(judged[:, None], contributions, 0.0), unusual, evidence)


def expect_places(
    expectation: Expectation,
    habits: Habits,
    judged: Judged,
    raw: Float64[np.ndarray, "m r"],
    past: int,
) -> tuple[Float64[np.ndarray, "k r"], Float64[np.ndarray, "k r"]]:
    """What K places should have held, and how uncertain that is beside the usual; NaN of too few places.

    At an unusual place the sensors that carry it are not believed where evidence against them is out of the ordinary: else what a broken sensor
    pulls along would be told as expected, of the others and of itself. Half of the sensors are believed in any case, as the rest is judged by them.
    """
    count, columns = len(judged.score), len(expectation.codec.columns)
    if not count or len(raw) < expectation.steps:
        nothing = np.full((count, expectation.width), np.nan)
        return nothing, nothing
    expected = expectation.given_others(raw)[past : past + count]
    ratio = np.ones_like(expected)
    carry = judged.contributions[judged.unusual]
    order = np.argsort(-carry, axis=1, kind="stable")[:, : max(1, min(_DISBELIEVED, columns // 2))]
    suspected = np.zeros(carry.shape, dtype=bool)
    np.put_along_axis(suspected, order, True, axis=1)
    suspected &= carry >= _LEAST_PART * carry.max(axis=1, keepdims=True, initial=0.0)
    odd = habits.excess(judged.evidence) > 0
    at = past + judged.unusual

    def hidden(number: int, around: slice) -> Bool[np.ndarray, "t c"]:
        beyond = odd[around].copy()
        beyond[at[number] - around.start] = True
        return np.asarray(beyond & suspected[number])

    expected[judged.unusual], ratio[judged.unusual] = expectation.leaving_out(raw, at, hidden)
    return expected, ratio


def _near(places: Int[np.ndarray, " n"], far: int, count: int) -> Int[np.ndarray, " m"]:
    """Which of the places from 0 to `count` lie no farther than that from some: evidence, which costs most, is computed there alone."""
    near = np.zeros(count + 1)
    np.add.at(near, np.maximum(places - far, 0), 1)
    np.add.at(near, np.minimum(places + far + 1, count), -1)
    return np.asarray(np.flatnonzero(np.cumsum(near)[:-1] > 0))


def excess(
    expectation: Expectation, habits: Habits, x: Float32[np.ndarray, "m w"], begin: int, end: int
) -> Float64[np.ndarray, "k c"] | None:
    """Of rows `begin` to `end` of encoded places, by how much the evidence against each sensor passes what is usual; None of too few places."""
    steps = expectation.evidence_steps
    around = slice(max(0, begin - steps), end + steps)
    raw = expectation.raw(x[around])
    if len(raw) < steps:
        return None
    return habits.excess(expectation.evidence(raw, np.arange(begin - around.start, end - around.start)))
