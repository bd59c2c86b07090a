"""Which sensor carries what is abnormal: compared with sums written out, on evidence from a seeded generator."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from tabdiff.attribution import Habits, far_of

WINDOW, STEPS, SENSORS = 64, 16, 4


def recorded(places: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Evidence of normal time, and readings of which every twentieth is that of the place before."""
    rng = np.random.default_rng(seed)
    return rng.chisquare(STEPS, (places, SENSORS)), rng.random((places, SENSORS)) < 0.05


@pytest.fixture(scope="module")
def habits() -> Habits:
    return Habits.fit([recorded(300, seed) for seed in range(4)], WINDOW, STEPS)


def written_out(
    habits: Habits, evidence: np.ndarray, unchanged: np.ndarray, place: int, sensor: int, least: float
) -> float:
    """The most that a spell says."""
    far, reach = far_of(WINDOW, STEPS), WINDOW // 2
    low, high = max(place - far, 0), min(place + far + 1, len(evidence))
    levels = np.maximum(habits.level, least)
    most = 0.0
    for middle in range(place - reach, place + reach + 1, 4):
        if not 0 <= middle < len(evidence):
            continue
        inside = [k for k in range(low, high) if abs(k - middle) <= 8]
        outside = [k for k in range(low, high) if abs(k - middle) > 16]
        off = np.log(np.maximum(evidence[inside].mean(axis=0), least) / levels) / habits.scatter
        above = max(off @ habits.beside[:, sensor], 0) if off[sensor] > 0 else 0
        base = (16 * levels[sensor] + evidence[outside, sensor].sum()) / (16 + len(outside))
        rise = max(np.log(np.mean(evidence[inside, sensor]) / base), 0)
        stuck = max(unchanged[inside, sensor].mean() - habits.calm[sensor], 0) * habits.surprise[sensor]
        most = max(most, (rise + 0.1) * above + stuck)
    return most


def test_suspicion_is_the_sum_written_out(habits: Habits) -> None:
    evidence, unchanged = recorded(400, 9)
    evidence[180:200, 2] *= 4
    unchanged[210:240, 1] = True
    places = np.array([0, 30, 170, 200, 399])
    assert np.abs(habits.beside - np.eye(SENSORS)).max() > 0.01
    found, little = (
        np.array(
            [[written_out(habits, evidence, unchanged, place, c, least) for c in range(SENSORS)] for place in places]
        )
        for least in (STEPS, 0.1)
    )
    assert habits.suspicion(evidence, unchanged, places, WINDOW, STEPS) == pytest.approx(found)
    assert habits.highest.min() > 3
    weight = habits.weigh(evidence, unchanged, places, WINDOW, STEPS)
    windows = np.array([evidence[max(k - WINDOW // 2, 0) : k + WINDOW // 2 + 1].mean(axis=0) for k in places])
    above = np.maximum(np.log(windows) - np.maximum(habits.long_level, np.log(STEPS)), 0) / habits.long_scatter
    little = 0.05 * np.minimum(little / habits.highest, 1)
    assert weight == pytest.approx(found / habits.highest + little + 0.03 * above**2)


def test_windows_are_as_uncertain_as_stretches_differ(habits: Habits) -> None:
    differ = [
        (evidence * factor, same)
        for factor, (evidence, same) in zip((1, 3, 9), (recorded(300, seed) for seed in range(3)), strict=True)
    ]
    found = Habits.fit(differ, WINDOW, STEPS)
    assert found.long_scatter == pytest.approx(np.log(3) * np.sqrt(2 / 3), rel=0.2)
    assert (habits.long_scatter < 0.5 * found.long_scatter).all()
    assert habits.scatter == pytest.approx(found.scatter, rel=0.3)


def test_a_short_fault_counts_for_more_than_a_sensor_that_is_out_of_the_ordinary_all_the_time(habits: Habits) -> None:
    evidence, unchanged = recorded(400, 10)
    evidence[:, 0] *= 6  # a new level that training did not show
    evidence[190:206, 3] *= 5
    (weight,) = habits.weigh(evidence, unchanged, np.array([200]), WINDOW, STEPS)
    assert weight.argmax() == 3
    evidence[190:206, 3] /= 5
    (weight,) = habits.weigh(evidence, unchanged, np.array([200]), WINDOW, STEPS)
    assert weight.argmax() == 0  # when nothing else is wrong, that is what there is


def test_a_sensor_that_stays_the_same_is_named_though_nothing_speaks_against_it(habits: Habits) -> None:
    evidence, unchanged = recorded(400, 11)
    unchanged[180:220, 1] = True
    (weight,) = habits.weigh(evidence, unchanged, np.array([200]), WINDOW, STEPS)
    assert weight.argmax() == 1
    (usual,) = habits.weigh(evidence, unchanged, np.array([80]), WINDOW, STEPS)
    assert usual[1] < weight[1] / 3


def test_what_rises_with_the_others_is_less_suspicious_than_what_rises_alone() -> None:
    def moving(places: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        evidence, unchanged = recorded(places, seed)
        walks = np.repeat(np.random.default_rng(seed).random(places // 40 + 1) < 0.5, 40)[:places]
        return evidence * np.where(walks, 5, 1)[:, None], unchanged

    found = Habits.fit([moving(800, seed) for seed in range(4)], WINDOW, STEPS)
    evidence, unchanged = recorded(400, 15)
    evidence[190:206] *= 5
    (together,) = found.suspicion(evidence, unchanged, np.array([200]), WINDOW, STEPS)
    evidence[190:206, :3] /= 5
    (alone,) = found.suspicion(evidence, unchanged, np.array([200]), WINDOW, STEPS)
    by_itself = replace(found, beside=np.eye(SENSORS))
    (before,) = by_itself.suspicion(evidence, unchanged, np.array([200]), WINDOW, STEPS)
    assert alone[3] > 3 * together[3]
    assert alone[3] > 1.5 * before[3]


def test_of_few_spells_each_sensor_is_judged_by_itself() -> None:
    assert np.array_equal(Habits.fit([recorded(60, 1)], WINDOW, STEPS).beside, np.eye(SENSORS))
    stretches = [recorded(2000, seed) for seed in range(2)]
    for evidence, _ in stretches:
        evidence[:, 1] += evidence[:, 0]
    logs = [np.log([e[max(k - 8, 0) : k + 9].mean(axis=0) for k in range(2000)]) for e, _ in stretches]
    covariance = np.mean([np.cov(each.T, bias=True) for each in logs], axis=0)
    drawn = SENSORS / (4000 / 17)
    scatter = np.sqrt(np.diag(covariance)) + 0.1
    together = (1 - drawn) * covariance / np.outer(scatter, scatter)
    inverse = np.linalg.inv(together - np.diag(np.diag(together)) + np.eye(SENSORS))
    assert Habits.fit(stretches, WINDOW, STEPS).beside == pytest.approx(inverse / np.sqrt(np.diag(inverse))[None, :])


def test_a_command_that_was_never_given_is_not_what_broke() -> None:
    def resting(places: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        evidence, unchanged = recorded(places, seed)
        evidence[:, 0], unchanged[:, 0] = 0.01, True
        return evidence, unchanged

    found = Habits.fit([resting(300, seed) for seed in range(4)], WINDOW, STEPS)
    evidence, unchanged = resting(400, 14)
    evidence[150:230, 0], unchanged[150, 0] = (
        4.0,
        False,
    )  # 40 times the least that counts as a level, and less than noise gives
    evidence[190:206, 2] *= 4
    (weight,) = found.weigh(evidence, unchanged, np.array([200]), WINDOW, STEPS)
    assert weight.argmax() == 2
    assert weight[0] <= 0.05
    evidence[190:206, 2] /= 4
    (weight,) = found.weigh(evidence, unchanged, np.array([190]), WINDOW, STEPS)
    assert weight[0] == pytest.approx(0.05)  # it decides if nothing else is wrong
    evidence[190:206, 0] = 800  # one that does move is what broke
    (weight,) = found.weigh(evidence, unchanged, np.array([200]), WINDOW, STEPS)
    assert weight.argmax() == 0


def test_what_lies_farther_than_a_stream_knows_changes_nothing(habits: Habits) -> None:
    evidence, unchanged = recorded(400, 12)
    place, far = 200, far_of(WINDOW, STEPS)
    assert far + STEPS // 2 <= WINDOW
    found = habits.weigh(evidence, unchanged, np.array([place]), WINDOW, STEPS)
    some = slice(place - far, place + far + 1)
    assert habits.weigh(evidence[some], unchanged[some], np.array([far]), WINDOW, STEPS) == pytest.approx(found)


def test_habits_are_stored_and_those_of_earlier_models_are_read(habits: Habits) -> None:
    stored = habits.to_json()
    again = Habits.from_json(stored)
    for field in fields(Habits):
        assert np.array_equal(getattr(again, field.name), getattr(habits, field.name))
    earlier = Habits.from_json({"usual": habits.level.tolist(), "scatter": habits.scatter.tolist()})
    assert np.array_equal(earlier.level, habits.level)
    evidence, unchanged = recorded(200, 13)
    evidence[90:110, 2] *= 5
    assert earlier.weigh(evidence, unchanged, np.array([100]), WINDOW, STEPS)[0].argmax() == 2
