"""Cut tracks into windows, and put what is known of windows back in place.

A window is T neighbouring places; windows start at every place, so that each place is judged in every position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

LEAST_RECORDED = 0.5  # share of a window's places that must hold something for the window to be judged
FARTHEST = 20.0  # standard deviations that a scoring program looks at; a broken sensor must not drown all others
# Noise levels of a scoring program, in standard deviations of a sensor. The two above all signal see what moves along the widest axes, as wear does.
SIGMAS = (0.1, 0.2, 0.4, 0.8, 1.5, 5.0, 15.0)
LOWEST_NOISE = SIGMAS[0]
SHARING = SIGMAS.index(0.4)  # the level at which an error is shared out among slots
_SLOTS = 512  # steps times slots of a span, about
_FEWEST_STEPS, _MOST_STEPS = 16, 64  # of a span; longer ones are averaged down to so many


@dataclass(frozen=True)
class Span:
    """The part of a window that one view looks at.

    Attributes:
        start: its first place in the window.
        length: how many places.
        pool: places that are averaged into one step.
    """

    start: int
    length: int
    pool: int

    @property
    def name(self) -> str:
        """As in "last 64"."""
        return f"last {self.length}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; `Span(**values)` reads them."""
        return asdict(self)


def spans_of(window: int, slots: int) -> tuple[Span, ...]:
    """What a window of places of so many slots is judged at: its last places one by one, and twice as many with each pair averaged, and so on.

    Short spans see quick faults early, long ones slow drifts; all have about as many steps, fewer where there are many sensors.
    They end where the window ends, so the newest place is judged by the short ones first.
    """
    steps = int(np.clip(2 ** int(np.log2(max(1, _SLOTS // slots))), _FEWEST_STEPS, _MOST_STEPS))
    lengths = [window]
    while lengths[-1] > steps:
        lengths.append(lengths[-1] // 2)
    spans = []
    for length in reversed(lengths):
        pool = max(1, length // steps)
        spans.append(Span(window - pool * (length // pool), pool * (length // pool), pool))
    return tuple(spans)


@dataclass(frozen=True)
class Gaussian:
    """What a scoring program knows of a span, in double precision, for closed forms beside it; D = steps x R slots.

    Attributes:
        mean: (D,) flattened step by step.
        axes: (D, D) eigenvectors of the covariance, in columns.
        keep: (L, D) sigma^2 / (lambda + sigma^2) of each direction at each of L noise levels, `SIGMAS`.
    """

    mean: Float64[np.ndarray, " d"]
    axes: Float64[np.ndarray, "d d"]
    keep: Float64[np.ndarray, "l d"]

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray], span: Span) -> Gaussian:
        """That of a bundle's tensors."""
        return cls(*(tensors[f"score.windows.{span.name}.{n}"].astype(np.float64) for n in ("mean", "axes", "keep")))

    @property
    def variance(self) -> Float64[np.ndarray, " d"]:
        """lambda of each direction."""
        return np.asarray(LOWEST_NOISE**2 / self.keep[0] - LOWEST_NOISE**2)


def window_starts(recorded: Bool[np.ndarray, " k"], length: int) -> Int[np.ndarray, " b"]:
    """First places of the windows of a recording of K places that hold enough to be judged."""
    if len(recorded) < length:
        return np.zeros(0, dtype=np.int64)
    filled = np.convolve(recorded.astype(np.int64), np.ones(length, dtype=np.int64), mode="valid")
    return np.flatnonzero(filled >= LEAST_RECORDED * length)


def cut(x: Float32[np.ndarray, "k w"], starts: Int[np.ndarray, " b"], length: int) -> Float32[np.ndarray, "b t w"]:
    """Windows of encoded places."""
    return x[starts[:, None] + np.arange(length)]


def runs_of(mask: Bool[np.ndarray, " k"]) -> list[tuple[int, int]]:
    """First places and ends of the stretches in which the mask holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


class Stitch:
    """Sums over the windows that hold each place; a place is final when no later window can hold it.

    Args:
        spans: one for each of V views.
        columns: C.
    """

    def __init__(self, spans: Sequence[Span], columns: int) -> None:
        self.spans, self.columns = tuple(spans), columns
        self.log = np.zeros((0, len(spans)))
        self.count = np.zeros((0, len(spans)))
        self.parts = np.zeros((0, len(spans), columns))

    def grow(self, places: int) -> None:
        """Make room for so many places more."""
        views = len(self.spans)
        self.log = np.concatenate([self.log, np.zeros((places, views))])
        self.count = np.concatenate([self.count, np.zeros((places, views))])
        self.parts = np.concatenate([self.parts, np.zeros((places, views, self.columns))])

    def add(self, starts: Int[np.ndarray, " b"], errors: Float32[np.ndarray, "b t v c"]) -> None:
        """Take in the errors of windows: the log of a view's total counts for all places of its span, what each place adds to it is shared out there."""
        logs = np.log(errors.sum(axis=(1, 3), dtype=np.float64) + 1e-9)
        for view, span in enumerate(self.spans):
            for offset in range(span.start, span.start + span.length):
                # Windows start at different places, so no place occurs twice here.
                self.log[starts + offset, view] += logs[:, view]
                self.count[starts + offset, view] += 1
                self.parts[starts + offset, view] += errors[:, offset, view]

    def errors(self, places: int) -> tuple[Float[np.ndarray, "k v c"], Bool[np.ndarray, " k"]]:
        """Of the first places: the geometric mean over the windows that hold them, shared among columns; and whether there were any.

        Where a view has none (at the start of a recording) its error is NaN.
        """
        log, count, parts = self.log[:places], self.count[:places], self.parts[:places]
        with np.errstate(invalid="ignore", divide="ignore"):
            total = np.exp(log / count)
        share = (parts + 1e-300) / (parts + 1e-300).sum(axis=2, keepdims=True)
        return total[..., None] * share, np.asarray((count > 0).any(axis=1))

    def drop(self, places: int) -> None:
        """Forget the first places."""
        self.log, self.count, self.parts = self.log[places:], self.count[places:], self.parts[places:]
