"""What users say of scored rows: false alarm, or confirmed anomaly.

A row f that was judged has a *reach*: its squared distance to the nearest stored training row, in the metric of the raw
view. For a row x at squared distance d from f, and e from the stored rows, likeness is `max(0, 1 - d / (2 min(reach, e)))²`:
1 at f itself, and 0 from where x lies at a right angle to f, seen from the normal rows, or farther. So whatever is abnormal in
another direction stays as it was, however many rows were judged.

The judged row with the smallest `d / min(reach, e)` decides. If it is a false alarm, the score is multiplied by
(1 - likeness); if it is confirmed, by (1 + likeness). p-values follow the former only: they are never lowered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Float64, Int

from tabdiff.codec import Codec
from tabdiff.errors import ConfigError
from tabdiff.schema import Schema, to_polars

_VIEW = "raw"
_CONFIRMED = {"confirmed", "anomaly", "true", "1"}
_FALSE_ALARM = {"false alarm", "false_alarm", "normal", "false", "0"}
_NOT_JUDGED = {"", "none", "open", "unreviewed"}
_BLOCK = 1024  # rows that are compared with all judged ones at once
_ROUNDED = 1e-13  # share of squares that products in double precision may round away, and more
_SAME = 1e-9  # squared distance of a row that is judged again


@dataclass(frozen=True)
class Memory:
    """The stored training rows, as feedback sees them.

    Attributes:
        rows: (M, R) in the metric.
        transform: (R, R) takes a view into the metric.
        slots: of the view in an encoded row.
    """

    rows: Float64[np.ndarray, "m r"]
    transform: Float64[np.ndarray, "r r"]
    slots: slice

    @classmethod
    def of(cls, codec: Codec, tensors: Mapping[str, np.ndarray]) -> Memory:
        """Those of a bundle.

        Raises:
            ConfigError: the model keeps no rows.
        """
        slots = codec.layout.view(_VIEW)
        if f"score.kernels.{_VIEW}.rows" in tensors:
            kernel = [tensors[f"score.kernels.{_VIEW}.{name}"].astype(np.float64) for name in ("rows", "transform")]
            return cls(kernel[0], kernel[1], slots)
        if "score.subsets.rows" in tensors:
            subsets = tensors["score.subsets.rows"].astype(np.float64)
            everything = np.eye(subsets.shape[-1])
            return cls(subsets.reshape(-1, subsets.shape[-1]), everything, codec.layout.view("asinh"))
        raise ConfigError(
            "feedback keeps judged rows and compares them with stored ones; this model was fitted with score.kernel_rows=0 to "
            "keep none. Fit with some, or leave judged rows out of, or in, the next fit instead."
        )


@dataclass(frozen=True)
class Feedback:
    """Judged rows; a pure function from rows to factors of their scores.

    Attributes:
        rows: (K, R) slots of the view.
        confirmed: (K,) an anomaly; else a false alarm.
        reach: (K,) squared distance to the nearest stored row.
    """

    rows: Float64[np.ndarray, "k r"]
    confirmed: Bool[np.ndarray, " k"]
    reach: Float64[np.ndarray, " k"]

    @classmethod
    def none(cls, width: int) -> Feedback:
        """Nothing was judged; `width` is that of the view."""
        return cls(np.zeros((0, width)), np.zeros(0, dtype=bool), np.zeros(0))

    def __len__(self) -> int:
        return len(self.reach)

    def judged(self, x: Float[np.ndarray, "n w"], confirmed: Bool[np.ndarray, " n"], memory: Memory) -> Feedback:
        """The same with more rows, encoded. A row that was judged before is judged anew."""
        new = x[:, memory.slots].astype(np.float64)
        last = [
            not (np.abs(new[place + 1 :] - row).max(axis=1, initial=0) < _SAME).any() for place, row in enumerate(new)
        ]
        last = [keep or place == len(new) - 1 for place, keep in enumerate(last)]
        new, confirmed = new[last], confirmed[last]
        kept = (_squared(self.rows, new) > _SAME).all(axis=1)
        reach = _nearest(new @ memory.transform, memory.rows)
        return Feedback(
            np.concatenate([self.rows[kept], new]),
            np.concatenate([self.confirmed[kept], confirmed]),
            np.concatenate([self.reach[kept], reach]),
        )

    def factors(
        self, x: Float[np.ndarray, "n w"], memory: Memory
    ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        """What to multiply the scores of N encoded rows by: (for false alarms <= 1, for confirmed anomalies >= 1)."""
        excused, raised = np.ones(len(x)), np.ones(len(x))
        if not len(self):
            return excused, raised
        view = x[:, memory.slots].astype(np.float64) @ memory.transform
        judged = self.rows @ memory.transform
        close = _perhaps_like(view, judged, self.reach, memory.rows)
        if not len(close):
            return excused, raised
        distance = _squared(view[close], judged)
        own = _nearest(view[close], memory.rows)
        relative = distance / np.maximum(np.minimum(self.reach, own[:, None]), 1e-12)
        nearest = relative.argmin(axis=1)
        likeness = np.maximum(0.0, 1 - relative[np.arange(len(close)), nearest] / 2) ** 2
        is_anomaly = self.confirmed[nearest]
        excused[close] -= np.where(is_anomaly, 0.0, likeness)
        raised[close] += np.where(is_anomaly, likeness, 0.0)
        return excused, raised

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {"rows": self.rows.tolist(), "confirmed": self.confirmed.tolist(), "reach": self.reach.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any] | None, width: int) -> Feedback:
        """Rebuild from `to_json`; None is nothing."""
        if not values or not values["reach"]:
            return cls.none(width)
        return cls(np.asarray(values["rows"]), np.asarray(values["confirmed"], dtype=bool), np.asarray(values["reach"]))


def read_verdicts(verdicts: Iterable[Any], rows: int) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """(judged, confirmed) of each row, from True, "confirmed" or "anomaly"; False, "false alarm" or "normal"; None or "".

    Raises:
        ConfigError: a verdict is none of these, or there is not one for each row.
    """
    words = ["" if verdict is None else str(verdict).strip().lower() for verdict in verdicts]
    if len(words) != rows:
        raise ConfigError(
            f"there is one verdict for each row; got {len(words)} for {rows} rows. Use None for rows not judged."
        )
    unknown = sorted({word for word in words if word not in _CONFIRMED | _FALSE_ALARM | _NOT_JUDGED})
    if unknown:
        raise ConfigError(
            f"a verdict is 'confirmed' or 'false alarm' (or True or False), or empty; got {unknown[:3]}. Change these."
        )
    judged = np.array([word not in _NOT_JUDGED for word in words], dtype=bool)
    return judged, np.array([word in _CONFIRMED for word in words], dtype=bool)


def next_table(frame: Any, reviewed: Any, verdicts: Iterable[Any], schema: Schema) -> pl.DataFrame:
    """The table of the next fit: `frame` without rows that equal a confirmed one, and with the false alarms it lacks.

    Rows are compared in the modelled columns. Columns that `reviewed` lacks are null in the rows that are added.

    Raises:
        ConfigError: as in `read_verdicts`.
        SchemaError: a modelled column is missing, or holds what the schema does not allow.
    """
    table, reviewed = to_polars(frame), to_polars(reviewed)
    judged, confirmed = read_verdicts(verdicts, reviewed.height)
    names = [column.name for column in schema.modelled]
    old, new = schema.conform(table).select(names), schema.conform(reviewed).select(names)
    bad, good = new.filter(pl.Series(judged & confirmed)), new.filter(pl.Series(judged & ~confirmed))
    keep = _not_among(old, bad)
    added = _not_among(good, old)
    more = reviewed.filter(pl.Series(judged & ~confirmed))[added]
    shared = [name for name in table.columns if name in more.columns]
    more = more.select([pl.col(name).cast(table[name].dtype) for name in shared])
    joined: pl.DataFrame = pl.concat([table[keep], more], how="diagonal")
    return joined


def _not_among(rows: pl.DataFrame, others: pl.DataFrame) -> list[int]:
    names = rows.columns
    left = rows.with_row_index("tabdiff place")
    return left.join(others, on=names, how="anti", nulls_equal=True)["tabdiff place"].sort().to_list()


def _squared(a: Float64[np.ndarray, "n r"], b: Float64[np.ndarray, "k r"]) -> Float64[np.ndarray, "n k"]:
    """Squared distances, one row of `b` at a time: exact where rows are equal, and each row's own."""
    found = np.empty((len(a), len(b)))
    for place, row in enumerate(b):
        found[:, place] = np.square(a - row).sum(axis=1)
    return found


def _perhaps_like(
    view: Float64[np.ndarray, "n r"],
    judged: Float64[np.ndarray, "k r"],
    reach: Float64[np.ndarray, " k"],
    stored: Float64[np.ndarray, "m r"],
) -> Int[np.ndarray, " c"]:
    """Which rows may be like a judged one, so that the others need no exact look. Nearly all are like none."""
    found = [np.zeros(0, dtype=np.int64)]
    for begin in range(0, len(view), _BLOCK):
        block = view[begin : begin + _BLOCK]
        least, _ = _bounds(block, judged)
        within = least < 2 * reach
        some = np.flatnonzero(within.any(axis=1))
        if len(some):
            _, own = _bounds(block[some], stored)
            like = within[some] & (least[some] < 2 * own.min(axis=1)[:, None])
            found.append(begin + some[like.any(axis=1)])
    return np.concatenate(found)


def _bounds(
    a: Float64[np.ndarray, "n r"], b: Float64[np.ndarray, "k r"]
) -> tuple[Float64[np.ndarray, "n k"], Float64[np.ndarray, "n k"]]:
    """Between what squared distances lie: by a product of matrices, and what that may have rounded away."""
    size = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    distance = size - 2 * (a @ b.T)
    return distance - _ROUNDED * size, distance + _ROUNDED * size


def _nearest(x: Float64[np.ndarray, "n r"], rows: Float64[np.ndarray, "m r"]) -> Float64[np.ndarray, " n"]:
    """Squared distance to the nearest of `rows`."""
    return np.array([np.square(rows - one).sum(axis=1).min() for one in x])
