"""Recordings on a grid: jitter, gaps, repeats, order, clocks; compared with what pandas makes of the same rows."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabdiff.errors import ConfigError, SchemaError, TabdiffWarning
from tabdiff.series import Grid, localise, period, wide

START = datetime(2024, 3, 1)


def table(seconds: list[float], **columns: list[object]) -> pl.DataFrame:
    stamps = [START + timedelta(seconds=s) for s in seconds]
    return pl.DataFrame({"at": stamps, **(columns or {"a": [float(i) for i in range(len(seconds))]})})


def only(grid: Grid, frame: pl.DataFrame, **options: object) -> object:
    (recording,) = grid.recordings(frame, **options)  # type: ignore[arg-type]
    return recording


def test_an_even_recording_is_itself() -> None:
    frame = table([0, 10, 20, 30])
    grid = Grid.infer(frame, "at")
    recording = only(grid, frame)
    assert (grid.interval, grid.describe()) == (10_000_000, "every 10 s")
    assert recording.frame["a"].to_list() == [0, 1, 2, 3]
    assert grid.stamp(recording.places + recording.first).to_list() == frame["at"].to_list()


def test_gaps_are_nulls_as_pandas_makes_them() -> None:
    frame = table([0, 10, 20, 60, 70, 80, 90])
    recording = only(Grid.infer(frame, "at"), frame)
    expected = frame.to_pandas().set_index("at").resample("10s").asfreq()["a"]
    assert recording.frame["a"].to_list() == [None if pd.isna(v) else v for v in expected]
    assert recording.recorded.tolist() == [True] * 3 + [False] * 3 + [True] * 4


def test_jitter_does_not_move_the_interval() -> None:
    rng = np.random.default_rng(0)
    frame = table((np.arange(500) * 60 + rng.normal(0, 2, 500)).tolist())
    grid = Grid.infer(frame, "at")
    recording = only(grid, frame)
    assert grid.interval == 60_000_000
    assert abs(len(recording.recorded) - 500) <= 1


def test_rows_out_of_order_are_sorted_with_a_note() -> None:
    frame = table([0, 20, 10, 30, 40])
    with pytest.warns(TabdiffWarning, match="go back in time 1 times"):
        recording = only(Grid.infer(frame, "at"), frame)
    assert recording.frame["a"].to_list() == [0, 2, 1, 3, 4]
    assert recording.places[np.argsort(recording.rows)].tolist() == [0, 2, 1, 3, 4]


def test_equal_repeats_are_one_row() -> None:
    frame = table([0, 10, 10, 20, 30], a=[0.0, 1.0, 1.0, 2.0, 3.0])
    with pytest.warns(TabdiffWarning, match="1 repeated rows"):
        recording = only(Grid.infer(frame, "at"), frame)
    assert recording.frame["a"].to_list() == [0, 1, 2, 3]


def test_contradicting_repeats_are_refused_with_stamp_entity_and_column() -> None:
    frame = table([0, 10, 10, 20, 30], a=[0.0] * 5, b=[0.0, 1.0, 5.0, 2.0, 3.0], who=["x"] * 5)
    grid = Grid.infer(frame, "at", "who")
    with pytest.raises(SchemaError, match=r"column 'b'.*1.0 and 5.0 at 2024-03-01 00:00:10 of who 'x'"):
        list(grid.recordings(frame))
    assert only(grid, frame, duplicates="mean").frame["b"].to_list() == [0, 3, 2, 3]
    assert only(grid, frame, duplicates="last").frame["b"].to_list() == [0, 5, 2, 3]


def test_of_several_readings_whole_numbers_have_a_mean_too_and_gaps_none() -> None:
    frame = table([0, 10, 10, 10, 20], a=[0, 1, 4, None, 2], b=[0.0, None, 5.0, None, 2.0])
    grid = Grid.infer(frame, "at", interval=10)
    mean, last = (only(grid, frame, duplicates=how).frame for how in ("mean", "last"))
    assert (mean["a"].to_list(), mean["a"].dtype) == ([0, 2, 2], pl.Int64)  # 2.5, to the even one
    assert last.rows() == [(0, 0.0), (4, 5.0), (2, 2.0)]
    crowded = table([0, 10, 11, 20], a=[0, 1, 6, 2])
    with pytest.warns(TabdiffWarning, match="numbers were averaged"):
        assert only(grid, crowded).frame["a"].to_list() == [0, 4, 2]


def test_entities_have_recordings_of_their_own() -> None:
    frame = table([0, 0, 10, 15, 20, 25], a=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], who=["x", "y", "x", "y", "x", "y"])
    one, two = Grid.infer(frame, "at", "who", interval=5).recordings(frame)
    assert (one.entity, two.entity) == ("x", "y")
    assert one.frame["a"].to_list() == [1, None, 3, None, 5]
    assert two.rows.tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"at": ["a", "b"], "a": [1, 2]}), "holds times or finite numbers; found String"),
        (pl.DataFrame({"at": [1.0, np.inf], "a": [1, 2]}), "holds times or finite numbers"),
        (pl.DataFrame({"at": [1, None], "a": [1, 2]}), "1 missing, first in row 2"),
        (pl.DataFrame({"b": [1, 2]}), "no such column"),
        (pl.DataFrame({"at": [5, 5], "a": [1, 1]}), "at least two times"),
        (pl.DataFrame({"at": [0, 1, 10, 100, 1000, 10_000, 10**5, 10**6]}), "about equally long"),
    ],
)
def test_what_is_no_time_axis_is_refused(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Grid.infer(frame, "at")


def test_a_stamp_far_off_is_refused() -> None:
    frame = pl.DataFrame({"at": [0, 1, 2, 3, 4, 5, 10**9], "a": [0.0] * 7})
    with pytest.raises(SchemaError, match="a gap is at most 1,000,000 intervals"):
        only(Grid.infer(frame, "at"), frame)


@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan")])
def test_an_interval_is_positive(interval: float) -> None:
    with pytest.raises(ConfigError, match="positive number of seconds"):
        Grid.infer(table([0, 1, 2]), "at", interval=interval)


@given(st.integers(1, 60), st.integers(0, 59), st.integers(2, 40), st.integers(1, 39))
def test_a_place_does_not_depend_on_the_other_rows(step: int, start: int, rows: int, cut: int) -> None:
    frame = pl.DataFrame({"at": [start + step * i for i in range(rows)], "a": [float(i) for i in range(rows)]})
    grid = Grid.infer(frame, "at")
    whole = only(grid, frame)
    for part in (frame[:cut], frame[cut:]):
        if part.height:
            recording = only(grid, part)
            assert recording.first + 0 == whole.first + whole.places[int(part["a"][0])]
            assert recording.frame["a"].to_list() == part["a"].to_list()


def test_the_hour_that_happens_twice() -> None:
    utc = pd.date_range("2024-10-26 22:00", periods=8, freq="30min", tz="UTC")
    local = pl.Series("at", utc.tz_convert("Europe/Berlin").tz_localize(None).to_pydatetime().tolist())
    assert local.is_duplicated().sum() == 4
    assert localise(local, "Europe/Berlin").to_list() == utc.tz_localize(None).to_pydatetime().tolist()


def test_the_hour_that_never_was() -> None:
    local = pl.Series("at", [datetime(2024, 3, 31, 1, 30), datetime(2024, 3, 31, 2, 30)])
    with pytest.raises(SchemaError, match=r"02:30:00 in Europe/Berlin"):
        localise(local, "Europe/Berlin")
    with pytest.raises(ConfigError, match="tz database"):
        localise(local, "Mars/Olympus")


def test_readings_become_columns() -> None:
    frame = pl.DataFrame({"at": [1, 1, 2], "sensor": ["t", "p", "t"], "value": [20.0, 3.0, 21.0]})
    assert wide(frame, "at", "sensor", "value").to_dict(as_series=False) == {
        "at": [1, 2],
        "p": [3.0, None],
        "t": [20.0, 21.0],
    }
    with pytest.raises(SchemaError, match="2 values of 't' at 1"):
        wide(pl.concat([frame, frame[:1]]), "at", "sensor", "value")


@pytest.mark.parametrize("length", [7, 24, 50])
def test_the_cycle_is_found_in_noise_and_beside_constants(length: int) -> None:
    rng = np.random.default_rng(length)
    t = np.arange(600)
    waves = np.stack([np.sin(2 * np.pi * t / length + phase) for phase in (0.0, 1.0, 2.0)], axis=1)
    values = np.concatenate([waves + rng.normal(0, 0.3, waves.shape), np.ones((600, 2))], axis=1)
    found = period(values + 0.01 * t[:, None], 200)
    assert found is not None
    assert abs(found - length) <= 1


def test_noise_has_no_cycle() -> None:
    assert period(np.random.default_rng(0).normal(size=(600, 3)), 200) is None
    assert period(np.random.default_rng(0).normal(size=(600, 3)).cumsum(0), 200) is None
