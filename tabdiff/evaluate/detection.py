"""How well do anomaly scores put anomalies first? The measures, and the controls to print beside them.

Labels are 1 for an anomaly and 0 for a normal row. Scores are higher for more anomalous rows. Every
measure is between 0 and 1, higher is better; the measures and controls are those of ADBench
(Han et al., NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from tabdiff.errors import ConfigError
from tabdiff.evaluate.frames import Floats, Integers, Report, align, kind_of, numbers, positions, texts


@dataclass(frozen=True)
class DetectionRow(Report):
    """One method's detection quality. All but `median_rank`: 0 to 1, higher is better."""

    name: str
    roc_auc: float
    average_precision: float
    precision_at_k: float
    median_rank: float
    """Median over the anomalies of their place in the list; 1 is the most anomalous row. Lower is better."""


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Integers, Floats]:
    """Labels (n,) of zeros and ones, both present, and finite scores (n,); ConfigError otherwise."""
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ConfigError(f"labels and scores are two lists of one length; found {truth.shape} and {values.shape}")
    if set(np.unique(truth).tolist()) != {0, 1}:
        levels = np.unique(truth).tolist()[:5]
        raise ConfigError(f"labels are 0 (normal) and 1 (anomaly), both present; found {levels}")
    if not np.isfinite(values).all():
        raise ConfigError(f"scores are finite; found {int((~np.isfinite(values)).sum())} that are not")
    return truth.astype(np.int64), values


def roc_auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Chance that a random anomaly scores above a random normal row, ties 1/2. 0.5 is guessing."""
    truth, values = _checked(labels, scores)
    return float(roc_auc_score(truth, values))


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the precision-recall curve, as a step function. Guessing gives the share of anomalies."""
    truth, values = _checked(labels, scores)
    return float(average_precision_score(truth, values))


def precision_at_k(labels: npt.ArrayLike, scores: npt.ArrayLike, k: int | None = None) -> float:
    """Share of anomalies among the k highest scores; k defaults to the number of anomalies (then also F1).

    Rows tied at the border count with the share that a random order would give them, so that the result
    does not depend on the order of the rows.
    """
    truth, values = _checked(labels, scores)
    k = int(truth.sum()) if k is None else k
    if not 1 <= k <= len(truth):
        raise ConfigError(f"k is between 1 and the {len(truth)} rows; found {k}")
    border = np.sort(values)[len(values) - k]
    above, tied = values > border, values == border
    hits = truth[above].sum() + truth[tied].mean() * (k - int(above.sum()))
    return float(hits / k)


def median_rank(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Median place of the anomalies, 1 the highest score; ties share their mean place. Lower is better."""
    truth, values = _checked(labels, scores)
    places = pl.Series(-values).rank("average").to_numpy()
    return float(np.median(places[truth == 1]))


def compare(labels: npt.ArrayLike, scores: Mapping[str, npt.ArrayLike]) -> tuple[DetectionRow, ...]:
    """One row per method, in the order given. `scores` maps a name to (n,) scores of the same rows."""
    return tuple(
        DetectionRow(
            name=name,
            roc_auc=roc_auc(labels, values),
            average_precision=average_precision(labels, values),
            precision_at_k=precision_at_k(labels, values),
            median_rank=median_rank(labels, values),
        )
        for name, values in scores.items()
    )


def _matrices(train: npt.ArrayLike, test: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Two finite matrices (n, d), (m, d), standardised with the mean and deviation of `train`."""
    fitted, asked = np.asarray(train, dtype=np.float64), np.asarray(test, dtype=np.float64)
    if fitted.ndim != 2 or asked.ndim != 2 or fitted.shape[1] != asked.shape[1] or not fitted.size:
        raise ConfigError(f"train and test are matrices of one width; found {fitted.shape} and {asked.shape}")
    if not (np.isfinite(fitted).all() and np.isfinite(asked).all()):
        raise ConfigError("controls need finite values; found missing ones. Use encode_for_controls")
    size = np.abs(fitted).max(axis=0)
    size = np.where(size > 0, size, 1.0)  # the squares of large values would overflow
    fitted, asked = fitted / size, np.clip(asked / size, -1e50, 1e50)
    mean, deviation = fitted.mean(axis=0), fitted.std(axis=0)
    # A constant column has no scale; rounding may leave it a deviation near 0, which is no scale either.
    deviation = np.where(deviation > 1e-12, deviation, 1.0 / size)
    return (fitted - mean) / deviation, (asked - mean) / deviation


def nearest_neighbours_score(train: npt.ArrayLike, test: npt.ArrayLike, k: int = 5) -> Floats:
    """Control: mean Euclidean distance (m,) to the k nearest training rows, columns standardised on train.

    A test row that is also a training row finds itself at distance 0.
    """
    fitted, asked = _matrices(train, test)
    if k < 1:
        raise ConfigError(f"k is at least 1; found {k}")
    if not len(asked):
        return np.empty(0)
    search = NearestNeighbors(n_neighbors=min(k, len(fitted))).fit(fitted)
    distances: Floats = search.kneighbors(asked)[0]
    return np.asarray(distances.mean(axis=1), dtype=np.float64)


def isolation_forest_score(train: npt.ArrayLike, test: npt.ArrayLike, seed: int = 0) -> Floats:
    """Control: Isolation Forest (Liu et al., ICDM 2008), scikit-learn's defaults; (m,) between 0 and 1."""
    fitted, asked = _matrices(train, test)
    if not len(asked):
        return np.empty(0)
    return -np.asarray(IsolationForest(random_state=seed).fit(fitted).score_samples(asked), dtype=np.float64)


def random_score(rows: int, seed: int = 0) -> Floats:
    """Control: (rows,) uniform numbers, the floor that every method must beat."""
    return np.random.default_rng(seed).random(rows)


def encode_for_controls(train: pl.DataFrame, test: pl.DataFrame, most_levels: int = 64) -> tuple[Floats, Floats]:
    """Standardised float matrices (n, d), (m, d) of two mixed tables: a fair chance for numeric controls.

    Numbers: median of train where missing, and an indicator column if any is missing. Categories: one
    column for each of the `most_levels` commonest levels of train, one for missing and one for every other
    level. Columns are standardised with the mean and deviation of train.
    """
    test = align(train, test, "test")
    left: list[Floats] = []
    right: list[Floats] = []
    for name, dtype in train.schema.items():
        encode = _encode_number if kind_of(dtype) == "number" else _encode_category
        for parts, column in zip((left, right), encode(train[name], test[name], most_levels), strict=True):
            parts.append(column)
    return _matrices(np.hstack(left), np.hstack(right))


def _encode_number(train: pl.Series, test: pl.Series, _: int) -> tuple[Floats, Floats]:
    """Value and, if needed, indicator of missing: (n, 1 or 2), (m, 1 or 2)."""
    values = numbers(train), numbers(test)
    present = values[0][~np.isnan(values[0])]
    median = float(np.median(present)) if present.size else 0.0
    missing = tuple(np.isnan(part) for part in values)
    filled = [np.where(gap, median, part)[:, None] for gap, part in zip(missing, values, strict=True)]
    if any(gap.any() for gap in missing):
        filled = [np.column_stack((part, gap)) for gap, part in zip(missing, filled, strict=True)]
    return filled[0], filled[1]


def _encode_category(train: pl.Series, test: pl.Series, most_levels: int) -> tuple[Floats, Floats]:
    """One-hot (n, levels + 2), (m, levels + 2); the last two columns are "another level" and "missing"."""
    counts = texts(train).drop_nulls().rename("level").value_counts().sort(["count", "level"], descending=[True, False])
    levels = counts["level"].head(most_levels)
    encoded = []
    for part in (train, test):
        position = positions(levels, texts(part))
        position[position < 0] = len(levels)
        position[part.is_null().to_numpy()] = len(levels) + 1
        encoded.append(np.eye(len(levels) + 2)[position])
    return encoded[0], encoded[1]
