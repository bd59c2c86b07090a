"""How rows of now differ from rows of then: pure functions, frames in, plain values out.

A difference counts if it is both large (an effect) and not chance (a p-value below `significance`, divided by the number of columns).
Rows of a series are alike: of so many `dependent` neighbours the tests count one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]

_BINS = 10
_SMALLEST_SHARE = 1e-4  # keeps PSI finite where a bin is empty
_NULL_GAP = 0.05  # share of missing values that must appear or disappear
_TYPICAL = (0.35, 0.65)  # where the median of new rows may lie among the scores of old ones
_TAIL = 0.99  # quantile of old scores beyond which a row is far out
_TAIL_TIMES = 2.0


def ks(first: Floats, second: Floats, dependent: int = 1) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov statistic and its asymptotic p-value (Stephens 1970)."""
    both = np.sort(np.concatenate([first, second]))
    ranks = [np.searchsorted(np.sort(part), both, side="right") / len(part) for part in (first, second)]
    statistic = float(np.abs(ranks[0] - ranks[1]).max())
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)) / dependent)
    scaled = (root + 0.12 + 0.11 / root) * statistic
    terms = [2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101)]
    return statistic, float(min(1.0, max(0.0, sum(terms)))) if scaled > 0.2 else 1.0


def share_p_value(first: float, rows_first: float, second: float, rows_second: float) -> float:
    """Two-sided p-value of two shares being the same (normal approximation, pooled)."""
    pooled = (first * rows_first + second * rows_second) / (rows_first + rows_second)
    error = math.sqrt(pooled * (1 - pooled) * (1 / rows_first + 1 / rows_second))
    return 1.0 if error == 0 else math.erfc(abs(first - second) / error / math.sqrt(2))


def at_least_p_value(hits: int, trials: int, share: float) -> float:
    """Exact binomial chance of at least so many hits."""
    if hits <= 0:
        return 1.0
    k = np.arange(hits, trials + 1)
    logs = np.array([math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in k.tolist()])
    return float(min(1.0, np.exp(logs + k * math.log(share) + (trials - k) * math.log1p(-share)).sum()))


def columns(
    old: pl.DataFrame,
    new: pl.DataFrame,
    names: tuple[str, ...],
    *,
    psi: float,
    significance: float,
    dependent: int = 1,
) -> list[dict[str, Any]]:
    """For each column: PSI, p-value, missing shares, and whether it drifted or its gaps changed."""
    found = []
    for name in names:
        left, right = old[name], new[name]
        missing = float(left.null_count() / len(left)), float(right.null_count() / len(right))
        limit = significance / max(len(names), 1)
        if left.dtype.is_numeric() or left.dtype.is_temporal():
            index, p_value = _numbers(_floats(left), _floats(right), dependent)
        else:
            index, p_value = _levels(left.cast(pl.String).drop_nulls(), right.cast(pl.String).drop_nulls(), dependent)
        gap_p = share_p_value(missing[0], len(left) / dependent, missing[1], len(right) / dependent)
        found.append(
            {
                "column": name,
                "psi": index,
                "p_value": p_value,
                "missing_before": missing[0],
                "missing_now": missing[1],
                "drifted": bool(index > psi and p_value < limit),
                "gaps_changed": bool(abs(missing[0] - missing[1]) > _NULL_GAP and gap_p < limit),
            }
        )
    return found


def _floats(column: pl.Series) -> Floats:
    values = column.to_physical().cast(pl.Float64).drop_nulls().to_numpy()
    return np.asarray(values[np.isfinite(values)], dtype=np.float64)


def _numbers(old: Floats, new: Floats, dependent: int) -> tuple[float, float]:
    if not len(old) or not len(new):
        return 0.0, 1.0
    edges = np.unique(np.quantile(old, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, part, side="left"), minlength=len(edges) + 1) for part in (old, new)]
    return _psi(counts[0] / len(old), counts[1] / len(new)), ks(old, new, dependent)[1]


def _levels(old: pl.Series, new: pl.Series, dependent: int) -> tuple[float, float]:
    if not len(old) or not len(new):
        return 0.0, 1.0
    common = old.value_counts(sort=True).head(_BINS * 2)[old.name].to_list()
    shares = [[float((part == level).mean() or 0.0) for level in common] for part in (old, new)]
    for part in shares:
        part.append(max(0.0, 1.0 - sum(part)))
    sizes = len(old) / dependent, len(new) / dependent
    tests = [share_p_value(a, sizes[0], b, sizes[1]) for a, b in zip(*shares, strict=True)]
    return _psi(np.array(shares[0]), np.array(shares[1])), min(1.0, min(tests) * len(tests))


def _psi(old: Floats, new: Floats) -> float:
    """Population stability index: sum (new - old) log(new / old)."""
    old, new = np.maximum(old, _SMALLEST_SHARE), np.maximum(new, _SMALLEST_SHARE)
    return float(((new - old) * np.log(new / old)).sum())


def scores(old: Floats, new: Floats, *, significance: float, dependent: int = 1) -> dict[str, Any]:
    """Has the typical row moved, or are a few rows far out?

    `typical` is the share of old scores below the median of the new ones: 0.5 if nothing changed, and hardly moved by a few rows.
    `tail` is the share of new rows beyond the 99 % quantile of old ones: 0.01 if nothing changed.
    """
    statistic, p_value = ks(old, new, dependent)
    typical = float((old < np.median(new)).mean())
    limit = float(np.quantile(old, _TAIL))
    hits = int((new > limit).sum())
    # The quantile is itself uncertain: three standard errors of it are granted.
    expected = 1 - _TAIL + 3 * math.sqrt(_TAIL * (1 - _TAIL) * dependent / len(old))
    tail_p = at_least_p_value(hits // dependent, len(new) // dependent, min(expected, 0.5))
    return {
        "ks": statistic,
        "p_value": p_value,
        "typical": typical,
        "tail": hits / len(new),
        "tail_p_value": tail_p,
        "moved": bool(not _TYPICAL[0] <= typical <= _TYPICAL[1] and p_value < significance),
        "far_out": bool(hits / len(new) > _TAIL_TIMES * (1 - _TAIL) and tail_p < significance),
    }


def verdicts(drifted: list[str], scores: dict[str, Any], *, one: str, fit: str) -> list[tuple[str, str]]:
    """What columns that drifted, and figures as of `scores` with those of `columns`, come to: (verdict, reason).

    Args:
        drifted: names of columns.
        scores: with `moved` and `far_out`, and `tail` if the latter.
        one: what is scored, "row" or "place".
        fit: what it is compared with.
    """
    found = []
    if drifted or scores["moved"]:
        what = f"columns {', '.join(drifted)}" if drifted else f"the typical {one}, though no single column,"
        found.append(("drifted", f"{what} moved away from {fit}"))
    if scores["far_out"] and not scores["moved"]:
        beyond = f"{scores['tail']:.1%} of the {one}s score beyond 99 % of normal ones"
        found.append(("odd rows", f"{beyond}, while the typical {one} has not moved"))
    return found


def contributions(old: Floats, new: Floats, names: tuple[str, ...], *, significance: float) -> list[dict[str, Any]]:
    """For each column, whether the model's error on it has changed: the drift of a column given the others."""
    found = []
    for index, name in enumerate(names):
        statistic, p_value = ks(old[:, index], new[:, index])
        typical = float((old[:, index] < np.median(new[:, index])).mean())
        moved = bool(not _TYPICAL[0] <= typical <= _TYPICAL[1] and p_value < significance / len(names))
        found.append({"column": name, "error_ks": statistic, "error_typical": typical, "error_moved": moved})
    return found
