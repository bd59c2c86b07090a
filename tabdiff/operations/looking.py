"""A first look at a table before anything is fitted: what each column was taken for, and what may be wrong with the data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from pyarrow import ArrowException, parquet

from tabdiff.errors import TABLE, SchemaError, SourceError, TabdiffWarning
from tabdiff.operations.reading import newest_rows
from tabdiff.schema import Column, Kind, Role, Schema
from tabdiff.sources import load
from tabdiff.store.spec import SourceSpec

UPLOADED = (".csv", ".tsv", ".parquet")  # formats whose size is known before they are read
MOST_COLUMNS, MOST_CELLS, MOST_BYTES = 1000, 50_000_000, 2**30
_SHOWN, _EXAMPLES, _TEXT = 20, 4, 60  # rows and examples that a look shows, and characters of a value
_FEW_ROWS, _MOSTLY = 200, 0.5


def look(frame: pl.DataFrame, overrides: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Any]:
    """What a table would be modelled as, as JSON.

    Args:
        frame: N rows.
        overrides: kinds and roles that a person set, as for `Schema.infer`.

    Returns:
        rows; columns: name, kind, role, dtype, modelled, missing (share), distinct, range, examples; findings: severity (error,
        warning, info), column ("" for the table) and what in words; sample: the first rows as text.

    Raises:
        ConfigError: an override names no column, kind or role.
    """
    findings: list[dict[str, str]] = []
    known: dict[str, Column] = {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", TabdiffWarning)
        try:
            known = {column.name: column for column in Schema.infer(frame, overrides=overrides).columns}
        except SchemaError as error:
            findings += [
                _finding(
                    "error",
                    "" if problem.column == TABLE else problem.column,
                    f"{problem.rule}; found {problem.evidence}. {problem.cure}",
                )
                for problem in error.problems
            ]
    findings += [
        _finding("warning", "", str(each.message)) for each in told if issubclass(each.category, TabdiffWarning)
    ]
    columns = [_describe(series, known.get(series.name)) for series in frame]
    findings += _quality(frame, columns)
    order = ("error", "warning", "info")
    findings.sort(key=lambda finding: order.index(finding["severity"]))
    sample = [[_text(value) for value in row] for row in frame.head(_SHOWN).rows()]
    return {"rows": frame.height, "columns": columns, "findings": findings, "sample": sample}


def look_at_source(
    spec: SourceSpec, rows: int, overrides: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Any]:
    """A look at the newest rows of a source.

    Args:
        spec: the source.
        rows: how many of its newest rows are looked at.
        overrides: as for `look`.

    Raises:
        SourceError: the source cannot be read.
        ConfigError: as for `look`.
    """
    frame, found = newest_rows(spec, rows)
    result = look(frame, overrides)
    result["findings"] = [_finding("warning", "", f"{each.subject}: {each.reason}") for each in found] + result[
        "findings"
    ]
    return result


def load_upload(path: Path) -> pl.DataFrame:
    """Read a file that somebody sent, unless its size says that it is too large to read.

    Raises:
        SourceError: it is of another format, too large, or not readable.
    """
    suffix = path.suffix.lower()
    if suffix not in UPLOADED:
        raise SourceError(f"an uploaded file ends in {', '.join(UPLOADED)}; got {suffix or 'no suffix'}. Convert it.")
    if suffix == ".parquet":
        _refuse_large(path)
    frame = load(path)
    if frame.width > MOST_COLUMNS or frame.height * frame.width > MOST_CELLS:
        raise _too_large(frame.height, frame.width)
    return frame


def _refuse_large(path: Path) -> None:
    """Parquet is compressed, sometimes a million times; its footer says what it would become."""
    try:
        footer = parquet.read_metadata(path)
        parts = [footer.row_group(index) for index in range(footer.num_row_groups)]
        size = sum(part.total_byte_size for part in parts)
        cells = sum(part.column(index).num_values for part in parts for index in range(part.num_columns))
    except (ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{path.name}: not a readable parquet file ({_text(error)}). Write it again.") from error
    if footer.num_columns > MOST_COLUMNS or max(cells, footer.num_rows) > MOST_CELLS or size > MOST_BYTES:
        raise _too_large(footer.num_rows, footer.num_columns)


def _too_large(rows: int, columns: int) -> SourceError:
    return SourceError(
        f"an uploaded table has at most {MOST_COLUMNS:,} columns and {MOST_CELLS:,} cells; got {rows:,} rows of {columns:,} columns. "
        "Put larger ones where tabdiff runs, and register their path."
    )


def _finding(severity: str, column: str, what: str) -> dict[str, str]:
    return {"severity": severity, "column": column, "what": " ".join(what.split())[:500]}


def _describe(series: pl.Series, column: Column | None) -> dict[str, Any]:
    """One column as it was taken, with what its values look like."""
    present = series.drop_nulls()
    distinct = present.n_unique() if not series.dtype.is_nested() else None
    ends = ""
    if len(present) and (series.dtype.is_numeric() or series.dtype.is_temporal()):
        ends = f"{_text(present.min())} to {_text(present.max())}"
    return {
        "name": series.name,
        "kind": str(column.kind) if column else "",
        "role": str(column.role) if column else "",
        "dtype": str(series.dtype),
        "modelled": bool(column and column.modelled),
        "missing": series.null_count() / max(len(series), 1),
        "distinct": distinct,
        "range": ends,
        "examples": [_text(value) for value in present.head(1000).unique(maintain_order=True).head(_EXAMPLES)]
        if distinct is not None
        else [],
    }


def _quality(frame: pl.DataFrame, columns: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What is odd about the values, whatever the columns were taken for."""
    found = []
    if frame.height < _FEW_ROWS:
        found.append(
            _finding("warning", "", f"there are {frame.height} rows; a model of fewer than {_FEW_ROWS} is weak")
        )
    flat = [name for name, dtype in frame.schema.items() if not dtype.is_nested()]
    repeats = frame.height - frame.select(flat).n_unique() if flat and frame.height else 0
    if repeats:
        share = repeats / frame.height
        found.append(
            _finding(
                "warning" if share > 0.01 else "info",
                "",
                f"{repeats:,} rows ({share:.1%}) repeat another one in every column",
            )
        )
    for column in columns:
        name = column["name"]
        if column["missing"] == 1:
            found.append(_finding("warning", name, "has no value at all and is ignored"))
            continue
        if column["distinct"] == 1:
            found.append(_finding("warning", name, "holds one value only, which tells nothing"))
        if column["missing"] > _MOSTLY:
            found.append(_finding("warning", name, f"is missing in {column['missing']:.0%} of the rows"))
        if column["kind"] == Kind.TEXT and column["role"] == Role.IGNORE:
            found.append(_finding("info", name, "is free text and is carried along, not modelled"))
        if column["role"] == Role.ID:
            found.append(_finding("info", name, "looks like an identifier and is carried along, not modelled"))
        found += _of_numbers(frame[name])
    return found


def _of_numbers(series: pl.Series) -> list[dict[str, str]]:
    """Not-a-number, infinite and far values."""
    if not series.dtype.is_float():
        return []
    odd = int((series.is_nan() | series.is_infinite()).fill_null(False).sum())
    found = [_finding("warning", series.name, f"{odd:,} values are not finite")] if odd else []
    finite = series.filter(series.is_finite().fill_null(False))
    low, high = finite.quantile(0.25), finite.quantile(0.75)
    if low is not None and high is not None and high > low:
        far = int(((finite < low - 20 * (high - low)) | (finite > high + 20 * (high - low))).sum())
        if far:
            found.append(
                _finding(
                    "info",
                    series.name,
                    f"{far:,} value{'s lie' if far > 1 else ' lies'} more than 20 interquartile ranges away from the middle half",
                )
            )
    return found


def _text(value: Any) -> str:
    """A value in a few characters."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    text = " ".join(str(value).split())
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
