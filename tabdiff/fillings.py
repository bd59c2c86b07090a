"""Gaps of recordings filled by what is simple: a yardstick for every model, and often the best there is.

All take numbers of K places and C sensors, NaN in gaps, and give them back without; a sensor that never reads keeps its NaN.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from tabdiff.series import period

_NEIGHBOURS = 10
_DONORS = 3000  # places that neighbours are looked for among
_CYCLES = 2  # on both sides, that a seasonal mean is taken over


def plain_fillings(values: Float64[np.ndarray, "k c"]) -> dict[str, Float64[np.ndarray, "k c"]]:
    """What is simple: interpolation, the same phase of other cycles, the most similar places, the last value."""
    places = np.arange(len(values))
    linear, last = linear_filling(values), values.copy()
    for c, column in enumerate(values.T):
        seen = np.flatnonzero(~np.isnan(column))
        if len(seen):  # if not, there is nothing to go by: the model's middle is all there is
            last[:, c] = column[seen[np.maximum(np.searchsorted(seen, places, side="right") - 1, 0)]]
    found = {"linear": linear, "neighbours": _neighbours(values, linear), "last": last}
    cycle = period(np.nan_to_num(linear), len(values) // 3)
    if cycle is not None and cycle > 1:
        found["seasonal"] = _seasonal(values, linear, cycle)
    return found


def linear_filling(values: Float64[np.ndarray, "k c"]) -> Float64[np.ndarray, "k c"]:
    """Straight lines across gaps; a column without any value stays as it is."""
    result, places = values.copy(), np.arange(len(values))
    for c, column in enumerate(values.T):
        seen = np.flatnonzero(~np.isnan(column))
        if len(seen):
            result[:, c] = np.interp(places, seen, column[seen])
    return result


def _seasonal(
    values: Float64[np.ndarray, "k c"], linear: Float64[np.ndarray, "k c"], cycle: int
) -> Float64[np.ndarray, "k c"]:
    places = np.arange(len(values))
    total, count = np.zeros_like(values), np.zeros_like(values)
    for shift in (side * turn * cycle for turn in range(1, _CYCLES + 1) for side in (-1, 1)):
        other = places + shift
        inside = (other >= 0) & (other < len(values))
        there = values[np.clip(other, 0, len(values) - 1)]
        seen = inside[:, None] & ~np.isnan(there)
        total += np.where(seen, there, 0.0)
        count += seen
    return np.where(count > 0, total / np.maximum(count, 1), linear)


def _neighbours(values: Float64[np.ndarray, "k c"], linear: Float64[np.ndarray, "k c"]) -> Float64[np.ndarray, "k c"]:
    """Mean over the places at which the other sensors, gaps interpolated, are nearest in standard units."""
    result = linear.copy()
    flat = np.nan_to_num(linear)
    scale = flat.std(axis=0)
    z = (flat - flat.mean(axis=0)) / np.where(scale > 1e-9, scale, 1.0)
    for c in np.flatnonzero(np.isnan(values).any(axis=0)):
        donors = np.flatnonzero(~np.isnan(values[:, c]))
        donors = (
            donors[np.linspace(0, len(donors) - 1, min(len(donors), _DONORS)).astype(int)] if len(donors) else donors
        )
        if len(donors) <= _NEIGHBOURS or z.shape[1] == 1:
            continue
        other = np.delete(z, c, axis=1)
        there = other[donors]
        wanted = np.flatnonzero(np.isnan(values[:, c]))
        for begin in range(0, len(wanted), 1000):
            rows = wanted[begin : begin + 1000]
            distance = (there**2).sum(axis=1) - 2 * other[rows] @ there.T
            nearest = np.argpartition(distance, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
            result[rows, c] = values[donors[nearest], c].mean(axis=1)
    return result
