"""Errors of many rows, and the table of scores that users get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64

from tabdiff.codec import Encoded
from tabdiff.files import as_text
from tabdiff.runtime import Runtime

CHUNK_ROWS = 1024  # large enough to fill the matrix products, small enough that memory does not grow with the table


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
        flagged_rows = np.flatnonzero(self.flagged).tolist()
        top = min(top, len(self.columns))
        order = np.argsort(-self.contributions, axis=1, kind="stable")[:, :top]
        parts = np.take_along_axis(self.contributions, order, axis=1)
        frame = pl.DataFrame(
            {
                "row": np.arange(len(self.score)),
                "score": self.score,
                "p_value": self.p_value,
                "flagged": self.flagged,
            }
        )
        expected = self.expected.select(map(as_text, self.expected)).rows() if flagged_rows else []
        names, added = np.array(self.columns, dtype=object), []
        for place in range(top):
            index = order[:, place]
            values: list[str | None] = [None] * len(self.score)
            for row, texts in zip(flagged_rows, expected, strict=True):
                values[row] = texts[index[row]]
            added += [
                pl.Series(f"column_{place + 1}", names[index].tolist(), dtype=pl.String),
                pl.Series(f"contribution_{place + 1}", np.ascontiguousarray(parts[:, place])),
                pl.Series(f"expected_{place + 1}", values, dtype=pl.String),
            ]
        return frame.hstack(added)


def errors_of(runtime: Runtime, encoded: Encoded) -> Float32[np.ndarray, "n v c"]:
    """Errors of N rows in every view, chunk by chunk."""
    return np.concatenate(list(_chunks(runtime, encoded)))


def _chunks(runtime: Runtime, encoded: Encoded) -> Iterator[Float32[np.ndarray, "b v c"]]:
    for start in range(0, len(encoded.x), runtime.chunk_rows):
        rows = slice(start, start + runtime.chunk_rows)
        yield runtime.score(encoded.x[rows, None, :], encoded.present[rows, None, :])[:, 0]
