"""The judgements against known answers, against scipy and scikit-learn, and on awkward tables."""

import datetime
import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, pearsonr, rankdata
from scipy.stats.contingency import association as scipy_association
from sklearn.metrics import average_precision_score, roc_auc_score

from tabdiff.errors import ConfigError, SchemaError, TabdiffError
from tabdiff.evaluate import detection, fidelity, privacy, utility
from tabdiff.evaluate.validity import validity


def dependent(rows: int, seed: int) -> pl.DataFrame:
    """A mixed table whose columns all depend on one hidden number; some cells are missing."""
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=rows)
    frame = pl.DataFrame(
        {
            "height": hidden + 0.1 * generator.normal(size=rows),
            "count": (10 + 3 * hidden).round().astype(int),
            "colour": np.array(["red", "green", "blue"])[np.digitize(hidden, [-0.5, 0.5])],
            "flag": hidden > 0,
            "day": [datetime.date(2024, 1, 1) + datetime.timedelta(days=int(100 * value)) for value in hidden],
            "noise": generator.normal(size=rows),
        }
    )
    gaps = pl.Series(generator.random(rows) < 0.1)
    return frame.with_columns(noise=pl.when(gaps).then(None).otherwise("noise"))


AWKWARD = {
    "all null": pl.DataFrame({"a": pl.Series([None] * 8, dtype=pl.Float64), "b": list("abababab")}),
    "null dtype": pl.DataFrame({"a": [None] * 8, "b": [1.0, 2, 3, 4, 5, 6, 7, 8]}),
    "constant": pl.DataFrame({"a": [3.0] * 8, "b": [1, 2, 3, 4, 5, 6, 7, 8]}),
    "one category": pl.DataFrame({"a": ["x"] * 8, "b": [True, False] * 4}),
    "not finite": pl.DataFrame({"a": [math.inf, math.nan, 1, 2, 3, 4, 5, -math.inf], "b": [1e300, -1e300] * 4}),
    "one column": pl.DataFrame({"a": [1, 2, 3, 4, 5, 6, 7, 8]}),
    "times": pl.DataFrame({"a": [datetime.time(h) for h in range(8)], "b": [datetime.timedelta(h) for h in range(8)]}),
}


# ------------------------------------------------------------------------------------------- detection


labels_and_scores = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)),
        st.lists(st.integers(-5, 5), min_size=n, max_size=n),
    )
)


@given(labels_and_scores)
@settings(max_examples=60, deadline=None)
def test_measures_agree_with_scikit_learn_and_ignore_the_order(pair: tuple[list[int], list[int]]) -> None:
    labels, scores = np.array(pair[0]), np.array(pair[1], dtype=float)
    assert detection.roc_auc(labels, scores) == roc_auc_score(labels, scores)
    assert detection.average_precision(labels, scores) == average_precision_score(labels, scores)
    assert detection.median_rank(labels, scores) == np.median(rankdata(-scores)[labels == 1])
    precision = detection.precision_at_k(labels, scores)
    assert 0 <= precision <= 1
    assert precision == pytest.approx(detection.precision_at_k(labels[::-1], scores[::-1]))


def test_precision_at_k_counts_the_top() -> None:
    assert detection.precision_at_k([1, 0, 1, 0], [4, 3, 2, 1]) == 0.5
    assert detection.precision_at_k([1, 0, 1, 0], [4, 3, 2, 1], k=3) == pytest.approx(2 / 3)
    assert detection.precision_at_k([1, 0, 0, 0], [1, 1, 1, 1]) == 0.25


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 0], [1, 2]), ([1, 1], [1, 2]), ([0, 1], [1, math.nan]), ([0, 1], [1]), ([0, 2], [1, 2]), ([], [])],
)
def test_bad_labels_and_scores_are_refused(labels: list[int], scores: list[float]) -> None:
    with pytest.raises(ConfigError):
        detection.roc_auc(labels, scores)


def test_controls_find_a_far_row_and_random_does_not() -> None:
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(300, 4)), generator.normal(size=(100, 4))
    test[90:] += 6
    labels = (np.arange(100) >= 90).astype(int)
    rows = detection.compare(
        labels,
        {
            "near": detection.nearest_neighbours_score(train, test),
            "forest": detection.isolation_forest_score(train, test, 0),
            "random": detection.random_score(100, 0),
        },
    )
    assert [row.name for row in rows] == ["near", "forest", "random"]
    assert rows[0].roc_auc == 1.0
    assert rows[0].median_rank == 5.5
    assert rows[1].roc_auc > 0.98
    assert 0.2 < rows[2].roc_auc < 0.8
    json.dumps(rows[0].to_json(), allow_nan=False)


def test_nearest_neighbours_is_the_mean_of_sorted_distances() -> None:
    generator = np.random.default_rng(1)
    train, test = (
        generator.normal(size=(30, 3)) * [1, 100, 1e-3],
        generator.normal(size=(5, 3)) * [1, 100, 1e-3],
    )
    scale = train.std(axis=0)
    brute = np.sort(np.linalg.norm((test[:, None] - train[None]) / scale, axis=2), axis=1)[:, :4].mean(axis=1)
    np.testing.assert_allclose(detection.nearest_neighbours_score(train, test, k=4), brute)
    assert np.isfinite(detection.nearest_neighbours_score(train[:2], test, k=9)).all()


def test_encoding_is_standardised_and_marks_the_new_and_the_missing() -> None:
    train = pl.DataFrame({"x": [1.0, 2, 3, None], "c": ["a", "a", "b", None], "k": [7, 7, 7, 7]})
    test = pl.DataFrame({"x": [2.0, None], "c": ["zzz", None], "k": [7, 8]})
    left, right = detection.encode_for_controls(train, test)
    assert left.shape == (4, 2 + 4 + 1)
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-12)
    assert right[0, 2 + 2] == 1  # the column of levels unknown to train, constant there
    assert right[1, 6] == pytest.approx(1)  # a constant column keeps its unit
    np.testing.assert_allclose(right[0, 0], 0)  # the median replaced the gap
    with pytest.raises(SchemaError, match="no such column"):
        detection.encode_for_controls(train, test.drop("x"))


@pytest.mark.parametrize("name", AWKWARD)
def test_controls_take_awkward_tables(name: str) -> None:
    left, right = detection.encode_for_controls(AWKWARD[name], AWKWARD[name])
    assert np.isfinite(detection.nearest_neighbours_score(left, right)).all()
    assert np.isfinite(detection.isolation_forest_score(left, right)).all()


# -------------------------------------------------------------------------------------------- fidelity


def test_identical_tables_have_no_error() -> None:
    real = dependent(300, 0)
    report = fidelity.fidelity(real, real.sample(fraction=1, shuffle=True, seed=1))
    assert report.shape.mean == 0
    assert report.trend.mean == pytest.approx(0, abs=1e-9)
    assert report.detector_auc < 0.55
    assert report.validity.passed
    json.dumps(report.to_json(), allow_nan=False)


def test_disjoint_tables_have_full_error() -> None:
    real = pl.DataFrame({"x": np.arange(60.0), "c": ["a", "b"] * 30})
    synthetic = pl.DataFrame({"x": np.arange(60.0) + 100, "c": ["y", "z"] * 30})
    report = fidelity.fidelity(real, synthetic)
    assert report.shape.mean == 100
    assert report.trend.mean == 100
    assert report.detector_auc == 1
    assert {check.column for check in report.validity.failures} == {"x", "c"}
    assert report.validity.invalid_rows == 100


def test_independent_columns_fool_shape_but_not_trend_nor_detector() -> None:
    real = dependent(1500, 0)
    report = fidelity.fidelity(real, fidelity.independent_columns(real, 1500, 1))
    fresh = fidelity.fidelity(real, dependent(1500, 1))
    assert report.shape.mean < 5
    assert report.detector_auc > 0.95
    assert report.trend.strong_mean > 30
    assert report.trend.strong_mean > report.trend.mean
    assert fresh.detector_auc == pytest.approx(0.5, abs=0.06)
    assert fresh.trend.mean < report.trend.mean
    assert "noise" not in report.trend.pairs[0].to_json().values()


columns_of_numbers = st.lists(st.one_of(st.none(), st.integers(-4, 4).map(float)), min_size=1, max_size=30)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scipy, about its p-value for very few rows
@given(columns_of_numbers, columns_of_numbers)
@settings(max_examples=50, deadline=None)
def test_shape_of_numbers_is_kolmogorov_smirnov(left: list[float | None], right: list[float | None]) -> None:
    frames = [pl.DataFrame({"x": pl.Series(values, dtype=pl.Float64)}) for values in (left, right)]
    floor = [[-99.0 if value is None else value for value in values] for values in (left, right)]
    assert fidelity.shape_error(*frames).mean == pytest.approx(100 * ks_2samp(*floor, method="asymp").statistic)
    assert fidelity.shape_error(frames[1], frames[0]).mean == pytest.approx(fidelity.shape_error(*frames).mean)


def test_shape_of_categories_is_total_variation_with_missing_as_a_level() -> None:
    real = pl.DataFrame({"c": ["a", "a", "b", None]})
    synthetic = pl.DataFrame({"c": ["a", "b", "b", "new"]})
    assert fidelity.shape_error(real, synthetic).mean == pytest.approx(50)  # (1 + 1 + 1 + 1) / 4 / 2


def test_trend_of_numbers_is_half_the_difference_of_correlations() -> None:
    left, right = dependent(400, 2).select("height", "count"), dependent(300, 3).select("height", "noise")
    right = right.rename({"noise": "count"}).drop_nulls()
    expected = abs(pearsonr(*left.to_numpy().T).statistic - pearsonr(*right.to_numpy().T).statistic) / 2
    pair = fidelity.trend_error(left, right).pairs[0]
    assert pair.measure == "correlation"
    assert pair.error == pytest.approx(100 * expected)
    assert pair.strong


def test_trend_of_mixed_columns_is_total_variation_of_bins() -> None:
    real = pl.DataFrame({"x": [0.0, 1, 9, 10], "c": ["a", "a", "b", "b"]})
    synthetic = pl.DataFrame({"x": [0.0, 1, 9, 10], "c": ["a", "b", "b", "b"]})
    pair = fidelity.trend_error(real, synthetic).pairs[0]
    assert (pair.measure, pair.error) == ("contingency", pytest.approx(25))
    assert pair.real_association == pytest.approx(1)


def test_trend_sees_that_the_pattern_of_missing_cells_changed() -> None:
    both = [1.0, 2, 3, 4, None, None, None, None]
    real = pl.DataFrame({"x": both, "y": both})
    synthetic = pl.DataFrame({"x": both, "y": [1.0, 2, None, None, 3.0, 4, None, None]})
    assert fidelity.trend_error(real, synthetic).mean == pytest.approx(50)


def test_association_agrees_with_scipy_and_is_symmetric() -> None:
    frame = dependent(400, 4).drop("noise", "day")
    matrix = fidelity.association(frame)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 1)
    assert matrix[0, 1] == pytest.approx(pearsonr(frame["height"], frame["count"]).statistic)
    counts = frame.group_by("colour", "flag").len().pivot("flag", index="colour", values="len").fill_null(0)
    table = counts.select("true", "false").to_numpy().astype(int)
    assert matrix[2, 3] == pytest.approx(scipy_association(table, method="cramer"))
    groups = frame.group_by("flag").agg(pl.col("height").mean().alias("m"), pl.len())
    between = (groups["len"] * (groups["m"] - frame["height"].mean()) ** 2).sum()
    assert matrix[0, 3] ** 2 == pytest.approx(between / frame["height"].var(ddof=0) / frame.height)


@pytest.mark.parametrize("name", AWKWARD)
def test_fidelity_of_awkward_tables_is_finite(name: str) -> None:
    frame = AWKWARD[name]
    for synthetic in (frame, frame.reverse(), fidelity.independent_columns(frame, 6, 0)):
        report = fidelity.fidelity(frame, synthetic)
        json.dumps(report.to_json(), allow_nan=False)
        assert report.validity.passed
    assert np.isfinite(fidelity.association(frame)).all()


def test_independent_columns_draw_from_each_column_and_repeat_for_a_seed() -> None:
    real = dependent(50, 0)
    drawn = fidelity.independent_columns(real, 200, 3)
    assert drawn.shape == (200, real.width)
    assert drawn.schema == real.schema
    assert drawn.equals(fidelity.independent_columns(real, 200, 3))
    assert all(set(drawn[name].to_list()) <= set(real[name].to_list()) for name in real.columns)


@pytest.mark.parametrize("measure", [fidelity.shape_error, fidelity.trend_error, fidelity.detector_auc])
def test_tables_that_cannot_be_compared_are_refused(measure) -> None:
    real = dependent(20, 0)
    for synthetic in (
        real.drop("flag"),
        real.with_columns(more=1),
        real.clear(),
        real.cast({"count": pl.String}),
    ):
        with pytest.raises(SchemaError):
            measure(real, synthetic)
    with pytest.raises(SchemaError):
        measure(real.clear(), real)
    with pytest.raises(SchemaError, match="one number, date"):
        measure(*[pl.DataFrame({"a": [[1], [2], [3]]})] * 2)


def test_validity_names_the_broken_rule() -> None:
    real = pl.DataFrame({"x": [1, 2, 3], "c": ["a", "b", "b"]})
    assert validity(real, real.select("c", "x")).passed
    broken = pl.DataFrame({"x": [1, None, 9], "c": ["a", "b", "q"]})
    report = validity(real, broken)
    assert [(check.column, check.rule) for check in report.failures] == [
        ("x", "missing only where the real column is"),
        ("x", "within the real range"),
        ("c", "known levels"),
    ]
    assert report.invalid_rows == pytest.approx(200 / 3)
    assert not validity(real, real.cast({"x": pl.Float64})).passed
    assert not validity(real, real.drop("c")).passed
    assert not validity(real, real.clear()).passed


# --------------------------------------------------------------------------------------------- privacy


def test_copies_are_counted_exactly() -> None:
    train = dependent(100, 0)
    fresh = dependent(60, 1)
    synthetic = pl.concat([train[:7], train[:2], fresh])
    report = privacy.exact_copies(train, synthetic, pl.concat([dependent(40, 2), train[5:6]]))
    assert (report.copies, report.holdout_copies) == (9, 1)
    assert report.percent == pytest.approx(900 / 69)
    gaps = pl.DataFrame({"x": [None, 1.0], "c": [None, "a"]})
    one = pl.DataFrame({"x": [1], "c": ["a"]})
    assert privacy.exact_copies(gaps, gaps, one).to_json() == {
        "synthetic_rows": 2,
        "copies": 2,
        "percent": 100.0,
        "holdout_rows": 1,
        "holdout_copies": 1,
        "holdout_percent": 100.0,
    }


def test_share_is_a_hundred_for_copies_and_fifty_for_fresh_rows() -> None:
    train, holdout, fresh = (dependent(800, seed) for seed in (0, 1, 2))
    copied = train.sample(800, with_replacement=True, seed=0)
    assert privacy.distance_to_closest_record_share(train, holdout, copied).share == pytest.approx(100)
    assert privacy.distance_to_closest_record_share(holdout, train, copied).share == pytest.approx(0)
    report = privacy.distance_to_closest_record_share(train, holdout, fresh)
    assert report.low < 50 < report.high
    assert report.high - report.low < 8


def test_share_agrees_with_a_loop_on_small_tables() -> None:
    train = pl.DataFrame({"x": [0.0, 10.0], "c": ["a", "b"]})
    holdout = pl.DataFrame({"x": [4.0, 6.0], "c": ["a", "b"]})
    synthetic = pl.DataFrame({"x": [1.0, 4.0, 2.0], "c": ["a", "a", "a"]})
    report = privacy.distance_to_closest_record_share(train, holdout, synthetic)
    assert report.share == pytest.approx(100 * (1 + 0 + 0.5) / 3)
    assert (report.median_to_train, report.median_to_holdout) == (pytest.approx(0.2), pytest.approx(0.2))


@pytest.mark.parametrize("name", AWKWARD)
def test_privacy_of_awkward_tables_is_finite(name: str) -> None:
    frame = AWKWARD[name]
    report = privacy.distance_to_closest_record_share(frame, frame, frame)
    assert report.share == 50
    assert privacy.exact_copies(frame, frame, frame).copies == 8
    json.dumps(report.to_json(), allow_nan=False)


@given(st.floats(0, 1), st.integers(1, 1000))
def test_interval_holds_the_share(share: float, count: int) -> None:
    low, high = privacy.wilson_interval(share, count)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


# --------------------------------------------------------------------------------------------- utility


@pytest.mark.parametrize(("target", "metric"), [("flag", "roc_auc"), ("colour", "macro_f1"), ("count", "r2")])
def test_synthetic_rows_as_good_as_real_ones_train_as_well(target: str, metric: str) -> None:
    train, test = dependent(400, 0).drop("day"), dependent(300, 1).drop("day")
    good = utility.train_on_synthetic(train, dependent(400, 2).drop("day"), test, target)
    assert good.metric == metric
    assert good.real > 0.9
    assert good.gap == pytest.approx(0, abs=0.06)
    bad = utility.train_on_synthetic(train, fidelity.independent_columns(train, 400, 0), test, target)
    assert bad.gap > 0.3


def test_a_number_with_two_values_is_a_class_and_one_class_teaches_nothing() -> None:
    train = dependent(120, 0).select("height", pl.col("flag").cast(pl.Int64))
    constant = train.with_columns(flag=pl.lit(1, dtype=pl.Int64))
    report = utility.train_on_synthetic(
        train, constant, dependent(90, 1).select(train.columns).cast(train.schema), "flag"
    )
    assert (report.metric, report.synthetic) == ("roc_auc", 0.5)
    test = dependent(90, 1).select(train.columns).cast(train.schema)
    assert report == utility.train_on_synthetic(train, constant, test, "flag")


def test_impossible_targets_are_refused() -> None:
    frame = dependent(50, 0)
    for target, test in (("nothing", frame), ("flag", frame.filter("flag")), ("flag", frame.clear())):
        with pytest.raises(TabdiffError):
            utility.train_on_synthetic(frame, frame, test, target)
    empty = frame.with_columns(height=pl.lit(None, dtype=pl.Float64))
    with pytest.raises(SchemaError, match="have a target"):
        utility.train_on_synthetic(frame, empty, frame, "height")
    with pytest.raises(SchemaError, match="at least one other column"):
        utility.train_on_synthetic(*[frame.select("flag")] * 3, "flag")


def test_missing_features_and_constant_targets_have_defined_results() -> None:
    frame = pl.DataFrame({"x": pl.Series([None] * 40, dtype=pl.Float64), "y": [1.0] * 40})
    report = utility.train_on_synthetic(frame, frame, frame, "y")
    assert (report.metric, report.real, report.gap) == ("r2", 0.0, 0.0)
