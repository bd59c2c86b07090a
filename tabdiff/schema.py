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
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow

from tabdiff.columns import Column, Kind, Role, parse_dtype
from tabdiff.conversion import restore, to_canonical
from tabdiff.errors import TABLE, BundleError, ConfigError, Problem, SchemaError, warn
from tabdiff.inference import guess, measure

__all__ = ["Column", "Kind", "Role", "Schema", "read_overrides"]

Overrides = Mapping[str, Mapping[str, str]]

MIN_ROWS = 2
_NAMELESS = Problem("", "a column that is modelled needs a name", "none", 'Name it, or set role = "ignore" for "".')


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
        table = to_polars(frame)
        checked = _check_overrides(overrides or {}, table.columns)
        if table.height < MIN_ROWS:
            rule = f"a training table needs at least {MIN_ROWS} rows"
            raise _table_problem(rule, f"{table.height} rows", "Add rows, or check the filter.")
        columns, problems = [], []
        for series in table:
            column = guess(series, checked.get(series.name, {}))
            if column.modelled and not series.name:  # an index that a spreadsheet or pandas wrote, as a rule
                problems.append(_NAMELESS)
            elif column.canonical:
                column, problem = measure(series, column)
                problems += [problem] if problem else []
            columns.append(column)
        if not problems and not any(column.modelled for column in columns):
            found = ", ".join(f"{column.name} ({column.kind}, {column.role})" for column in columns)
            cure = 'Add a column of numbers, categories or dates, or override kind and role = "feature".'
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
        table = to_polars(frame)
        if table.height == 0:
            raise _table_problem("there must be rows to work on", "0 rows", "Check the file or the filter.")
        known = {column.name for column in self.columns}
        if extra := [name for name in table.columns if name not in known]:
            warn(f"columns not in the schema were dropped: {extra}")
        result, problems = [], []
        for column in self.columns:
            if column.name not in table.columns:
                if column.modelled:
                    problems.append(_missing(column, extra, known))
            elif column.canonical:
                values, problem = to_canonical(table[column.name], column)
                result.append(values)
                problems += [problem] if problem else []
            else:
                result.append(table[column.name])
        if problems:
            raise SchemaError(problems)
        return pl.DataFrame({values.name: values for values in result})  # a list would rename a column without a name

    def without_known_anomalies(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of a conformed table that no column of role `label` marks."""
        for column in self.columns:
            if column.role is Role.LABEL and column.name in frame.columns:
                text = frame[column.name].cast(pl.String).str.to_lowercase()
                frame = frame.filter(text.is_in(["", "0", "0.0", "false", "no", "normal"]).fill_null(True))
        return frame

    def restore(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Give canonical columns their original types and text forms back, in schema order.

        The inverse of `conform` for the columns present. Integers are clipped to the range of their type,
        numbers rounded to the decimals of training, times to its grid. Columns empty in training come back.
        """
        result = []
        for column in self.columns:
            if column.name in frame.columns:
                result.append(restore(frame[column.name], column).alias(column.name))
            elif column.empty and (dtype := parse_dtype(column.dtype)) is not None:
                result.append(pl.Series(column.name, [None] * frame.height, dtype=dtype))
        return pl.DataFrame(result)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {"columns": [{**asdict(column), "categories": list(column.categories)} for column in self.columns]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Schema:
        """Rebuild from `to_json`.

        Raises:
            BundleError: the values are not those of a schema.
        """
        try:
            return cls(tuple(_column_from_json(column) for column in values["columns"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the stored schema cannot be read: {error!r}. Fit and save the model again.") from error


def _column_from_json(values: Mapping[str, Any]) -> Column:
    exact = {
        "kind": Kind(values["kind"]),
        "role": Role(values["role"]),
        "categories": tuple(values["categories"]),
    }
    return Column(**{**values, **exact})


# ------------------------------------------------------------------------------------------------- overrides


def read_overrides(path: Path) -> dict[str, dict[str, str]]:
    """Read ``[columns.age]`` tables with ``kind`` and ``role`` from a TOML file."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{path}: the overrides must be a TOML file; {error}. Check the path and the syntax."
        ) from error
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
            raise ConfigError(f'overrides: column {name!r} needs kind = "..." or role = "..."; found {options!r}.')
        for option, value in options.items():
            if option not in allowed:
                raise ConfigError(f"overrides: column {name!r} has option {option!r}. Use 'kind' or 'role'.")
            if value not in allowed[option]:
                choices = ", ".join(allowed[option])
                raise ConfigError(f"overrides: column {name!r} has {option} = {value!r}. Use one of {choices}.")
        roles[options.get("role", "")] += 1
    for role in (Role.TIME, Role.ENTITY, Role.LABEL):
        if roles[role] > 1:
            raise ConfigError(f"overrides: {roles[role]} columns have role = {role.value!r}. Keep one.")
    return {name: dict(options) for name, options in overrides.items()}


# ---------------------------------------------------------------------------------------------------- intake


def _table_problem(rule: str, evidence: str, cure: str) -> SchemaError:
    return SchemaError([Problem(TABLE, rule, evidence, cure)])


def _missing(column: Column, extra: Sequence[str], known: Iterable[str]) -> Problem:
    """A column that is not there; the cure may be to rename one that is like it, unless that is like another one in all but case."""
    folded = {name.casefold(): name for name in extra}
    same = folded.get(column.name.casefold())
    free = [name for fold, name in folded.items() if fold not in {each.casefold() for each in known}]
    near = [same] if same else difflib.get_close_matches(column.name, free, n=1, cutoff=0.5)
    cure = f"Rename {near[0]!r}." if near else "Add the column, with empty values if they are not known."
    return Problem(column.name, "the model was fitted with this column", "no such column", cure)


def to_polars(frame: Any) -> pl.DataFrame:
    """Take polars, pandas, Arrow and whatever else exports Arrow."""
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    table = frame if isinstance(frame, pl.DataFrame) else _from_foreign(frame)
    if table.width == 0:
        raise _table_problem("a table needs columns", "0 columns", "Check how the table was read.")
    return table


def _from_foreign(frame: Any) -> pl.DataFrame:
    names = list(getattr(frame, "column_names", getattr(frame, "columns", ())))
    counts = Counter(str(name) for name in names)
    if repeated := [
        Problem(name, "column names must differ", f"the name {count} times", "Rename or drop the repeats.")
        for name, count in counts.items()
        if count > 1
    ]:
        raise SchemaError(repeated)
    if getattr(getattr(frame, "index", None), "name", None) is not None:
        warn(f"the index {frame.index.name!r} is not a column and was dropped; use reset_index() to keep it")
    is_pandas = type(frame).__module__.partition(".")[0] == "pandas"
    try:
        if is_pandas:
            with warnings.catch_warnings():  # between the two libraries, not for the user
                warnings.simplefilter("ignore", DeprecationWarning)
                frame = pyarrow.Table.from_pandas(frame, preserve_index=False)
        return pl.DataFrame(frame)
    except Exception as error:  # the reason depends on the library the table comes from
        problems = []
        for name in names if isinstance(error, pyarrow.ArrowException) else ():
            try:
                pyarrow.array(frame[name], from_pandas=True)
            except Exception as reason:
                cure = "Give the column one type, for instance with astype(str)."
                problems.append(Problem(str(name), "a column must hold one type", f"{reason}", cure))
        if problems:
            raise SchemaError(problems) from error
        found = f"{type(frame).__module__}.{type(frame).__name__} ({error})"
        cure = "Pass a polars or pandas DataFrame, or a pyarrow Table."
        raise _table_problem("a table must be polars, pandas or Arrow", found, cure) from error
