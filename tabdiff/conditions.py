"""What is known of the rows to draw: partial rows become conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool

from tabdiff.codec import Codec, Encoded
from tabdiff.codes import OTHER, CategoryCode, NumberCode
from tabdiff.columns import CANONICAL
from tabdiff.errors import Problem, SchemaError
from tabdiff.sampling import Condition
from tabdiff.schema import Column, Kind, Schema

_NAMED = 8  # values that an error lists


def read_cells(schema: Schema, codec: Codec, partial: pl.DataFrame) -> pl.DataFrame:
    """The columns of partial rows in canonical types.

    Raises:
        SchemaError: a column is not modelled, or a value is not one of its kind.
    """
    unknown = [name for name in partial.columns if name not in codec.columns]
    if unknown:
        cure = f"Modelled columns: {', '.join(codec.columns)}."
        raise SchemaError(
            [Problem(name, "a given column must be modelled", "a column that is not", cure) for name in unknown]
        )
    return Schema(tuple(column for column in schema.columns if column.name in partial.columns)).conform(partial)


def condition_on_cells(
    codec: Codec, canonical: pl.DataFrame, open_cells: Bool[np.ndarray, "n c"], *, missing_if_open: bool
) -> Condition:
    """Encode canonical rows of which some cells are open; may those come out missing?

    Raises:
        SchemaError: a given value was never seen in training, or is pooled with other rare ones.
    """
    encoded = codec.encode(canonical)
    condition = complete(codec, encoded, open_cells)
    unseen = condition.given & ~(encoded.present & ~_pooled(codec, encoded))[:, None, :]
    if unseen.any():
        raise SchemaError(_unseen(codec, canonical, unseen[:, 0]))
    if missing_if_open:
        return Condition(condition.x, condition.given, np.ones_like(condition.allowed))
    return condition


def complete(codec: Codec, encoded: Encoded, open_cells: Bool[np.ndarray, "n c"]) -> Condition:
    """Everything is given but the open cells, and those must not come out missing."""
    layout = codec.layout
    # A layout column is open if any user column in it is: with a projection they are tied.
    open_columns = (open_cells.astype(np.float32) @ codec.attribution.T) > 0
    given = ~layout.cells(open_columns)
    for index, unit in enumerate(layout.units):
        if unit.gate is not None:  # the value beside an atom is not known, and not read either
            given[:, index] &= encoded.x[:, unit.gate] == 1
    allowed = np.ones((len(encoded.x), layout.model_width), np.float32)
    for index, name in enumerate(layout.columns):
        code = codec.codes.get(name)
        if code is not None and code.has_missing:
            last = layout.units[layout.units_of(index)[0]].slots.stop - 1
            allowed[:, last] = ~open_columns[:, index]
    return Condition(encoded.x[:, None, : layout.model_width], given[:, None, :], allowed[:, None, :])


def _pooled(codec: Codec, encoded: Encoded) -> Bool[np.ndarray, "n u"]:
    """Units that hold `__other__`: one state for all rare values, so none of them can be asked for by name."""
    pooled = np.zeros(encoded.present.shape, dtype=bool)
    for index, unit in enumerate(codec.layout.units):
        code = codec.codes.get(codec.layout.columns[unit.column])
        if isinstance(code, CategoryCode) and code.has_other:
            pooled[:, index] = encoded.x[:, unit.start + len(code.categories)] == 1
    return pooled


def _unseen(codec: Codec, partial: pl.DataFrame, unseen: Bool[np.ndarray, "n u"]) -> list[Problem]:
    problems = []
    for index in np.flatnonzero(unseen.any(axis=0)):
        name = codec.layout.columns[codec.layout.units[index].column]
        row = int(np.flatnonzero(unseen[:, index])[0])
        value = partial[name][row] if name in partial.columns else "its components"
        evidence = repr(value) if partial.height == 1 else f"{value!r} in row {row + 1}"
        rule = "a given value must have been seen in training"
        problems.append(Problem(name, rule, evidence, _cure(value, codec.codes.get(name))))
    return problems


def _cure(value: Any, code: CategoryCode | NumberCode | None) -> str:
    """The values that may be given; of pooled ones only where there are any."""
    if value is None:
        return "No training row has a gap here: give a value, or leave the column out."
    if not isinstance(code, CategoryCode):
        return "Give a value of the training table. `tabdiff show` says what it held."
    named = ", ".join(repr(each) for each in code.categories[:_NAMED])
    more = len(code.categories) - _NAMED
    rest = f" and {more} more, which `tabdiff show --json` lists" if more > 0 else ""
    pooled = f"; rarer ones are pooled as {OTHER!r} and cannot be given" if code.has_other else ""
    return f"Give one of {named}{rest}{pooled}."


def canonical_series(column: Column, values: Sequence[Any]) -> pl.Series:
    """Drawn values as a canonical column."""
    if column.kind is Kind.BOOLEAN:
        return pl.Series(column.name, [value == "true" for value in values])
    if column.kind is Kind.CATEGORICAL:
        return pl.Series(column.name, values, dtype=pl.String)
    series = pl.Series(column.name, values, dtype=pl.Float64)
    if column.kind is Kind.CONTINUOUS:
        return series
    return series.round(0).cast(pl.Int64).cast(CANONICAL[column.kind])


def overlaid(frame: pl.DataFrame, cells: pl.DataFrame, open_cells: Bool[np.ndarray, "n c"]) -> pl.DataFrame:
    """The frame with the cells that are known, exactly as they were given."""
    if cells.width and cells.height == 1:
        cells, open_cells = cells[np.zeros(frame.height, int)], np.repeat(open_cells, frame.height, axis=0)
    columns = [
        frame[name].zip_with(pl.Series(open_cells[:, i]), cells[name].cast(frame[name].dtype)).alias(name)
        for i, name in enumerate(cells.columns)
    ]
    return frame.with_columns(columns)
