"""What the judgements share: which columns are numbers, and how cells become numbers.

A column of a numeric or temporal dtype is a *number*; every other column is a *category*. A missing value
is a null or a number that is not finite. A pair of tables is read with the kinds of the first one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tabdiff.errors import TABLE, Problem, SchemaError

Kind = Literal["number", "category"]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Report:
    """A result that can be written down."""

    def to_json(self) -> dict[str, Any]:
        """All fields as dicts, lists, strings and finite numbers, in the order of declaration."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return fields


def kind_of(dtype: pl.DataType) -> Kind:
    """Kind of a column of this dtype."""
    return "number" if dtype.is_numeric() or dtype.is_temporal() else "category"


def kinds_of(frame: pl.DataFrame) -> dict[str, Kind]:
    """Kind of each column, in the order of the table."""
    return {name: kind_of(dtype) for name, dtype in frame.schema.items()}


def numbers(column: pl.Series) -> Floats:
    """The (n,) values of a numeric or temporal column; NaN where missing or not finite."""
    if column.dtype == pl.Time:  # the one temporal dtype that does not cast to a float
        column = column.cast(pl.Int64)
    values = np.array(column.cast(pl.Float64).to_numpy(), dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def texts(column: pl.Series) -> pl.Series:
    """The values of a category as strings, nulls kept. NaN in a category written as a float becomes "NaN"."""
    return column.cast(pl.String)


def joint_codes(kind: Kind, *columns: pl.Series) -> list[Integers]:
    """Code the values of several columns jointly: equal values, equal codes; 0 is missing."""
    parts = [pl.Series(numbers(c), nan_to_null=True) if kind == "number" else texts(c) for c in columns]
    codes = pl.concat([part.rename("") for part in parts]).rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
    return np.split(codes, np.cumsum([len(c) for c in columns])[:-1])


def ordinal(reference: pl.DataFrame, frame: pl.DataFrame, columns: list[str]) -> Floats:
    """Matrix (n, len(columns)) for tree models: numbers as they are, categories as position of the level.

    Levels are those of `reference`, sorted; a level unknown to it is -1; missing cells are NaN.
    """
    parts: list[Floats] = []
    for name in columns:
        if kind_of(reference.schema[name]) == "number":
            parts.append(numbers(frame[name]))
            continue
        levels = texts(reference[name]).drop_nulls().unique().sort()
        position = positions(levels, texts(frame[name])).astype(np.float64)
        position[frame[name].is_null().to_numpy()] = np.nan
        parts.append(position)
    return np.column_stack(parts) if parts else np.empty((frame.height, 0))


def positions(levels: pl.Series, values: pl.Series) -> Integers:
    """Position (n,) of each string in `levels`; -1 where it is none of them or null."""
    if levels.is_empty():
        return np.full(len(values), -1, dtype=np.int64)
    known = pl.DataFrame({"value": levels, "position": np.arange(len(levels))}, schema_overrides={"value": pl.String})
    joined = values.to_frame("value").join(known, on="value", how="left", maintain_order="left")
    return np.array(joined["position"].fill_null(-1), dtype=np.int64)


def require_rows(frame: pl.DataFrame, role: str, least: int = 1) -> None:
    """Raise SchemaError if the table has fewer than `least` rows or no column, or a nested column."""
    problems = []
    if frame.width == 0 or frame.height < least:
        rule = f"the {role} table needs a column and at least {least} rows"
        found = f"{frame.width} columns and {frame.height} rows"
        problems.append(Problem(TABLE, rule, found, "Give a longer table."))
    for name, dtype in frame.schema.items():
        if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
            rule = "a column holds one number, date, boolean or text per row"
            problems.append(Problem(name, rule, str(dtype), "Take the column out or split it."))
    if problems:
        raise SchemaError(problems)


def align(reference: pl.DataFrame, frame: pl.DataFrame, role: str, least: int = 1) -> pl.DataFrame:
    """`frame` with the columns in the order of `reference`; SchemaError if they are not comparable."""
    require_rows(reference, "reference", least)
    problems = []
    for name, dtype in reference.schema.items():
        if name not in frame.columns:
            rule = f"the {role} table has the columns of the reference table"
            problems.append(Problem(name, rule, "no such column", "Select the same columns of both tables."))
        elif pl.Null not in (dtype, frame.schema[name]) and kind_of(dtype) != kind_of(frame.schema[name]):
            rule = f"the {role} table has the same kind of values as the reference table"
            found = f"{frame.schema[name]} instead of {dtype}"
            problems.append(Problem(name, rule, found, "Cast the column."))
    for name in frame.columns:
        if name not in reference.columns:
            rule = f"the {role} table has no column that the reference table lacks"
            problems.append(Problem(name, rule, "an additional column", "Select the same columns of both tables."))
    if problems:
        raise SchemaError(problems)
    require_rows(frame, role, least)
    return frame.select(reference.columns)


def draw_rows(frame: pl.DataFrame, rows: int, generator: np.random.Generator) -> pl.DataFrame:
    """At most `rows` rows, drawn without replacement."""
    if frame.height <= rows:
        return frame
    return frame[generator.choice(frame.height, size=rows, replace=False)]
