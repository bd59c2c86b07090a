"""What readings should have been: compared with conditional Gaussians worked out by the covariance, and with the truth where faults are planted."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tabdiff import fit_series
from tabdiff.config import validate_fit_config
from tabdiff.expectation import Expectation, Reach
from tabdiff.series_model import SeriesModel

FACTORS = {"flow": 1.0, "pressure": 0.8, "current": 1.2, "heat": 0.9, "vibration": 0.7}


def pump(places: int = 1600) -> pl.DataFrame:
    """Sensors that all follow the load, which changes within a few places, and a switch."""
    rng = np.random.default_rng(0)
    load = np.convolve(rng.normal(size=places + 3), np.ones(4) / 2, mode="valid")
    readings = {name: factor * load + 0.2 * rng.normal(size=places) for name, factor in FACTORS.items()}
    return pl.DataFrame({"at": np.arange(places), **readings, "mode": np.where(load > 1.5, "high", "low")})


@pytest.fixture(scope="module")
def model() -> SeriesModel:
    config = validate_fit_config({"series": {"time": "at", "window": 32}, "train": {"steps": 1}})
    return fit_series(pump()[:1200], config)


def conditional(
    expectation: Expectation, raw: np.ndarray, place: int, gone: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each slot of a place given all cells but its column's and those that are gone (steps, R), by the covariance."""
    steps, width = expectation.steps, expectation.width
    covariance, mean = np.linalg.inv(expectation._precision), expectation._mean
    owner = np.asarray(expectation.codec.layout.view_columns)
    start = int(np.clip(place - steps // 2, 0, len(raw) - steps))
    off = raw[start : start + steps].reshape(-1) - mean
    found = np.empty((2, width))
    for slot in range(width):
        mine = np.zeros((steps, width), dtype=bool)
        mine[place - start, owner == owner[slot]] = True
        own, rest = (place - start) * width + slot, np.flatnonzero(~(gone | mine).reshape(-1))
        weights = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, own])
        found[:, slot] = mean[own] + weights @ off[rest], covariance[own, own] - weights @ covariance[rest, own]
    return found[0], np.sqrt(found[1])


@pytest.mark.parametrize("reach", [Reach(), Reach(4, 0.3), Reach(1, 1.0)])
def test_expected_readings_are_conditional_means(model: SeriesModel, reach: Reach) -> None:
    expectation = model.expectation.reaching(reach)
    raw = np.random.default_rng(0).normal(size=(60, expectation.width))
    found = expectation.given_others(raw)
    nothing = np.zeros((expectation.steps, expectation.width), dtype=bool)
    for place in (0, 30, 59):
        assert found[place] == pytest.approx(conditional(expectation, raw, place, nothing)[0], abs=1e-6)
    assert {round(x, 6) for x in expectation.deviations().values()} != {0.0}


@pytest.mark.parametrize("reach", [Reach(), Reach(4, 0.3)])
def test_readings_that_are_not_believed_are_left_out(model: SeriesModel, reach: Reach) -> None:
    expectation = model.expectation.reaching(reach)
    raw = np.random.default_rng(0).normal(size=(60, expectation.width))
    hidden = np.random.default_rng(1).random((60, len(model.codec.columns))) < 0.3
    places = np.array([0, 17, 30, 59])
    hidden[30] = [True, *[False] * (hidden.shape[1] - 1)]
    expected, ratio = expectation.leaving_out(raw, places, lambda _, around: hidden[around])
    owner = np.asarray(model.codec.layout.view_columns)
    for number, place in enumerate(places):
        start = int(np.clip(place - expectation.steps // 2, 0, 60 - expectation.steps))
        gone = hidden[start : start + expectation.steps][:, owner]
        usual = conditional(expectation, raw, expectation.steps // 2, 0 * gone > 0)[1]
        mean, deviation = conditional(expectation, raw, place, gone)
        assert expected[number] == pytest.approx(mean, abs=1e-6)
        assert ratio[number] == pytest.approx(deviation / usual, rel=1e-6)
    # With nothing hidden it is the usual expectation, no more uncertain than usual.
    same, ones = expectation.leaving_out(raw, np.array([30]), lambda _, around: 0 * hidden[around] > 0)
    assert same[0] == pytest.approx(expectation.given_others(raw)[30], abs=1e-9)
    assert ones == pytest.approx(1)


def test_what_a_broken_sensor_should_have_been_is_told_without_it(model: SeriesModel) -> None:
    healthy = pump()[1200:]
    wear = np.where((healthy["at"] >= 1350) & (healthy["at"] < 1400), 6.0, 0.0)
    scores = model.score(healthy.with_columns(pl.col("vibration", "heat") + wear))
    broken = slice(150, 200)
    assert scores.places["flagged"][broken].mean() > 0.9

    def inside(name: str, values: pl.Series, part: slice) -> float:
        return float(
            values[part].is_between(scores.expected[f"{name}_low"][part], scores.expected[f"{name}_high"][part]).mean()
        )

    for name in FACTORS:  # both of those that are broken, and those that are in order
        assert inside(name, healthy[name], broken) > 0.8
        assert inside(name, healthy[name], slice(0, 100)) > 0.9  # the band is that of time that was not fitted to
    assert inside("heat", healthy["heat"] + wear, broken) == 0
    assert inside("vibration", healthy["vibration"] + wear, broken) == 0
    near = model.score(healthy).expected["flow"][broken]
    assert (scores.expected["flow"][broken] - near).abs().mean() < 0.3  # deviations are 1


def test_evidence_is_the_fall_of_the_squared_distance_without_a_sensor(model: SeriesModel) -> None:
    expectation = model.expectation
    steps, owner, precision, _ = expectation._parts
    raw = np.random.default_rng(1).normal(size=(steps, expectation.width))
    found = expectation.evidence(raw, np.array([steps // 2]))[0]
    off = raw.reshape(-1) - expectation._gaussian.mean[: raw.size]
    covariance = np.linalg.inv(precision)
    known = np.linalg.inv(expectation._precision_of(steps, 0.1))
    assert covariance == pytest.approx(known + (0.5**2 - 0.1**2) * np.eye(raw.size), abs=1e-3)

    def distance(keep: np.ndarray) -> float:
        return float(off[keep] @ np.linalg.solve(covariance[np.ix_(keep, keep)], off[keep]))

    for column in range(len(model.codec.columns)):
        truth = distance(np.arange(len(off))) - distance(np.flatnonzero(owner != column))
        assert found[column] == pytest.approx(truth, rel=1e-4, abs=1e-4)


def test_a_level_moves_by_what_the_others_do_not_explain(model: SeriesModel) -> None:
    # The load is high in these rows, so all sensors lie beyond their usual level; one of them was calibrated anew as well.
    frame = pump()[1200:]
    busy = frame.with_columns(pl.col(name) + 2.0 * factor for name, factor in FACTORS.items())
    accepted = model.accept(busy.with_columns(pl.col("current") + 3.0))
    assert {name for name, (shift, _) in accepted.plan.units["None"].items() if shift} == {"current"}
    assert accepted.plan.units["None"]["current"][0] == pytest.approx(3.0, abs=0.1)
    none = model.accept(busy)
    assert not any(shift for shift, _ in none.plan.units["None"].values())
