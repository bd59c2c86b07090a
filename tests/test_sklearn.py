"""The detectors with scikit-learn's and PyOD's interfaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from tabdiff import ConfigError, FitConfig, TabdiffWarning
from tabdiff.columns import Kind
from tabdiff.sklearn import DiffusionDetector, PyODDetector

SMALL = {"network": {"width": 32, "blocks": 1}, "train": {"batch_size": 64}}
# What the checks ask does not depend on how long a fit takes, and they fit hundreds of times.
QUICK: dict[str, Any] = {"steps": 3, "config": SMALL | {"score": {"turns": 2}}}


class UnroundedDetector(DiffusionDetector):
    """Without the tags for categories and text, so that scikit-learn's checks do not round their numbers."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = tags.input_tags.string = False
        return tags


def detector(**options: Any) -> DiffusionDetector:
    return DiffusionDetector(**{"steps": 20, "config": SMALL} | options)


def blob(rows: int, seed: int = 0) -> np.ndarray:
    """Three correlated numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    x[:, 1] += 2 * x[:, 0]
    return x


@pytest.mark.filterwarnings("ignore:.*fewer than the 10 that a model needs:tabdiff.errors.TabdiffWarning")
@parametrize_with_checks(
    [
        detector(**QUICK),
        detector(**QUICK, contaminated=True),
        detector(**QUICK, kernel_rows=0),
        UnroundedDetector(**QUICK),
    ]
)
def test_the_checks_of_scikit_learn(estimator: DiffusionDetector, check: Callable[[Any], None]):
    check(estimator)


def test_tags():
    tags = get_tags(DiffusionDetector())
    assert tags.estimator_type == "outlier_detector"
    assert tags.input_tags.allow_nan
    assert tags.input_tags.string
    assert not tags.input_tags.sparse


# ---------------------------------------------------------------------------------------------------- scores


def test_signs_agree():
    x = blob(200)
    new = np.concatenate([blob(20, seed=1), [[0.0, 0.0, 9.0]]])
    ours = detector(random_state=0).fit(x)
    theirs = PyODDetector(steps=20, config=SMALL, random_state=0).fit(x)
    np.testing.assert_allclose(ours.score_samples(new), -theirs.decision_function(new))
    np.testing.assert_allclose(ours.decision_function(new), theirs.threshold_ - theirs.decision_function(new))
    np.testing.assert_array_equal(ours.predict(new) == -1, theirs.predict(new) == 1)
    np.testing.assert_array_equal(ours.predict(x) == -1, theirs.labels_ == 1)
    np.testing.assert_allclose(theirs.decision_scores_, theirs.decision_function(x))
    assert ours.score_samples(new).argmin() == 20


def test_rows_that_are_not_stored_score_as_the_model_says():
    new = blob(30, seed=1)
    fitted = detector().fit(blob(200))
    np.testing.assert_allclose(
        fitted.score_samples(new), -fitted.model_.score(table_of(new)).score, rtol=1e-4, atol=1e-6
    )


def test_a_score_depends_on_its_row_alone():
    x = blob(1100, seed=1)
    fitted = detector().fit(blob(200))
    together = fitted.score_samples(x)
    # To rounding: a matrix product adds up a row at the edge of a block in another order.
    np.testing.assert_allclose(together[::-1], fitted.score_samples(x[::-1]), rtol=1e-6, atol=1e-6)
    alone = [fitted.score_samples(x[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together[:3], alone, rtol=1e-6, atol=1e-6)


def table_of(x: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(x, schema=[f"x{index}" for index in range(x.shape[1])], orient="row")


@pytest.mark.parametrize("contaminated", [False, True])
def test_an_outlier_in_the_training_table_is_found(contaminated: bool):
    """Even though the model stores it."""
    x = blob(200)
    x[17] = [2.0, -4.0, 0.0]  # each number is ordinary, together they are not
    fitted = detector(contaminated=contaminated, contamination=0.02)
    assert fitted.fit_predict(x)[17] == -1
    assert (fitted.predict(x) == -1).sum() == 4


def test_a_copy_of_a_training_row_gains_nothing_by_it():
    x = blob(200)
    x[17] = [2.0, -4.0, 0.0]
    fitted = detector().fit(x)
    stored = fitted.model_.score(table_of(x[17:18])).score[0]  # counts the row as its own neighbour
    assert -fitted.score_samples(x[17:18])[0] > stored + 1
    twice = detector().fit(np.concatenate([x, x[17:18]]))  # one of two copies stays
    assert twice.score_samples(x[17:18])[0] > fitted.score_samples(x[17:18])[0]


def test_new_normal_rows_are_flagged_about_as_often_as_training_rows():
    fitted = detector(contamination=0.1, steps=100).fit(blob(500))
    assert (fitted.predict(blob(500)) == -1).mean() == 0.1
    assert 0.05 < (fitted.predict(blob(2000, seed=1)) == -1).mean() < 0.2


def test_probabilities_are_conformal():
    fitted = PyODDetector(steps=20, config=SMALL).fit(blob(400))
    normal, odd = fitted.predict_proba(blob(400, seed=1)), fitted.predict_proba(np.array([[0.0, 0.0, 50.0]]))
    np.testing.assert_allclose(normal.sum(axis=1), 1)
    assert 0.35 < normal[:, 1].mean() < 0.65
    assert odd[0, 1] == 1 - 1 / (fitted.model_.bundle.model["report"]["calibration_rows"] + 1)
    order = np.argsort(fitted.decision_function(blob(400, seed=1)))
    assert (np.diff(normal[order, 1]) >= 0).all()


# ---------------------------------------------------------------------------------------------------- tables


def test_columns_of_an_array_are_continuous():
    """Also where a table would hold an id, a yes/no and an empty column."""
    x = np.stack([np.arange(60), np.arange(60) % 2, np.full(60, np.nan)], axis=1)
    for array in (x, x[:, :2].astype(int)):
        fitted = detector().fit(array)
        assert {column.kind for column in fitted.model_.schema.columns} == {Kind.CONTINUOUS}
        assert [column.name for column in fitted.model_.schema.modelled] == ["x0", "x1"]
        assert np.isfinite(fitted.score_samples(array)).all()


def test_gaps_in_arrays():
    x = blob(200)
    x[::7, 1] = np.nan
    fitted = detector().fit(x)
    new = blob(5, seed=1)
    new[0, 0] = np.nan  # never missing in training
    assert fitted.score_samples(new).argmin() == 0


def pandas_of(table: pl.DataFrame) -> Any:
    return pytest.importorskip("pandas").DataFrame(table.to_dict(as_series=False))


@pytest.mark.parametrize("convert", [pl.DataFrame, pl.DataFrame.to_arrow, pandas_of], ids=["polars", "arrow", "pandas"])
def test_mixed_tables(convert: Callable[[pl.DataFrame], Any], mixed_table: Callable[..., pl.DataFrame]):
    train, new = mixed_table(300), mixed_table(40, seed=1)
    odd = new.with_columns(price=pl.lit(5.0), weight=pl.lit(9.0))
    fitted = detector(steps=40).fit(convert(train))
    assert list(fitted.feature_names_in_) == train.columns
    assert fitted.n_features_in_ == train.width
    assert fitted.model_.schema["channel"].kind is Kind.CATEGORICAL
    assert fitted.model_.schema["rating"].nullable
    scores = fitted.score_samples(convert(pl.concat([new, odd])))
    assert roc_auc_score(np.repeat([1, 0], 40), scores) > 0.9


def test_a_lazy_table_is_collected():
    fitted = detector().fit(table_of(blob(60)).lazy())
    assert fitted.predict(table_of(blob(3, seed=1)).lazy()).shape == (3,)


def test_other_names_are_refused():
    fitted = detector().fit(table_of(blob(60)))
    other = table_of(blob(60)).rename({"x1": "width"})
    with pytest.raises(ValueError, match=r"(?s)unseen at fit time:\n- width.*now missing:\n- x1"):
        fitted.predict(other)
    with pytest.raises(ValueError, match="3 features"), pytest.warns(UserWarning, match="valid feature names"):
        fitted.predict(np.zeros((4, 2)))


def test_an_array_after_a_table_takes_its_names():
    x = blob(60)
    fitted = detector().fit(table_of(x))
    with pytest.warns(UserWarning, match="valid feature names"):
        scores = fitted.score_samples(x)
    np.testing.assert_array_equal(scores, fitted.score_samples(table_of(x)))
    mixed = detector().fit(table_of(x).with_columns(kind=pl.Series(["a", "b"] * 30)))
    values = np.array([[0.5, 1.0, 0.0, "a"], [0.5, None, 0.0, "c"]], dtype=object)
    with pytest.warns(UserWarning, match="valid feature names"):
        assert np.isfinite(mixed.score_samples(values)).all()


def test_few_rows():
    with pytest.warns(TabdiffWarning, match="6 rows are fewer than the 10"):
        fitted = detector().fit(table_of(blob(6)))
    assert np.isfinite(fitted.score_samples(table_of(blob(6)))).all()
    for one in (blob(1), table_of(blob(1))):
        with pytest.raises(ValueError, match=r"1 sample\(s\) \(shape=\(1, 3\)\) while a minimum of 2 is required"):
            detector().fit(one)


# ---------------------------------------------------------------------------------------------------- options


def test_a_pipeline():
    x = blob(100) * [1.0, 1000.0, 0.01] + 50
    pipeline = make_pipeline(StandardScaler(), detector()).set_params(diffusiondetector__contamination=0.2)
    assert (pipeline.fit_predict(x) == -1).sum() == 20
    pipeline[0].set_output(transform="polars")
    pipeline.fit(pl.DataFrame(x, schema=["a", "b", "c"], orient="row"))
    assert list(pipeline[-1].feature_names_in_) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", [DiffusionDetector, PyODDetector])
def test_clone_and_parameters(kind: type[DiffusionDetector | PyODDetector]):
    original = kind(0.2, **QUICK).fit(blob(60))
    copy = clone(original)
    assert copy.get_params() == original.get_params()
    assert not hasattr(copy, "model_")
    with pytest.raises(NotFittedError):
        copy.decision_function(blob(3))
    for options in ParameterGrid({"contamination": [0.1, 0.3], "kernel_rows": [10, 20], "contaminated": [True]}):
        fitted = clone(original).set_params(**options).fit(blob(60))
        score = fitted.model_.bundle.config.score
        assert (score.kernel_rows, score.contaminated) == (options["kernel_rows"], True)
        flagged = np.isin(fitted.fit_predict(blob(60)), [-1 if kind is DiffusionDetector else 1])
        assert flagged.sum() == 60 * options["contamination"]


def test_the_seed():
    x = blob(60)
    seeds = {"int": 7, "state": np.random.RandomState(0), "none": None}
    fitted = {name: detector(random_state=seed).fit(x).model_.bundle.config.train.seed for name, seed in seeds.items()}
    assert (fitted["int"], fitted["none"]) == (7, 0)
    assert fitted["state"] == np.random.RandomState(0).randint(2**31)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contamination": 0.6}, "contamination"),
        ({"contamination": 0}, "contamination"),
        ({"steps": 0}, "steps"),
        ({"kernel_rows": -1}, "kernel_rows"),
        ({"contaminated": "yes"}, "contaminated"),
        ({"config": {"trian": {}}}, "trian"),
        ({"config": 3}, "config"),
    ],
)
def test_wrong_parameters_are_refused_by_fit(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DiffusionDetector(**options).fit(blob(20))


def test_options_beside_the_parameters():
    config = FitConfig.model_validate({**SMALL, "train": {"seed": 3, "steps": 5}, "data": {"trim": 0.1}})
    used = DiffusionDetector(config=config, contaminated=True).fit(blob(60)).model_.bundle.config
    assert (used.train.seed, used.train.steps, used.data.trim, used.score.contaminated) == (3, 5, 0.1, True)
    assert config.score.contaminated is False
    with pytest.raises(ConfigError, match="kernel_rows is a parameter of DiffusionDetector; got 4096 there and 7"):
        detector(config={"score": {"kernel_rows": 7}}).fit(blob(20))
