"""Is a synthetic table good for training? Trees fitted on it, and on the real one, meet the same test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import f1_score, r2_score, roc_auc_score

from tabdiff.errors import Problem, SchemaError
from tabdiff.evaluate.frames import (
    Floats,
    Integers,
    Report,
    align,
    kind_of,
    numbers,
    ordinal,
    positions,
    texts,
)

Metric = Literal["roc_auc", "macro_f1", "r2"]
TREES = {"max_iter": 300, "learning_rate": 0.06, "early_stopping": False}
"""As many steps as the usual benchmark takes; no early stop, which the number of rows would switch on."""


@dataclass(frozen=True)
class Utility(Report):
    """Quality on the same real test rows of a model fitted on synthetic and of one fitted on real rows.

    Higher is better: `roc_auc` (two classes) and `macro_f1` (more) 0 to 1, `r2` up to 1. `gap` = real minus
    synthetic.
    """

    target: str
    metric: Metric
    synthetic: float
    real: float
    gap: float


def train_on_synthetic(
    real_train: pl.DataFrame,
    synthetic: pl.DataFrame,
    real_test: pl.DataFrame,
    target: str,
    seed: int = 0,
) -> Utility:
    """Train gradient-boosted trees on synthetic and on real rows and test both on `real_test` (TSTR).

    Two classes (a category, or a number with two values): ROC-AUC of the class that is rarer in the test.
    More classes: macro F1. Any other number: R squared. Rows without a target are left out. A training table
    with a single class scores 0.5 (ROC-AUC), or what always answering that class scores (macro F1).
    """
    synthetic = align(real_train, synthetic, "synthetic")
    real_test = align(real_train, real_test, "test")
    features = [name for name in real_train.columns if name != target]
    if target not in real_train.columns or not features:
        rule = "a target and at least one other column are in the table"
        raise SchemaError([Problem(target, rule, f"columns {real_train.columns}", "Name another target.")])
    tables = [_with_target(frame, target) for frame in (real_train, synthetic, real_test)]
    metric = _metric(tables[0][target])
    inputs = [ordinal(real_train, frame, features) for frame in tables]
    varied = ~np.isnan(inputs[0]).all(axis=0) & ~np.isnan(inputs[1]).all(axis=0)
    inputs = [matrix[:, varied] if varied.any() else np.zeros((len(matrix), 1)) for matrix in inputs]
    results = []
    for which in (1, 0):
        if metric == "r2":
            truth = [numbers(tables[side][target]) for side in (which, 2)]
            results.append(_regression(inputs[which], truth[0], inputs[2], truth[1], seed))
        else:
            classes = [_classes(tables[0][target], tables[side][target]) for side in (which, 2)]
            results.append(_classification(inputs[which], classes[0], inputs[2], classes[1], seed, metric, target))
    return Utility(target, metric, results[0], results[1], results[1] - results[0])


def _with_target(frame: pl.DataFrame, target: str) -> pl.DataFrame:
    """The rows that have a target, at least two."""
    column = frame[target]
    present = ~np.isnan(numbers(column)) if kind_of(column.dtype) == "number" else column.is_not_null().to_numpy()
    kept = frame.filter(pl.Series(present))
    if kept.height < 2:
        rule = "at least two rows of every table have a target"
        raise SchemaError([Problem(target, rule, f"{kept.height} such rows", "Give more rows or another target.")])
    return kept


def _metric(target: pl.Series) -> Metric:
    """The measure that fits the target of the real training table."""
    if kind_of(target.dtype) == "number":
        return "roc_auc" if len(np.unique(numbers(target))) == 2 else "r2"
    return "macro_f1" if texts(target).n_unique() > 2 else "roc_auc"


def _classes(reference: pl.Series, target: pl.Series) -> Integers:
    """Position (n,) of each class among those of the reference; -1 is a class that it lacks."""
    if kind_of(reference.dtype) == "category":
        return positions(texts(reference).unique().sort(), texts(target))
    levels, values = np.unique(numbers(reference)), numbers(target)
    found = np.searchsorted(levels, values).clip(0, len(levels) - 1)
    return np.where(levels[found] == values, found, -1).astype(np.int64)


def _regression(inputs: Floats, target: Floats, test: Floats, truth: Floats, seed: int) -> float:
    """R squared; 0 for a constant test target, whose variance cannot be explained."""
    if truth.min() == truth.max():
        return 0.0
    model = HistGradientBoostingRegressor(random_state=seed, **TREES).fit(inputs, target)
    return float(r2_score(truth, model.predict(test)))


def _classification(
    inputs: Floats, target: Integers, test: Floats, truth: Integers, seed: int, metric: Metric, name: str
) -> float:
    """ROC-AUC of the rarer of two classes, or macro F1."""
    classes, counts = np.unique(truth, return_counts=True)
    if len(classes) < 2 or (metric == "roc_auc" and len(classes) > 2):
        rule = "the test rows hold the classes of the training rows, at least two"
        raise SchemaError([Problem(name, rule, f"{len(classes)} classes", "Give another test table.")])
    positive = classes[np.argmin(counts)]
    if len(np.unique(target)) < 2:
        if metric == "roc_auc":
            return 0.5
        return float(f1_score(truth, np.full_like(truth, target[0]), average="macro", zero_division=0.0))
    model = HistGradientBoostingClassifier(random_state=seed, **TREES).fit(inputs, target)
    if metric == "macro_f1":
        return float(f1_score(truth, model.predict(test), average="macro", zero_division=0.0))
    if positive not in model.classes_:
        return 0.5
    chance = model.predict_proba(test)[:, list(model.classes_).index(positive)]
    return float(roc_auc_score(truth == positive, chance))
