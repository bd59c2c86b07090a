"""Does a synthetic table look like the real one? Columns, pairs of columns, and a detector for the rest.

Errors are percents: 0 is perfect, 100 is disjoint. The definitions follow the quality report of SDMetrics
as TabSyn (Zhang et al., ICLR 2024) and TabDiff (Shi et al., ICLR 2025) use it, extended so that missing
values count. Print `independent_columns` and a real holdout beside every result: they are the two ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from tabdiff.errors import ConfigError
from tabdiff.evaluate.frames import (
    Floats,
    Integers,
    Kind,
    Report,
    align,
    draw_rows,
    joint_codes,
    kinds_of,
    numbers,
    ordinal,
    require_rows,
)
from tabdiff.evaluate.validity import Validity, validity

__all__ = [
    "ColumnError",
    "Fidelity",
    "PairError",
    "ShapeError",
    "TrendError",
    "association",
    "detector_auc",
    "fidelity",
    "independent_columns",
    "shape_error",
    "trend_error",
    "validity",
]

BINS = 10
STRONG_CORRELATION, STRONG_V = 0.5, 0.3


@dataclass(frozen=True)
class ColumnError(Report):
    """Distance between the distributions of one column, percent, lower is better."""

    column: str
    kind: Kind
    error: float


@dataclass(frozen=True)
class PairError(Report):
    """Distance between the dependence of two columns, percent, lower is better."""

    first: str
    second: str
    measure: Literal["correlation", "contingency"]
    error: float
    real_association: float
    """How dependent the real columns are: |Pearson's correlation| or Cramér's V, 0 to 1."""

    @property
    def strong(self) -> bool:
        """Whether the real columns depend on each other enough for recent SDMetrics to count the pair."""
        return self.real_association > (STRONG_CORRELATION if self.measure == "correlation" else STRONG_V)


@dataclass(frozen=True)
class ShapeError(Report):
    """Mean over columns, percent, lower is better; and the columns, worst first."""

    mean: float
    columns: tuple[ColumnError, ...]


@dataclass(frozen=True)
class TrendError(Report):
    """Means over pairs, percent, lower is better; and the pairs, worst first.

    `mean` counts every pair, as published results of TabSyn and TabDiff do. `strong_mean` counts the pairs
    that depend on each other in the real table, as SDMetrics has done by default since it has thresholds:
    it says more, because most pairs of most tables are nearly independent. It is 0 if no pair is strong.
    """

    mean: float
    strong_mean: float
    pairs: tuple[PairError, ...]


@dataclass(frozen=True)
class Fidelity(Report):
    """How faithful a synthetic table is. `detector_auc`: 0.5 is indistinguishable, 1 told apart at sight."""

    real_rows: int
    synthetic_rows: int
    shape: ShapeError
    trend: TrendError
    detector_auc: float
    validity: Validity


def fidelity(real: pl.DataFrame, synthetic: pl.DataFrame, seed: int = 0) -> Fidelity:
    """All judgements of this module of one synthetic table."""
    return Fidelity(
        real_rows=real.height,
        synthetic_rows=synthetic.height,
        shape=shape_error(real, synthetic),
        trend=trend_error(real, synthetic),
        detector_auc=detector_auc(real, synthetic, seed),
        validity=validity(real, synthetic),
    )


def shape_error(real: pl.DataFrame, synthetic: pl.DataFrame) -> ShapeError:
    """Distance of each column's distribution, percent, lower is better.

    Numbers: the Kolmogorov-Smirnov statistic, with missing values as one level below all others.
    Categories: total variation, with missing as a level of its own.
    """
    synthetic = align(real, synthetic, "synthetic")
    errors = []
    for name, kind in kinds_of(real).items():
        left, right = joint_codes(kind, real[name], synthetic[name])
        gaps = _shares(left, right)
        distance = np.abs(gaps.cumsum()).max() if kind == "number" else np.abs(gaps).sum() / 2
        errors.append(ColumnError(name, kind, _percent(distance)))
    errors.sort(key=lambda each: -each.error)
    return ShapeError(_mean([each.error for each in errors]), tuple(errors))


def trend_error(real: pl.DataFrame, synthetic: pl.DataFrame) -> TrendError:
    """Distance of the dependence of each pair of columns, percent, lower is better; 0 for a single column.

    Two numbers: half the difference of Pearson's correlations of the rows where both are present, or the
    total variation of the pattern of missing values if that is larger. Other pairs: total variation of the
    contingency tables, numbers cut into ten equal bins between the least and the greatest value of their
    own table (the convention of SDMetrics, kept so that numbers can be set beside published ones). Two
    numbers whose correlation is undefined, as that of a constant, are judged like other pairs.

    The bins move with the extremes, so even a real holdout has an error, of several percent for columns
    with heavy tails: read every result beside that of a holdout.
    """
    synthetic = align(real, synthetic, "synthetic")
    kinds = kinds_of(real)
    left, right = _View(real, kinds), _View(synthetic, kinds)
    for name, kind in kinds.items():
        if kind == "category":
            left.codes[name], right.codes[name] = joint_codes(kind, real[name], synthetic[name])
    pairs = []
    for first, second in combinations(real.columns, 2):
        distance = None
        if kinds[first] == kinds[second] == "number":
            distance = _correlation_distance(left, right, first, second)
        if distance is not None:
            strength = abs(_correlation(left.values[first], left.values[second]) or 0.0)
            pairs.append(PairError(first, second, "correlation", _percent(distance), strength))
        else:
            distance = _contingency_distance(left.codes, right.codes, first, second)
            strength = _cramers_v(left.codes[first], left.codes[second])
            pairs.append(PairError(first, second, "contingency", _percent(distance), strength))
    pairs.sort(key=lambda each: -each.error)
    return TrendError(
        mean=_mean([pair.error for pair in pairs]),
        strong_mean=_mean([pair.error for pair in pairs if pair.strong]),
        pairs=tuple(pairs),
    )


def detector_auc(real: pl.DataFrame, synthetic: pl.DataFrame, seed: int = 0, most_rows: int = 5000) -> float:
    """ROC-AUC of a classifier that tells synthetic rows from real ones, lower is better.

    The classifier two-sample test (Lopez-Paz and Oquab, ICLR 2017) with gradient-boosted trees, 3-fold
    cross-validated on equally many rows of both tables, at most `most_rows` each. About 0.5:
    indistinguishable; 1: told apart at sight. Rows that occur in both tables push it below 0.5. A linear
    classifier in its place would not see that dependence between columns is gone.
    """
    synthetic = align(real, synthetic, "synthetic", least=3)
    generator = np.random.default_rng(seed)
    rows = min(real.height, synthetic.height, most_rows)
    samples = [draw_rows(frame, rows, generator) for frame in (real, synthetic)]
    features = np.vstack([ordinal(real, sample, real.columns) for sample in samples])
    features = features[:, ~np.isnan(features).all(axis=0)]
    if not features.shape[1]:
        return 0.5
    origin = np.repeat([0, 1], rows)
    # early_stopping off: the default switches it on by the number of rows, a jump that nobody asked for.
    trees = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.06, early_stopping=False, random_state=seed)
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    probability = cross_val_predict(trees, features, origin, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(origin, probability))


def independent_columns(real: pl.DataFrame, rows: int, seed: int = 0) -> pl.DataFrame:
    """Baseline of `rows` rows: each column drawn alone, with replacement. Shape near 0, no dependence."""
    require_rows(real, "real")
    if rows < 1:
        raise ConfigError(f"rows is at least 1; found {rows}")
    generator = np.random.default_rng(seed)
    return real.select(column[generator.integers(real.height, size=rows)] for column in real.get_columns())


def association(frame: pl.DataFrame) -> Floats:
    """Dependence of all pairs of columns, (c, c), symmetric, 1 on the diagonal, for a heat map.

    Two numbers: Pearson's correlation, -1 to 1. A number and a category: correlation ratio. Two categories:
    Cramér's V, both 0 to 1. Missing values are a level of a category; numbers use the rows where they are
    present. 0 where undefined.
    """
    require_rows(frame, "real")
    kinds = kinds_of(frame)
    view = _View(frame, kinds)
    for name, kind in kinds.items():
        if kind == "category":
            view.codes[name] = joint_codes(kind, frame[name])[0]
    result = np.eye(frame.width)
    for i, j in combinations(range(frame.width), 2):
        first, second = frame.columns[i], frame.columns[j]
        if kinds[first] == kinds[second] == "number":
            value = _correlation(view.values[first], view.values[second])
        elif kinds[first] == kinds[second] == "category":
            value = _cramers_v(view.codes[first], view.codes[second])
        else:
            number, category = (first, second) if kinds[first] == "number" else (second, first)
            value = _correlation_ratio(view.values[number], view.codes[category])
        result[i, j] = result[j, i] = value or 0.0
    return result


class _View:
    """A table as arrays: `values` of its numbers, `codes` of its binned numbers; 0 is missing."""

    def __init__(self, frame: pl.DataFrame, kinds: dict[str, Kind]) -> None:
        self.values = {name: numbers(frame[name]) for name, kind in kinds.items() if kind == "number"}
        self.codes = {name: _bins(values) for name, values in self.values.items()}


def _mean(values: list[float]) -> float:
    """Mean; 0 of nothing."""
    return float(np.mean(values)) if values else 0.0


def _percent(share: float) -> float:
    return float(np.clip(100 * share, 0, 100))


def _shares(left: Integers, right: Integers) -> Floats:
    """Difference of the share of each code, code 0 first."""
    size = int(max(left.max(), right.max())) + 1
    gaps: Floats = np.bincount(left, minlength=size) / len(left) - np.bincount(right, minlength=size) / len(right)
    return gaps


def _bins(values: Floats) -> Integers:
    """Ten bins of equal width between the extremes; the top value is a bin of its own, as in SDMetrics."""
    missing = np.isnan(values)
    if missing.all():
        return np.zeros(len(values), dtype=np.int64)
    low, high = float(values[~missing].min()), float(values[~missing].max())
    edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low])
    codes = np.digitize(values, edges).astype(np.int64)
    codes[missing] = 0
    return codes


def _contingency_distance(left: dict[str, Integers], right: dict[str, Integers], first: str, second: str) -> float:
    """Total variation between two contingency tables, 0 to 1."""
    size = int(max(left[second].max(), right[second].max())) + 1
    cells = [codes[first] * size + codes[second] for codes in (left, right)]
    _, dense = np.unique(np.concatenate(cells), return_inverse=True)
    return float(np.abs(_shares(*np.split(dense, [len(cells[0])]))).sum() / 2)


def _correlation_distance(left: _View, right: _View, first: str, second: str) -> float | None:
    """Half the difference of two correlations or the distance of the missing patterns; None if undefined."""
    correlations = [_correlation(view.values[first], view.values[second]) for view in (left, right)]
    if correlations[0] is None or correlations[1] is None:
        return None
    present = [{name: (view.codes[name] > 0).astype(np.int64) for name in (first, second)} for view in (left, right)]
    patterns = _contingency_distance(present[0], present[1], first, second)
    return max(abs(correlations[0] - correlations[1]) / 2, patterns)


def _correlation(first: Floats, second: Floats) -> float | None:
    """Pearson's correlation of the rows where both are present; None if either does not vary there."""
    both = ~(np.isnan(first) | np.isnan(second))
    parts = []
    for values in (first[both], second[both]):
        if len(values) < 2 or values.min() == values.max():
            return None
        scaled = values / np.abs(values).max()  # no overflow of the squares of large values
        centred = scaled - scaled.mean()
        length = np.sqrt(centred @ centred)
        if length == 0:
            return None
        parts.append(centred / length)
    return float(np.clip(parts[0] @ parts[1], -1, 1))


def _cramers_v(first: Integers, second: Integers) -> float:
    """Cramér's V, 0 to 1, without correction for bias."""
    table = np.zeros((int(first.max()) + 1, int(second.max()) + 1))
    np.add.at(table, (first, second), 1)
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    least = min(table.shape) - 1
    if least < 1:
        return 0.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    chi_square = ((table - expected) ** 2 / expected).sum()
    return float(np.sqrt(min(1.0, chi_square / table.sum() / least)))


def _correlation_ratio(values: Floats, codes: Integers) -> float:
    """Square root of the share of the variance that lies between the levels, 0 to 1."""
    present = ~np.isnan(values)
    values, codes = values[present], codes[present]
    if not len(values) or values.min() == values.max():
        return 0.0
    values = (values - values.mean()) / np.abs(values - values.mean()).max()
    counts = np.bincount(codes)
    sums = np.bincount(codes, weights=values)[counts > 0]
    between = (sums**2 / counts[counts > 0]).sum() - values.sum() ** 2 / len(values)
    return float(np.sqrt(np.clip(between / ((values - values.mean()) ** 2).sum(), 0, 1)))
