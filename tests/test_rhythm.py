"""The calendar: found where it is, and only there; taken out and put back; judged, drawn and forecast with."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from onnx_export import export
from tabdiff import FitConfig, SeriesModel, fit_series, load_series
from tabdiff.errors import ConfigError
from tabdiff.rhythm import Clock, Readings, Rhythm, find_rhythm, refit_rhythm
from tabdiff.series_model import SeriesState

MONDAY = datetime(2024, 1, 1)
HOUR = 3_600_000_000


def load(hour: np.ndarray, weekday: np.ndarray) -> np.ndarray:
    """A plant that works from 8 to 18 on five days."""
    return np.where((weekday < 5) & (hour >= 8) & (hour < 18), 3.0, 0.0)


def plant(days: int, seed: int = 0, *, first: datetime = MONDAY, width: float = 0.3) -> pl.DataFrame:
    """Hours of a sensor with a working week and a slow AR(1), another that follows it, and one without calendar."""
    rng = np.random.default_rng(seed)
    count = 24 * days
    stamps = pl.Series("at", [first + timedelta(hours=k) for k in range(count)])
    week = load(stamps.dt.hour().to_numpy(), stamps.dt.weekday().to_numpy() - 1)
    noise = rng.normal(size=(count, 3))
    slow = np.zeros(count)
    for k in range(1, count):
        slow[k] = 0.9 * slow[k - 1] + noise[k, 0]
    free = np.convolve(noise[:, 2], np.ones(3) / 3, mode="same")
    return pl.DataFrame({
        "at": stamps,
        "power": 10 + week + width * slow,
        "heat": 40 + 2 * week + width * (2 * slow + noise[:, 1]),
        "free": free,
    })  # fmt: skip


def readings(frame: pl.DataFrame, *names: str, first: int = 473_352) -> Readings:
    return Readings(first, {name: frame[name].to_numpy().astype(float) for name in names})


def clock(zone: str | None = None) -> Clock:
    return Clock(HOUR, 0, zone)


def fitted(frame: pl.DataFrame, **series: object) -> SeriesModel:
    train = {"steps": 1, "batch_size": 32, "learning_rate": 1e-7}
    options = {"series": {"time": "at", "window": 24, **series}, "train": train}
    return fit_series(frame, FitConfig.model_validate(options))


@pytest.fixture(scope="module")
def model() -> SeriesModel:
    return fitted(plant(140))


@pytest.fixture(scope="module")
def blind() -> SeriesModel:
    return fitted(plant(140), calendar="none")


def test_the_first_place_is_that_of_the_first_stamp() -> None:
    assert clock().local(np.array([473_352]))[0] == MONDAY


def test_a_working_week_is_found_and_nothing_where_there_is_none() -> None:
    frame = plant(140)
    rhythm = find_rhythm(clock(), [readings(frame, "power", "free")])
    assert set(rhythm.profiles) == {"power"}
    mean, _ = rhythm.at(473_352 + np.arange(168))["power"]
    stamps = frame["at"][:168]
    truth = load(stamps.dt.hour().to_numpy(), stamps.dt.weekday().to_numpy() - 1)
    assert np.abs(mean - (truth - truth.mean())).max() < 0.45
    assert rhythm.terms == ["hour", "weekday", "week"]


def test_noise_of_many_seeds_has_hardly_ever_a_calendar() -> None:
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        walk = np.cumsum(rng.normal(size=24 * 60))
        numbers = {"white": rng.normal(size=24 * 60), "walk": walk}
        found += len(find_rhythm(clock(), [Readings(0, numbers)]).profiles)
    assert found <= 2


def test_a_spread_that_follows_the_day_is_found() -> None:
    rng = np.random.default_rng(0)
    day = np.sin(2 * np.pi * np.arange(24 * 100) / 24)
    rhythm = find_rhythm(clock(), [Readings(0, {"x": np.exp(0.7 * day) * rng.normal(size=len(day))})])
    assert set(rhythm.profiles["x"].spread) == {"hour"}
    _, spread = rhythm.at(np.arange(24))["x"]
    assert np.corrcoef(np.log(spread), day[:24])[0, 1] > 0.95
    assert 2.5 < spread.max() / spread.min() < 6  # exp(1.4) = 4.06


def test_a_few_days_have_no_calendar() -> None:
    rng = np.random.default_rng(0)
    daily = np.sin(2 * np.pi * np.arange(24 * 9) / 24) + 0.3 * rng.normal(size=24 * 9)
    assert find_rhythm(clock(), [Readings(0, {"x": daily[: 24 * 6]})]).terms == []
    assert find_rhythm(clock(), [Readings(0, {"x": daily})]).terms == ["hour"]


def test_counted_steps_have_no_calendar() -> None:
    assert not fitted(plant(9).with_columns(at=pl.int_range(24 * 9)), window=8).plan.rhythm.terms


def test_months_need_years() -> None:
    rng = np.random.default_rng(0)
    days = np.arange(365 * 5)
    yearly = Readings(0, {"x": 3 * np.cos(2 * np.pi * days / 365.25) + rng.normal(size=len(days))})
    daily = Clock(24 * HOUR, 0)
    rhythm = find_rhythm(daily, [yearly])
    assert rhythm.terms == ["month"]
    short = Readings(0, {"x": yearly.values["x"][:500]})
    assert find_rhythm(daily, [short]).terms == []


def test_the_clock_follows_daylight_saving() -> None:
    berlin = clock("Europe/Berlin").local(np.array([473_352 + 24 * 180]))[0]
    assert berlin == MONDAY + timedelta(days=180, hours=2)


def test_what_is_asked_for_is_taken_or_refused() -> None:
    frame = plant(30)
    rhythm = find_rhythm(clock(), [readings(frame, "free")], ["hour"])
    assert rhythm.terms == ["hour"]
    with pytest.raises(ConfigError, match="at least 2 years, at least half recorded; there are 0"):
        find_rhythm(clock(), [readings(frame, "free")], ["month"])
    with pytest.raises(ConfigError, match="interval is too long"):
        find_rhythm(Clock(24 * HOUR, 0), [readings(frame, "free")], ["hour"])
    with pytest.raises(ConfigError, match="counts steps"):
        fitted(frame.with_columns(at=pl.int_range(frame.height)), calendar=["hour"])


def test_a_rhythm_is_plain_values_and_can_be_fitted_to_less() -> None:
    frame = plant(140)
    rhythm = find_rhythm(clock(), [readings(frame, "power")])
    places = np.arange(500)
    again = Rhythm.from_json(rhythm.to_json())
    assert np.array_equal(again.at(places)["power"][0], rhythm.at(places)["power"][0])
    half = readings(frame, "power")
    half.values["power"][:1000] = np.nan
    less = refit_rhythm(rhythm, [half])
    assert set(less.profiles["power"].mean) == set(rhythm.profiles["power"].mean)
    off = less.at(places)["power"][0] - rhythm.at(places)["power"][0]
    assert 0 < np.abs(off).max() < 1


def test_taken_out_and_put_back_is_as_it_was(model: SeriesModel) -> None:
    frame = plant(10, seed=3).with_columns(
        pl.when(pl.int_range(240) % 7 == 0).then(None).otherwise("heat").alias("heat")
    )
    sensors, places = frame.drop("at"), 473_352 + np.arange(240)
    even = model.plan.timeless(sensors, None, places)
    back = model.plan.timed(even, None, places)
    assert back["heat"].null_count() == sensors["heat"].null_count() > 0
    for name in sensors.columns:
        assert np.allclose(back[name].drop_nulls(), sensors[name].drop_nulls())
    assert even["power"].std() < 0.7 * sensors["power"].std()


def test_a_weekend_is_no_alert_and_a_pause_on_a_working_day_is_one(model: SeriesModel, blind: SeriesModel) -> None:
    frame = plant(21, seed=5, first=MONDAY + timedelta(days=140))
    assert model.score(frame, alerts_per_day=0.02).events.height == 0
    pause = (pl.col("at").dt.date() == datetime(2024, 5, 29).date()) & pl.col("at").dt.hour().is_between(8, 17)
    paused = frame.with_columns(
        pl.when(pause).then(pl.col("power") - 3).otherwise("power").alias("power"),
        pl.when(pause).then(pl.col("heat") - 6).otherwise("heat").alias("heat"),
    )
    events = model.score(paused, alerts_per_day=0.02).events
    assert events.height == 1
    assert datetime(2024, 5, 29, 4) <= events["peak"][0] <= datetime(2024, 5, 30)
    expected = model.score(paused).expected  # with the calendar put back
    assert np.allclose(expected["power"].median(), paused["power"].median(), atol=1.0)
    without = blind.score(paused, alerts_per_day=0.02).events
    assert without.filter(pl.col("start").dt.date() == datetime(2024, 5, 29).date()).height == 0


def test_a_stream_with_a_calendar_scores_as_the_whole(model: SeriesModel) -> None:
    frame = plant(12, seed=7, first=MONDAY + timedelta(days=150))
    gaps = frame.with_columns(
        pl.when(pl.int_range(288).is_between(60, 75)).then(None).otherwise("power").alias("power")
    )
    whole = model.score(gaps).places
    state, parts = model.start(), []
    for begin in range(0, 288, 50):
        parts.append(model.score_next(state, gaps[begin : begin + 50]).places)
        state = SeriesState(**state.to_json())
    parts.append(model.score_next(state, None, last=True).places)
    streamed = pl.concat([part for part in parts if part.height])
    assert np.allclose(streamed["score"], whole["score"], atol=1e-6)


def test_a_long_series_keeps_the_week(model: SeriesModel, blind: SeriesModel) -> None:
    drawn = model.sample(length=24 * 70, seed=0)
    assert drawn["at"][0] == MONDAY + timedelta(days=140)
    real = plant(140)
    for frame in (drawn, real):
        work = pl.col("at").dt.hour().is_between(9, 17) & (pl.col("at").dt.weekday() <= 5)
        assert 2.3 < frame.filter(work)["power"].mean() - frame.filter(~work)["power"].mean() < 3.3
    for lag in (24, 48, 168):
        ours, theirs = (np.corrcoef(f["power"][:-lag], f["power"][lag:])[0, 1] for f in (drawn, real))
        assert abs(ours - theirs) < 0.12, lag
    without = blind.sample(length=24 * 70, seed=0)["power"]
    assert np.corrcoef(without[:-168], without[168:])[0, 1] < 0.4


def test_windows_are_of_all_hours_and_days(model: SeriesModel) -> None:
    drawn = model.sample(windows=200, seed=0)
    starts = drawn.group_by("series", maintain_order=True).agg(pl.col("at").first())["at"]
    assert starts.dt.hour().n_unique() == 24
    assert starts.dt.weekday().n_unique() == 7
    assert starts.max() < MONDAY + timedelta(days=140)
    again = model.sample(windows=10, seed=0)
    assert again.equals(drawn.filter(pl.col("series") < 10))
    fixed = model.sample(windows=3, start=datetime(2024, 6, 3), seed=0)
    assert fixed.filter(pl.col("series") == 2)["at"][0] == datetime(2024, 6, 3)


def test_a_forecast_knows_the_weekend(model: SeriesModel) -> None:
    friday = plant(5, seed=9, first=MONDAY + timedelta(days=140))
    ahead = model.sample(given=friday, length=72, series=20, seed=0).filter(pl.col("at") > friday["at"][-1])
    noon = ahead.filter(pl.col("at").dt.hour() == 12).group_by(pl.col("at").dt.weekday()).agg(pl.col("power").median())
    power = dict(noon.iter_rows())
    assert power[1] - power[6] > 2
    assert power[1] - power[7] > 2


def test_gaps_are_filled_by_the_calendar_too() -> None:
    rng = np.random.default_rng(1)
    frame = plant(60, width=0.02).with_columns(pl.Series("free", rng.normal(size=1440)))
    fitted_once = fitted(frame)
    hidden = pl.Series(np.isin(np.arange(1440) // 24, [20, 33, 41]))
    holed = frame.with_columns(
        pl.when(hidden).then(None).otherwise("power").alias("power"),
        pl.when(hidden).then(None).otherwise("heat").alias("heat"),
    )
    reports = []
    filled = fitted_once.impute(holed, draws=5, on_report=reports.append)
    errors = reports[0]["power"].errors
    assert errors["calendar"] < 0.3 * errors["linear"]
    assert (filled["power"] - frame["power"]).filter(hidden).abs().mean() < 0.4


def test_a_very_long_recording_is_thinned() -> None:
    rng = np.random.default_rng(0)
    minutes = np.arange(250_000)
    day = np.sin(2 * np.pi * minutes / 1440)
    rhythm = find_rhythm(
        Clock(60_000_000, 0), [Readings(0, {"x": day + rng.normal(size=len(day)), "y": rng.normal(size=len(day))})]
    )
    assert set(rhythm.profiles) == {"x"}
    assert np.abs(rhythm.at(minutes[:1440])["x"][0] - day[:1440]).max() < 0.2


# ------------------------------------------------------------------------------- what a network is shown of it


def test_a_network_is_shown_the_local_hour_day_and_month() -> None:
    found = find_rhythm(clock("Europe/Berlin"), [readings(plant(28), "power")], ["hour", "weekday"])
    assert found.dials == [("hour", 24), ("weekday", 7)]
    places = np.array([0, 10, 4000, 473_352, 480_000])
    shown = found.shown(places)
    for place, row in zip(places.tolist(), shown, strict=True):
        wall = datetime.fromtimestamp(place * 3600, ZoneInfo("Europe/Berlin"))
        assert np.flatnonzero(row).tolist() == [wall.hour, 24 + wall.weekday()]
    assert Rhythm().shown(places).shape == (5, 0)


def test_what_depends_on_the_hour_is_drawn_so(tmp_path: Path) -> None:
    """Two sensors that go together in the morning and against each other later: nothing within a window says which."""
    rng, hours = np.random.default_rng(0), np.arange(24 * 50)
    level, common = 2 * np.sin(2 * np.pi * hours / 24), rng.normal(size=len(hours))
    sign = np.where(hours % 24 < 12, 1.0, -1.0)
    flow, power = level + common, level + sign * common
    at = pl.Series("at", [MONDAY + timedelta(hours=hour) for hour in hours.tolist()])
    noise = 0.3 * rng.normal(size=(2, len(hours)))
    options = {
        "series": {"time": "at", "window": 8},
        "network": {"width": 32, "blocks": 2},
        "train": {"steps": 300, "batch_size": 128},
    }
    table = pl.DataFrame({"at": at, "flow": flow + noise[0], "power": power + noise[1]})
    model = fit_series(table, FitConfig.model_validate(options))
    assert model.bundle.model["dials"] == [["hour", 24]]
    drawn = model.sample(windows=300, seed=1, steps=10)
    hour = drawn["at"].dt.hour().to_numpy()
    rest = drawn.select("flow", "power").to_numpy() - 2 * np.sin(2 * np.pi * hour / 24)[:, None]
    for mine, expected in ((hour < 12, 1 / 1.09), (hour >= 12, -1 / 1.09)):
        assert np.corrcoef(rest[mine].T)[0, 1] == pytest.approx(expected, abs=0.15)
    # Stored and compiled it is shown the same.
    model.save(tmp_path / "m")
    assert_frame_equal(
        load_series(tmp_path / "m").sample(windows=5, seed=1, steps=10), model.sample(windows=5, seed=1, steps=10)
    )
    export(tmp_path / "m")  # compares with torch
    compiled = load_series(tmp_path / "m", runtime="onnx")
    assert_frame_equal(
        compiled.sample(windows=5, seed=1, steps=10), model.sample(windows=5, seed=1, steps=10), abs_tol=1e-3
    )
    assert_frame_equal(compiled.score(table[:60]).places, model.score(table[:60]).places, abs_tol=1e-3)
    # A long series and a forecast are drawn through, too.
    assert model.sample(length=100, seed=2, steps=5).height == 100
    ahead = model.sample(given=table, length=12, seed=2, steps=5)
    assert ahead.height > 0


def test_a_model_from_before_knows_no_dials(tmp_path: Path, model: SeriesModel) -> None:
    assert model.bundle.model["dials"]
    nothing = replace(
        model.bundle, model={name: value for name, value in model.bundle.model.items() if name != "dials"}
    )
    assert nothing.drawn_layout is nothing.codec.layout
