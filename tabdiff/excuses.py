"""Stretches of a series that people called a false alarm, taken out of the error where they come again.

What a Gaussian view leaves of a window of the false alarm is f, what it leaves of a new window of the same entity is x. As much of f as fits
is subtracted: x - a f, so what is wrong with the window besides stays. f holds the noise n of normal time, too: a² n of it is taken off what is
left, |x|² - 2 a <x, f> + a² (|f|² - n), of which a between 0 and 1.25 is the minimum. The judged window that leaves least counts. An error is never raised, nor brought
below that of normal time.

A matched filter, in the metric of the view: a fault of another sensor, sign, shape or length, or much larger, has little of it taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from tabdiff.windows import FARTHEST, SHARING, Gaussian, Span, cut

_LARGEST = 1.25  # times what was judged
_ABNORMAL = 2.0  # times the error of normal time; windows below are neither judged nor looked at
_LEAST = 0.5  # share of the error of a judged window, which is at least twice that of normal time, that is its own
_MOST = 4096  # judged windows of an entity, about
_TINY = 1e-12


@dataclass(frozen=True)
class FalseAlarm:
    """What is kept of one.

    Attributes:
        entity: whose; None where there is one recording.
        x: (K, R) the raw view of its places and a window around, as encoded.
        first, last: its places, as rows of `x`.
    """

    entity: str | None
    x: Float32[np.ndarray, "k r"]
    first: int
    last: int

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {"entity": self.entity, "x": self.x.tolist(), "first": self.first, "last": self.last}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FalseAlarm:
        """Rebuild from `to_json`."""
        return cls(values["entity"], np.asarray(values["x"], np.float32), int(values["first"]), int(values["last"]))


class Excuses:
    """The false alarms of one entity, as the views of a model see them.

    Args:
        tensors: of the bundle.
        spans: of the V views.
        slots: of the raw view in an encoded place.
        usual: (V,) error of normal windows.
        length: T, places in a window.
        alarms: at least one.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        spans: Sequence[Span],
        slots: slice,
        usual: Float64[np.ndarray, " v"],
        length: int,
        alarms: Sequence[FalseAlarm],
    ) -> None:
        parts: list[Float32[np.ndarray, "_ t r"]] = []
        for alarm in alarms:
            low, high = max(0, alarm.first - length + 1), min(alarm.last, len(alarm.x) - length)
            stride = max(1, -(-(high - low + 1) * len(alarms) // _MOST))  # a window is much like that of the next place
            parts.append(cut(alarm.x, np.arange(low, high + 1, stride), length))
        self.slots, windows = slots, np.concatenate(parts)
        self.views = [_View(tensors, span, float(each), windows) for span, each in zip(spans, usual, strict=True)]

    def apply(
        self, windows: Float32[np.ndarray, "b t w"], errors: Float32[np.ndarray, "b t v c"]
    ) -> Float32[np.ndarray, "b t v c"]:
        """Errors of encoded windows, as the scoring program has them, without what was excused."""
        raw = windows[:, :, self.slots]
        kept = np.stack([view.kept(raw) for view in self.views], axis=1)
        return np.asarray(errors * kept[:, None, :, None], dtype=np.float32)


class _View:
    def __init__(
        self, tensors: Mapping[str, np.ndarray], span: Span, usual: float, windows: Float32[np.ndarray, "k t r"]
    ) -> None:
        self.span, self.usual, self.gaussian = span, usual, Gaussian.of(tensors, span)
        self.keep = self.gaussian.keep
        # keep = s² / (lambda + s²): of a direction of variance lambda normal time leaves keep² lambda, and new normal time more than that.
        noise = np.square(self.keep) @ self.gaussian.variance + _TINY
        self.noise = noise * (usual / _over_levels(noise))
        along = self._along(windows)
        self.judged = along[_over_levels(self._left(along)) > _ABNORMAL * usual]

    def kept(self, windows: Float32[np.ndarray, "b t r"]) -> Float64[np.ndarray, " b"]:
        """The share of each window's error that is not excused."""
        share = np.ones(len(windows))
        if not len(self.judged):
            return share
        along = self._along(windows)
        before = self._left(along)
        some = np.flatnonzero(_over_levels(before) > _ABNORMAL * self.usual)
        if len(some):
            along, before = along[some], before[some]
            amount, which = self._best(along)
            after = self._left(along - amount[:, None] * self.judged[which]) - np.square(amount)[:, None] * self.noise
            share[some] = _over_levels(np.clip(after, np.minimum(before, self.noise), before) / before)
        return share

    def _best(self, along: Float64[np.ndarray, "n d"]) -> tuple[Float64[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """How much of which judged window leaves least, at the level at which errors are shared out."""
        keep, noise = self.keep[SHARING], self.noise[SHARING]
        judged = self.judged * keep
        size, common = np.square(judged).sum(axis=1), (along * keep) @ judged.T
        own = np.maximum(size - noise, _LEAST * size)  # without its noise
        amount = np.clip(common / own, 0.0, _LARGEST)
        which = (amount * (amount * own - 2 * common)).argmin(axis=1)
        return amount[np.arange(len(along)), which], which

    def _left(self, along: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n l"]:
        """What is left at each of L noise levels."""
        return np.asarray(np.square(along) @ np.square(self.keep).T + _TINY)

    def _along(self, windows: Float32[np.ndarray, "n t r"]) -> Float64[np.ndarray, "n d"]:
        """The view's stretch of windows along the axes of its covariance."""
        span = self.span
        part = np.clip(windows[:, span.start : span.start + span.length].astype(np.float64), -FARTHEST, FARTHEST)
        steps = part.reshape(len(part), span.length // span.pool, span.pool, -1).mean(axis=2)
        return np.asarray((steps.reshape(len(part), -1) - self.gaussian.mean) @ self.gaussian.axes)


def _over_levels(left: Float64[np.ndarray, "... l"]) -> Any:
    """The geometric mean over noise levels, as windows are judged by."""
    return np.exp(np.log(left).mean(axis=-1))
