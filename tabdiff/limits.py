"""Where flags begin among the scores of all rows, found in a few passes over parts, exactly as `Rule.flag` does.

Memory does not grow with the number of rows: the highest scores are found digit by digit (a radix selection), and
p-values, which are multiples of one over the number of held-out rows, are counted by value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, UInt64

from tabdiff.flags import Rule

_DIGIT_BITS = 16


@dataclass
class Limit:
    """Says of one part after the other, in order, which rows are flagged.

    Attributes:
        highest_p: rows with at most this p-value are flagged.
        score: rows above this score are flagged.
        equal: and so many rows with just this score, the first ones.
    """

    highest_p: float = -1.0
    score: float = np.inf
    equal: int = 0
    _left: int = field(init=False)

    def __post_init__(self) -> None:
        self._left = self.equal

    @property
    def reads_input(self) -> bool:
        """Whether any row may be flagged."""
        return bool(self.highest_p >= 0 or np.isfinite(self.score))

    def __call__(self, score: Float64[np.ndarray, " n"], p_value: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Flags of the next part."""
        flagged = (p_value <= self.highest_p) | (score > self.score)
        same = np.flatnonzero(score == self.score)[: self._left]
        flagged[same] = True
        self._left -= len(same)
        return np.asarray(flagged)


def find_limit(parts: Callable[[], Iterator[tuple[Any, ...]]], rule: Rule, normal: Float64[np.ndarray, " m"]) -> Limit:
    """The limit that `Rule.flag` would set on all scores and p-values together.

    Args:
        parts: gives (scores, p-values) part by part, as often as it is called.
        rule, normal: as for `Rule.flag`.

    Raises:
        ConfigError: as for `Rule.flag`.
    """
    if rule.name == "alerts_per_day":
        return Limit(score=rule.threshold(normal))
    if rule.name == "fdr":
        values, counts = _count(p for _, p in parts())
        total = int(counts.sum())
        below = np.cumsum(counts)
        passes = np.flatnonzero(values <= rule.value * below / total)
        return Limit(highest_p=float(values[passes[-1]]) if len(passes) else -1.0)
    wanted = round(rule.value * sum(len(score) for score, _ in parts()))
    if wanted == 0:
        return Limit()
    key, above = _nth_largest(lambda: (_ordered(score) for score, _ in parts()), wanted)
    return Limit(score=_restore(key), equal=wanted - above)


def _count(chunks: Iterator[Any]) -> tuple[Any, Any]:
    """Distinct values in ascending order, and how often each is there."""
    values, counts = np.empty(0), np.empty(0, np.int64)
    for chunk in chunks:
        new, times = np.unique(chunk, return_counts=True)
        merged, place = np.unique(np.concatenate([values, new]), return_inverse=True)
        values, counts = merged, np.bincount(place, np.concatenate([counts, times])).astype(np.int64)
    return values, counts


def _ordered(score: Float64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Unsigned integers in the order of the numbers: the bits of IEEE 754, turned over where the sign says so."""
    bits = (score + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    sign = np.uint64(1) << np.uint64(63)
    return np.where(bits & sign, ~bits, bits | sign)


def _restore(key: int) -> float:
    sign = 1 << 63
    bits = key ^ sign if key & sign else ~key & (1 << 64) - 1
    return float(np.array(bits, np.uint64).view(np.float64))


def _nth_largest(chunks: Callable[[], Iterator[Any]], n: int) -> tuple[int, int]:
    """The n-th largest key and how many are larger, one digit of it in each pass."""
    prefix, above = 0, 0
    for shift in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = np.zeros(1 << _DIGIT_BITS, np.int64)
        for keys in chunks():
            if shift + _DIGIT_BITS < 64:
                keys = keys[(keys >> np.uint64(shift + _DIGIT_BITS)) == np.uint64(prefix)]
            digits = (keys >> np.uint64(shift)) & np.uint64((1 << _DIGIT_BITS) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT_BITS)
        at_least = np.cumsum(counts[::-1])[::-1]
        digit = int(np.flatnonzero(at_least >= n - above)[-1])
        above += int(at_least[digit] - counts[digit])
        prefix = (prefix << _DIGIT_BITS) | digit
    return prefix, above
