"""Turn rows into float32 arrays and back.

The array of a row holds the *model view*, which the diffusion model covers (numbers by rank, atoms and gaps as states,
categories one-hot; `tabdiff.codes`), and behind it three *distance views* for scores that compare rows by distance:
the numbers as they are (`raw`), logarithmic in the tails (`asinh`), and by rank (`rank`), all standardised.

The fitted state is plain JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Float32, Float64, Int

from tabdiff.codes import OTHER, VIEWS, CategoryCode, NumberCode, code_from_json, code_to_json
from tabdiff.config import DataConfig
from tabdiff.echoes import Cells, Echo, find_echoes, repeat
from tabdiff.errors import ConfigError
from tabdiff.layout import Layout, Unit
from tabdiff.schema import Column, Kind, Schema


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
        echoes: tuple[Echo, ...] = (),
    ) -> None:
        self.schema, self.codes, self.echoes = schema, codes, echoes
        self.projection, self.projected = projection, projected or {}
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
            binned = {name: code for name, code in codes.items() if isinstance(code, NumberCode) and code.bins}
            values = {name: _as_number(frame[name]) for name in binned}
            return cls(schema, codes, echoes=find_echoes(values, binned))
        return cls._fit_projected(frame, schema, codes, config)

    @classmethod
    def _fit_projected(
        cls,
        frame: pl.DataFrame,
        schema: Schema,
        codes: dict[str, NumberCode | CategoryCode],
        config: DataConfig,
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
                units.append(
                    Unit(
                        index,
                        "category",
                        start,
                        code.states,
                        places=code.places if isinstance(code, NumberCode) else (),
                    )
                )
                if isinstance(code, NumberCode) and code.has_value and not code.bins:
                    gate = start + len(code.atoms)
                start += code.states
            if isinstance(code, NumberCode) and code.has_value:
                units.append(Unit(index, "detail" if code.bins else "number", start, 1, gate, code.middles))
                start += 1
        columns = [index for index, code in enumerate(self.codes.values()) for _ in range(code.view_width)]
        return Layout(tuple(self._modelled_codes()), tuple(units), tuple(columns), VIEWS)

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
            if unit.kind != "category" and isinstance(code, NumberCode):
                low, high = np.float32(code.rank.scores[0]), np.float32(code.rank.scores[-1])
                # One float inwards, as rounding to float32 may lead just outside the range.
                bounds[:, unit.start] = (
                    (low, high) if low == high else (np.nextafter(low, high), np.nextafter(high, low))
                )
        return bounds

    def encode(self, frame: pl.DataFrame, model_view: bool = True) -> Encoded:
        """Encode a conformed frame of N rows. What only compares rows needs no `model_view`; it is all zeros then."""
        x = np.zeros((frame.height, self.layout.width), dtype=np.float32)
        present = np.ones((frame.height, len(self.layout.units)), dtype=bool)
        values = {name: self.read(frame, name) for name in self.codes}
        if self.projection is not None:
            standard = _standardised(frame, self.projection.columns, self.codes)
            components = np.nan_to_num(standard) @ self.projection.matrix.T
            unknown = np.isnan(standard).any(axis=1)
            for index, name in enumerate(self.projected):
                values[name] = np.where(unknown, np.nan, components[:, index])
        states: dict[str, Any] = {}
        scores: dict[str, Any] = {}
        for index, (name, code) in enumerate(self._modelled_codes().items()):
            units = self.layout.units_of(index)
            if isinstance(code, NumberCode):
                state, scores[name] = code.locate(values[name], binned=model_view)
            else:
                state = code.state_of(values[name])
            states[name] = state
            for number in units:
                unit = self.layout.units[number]
                if unit.kind == "category":
                    present[:, number] = state >= 0
                    if model_view:
                        _mark(x, unit.start, state, 1.0)
                elif isinstance(code, NumberCode):
                    last = len(code.atoms) + max(1, len(code.bins))
                    applies = (state >= len(code.atoms)) & (state < last) if code.states else ~np.isnan(values[name])
                    if model_view:
                        x[:, unit.start] = np.where(applies, scores[name], 0.0)
                    # A number whose gate is closed is absent by nature, not unseen.
                    present[:, number] = applies | (state >= 0) if code.states else applies
        # A component may have the name of a column that it covers.
        self._write_views(x, values, states, {} if self.projection is not None else scores)
        return Encoded(x, present)

    def decode(self, x: Float[np.ndarray, "rows slots"]) -> pl.DataFrame:
        """Decode the model view of N rows to the user's columns and dtypes; see `decode_canonical`."""
        return self.schema.restore(self.decode_canonical(x))

    def decode_canonical(self, x: Float[np.ndarray, "rows slots"]) -> pl.DataFrame:
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
        return pl.DataFrame([to_series(self.schema[name], values[name]) for name in self.codes])

    def draw_details(
        self,
        x: Float32[np.ndarray, "rows slots"],
        uniform: Float32[np.ndarray, "rows units"],
        given: Bool[np.ndarray, "rows units"],
    ) -> Float[np.ndarray, "rows slots"]:
        """Give every binned number of N drawn rows its place inside the bin that it was drawn in; some repeat another number of their row.

        Args:
            x: model view of the rows; a number whose bin is not one of its own keeps its slot, and so do given ones.
            uniform: U(0, 1).
        """
        x = x.astype(
            np.float64 if self.echoes else x.dtype
        )  # single precision has too few digits for numbers that are equal
        codes = list(self._modelled_codes().values())
        cells, chance = {}, {}
        for index in self.layout.detail_units:
            unit, block = self.layout.units[index], self.layout.units[index - 1]
            name = self.layout.columns[unit.column]
            code = codes[unit.column]
            assert isinstance(code, NumberCode)  # nothing else has details
            among = x[:, block.start + len(code.atoms) :][:, : len(code.bins)]
            bins, z = np.where(among.any(axis=1), among.argmax(axis=1), -1), x[:, unit.start].astype(np.float64)
            rows = np.flatnonzero((bins >= 0) & ~given[:, index])
            z[rows] = code.place(bins[rows], uniform[rows, index].astype(np.float64))
            cells[name], chance[name] = Cells(code, bins, z, given[:, index].copy()), uniform[:, index - 1]
        repeat(self.echoes, cells, chance)
        for index, own in zip(self.layout.detail_units, cells.values(), strict=True):
            x[:, self.layout.units[index].start] = own.z
        return x

    def _decode_column(self, x: Float[np.ndarray, "rows slots"], index: int, code: NumberCode | CategoryCode) -> Any:
        units = [self.layout.units[number] for number in self.layout.units_of(index)]
        block = x[:, units[0].slots] if units[0].kind == "category" else None
        if block is not None and isinstance(code, NumberCode) and code.bins:
            # One state for all bins: which one the value lies in, it says itself. Blocks may also hold probabilities.
            first, last = len(code.atoms), len(code.atoms) + len(code.bins)
            bins, value = block[:, first:last], block[:, first:last].sum(axis=1, keepdims=True)
            block = np.concatenate([block[:, :first], value, block[:, last:]], axis=1)
        state = None if block is None else np.where(block.max(axis=1) > 0, block.argmax(axis=1), -1)
        if isinstance(code, CategoryCode):
            assert state is not None
            names = np.array([*code.categories, *([OTHER] if code.has_other else []), None], dtype=object)
            return names[np.where(state >= len(names) - 1, -1, state)]
        result = np.full(len(x), np.nan)
        if code.has_value:
            z = x[:, units[-1].start].astype(np.float64)
            if code.bins:  # of probabilities, the mean
                expected = bins @ np.array(code.middles) / np.maximum(value[:, 0], 1e-12)
                z = np.where(bins.max(axis=1) < 0.999 * value[:, 0], expected, z)
            result = code.rank.inverse(z)
        if state is not None:
            lookup = np.array([*code.atoms, np.nan])
            is_value = (state == len(code.atoms)) & code.has_value
            result = np.where(is_value, result, lookup[np.where((state < 0) | (state >= len(code.atoms)), -1, state)])
        return result

    def read(self, frame: pl.DataFrame, name: str) -> Any:
        """One column of a conformed frame as plain values: numbers with NaN for gaps, or texts."""
        column = frame[name]
        if isinstance(self.codes[name], CategoryCode):
            return _as_text(column)
        return _as_number(column)

    def _write_views(
        self,
        x: Float32[np.ndarray, "rows slots"],
        values: dict[str, Any],
        states: dict[str, Int[np.ndarray, " rows"]],
        scores: dict[str, Any],
    ) -> None:
        width = len(self.layout.view_columns)
        views = np.zeros((len(x), len(VIEWS), width), dtype=np.float32)  # narrow: written to the wide rows at once
        offset = 0
        for name, code in self.codes.items():
            if isinstance(code, CategoryCode):
                for view in range(len(VIEWS)):  # different categories are a distance of 1 apart
                    _mark(views[:, view], offset, states[name], np.sqrt(0.5))
            else:
                for view, number in enumerate(code.views(values[name], scores.get(name))):
                    views[:, view, offset] = number
                if code.has_missing:
                    views[:, :, offset + 1] = np.isnan(values[name])[:, None]
            offset += code.view_width
        x[:, self.layout.view(VIEWS[0]).start :][:, : len(VIEWS) * width] = views.reshape(len(x), -1)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {
            "codes": {name: code_to_json(code) for name, code in self.codes.items()},
            "projection": None if self.projection is None else asdict(self.projection),
            "projected": {name: code_to_json(code) for name, code in self.projected.items()},
            "echoes": [asdict(echo) for echo in self.echoes],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], schema: Schema) -> Codec:
        """Rebuild from `to_json`."""
        projection = values["projection"]
        projected = {name: code_from_json(code) for name, code in values["projected"].items()}
        return cls(
            schema,
            {name: code_from_json(code) for name, code in values["codes"].items()},
            None
            if projection is None
            else Projection(tuple(projection["columns"]), tuple(map(tuple, projection["components"]))),
            {name: code for name, code in projected.items() if isinstance(code, NumberCode)},
            tuple(Echo.from_json(echo) for echo in values.get("echoes", ())),  # models of before have none
        )


def _mark(x: Float32[np.ndarray, "rows slots"], start: int, state: Int[np.ndarray, " rows"], value: float) -> None:
    """Write `value` into the slot of each row's state, counted from `start`; a state of -1 has none."""
    rows = np.arange(len(x)) if len(state) and state.min() >= 0 else np.flatnonzero(state >= 0)
    x[rows, start + (state if len(rows) == len(state) else state[rows])] = value


def trim_outermost(frame: pl.DataFrame, codec: Codec, share: float) -> pl.DataFrame:
    """Drop the given share of rows that lie farthest out: robust z-scores, largest per row."""
    if share == 0:
        return frame
    raw = codec.encode(frame).x[:, codec.layout.view("raw")]
    median = np.median(raw, axis=0)
    spread = np.median(np.abs(raw - median), axis=0) * 1.4826
    distance = (np.abs(raw - median) / np.where(spread > 0, spread, np.inf)).max(axis=1)
    keep = np.sort(np.argsort(distance, kind="stable")[: frame.height - int(share * frame.height)])
    return frame[keep]


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
    return values.cast(pl.Float64).to_numpy()  # null becomes NaN


def _as_text(values: pl.Series) -> pl.Series:
    return values.cast(pl.String)


def to_series(column: Column, values: Any) -> pl.Series:
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
