"""What each column of a training table is: its kind and role guessed, then its values measured.

Text is the hard part: it may hold numbers, dates, codes, categories, identifiers or prose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from tabdiff.columns import NUMBERS, Column, Kind, Role, is_text, write_dtype
from tabdiff.conversion import TIME_FORMATS, evidence, parse_times, stripped, to_canonical, write_times
from tabdiff.errors import Problem, warn

MAX_CATEGORIES = 10_000
LARGEST_INTEGER = 2**53  # beyond it float64 cannot tell neighbours apart
MAX_DECIMALS = 9

# The coarsest grid that all times of a column sit on, in microseconds: day, hour, minute, second, ms, us.
RESOLUTIONS = (86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000, 1_000, 1)
_ID_WORDS = {"id", "ids", "key", "uuid", "guid", "number", "index", "idx", "rowid"}
_CARRIED = (None, Role.ID, Role.ENTITY, Role.IGNORE)  # with these, values need not be understood


def guess(series: pl.Series, override: Mapping[str, str]) -> Column:
    """Kind and role of a column, before its values are measured."""
    name, dtype = series.name, write_dtype(series.dtype)
    role = Role(override["role"]) if "role" in override else None
    if series.dtype.is_float():
        series = series.fill_nan(None)
    if series.null_count() == len(series):
        kind = _plain_kind(series.dtype)
        return Column(name, Kind(override.get("kind", kind)), role or Role.IGNORE, dtype, nullable=True, empty=True)
    wanted = "kind" in override or role not in _CARRIED
    found, found_role, details = _kind_of(series, wanted=wanted)
    kind = Kind(override.get("kind", found))
    if role in (Role.ID, Role.ENTITY) and "kind" not in override:
        kind = Kind.TEXT
    if kind != found and kind not in (*NUMBERS, Kind.DATETIME):
        details = {}
    if role is None:
        role = found_role if kind == found else (Role.IGNORE if kind is Kind.TEXT else Role.FEATURE)
    return Column(name, kind, role, dtype, nullable=series.null_count() > 0, **details)


def _plain_kind(dtype: pl.DataType) -> Kind:
    """The kind that a type alone suggests."""
    if dtype.is_float() or dtype.is_decimal():
        return Kind.CONTINUOUS
    if dtype.is_integer() or dtype in (pl.Time, pl.Duration):
        return Kind.INTEGER
    if dtype == pl.Boolean:
        return Kind.BOOLEAN
    if dtype in (pl.Date, pl.Datetime):
        return Kind.DATETIME
    return Kind.CATEGORICAL if dtype in (pl.String, pl.Categorical, pl.Enum) else Kind.TEXT


def _kind_of(series: pl.Series, *, wanted: bool) -> tuple[Kind, Role, dict[str, Any]]:
    """Kind, role and details. A column ``wanted`` in the model by the user is never an identifier."""
    kind = _plain_kind(series.dtype)
    if series.dtype.is_integer():
        if not wanted and _is_identifier(series):
            return Kind.TEXT, Role.ID, {}
        # Two codes are a yes/no. More levels may be counts, which the codec turns into atoms anyway.
        coded = len(series) >= 20 and series.drop_nulls().n_unique() == 2
        return (Kind.CATEGORICAL if coded else kind), Role.FEATURE, {}
    if series.dtype == pl.String:
        return _kind_of_text(series, wanted=wanted)
    if kind is Kind.TEXT:
        warn(f"column {series.name!r} of type {series.dtype} cannot be modelled and is ignored")
        return kind, Role.IGNORE, {}
    return kind, Role.FEATURE, {}


def _is_identifier(series: pl.Series) -> bool:
    """Integers that number the rows, or that never repeat under a name such as PassengerId."""
    values = series.drop_nulls().cast(pl.Int128)
    distinct = values.n_unique()
    if _too_large(values):
        return distinct >= 0.95 * len(values)
    if distinct < len(series):
        return False
    gapless = int(values.max()) - int(values.min()) == len(values) - 1  # type: ignore[arg-type]
    in_order = values.is_sorted() or values.is_sorted(descending=True)
    return (gapless and len(values) >= (10 if in_order else 20)) or _names_an_id(series.name)


def _names_an_id(name: str) -> bool:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(word.lower() in _ID_WORDS for word in words)


def _too_large(values: pl.Series) -> bool:
    return bool(((values > LARGEST_INTEGER) | (values < -LARGEST_INTEGER)).any())


def _kind_of_text(series: pl.Series, *, wanted: bool) -> tuple[Kind, Role, dict[str, Any]]:
    text = series.drop_nulls()
    distinct = text.n_unique()
    unique = distinct == len(series) and len(series) > 2
    if unique and not wanted and _names_an_id(series.name):
        return Kind.TEXT, Role.ID, {}
    found = _numbers_in_text(series) or _dates_in_text(series)
    if found:
        kind, details = found
        integers = stripped(series).cast(pl.Int64, strict=False) if kind is Kind.INTEGER else None
        if integers is not None and not wanted and _is_identifier(integers):
            return Kind.TEXT, Role.ID, {}
        if integers is None or distinct > min(20, len(text) / 5):
            return kind, Role.FEATURE, details
    long = (text.str.len_chars().mean() or 0) > 80  # type: ignore[operator]
    if not wanted and distinct > 50 and (distinct > 0.5 * len(text) or long):
        is_id = unique and not text.str.contains(r"\s").any()
        return Kind.TEXT, Role.ID if is_id else Role.IGNORE, {}
    return Kind.CATEGORICAL, Role.FEATURE, {}


def _null_text(series: pl.Series, stripped: pl.Series) -> str | None:
    """The most frequent way in which a text column writes a missing value; None if that is null."""
    blanks = series.filter(stripped.is_null()).to_list()
    return Counter(blanks).most_common(1)[0][0] if blanks else None


def _numbers_in_text(series: pl.Series) -> tuple[Kind, dict[str, Any]] | None:
    text = stripped(series)
    present = text.drop_nulls()
    # A leading zero marks a code, and more than 15 digits do not fit a float: neither could be written back.
    if present.is_empty() or present.str.contains(r"^[+-]?0\d|^[+-]?\d{16,}$").any():
        return None
    unread = present.cast(pl.Float64, strict=False).is_null()
    if unread.any():
        _warn_if_nearly(present, unread, "a number", series.name)
        return None
    whole = present.cast(pl.Int64, strict=False).null_count() == 0
    digits = present.str.extract(r"^-?\d+\.(\d{1,9})$").str.len_chars()
    fixed = digits.null_count() == 0 and digits.n_unique() == 1
    return (Kind.INTEGER if whole else Kind.CONTINUOUS), {
        "text_number": True,
        "fixed_decimals": fixed,
        "decimals": int(digits[0]) if fixed else None,
        "null_text": _null_text(series, text),
    }


def _dates_in_text(series: pl.Series) -> tuple[Kind, dict[str, Any]] | None:
    text = stripped(series)
    present = text.drop_nulls()
    head = present.head(50)
    fitting = []
    nearly: dict[str, pl.Series] = {}
    for pattern in TIME_FORMATS:
        if parse_times(head, pattern).null_count() < 0.1 * len(head):
            unread = parse_times(present, pattern).is_null()
            if unread.any():
                nearly[pattern] = unread
            else:
                fitting.append(pattern)
    if not fitting:
        if nearly:
            pattern, unread = min(nearly.items(), key=lambda item: item[1].sum())
            _warn_if_nearly(present, unread, f"a date like {pattern}", series.name)
        return None
    if {"%d/%m/%Y", "%m/%d/%Y"} <= {pattern.split(" ")[0] for pattern in fitting}:
        warn(f"column {series.name!r}: dates such as {present[0]!r} are read as day/month; write YYYY-MM-DD")
    # Prefer the form that writes every value back as it was.
    exact = [pattern for pattern in fitting if write_times(parse_times(present, pattern), pattern).equals(present)]
    return Kind.DATETIME, {"time_format": (exact or fitting)[0], "null_text": _null_text(series, text)}


def _warn_if_nearly(present: pl.Series, unread: pl.Series, what: str, name: str) -> None:
    """Say so when a few odd values keep a column from being read as numbers or dates."""
    if 0 < unread.sum() <= 0.05 * len(unread):
        examples = present.filter(unread).unique(maintain_order=True).head(3).to_list()
        warn(
            f"column {name!r} is kept as text, as {unread.sum()} of {len(unread)} values are not {what}: "
            f"{examples}; empty those cells to have it modelled as such"
        )


def measure(series: pl.Series, column: Column) -> tuple[Column, Problem | None]:
    """Fill in the statistics of a column."""
    from_text, number = is_text(series.dtype), column.kind in NUMBERS
    if from_text and (number or column.kind is Kind.DATETIME):
        column = _with_text_form(series, column)
    values, problem = to_canonical(series, column)
    present = values.drop_nulls()
    if problem is None and column.kind is Kind.INTEGER and _too_large(present):
        found = evidence(values, (values > LARGEST_INTEGER) | (values < -LARGEST_INTEGER))
        cure = 'Set kind = "text" if it is an identifier, else store the numbers in a coarser unit.'
        problem = Problem(column.name, "integers must stay within 2**53", found, cure)
    changes: dict[str, Any] = {"nullable": values.null_count() > 0}
    if number and len(present):
        changes |= {"minimum": present.min(), "maximum": present.max()}
    if column.kind is Kind.CONTINUOUS and column.decimals is None:
        changes["decimals"] = _decimals(series, values)
    if column.kind is Kind.CATEGORICAL:
        counts = Counter(present.to_list())
        ordered = sorted(counts, key=lambda category: (-counts[category], category))
        changes["categories"] = tuple(ordered[:MAX_CATEGORIES])
    if column.kind is Kind.BOOLEAN and from_text:
        texts = series.cast(pl.String)
        shown = (texts.filter(values.not_()), texts.filter(values))
        changes["categories"] = tuple(
            str(part[0]) if len(part) else text for part, text in zip(shown, ("false", "true"), strict=True)
        )
    ticking = column.kind is Kind.DATETIME or (number and series.dtype in (pl.Time, pl.Duration))
    if ticking and len(present):
        ticks = present.cast(pl.Int64)
        step = next(step for step in RESOLUTIONS if (ticks % step == 0).all())
        changes |= {"resolution": step, "minimum": ticks.min(), "maximum": ticks.max()}
    return replace(column, **changes), problem


def _with_text_form(series: pl.Series, column: Column) -> Column:
    """How text writes its numbers or dates, where an override chose the kind and `guess` did not look."""
    if column.text_number or column.time_format:
        return column
    found = _dates_in_text(series) if column.kind is Kind.DATETIME and series.dtype != pl.String else None
    details = found[1] if found else {"null_text": _null_text(series, stripped(series))}
    return replace(column, text_number=column.kind in NUMBERS, **details)


def _decimals(series: pl.Series, values: pl.Series) -> int | None:
    # Compare in the original precision: the nearest float32 to 0.1 is a multiple of 0.1 only as a float32.
    dtype = series.dtype if series.dtype.is_float() else pl.Float64()
    original = values.cast(dtype)
    for digits in range(MAX_DECIMALS + 1):
        if (values.round(digits).cast(dtype) == original).all():
            return digits
    return None
