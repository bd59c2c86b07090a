"""What the columns of a table are: inferred once, checked on every later table, and undone on the way out.

`Schema.infer` looks at a training table and refuses a bad one. `Schema.conform` brings any later table into
canonical types, and `Schema.restore` gives canonical columns back in the types and text forms of training:

    kind         canonical type       comes from
    continuous   Float64              floats, decimals, numbers kept as text
    integer      Int64                integers, times of day and durations (in microseconds)
    categorical  String               text, Categorical, Enum, integers with at most two values
    boolean      Boolean              booleans
    datetime     Datetime("us"), UTC  dates, timestamps, dates kept as text
    text         as it came           identifiers and free text: carried through, never modelled

`infer` and `conform` share one conversion, so a column means the same in training and in scoring.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import polars as pl

from tabdiff.errors import BundleError, ConfigError, Problem, SchemaError, TabdiffWarning

Overrides = Mapping[str, Mapping[str, str]]

TABLE = "(whole table)"  # stands for the column in problems that are of no single column
MIN_ROWS = 2
MAX_CATEGORIES = 10_000
LARGEST_NUMBER = 1e30  # beyond it a value is a marker for "missing", not a measurement
LARGEST_INTEGER = 2**53  # beyond it float64 cannot tell neighbours apart
MAX_DECIMALS = 9
# What stands for a missing value in numbers and dates kept as text, in any case.
BLANKS = ("", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-", ".")

# The coarsest grid that all times of a column sit on, in microseconds: day, hour, minute, second, ms, us.
RESOLUTIONS = (86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000, 1_000, 1)
_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y")
_CLOCKS = ("%H:%M:%S", "%H:%M", "%H:%M:%S%.f")
TIME_FORMATS = (
    *_DAYS,
    *(f"%Y-%m-%d{gap}{clock}{zone}" for zone in ("", "Z", "%:z") for gap in "T " for clock in _CLOCKS),
    *(f"{day} {clock}" for day in _DAYS[1:] for clock in _CLOCKS),
)
_ID_WORDS = {"id", "ids", "key", "uuid", "guid", "number", "index", "idx", "rowid"}
_TRUE, _FALSE = ["true", "t", "yes", "y", "1"], ["false", "f", "no", "n", "0"]
_TIMES_OF_DAY_END = 86_400_000_000 - 1


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


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in order."""

    columns: tuple[Column, ...]

    @classmethod
    def infer(cls, frame: Any, *, overrides: Overrides | None = None) -> Schema:
        """Find kinds and roles from a training table of at least two rows.

        Args:
            frame: a polars, pandas or Arrow table.
            overrides: ``{"age": {"kind": "integer", "role": "feature"}}``; `read_overrides` reads a file.

        The rules, where the type alone does not decide:

        - Integers stay numbers, whatever their range, unless 20 or more rows hold exactly two values: a coded
          yes/no becomes categorical. Three or more codes need an override, as counts look the same.
        - Integers are an id if they are a gapless run without repeats, in any order, of 20 rows or more (10
          if in order), or if none repeats and the name has a word such as id, key or index.
        - Text is a number or a date if every value that is not blank reads as one. ``007`` is a code, not a
          number, and so are integers as text with at most 20 values that repeat five times on average.
        - Other text is categorical, unless more than 50 values make up over half of the rows.

        Raises:
            SchemaError: the table cannot be trained on; lists every problem.
            ConfigError: an override names no column, or no kind or role.
        """
        table = _to_polars(frame)
        checked = _check_overrides(overrides or {}, table.columns)
        if table.height < MIN_ROWS:
            raise _table_problem(
                "a training table needs at least 2 rows",
                f"{table.height} rows",
                "Add rows, or check the filter.",
            )
        columns, problems = [], []
        for series in table:
            column = _guess(series, checked.get(series.name, {}))
            if column.canonical:
                column, problem = _measure(series, column)
                problems += [problem] if problem else []
            columns.append(column)
        if not problems and not any(column.modelled for column in columns):
            found = ", ".join(f"{column.name} ({column.kind}, {column.role})" for column in columns)
            cure = (
                'Add a number, category or date column, or set role = "feature" and a kind in the overrides.'
            )
            raise _table_problem("nothing is left to model", found, cure)
        if problems:
            raise SchemaError(problems)
        return cls(tuple(columns))

    @property
    def modelled(self) -> tuple[Column, ...]:
        """The columns that the model learns, in order."""
        return tuple(column for column in self.columns if column.modelled)

    def __getitem__(self, name: str) -> Column:
        """The column of that name; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def conform(self, frame: Any) -> pl.DataFrame:
        """Bring a table into canonical types and schema order, or say all that is wrong with it.

        Columns that are not modelled may be missing. Unknown categories and missing values are accepted: the
        codec treats them as never seen.

        Raises:
            SchemaError: a modelled column is missing, or a value cannot be converted safely.
        """
        table = _to_polars(frame)
        if table.height == 0:
            raise _table_problem("there must be rows to work on", "0 rows", "Check the file or the filter.")
        known = {column.name for column in self.columns}
        if extra := [name for name in table.columns if name not in known]:
            warnings.warn(f"columns not in the schema were dropped: {extra}", TabdiffWarning, stacklevel=2)
        result, problems = [], []
        for column in self.columns:
            if column.name not in table.columns:
                if column.modelled:
                    problems.append(_missing(column, extra))
            elif column.canonical:
                values, problem = _to_canonical(table[column.name], column)
                result.append(values)
                problems += [problem] if problem else []
            else:
                result.append(table[column.name])
        if problems:
            raise SchemaError(problems)
        return pl.DataFrame(result)

    def restore(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Give canonical columns their original types and text forms back, in schema order.

        The inverse of `conform` for the columns present. Integers are clipped to the range of their type,
        numbers rounded to the decimals of training, times to its grid. Columns empty in training come back.
        """
        result = []
        for column in self.columns:
            if column.name in frame.columns:
                result.append(_restore(frame[column.name], column).alias(column.name))
            elif column.empty and (dtype := _parse_dtype(column.dtype)) is not None:
                result.append(pl.Series(column.name, [None] * frame.height, dtype=dtype))
        return pl.DataFrame(result)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {
            "columns": [{**asdict(column), "categories": list(column.categories)} for column in self.columns]
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Schema:
        """Rebuild from `to_json`."""
        try:
            return cls(
                tuple(
                    Column(
                        **{
                            **column,
                            "kind": Kind(column["kind"]),
                            "role": Role(column["role"]),
                            "categories": tuple(column["categories"]),
                        }
                    )
                    for column in values["columns"]
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the stored schema cannot be read: {error!r}. Fit and save the model again."
            ) from error


def read_overrides(path: Path) -> dict[str, dict[str, str]]:
    """Read ``[columns.age]`` tables with ``kind`` and ``role`` from a TOML file."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: the overrides must be a TOML file; {error}.") from error
    columns = values.get("columns")
    if set(values) != {"columns"} or not isinstance(columns, dict):
        raise ConfigError(
            f"{path}: overrides are tables named [columns.NAME]; found {sorted(values)}. "
            'Write for instance [columns.age] and, below it, kind = "integer".'
        )
    _check_overrides(columns, None)
    return {name: dict(options) for name, options in columns.items()}


def _check_overrides(overrides: Overrides, names: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """Refuse unknown columns (where ``names`` is given), options, kinds and roles."""
    allowed: dict[str, list[str]] = {"kind": [*Kind], "role": [*Role]}
    roles = Counter[str]()
    for name, options in overrides.items():
        if names is not None and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The columns are {list(names)}."
            raise ConfigError(f"overrides: there is no column {name!r}. {hint}")
        if not isinstance(options, Mapping):
            raise ConfigError(
                f'overrides: column {name!r} needs kind = "..." or role = "..."; found {options!r}.'
            )
        for option, value in options.items():
            if option not in allowed:
                raise ConfigError(f"overrides: column {name!r} has option {option!r}. Use 'kind' or 'role'.")
            if value not in allowed[option]:
                choices = ", ".join(allowed[option])
                raise ConfigError(
                    f"overrides: column {name!r} has {option} = {value!r}. Use one of {choices}."
                )
        roles[options.get("role", "")] += 1
    for role in (Role.TIME, Role.ENTITY, Role.LABEL):
        if roles[role] > 1:
            raise ConfigError(f"overrides: {roles[role]} columns have role = {role.value!r}. Keep one.")
    return {name: dict(options) for name, options in overrides.items()}


# ---------------------------------------------------------------------------------------------------- intake


def _table_problem(rule: str, evidence: str, cure: str) -> SchemaError:
    return SchemaError([Problem(TABLE, rule, evidence, cure)])


def _missing(column: Column, extra: Sequence[str]) -> Problem:
    near = difflib.get_close_matches(column.name, extra, n=1, cutoff=0.5)
    cure = f"Rename {near[0]!r}." if near else "Add the column, with empty values if they are not known."
    return Problem(column.name, "the model was fitted with this column", "no such column", cure)


def _to_polars(frame: Any) -> pl.DataFrame:
    """Take polars, pandas, Arrow and whatever else exports Arrow."""
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if not isinstance(frame, pl.DataFrame):
        frame = _foreign_to_polars(frame)
    if frame.width == 0:
        raise _table_problem("a table needs columns", "0 columns", "Check how the table was read.")
    table: pl.DataFrame = frame
    return table


def _foreign_to_polars(frame: Any) -> pl.DataFrame:
    names = getattr(frame, "column_names", None)
    if names is None:
        names = list(getattr(frame, "columns", ()))
    counts = Counter(str(name) for name in names)
    if repeated := [
        Problem(name, "column names must differ", f"the name {count} times", "Rename or drop the repeats.")
        for name, count in counts.items()
        if count > 1
    ]:
        raise SchemaError(repeated)
    if getattr(getattr(frame, "index", None), "name", None) is not None:
        message = (
            f"the index {frame.index.name!r} is not a column and was dropped; use reset_index() to keep it"
        )
        warnings.warn(message, TabdiffWarning, stacklevel=4)
    try:
        return pl.DataFrame(frame)
    except Exception as error:  # the reason depends on the library the table comes from
        problems = []
        for name in names if hasattr(frame, "__getitem__") else ():
            try:
                pl.Series(str(name), frame[name])
            except Exception as reason:
                cure = "Give the column one type, for instance with astype(str)."
                problems.append(Problem(str(name), "a column must hold one type", f"{reason}", cure))
        if problems:
            raise SchemaError(problems) from error
        found = f"{type(frame).__module__}.{type(frame).__name__} ({error})"
        cure = "Pass a polars or pandas DataFrame, or a pyarrow Table."
        raise _table_problem("a table must be polars, pandas or Arrow", found, cure) from error


# ------------------------------------------------------------------------------------------------- inference


def _guess(series: pl.Series, override: Mapping[str, str]) -> Column:
    """Kind and role of a column, before its values are measured."""
    name, dtype = series.name, _write_dtype(series.dtype)
    role = Role(override["role"]) if "role" in override else None
    if series.dtype.is_float():
        series = series.fill_nan(None)
    if series.null_count() == len(series):
        kind = _plain_kind(series.dtype)
        return Column(
            name, Kind(override.get("kind", kind)), role or Role.IGNORE, dtype, nullable=True, empty=True
        )
    found, found_role, details = _kind_of(
        series, wanted=role in (Role.FEATURE, Role.TARGET) or "kind" in override
    )
    kind = Kind(override.get("kind", found))
    if role in (Role.ID, Role.ENTITY) and "kind" not in override:
        kind = Kind.TEXT
    if kind != found and kind not in (Kind.CONTINUOUS, Kind.INTEGER, Kind.DATETIME):
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
        distinct = series.drop_nulls().n_unique()
        if not wanted and _is_identifier(series, distinct):
            return Kind.TEXT, Role.ID, {}
        # Two codes are a yes/no. More levels may be counts, which the codec turns into atoms anyway.
        return (Kind.CATEGORICAL if distinct == 2 and len(series) >= 20 else kind), Role.FEATURE, {}
    if series.dtype == pl.String:
        return _kind_of_text(series, wanted=wanted)
    if kind is Kind.TEXT:
        message = f"column {series.name!r} of type {series.dtype} cannot be modelled and is ignored"
        warnings.warn(message, TabdiffWarning, stacklevel=5)
        return kind, Role.IGNORE, {}
    return kind, Role.FEATURE, {}


def _is_identifier(series: pl.Series, distinct: int) -> bool:
    """Integers that number the rows, or that never repeat under a name such as PassengerId."""
    values = series.drop_nulls().cast(pl.Int128)
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
        integers = _stripped(series).cast(pl.Int64, strict=False) if kind is Kind.INTEGER else None
        if integers is not None and not wanted and _is_identifier(integers, integers.n_unique()):
            return Kind.TEXT, Role.ID, {}
        if integers is None or distinct > min(20, len(text) / 5):
            return kind, Role.FEATURE, details
    long = (text.str.len_chars().mean() or 0) > 80  # type: ignore[operator]
    if not wanted and distinct > 50 and (distinct > 0.5 * len(text) or long):
        is_id = unique and not text.str.contains(r"\s").any()
        return Kind.TEXT, Role.ID if is_id else Role.IGNORE, {}
    return Kind.CATEGORICAL, Role.FEATURE, {}


def _stripped(text: pl.Series) -> pl.Series:
    """Text without outer spaces, blanks as null."""
    text = text.cast(pl.String).str.strip_chars()
    return text.set(text.str.to_lowercase().is_in(list(BLANKS)).fill_null(False), None)


def _null_text(series: pl.Series, stripped: pl.Series) -> str | None:
    """The most frequent way in which a text column writes a missing value; None if that is null."""
    blanks = series.filter(stripped.is_null()).to_list()
    return Counter(blanks).most_common(1)[0][0] if blanks else None


def _numbers_in_text(series: pl.Series) -> tuple[Kind, dict[str, Any]] | None:
    text = _stripped(series)
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
    text = _stripped(series)
    present = text.drop_nulls()
    head = present.head(50)
    fitting = []
    for pattern in TIME_FORMATS if present.len() else ():
        if _parse_times(head, pattern).null_count() < 0.1 * len(head):
            unread = _parse_times(present, pattern).is_null()
            if not unread.any():
                fitting.append(pattern)
            else:
                _warn_if_nearly(present, unread, f"a date like {pattern}", series.name)
    if not fitting:
        return None
    if {"%d/%m/%Y", "%m/%d/%Y"} <= {pattern.split(" ")[0] for pattern in fitting}:
        message = (
            f"column {series.name!r}: dates such as {present[0]!r} are read as day/month; write YYYY-MM-DD"
        )
        warnings.warn(message, TabdiffWarning, stacklevel=7)
    # Prefer the form that writes every value back as it was.
    exact = [
        pattern
        for pattern in fitting
        if _write_times(_parse_times(present, pattern), pattern).equals(present)
    ]
    return Kind.DATETIME, {"time_format": (exact or fitting)[0], "null_text": _null_text(series, text)}


def _warn_if_nearly(present: pl.Series, unread: pl.Series, what: str, name: str) -> None:
    """Say so when a few odd values keep a column from being read as numbers or dates."""
    if 0 < unread.sum() <= 0.05 * len(unread):
        examples = present.filter(unread).unique(maintain_order=True).head(3).to_list()
        message = (
            f"column {name!r} is kept as text, as {unread.sum()} of {len(unread)} values are not {what}: "
            f"{examples}; empty those cells to have it modelled as such"
        )
        warnings.warn(message, TabdiffWarning, stacklevel=8)


def _measure(series: pl.Series, column: Column) -> tuple[Column, Problem | None]:
    """Fill in the statistics of a column."""
    from_text = series.dtype in (pl.String, pl.Categorical, pl.Enum)
    if from_text and column.kind in (Kind.CONTINUOUS, Kind.INTEGER) and not column.text_number:
        column = replace(column, text_number=True, null_text=_null_text(series, _stripped(series)))
    values, problem = _to_canonical(series, column)
    present = values.drop_nulls()
    if problem is None and column.kind is Kind.INTEGER and _too_large(present):
        row = int((values.abs() > LARGEST_INTEGER).arg_max() or 0)
        cure = 'Set kind = "text" if it is an identifier, else store the numbers in a coarser unit.'
        problem = Problem(
            column.name, "integers must stay within 2**53", f"{values[row]} in row {row + 1}", cure
        )
    changes: dict[str, Any] = {"nullable": values.null_count() > 0}
    if column.kind in (Kind.CONTINUOUS, Kind.INTEGER) and len(present):
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
    ticks = (
        present.cast(pl.Int64)
        if column.kind is Kind.DATETIME or series.dtype in (pl.Time, pl.Duration)
        else None
    )
    if ticks is not None and len(ticks):
        changes["resolution"] = next(step for step in RESOLUTIONS if (ticks % step == 0).all())
        changes |= {"minimum": ticks.min(), "maximum": ticks.max()}
    return replace(column, **changes), problem


def _decimals(series: pl.Series, values: pl.Series) -> int | None:
    # Compare in the original precision: the nearest float32 to 0.1 is a multiple of 0.1 only as a float32.
    dtype = series.dtype if series.dtype.is_float() else pl.Float64()
    original = values.cast(dtype)
    for digits in range(MAX_DECIMALS + 1):
        if (values.round(digits).cast(dtype) == original).all():
            return digits
    return None


# -------------------------------------------------------------------------------------- to canonical and back


@dataclass(frozen=True)
class _Unfit(Exception):  # noqa: N818 - a verdict on a column, turned into a Problem
    """A whole column cannot be converted."""

    rule: str
    evidence: str
    cure: str


_AS_CATEGORY = 'correct or empty the value, or fit again with kind = "categorical" for this column'
_RULES = {
    Kind.CONTINUOUS: "must be a number",
    Kind.INTEGER: "must be a whole number",
    Kind.BOOLEAN: "must be true or false (0 or 1)",
    Kind.DATETIME: "must be a date or a time",
    Kind.CATEGORICAL: "must be a category",
}


def _to_canonical(series: pl.Series, column: Column) -> tuple[pl.Series, Problem | None]:
    """Convert a column, or say which value of it cannot be converted. Always as long as the input."""
    dtype = _CANONICAL[column.kind]
    if series.dtype.is_float():
        series = series.fill_nan(None)
    nothing = pl.Series(column.name, [None] * len(series), dtype=dtype)
    if series.null_count() == len(series):
        return nothing, None
    try:
        missing, values = _CONVERT[column.kind](series, column)
    except _Unfit as unfit:
        return nothing, Problem(column.name, unfit.rule, unfit.evidence, unfit.cure)
    values = values.cast(dtype).alias(column.name)
    refused = values.is_null() & missing.not_()
    if refused.any():
        cure = f"To go on, {_AS_CATEGORY}."
        return values, Problem(column.name, _RULES[column.kind], _evidence(series, refused), cure)
    if column.kind in (Kind.CONTINUOUS, Kind.INTEGER):
        infinite = values.is_infinite().fill_null(False) if column.kind is Kind.CONTINUOUS else None
        if infinite is not None and infinite.any():
            cure = "Remove those rows, or empty the cells if the value is missing."
            return values, Problem(column.name, "numbers must be finite", _evidence(series, infinite), cure)
        huge = (values.cast(pl.Float64).abs() > LARGEST_NUMBER).fill_null(False)
        if huge.any():
            cure = "Such a value usually stands for a missing one: empty those cells."
            return values, Problem(
                column.name, "numbers must stay within 1e30", _evidence(series, huge), cure
            )
    return values, None


def _evidence(series: pl.Series, marked: pl.Series) -> str:
    """The first marked value, its row counted from 1, and how many there are."""
    row = int(marked.arg_max() or 0)
    count = int(marked.sum())
    more = f", {count} of {len(series)} rows" if count > 1 else ""
    return f"{series[row]!r} in row {row + 1}{more}"


def _is_text(series: pl.Series) -> bool:
    return series.dtype in (pl.String, pl.Categorical, pl.Enum)


def _wrong_type(series: pl.Series, column: Column, advice: str) -> _Unfit:
    return _Unfit(_RULES[column.kind], f"type {series.dtype}", advice)


def _numbers(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    wanted = _CANONICAL[column.kind]
    if _is_text(series):
        text = _stripped(series)
        missing = text.is_null()
        numbers = text.cast(pl.Float64, strict=False).fill_nan(None)
        if (
            column.kind is Kind.INTEGER
        ):  # whole numbers past 2**53 would lose digits on the way through floats
            numbers = text.cast(pl.Int64, strict=False).fill_null(_whole(numbers))
        return missing, numbers
    missing = series.is_null()
    if series.dtype in (pl.Time, pl.Duration) and column.dtype.startswith(str(series.dtype.base_type())):
        return missing, _ticks(series)
    if not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
        raise _wrong_type(
            series, column, f"The model was fitted on {column.dtype}: convert the column to it."
        )
    if column.kind is Kind.INTEGER and not series.dtype.is_integer() and series.dtype != pl.Boolean:
        return missing, _whole(series.cast(pl.Float64))
    return missing, series.cast(wanted, strict=False)


def _whole(numbers: pl.Series) -> pl.Series:
    """Floats without a fraction as integers, the others null."""
    integers = numbers.cast(pl.Int64, strict=False)
    return integers.set((integers.cast(pl.Float64) != numbers).fill_null(False), None)


def _ticks(series: pl.Series) -> pl.Series:
    """Times of day and durations in microseconds."""
    if series.dtype == pl.Time:
        return series.cast(pl.Int64) // 1_000
    return series.dt.total_microseconds()


def _categories(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    missing = series.is_null()
    if series.dtype in (pl.List, pl.Array, pl.Struct, pl.Binary, pl.Object):
        raise _wrong_type(series, column, "Convert the column to text.")
    if series.dtype in (pl.Date, pl.Datetime, pl.Time):
        return missing, series.dt.to_string("iso")
    if series.dtype.is_float():  # codes with gaps arrive as 1.0 and 2.0, for instance from pandas
        return missing, _whole(series.cast(pl.Float64)).cast(pl.String).fill_null(series.cast(pl.String))
    return missing, series.cast(pl.String)


def _booleans(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    missing = series.is_null()
    if series.dtype == pl.Boolean:
        return missing, series
    if series.dtype.is_numeric():
        text = _whole(series.cast(pl.Float64)).cast(pl.String)
    elif _is_text(series):
        text = series.cast(pl.String).str.strip_chars().str.to_lowercase()
    else:
        raise _wrong_type(series, column, "Convert the column to booleans.")
    truth = dict.fromkeys(_TRUE, True) | dict.fromkeys(_FALSE, False)
    return missing, text.replace_strict(truth, default=None, return_dtype=pl.Boolean)


def _datetimes(series: pl.Series, column: Column) -> tuple[pl.Series, pl.Series]:
    missing = series.is_null()
    if _is_text(series):
        text = _stripped(series)
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
    text_format = column.time_format or ""
    expected = "," in column.dtype or text_format.endswith(("z", "Z"))
    if zoned == expected or (column.dtype == "String" and not column.time_format):
        return
    kind, cure = ("with", "replace_time_zone(...)") if expected else ("without", "replace_time_zone(None)")
    raise _Unfit(f"the model was fitted on times {kind} a time zone", found, f"Use dt.{cure} first.")


def _read_times(text: pl.Series, column: Column) -> pl.Series:
    """Dates kept as text, in the format of training or else in any ISO form."""
    iso = [pattern for pattern in TIME_FORMATS if pattern.startswith(("%Y-%m-%d", "%Y/"))]
    own = [column.time_format] if column.time_format else []
    result = pl.Series(column.name, [None] * len(text), dtype=pl.Datetime("us"))
    for pattern in own + iso:
        if result.null_count() == text.null_count():
            break
        parsed = _parse_times(text, pattern)
        if parsed.null_count() < len(parsed):
            _check_zone(pattern.endswith(("z", "Z")), column, f"{text.filter(parsed.is_not_null())[0]!r}")
            result = result.fill_null(parsed)
    return result


def _parse_times(text: pl.Series, pattern: str) -> pl.Series:
    """Naive UTC times, null where the text has another form or a year before 1000 (two digits in truth)."""
    times = text.str.to_datetime(pattern, time_unit="us", strict=False, ambiguous="null")
    if times.dtype.time_zone is not None:  # type: ignore[attr-defined]
        times = times.dt.replace_time_zone(None)
    return times.set((times.dt.year() < 1000).fill_null(False), None)


def _write_times(times: pl.Series, pattern: str) -> pl.Series:
    return (times.dt.replace_time_zone("UTC") if pattern.endswith("%:z") else times).dt.to_string(pattern)


def _restore(series: pl.Series, column: Column) -> pl.Series:
    """One canonical column in its original type; anything that cannot be written so becomes null."""
    dtype = _parse_dtype(column.dtype)
    if dtype is None or series.dtype == dtype:
        canonical = column.canonical and (column.kind is Kind.DATETIME or column.kind is Kind.CONTINUOUS)
        if dtype is None or not canonical:
            return series
    if series.null_count() == len(series):
        written = pl.Series(column.name, [None] * len(series), dtype=dtype)
    elif not column.canonical:
        return series.cast(dtype, strict=False)
    elif column.kind is Kind.DATETIME:
        written = _restore_times(series, column, dtype)
    elif column.kind in (Kind.CONTINUOUS, Kind.INTEGER):
        written = _restore_numbers(series, column, dtype)
    elif column.kind is Kind.BOOLEAN and dtype in (pl.String, pl.Categorical, pl.Enum):
        written = series.replace_strict([False, True], list(column.categories), return_dtype=pl.String).cast(
            dtype
        )
    elif column.kind is Kind.CATEGORICAL and dtype in (pl.Date, pl.Datetime, pl.Time, pl.Boolean):
        written = _restore_odd_categories(series, dtype)
    else:
        written = series.cast(dtype, strict=False)
    return written if column.null_text is None else written.fill_null(column.null_text)


def _restore_odd_categories(series: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Dates, times and booleans that an override made categorical."""
    if dtype == pl.Boolean:
        return series.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
    if dtype == pl.Time:
        return series.str.to_time("%H:%M:%S%.f", strict=False)
    if dtype == pl.Date:
        return series.str.to_date("%Y-%m-%d", strict=False)
    zone = getattr(dtype, "time_zone", None)
    times = series.str.to_datetime(
        "%Y-%m-%d %H:%M:%S%.f" + ("%:z" if zone else ""), time_unit="ns", strict=False
    )
    return times.dt.convert_time_zone(zone).cast(dtype) if zone else times.cast(dtype)


def _restore_times(series: pl.Series, column: Column, dtype: pl.DataType) -> pl.Series:
    times = _to_grid(series.cast(pl.Datetime("us")).cast(pl.Int64), column.resolution).cast(pl.Datetime("us"))
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return _write_times(times, column.time_format or "%Y-%m-%dT%H:%M:%S%.f").cast(dtype, strict=False)
    zone = getattr(dtype, "time_zone", None)
    if zone is not None:
        times = times.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    return times.cast(dtype)


def _to_grid(ticks: pl.Series, step: int | None) -> pl.Series:
    return ticks if step is None or step == 1 else (ticks + step // 2) // step * step


def _restore_numbers(series: pl.Series, column: Column, dtype: pl.DataType) -> pl.Series:
    if column.kind is Kind.CONTINUOUS and column.decimals is not None:
        series = series.cast(pl.Float64).round(column.decimals)
    if column.kind is Kind.INTEGER and series.dtype.is_float():
        series = series.round(0).cast(pl.Int64, strict=False)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return _number_text(series, column).cast(dtype, strict=False)
    if dtype == pl.Time:
        return (_to_grid(series, column.resolution).clip(0, _TIMES_OF_DAY_END) * 1_000).cast(pl.Time)
    if isinstance(dtype, pl.Duration):
        return _to_grid(series, column.resolution).cast(pl.Duration("us")).cast(dtype)
    if dtype.is_decimal():
        limit = 10.0 ** (dtype.precision - dtype.scale) - 10.0**-dtype.scale  # type: ignore[attr-defined]
        return series.cast(pl.Float64).clip(-limit, limit).cast(dtype)
    if dtype.is_integer():
        if series.dtype.is_float():
            series = series.round(0).cast(pl.Int64, strict=False)
        bounds = pl.select(low=dtype.min(), high=dtype.max()).row(0)  # type: ignore[attr-defined]
        series = series.clip(max(bounds[0], -(2**63)), min(bounds[1], 2**63 - 1))
    return series.cast(dtype)


def _number_text(numbers: pl.Series, column: Column) -> pl.Series:
    if column.kind is Kind.CONTINUOUS and column.fixed_decimals:
        return numbers.cast(pl.Decimal(38, column.decimals or 0)).cast(pl.String)
    return numbers.cast(pl.String).str.replace(r"\.0$", "")


_CANONICAL: dict[Kind, pl.DataType] = {
    Kind.CONTINUOUS: pl.Float64(),
    Kind.INTEGER: pl.Int64(),
    Kind.CATEGORICAL: pl.String(),
    Kind.BOOLEAN: pl.Boolean(),
    Kind.DATETIME: pl.Datetime("us"),
}
_CONVERT = {
    Kind.CONTINUOUS: _numbers,
    Kind.INTEGER: _numbers,
    Kind.CATEGORICAL: _categories,
    Kind.BOOLEAN: _booleans,
    Kind.DATETIME: _datetimes,
}


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


def _write_dtype(dtype: pl.DataType) -> str:
    """A type as text that `_parse_dtype` reads."""
    if isinstance(dtype, pl.Datetime):
        return f"Datetime({dtype.time_unit}{', ' + dtype.time_zone if dtype.time_zone else ''})"
    if isinstance(dtype, pl.Duration):
        return f"Duration({dtype.time_unit})"
    if isinstance(dtype, pl.Decimal):
        return f"Decimal({dtype.precision}, {dtype.scale})"
    if isinstance(dtype, pl.Enum):
        return f"Enum({json.dumps(dtype.categories.to_list(), ensure_ascii=False)})"
    return str(dtype)


def _parse_dtype(text: str) -> pl.DataType | None:
    """The type that `_write_dtype` wrote; None for nested and foreign types."""
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
