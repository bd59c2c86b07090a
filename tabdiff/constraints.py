"""Rules that every row, or the table as a whole, must obey: declared by the user or found by `tabdiff.discovery`.

A rule is plain data (a pydantic model, so JSON and TOML are checked alike) and works on canonical frames, those that
`Schema.conform` gives. It says which rows break it and, where there is one obvious way, repairs them. A rule says
nothing about a row in which one of its columns is missing.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import tomli_w
from jaxtyping import Bool, Float64
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from tabdiff.errors import ConfigError
from tabdiff.schema import Kind, Schema

Cell = bool | int | float | str
_TRUE = ("1", "true", "True", "yes")


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def about(self) -> tuple[str, ...]:
        """The columns that the rule speaks of."""
        return self._about()

    def broken(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        """Which rows of a canonical frame break the rule."""
        return self._broken(frame)

    def _about(self) -> tuple[str, ...]:
        return tuple(self.columns)  # type: ignore[attr-defined]

    def _broken(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        raise NotImplementedError

    def repair(self, frame: pl.DataFrame, fixed: frozenset[str] = frozenset()) -> pl.DataFrame:
        """The frame with the rule mended where there is one obvious way, never in a `fixed` column."""
        del fixed
        return frame


class Range(_Rule):
    """Numbers between two ends, or dates: then the ends are microseconds since 1970 UTC."""

    kind: Literal["range"] = "range"
    column: str
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is at most high; got {self.low:g} and {self.high:g}")
        return self

    def _about(self) -> tuple[str, ...]:
        return (self.column,)

    def _broken(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        values = numbers(frame[self.column])
        low, high = -np.inf if self.low is None else self.low, np.inf if self.high is None else self.high
        return np.asarray((values < low) | (values > high))

    def __str__(self) -> str:
        ends = [
            f"{self.low:g} <= " if self.low is not None else "",
            f" <= {self.high:g}" if self.high is not None else "",
        ]
        return f"{ends[0]}{self.column}{ends[1]}"


class Among(_Rule):
    """A column holds one of the listed values."""

    kind: Literal["among"] = "among"
    column: str
    values: tuple[Cell, ...] = Field(min_length=1)

    def _about(self) -> tuple[str, ...]:
        return (self.column,)

    def _broken(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        keys = _key(frame[self.column])
        return np.asarray((keys.is_not_null() & ~keys.is_in([_cell_key(cell) for cell in self.values])).to_numpy())

    def __str__(self) -> str:
        return f"{self.column} in {{{', '.join(str(value) for value in self.values)}}}"


class Order(_Rule):
    """The first of two numbers or dates is at most the second, or below it if `strict`."""

    kind: Literal["order"] = "order"
    columns: tuple[str, str]
    strict: bool = False

    def _broken(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        first, second = (numbers(frame[name]) for name in self.columns)
        return np.asarray((first >= second) if self.strict else (first > second))

    def repair(self, frame: pl.DataFrame, fixed: frozenset[str] = frozenset()) -> pl.DataFrame:
        """Exchange the two values of a row that has them the wrong way round."""
        first, second = self.columns
        wrong = pl.Series(self.broken(frame))
        if fixed & set(self.columns) or frame[first].dtype != frame[second].dtype or not wrong.any():
            return frame
        lower, upper = frame[first], frame[second]
        return frame.with_columns(upper.zip_with(wrong, lower).alias(first), lower.zip_with(wrong, upper).alias(second))

    def __str__(self) -> str:
        return f"{self.columns[0]} {'<' if self.strict else '<='} {self.columns[1]}"


class Sum(_Rule):
    """A number is the sum of others, up to `tolerance`; with a single part the two are equal."""

    kind: Literal["sum"] = "sum"
    total: str
    parts: tuple[str, ...] = Field(min_length=1)
    tolerance: float = Field(1e-6, ge=0)

    def _about(self) -> tuple[str, ...]:
        return (self.total, *self.parts)

    def _rest(self, frame: pl.DataFrame, names: Iterable[str]) -> Float64[np.ndarray, " rows"]:
        return np.asarray(sum((numbers(frame[name]) for name in names), np.zeros(frame.height)))

    def _broken(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        return np.asarray(np.abs(numbers(frame[self.total]) - self._rest(frame, self.parts)) > self.tolerance)

    def repair(self, frame: pl.DataFrame, fixed: frozenset[str] = frozenset()) -> pl.DataFrame:
        """Compute the total from the parts; or, if the total is fixed, the last part that is not."""
        name = next((name for name in (self.total, *reversed(self.parts)) if name not in fixed), None)
        broken = self.broken(frame)
        if name is None or not broken.any():
            return frame
        others = self._rest(frame, (part for part in self.parts if part != name))
        right = others if name == self.total else numbers(frame[self.total]) - others
        return frame.with_columns(_filled(frame[name], right, broken))

    def __str__(self) -> str:
        return f"{self.total} = {' + '.join(self.parts)}"


class Combinations(_Rule):
    """Values occur together only as listed in `rows`; or, with `forbidden`, not as listed.

    If the first column decides all others (`determined`), a broken row gets what its first value calls for.
    """

    kind: Literal["combinations"] = "combinations"
    columns: tuple[str, ...] = Field(min_length=2)
    rows: tuple[tuple[Cell, ...], ...] = Field(min_length=1)
    forbidden: bool = False
    determined: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Combinations:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"each of the rows has {len(self.columns)} values, one for each column")
        if self.determined and len({row[0] for row in self.rows}) < len(self.rows):
            raise ValueError("determined needs a single row for each value of the first column")
        return self

    def _broken(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        listed = self._lookup().with_columns(pl.lit(True).alias("__listed"))
        keys = frame.select(_key(frame[name]).alias(name) for name in self.columns)
        found = keys.join(listed, on=list(self.columns), how="left", maintain_order="left")["__listed"]
        hit = found.fill_null(False).to_numpy()
        whole = keys.select(pl.all_horizontal(pl.all().is_not_null())).to_series().to_numpy()
        return np.asarray(whole & (hit if self.forbidden else ~hit))

    def repair(self, frame: pl.DataFrame, fixed: frozenset[str] = frozenset()) -> pl.DataFrame:
        """Give the other columns what the first one calls for."""
        if not self.determined or fixed & set(self.columns[1:]) or not self.broken(frame).any():
            return frame
        lookup = self._lookup().rename({name: f"__{i}" for i, name in enumerate(self.columns)})
        keys = pl.DataFrame({"__0": _key(frame[self.columns[0]])})
        joined = keys.join(lookup, on="__0", how="left", maintain_order="left")
        called = [(name, joined[f"__{i}"]) for i, name in enumerate(self.columns) if i]
        return frame.with_columns(
            _from_key(values, frame[name].dtype)
            .zip_with(values.is_not_null() & frame[name].is_not_null(), frame[name])
            .alias(name)
            for name, values in called
        )

    def _lookup(self) -> pl.DataFrame:
        columns = zip(*self.rows, strict=True)
        return pl.DataFrame(
            {name: [_cell_key(cell) for cell in cells] for name, cells in zip(self.columns, columns, strict=True)}
        )

    def __str__(self) -> str:
        if self.determined:
            return f"{self.columns[0]} decides {', '.join(self.columns[1:])}"
        listed = f"{len(self.rows)} combination{'s' if len(self.rows) > 1 else ''}"
        if self.forbidden:
            example = ", ".join(f"{name}={cell}" for name, cell in zip(self.columns, self.rows[0], strict=True))
            return (
                f"{' and '.join(self.columns)}: {listed} never occur ({example}{', ...' if len(self.rows) > 1 else ''})"
            )
        return f"{' and '.join(self.columns)}: only {listed}"


class OneHot(_Rule):
    """Exactly one of several yes/no columns is 1 or true."""

    kind: Literal["one_hot"] = "one_hot"
    columns: tuple[str, ...] = Field(min_length=2)

    def _broken(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        flags = np.stack([flag_values(frame[name]) for name in self.columns])
        return np.asarray(~np.isnan(flags).any(axis=0) & (np.nan_to_num(flags).sum(axis=0) != 1))

    def __str__(self) -> str:
        return f"exactly one of {', '.join(self.columns)}"


class Unique(_Rule):
    """No two rows have the same values in these columns."""

    kind: Literal["unique"] = "unique"
    columns: tuple[str, ...] = Field(min_length=1)

    def _broken(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        """Every row but the first of those that agree."""
        keys = frame.select(self.columns)
        whole = pl.all_horizontal(pl.all().is_not_null())
        return keys.select(whole & ~pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()

    def __str__(self) -> str:
        return f"{' and '.join(self.columns)}: no two rows alike"


Constraint = Annotated[Range | Among | Order | Sum | Combinations | OneHot | Unique, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(tuple[Constraint, ...])


def numbers(values: pl.Series) -> Float64[np.ndarray, " rows"]:
    """Numbers as they are, dates in microseconds since 1970, missing as NaN."""
    if values.dtype == pl.Datetime:
        values = values.dt.epoch("us")
    return values.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(np.float64)


def flag_values(values: pl.Series) -> Float64[np.ndarray, " rows"]:
    """1 and 0 of a yes/no column, whatever it is written in; NaN where missing."""
    if values.dtype == pl.String:
        values = pl.select(pl.when(values.is_null()).then(None).otherwise(values.is_in(_TRUE))).to_series()
    return values.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(np.float64)


def _filled(column: pl.Series, values: Float64[np.ndarray, " rows"], where: Bool[np.ndarray, " rows"]) -> pl.Series:
    """The column with new numbers in some rows, in its own type."""
    fresh = pl.Series(values, nan_to_null=True)
    if not column.dtype.is_float():
        fresh = fresh.round(0).cast(pl.Int64)
    return fresh.cast(column.dtype).zip_with(pl.Series(where), column).alias(column.name)


def _key(values: pl.Series) -> pl.Series:
    """Cells as text that is equal if they are."""
    if values.dtype == pl.Boolean:
        return pl.select(pl.when(values.is_null()).then(None).otherwise(values.cast(pl.String))).to_series()
    if values.dtype == pl.String:
        return values
    return pl.Series(numbers(values), nan_to_null=True).cast(pl.String)


def _cell_key(cell: Cell) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    return cell if isinstance(cell, str) else pl.Series([float(cell)]).cast(pl.String)[0]


def _from_key(keys: pl.Series, dtype: pl.DataType) -> pl.Series:
    if dtype == pl.Boolean:
        return keys == "true"
    if dtype == pl.String:
        return keys
    values = keys.cast(pl.Float64)
    return values.cast(dtype) if dtype.is_float() else values.round(0).cast(pl.Int64).cast(dtype)


def to_json(rules: Sequence[Any]) -> list[dict[str, Any]]:
    """Plain values that `parse` reads."""
    found: list[dict[str, Any]] = json.loads(_ADAPTER.dump_json(tuple(rules)))
    return found


def parse(values: Sequence[Mapping[str, Any]], schema: Schema | None = None) -> tuple[Any, ...]:
    """Rules from plain values; with a schema, of its modelled columns.

    Raises:
        ConfigError: a rule is not one, or speaks of a column that is not modelled or of the wrong kind.
    """
    try:
        rules: tuple[Any, ...] = _ADAPTER.validate_python(tuple(values))
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            place, *rest = problem["loc"] or (0,)
            where = ".".join(str(part) for part in rest[1:])
            lines.append(f"  - rule {int(place) + 1}{', ' + where if where else ''}: {problem['msg']}")
        kinds = "range, among, order, sum, combinations, one_hot, unique"
        raise ConfigError("the constraints are not valid:\n" + "\n".join(lines) + f"\nKinds: {kinds}.") from None
    if schema is not None:
        check(rules, schema)
    return rules


def check(rules: Sequence[Any], schema: Schema) -> None:
    """Refuse rules about columns that are not modelled, or not numbers where numbers are needed.

    Raises:
        ConfigError: says which rule, which column and what to do.
    """
    kinds = {column.name: column.kind for column in schema.modelled}
    for rule in rules:
        for name in rule.about:
            if name not in kinds:
                raise ConfigError(
                    f"a constraint is about modelled columns; {str(rule)!r} names {name!r}. "
                    f"Modelled columns: {', '.join(kinds)}."
                )
            needs_number = rule.kind in ("range", "order", "sum")
            if needs_number and kinds[name] in (Kind.CATEGORICAL, Kind.BOOLEAN):
                raise ConfigError(
                    f"{str(rule)!r} compares numbers or dates; column {name!r} is {kinds[name]}. "
                    "Take the rule out, or override the kind of the column when fitting."
                )


def read_constraints(path: Path, schema: Schema | None = None) -> tuple[Any, ...]:
    """Read ``[[constraint]]`` tables from a TOML file; dates may be written as TOML dates.

    Raises:
        ConfigError: the file is missing or not TOML, or a rule is not valid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: constraints are a TOML file; {error}. Check the path and the syntax.") from error
    return parse_toml(text, schema, str(path))


def parse_toml(text: str, schema: Schema | None = None, name: str = "the rules") -> tuple[Any, ...]:
    """The rules of such a text; `name` is for messages.

    Raises:
        ConfigError: it is not TOML, or a rule is not valid.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: constraints are a TOML file; {error}. Check the path and the syntax.") from error
    rules = values.pop("constraint", [])
    if values or not isinstance(rules, list):
        raise ConfigError(
            f"{name}: constraints are tables named [[constraint]]; found {sorted(values) or 'one in single brackets'}. "
            "`tabdiff constraints MODEL_DIR --write FILE` writes a valid file."
        )
    return parse([_with_times(rule) for rule in rules], schema)


def write_toml(rules: Sequence[Any]) -> str:
    """The text that `read_constraints` reads."""
    return tomli_w.dumps({"constraint": [{k: v for k, v in rule.items() if v is not None} for rule in to_json(rules)]})


def _with_times(rule: Any) -> Any:
    """Dates of a range in microseconds since 1970, UTC where no zone is given."""
    if not isinstance(rule, dict):
        return rule
    times = {k: v for k, v in rule.items() if k in ("low", "high") and hasattr(v, "year")}
    micros = {
        k: pl.Series([v]).cast(pl.Datetime("us", getattr(v, "tzinfo", None) and "UTC")).dt.epoch("us")[0]
        for k, v in times.items()
    }
    return {**rule, **micros}
