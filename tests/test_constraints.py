"""Rules: what breaks them, what mends them, which are found, and that files say what is wrong with them."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tabdiff.constraints import (
    Among,
    Combinations,
    OneHot,
    Order,
    Range,
    Sum,
    Unique,
    check,
    parse,
    read_constraints,
    to_json,
    write_toml,
)
from tabdiff.discovery import infer_constraints
from tabdiff.errors import ConfigError
from tabdiff.schema import Schema

ROWS = 800


def trips(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    """One of every rule, and columns that only look like one."""
    rng = np.random.default_rng(seed)
    start = [datetime(2024, 1, 1) + timedelta(minutes=int(m)) for m in rng.integers(0, 500_000, rows)]
    fare, tip = rng.gamma(3, 5, rows).round(2), (rng.random(rows) * 5).round(2)
    city = rng.choice(["Bonn", "Köln", "Lyon", "Nice"], rows)
    phone = rng.random(rows) < 0.8
    place = rng.integers(0, 3, rows)
    return pl.DataFrame(
        {
            "pickup": start,
            "dropoff": [s + timedelta(minutes=int(m)) for s, m in zip(start, rng.integers(0, 90, rows), strict=True)],
            "fare": fare,
            "tip": tip,
            "total": (fare + tip).round(2),
            "city": city,
            "country": [{"Bonn": "DE", "Köln": "DE"}.get(c, "FR") for c in city],
            "phone": np.where(phone, "yes", "no"),
            "lines": np.where(phone, rng.choice(["one", "many"], rows), "no phone"),
            **{f"is_{i}": (place == i).astype(int) for i in range(3)},
            "seat": rng.permutation(rows * 2)[:rows],
            "noise": rng.normal(size=rows),
        }
    )


def known(frame: pl.DataFrame) -> tuple[pl.DataFrame, Schema]:
    schema = Schema.infer(frame, overrides={"seat": {"role": "feature"}})
    return schema.conform(frame), schema


def test_every_rule_of_a_table_is_found_and_no_other() -> None:
    rules = infer_constraints(*known(trips()))
    assert {str(rule) for rule in rules} == {
        "total = fare + tip",
        "pickup <= dropoff",
        "exactly one of is_0, is_1, is_2",
        "city decides country",
        "lines decides phone",
        "seat: no two rows alike",
    }


def test_found_rules_hold_and_a_single_exception_takes_one_out() -> None:
    canonical, schema = known(trips())
    assert not any(rule.broken(canonical).any() for rule in infer_constraints(canonical, schema))
    last = pl.int_range(pl.len()) == ROWS - 1
    exception = canonical.with_columns(pl.when(last).then(pl.lit("FR")).otherwise("country").alias("country"))
    exception = exception.with_columns(pl.when(last).then(pl.lit("Bonn")).otherwise("city").alias("city"))
    assert "city decides country" not in {str(rule) for rule in infer_constraints(exception, schema)}


def test_chance_is_no_rule() -> None:
    """Independent columns, few rows, or ranges that do not meet: nothing is certain."""
    rng = np.random.default_rng(0)
    independent = {f"x{i}": rng.normal(size=300) for i in range(4)} | {
        f"c{i}": rng.choice(["a", "b", "c"], 300) for i in range(4)
    }
    apart = {"low": rng.random(300), "high": 5 + rng.random(300)}
    assert infer_constraints(*known(pl.DataFrame({**independent, **apart, "seat": rng.integers(0, 50, 300)}))) == ()
    canonical, schema = known(trips())
    assert infer_constraints(canonical.head(20), schema) == ()


def test_unseen_pairs_are_forbidden_where_chance_would_show_them() -> None:
    rng = np.random.default_rng(1)
    internet = rng.choice(["none", "dsl", "fibre"], 1000)
    backup = np.where(internet == "none", "no internet", rng.choice(["yes", "no"], 1000))
    frame = pl.DataFrame({"internet": internet, "backup": backup, "seat": np.arange(1000) % 7})
    (rule,) = infer_constraints(*known(frame))
    assert rule.forbidden
    assert set(rule.rows) == {("dsl", "no internet"), ("fibre", "no internet"), ("none", "no"), ("none", "yes")}


# -------------------------------------------------------------------------------------- broken and repaired


FRAME = pl.DataFrame(
    {
        "a": [1.0, 5.0, None, 3.0],
        "b": [2.0, 4.0, 1.0, 3.0],
        "c": [3.0, 1.0, 1.0, 6.0],
        "k": ["x", "y", "x", None],
        "v": ["1", "1", "2", "1"],
        "p": [True, False, True, None],
        "q": [False, False, True, True],
        "n": [7, 7, 8, 9],
    }
)


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (Range(column="a", low=1, high=3), [False, True, False, False]),
        (Range(column="b", low=2), [False, False, True, False]),
        (Among(column="k", values=("x",)), [False, True, False, False]),
        (Among(column="n", values=(7, 9.0)), [False, False, True, False]),
        (Among(column="p", values=(True,)), [False, True, False, False]),
        (Order(columns=("a", "b")), [False, True, False, False]),
        (Order(columns=("a", "b"), strict=True), [False, True, False, True]),
        (Sum(total="c", parts=("a", "b")), [False, True, False, False]),
        (Combinations(columns=("k", "v"), rows=(("x", "1"), ("y", "2"))), [False, True, True, False]),
        (Combinations(columns=("k", "v"), rows=(("x", "1"),), forbidden=True), [True, False, False, False]),
        (Combinations(columns=("n", "p"), rows=((7, True), (8, True))), [False, True, False, False]),
        (OneHot(columns=("p", "q")), [False, True, True, False]),
        (Unique(columns=("n",)), [False, True, False, False]),
        (Unique(columns=("k", "v")), [False, False, False, False]),
    ],
    ids=str,
)
def test_broken_rows_are_those_that_break_the_rule(rule, broken: list[bool]) -> None:
    assert rule.broken(FRAME).tolist() == broken


def test_repairs_mend_what_they_can_and_touch_nothing_else() -> None:
    order, total = Order(columns=("a", "b")), Sum(total="c", parts=("a", "b"))
    mended = order.repair(FRAME)
    assert mended.select("a", "b").row(1) == (4.0, 5.0)
    assert_frame_equal(mended[[0, 2, 3]], FRAME[[0, 2, 3]])
    assert order.repair(FRAME, frozenset({"a"})).equals(FRAME)
    assert total.repair(FRAME)["c"].to_list() == [3.0, 9.0, 1.0, 6.0]
    assert total.repair(FRAME, frozenset({"c"}))["b"].to_list() == [2.0, -4.0, 1.0, 3.0]
    assert total.repair(FRAME, frozenset({"a", "b", "c"})).equals(FRAME)
    decides = Combinations(columns=("k", "v"), rows=(("x", "1"), ("y", "2")), determined=True)
    assert decides.repair(FRAME)["v"].to_list() == ["1", "2", "1", "1"]
    assert decides.repair(FRAME).columns == FRAME.columns
    assert decides.repair(FRAME, frozenset({"v"})).equals(FRAME)
    flags = Combinations(columns=("n", "p"), rows=((7, False), (8, True)), determined=True)
    assert flags.repair(FRAME)["p"].to_list() == [False, False, True, None]


# ------------------------------------------------------------------------------------------------- files


def test_rules_survive_json_and_toml(tmp_path: Path) -> None:
    canonical, schema = known(trips())
    rules = (
        *infer_constraints(canonical, schema),
        Range(column="fare", low=0.5),
        Among(column="city", values=("Bonn",)),
    )
    assert parse(to_json(rules), schema) == rules
    (tmp_path / "rules.toml").write_text(write_toml(rules), encoding="utf-8")
    assert read_constraints(tmp_path / "rules.toml", schema) == rules


def test_dates_of_a_range_are_dates(tmp_path: Path) -> None:
    canonical, schema = known(trips())
    text = '[[constraint]]\nkind = "range"\ncolumn = "pickup"\nlow = 2024-03-01\nhigh = 2024-06-01T12:00:00\n'
    (tmp_path / "rules.toml").write_text(text, encoding="utf-8")
    (rule,) = read_constraints(tmp_path / "rules.toml", schema)
    inside = canonical["pickup"].is_between(datetime(2024, 3, 1), datetime(2024, 6, 1, 12))
    assert rule.broken(canonical).tolist() == (~inside).to_list()
    assert 0 < inside.sum() < ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[constraint]", "TOML"),
        ("[constraint]\nkind = 'range'", "single brackets"),
        ("[[rule]]\nkind = 'range'", r"\[\[constraint\]\]; found \['rule'\]"),
        ("[[constraint]]\nkind = 'magic'", "rule 1.*Kinds: range, among, order"),
        ("[[constraint]]\nkind = 'order'\ncolumns = ['fare']", "rule 1, columns"),
        ("[[constraint]]\nkind = 'range'\ncolumn = 'fare'\nlow = 2\nhigh = 1", "low is at most high"),
        ("[[constraint]]\nkind = 'range'\ncolumn = 'fair'\nlow = 2", "names 'fair'. Modelled columns: pickup"),
        ("[[constraint]]\nkind = 'order'\ncolumns = ['city', 'fare']", "'city' is categorical"),
        ("[[constraint]]\nkind = 'combinations'\ncolumns = ['city', 'country']\nrows = [['Bonn']]", "2 values"),
    ],
)
def test_files_that_are_wrong_say_why(tmp_path: Path, text: str, message: str) -> None:
    _, schema = known(trips())
    (tmp_path / "rules.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        read_constraints(tmp_path / "rules.toml", schema)


def test_rules_of_other_columns_are_refused() -> None:
    _, schema = known(trips())
    with pytest.raises(ConfigError, match="names 'nope'"):
        check([Unique(columns=("nope",))], schema)
