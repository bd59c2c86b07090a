"""From errors to scores, p-values and flags.

A row's error in a view is standardised on the log scale by what normal rows show: z = 0 is a typical normal row, z = 1
about the worst in fifty. The score adds up the squares of the positive z, so that one view that is sure is enough and two
that agree count for more. Its columns' contributions add up to it, and its p-value is the share of held-out normal rows
that score at least as high: conformal (Vovk et al. 2005) for one split, cross-conformal (Vovk 2015) for several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

_FLOOR = 1e-9  # keeps exact copies of training rows finite
_TAIL = 0.95  # the worst rows from this quantile on say how far normal rows reach
_LEAST_SCALE = 0.05  # keeps tables whose rows are all alike from calling every difference an anomaly


@dataclass(frozen=True)
class Calibration:
    """What normal rows look like in each view.

    Attributes:
        views: names, in the order of the runtime's views.
        center, scale: median of normal rows' log errors in each view, and how far the mean of the worst 5 % lies above it.
        weight: of each view's squared z.
        normal: sorted scores of held-out normal rows.
    """

    views: tuple[str, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    normal: tuple[float, ...] = ()

    @classmethod
    def fit(
        cls, views: Sequence[str], errors: Sequence[Float[np.ndarray, "_ c"]], weight: Sequence[float]
    ) -> Calibration:
        """Fit on errors of normal rows, for each view those of rows that it has not seen (their numbers may differ)."""
        logs = [np.log(view.sum(axis=1, dtype=np.float64) + _FLOOR) for view in errors]
        center = [float(np.median(log)) for log in logs]
        # The upper part alone tells how far normal rows reach up; near-copies stretch the lower one.
        worst = max(1, round((1 - _TAIL) * len(logs[0])))
        scale = [
            float(np.sort(log)[-worst:].mean()) - middle + _LEAST_SCALE
            for log, middle in zip(logs, center, strict=True)
        ]
        return cls(tuple(views), tuple(center), tuple(scale), tuple(weight))

    def with_normal(self, errors: Float[np.ndarray, "n v c"]) -> Calibration:
        """The same with the scores of held-out normal rows, which p-values count."""
        return replace(self, normal=tuple(np.sort(self.combine(errors)[0]).tolist()))

    def combine(
        self, errors: Float[np.ndarray, "n v c"]
    ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n c"]]:
        """Score of each row (higher = more abnormal) and the contribution of each column, which add up to it."""
        errors = errors.astype(np.float64)
        total = errors.sum(axis=2)
        z = (np.log(total + _FLOOR) - np.asarray(self.center)) / np.asarray(self.scale)
        # The linear term only keeps the order among rows that no view finds unusual.
        parts = (np.maximum(z, 0.0) ** 2 + 1e-3 * z) * np.asarray(self.weight)
        share = errors / np.maximum(total, 1e-300)[..., None]
        share[total == 0] = 1.0 / errors.shape[2]
        contributions = np.einsum("nvc,nv->nc", share, parts)
        return parts.sum(axis=1), contributions

    def p_value(self, scores: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """(1 + number of held-out normal rows that score at least as high) / (number + 1)."""
        above = len(self.normal) - np.searchsorted(self.ascending, scores, side="left")
        return np.asarray((1 + above) / (len(self.normal) + 1))

    @cached_property
    def ascending(self) -> Float64[np.ndarray, " m"]:
        """`normal` as an array, which takes longer to make than to search."""
        return np.array(self.normal)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Calibration:
        """Rebuild from `to_json`."""
        return cls(**{field.name: tuple(values[field.name]) for field in fields(cls)})
