"""What one column of a table is: its kind, its role, its measures, and its original type as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

import polars as pl


class Kind(StrEnum):
    """What the values of a column are."""

    CONTINUOUS = "continuous"
    INTEGER = "integer"
    CATEGORICAL = "categorical"
    BOOLEAN = "boolean"
    DATETIME = "datetime"
    TEXT = "text"


class Role(StrEnum):
    """What a column is for. Only features and targets are modelled; a label marks known anomalies."""

    FEATURE = "feature"
    ID = "id"
    TIME = "time"
    ENTITY = "entity"
    TARGET = "target"
    LABEL = "label"
    IGNORE = "ignore"


NUMBERS = (Kind.CONTINUOUS, Kind.INTEGER)

# The type that each modelled kind has in canonical form.
CANONICAL: dict[Kind, pl.DataType] = {
    Kind.CONTINUOUS: pl.Float64(),
    Kind.INTEGER: pl.Int64(),
    Kind.CATEGORICAL: pl.String(),
    Kind.BOOLEAN: pl.Boolean(),
    Kind.DATETIME: pl.Datetime("us"),
}


@dataclass(frozen=True)
class Column:
    """One column of the training table.

    Attributes:
        dtype: the original type, such as ``Int64``, ``Decimal(10, 2)`` or ``Datetime(ns, Europe/Berlin)``.
        nullable: a value was missing in training.
        empty: every value was missing in training; `Schema.restore` adds such a column back.
        minimum: smallest value of training; for datetimes in microseconds since 1970 UTC.
        maximum: largest value of training, likewise.
        decimals: all values are multiples of ``10**-decimals``; None if they need more than nine.
        categories: every category of training, the most frequent first (at most 10,000); for booleans kept as
            text, the text of false and of true.
        time_format: how a date kept as text is written.
        resolution: the coarsest grid in microseconds that all times sit on.
        text_number: the numbers are kept as text.
        fixed_decimals: a text number always shows ``decimals`` digits, as in ``1.50``.
        null_text: how a text number or text date writes a missing value, such as ``" "``; None for null.
    """

    name: str
    kind: Kind
    role: Role
    dtype: str
    nullable: bool = False
    empty: bool = False
    minimum: float | None = None
    maximum: float | None = None
    decimals: int | None = None
    categories: tuple[str, ...] = ()
    time_format: str | None = None
    resolution: int | None = None
    text_number: bool = False
    fixed_decimals: bool = False
    null_text: str | None = None

    @property
    def modelled(self) -> bool:
        """The model learns this column."""
        return self.role in (Role.FEATURE, Role.TARGET) and self.kind is not Kind.TEXT and not self.empty

    @property
    def canonical(self) -> bool:
        """`Schema.conform` converts this column; others are carried through as they are."""
        return self.modelled or (self.role in (Role.TIME, Role.LABEL) and self.kind is not Kind.TEXT)


# ------------------------------------------------------------------------------------------- types as strings

_SIMPLE_TYPES: dict[str, pl.DataType] = {
    str(dtype): dtype()
    for dtype in (
        *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
        *(
            pl.Float32,
            pl.Float64,
            pl.String,
            pl.Categorical,
            pl.Boolean,
            pl.Date,
            pl.Time,
            pl.Null,
            pl.Binary,
        ),
    )
}


def write_dtype(dtype: pl.DataType) -> str:
    """A type as text that `parse_dtype` reads."""
    if isinstance(dtype, pl.Datetime):
        return f"Datetime({dtype.time_unit}{', ' + dtype.time_zone if dtype.time_zone else ''})"
    if isinstance(dtype, pl.Duration):
        return f"Duration({dtype.time_unit})"
    if isinstance(dtype, pl.Decimal):
        return f"Decimal({dtype.precision}, {dtype.scale})"
    if isinstance(dtype, pl.Enum):
        return f"Enum({json.dumps(dtype.categories.to_list(), ensure_ascii=False)})"
    return str(dtype)


def parse_dtype(text: str) -> pl.DataType | None:
    """The type that `write_dtype` wrote; None for nested and foreign types."""
    if text in _SIMPLE_TYPES:
        return _SIMPLE_TYPES[text]
    name, _, inside = text.removesuffix(")").partition("(")
    if name == "Enum":
        return pl.Enum(json.loads(inside))
    parts = inside.split(", ")
    if name == "Datetime":
        unit, zone = parts[0], parts[1] if len(parts) > 1 else None
        return pl.Datetime(unit, zone)  # type: ignore[arg-type]
    if name == "Duration":
        return pl.Duration(inside)  # type: ignore[arg-type]
    if name == "Decimal":
        return pl.Decimal(int(parts[0]), int(parts[1]))
    return None


def is_text(dtype: pl.DataType) -> bool:
    """Values of this type are strings, however they are stored."""
    return dtype in (pl.String, pl.Categorical, pl.Enum)
