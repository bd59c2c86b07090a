"""What a model expects of single cells: the probabilities of their states and the quantiles of their numbers.

One cell is open and all others of its row are given. The states of the cell come from one denoising step out of the masked
state. Its number comes from the deterministic sampler, started at quantiles of the noise: in one dimension trajectories
do not cross (they solve an ordinary differential equation, Song et al. 2021), so they end at the same quantiles of what is
believed. Nothing is random.

A column that was projected on principal components has no cell of its own in the encoded row. For it the model is read as a
factor analysis (components with their variances, what they leave over as noise of each column), whose conditional is Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int

from tabdiff.codec import Codec, Encoded
from tabdiff.codes import CategoryCode, NumberCode
from tabdiff.conditions import complete
from tabdiff.runtime import Runtime
from tabdiff.sampling import NoiseSchedule
from tabdiff.scoring import CHUNK_ROWS

QUANTILES = 20  # trajectories a number
_STEPS = 10  # noise levels of a trajectory


_EXPLAINED_COLUMNS = 3


@dataclass(frozen=True)
class Belief:
    """Values of one cell with their probabilities.

    Attributes:
        values: (J,) numbers in rising order (datetimes in microseconds), or names of categories.
        weights: (J,) their probabilities; the rest, if any, is on rare categories.
        discrete: (J,) values that stand for themselves, not for a stretch of a continuous number.
    """

    values: np.ndarray
    weights: np.ndarray
    discrete: np.ndarray

    def quantile(self, share: float) -> float:
        """The number at or below which this share of the belief lies; between neighbours of a continuous one, interpolated."""
        after = np.cumsum(self.weights)
        before, middle = after - self.weights, after - self.weights / 2
        ends = np.stack([np.where(self.discrete, before, middle), np.where(self.discrete, after, middle)], axis=1)
        return float(np.interp(share * after[-1], ends.ravel(), np.repeat(self.values, 2).astype(np.float64)))

    def likely(self, count: int) -> list[tuple[Any, float]]:
        """The most probable values, with their probabilities."""
        order = np.argsort(-self.weights, kind="stable")[:count]
        return [(self.values[i], float(self.weights[i])) for i in order]

    @property
    def expected(self) -> Any:
        """The median of a number, the most probable category."""
        return self.quantile(0.5) if self.values.dtype != object else self.likely(1)[0][0]


class Believer:
    """Asks the denoiser about single cells.

    Args:
        codec: how rows become arrays.
        runtime: runs the denoiser.
        schedule: its noise levels.
    """

    def __init__(self, codec: Codec, runtime: Runtime, schedule: NoiseSchedule) -> None:
        self.codec, self.runtime, self.schedule = codec, runtime, schedule
        layout = codec.layout
        self._deviation = dict(zip(layout.number_slots.tolist(), np.linalg.norm(schedule.root, axis=1), strict=True))

    def __call__(self, rows: Encoded, columns: Int[np.ndarray, " n"]) -> list[Belief]:
        """Beliefs of N cells: of each row one, in the given column."""
        size = max(1, CHUNK_ROWS // QUANTILES)
        found: dict[int, Belief] = {}
        projected = self.codec.projection.columns if self.codec.projection is not None else ()
        own = np.array([self.codec.columns[column] not in projected for column in columns], dtype=bool)
        for start in range(0, int(own.sum()), size):
            part = np.flatnonzero(own)[start : start + size]
            found |= dict(
                zip(part.tolist(), self._part(Encoded(rows.x[part], rows.present[part]), columns[part]), strict=True)
            )
        for i in np.flatnonzero(~own).tolist():
            found[i] = self._projected(rows.x[i], int(columns[i]))
        return [found[i] for i in range(len(columns))]

    def _part(self, rows: Encoded, columns: Int[np.ndarray, " n"]) -> list[Belief]:
        codec, layout = self.codec, self.codec.layout
        condition = complete(codec, rows, np.arange(len(codec.columns)) == columns[:, None])
        given = condition.given & rows.present[:, None, :]
        x = np.where(given[..., layout.unit_of_slot], condition.x, np.float32(0))
        states = self._step(x, (1.0, 0.0), given, condition.allowed, np.zeros_like(x), 0.0)[1][:, 0]
        names = [codec.columns[column] for column in columns]
        units = [layout.units_of(layout.columns.index(name)) for name in names]
        numbers = {i: layout.units[own[-1]] for i, own in enumerate(units) if layout.units[own[-1]].kind == "number"}
        ends = self._numbers(x, given, condition.allowed, numbers)
        return [
            self._belief(name, states[i, layout.units[units[i][0]].slots], ends.get(i)) for i, name in enumerate(names)
        ]

    def _belief(self, name: str, states: Float32[np.ndarray, " s"], scores: np.ndarray | None) -> Belief:
        code = self.codec.codes[name]
        if isinstance(code, CategoryCode):  # rare categories have no name to give, and a gap is no expectation
            kept = len(code.categories)
            return Belief(np.array(code.categories, object), states[:kept].astype(np.float64), np.ones(kept, bool))
        count = len(code.atoms)
        if code.bins:
            return _of_bins(code, states)
        if scores is None:
            return Belief(np.array(code.atoms), states[:count].astype(np.float64), np.ones(count, bool))
        values = np.concatenate([code.atoms, code.rank.inverse(scores.astype(np.float64))])
        share = float(states[count]) if code.states else 1.0
        weights = np.concatenate([states[:count] if code.states else [], np.full(len(scores), share / len(scores))])
        order = np.argsort(values, kind="stable")
        return Belief(values[order], weights[order].astype(np.float64), order < count)

    def _numbers(
        self,
        x: Float32[np.ndarray, "n 1 w"],
        given: Bool[np.ndarray, "n 1 u"],
        allowed: np.ndarray,
        numbers: dict[int, Any],
    ) -> dict[int, np.ndarray]:
        """Quantiles of the open numbers, in encoded units; where a number is gated, given that its gate is open."""
        if not numbers:
            return {}
        layout, cells = self.codec.layout, list(numbers)
        which = np.repeat(cells, QUANTILES)
        slots = np.array([numbers[i].start for i in which])
        x, given = x[which].copy(), given[which].copy()
        for place, i in enumerate(which):
            if numbers[i].gate is not None:
                x[place, 0, numbers[i].gate] = 1.0
                given[place, 0, layout.unit_of_slot[numbers[i].gate]] = True
        deviation = np.array([self._deviation[slot] for slot in slots])
        every = np.arange(len(which))
        x[every, 0, slots] = self.schedule.sigma_max * deviation * np.tile(_normal_quantiles(), len(cells))
        ends = np.clip(self._walk(x, given, allowed[which])[:, 0], *self.codec.bounds)[every, slots]
        return dict(zip(cells, np.sort(ends.reshape(len(cells), QUANTILES), axis=1), strict=True))

    def _projected(self, x: Float32[np.ndarray, " w"], column: int) -> Belief:
        """x_c given the others for standard = W' z + e, z_j ~ N(mean_j, variance_j), e_c ~ N(0, rest_c)."""
        codec, projection = self.codec, self.codec.projection
        assert projection is not None
        names, w = projection.columns, projection.matrix
        raw, owner = x[codec.layout.view("raw")].astype(np.float64), np.asarray(codec.layout.view_columns)
        codes = [codec.codes[name] for name in names]
        moments = [code.view_moments[0] for code in codes if isinstance(code, NumberCode)]
        slots = [int(np.flatnonzero(owner == codec.columns.index(name))[0]) for name in names]
        standard = np.array([raw[slot] * std + mean for slot, (mean, std) in zip(slots, moments, strict=True)])
        mean = np.array([code.mean for code in codec.projected.values()])
        variance = np.array([code.scale**2 for code in codec.projected.values()])
        rest = np.maximum(1.0 - (w**2 * variance[:, None]).sum(axis=0), 1e-3)
        own = names.index(codec.columns[column])
        others = np.arange(len(names)) != own
        weighed = w[:, others] / rest[others]
        spread = np.linalg.inv(np.diag(1 / variance) + weighed @ w[:, others].T)
        middle = w[:, own] @ spread @ (mean / variance + weighed @ standard[others])
        deviation = np.sqrt(w[:, own] @ spread @ w[:, own] + rest[own])
        code = codes[own]
        assert isinstance(code, NumberCode)
        values = code.mean + code.scale * (middle + deviation * _normal_quantiles())
        knots = code.rank_of_all.knots
        return Belief(
            np.clip(values, knots[0], knots[-1]), np.full(QUANTILES, 1 / QUANTILES), np.zeros(QUANTILES, bool)
        )

    def _walk(self, x: np.ndarray, given: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """From noise to data by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
        times = np.linspace(1.0, 0.0, _STEPS + 1).tolist()
        previous, log = np.zeros_like(x), [np.log(max(self.schedule.sigma(t), 1e-12)) for t in times]
        for i in range(_STEPS):
            second_order = 0 < i < _STEPS - 1
            extrapolate = 0.5 * (log[i] - log[i + 1]) / (log[i - 1] - log[i]) if second_order else 0.0
            x, previous = self._step(x, (times[i], times[i + 1]), given, allowed, previous, float(extrapolate))
        return x

    def _step(
        self,
        x: np.ndarray,
        times: tuple[float, float],
        given: np.ndarray,
        allowed: np.ndarray,
        previous: np.ndarray,
        extrapolate: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        nothing = np.zeros(given.shape, np.float32)
        never = np.zeros_like(given)
        x_s, x0 = self.runtime.step(x, *times, nothing, never, given, allowed, previous, extrapolate, 0.0)
        return np.asarray(x_s), np.asarray(x0)


def _of_bins(code: NumberCode, states: Float32[np.ndarray, " s"]) -> Belief:
    """Atoms stand for themselves, and so do bins of a single value; a wider bin is shared out evenly over its quarters."""
    count, low, high = len(code.atoms), *np.array(code.bins).T
    single = low == high
    places = low + (np.array([1, 3, 5, 7]) / 8)[:, None] * (high - low)
    parts = [code.rank.inverse(low[single]), code.rank.inverse(places[:, ~single].ravel())]
    values = np.concatenate([code.atoms, *parts])
    weights = states[count : count + len(low)]
    shares = np.concatenate([states[:count], weights[single], np.tile(weights[~single] / 4, 4)]).astype(np.float64)
    order = np.argsort(values, kind="stable")
    return Belief(values[order], shares[order], order < count + int(single.sum()))


def _normal_quantiles() -> Float64[np.ndarray, " q"]:
    inverse = NormalDist().inv_cdf
    return np.array([inverse((k + 0.5) / QUANTILES) for k in range(QUANTILES)])


def expected_values(
    runtime: Runtime, codec: Codec, encoded: Encoded, rows: np.ndarray, contributions: np.ndarray
) -> pl.DataFrame:
    """What the top columns of the given rows should have been, each given all other columns of its row.

    One denoising step from pure noise in that column: its conditional mean, or most probable category. Columns that
    are not among a row's top ones stay null.
    """
    layout, columns = codec.layout, codec.columns
    top = np.argsort(-contributions[rows], axis=1, kind="stable")[:, :_EXPLAINED_COLUMNS]
    items = np.stack([np.repeat(np.arange(len(rows)), top.shape[1]), top.ravel()], axis=1)
    frames = []
    for start in range(0, len(items), CHUNK_ROWS):
        part = items[start : start + CHUNK_ROWS]
        source = Encoded(encoded.x[rows[part[:, 0]]], encoded.present[rows[part[:, 0]]])
        condition = complete(codec, source, np.arange(len(columns)) == part[:, 1:2])
        given = condition.given & source.present[:, None, :]
        x = np.where(given[..., layout.unit_of_slot], condition.x, np.float32(0))
        noise = np.zeros(given.shape, np.float32)
        _, x0 = runtime.step(x, 1.0, 0.0, noise, ~given, given, condition.allowed, np.zeros_like(x), 0.0, 0.0)
        frames.append(codec.decode(np.clip(np.asarray(x0)[:, 0], *codec.bounds)))
    if not frames:
        return codec.decode(np.zeros((0, layout.model_width), np.float32))
    decoded = pl.concat(frames)
    place = np.full((len(rows), len(columns)), -1)
    place[items[:, 0], items[:, 1]] = np.arange(len(items))
    return pl.DataFrame(
        [
            decoded[name][np.maximum(place[:, index], 0)]
            .zip_with(pl.Series(place[:, index] >= 0), pl.Series([None] * len(rows), dtype=decoded[name].dtype))
            .alias(name)
            for index, name in enumerate(columns)
        ]
    )
