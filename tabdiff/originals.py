"""Recognise a drawn row that is a copy of a training row, without keeping the training rows.

A model remembers a salted 64-bit digest of every training row that occurs once. A drawn row with one of these digests is a
*copy*. Rows that occur several times in training are no copies: they point to nobody in particular.

In a table with few possible rows copies happen by chance, and real rows show how often: a row whose equal occurs exactly
once among all others is what a copy by chance looks like, so their share is what to expect of an honest generator.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, UInt64

from tabdiff.errors import SynthesisError

MOST_ROWS = 200_000
_NORMAL_95, _SIGNIFICANT = 1.959963984540054, 0.01


@dataclass(frozen=True)
class Originals:
    """What is remembered of the training rows.

    Attributes:
        columns: the columns that make up a row.
        salt: makes digests of one model useless for another.
        digests: of the rows that occur once in training, sorted; at most `MOST_ROWS` of them, drawn at random.
        kept: share of such rows that is remembered.
        rows: rows of the whole table, held-out ones included.
        paired: how many of those have exactly one equal among them.
    """

    columns: tuple[str, ...]
    salt: str
    digests: UInt64[np.ndarray, " kept"]
    kept: float
    rows: int
    paired: int

    @classmethod
    def of(
        cls, train: pl.DataFrame, held_out: pl.DataFrame, columns: Sequence[str], salt: str, seed: int = 0
    ) -> Originals:
        """Remember the rows of a canonical training table."""
        seen, counts = np.unique(row_digests(train, columns, salt), return_counts=True)
        once = seen[counts == 1]
        kept = once
        if len(once) > MOST_ROWS:
            kept = np.sort(np.random.default_rng(seed).choice(once, MOST_ROWS, replace=False))
        _, together = np.unique(row_digests(pl.concat([train, held_out]), columns, salt), return_counts=True)
        share = len(kept) / len(once) if len(once) else 1.0
        return cls(tuple(columns), salt, kept, share, train.height + held_out.height, int(2 * (together == 2).sum()))

    def copies(self, frame: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
        """Which rows of a canonical frame are copies."""
        return np.isin(row_digests(frame, self.columns, self.salt), self.digests)

    def beyond_chance(self, copies: int, rows: int) -> bool:
        """More copies than chance explains.

        With copies as frequent as the upper end of the 95 % interval (Wilson) of the share of real rows that have exactly one
        equal, so many or more would be seen with a probability below 1 % (Poisson).
        """
        _, high = _interval(self.paired / self.rows, self.rows)
        return _tail(copies, high * self.kept * rows) < _SIGNIFICANT

    def in_excess(self, copies: Bool[np.ndarray, " rows"], rows: int = 0, stay: int = 0) -> Bool[np.ndarray, " rows"]:
        """Which copies are too many: rows up to and with such a one have more than as many real rows on average.

        So whether a row stays does not depend on the rows behind it, and of copies that chance explains few go: a walk that
        is pushed back at its mean.

        Args:
            copies: which rows are copies.
            rows, stay: that came before them, and how many of those were copies that stayed.
        """
        share = self.kept * self.paired / max(self.rows, 1)
        excess = np.zeros(len(copies), bool)
        for place in np.flatnonzero(copies).tolist():
            excess[place] = stay + 1 > share * (rows + place + 1)
            stay += not excess[place]
        return excess

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        text = base64.b64encode(self.digests.astype("<u8").tobytes()).decode("ascii")
        return {
            "columns": list(self.columns),
            "salt": self.salt,
            "digests": text,
            "kept": self.kept,
            "rows": self.rows,
            "paired": self.paired,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Originals:
        """Rebuild from `to_json`."""
        digests = np.frombuffer(base64.b64decode(values["digests"]), dtype="<u8").astype(np.uint64)
        return cls(tuple(values["columns"]), values["salt"], digests, values["kept"], values["rows"], values["paired"])


class CopyTest:
    """Judges the rows of one sample, attempt after attempt.

    Args:
        none: no copy comes out at all. Otherwise as many do as chance explains, and many more are an error.
    """

    def __init__(self, originals: Originals, none: bool) -> None:
        self.originals, self.none = originals, none
        self.accepted = 0  # copies that came out
        self._rows = self._copies = self._first = 0

    def excess(self, frame: pl.DataFrame, good: Bool[np.ndarray, " rows"], *, again: bool) -> Bool[np.ndarray, " rows"]:
        """Which rows of a canonical frame must be drawn anew, of those that are good so far; `again` if they were before.

        Raises:
            SynthesisError: there are more copies than chance explains.
        """
        copies: Bool[np.ndarray, " rows"] = self.originals.copies(frame) & good
        if self.none:
            return copies
        self._rows, self._copies = self._rows + int(good.sum()), self._copies + int(copies.sum())
        if self.originals.beyond_chance(self._copies, self._rows):
            expected = 100 * self.originals.paired / self.originals.rows
            raise SynthesisError(
                f"samples must not copy training rows; {self._copies:,} of {self._rows:,} rows equal, in every column, a training row "
                f"that occurs once ({100 * self._copies / self._rows:.2g} %; among real rows {expected:.2g} % have one equal). Fit with fewer "
                "steps or on more rows; or draw with copies=redraw (none comes out) or copies=keep (they are published)."
            )
        if again:  # what may stay was counted among the rows of the first attempt
            return copies
        excess = self.originals.in_excess(copies, self._first, self.accepted)
        self._first += len(copies)
        self.accepted += int((copies & ~excess).sum())
        return excess


def row_digests(frame: pl.DataFrame, columns: Sequence[str], salt: str) -> UInt64[np.ndarray, " rows"]:
    """64 bits of every row of a canonical frame: equal rows, equal digests, on every machine and in every version."""
    total = np.full(frame.height, _of_text(salt), dtype=np.uint64)
    for index, name in enumerate(columns):
        values = frame[name]
        missing = values.is_null().to_numpy()
        if values.dtype == pl.String:
            levels = values.drop_nulls().unique()
            table = {level: _of_text(level) for level in levels.to_list()}
            bits = np.array([0 if value is None else table[value] for value in values.to_list()], dtype=np.uint64)
        elif values.dtype.is_float():
            bits = (values.fill_null(0.0).to_numpy() + 0.0).astype("<f8").view("<u8").astype(np.uint64)  # -0.0 is 0.0
        else:
            whole = values.dt.epoch("us") if values.dtype == pl.Datetime else values
            bits = whole.cast(pl.Int64).fill_null(0).to_numpy().astype("<i8").view("<u8").astype(np.uint64)
        bits = np.where(missing, np.uint64(0x9E3779B97F4A7C15), bits)
        with np.errstate(over="ignore"):
            total = _mix(total * np.uint64(0x100000001B3) + _mix(bits + np.uint64(index + 1)))
    return total


def _of_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mix(x: UInt64[np.ndarray, " rows"]) -> UInt64[np.ndarray, " rows"]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64[np.ndarray, " rows"] = x ^ (x >> np.uint64(31))
    return mixed


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen in `count` draws (JASA 1927)."""
    square, count = _NORMAL_95**2, max(count, 1)
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return centre - half, centre + half


def _tail(count: int, mean: float) -> float:
    """P(X >= count) for a Poisson variable, by its normal approximation where the mean is large."""
    if mean > 100:
        return 0.5 * math.erfc((count - 0.5 - mean) / math.sqrt(2 * mean))
    term = math.exp(-mean)
    below = 0.0
    for k in range(min(count, 1000)):
        below += term
        term *= mean / (k + 1)
    return max(0.0, 1.0 - below)
