"""Kinds and roles, the refusal of bad tables, and the way to canonical types and back."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tabdiff.errors import BundleError, ConfigError, SchemaError, TabdiffWarning
from tabdiff.schema import Column, Kind, Role, Schema, read_overrides

RNG = random.Random(0)
ROWS = 200
CODES = [RNG.randrange(1, 5) for _ in range(ROWS)]
FLOATS = [round(RNG.gauss(0, 9), 2) for _ in range(ROWS)]
WORDS = [RNG.choice(["red", "green", "blue", "?"]) for _ in range(ROWS)]


def infer_one(values: Any, name: str = "x", **override: str) -> Column:
    series = values if isinstance(values, pl.Series) else pl.Series(values)
    frame = pl.DataFrame([series.alias(name)])
    frame = frame.with_columns(anchor=pl.Series([0.5 + row for row in range(len(series))]))
    return Schema.infer(frame, overrides={name: override} if override else None)[name]


def problems_of(call: Any) -> str:
    with pytest.raises(SchemaError) as caught:
        call()
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize(
    ("name", "values", "kind", "role"),
    [
        ("x", FLOATS, "continuous", "feature"),
        ("x", [float(row) for row in range(ROWS)], "continuous", "feature"),  # floats are never an id
        ("customer_id", [row * 1.5 for row in range(ROWS)], "continuous", "feature"),
        ("x", [Decimal("1.50"), Decimal("2.25")], "continuous", "feature"),
        ("x", CODES, "integer", "feature"),
        ("x", [code % 2 for code in CODES], "categorical", "feature"),
        ("x", [code % 2 + 7 for code in CODES], "categorical", "feature"),
        ("x", [0, 1, 1, 0], "integer", "feature"),  # too few rows to tell
        ("x", [7] * 30, "integer", "feature"),
        ("x", RNG.sample(range(10**6), ROWS), "integer", "feature"),  # unique by chance
        ("x", [3, 1, 2], "integer", "feature"),
        ("x", list(range(5, 25)), "text", "id"),
        ("x", list(range(12, 0, -1)), "text", "id"),
        ("x", RNG.sample(range(100), 100), "text", "id"),
        ("PassengerId", [30, 10, 20], "text", "id"),
        ("row_index", [30, 10, 20], "text", "id"),
        ("paid", [30, 10, 20], "integer", "feature"),  # "id" is no word of its own here
        ("customer_id", CODES, "integer", "feature"),  # repeats
        ("x", [2**60 + row * 7 for row in range(ROWS)], "text", "id"),
        ("x", WORDS, "categorical", "feature"),
        ("x", [f"{row:04}-AB" for row in range(ROWS)], "text", "id"),
        ("x", [f"Mr. {row}" for row in range(ROWS)], "text", "ignore"),
        ("x", [f"c{row % 110}" for row in range(ROWS)], "text", "ignore"),
        ("x", [f"c{row % 60}" for row in range(ROWS)], "categorical", "feature"),
        ("x", ["long " * 20 + str(row % 60) for row in range(ROWS)], "text", "ignore"),
        ("x", [f"n{row}" for row in range(40)], "categorical", "feature"),
        ("order_key", [f"n{row}" for row in range(40)], "text", "id"),
        ("x", pl.Series(WORDS, dtype=pl.Categorical), "categorical", "feature"),
        ("x", pl.Series(["a", "b"], dtype=pl.Enum(["b", "a"])), "categorical", "feature"),
        ("x", [True, False, None], "boolean", "feature"),
        ("x", [date(2024, 1, 1), date(2024, 1, 2)], "datetime", "feature"),
        ("x", [time(1), time(2)], "integer", "feature"),
        ("x", [timedelta(1), timedelta(2)], "integer", "feature"),
        ("x", ["1.5", " ", "2.25", "-3"], "continuous", "feature"),
        ("x", ["15", "NA", "22", "-3"], "integer", "feature"),
        ("x", [str(code) for code in CODES], "categorical", "feature"),
        ("x", ["007", "123", "456"], "categorical", "feature"),
        ("x", ["1234567890123456", "12"], "categorical", "feature"),
        ("x", [str(row) for row in range(30)], "text", "id"),
        ("x", ["yes", "no", "yes"], "categorical", "feature"),
        ("x", ["2024-01-31", "?", "2024-02-01"], "datetime", "feature"),
        ("x", ["12:30", "13:15"], "categorical", "feature"),
        ("x", ["01.02.20", "05.06.21"], "categorical", "feature"),  # no century
        ("x", [None, None], "text", "ignore"),
        ("x", pl.Series([None, None], dtype=pl.Float32), "continuous", "ignore"),
        ("x", [float("nan")] * 2, "continuous", "ignore"),
    ],
)
def test_kind_and_role(name: str, values: Any, kind: str, role: str) -> None:
    column = infer_one(values, name)
    assert (column.kind, column.role) == (kind, role)


def test_numbers_are_measured() -> None:
    column = infer_one([1.25, -2.5, float("nan"), None])
    assert (column.minimum, column.maximum, column.decimals, column.nullable) == (-2.5, 1.25, 2, True)
    assert not infer_one([1, 2, 4]).nullable


@pytest.mark.parametrize(
    ("values", "decimals"),
    [
        ([1.0, 1e20], 0),
        ([0.1 * 3], None),
        ([0.1, 0.25], 2),
        ([1e-9], 9),
        ([1e-10], None),
        (pl.Series([0.1, 0.7], dtype=pl.Float32), 1),
    ],
)
def test_decimals(values: Any, decimals: int | None) -> None:
    series = pl.Series(values)
    assert infer_one(series.append(series)).decimals == decimals


@pytest.mark.parametrize(
    ("times", "resolution"),
    [
        ([date(1950, 5, 1), date(2024, 1, 1)], 86_400_000_000),
        ([datetime(2024, 1, 1, 5), datetime(1950, 1, 1, 3)], 3_600_000_000),
        ([datetime(2024, 1, 1, 5, 1)], 60_000_000),
        ([datetime(2024, 1, 1, 5, 1, 1)], 1_000_000),
        ([datetime(2024, 1, 1, 5, 1, 1, 5_000)], 1_000),
        ([datetime(2024, 1, 1, 5, 1, 1, 5)], 1),
        ([time(1, 30), time(2)], 60_000_000),
    ],
)
def test_resolution(times: Any, resolution: int) -> None:
    assert infer_one(times * 2).resolution == resolution


def test_datetime_bounds_are_microseconds() -> None:
    column = infer_one([date(1970, 1, 2), date(1969, 12, 31)])
    assert (column.minimum, column.maximum) == (-86_400_000_000, 86_400_000_000)


def test_categories_are_sorted_by_frequency_then_name() -> None:
    assert infer_one(["b", "a", "c", "c", None]).categories == ("c", "a", "b")
    assert infer_one([5, 9] * 15 + [9]).categories == ("9", "5")


def test_a_column_that_is_nearly_numbers_is_said() -> None:
    values = [f"{number}" for number in FLOATS]
    values[17] = "broken"
    with pytest.warns(TabdiffWarning, match=r"column 'x' is kept as text, as 1 of 200 .*not a number: \['broken'\]"):
        infer_one(values)
    values = [f"2024-01-{1 + row % 28:02}" for row in range(60)]
    values[17] = "soon"
    with pytest.warns(TabdiffWarning, match=r"1 of 60 values are not a date like %Y-%m-%d: \['soon'\]"):
        infer_one(values)


def test_ambiguous_dates_are_said() -> None:
    with pytest.warns(TabdiffWarning, match=r"'x': dates such as '01/02/2024' are read as day/month"):
        assert infer_one(["01/02/2024", "05/06/2024"]).time_format == "%d/%m/%Y"
    assert infer_one(["01/22/2024", "05/06/2024"]).time_format == "%m/%d/%Y"


@pytest.mark.parametrize("values", [[[1], [2]], [{"a": 1}, {"a": 2}], [b"a", b"b"]])
def test_nested_columns_are_ignored_with_a_warning(values: Any) -> None:
    frame = pl.DataFrame({"x": values, "y": [0.5, 1.5]})
    with pytest.warns(TabdiffWarning, match=r"column 'x' of type .* cannot be modelled and is ignored"):
        schema = Schema.infer(frame)
    assert (schema["x"].kind, schema["x"].role) == (Kind.TEXT, Role.IGNORE)
    assert schema.restore(schema.conform(frame)).equals(frame)


def test_modelled_and_lookup() -> None:
    frame = pl.DataFrame({"i": ["a", "b"], "x": [1.5, 2.5], "y": [True, False], "k": [1, 1], "n": [None, None]})
    schema = Schema.infer(frame, overrides={"i": {"role": "id"}, "y": {"role": "label"}, "x": {"role": "target"}})
    assert [column.name for column in schema.modelled] == ["x", "k"]
    assert schema["y"].role is Role.LABEL
    with pytest.raises(KeyError, match="absent"):
        schema["absent"]


# ------------------------------------------------------------------------------- bad training tables


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame(), "a table needs columns; found 0 columns"),
        (pl.DataFrame({"a": []}), "needs at least 2 rows; found 0 rows"),
        (pl.DataFrame({"a": [1]}), "needs at least 2 rows; found 1 rows"),
        (pl.DataFrame({"a": [None, None]}), "nothing is left to model; found a (text, ignore)"),
        (pl.DataFrame({"id": ["a", "b", "c"]}), "nothing is left to model; found id (text, id)"),
        (
            pl.DataFrame({"a": [1.0, float("inf"), 2.0, float("-inf")]}),
            "column 'a': numbers must be finite; found inf in row 2, 2 of 4 rows. Remove those rows",
        ),
        (
            pl.DataFrame({"a": [1.0, 1e31]}),
            "column 'a': numbers must stay within 1e30; found 1e+31 in row 2. Such",
        ),
        (pl.DataFrame({"a": ["1.5", "1e999"]}), "column 'a': numbers must be finite; found '1e999' in row 2"),
        (
            pl.DataFrame({"a": [2**53 + 1, 5, 5, 5]}),
            "column 'a': integers must stay within 2**53; found 9007199254740993 in row 1. Set kind",
        ),
        (
            pd.DataFrame([[1, 2, 3]] * 3, columns=["a", "b", "a"]),
            "column 'a': column names must differ; found the name 2 times. Rename",
        ),
        (
            pa.table([[1], [2]], names=["a", "a"]),
            "column 'a': column names must differ; found the name 2 times",
        ),
        (pd.DataFrame({"a": [1, 2], "b": ["x", 1]}), "column 'b': a column must hold one type"),
        (5, "a table must be polars, pandas or Arrow; found builtins.int"),
    ],
)
def test_bad_training_tables(frame: Any, message: str) -> None:
    assert message in problems_of(lambda: Schema.infer(frame))


def test_all_problems_are_listed() -> None:
    frame = pl.DataFrame({"a": [1.0, float("inf")], "b": [1e40, 1.0], "c": [1, 2]})
    with pytest.raises(SchemaError, match="2 problems") as caught:
        Schema.infer(frame)
    assert [problem.column for problem in caught.value.problems] == ["a", "b"]


def test_columns_that_are_not_modelled_may_hold_anything() -> None:
    frame = pl.DataFrame({"a": [1.0, float("inf")], "b": [1.0, 2.0]})
    assert [column.name for column in Schema.infer(frame, overrides={"a": {"role": "ignore"}}).modelled] == ["b"]


# ------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("values", "override", "kind", "role"),
    [
        (CODES, {"kind": "categorical"}, "categorical", "feature"),
        (list(range(30)), {"role": "feature"}, "integer", "feature"),
        (list(range(30)), {"kind": "continuous"}, "continuous", "feature"),
        ([f"n{row}" for row in range(90)], {"role": "feature"}, "categorical", "feature"),
        ([1.0, 2.0], {"kind": "integer"}, "integer", "feature"),
        (CODES, {"role": "id"}, "text", "id"),
        (CODES, {"role": "entity"}, "text", "entity"),
        (WORDS, {"kind": "text"}, "text", "ignore"),
        (list(range(30)), {"role": "time"}, "integer", "time"),
        (FLOATS, {"role": "ignore"}, "continuous", "ignore"),
        (WORDS, {"role": "target"}, "categorical", "target"),
        ([code % 2 for code in CODES], {"kind": "boolean"}, "boolean", "feature"),
        (["yes", "no", "yes"], {"kind": "boolean"}, "boolean", "feature"),
        (["1", "2", "1"] * 20, {"kind": "integer"}, "integer", "feature"),
        ([date(2024, 1, 1), date(2024, 1, 2)], {"kind": "categorical"}, "categorical", "feature"),
        ([datetime(2024, 1, 1, 5, tzinfo=UTC), None], {"kind": "categorical"}, "categorical", "feature"),
        ([time(5), time(6, 30)], {"kind": "categorical"}, "categorical", "feature"),
        ([time(5), time(6, 30)], {"kind": "continuous"}, "continuous", "feature"),
        ([1, 2, 4], {"kind": "continuous"}, "continuous", "feature"),
        ([f"{value}" for value in FLOATS], {"kind": "categorical"}, "categorical", "feature"),
        (["2024-01-31", " ", "2024-02-01"], {"kind": "categorical"}, "categorical", "feature"),
        (["1.5", "2.25"], {"kind": "text"}, "text", "ignore"),
        (["1.0", "2.0"], {"kind": "continuous"}, "continuous", "feature"),
        ([True, False], {"kind": "categorical"}, "categorical", "feature"),
        ([2**60, 2**60, 5], {"kind": "categorical"}, "categorical", "feature"),
        ([2**60, 2**60, 5], {"kind": "text"}, "text", "ignore"),
    ],
)
def test_overrides(values: Any, override: Mapping[str, str], kind: str, role: str) -> None:
    frame = pl.DataFrame({"x": values}).with_columns(anchor=pl.int_range(pl.len()) + 0.5)
    schema = Schema.infer(frame, overrides={"x": override})
    assert (schema["x"].kind, schema["x"].role) == (kind, role)
    assert schema.restore(schema.conform(frame)).equals(frame)


def test_an_impossible_override_is_a_problem() -> None:
    message = problems_of(lambda: infer_one(["red", "7", "blue"], kind="integer"))
    assert "column 'x': must be a whole number; found 'red' in row 1, 2 of 3 rows" in message
    assert "type Int64" in problems_of(lambda: infer_one([1, 2, 4], kind="datetime"))
    assert "must be true or false (0 or 1); found 4 in row 2" in problems_of(lambda: infer_one([1, 4], kind="boolean"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"agee": {"kind": "integer"}}, "there is no column 'agee'. Did you mean 'age'?"),
        ({"zzz": {"kind": "integer"}}, "there is no column 'zzz'. The columns are ['age', 'b']"),
        ({"age": {"kind": "number"}}, "column 'age' has kind = 'number'. Use one of continuous, integer"),
        ({"age": {"role": "y"}}, "column 'age' has role = 'y'. Use one of feature"),
        ({"age": {"type": "y"}}, "column 'age' has option 'type'. Use 'kind' or 'role'"),
        ({"age": "integer"}, "column 'age' needs kind"),
        ({"age": {"role": "label"}, "b": {"role": "label"}}, "2 columns have role = 'label'. Keep one"),
    ],
)
def test_bad_overrides(overrides: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Schema.infer(pl.DataFrame({"age": [1, 2], "b": [1, 2]}), overrides=overrides)
    assert message in str(caught.value)


def test_read_overrides(tmp_path: Path) -> None:
    path = tmp_path / "columns.toml"
    path.write_text('[columns.age]\nkind = "integer"\n[columns."zip code"]\nkind = "categorical"\nrole = "target"\n')
    expected = {"age": {"kind": "integer"}, "zip code": {"kind": "categorical", "role": "target"}}
    assert read_overrides(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[columns", "must be a TOML file"),
        ("[column.age]\nkind='integer'", "found ['column']. Write for instance [columns.age]"),
        ("[columns.age]\nkind='int'", "column 'age' has kind = 'int'"),
        (None, "must be a TOML file; [Errno 2]"),
    ],
)
def test_bad_override_files(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "columns.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_overrides(path)
    assert message in str(caught.value)


# --------------------------------------------------------------------------------------------------- conform

TRAINING = pl.DataFrame(
    {
        "name": [f"n {row}" for row in range(60)],
        "price": [row + 0.5 for row in range(60)],
        "count": [row % 7 for row in range(60)],
        "colour": ["red", "blue", "green"] * 20,
        "coded": [3, 4] * 30,
        "flag": [True, False] * 30,
        "day": [date(2024, 1, 1 + row % 28) for row in range(60)],
        "stamp": [datetime(2024, 1, 1, 1 + row % 20, tzinfo=UTC) for row in range(60)],
    }
)
SCHEMA = Schema.infer(TRAINING)
CANONICAL = {
    "name": pl.String,
    "price": pl.Float64,
    "count": pl.Int64,
    "colour": pl.String,
    "coded": pl.String,
    "flag": pl.Boolean,
    "day": pl.Datetime("us"),
    "stamp": pl.Datetime("us"),
}


def test_canonical_types() -> None:
    assert dict(SCHEMA.conform(TRAINING).schema) == CANONICAL
    assert dict(SCHEMA.conform(TRAINING.lazy()).schema) == CANONICAL
    assert SCHEMA.conform(TRAINING.select(reversed(TRAINING.columns))).columns == TRAINING.columns


def test_pandas_and_arrow_are_taken() -> None:
    expected = SCHEMA.conform(TRAINING)
    assert SCHEMA.conform(TRAINING.to_arrow()).equals(expected)
    assert SCHEMA.conform(TRAINING.to_pandas()).equals(expected)
    indexed = TRAINING.to_pandas().assign(when=1).set_index("when")
    with pytest.warns(TabdiffWarning, match="the index 'when' is not a column and was dropped"):
        SCHEMA.conform(indexed)


@pytest.mark.parametrize(
    ("column", "given", "expected"),
    [
        ("price", [1, 2], [1.0, 2.0]),
        ("price", [None, float("nan")], [None, None]),
        ("price", ["1.5", " NA "], [1.5, None]),
        ("price", [None, None], [None, None]),
        ("price", [Decimal("1.25"), None], [1.25, None]),
        ("price", [True, False], [1.0, 0.0]),
        ("count", [1.0, float("nan")], [1, None]),
        ("count", ["3", "4.0"], [3, 4]),
        ("count", [str(2**53 + 1), ""], [2**53 + 1, None]),
        ("count", pl.Series([1, 2], dtype=pl.UInt8), [1, 2]),
        ("colour", ["red", "violet"], ["red", "violet"]),
        ("colour", pl.Series(["red", None], dtype=pl.Categorical), ["red", None]),
        ("colour", [5, 6], ["5", "6"]),
        ("coded", [3.0, None], ["3", None]),
        ("coded", [3, 9], ["3", "9"]),
        ("coded", ["3", "x"], ["3", "x"]),
        ("flag", [0, 1], [False, True]),
        ("flag", [1.0, None], [True, None]),
        ("flag", ["TRUE", "no"], [True, False]),
        ("day", ["2024-05-01", None], [datetime(2024, 5, 1), None]),
        (
            "day",
            ["2024-05-01T12:00:00", "2024-05-01 12:30"],
            [datetime(2024, 5, 1, 12), datetime(2024, 5, 1, 12, 30)],
        ),
        ("day", [datetime(2024, 5, 1, 3), None], [datetime(2024, 5, 1, 3), None]),
        ("stamp", ["2024-05-01T02:00:00+02:00", "2024-05-01T00:00:00Z"], [datetime(2024, 5, 1)] * 2),
    ],
)
def test_safe_casts(column: str, given: Any, expected: list[Any]) -> None:
    frame = TRAINING.head(2).with_columns(pl.Series(column, given))
    result = SCHEMA.conform(frame)
    assert result[column].to_list() == expected
    assert result.schema[column] == CANONICAL[column]


@pytest.mark.parametrize(
    ("column", "given", "message"),
    [
        (
            "price",
            ["1.5", "cheap"],
            "must be a number; found 'cheap' in row 2. To go on, correct or empty the value",
        ),
        ("price", ["x" * 500, "1"], "found '" + "x" * 79 + "... in row 1. To go on"),
        ("price", [float("inf"), 1.0], "numbers must be finite; found inf in row 1. Remove"),
        ("price", [1.0, -1e31], "numbers must stay within 1e30; found -1e+31 in row 2"),
        (
            "price",
            [date(2024, 1, 1)] * 2,
            "must be a number; found type Date. The model was fitted on Float64",
        ),
        ("price", [[1.0], [2.0]], "must be a number; found type List(Float64)"),
        ("count", [1.0, 1.5], "must be a whole number; found 1.5 in row 2"),
        ("count", [1.5, 2.5], "must be a whole number; found 1.5 in row 1, 2 of 2 rows"),
        (
            "count",
            pl.Series([2**63, 1], dtype=pl.UInt64),
            "must be a whole number; found 9223372036854775808 in row 1",
        ),
        ("count", ["1", "1e999"], "must be a whole number; found '1e999' in row 2"),
        (
            "colour",
            [["red"], ["blue"]],
            "must be a category; found type List(String). Convert the column to text",
        ),
        ("flag", [0, 2], "must be true or false (0 or 1); found 2 in row 2"),
        ("flag", ["yes", "maybe"], "found 'maybe' in row 2"),
        ("flag", [date(2024, 1, 1)] * 2, "found type Date"),
        ("day", ["2024-05-01", "tomorrow"], "must be a date or a time; found 'tomorrow' in row 2"),
        ("day", [20240501, 20240502], "must be a date or a time; found type Int64"),
        (
            "day",
            [datetime(2024, 1, 1, tzinfo=UTC)] * 2,
            "fitted on times without a time zone; found Datetime",
        ),
        (
            "day",
            ["2024-05-01T00:00:00Z"] * 2,
            "fitted on times without a time zone; found '2024-05-01T00:00:00Z'",
        ),
        ("stamp", [datetime(2024, 1, 1)] * 2, "fitted on times with a time zone; found Datetime"),
    ],
)
def test_unsafe_casts(column: str, given: Any, message: str) -> None:
    frame = TRAINING.head(2).with_columns(pl.Series(column, given))
    text = problems_of(lambda: SCHEMA.conform(frame))
    assert f"column {column!r}: " in text
    assert message in text
    assert "1 problem:" in text


def test_every_offending_column_is_listed() -> None:
    frame = TRAINING.drop("day", "name").with_columns(price=pl.lit("x"), count=pl.lit(0.5))
    with pytest.raises(SchemaError, match="3 problems") as caught:
        SCHEMA.conform(frame)
    assert [problem.column for problem in caught.value.problems] == ["price", "count", "day"]
    assert "'x' in row 1, 60 of 60 rows" in str(caught.value)


def test_missing_and_extra_columns() -> None:
    assert "name" not in SCHEMA.conform(TRAINING.drop("name")).columns
    message = problems_of(lambda: SCHEMA.conform(TRAINING.drop("price")))
    assert "column 'price': the model was fitted with this column; found no such column. Add the column" in message
    with pytest.warns(TabdiffWarning, match=r"not in the schema were dropped: \['spare'\]"):
        assert SCHEMA.conform(TRAINING.with_columns(spare=1)).columns == TRAINING.columns
    renamed = TRAINING.rename({"price": "Price"})
    with pytest.warns(TabdiffWarning, match="Price"), pytest.raises(SchemaError, match="Rename 'Price'"):
        SCHEMA.conform(renamed)


def test_no_rows() -> None:
    assert "there must be rows to work on; found 0 rows" in problems_of(lambda: SCHEMA.conform(TRAINING.head(0)))


def test_a_label_is_canonical_and_optional() -> None:
    schema = Schema.infer(TRAINING, overrides={"flag": {"role": "label"}})
    assert schema.conform(TRAINING.with_columns(flag=pl.lit(1)))["flag"].all()
    assert "flag" not in schema.conform(TRAINING.drop("flag")).columns


# --------------------------------------------------------------------------------------------------- restore


def restored(column: str, values: Any, dtype: Any) -> list[Any]:
    return SCHEMA.restore(pl.DataFrame({column: pl.Series(values, dtype=dtype)}))[column].to_list()


def test_restore_rounds_and_clips() -> None:
    small = Schema.infer(pl.DataFrame({"i": pl.Series([1, 5], dtype=pl.Int8), "u": pl.Series([1, 5], dtype=pl.UInt64)}))
    back = small.restore(pl.DataFrame({"i": [300, -300, None], "u": [-4, 2**62, 7]}))
    assert back["i"].to_list() == [127, -128, None]
    assert back["u"].to_list() == [0, 2**62, 7]
    assert restored("price", [1.2345], pl.Float64) == [1.2]
    assert restored("count", [2.6], pl.Float64) == [3]
    assert restored("day", [datetime(2024, 5, 1, 13)], pl.Datetime("us")) == [date(2024, 5, 2)]
    assert restored("day", [datetime(1950, 5, 1, 11)], pl.Datetime("us")) == [date(1950, 5, 1)]
    assert restored("coded", ["3", "x"], pl.String) == [3, None]


def test_restore_rounds_decimals_and_times_of_day() -> None:
    schema = Schema.infer(
        pl.DataFrame(
            {
                "money": pl.Series([Decimal("1.50"), Decimal("2.25")], dtype=pl.Decimal(5, 2)),
                "at": [time(1, 30), time(2, 45)],
            }
        )
    )
    back = schema.restore(pl.DataFrame({"money": [0.294, 5e9], "at": [86_400_000_000 + 5, 90_000_000]}))
    assert back["money"].to_list() == [Decimal("0.29"), Decimal("999.99")]
    assert back["at"].to_list() == [time(23, 59, 59, 999999), time(0, 2)]


def test_empty_columns_come_back() -> None:
    frame = pl.DataFrame({"x": [1.5, 2.5], "gone": pl.Series([None, None], dtype=pl.Int16)})
    schema = Schema.infer(frame)
    assert schema.restore(schema.conform(frame.drop("gone"))).equals(frame)


def test_restore_keeps_the_schema_order_and_what_is_there() -> None:
    assert SCHEMA.restore(pl.DataFrame({"count": [1], "price": [0.5]})).columns == ["price", "count"]


TEXT_COLUMNS = [
    ["29.85", " ", "1889.5", "20", "0.1"],
    ["1.50", "22.00", "NA"],
    ["15", "", "-3"],
    ["0.5", "1.5", None],
    ["2024-01-31", "?", "1999-12-01"],
    ["31.01.2024", "01.12.1999"],
    ["01/31/2024 10:30", "12/01/1999 00:00"],
    ["2024-01-31T10:30:00Z", "2024-01-31T10:30:01Z"],
    ["2024-01-31 10:30:00.250", "2024-01-31 10:30:01.125"],
    ["2024-01-31T10:30:00+00:00", "2024-01-31T11:30:00+00:00"],
    ["007", "123", " x ", ""],
]


@pytest.mark.parametrize("values", TEXT_COLUMNS)
@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical])
def test_text_forms_come_back(values: list[str | None], dtype: Any) -> None:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype)})
    schema = Schema.infer(frame)
    back = schema.restore(schema.conform(frame))
    assert back.equals(frame)
    assert back.schema == frame.schema


def test_text_numbers_and_dates_are_canonical() -> None:
    frame = pl.DataFrame({"a": ["1.5", " ", "20"], "b": ["31.01.2024", "-", "01.02.2024"]})
    schema = Schema.infer(frame)
    canonical = schema.conform(frame)
    assert canonical["a"].to_list() == [1.5, None, 20.0]
    assert canonical["b"].to_list() == [datetime(2024, 1, 31), None, datetime(2024, 2, 1)]
    assert (schema["a"].text_number, schema["a"].null_text, schema["b"].null_text) == (True, " ", "-")
    assert schema.restore(pl.DataFrame({"a": [2.34, None]}))["a"].to_list() == ["2.3", " "]


# ------------------------------------------------------------------------------- JSON, properties


def test_json_round_trip() -> None:
    assert Schema.from_json(json.loads(json.dumps(SCHEMA.to_json()))) == SCHEMA


@pytest.mark.parametrize("values", [{}, {"columns": [{"name": "a"}]}, {"columns": [{"kind": "x"}]}])
def test_unreadable_json(values: Any) -> None:
    with pytest.raises(BundleError, match="the stored schema cannot be read"):
        Schema.from_json(values)


def integers(dtype: Any, limit: int = 2**53) -> Any:
    low, high = pl.select(low=dtype.min(), high=dtype.max()).row(0)
    return dtype, st.integers(max(low, -limit), min(high, limit))


MOMENTS = st.datetimes(datetime(1000, 1, 1), datetime(9999, 1, 1))
YEARS = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))  # what nanoseconds can hold
SPANS = st.timedeltas(timedelta(-90_000), timedelta(90_000))
COLUMNS: list[tuple[Any, Any]] = [
    *(integers(dtype) for dtype in (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128)),
    *(integers(dtype) for dtype in (pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)),
    (pl.Float64, st.floats(-1e30, 1e30)),
    (pl.Float64, st.integers(-(10**6), 10**6).map(lambda value: value / 100)),
    (pl.Float32, st.floats(-(2.0**90), 2.0**90, width=32)),
    (pl.Float32, st.integers(-1000, 1000).map(lambda value: value / 10)),
    (pl.Decimal(12, 3), st.decimals(-(10**8), 10**8, places=3)),
    (pl.Decimal(9, 0), st.decimals(-(10**8), 10**8, places=0)),
    # No digits: numbers kept as text come back in one form, not in each one's own. And no "inf": a column of it is refused.
    (pl.String, st.text(st.characters(codec="utf-8", exclude_categories=["Nd"], exclude_characters="iI"), max_size=4)),
    (pl.String, st.sampled_from(["a", "b", "", " ", "?"])),
    (pl.Categorical, st.sampled_from(["a", "b", "1"])),
    (pl.Enum(["z", "1", "a, b", 'q"']), st.sampled_from(["z", "1", "a, b", 'q"'])),
    (pl.Boolean, st.booleans()),
    (pl.Date, st.dates(date(1000, 1, 1))),
    *((pl.Datetime("us", zone), MOMENTS) for zone in (None, "UTC", "Europe/Berlin")),
    (pl.Datetime("ns"), YEARS),
    (pl.Datetime("ns", "America/New_York"), YEARS),
    (pl.Datetime("ms"), MOMENTS.map(lambda value: value.replace(microsecond=0))),
    (pl.Time, st.times()),
    (pl.Duration("us"), SPANS),
    (pl.Duration("ns"), SPANS),
    (pl.Duration("ms"), st.integers(-(10**9), 10**9).map(lambda value: timedelta(milliseconds=value))),
]


def column_of(dtype: Any, values: list[Any]) -> pl.Series:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        naive = pl.Series("x", values, dtype=pl.Datetime(dtype.time_unit, "UTC"))
        return naive.dt.convert_time_zone(dtype.time_zone)
    return pl.Series("x", values, dtype=dtype)


@pytest.mark.parametrize(("dtype", "values"), COLUMNS, ids=[str(dtype) for dtype, _ in COLUMNS])
def test_restore_undoes_conform(dtype: Any, values: Any) -> None:
    @given(st.lists(st.none() | values, min_size=2, max_size=30))
    @settings(max_examples=40, deadline=None)
    def check(cells: list[Any]) -> None:
        series = column_of(dtype, cells)
        frame = pl.DataFrame([series, pl.Series("anchor", [0.5] * len(cells))])
        schema = Schema.infer(frame)
        schema = Schema.from_json(json.loads(json.dumps(schema.to_json())))
        canonical = schema.conform(frame)
        assert canonical.equals(schema.conform(frame.lazy()))
        back = schema.restore(canonical)
        assert back.schema == frame.schema
        assert back["x"].to_list() == frame["x"].to_list()

    check()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_conform_never_crashes_on_foreign_columns(data: st.DataObject) -> None:
    """Any type in any column either converts or is refused by name."""
    column = data.draw(st.sampled_from(TRAINING.columns))
    dtype, values = data.draw(st.sampled_from(COLUMNS))
    frame = TRAINING.head(3).with_columns(
        column_of(dtype, data.draw(st.lists(values, min_size=3, max_size=3))).alias(column)
    )
    with contextlib.suppress(SchemaError):
        result = SCHEMA.conform(frame)
        assert result.height == 3
        if column != "name":
            assert result.schema[column] == CANONICAL[column]


# ------------------------------------------------------------------------------------------- what once broke


def test_a_problem_of_the_whole_table_names_no_column() -> None:
    message = problems_of(lambda: Schema.infer(pl.DataFrame({"x": [1.5]})))
    assert "- the table: a training table needs at least 2 rows; found 1 rows. Add rows" in message


def test_rare_fractions_of_seconds_do_not_warn() -> None:
    times = [f"2024-01-01T00:00:{row % 60:02}{'.5' if row % 50 == 49 else ''}" for row in range(ROWS)]
    assert infer_one(times).time_format == "%Y-%m-%dT%H:%M:%S%.f"


def test_few_odd_dates_warn_once() -> None:
    with pytest.warns(TabdiffWarning) as caught:
        infer_one(["01/02/2024"] * 60 + ["unknown"])
    assert len(caught) == 1
    assert "1 of 61 values are not a date like %d/%m/%Y: ['unknown']" in str(caught[0].message)


def test_a_warning_points_at_the_caller() -> None:
    with pytest.warns(TabdiffWarning) as caught:
        infer_one(["2024-01-01"] * 60 + ["unknown"])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("zone", ["", "Z"])
@pytest.mark.parametrize("enum", [True, False])
def test_dates_as_categories_can_be_overridden(zone: str, enum: bool) -> None:
    texts = [f"2024-01-0{day}T00:00:00{zone}" for day in (1, 2, 3)]
    frame = pl.DataFrame([pl.Series("x", texts, dtype=pl.Enum(texts) if enum else pl.Categorical)])
    schema = Schema.infer(frame, overrides={"x": {"kind": "datetime"}})
    assert schema.restore(schema.conform(frame)).equals(frame)


def test_mixed_dates_keep_their_blanks() -> None:
    frame = pl.DataFrame({"x": ["2024-01-01", "2024-01-02T10:00:00", " "]})
    schema = Schema.infer(frame, overrides={"x": {"kind": "datetime"}})
    assert schema.restore(schema.conform(frame))["x"].to_list()[-1] == " "


def test_a_blank_counts_alike_in_numbers_and_in_text() -> None:
    numbers = [*range(30), None]
    texts = [*map(str, range(30)), ""]
    assert infer_one(numbers).role == infer_one(texts).role == Role.FEATURE


def test_numbers_too_large_for_their_text_form_are_clipped() -> None:
    schema = Schema.infer(pl.DataFrame({"x": ["1.500000001", "2.500000002"]}))
    large, small = schema.restore(pl.DataFrame({"x": [1e30, 1.5]}))["x"]
    assert float(large) == 1e28
    assert small == "1.500000000"


@pytest.mark.parametrize(("trained", "values"), [(range(30), ["A1", "2"]), ([*"abcdefghij"], [[1], [2, 3]])])
def test_identifiers_of_another_type_are_carried_through(trained: Any, values: list[Any]) -> None:
    frame = pl.DataFrame({"row_id": trained}).with_row_index("x").with_columns(pl.col("x") + 0.5)
    schema = Schema.infer(frame)
    table = pl.DataFrame({"row_id": values, "x": [0.5, 1.5]})
    assert schema.restore(schema.conform(table))["row_id"].to_list() == values
