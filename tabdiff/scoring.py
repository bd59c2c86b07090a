"""From reconstruction errors to scores that mean something.

The runtime gives an error per view and column. A row's error in a view is standardised on the log scale by what normal
rows show: z = 0 is a typical normal row, z = 1 about the worst in ten. The score adds up the squares of the positive z,
so that one view that is sure is enough and two that agree count for more. Its columns' contributions add up to it, and
its p-value is the share of held-out normal rows that score at least as high (split conformal, Vovk et al. 2005).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Float32, Float64

from tabdiff.codec import Encoded
from tabdiff.errors import ConfigError
from tabdiff.runtime import Runtime

_FLOOR = 1e-9  # keeps exact copies of training rows finite
_LEAST_SCALE = 0.05  # keeps tables whose rows are all alike from calling every difference an anomaly
CHUNK_ROWS = 1024  # large enough to fill the matrix products, small enough that memory does not grow with the table


@dataclass(frozen=True)
class Calibration:
    """What normal rows look like in each view.

    Attributes:
        views: names, in the order of the runtime's views.
        center, scale: median of normal rows' log errors in each view, and how far their 90 % quantile lies above it.
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
        scale = [float(np.quantile(log, 0.9)) - middle + _LEAST_SCALE for log, middle in zip(logs, center, strict=True)]
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
        normal = np.asarray(self.normal)
        above = len(normal) - np.searchsorted(normal, scores, side="left")
        return np.asarray((1 + above) / (len(normal) + 1))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Calibration:
        """Rebuild from `to_json`."""
        return cls(**{name: tuple(value) for name, value in values.items()})


@dataclass(frozen=True)
class Scores:
    """Scores of N rows of a table with C modelled columns.

    Attributes:
        columns: names of the C columns.
        score: (N,) higher is more abnormal; normal rows lie about 0 to 5.
        p_value: (N,) share of normal rows that score at least as high.
        flagged: (N,) by the chosen rule.
        contributions: (N, C) what each column adds to the score.
        expected: modelled columns as they should have been, one row per flagged row, in order.
        provider: engine and device that computed the errors.
    """

    columns: tuple[str, ...]
    score: Float64[np.ndarray, " n"]
    p_value: Float64[np.ndarray, " n"]
    flagged: Bool[np.ndarray, " n"]
    contributions: Float64[np.ndarray, "n c"]
    expected: pl.DataFrame
    provider: str

    def top_columns(self, row: int, count: int = 3) -> list[tuple[str, float]]:
        """The columns that carry most of a row's score, with their contributions."""
        order = np.argsort(-self.contributions[row], kind="stable")[:count]
        return [(self.columns[index], float(self.contributions[row, index])) for index in order]

    def to_frame(self, top: int = 3) -> pl.DataFrame:
        """One row per scored row: row, score, p_value, flagged, and for flagged rows the top columns and expected values.

        `expected` is null for rows that are not flagged. Values are text, as columns differ in type.
        """
        flagged_rows = np.flatnonzero(self.flagged)
        position = {int(row): index for index, row in enumerate(flagged_rows)}
        top = min(top, len(self.columns))
        order = np.argsort(-self.contributions, axis=1, kind="stable")[:, :top]
        frame = pl.DataFrame(
            {
                "row": np.arange(len(self.score)),
                "score": self.score,
                "p_value": self.p_value,
                "flagged": self.flagged,
            }
        )
        expected = self.expected.select(pl.all().cast(pl.String)).rows()
        added = []
        for place in range(top):
            index = order[:, place]
            values = [
                expected[position[row]][index[row]] if row in position else None for row in range(len(self.score))
            ]
            added += [
                pl.Series(f"column_{place + 1}", [self.columns[i] for i in index], dtype=pl.String),
                pl.Series(
                    f"contribution_{place + 1}",
                    np.take_along_axis(self.contributions, order, axis=1)[:, place],
                ),
                pl.Series(f"expected_{place + 1}", values, dtype=pl.String),
            ]
        return frame.with_columns(added)


def errors_of(runtime: Runtime, encoded: Encoded) -> Float32[np.ndarray, "n v c"]:
    """Errors of N rows in every view, chunk by chunk."""
    return np.concatenate(list(_chunks(runtime, encoded)))


def _chunks(runtime: Runtime, encoded: Encoded) -> Iterator[Float32[np.ndarray, "b v c"]]:
    for start in range(0, len(encoded.x), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        yield runtime.score(encoded.x[rows, None, :], encoded.present[rows, None, :])[:, 0]


def check_rule(fdr: float | None, contamination: float | None) -> None:
    """Exactly one rule, and a share inside (0, 1); ConfigError otherwise."""
    chosen = {name: value for name, value in (("fdr", fdr), ("contamination", contamination)) if value is not None}
    if len(chosen) != 1:
        raise ConfigError(f"choose exactly one rule for flags, fdr or contamination; got {chosen or 'none'}.")
    for name, value in chosen.items():
        if not 0 < value < 1:
            raise ConfigError(f"{name} is a share inside (0, 1); got {value}. Example: {name}=0.05")


def flag(
    scores: Float64[np.ndarray, " n"],
    p_values: Float64[np.ndarray, " n"],
    *,
    fdr: float | None = None,
    contamination: float | None = None,
) -> Bool[np.ndarray, " n"]:
    """Which rows to call anomalies.

    Args:
        fdr: Benjamini & Hochberg (1995): among the flagged rows at most this share is expected to be normal.
        contamination: flag this share of the rows, highest scores first.

    Raises:
        ConfigError: not exactly one rule is given, or its value is not inside (0, 1).
    """
    check_rule(fdr, contamination)
    count = len(scores)
    if contamination is not None:
        flagged = np.zeros(count, dtype=bool)
        flagged[np.argsort(-scores, kind="stable")[: round(contamination * count)]] = True
        return flagged
    assert fdr is not None
    order = np.argsort(p_values, kind="stable")
    passes = np.flatnonzero(p_values[order] <= fdr * np.arange(1, count + 1) / count)
    limit = p_values[order[passes[-1]]] if len(passes) else -1.0
    return np.asarray(p_values <= limit)
