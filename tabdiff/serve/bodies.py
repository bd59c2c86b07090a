"""What goes in and out: JSON described by models, and Arrow."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import Annotated, Any

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from tabdiff.errors import Problem, SchemaError

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
Cell = StrictBool | StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=100_000)] | None
Row = dict[str, Cell]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RowsBody(_Body):
    """Rows of the table: one object each, from column to value. Columns that are left out are missing."""

    rows: list[Row] = Field(min_length=1, description="one object for each row")


class SampleBody(_Body):
    """What to draw."""

    rows: int = Field(1, ge=1, description="how many rows")
    given: Row = Field(default_factory=dict, description="values that every row shall have; null means missing")
    seed: int = Field(0, ge=0, lt=2**63, description="the same seed gives the same rows")
    steps: int = Field(32, ge=1, le=200, description="denoising steps at most")


class ColumnPart(_Body):
    """A column that carries part of a row's score."""

    name: str
    contribution: float = Field(description="what the column adds to the score")
    expected: str | None = Field(description="what it should have held, for flagged rows if `explain` is set")


class RowScore(_Body):
    """The score of one row."""

    row: int = Field(description="place in the request, from 0")
    score: float = Field(description="higher is more abnormal")
    p_value: float = Field(description="share of normal rows that score at least as high")
    flagged: bool
    columns: list[ColumnPart]


class ScoresAnswer(_Body):
    """Scores of all rows, in their order."""

    provider: str = Field(description="engine and device that computed them")
    scores: list[RowScore]


class RowsAnswer(_Body):
    """Rows that were drawn or filled."""

    provider: str
    rows: list[Row]


class ColumnAnswer(_Body):
    """A column of the table that the model was fitted on."""

    name: str
    kind: str
    role: str
    modelled: bool


class ModelAnswer(_Body):
    """What the endpoint serves."""

    tabdiff: str
    created: str
    fingerprint: str
    provider: str
    columns: list[ColumnAnswer]
    views: list[str]
    default_fdr: float
    smallest_p_value: float
    max_rows: int
    max_bytes: int


class HealthAnswer(_Body):
    """Whether requests are taken."""

    status: str


class ErrorDetail(_Body):
    """One reason in words, and for tables one entry for each problem."""

    type: str
    message: str
    problems: list[str] = Field(default_factory=list)


class ErrorAnswer(_Body):
    """Why a request was refused."""

    error: ErrorDetail


def frame_of(rows: Sequence[Row]) -> pl.DataFrame:
    """A table from JSON rows. Never a silent null: a column of mixed types is refused.

    Raises:
        SchemaError: a column mixes types. Names every such column.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns, problems = [], []
    for name in names:
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            found = " and ".join(sorted(kind.__name__ for kind in kinds))
            problems.append(Problem(name, "a column holds one type", found, "Send numbers as numbers, text as text."))
            continue
        try:
            columns.append(pl.Series(name, values, strict=True))
        except (OverflowError, TypeError, pl.exceptions.PolarsError) as error:
            problems.append(
                Problem(name, "a column must fit a table", str(error).partition("\n")[0], "Check the values.")
            )
    if problems:
        raise SchemaError(problems)
    return pl.DataFrame(columns)


def frame_of_arrow(content: bytes) -> pl.DataFrame:
    """A table from an Arrow IPC stream or file.

    Raises:
        ValueError: it is none.
    """
    try:
        opened = pa.ipc.open_file(io.BytesIO(content)) if content[:6] == b"ARROW1" else pa.ipc.open_stream(content)
        table = opened.read_all()
        table.validate(full=True)
        frame = pl.from_arrow(table)
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, TypeError) as error:
        raise ValueError(f"the body is not an Arrow stream ({str(error).partition(chr(10))[0]})") from error
    assert isinstance(frame, pl.DataFrame)
    return frame


def arrow_of(frame: pl.DataFrame) -> bytes:
    """An Arrow IPC stream."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def cells_of(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON: times as ISO 8601 text, and null for what JSON has no word for."""
    return [{name: _cell(value) for name, value in row.items()} for row in frame.iter_rows(named=True)]


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)  # as it is read back
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def json_of(values: dict[str, Any]) -> bytes:
    """Compact JSON."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
