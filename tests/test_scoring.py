"""Calibration, contributions and flags, against their definitions."""

from __future__ import annotations

import numpy as np
from scipy import stats

from tabdiff.calibration import Calibration

rng = np.random.default_rng(0)


def errors(rows: int, views: int = 3, columns: int = 4) -> np.ndarray:
    return rng.gamma(2, 1, (rows, views, columns)).astype(np.float32)


def calibration_of(sample: np.ndarray) -> Calibration:
    return Calibration.fit(("a", "b", "c"), [sample[:, i] for i in range(3)], (1.0, 1.0, 0.5)).with_normal(sample)


def test_contributions_add_up_to_the_score():
    calibration = calibration_of(errors(500))
    score, contributions = calibration.combine(errors(50))
    np.testing.assert_allclose(contributions.sum(1), score, rtol=1e-9)


def test_the_worst_twentieth_of_normal_rows_sets_the_scale():
    sample = errors(1000)
    calibration = calibration_of(sample)
    logs = np.sort(np.log(sample[:, 1].sum(1)))
    z = (logs - calibration.center[1]) / calibration.scale[1]
    assert abs(np.median(z)) < 1e-6
    # A little under 1: the least scale is added to it.
    assert 0.9 < z[-50:].mean() < 1


def test_a_typical_row_scores_about_zero_and_more_error_scores_more():
    calibration = calibration_of(errors(2000))
    assert 0 <= np.median(calibration.normal) < 1
    base = errors(1)
    ladder = [calibration.combine(base * factor)[0][0] for factor in (1, 2, 4, 8)]
    assert ladder == sorted(ladder)
    assert len(set(ladder)) == 4


def test_p_values_are_the_conformal_count():
    calibration = Calibration(("v",), (0.0,), (1.0,), (1.0,), (1.0, 2.0, 2.0, 3.0))
    np.testing.assert_allclose(calibration.p_value(np.array([0.0, 2.0, 2.5, 9.0])), [1, 4 / 5, 2 / 5, 1 / 5])


def test_p_values_of_normal_rows_are_uniform():
    calibration = calibration_of(errors(3000))
    p = calibration.p_value(calibration.combine(errors(3000))[0])
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_exact_copies_have_a_finite_score():
    calibration = calibration_of(errors(100))
    score, contributions = calibration.combine(np.zeros((2, 3, 4), np.float32))
    assert np.isfinite(score).all()
    assert np.isfinite(contributions).all()


def test_combining_does_not_depend_on_company():
    calibration = calibration_of(errors(100))
    batch = errors(100)
    together, _ = calibration.combine(batch)
    alone = np.concatenate([calibration.combine(batch[i : i + 1])[0] for i in range(100)])
    np.testing.assert_array_equal(together, alone)
