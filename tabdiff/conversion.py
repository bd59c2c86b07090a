"""One column brought into canonical form, and back into the type and text form of training.

`to_canonical` never guesses: a value that it cannot convert safely becomes a `Problem` that shows it.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from tabdiff.columns import CANONICAL, NUMBERS, Column, Kind, is_text, parse_dtype
from tabdiff.errors import Problem, SchemaError

LARGEST_NUMBER = 1e30  # beyond it a value is a marker for "missing", not a measurement
# What stands for a missing value in numbers and dates kept as text, in any case.
BLANKS = ("", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-", ".")

_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y")
_CLOCKS = ("%H:%M:%S", "%H:%M", "%H:%M:%S%.f")
TIME_FORMATS = (
    *_DAYS,
    *(f"%Y-%m-%d{gap}{clock}{zone}" for zone in ("", "Z", "%:z") for gap in "T " for clock in _CLOCKS),
    *(f"{day} {clock}" for day in _DAYS[1:] for clock in _CLOCKS),
)
_TRUTH = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}
_TIMES_OF_DAY_END = 86_400_000_000 - 1
_RULES = {
    Kind.CONTINUOUS: "must be a number",
    Kind.INTEGER: "must be a whole number",
    Kind.BOOLEAN: "must be true or false (0 or 1)",
    Kind.DATETIME: "must be a date or a time",
    Kind.CATEGORICAL: "must be a category",
}


# ----------------------------------------------------------------------------------------------------- text


def stripped(text: pl.Series) -> pl.Series:
    """Text without outer spaces, blanks as null."""
    text = text.cast(pl.String).str.strip_chars()
    return text.set(text.str.to_lowercase().is_in(list(BLANKS)).fill_null(False), None)


def parse_times(text: pl.Series, pattern: str) -> pl.Series:
    """Naive UTC times, null where the text has another form or a year before 1000 (two digits in truth)."""
    times = text.str.to_datetime(pattern, time_unit="us", strict=False, ambiguous="null")
    if times.dtype.time_zone is not None:  # type: ignore[attr-defined]
        times = times.dt.replace_time_zone(None)
    return times.set((times.dt.year() < 1000).fill_null(False), None)


def write_times(times: pl.Series, pattern: str) -> pl.Series:
    """Naive UTC times as text."""
    return (times.dt.replace_time_zone("UTC") if pattern.endswith("%:z") else times).dt.to_string(pattern)


# --------------------------------------------------------------------------------------------- to canonical


def to_canonical(series: pl.Series, column: Column) -> tuple[pl.Series, Problem | None]:
    """Convert a column, or say which value of it cannot be converted. Always as long as the input."""
    dtype = CANONICAL[column.kind]
    if _is_canonical(series, column.kind):
        return series.alias(column.name), None
    if series.dtype.is_float():
        series = series.fill_nan(None)
    nothing = pl.Series(column.name, [None] * len(series), dtype=dtype)
    if series.null_count() == len(series):
        return nothing, None
    try:
        missing, values = _CONVERT[column.kind](series, column)
    except SchemaError as error:  # a verdict on the column as a whole
        return nothing, error.problems[0]
    values = values.cast(dtype).alias(column.name)
    refused = values.is_null() & missing.not_()
    if refused.any():
        cure = 'To go on, correct or empty the value, or fit again with kind = "categorical" for this column.'
        return values, Problem(column.name, _RULES[column.kind], evidence(series, refused), cure)
    if column.kind is Kind.CONTINUOUS:
        for wrong, rule, cure in (
            (
                values.is_infinite(),
                "numbers must be finite",
                "Remove those rows, or empty the cells if the value is missing.",
            ),
            (
                values.abs() > LARGEST_NUMBER,
                "numbers must stay within 1e30",
                "Such a value usually stands for a missing one: empty those cells.",
            ),
        ):
            if wrong.any():
                return values, Problem(column.name, rule, evidence(series, wrong), cure)
    return values, None


def _is_canonical(series: pl.Series, kind: Kind) -> bool:
    """Whether nothing is to be converted or refused. A look at the bare numbers: most tables are so, and single rows in a hurry."""
    if series.dtype != CANONICAL[kind] or kind is Kind.DATETIME:
        return False
    if kind is not Kind.CONTINUOUS:
        return True
    size = np.abs(series.to_numpy())  # null becomes NaN
    missing = np.isnan(size)
    return np.count_nonzero(missing) == series.null_count() and bool((size[~missing] <= LARGEST_NUMBER).all())


def evidence(series: pl.Series, marked: pl.Series) -> str:
    """The first marked value, its row counted from 1, and how many there are."""
    row = int(marked.arg_max() or 0)
    count = int(marked.sum())
    more = f", {count} of {len(series)} rows" if count > 1 else ""
    shown = repr(series[row])
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    return f"{shown} in row {row + 1}{more}"


def _wrong_type(series: pl.Series, column: Column, cure: str) -> SchemaError:
    return SchemaError([Problem(column.name, _RULES[column.kind], f"type {series.dtype}", cure)])


def _numbers(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    if is_text(series.dtype):
        text = stripped(series)
        missing = text.is_null()
        if (ticks := read_ticks(text, column)) is not None:
            return missing, ticks
        numbers = text.cast(pl.Float64, strict=False).fill_nan(None)
        if column.kind is Kind.INTEGER:  # past 2**53 they would lose digits on the way through floats
            numbers = text.cast(pl.Int64, strict=False).fill_null(_whole(numbers))
        return missing, numbers
    missing = series.is_null()
    if series.dtype in (pl.Time, pl.Duration) and column.dtype.startswith(str(series.dtype.base_type())):
        return missing, _ticks(series)
    if not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
        cure = f"The model was fitted on {column.dtype}: convert the column to it."
        raise _wrong_type(series, column, cure)
    if column.kind is Kind.INTEGER and not series.dtype.is_integer() and series.dtype != pl.Boolean:
        return missing, _whole(series.cast(pl.Float64))
    return missing, series.cast(CANONICAL[column.kind], strict=False)


def _whole(numbers: pl.Series) -> pl.Series:
    """Floats without a fraction as integers, the others null."""
    integers = numbers.cast(pl.Int64, strict=False)
    return integers.set((integers.cast(pl.Float64) != numbers).fill_null(False), None)


def _ticks(series: pl.Series) -> pl.Series:
    """Times of day and durations in microseconds."""
    if series.dtype == pl.Time:
        return series.cast(pl.Int64) // 1_000
    return series.dt.total_microseconds()


def read_ticks(text: pl.Series, column: Column) -> pl.Series | None:
    """Microseconds of times of day and durations written as Python does, null where they are not; None if the column holds neither."""
    if column.dtype == "Time":
        return _ticks(text.str.to_time("%H:%M:%S%.f", strict=False))
    if not column.dtype.startswith("Duration"):
        return None
    found = text.str.extract_groups(r"^(?:(-?\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)$").struct.unnest()
    days, hours, minutes, seconds = (part.cast(pl.Float64) for part in found)
    ticks = ((((days.fill_null(0) * 24 + hours) * 60 + minutes) * 60 + seconds) * 1e6).round()
    return ticks.cast(pl.Int64, strict=False).alias(text.name)


def _categories(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    missing = series.is_null()
    if series.dtype in (pl.Date, pl.Datetime, pl.Time):
        return missing, series.dt.to_string("iso")
    if not (is_text(series.dtype) or series.dtype.is_numeric() or series.dtype == pl.Boolean):
        raise _wrong_type(series, column, "Convert the column to text.")
    if series.dtype.is_float():  # codes with gaps arrive as 1.0 and 2.0, for instance from pandas
        return missing, _whole(series.cast(pl.Float64)).cast(pl.String).fill_null(series.cast(pl.String))
    return missing, series.cast(pl.String)


def _booleans(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    missing = series.is_null()
    if series.dtype == pl.Boolean:
        return missing, series
    if series.dtype.is_numeric():
        text = _whole(series.cast(pl.Float64)).cast(pl.String)
    elif is_text(series.dtype):
        text = series.cast(pl.String).str.strip_chars().str.to_lowercase()
    else:
        raise _wrong_type(series, column, "Convert the column to booleans.")
    return missing, text.replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean)


def _datetimes(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    missing = series.is_null()
    if is_text(series.dtype):
        text = stripped(series)
        return text.is_null(), _read_times(text, column)
    if series.dtype == pl.Date:
        return missing, series.cast(pl.Datetime("us"))
    if not isinstance(series.dtype, pl.Datetime):
        raise _wrong_type(series, column, "Convert the column to dates or timestamps.")
    _check_zone(series.dtype.time_zone is not None, column, str(series.dtype))
    if series.dtype.time_zone is not None:
        series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return missing, series.cast(pl.Datetime("us"))


def _check_zone(zoned: bool, column: Column, found: str) -> None:
    """A time with a zone is an instant, one without a clock reading: mixing them would shift hours."""
    dtype = parse_dtype(column.dtype)
    if isinstance(dtype, pl.Datetime):
        expected = dtype.time_zone is not None
    elif column.time_format is not None:
        expected = column.time_format.endswith(("z", "Z"))
    elif dtype == pl.Date:
        expected = False
    else:  # text in no single form may hold either
        return
    if zoned == expected:
        return
    kind, cure = ("with", "replace_time_zone(...)") if expected else ("without", "replace_time_zone(None)")
    rule = f"the model was fitted on times {kind} a time zone"
    raise SchemaError([Problem(column.name, rule, found, f"Use dt.{cure} first.")])


def _read_times(text: pl.Series, column: Column) -> pl.Series:
    """Dates kept as text, in the format of training or else in any ISO form."""
    iso = [pattern for pattern in TIME_FORMATS if pattern.startswith(("%Y-%m-%d", "%Y/"))]
    own = [column.time_format] if column.time_format else []
    result = pl.Series(column.name, [None] * len(text), dtype=pl.Datetime("us"))
    for pattern in own + iso:
        if result.null_count() == text.null_count():
            break
        parsed = parse_times(text, pattern)
        if parsed.null_count() < len(parsed):
            _check_zone(pattern.endswith(("z", "Z")), column, f"{text.filter(parsed.is_not_null())[0]!r}")
            result = result.fill_null(parsed)
    return result


_CONVERT = {
    Kind.CONTINUOUS: _numbers,
    Kind.INTEGER: _numbers,
    Kind.CATEGORICAL: _categories,
    Kind.BOOLEAN: _booleans,
    Kind.DATETIME: _datetimes,
}


# ------------------------------------------------------------------------------------------------------ back


def restore(series: pl.Series, column: Column) -> pl.Series:
    """One column in its original type; a canonical value that cannot be written so becomes null."""
    dtype = parse_dtype(column.dtype)
    rounded = column.canonical and column.kind in (Kind.CONTINUOUS, Kind.DATETIME)
    if dtype is None or (series.dtype == dtype and not rounded):
        return series
    if series.null_count() == len(series):
        written = pl.Series(column.name, [None] * len(series), dtype=dtype)
    elif not column.canonical:
        return _restore_carried(series, dtype)
    elif column.kind is Kind.DATETIME:
        written = _restore_times(series, column, dtype)
    elif column.kind in NUMBERS:
        written = _restore_numbers(series, column, dtype)
    elif column.kind is Kind.BOOLEAN and is_text(dtype):
        texts = series.replace_strict([False, True], list(column.categories), return_dtype=pl.String)
        written = texts.cast(dtype)
    elif column.kind is Kind.CATEGORICAL and dtype in (pl.Date, pl.Datetime, pl.Time, pl.Boolean):
        written = _restore_odd_categories(series, dtype)
    else:
        written = series.cast(dtype, strict=False)
    return written if column.null_text is None else written.fill_null(column.null_text)


def _restore_carried(series: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Values that nobody converted keep the type they came in if the one of training cannot hold them."""
    try:
        return series.cast(dtype)
    except pl.exceptions.InvalidOperationError:
        return series


def _restore_odd_categories(series: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Dates, times and booleans that an override made categorical."""
    if dtype == pl.Boolean:
        return series.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
    if dtype == pl.Time:
        return series.str.to_time("%H:%M:%S%.f", strict=False)
    if dtype == pl.Date:
        return series.str.to_date("%Y-%m-%d", strict=False)
    zone = getattr(dtype, "time_zone", None)
    pattern = "%Y-%m-%d %H:%M:%S%.f" + ("%:z" if zone else "")
    times = series.str.to_datetime(pattern, time_unit="ns", strict=False)
    return times.dt.convert_time_zone(zone).cast(dtype) if zone else times.cast(dtype)


def _restore_times(series: pl.Series, column: Column, dtype: pl.DataType) -> pl.Series:
    times = _to_grid(series.cast(pl.Datetime("us")).cast(pl.Int64), column.resolution).cast(pl.Datetime("us"))
    if is_text(dtype):
        return write_times(times, column.time_format or "%Y-%m-%dT%H:%M:%S%.f").cast(dtype, strict=False)
    zone = getattr(dtype, "time_zone", None)
    if zone is not None:
        times = times.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    return times.cast(dtype)


def _to_grid(ticks: pl.Series, step: int | None) -> pl.Series:
    return ticks if step is None or step == 1 else (ticks + step // 2) // step * step


def _restore_numbers(series: pl.Series, column: Column, dtype: pl.DataType) -> pl.Series:
    if column.kind is Kind.CONTINUOUS and column.decimals is not None:
        series = series.cast(pl.Float64).round(column.decimals)
    whole = column.kind is Kind.INTEGER or dtype in (pl.Time, pl.Duration) or dtype.is_integer()
    if whole and series.dtype.is_float():
        series = series.round(0).cast(pl.Int64, strict=False)
    if is_text(dtype):
        return _number_text(series, column).cast(dtype, strict=False)
    if dtype == pl.Time:
        return (_to_grid(series, column.resolution).clip(0, _TIMES_OF_DAY_END) * 1_000).cast(pl.Time)
    if isinstance(dtype, pl.Duration):
        return _to_grid(series, column.resolution).cast(pl.Duration("us")).cast(dtype)
    if dtype.is_decimal():
        limit = 10.0 ** (dtype.precision - dtype.scale) - 10.0**-dtype.scale  # type: ignore[attr-defined]
        return series.cast(pl.Float64).clip(-limit, limit).cast(dtype)
    if dtype.is_integer():
        bounds = pl.select(low=dtype.min(), high=dtype.max()).row(0)  # type: ignore[attr-defined]
        series = series.clip(max(bounds[0], -(2**63)), min(bounds[1], 2**63 - 1))
    return series.cast(dtype)


def _number_text(numbers: pl.Series, column: Column) -> pl.Series:
    if column.kind is Kind.CONTINUOUS and column.fixed_decimals:
        fitting = numbers.clip(-1e28, 1e28)  # with nine decimals, 38 digits hold no more
        return fitting.cast(pl.Decimal(38, column.decimals or 0)).cast(pl.String)
    return numbers.cast(pl.String).str.replace(r"\.0$", "")
