"""How one column becomes numbers: the fitted state of a number and of a category column.

A number becomes its *rank-to-normal* value: Gaussian inside the training range, continued linearly outside, so that
an outlier stays as far out as it is. Values that repeat (zero inflation, caps, few-level numbers) are *atoms*, states
of a category of their own, and so is a missing value: nothing is filled with a mean and taken for truth. The other
values fall into *bins*, states too: which bin is what the network learns, where inside it a value lies is kept beside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int

from tabdiff.config import DataConfig

OTHER = "__other__"
VIEWS = ("raw", "asinh", "rank")
_LIMIT = 1e6  # standard deviations; keeps squares inside float32
_ROWS_PER_LEVEL = 5  # a number with few levels is all atoms only if its levels do repeat
_OUTSTANDING = 3.0  # times as frequent as the values around it is what a value of its own is
_NEIGHBOURHOODS = 64  # in a column, for that comparison
_ROWS_PER_BIN = 10  # fewer would make the share of a bin a matter of chance


@dataclass(frozen=True)
class Rank:
    """Rank-to-normal inside the training range, linear in units of `scale` outside.

    Piecewise linear between quantile knots and the normal scores of their ranks, (rank - 1/2) / n (Hazen 1914).
    """

    knots: tuple[float, ...]
    scores: tuple[float, ...]
    scale: float

    @classmethod
    def fit(cls, values: Float64[np.ndarray, " rows"], count: int, scale: float) -> Rank:
        """At most `count` knots; tied values share their mean score."""
        if not len(values):
            return cls((), (), scale)
        share = np.linspace(0.0, 1.0, min(count, len(values)))
        inverse = NormalDist().inv_cdf
        scores = np.array([inverse(p) for p in (share * (len(values) - 1) + 0.5) / len(values)])
        knots, position, repeats = np.unique(np.quantile(values, share), return_inverse=True, return_counts=True)
        return cls(tuple(knots.tolist()), tuple((np.bincount(position, weights=scores) / repeats).tolist()), scale)

    def __call__(self, values: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Normal scores of values."""
        knots, scores = self._arrays
        beyond = np.minimum(values - knots[0], 0.0) + np.maximum(values - knots[-1], 0.0)
        return np.asarray(np.interp(values, knots, scores) + _limited(beyond / self.scale))

    def inverse(self, z: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Values of normal scores."""
        knots, scores = self._arrays
        beyond = np.minimum(z - scores[0], 0.0) + np.maximum(z - scores[-1], 0.0)
        return np.asarray(np.interp(z, scores, knots) + beyond * self.scale)

    @cached_property
    def _arrays(self) -> tuple[Float64[np.ndarray, " knots"], Float64[np.ndarray, " knots"]]:
        """Knots and scores; making arrays of them takes longer than to look a row up."""
        return np.array(self.knots), np.array(self.scores)


def _limited(values: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
    """Clipped to `_LIMIT` on both sides. np.clip does the same and takes several times as long for one row."""
    return np.asarray(np.minimum(np.maximum(values, -_LIMIT), _LIMIT))


@dataclass(frozen=True)
class NumberCode:
    """Fitted state of one number column.

    States of the block, in order: one per atom, then one per bin of the other values, or a single one, "any other
    value", if there are no ``bins``, then missing. There is no block if the column has neither atoms nor bins nor gaps.
    ``rank`` covers the values that are no atoms, ``bins`` are the lowest and highest normal score that training showed in
    each bin; the rest of the fields describe all values, for the distance views.
    """

    atoms: tuple[float, ...]
    has_value: bool
    has_missing: bool
    mean: float
    scale: float
    rank: Rank
    median: float
    spread: float
    rank_of_all: Rank
    view_moments: tuple[tuple[float, float], ...]
    bins: tuple[tuple[float, float], ...] = ()

    @property
    def states(self) -> int:
        """Width of the block; 0 for a plain number."""
        if not (self.atoms or self.has_missing or self.bins):
            return 0
        return len(self.atoms) + (len(self.bins) or self.has_value) + self.has_missing

    @property
    def places(self) -> tuple[float, ...]:
        """Where each state lies among all values, a normal score; none for missing. Empty if states have no order."""
        if self.has_value and not self.bins:
            return ()
        atoms = self.rank_of_all(np.asarray(self.atoms))
        if not self.bins:
            return tuple(atoms.tolist())
        bins = self.rank_of_all(self.rank.inverse(np.array(self.middles)))
        return (*atoms.tolist(), *bins.tolist())

    @property
    def middles(self) -> tuple[float, ...]:
        """Normal score in the middle of each bin."""
        return tuple((low + high) / 2 for low, high in self.bins)

    @property
    def view_width(self) -> int:
        """Slots in each view: the number, and whether it is missing."""
        return 1 + self.has_missing

    @classmethod
    def fit(cls, values: Float64[np.ndarray, " rows"], config: DataConfig) -> NumberCode:
        """Choose atoms and knots from training values (NaN = missing)."""
        seen = values[~np.isnan(values)]
        levels, counts = np.unique(seen, return_counts=True)
        if len(levels) == 1 or (len(levels) <= config.max_levels and len(seen) >= _ROWS_PER_LEVEL * len(levels)):
            atoms = levels
        else:
            frequent = (counts >= config.atom_share * len(seen)) | _stands_out(levels, counts)
            frequent &= counts >= 2 * _ROWS_PER_LEVEL
            order = np.flatnonzero(frequent)[np.argsort(-counts[frequent], kind="stable")][: config.max_atoms]
            atoms = np.sort(levels[order])
        rest = seen[~np.isin(seen, atoms)]
        mean, scale = float(seen.mean()), float(seen.std())
        # A constant column still needs a unit in which a different value is far away.
        scale = scale if scale > 1e-12 * max(1.0, abs(mean)) else max(1.0, abs(mean))
        low, median, high = np.quantile(seen, [0.25, 0.5, 0.75]).tolist()
        spread = (high - low) / 1.349  # the standard deviation of a Gaussian with these quartiles
        rank = Rank.fit(rest, config.knots, scale)
        code = cls(
            atoms=tuple(atoms.tolist()),
            has_value=len(rest) > 0,
            has_missing=len(seen) < len(values),
            mean=mean,
            scale=scale,
            rank=rank,
            median=median,
            spread=spread if spread > 1e-9 * scale else scale,
            rank_of_all=Rank.fit(seen, config.knots, scale),
            view_moments=((0.0, 1.0),) * len(VIEWS),
            bins=_bins(rank(rest), config) if config.bins and len(rest) else (),
        )
        moments = [(float(view.mean()), float(view.std())) for view in code.views(seen)]
        return replace(code, view_moments=tuple((mean, std if std > 1e-9 else 1.0) for mean, std in moments))

    def views(
        self, values: Float64[np.ndarray, " rows"], z: Float64[np.ndarray, " rows"] | None = None
    ) -> list[Float64[np.ndarray, " rows"]]:
        """The column in each of VIEWS, standardised on the training rows; a missing value lies at the mean.

        Args:
            values: NaN = missing.
            z: their normal scores, if `locate` gave them.
        """
        asinh = np.arcsinh((values - self.median) / self.spread)
        of_all = z if z is not None and self._one_rank else self.rank_of_all(values)
        plain = ((values - self.mean) / self.scale, asinh, of_all)
        missing = np.isnan(values)
        standard = [_limited((view - mean) / std) for view, (mean, std) in zip(plain, self.view_moments, strict=True)]
        return [np.where(missing, 0.0, view) for view in standard] if missing.any() else standard

    @cached_property
    def _one_rank(self) -> bool:
        """Whether values that are no atoms are all values, so that one normal score serves for both."""
        return self.rank == self.rank_of_all

    def state_of(self, values: Float64[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """State of each cell; -1 where training never showed one, and in a column without a block."""
        return self.locate(values)[0]

    def locate(
        self, values: Float64[np.ndarray, " rows"], binned: bool = True
    ) -> tuple[Int[np.ndarray, " rows"], Float64[np.ndarray, " rows"] | None]:
        """State of each cell as `state_of` says, and its normal score; None if all values are atoms.

        If it does not matter in which bin a value lies (not `binned`), it counts as in the first one.
        """
        z = self.rank(values) if self.has_value else None
        if not self.states:
            return np.full(len(values), -1), z
        atoms = self._atoms
        state = np.full(len(values), len(atoms) if self.has_value else -1)
        if binned and self.bins and z is not None:
            state += self.bin_of(z)
        if len(atoms):
            position = np.minimum(np.searchsorted(atoms, values), len(atoms) - 1)
            state = np.where(atoms[position] == values, position, state)
        missing = np.isnan(values)
        if missing.any():
            state[missing] = self.states - 1 if self.has_missing else -1
        return state, z

    def bin_of(self, z: Float64[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """Bin of each normal score; between two bins the nearer one, and beyond them the last."""
        return np.searchsorted(self._borders, z, side="right")

    @cached_property
    def _atoms(self) -> Float64[np.ndarray, " atoms"]:
        return np.array(self.atoms, dtype=np.float64)

    @cached_property
    def _borders(self) -> Float64[np.ndarray, " borders"]:
        low, high = np.array(self.bins).T
        return np.asarray((high[:-1] + low[1:]) / 2)

    @cached_property
    def bin_ends(self) -> Float64[np.ndarray, "2 bins"]:
        """Lowest and highest value of each bin, a hair's breadth apart from them outwards."""
        low, high = (self.rank.inverse(side) for side in np.array(self.bins).T)
        slack = 1e-9 * self.scale
        return np.stack([low - slack, high + slack])

    def place(
        self, bins: Int[np.ndarray, " rows"], uniform: Float64[np.ndarray, " rows"]
    ) -> Float64[np.ndarray, " rows"]:
        """Normal scores inside the given bins, spread as N(0, 1) is there; uniform is U(0, 1)."""
        low, high = np.array(self.bins)[bins].T
        share = np.interp(low, _SCORES, _SHARES), np.interp(high, _SCORES, _SHARES)
        z = np.interp(share[0] + uniform * (share[1] - share[0]), _SHARES, _SCORES)
        return np.asarray(np.clip(z, low, high))


_SCORES = np.linspace(-8.0, 8.0, 8193)
_SHARES = np.array([NormalDist().cdf(z) for z in _SCORES])


def _stands_out(
    levels: Float64[np.ndarray, " levels"], counts: Int[np.ndarray, " levels"]
) -> Bool[np.ndarray, " levels"]:
    """Which values are far more frequent than those around them: round amounts, tariffs, but not the degrees of a thermometer.

    Around a value are about as many rows as a bin has; they are compared by the frequency of a step of the finest grid that the column shows.
    """
    if len(levels) < 2:
        return np.zeros(len(levels), bool)
    ends = np.cumsum(counts)
    half = max(_ROWS_PER_BIN, int(ends[-1]) // _NEIGHBOURHOODS) // 2
    first = np.searchsorted(ends, np.maximum(ends - counts - half, 0), side="right")
    last = np.searchsorted(ends, np.minimum(ends + half, ends[-1]))
    around = ends[last] - (ends - counts)[first] - counts
    with np.errstate(over="ignore"):  # values from one end of the floats to the other have endless steps
        steps = np.maximum((levels[last] - levels[first]) / np.diff(levels).min(), 1.0)
    return np.asarray(counts >= _OUTSTANDING * around / steps)


def _bins(z: Float64[np.ndarray, " rows"], config: DataConfig) -> tuple[tuple[float, float], ...]:
    """Lowest and highest score in each bin: one bin per value if values repeat, otherwise equally many rows in each."""
    levels = np.unique(z)
    if len(levels) <= config.max_values and len(z) >= _ROWS_PER_LEVEL * len(levels):
        return tuple((level, level) for level in levels.tolist())
    count = max(1, min(config.bins, len(z) // _ROWS_PER_BIN))
    starts = np.unique(np.quantile(z, np.arange(count) / count, method="higher"))
    ends = levels[np.searchsorted(levels, starts[1:]) - 1]
    return tuple(zip(starts.tolist(), [*ends.tolist(), float(levels[-1])], strict=True))


@dataclass(frozen=True)
class CategoryCode:
    """Fitted state of one category column. States: the kept categories, then `__other__`, then missing."""

    categories: tuple[str, ...]
    has_other: bool
    has_missing: bool

    @property
    def states(self) -> int:
        """Width of the block."""
        return len(self.categories) + self.has_other + self.has_missing

    @classmethod
    def fit(cls, values: pl.Series, config: DataConfig) -> CategoryCode:
        """Keep the frequent categories, most frequent first."""
        counts = values.drop_nulls().value_counts().sort([pl.col("count"), pl.first()], descending=[True, False])
        names, numbers = counts.to_series(0).to_list(), counts["count"].to_list()
        # A column of singletons would leave nothing but `__other__`; then the frequency rule says nothing.
        enough = config.min_category_rows if numbers and numbers[0] >= config.min_category_rows else 1
        kept = [name for name, number in zip(names, numbers, strict=True) if number >= enough and name != OTHER]
        kept = kept[: config.max_categories]
        return cls(tuple(kept), len(kept) < len(names), values.null_count() > 0)

    @property
    def view_width(self) -> int:
        """Slots in each view: one-hot."""
        return self.states

    def state_of(self, values: pl.Series) -> Int[np.ndarray, " rows"]:
        """State of each cell; -1 where training never showed one."""
        known = values.cast(self._kept, strict=False)  # null where it is none of them, or missing
        state = known.to_physical().cast(pl.Int64)
        if not known.null_count():
            return state.to_numpy()
        fallback = len(self.categories) if self.has_other else -1
        missing = self.states - 1 if self.has_missing else -1
        return np.where(values.is_null().to_numpy(), missing, state.fill_null(fallback).to_numpy())

    @cached_property
    def _kept(self) -> pl.Enum:
        return pl.Enum(self.categories)


def code_to_json(code: NumberCode | CategoryCode) -> dict[str, Any]:
    """Plain values that `code_from_json` reads."""
    return {"kind": "number" if isinstance(code, NumberCode) else "category", **asdict(code)}


def code_from_json(values: dict[str, Any]) -> NumberCode | CategoryCode:
    """Rebuild from `code_to_json`."""
    plain: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key != "kind"
    }
    if values["kind"] == "category":
        return CategoryCode(**plain)
    for name in ("rank", "rank_of_all"):
        rank = plain[name]
        plain[name] = Rank(tuple(rank["knots"]), tuple(rank["scores"]), rank["scale"])
    for name in ("view_moments", "bins"):
        plain[name] = tuple(tuple(pair) for pair in plain[name])
    return NumberCode(**plain)
