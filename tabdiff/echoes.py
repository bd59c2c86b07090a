"""Numbers that repeat another number of their row: a bill paid in full, a total with one part.

The network says in which bin a number lies, and two numbers of one row may lie in bins that overlap because they are equal. Drawn
inside their bins independently of each other they never would be. So it is counted how often they are, among training rows whose
bins allow it, and drawn values repeat each other as often. That is one number for each bin, not a copy of any row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int

from tabdiff.codes import NumberCode

LEAST_SHARE, LEAST_ROWS = 0.01, 20  # of rows in which two columns are equal beyond chance
_ROWS = 20_000  # that are looked at
_PRIOR_ROWS = 5.0  # of the share in all bins, beside the rows of one bin


@dataclass(frozen=True)
class Echo:
    """How often `column` equals `source`.

    Attributes:
        overlapping: for each bin of `column`, the share of equal rows among those in which the bin of `source` overlaps with it.
        inside: the same among those in which the value of `source` lies inside it.
    """

    column: str
    source: str
    overlapping: tuple[float, ...]
    inside: tuple[float, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Echo:
        """Rebuild from the plain values of `dataclasses.asdict`."""
        return cls(values["column"], values["source"], tuple(values["overlapping"]), tuple(values["inside"]))


@dataclass
class Cells:
    """One binned number of N rows.

    Attributes:
        bins: bin of each cell, -1 where it is in none.
        z: normal score of each cell.
        settled: cells whose value is not to be changed any more.
    """

    code: NumberCode
    bins: Int[np.ndarray, " n"]
    z: Float64[np.ndarray, " n"]
    settled: Bool[np.ndarray, " n"]

    def values(self, rows: Int[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
        """The numbers themselves."""
        return self.code.rank.inverse(self.z[rows])

    def take(self, rows: Int[np.ndarray, " m"], values: Float64[np.ndarray, " m"]) -> None:
        """Let these cells be these values, which lie inside their bins."""
        low, high = np.array(self.code.bins)[self.bins[rows]].T
        self.z[rows] = np.clip(self.code.rank(values), low, high)
        self.settled[rows] = True

    def ends(self, rows: Int[np.ndarray, " m"]) -> Float64[np.ndarray, "2 m"]:
        """Lowest and highest value of each row's bin."""
        return self.code.bin_ends[:, self.bins[rows]]


def find_echoes(values: Mapping[str, Float64[np.ndarray, " n"]], codes: Mapping[str, NumberCode]) -> tuple[Echo, ...]:
    """Which columns repeat which, most often first; each column has one source at most, and none that has it as a source.

    Args:
        values: training values of each column of `codes`.
        codes: of numbers that are binned.
    """
    rows = np.random.default_rng(0).permutation(len(next(iter(values.values()), ())))[:_ROWS]  # tables may be sorted
    part = {name: values[name][rows] for name in codes}
    bins = {name: _bins_of(code, part[name]) for name, code in codes.items()}
    part = {name: np.where(bins[name] >= 0, each, np.nan) for name, each in part.items()}
    found = []
    for first, second in combinations(codes, 2):
        count = np.count_nonzero(part[first] == part[second])  # NaN equals nothing
        if count < max(LEAST_ROWS, LEAST_SHARE * len(rows)):
            continue
        # What chance makes of two columns of few values is no echo: another row's value would be equal as often.
        if count > 3 * np.count_nonzero(np.roll(part[first], 1) == part[second]):
            found.append((count, first, second))
    echoes: list[Echo] = []
    roots = {name: name for name in codes}
    for _, first, second in sorted(found, key=lambda pair: -pair[0]):
        column, source = (second, first) if second not in {echo.column for echo in echoes} else (first, second)
        if column in {echo.column for echo in echoes} or _root(roots, column) == _root(roots, source):
            continue
        roots[_root(roots, column)] = _root(roots, source)
        code = codes[column]
        both = np.flatnonzero((bins[column] >= 0) & (bins[source] >= 0))
        own, other = code.bin_ends[:, bins[column][both]], codes[source].bin_ends[:, bins[source][both]]
        equal = part[column][both] == part[source][both]
        overlap = (own[0] <= other[1]) & (other[0] <= own[1])
        inside = (own[0] <= part[source][both]) & (part[source][both] <= own[1])
        shares = [_shares(equal, among, bins[column][both], len(code.bins)) for among in (overlap, inside)]
        echoes.append(Echo(column, source, *shares))
    return tuple(echoes)


def repeat(
    echoes: Sequence[Echo],
    cells: Mapping[str, Cells],
    uniform: Mapping[str, Float32[np.ndarray, " n"]],
) -> None:
    """Make numbers that were drawn inside their bins repeat each other as often as training showed; changes `cells`.

    Args:
        uniform: U(0, 1) for each row of each column of `echoes`.
    """
    for echo in echoes:
        column, source = cells[echo.column], cells[echo.source]
        for rows, open_ in _cases(column, source):
            share = np.asarray(echo.overlapping if open_ else echo.inside)[column.bins[rows]]
            wanted = rows[uniform[echo.column][rows] < share]
            settled = wanted[column.settled[wanted]]
            free = wanted[~column.settled[wanted]]
            if open_:
                _meet(source, column, free)
            column.take(free, source.values(free))
            source.take(settled, column.values(settled))
            source.settled[free] = True


def exactly(echoes: Sequence[Echo], drawn: pl.DataFrame, shown: pl.DataFrame, given: Sequence[str]) -> pl.DataFrame:
    """Rows in which what repeats a given number repeats it to the last digit, which the encoded row has not got.

    Args:
        drawn: N rows as they were decoded.
        shown: the same with the given values themselves.
        given: columns that were.
    """
    for echo in echoes:
        for own, other in ((echo.column, echo.source), (echo.source, echo.column)):
            if other in given and own not in given and drawn[own].dtype == shown[other].dtype:
                same = (drawn[own] == drawn[other]).fill_null(False)
                shown = shown.with_columns(shown[other].zip_with(same, shown[own]).alias(own))
    return shown


def _cases(column: Cells, source: Cells) -> Iterator[tuple[Int[np.ndarray, " m"], bool]]:
    """Rows in which both may still move and their bins overlap, and rows in which one value is settled and lies in the other's bin."""
    both = np.flatnonzero((column.bins >= 0) & (source.bins >= 0) & ~(column.settled & source.settled))
    own, other = column.ends(both), source.ends(both)
    open_ = ~column.settled[both] & ~source.settled[both]
    overlap = (own[0] <= other[1]) & (other[0] <= own[1])
    fixed = np.where(column.settled[both], column.values(both), source.values(both))
    low, high = np.where(column.settled[both], other, own)
    yield both[open_ & overlap], True
    yield both[~open_ & (low <= fixed) & (fixed <= high)], False


def _meet(source: Cells, column: Cells, rows: Int[np.ndarray, " m"]) -> None:
    """Move the source's values into the part of its bins that the column's bins share, keeping their place in it."""
    own, other = column.ends(rows), source.ends(rows)
    z = source.code.rank(
        np.concatenate([other[0], other[1], np.maximum(own[0], other[0]), np.minimum(own[1], other[1])])
    )
    start, end, low, high = z.reshape(4, -1)
    place = (source.z[rows] - start) / np.maximum(end - start, 1e-12)
    moved = low + np.clip(place, 0.0, 1.0) * (high - low)
    source.z[rows] = np.clip(
        moved, *np.array(source.code.bins)[source.bins[rows]].T
    )  # a bin's ends are told with some slack


def _bins_of(code: NumberCode, values: Float64[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    state = code.state_of(values) - len(code.atoms)
    return np.where((state >= 0) & (state < len(code.bins)), state, -1)


def _shares(
    equal: Bool[np.ndarray, " m"], among: Bool[np.ndarray, " m"], bins: Int[np.ndarray, " m"], count: int
) -> tuple[float, ...]:
    """Share of equal rows among some, for each bin, drawn towards that of all bins."""
    total = equal.sum() / max(1, among.sum())
    hits, rows = (np.bincount(bins[which], minlength=count) for which in (equal, among))
    return tuple(np.minimum(1.0, (hits + _PRIOR_ROWS * total) / (rows + _PRIOR_ROWS)).tolist())


def _root(roots: Mapping[str, str], name: str) -> str:
    while roots[name] != name:
        name = roots[name]
    return name
