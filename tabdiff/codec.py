"""Turn rows into float32 arrays and back.

A number becomes its *rank-to-normal* value: Gaussian inside the training range, continued linearly outside, so that
an outlier stays as far out as it is. Values that repeat (zero inflation, caps, few-level numbers) are *atoms*, states
of a category of their own, and so is a missing value: nothing is filled with a mean and taken for truth. A category
becomes one-hot; rare ones share `__other__`. Behind this *model view* the array carries the *raw view*, the
standardised numbers themselves, for scores that compare rows by distance.

The fitted state is plain JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int

from tabdiff.config import DataConfig
from tabdiff.errors import ConfigError, Problem, SchemaError
from tabdiff.layout import Layout, Unit
from tabdiff.schema import Column, Kind, Schema

OTHER = "__other__"
_RAW_LIMIT = 1e6  # standard deviations; keeps squares inside float32
_ROWS_PER_LEVEL = 5  # a number with few levels is all atoms only if its levels do repeat


@dataclass(frozen=True)
class NumberCode:
    """Fitted state of one number column.

    States of the block, in order: one per atom, then "any other value" if ``has_value``, then missing. There is no
    block if the column has neither atoms nor gaps.
    """

    atoms: tuple[float, ...]
    has_value: bool
    has_missing: bool
    mean: float
    scale: float
    knots: tuple[float, ...]
    normal_scores: tuple[float, ...]

    @property
    def states(self) -> int:
        """Width of the block; 0 for a plain number."""
        return len(self.atoms) + self.has_value + self.has_missing if self.atoms or self.has_missing else 0

    @classmethod
    def fit(cls, values: Float64[np.ndarray, " rows"], config: DataConfig) -> NumberCode:
        """Choose atoms and knots from training values (NaN = missing)."""
        seen = values[~np.isnan(values)]
        levels, counts = np.unique(seen, return_counts=True)
        if len(levels) <= config.max_levels and len(seen) >= _ROWS_PER_LEVEL * len(levels) or len(levels) == 1:
            atoms = levels
        else:
            frequent = (counts >= config.atom_share * len(seen)) & (counts >= 2 * _ROWS_PER_LEVEL)
            order = np.flatnonzero(frequent)[np.argsort(-counts[frequent], kind="stable")][: config.max_atoms]
            atoms = np.sort(levels[order])
        rest = seen[~np.isin(seen, atoms)]
        mean, scale = float(seen.mean()), float(seen.std())
        # A constant column still needs a unit in which a different value is far away.
        scale = scale if scale > 1e-12 * max(1.0, abs(mean)) else max(1.0, abs(mean))
        knots, scores = _normal_scores(rest, config.knots)
        return cls(
            tuple(atoms.tolist()), len(rest) > 0, len(seen) < len(values), mean, scale, tuple(knots.tolist()), tuple(scores.tolist())
        )

    def rank(self, values: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Rank-to-normal, linear outside the training range."""
        knots, scores = np.asarray(self.knots), np.asarray(self.normal_scores)
        inside = np.interp(values, knots, scores)
        beyond = np.minimum(values - knots[0], 0.0) + np.maximum(values - knots[-1], 0.0)
        return np.asarray(inside + np.clip(beyond / self.scale, -_RAW_LIMIT, _RAW_LIMIT))

    def unrank(self, z: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Inverse of `rank`."""
        knots, scores = np.asarray(self.knots), np.asarray(self.normal_scores)
        if len(knots) == 1:
            return np.asarray(knots[0] + (z - scores[0]) * self.scale)
        beyond = np.minimum(z - scores[0], 0.0) + np.maximum(z - scores[-1], 0.0)
        return np.asarray(np.interp(z, scores, knots) + beyond * self.scale)


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


@dataclass(frozen=True)
class Projection:
    """Principal components of the plain numbers: ``z = (v - mean) / scale @ components.T`` (Pearson 1901)."""

    columns: tuple[str, ...]
    components: tuple[tuple[float, ...], ...]

    @cached_property
    def matrix(self) -> Float64[np.ndarray, "components columns"]:
        """Orthonormal rows."""
        return np.asarray(self.components)


@dataclass(frozen=True)
class Encoded:
    """Rows as arrays.

    Attributes:
        x: (N, W) float32, laid out as `Codec.layout` says.
        present: (N, U) False where a cell holds something that training never showed: an unknown category, a level
            never seen, a gap in a column that had none. Its block is all zeros, the masked state.
    """

    x: Float32[np.ndarray, "rows slots"]
    present: Bool[np.ndarray, "rows units"]


class Codec:
    """The fitted transformation between conformed frames and encoded arrays."""

    def __init__(
        self,
        schema: Schema,
        codes: dict[str, NumberCode | CategoryCode],
        projection: Projection | None = None,
        projected: dict[str, NumberCode] | None = None,
    ) -> None:
        self.schema = schema
        self.codes = codes
        self.projection = projection
        self.projected = projected or {}
        self.layout = self._build_layout()

    @property
    def columns(self) -> tuple[str, ...]:
        """The modelled columns of the user's table, in order."""
        return tuple(self.codes)

    @classmethod
    def fit(cls, frame: pl.DataFrame, schema: Schema, config: DataConfig) -> Codec:
        """Fit on a conformed frame, column by column, eagerly and in row order (the same bits every time)."""
        codes: dict[str, NumberCode | CategoryCode] = {}
        for column in schema.modelled:
            if column.kind in (Kind.CATEGORICAL, Kind.BOOLEAN):
                codes[column.name] = CategoryCode.fit(_as_text(frame[column.name]), config)
            else:
                codes[column.name] = NumberCode.fit(_as_number(frame[column.name]), config)
        if config.pca_components is None:
            return cls(schema, codes)
        return cls._fit_projected(frame, schema, codes, config)

    @classmethod
    def _fit_projected(
        cls, frame: pl.DataFrame, schema: Schema, codes: dict[str, NumberCode | CategoryCode], config: DataConfig
    ) -> Codec:
        names = tuple(name for name, code in codes.items() if isinstance(code, NumberCode) and not code.has_missing)
        count = config.pca_components or 0
        if count > len(names):
            raise ConfigError(
                f"data.pca_components is at most the number of gap-free number columns; got {count} for {len(names)} columns. "
                "Lower it or leave it out."
            )
        standard = _standardised(frame, names, codes)
        _, _, rotation = np.linalg.svd(standard - standard.mean(axis=0), full_matrices=False)
        # SVD leaves the sign of a component open; the largest loading is made positive so that fits repeat.
        sign = np.sign(rotation[np.arange(len(rotation)), np.abs(rotation).argmax(axis=1)])
        rotation = (rotation * sign[:, None])[:count]
        projection = Projection(names, tuple(tuple(row) for row in rotation.tolist()))
        components = standard @ rotation.T
        plain = config.model_copy(update={"max_levels": 0, "max_atoms": 0})
        fitted = {f"component {i + 1}": NumberCode.fit(components[:, i], plain) for i in range(count)}
        return cls(schema, codes, projection, fitted)

    def _modelled_codes(self) -> dict[str, NumberCode | CategoryCode]:
        """Codes of the layout's columns: the user's, or with a projection its components in place of what they cover."""
        if self.projection is None:
            return self.codes
        rest = {name: code for name, code in self.codes.items() if name not in self.projection.columns}
        return {**self.projected, **rest}

    def _build_layout(self) -> Layout:
        units: list[Unit] = []
        start = 0
        for index, code in enumerate(self._modelled_codes().values()):
            gate = None
            if code.states:
                units.append(Unit(index, "category", start, code.states))
                if isinstance(code, NumberCode) and code.has_value:
                    gate = start + len(code.atoms)
                start += code.states
            if isinstance(code, NumberCode) and code.has_value:
                units.append(Unit(index, "number", start, 1, gate))
                start += 1
        raw = [index for index, code in enumerate(self.codes.values()) for _ in range(_raw_width(code))]
        return Layout(tuple(self._modelled_codes()), tuple(units), tuple(raw))

    @cached_property
    def attribution(self) -> Float32[np.ndarray, "layout_columns columns"]:
        """How much of a layout column's error each user column carries; rows sum to 1.

        The identity unless numbers were projected; then the squared loadings of each component.
        """
        names = list(self._modelled_codes())
        share = np.zeros((len(names), len(self.columns)), dtype=np.float32)
        for row, name in enumerate(names):
            if self.projection is not None and name in self.projected:
                loadings = self.projection.matrix[row] ** 2
                share[row, [self.columns.index(column) for column in self.projection.columns]] = loadings
            else:
                share[row, self.columns.index(name)] = 1.0
        return share

    @cached_property
    def bounds(self) -> Float32[np.ndarray, "2 model_slots"]:
        """Lowest and highest value of each model slot in training; drawn rows are kept inside them."""
        bounds = np.tile(np.array([[0.0], [1.0]], dtype=np.float32), (1, self.layout.model_width))
        for unit in self.layout.units:
            code = self._modelled_codes()[self.layout.columns[unit.column]]
            if unit.kind == "number" and isinstance(code, NumberCode):
                low, high = np.float32(code.normal_scores[0]), np.float32(code.normal_scores[-1])
                # One float inwards, as rounding to float32 may lead just outside the range.
                bounds[:, unit.start] = (low, high) if low == high else (np.nextafter(low, high), np.nextafter(high, low))
        return bounds

    def encode(self, frame: pl.DataFrame) -> Encoded:
        """Encode a conformed frame of N rows."""
        x = np.zeros((frame.height, self.layout.width), dtype=np.float32)
        present = np.ones((frame.height, len(self.layout.units)), dtype=bool)
        values = {name: self._read(frame, name) for name in self.codes}
        if self.projection is not None:
            standard = _standardised(frame, self.projection.columns, self.codes)
            components = np.nan_to_num(standard) @ self.projection.matrix.T
            unknown = np.isnan(standard).any(axis=1)
            for index, name in enumerate(self.projected):
                values[name] = np.where(unknown, np.nan, components[:, index])
        for index, (name, code) in enumerate(self._modelled_codes().items()):
            units = self.layout.units_of(index)
            state = _states(values[name], code)
            for number in units:
                unit = self.layout.units[number]
                if unit.kind == "category":
                    present[:, number] = state >= 0
                    rows = np.flatnonzero(state >= 0)
                    x[rows, unit.start + state[rows]] = 1.0
                elif isinstance(code, NumberCode):
                    applies = state == len(code.atoms) if code.states else ~np.isnan(values[name])
                    x[applies, unit.start] = code.rank(values[name][applies])
                    # A number whose gate is closed is absent by nature, not unseen.
                    present[:, number] = applies | (state >= 0) if code.states else applies
        self._write_raw(x, values)
        return Encoded(x, present)

    def decode(self, x: Float32[np.ndarray, "rows slots"]) -> pl.DataFrame:
        """Decode the model view of N rows to the user's columns and dtypes; see `decode_canonical`."""
        return self.schema.restore(self.decode_canonical(x))

    def decode_canonical(self, x: Float32[np.ndarray, "rows slots"]) -> pl.DataFrame:
        """Decode the model view of N rows to the dtypes that `Schema.conform` gives.

        A block is read at its largest entry; an all-zero block (masked) decodes to null. Integers return to the integer
        grid and decimals to theirs; a value between knots is exact to about 1e-6 of the column's range (float32).
        """
        values: dict[str, Any] = {}
        for index, (name, code) in enumerate(self._modelled_codes().items()):
            values[name] = self._decode_column(x, index, code)
        if self.projection is not None:
            components = np.stack([values.pop(name) for name in self.projected], axis=1)
            standard = components @ self.projection.matrix
            for i, name in enumerate(self.projection.columns):
                code = self.codes[name]
                assert isinstance(code, NumberCode)  # a projection only ever covers numbers
                values[name] = standard[:, i] * code.scale + code.mean
        return pl.DataFrame([_to_series(self.schema[name], values[name]) for name in self.codes])

    def _decode_column(self, x: Float32[np.ndarray, "rows slots"], index: int, code: NumberCode | CategoryCode) -> Any:
        units = [self.layout.units[number] for number in self.layout.units_of(index)]
        block = x[:, units[0].slots] if units[0].kind == "category" else None
        state = None if block is None else np.where(block.max(axis=1) > 0, block.argmax(axis=1), -1)
        if isinstance(code, CategoryCode):
            assert state is not None
            names = np.array([*code.categories, *([OTHER] if code.has_other else []), None], dtype=object)
            return names[np.where(state >= len(names) - 1, -1, state)]
        result = np.full(len(x), np.nan)
        if code.has_value:
            result = code.unrank(x[:, units[-1].start].astype(np.float64))
        if state is not None:
            lookup = np.array([*code.atoms, np.nan])
            is_value = (state == len(code.atoms)) & code.has_value
            result = np.where(is_value, result, lookup[np.where((state < 0) | (state >= len(code.atoms)), -1, state)])
        return result

    def _read(self, frame: pl.DataFrame, name: str) -> Any:
        column = frame[name]
        if isinstance(self.codes[name], CategoryCode):
            return _as_text(column)
        return _as_number(column)

    def _write_raw(self, x: Float32[np.ndarray, "rows slots"], values: dict[str, Any]) -> None:
        slot = self.layout.model_width
        for name, code in self.codes.items():
            if isinstance(code, CategoryCode):
                state = _states(values[name], code)
                rows = np.flatnonzero(state >= 0)
                x[rows, slot + state[rows]] = np.sqrt(0.5)  # two different categories are a distance of 1 apart
            else:
                standard = (values[name] - code.mean) / code.scale
                x[:, slot] = np.clip(np.nan_to_num(standard), -_RAW_LIMIT, _RAW_LIMIT)
                if code.has_missing:
                    x[:, slot + 1] = np.isnan(standard)
            slot += _raw_width(code)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {
            "codes": {name: _code_to_json(code) for name, code in self.codes.items()},
            "projection": None if self.projection is None else asdict(self.projection),
            "projected": {name: _code_to_json(code) for name, code in self.projected.items()},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], schema: Schema) -> Codec:
        """Rebuild from `to_json`."""
        projection = values["projection"]
        projected = {name: _code_from_json(code) for name, code in values["projected"].items()}
        return cls(
            schema,
            {name: _code_from_json(code) for name, code in values["codes"].items()},
            None if projection is None else Projection(tuple(projection["columns"]), tuple(map(tuple, projection["components"]))),
            {name: code for name, code in projected.items() if isinstance(code, NumberCode)},
        )


def trim_outermost(frame: pl.DataFrame, codec: Codec, share: float) -> pl.DataFrame:
    """Drop the given share of rows that lie farthest out in the raw view: robust z-scores, largest per row."""
    if share == 0:
        return frame
    raw = codec.encode(frame).x[:, codec.layout.model_width :]
    median = np.median(raw, axis=0)
    spread = np.median(np.abs(raw - median), axis=0) * 1.4826
    distance = (np.abs(raw - median) / np.where(spread > 0, spread, np.inf)).max(axis=1)
    keep = np.sort(np.argsort(distance, kind="stable")[: frame.height - int(share * frame.height)])
    return frame[keep]


def _normal_scores(
    values: Float64[np.ndarray, " rows"], count: int
) -> tuple[Float64[np.ndarray, " knots"], Float64[np.ndarray, " knots"]]:
    """Quantile knots and the normal scores of their ranks, (rank - 1/2) / n (Hazen 1914); ties share their mean score."""
    if not len(values):
        return np.empty(0), np.empty(0)
    share = np.linspace(0.0, 1.0, min(count, len(values)))
    quantiles = np.quantile(values, share)
    inverse = NormalDist().inv_cdf
    scores = np.array([inverse(p) for p in (share * (len(values) - 1) + 0.5) / len(values)])
    knots, position, repeats = np.unique(quantiles, return_inverse=True, return_counts=True)
    return knots, np.bincount(position, weights=scores) / repeats


def _states(values: Any, code: NumberCode | CategoryCode) -> Int[np.ndarray, " rows"]:
    """State of each cell; -1 where training never showed one."""
    if isinstance(code, CategoryCode):
        order = {name: index for index, name in enumerate(code.categories)}
        fallback = len(code.categories) if code.has_other else -1
        missing = code.states - 1 if code.has_missing else -1
        state = values.replace_strict(order, default=fallback, return_dtype=pl.Int64)
        return np.where(values.is_null().to_numpy(), missing, state.fill_null(-1).to_numpy())
    if not code.states:
        return np.full(len(values), -1)
    atoms = np.asarray(code.atoms)
    state = np.full(len(values), len(atoms) if code.has_value else -1)
    if len(atoms):
        position = np.clip(np.searchsorted(atoms, values), 0, len(atoms) - 1)
        state = np.where(atoms[position] == values, position, state)
    return np.where(np.isnan(values), code.states - 1 if code.has_missing else -1, state)


def _raw_width(code: NumberCode | CategoryCode) -> int:
    return code.states if isinstance(code, CategoryCode) else 1 + code.has_missing


def _standardised(
    frame: pl.DataFrame, names: Sequence[str], codes: dict[str, NumberCode | CategoryCode]
) -> Float64[np.ndarray, "rows columns"]:
    columns = []
    for name in names:
        code = codes[name]
        assert isinstance(code, NumberCode)
        columns.append((_as_number(frame[name]) - code.mean) / code.scale)
    return np.stack(columns, axis=1)


def _as_number(values: pl.Series) -> Float64[np.ndarray, " rows"]:
    """Numbers as float64, datetimes as microseconds, null as NaN."""
    if values.dtype == pl.Datetime:
        values = values.dt.epoch("us")
    return values.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _as_text(values: pl.Series) -> pl.Series:
    return values.cast(pl.String)


def _to_series(column: Column, values: Any) -> pl.Series:
    """Decoded values as a canonical series: integers and decimals back on their grid."""
    if column.kind in (Kind.CATEGORICAL, Kind.BOOLEAN):
        text = pl.Series(column.name, values.tolist(), dtype=pl.String)
        return text == "true" if column.kind is Kind.BOOLEAN else text
    series = pl.Series(column.name, values, dtype=pl.Float64).fill_nan(None)
    if column.kind is Kind.CONTINUOUS:
        return series if column.decimals is None else series.round(column.decimals)
    if column.kind is Kind.DATETIME:
        grid = column.resolution or 1
        return ((series / grid).round().cast(pl.Int64) * grid).cast(pl.Datetime("us"))
    return series.round().cast(pl.Int64)


def _code_to_json(code: NumberCode | CategoryCode) -> dict[str, Any]:
    return {"kind": "number" if isinstance(code, NumberCode) else "category", **asdict(code)}


def _code_from_json(values: dict[str, Any]) -> NumberCode | CategoryCode:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return NumberCode(**values) if values.pop("kind") == "number" else CategoryCode(**values)
