"""Rows brought to a level that was accepted: which move, which are left out, and what is forgotten."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from tabdiff.config import SeriesConfig
from tabdiff.operations.levels import levelled

START = datetime(2026, 3, 1)
RECORD: dict[str, Any] = {
    "entity": "a",
    "levels": {"x": 8.0},
    "before": "2026-03-01T00:04:00",
    "since": "2026-03-01T00:06:00",
}
WIDE = SeriesConfig(time="at", entity="who")


def table() -> pl.DataFrame:
    """Ten minutes of two entities; x of the first is 8 higher from minute 5 on."""
    at = [START + timedelta(minutes=i) for i in range(10)]
    return pl.DataFrame(
        {
            "who": ["a"] * 10 + ["b"] * 10,
            "at": at * 2,
            "x": [*range(5), *range(13, 18), *range(10)],
            "y": [0.5] * 20,
        }
    )


def test_rows_of_before_are_moved_and_those_of_the_change_left_out() -> None:
    rows, kept = levelled(table(), WIDE, [RECORD])
    assert kept == [RECORD]
    assert rows.schema == table().schema
    assert rows.filter(who="b").equals(table().filter(who="b"))
    mine = rows.filter(who="a")
    assert mine["x"].to_list() == [8, 9, 10, 11, 14, 15, 16, 17]  # minutes 0 to 3 moved, 4 and 5 left out
    assert mine["y"].to_list() == [0.5] * 8
    again, _ = levelled(table().sample(20, shuffle=True, seed=1), WIDE, [RECORD])
    assert again.sort("who", "at").equals(rows.sort("who", "at"))


def test_levels_add_up() -> None:
    later = {
        **RECORD,
        "levels": {"x": -3.0, "gone": 1.0},
        "before": "2026-03-01T00:08:00",
        "since": "2026-03-01T00:09:00",
    }
    rows, kept = levelled(table(), WIDE, [RECORD, later])
    assert len(kept) == 2
    assert rows.filter(who="a")["x"].to_list() == [5, 6, 7, 8, 11, 12, 17]


def test_readings_of_a_long_table() -> None:
    long = table().unpivot(["x", "y"], index=["who", "at"], variable_name="sensor", value_name="value")
    config = SeriesConfig(time="at", entity="who", sensor="sensor", value="value")
    rows, _ = levelled(long, config, [RECORD])
    wide = rows.pivot("sensor", index=["who", "at"], values="value")
    assert wide.filter(who="a")["x"].to_list() == [8, 9, 10, 11, 14, 15, 16, 17]
    assert wide["y"].to_list() == [0.5] * 18


@pytest.mark.parametrize(
    ("record", "config"),
    [
        ({**RECORD, "before": "2026-02-01T00:00:00", "since": "2026-02-01T00:01:00"}, WIDE),  # no row of before is left
        ({**RECORD, "before": 3, "since": 5}, WIDE),  # steps
        ({**RECORD, "entity": "c"}, WIDE),
        ({**RECORD, "entity": None}, WIDE),
    ],
)
def test_what_does_not_matter_any_more_is_forgotten(record: dict[str, Any], config: SeriesConfig) -> None:
    rows, kept = levelled(table(), config, [record])
    assert kept == []
    assert rows.equals(table())


def test_steps_without_entities() -> None:
    rows = pl.DataFrame({"step": range(6), "x": [1.5, 1.5, 1.5, 4.5, 4.5, 4.5]})
    record = {"entity": None, "levels": {"x": 3.0}, "before": 2, "since": 3}
    found, kept = levelled(rows, SeriesConfig(time="step"), [record])
    assert found.rows() == [(0, 4.5), (1, 4.5), (3, 4.5), (4, 4.5), (5, 4.5)]
    assert kept == [record]
