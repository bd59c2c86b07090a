"""Why a row is abnormal: which columns say so, what they should have held, and the smallest repair.

Two questions are asked of a fitted model. *What does it expect* of a cell, given the others of its row (`tabdiff.beliefs`)?
And *what if* the cell held something else: the row is encoded and scored anew. A column's contribution is its part of the
score that goes away when its cell is set right. The smallest repair is found by a beam search over sets of columns.
Nothing is random, and the explanation of a row depends on the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from tabdiff.beliefs import Belief, Believer
from tabdiff.codec import Codec, Encoded, to_series
from tabdiff.codes import CategoryCode
from tabdiff.columns import Kind
from tabdiff.scoring import CHUNK_ROWS

_SHARES = (0.5, 0.1, 0.3, 0.7, 0.9)  # quantiles of what is expected that are tried
_GRID = 10  # quantiles of a column by itself, tried as well, as what the model expects may be off
_STATES = 32  # categories tried, the most frequent first
_REFINED, _POLISHED = 6, 6  # numbers tried around the best one, in so many columns
_BEAM, _PARTNERS = 3, 8  # sets of columns that are followed, and columns tried beside each
_LIKELY = 3  # categories named
_ALTERNATIVE = 0.25  # weight of columns that might be repaired instead

Judge = Callable[[Encoded], tuple[Any, Any, Any]]  # rows to score, p-value (N,) and contributions (N, C)
Changes = dict[int, Any]  # column to plain value


@dataclass(frozen=True)
class Reason:
    """One column of an explained row.

    Attributes:
        column, value: its name and what the row holds.
        contribution: its part of the score.
        expected: what it should have held given the other columns (repaired ones as repaired): the median of a number or
            date, the most probable category.
        low, high: interval of a number or date at the level asked for; None for categories.
        likely: the most probable categories with their probabilities; empty for numbers and dates.
        repaired: what the smallest repair puts there; None where it leaves the cell alone.
    """

    column: str
    value: Any
    contribution: float
    expected: Any
    low: Any
    high: Any
    likely: tuple[tuple[Any, float], ...]
    repaired: Any


@dataclass(frozen=True)
class Explanation:
    """Why one row is abnormal.

    Attributes:
        row: its place in the table, counted from 0.
        score, p_value: as `Model.score` gives them.
        contributions: what each modelled column adds to the score; they sum to it.
        reasons: the columns that matter most, and all that the repair changes, largest contribution first.
        repair: the smallest set of columns found whose change makes the row normal, with their new values; empty if the row
            is normal as it is.
        repaired_score, repaired_p_value: of the row after the repair.
        normal: whether the row is normal after the repair; if not, the repair is the best one of the largest size tried.
    """

    row: int
    score: float
    p_value: float
    contributions: dict[str, float]
    reasons: tuple[Reason, ...]
    repair: dict[str, Any]
    repaired_score: float
    repaired_p_value: float
    normal: bool


@dataclass(frozen=True)
class _Edit:
    """A row with some cells exchanged, and what it scores."""

    row: int
    changes: Changes
    score: float
    p_value: float


class Explainer:
    """Asks a model what-if questions about rows.

    Args:
        codec: how rows become arrays.
        believer: what the model expects of cells.
        judge: scores encoded rows.
        rows: conformed rows to explain.
        alpha: a row is normal if its p-value is above this.
    """

    def __init__(self, codec: Codec, believer: Believer, judge: Judge, rows: pl.DataFrame, alpha: float) -> None:
        self.codec, self.believer, self.judge = codec, believer, judge
        self.rows, self.alpha = rows, alpha
        self.grids = [self._grid(name) for name in codec.columns]

    def explain(
        self, held: pl.DataFrame, numbers: Sequence[int], largest: int, top: int, level: float
    ) -> list[Explanation]:
        """Explain every row.

        Args:
            held: the rows as the user has them.
            numbers: place of each row in the user's table.
            largest: columns that a repair may change.
            top: columns to give reasons for.
            level: probability of the intervals.
        """
        if not self.rows.height:
            return []
        score, p_value, _ = self.judge(self.codec.encode(self.rows))
        firsts, repairs = self._search(p_value, largest)
        contributions = self._contributions(score, firsts, repairs)
        found = []
        kept = [repair.changes if p <= self.alpha else {} for repair, p in zip(repairs, p_value, strict=True)]
        shown = [
            sorted({*np.argsort(-own, kind="stable")[:top].tolist(), *changes}, key=lambda column: -own[column])
            for own, changes in zip(contributions, kept, strict=True)
        ]
        cells = [(row, kept[row], column) for row, columns in enumerate(shown) for column in columns]
        beliefs = {(row, column): b for (row, _, column), b in zip(cells, self._beliefs(cells), strict=True)}
        for row, changes in enumerate(kept):
            reasons = [
                self._reason(
                    c, held[self.codec.columns[c]][row], contributions[row, c], beliefs[row, c], changes, level
                )
                for c in shown[row]
            ]
            before = (float(score[row]), float(p_value[row]))
            after = (repairs[row].score, repairs[row].p_value) if changes else before
            parts = dict(zip(self.codec.columns, contributions[row].tolist(), strict=True))
            new = {self.codec.columns[c]: self._shown(c, [value])[0] for c, value in changes.items()}
            found.append(
                Explanation(numbers[row], *before, parts, tuple(reasons), new, *after, bool(after[1] > self.alpha))
            )
        return found

    def _reason(
        self, column: int, value: Any, contribution: float, belief: Belief, repair: Changes, level: float
    ) -> Reason:
        name = self.codec.columns[column]
        number = belief.values.dtype != object
        plain = [belief.expected, None, None, repair.get(column)]
        if number:
            plain[1:3] = belief.quantile((1 - level) / 2), belief.quantile((1 + level) / 2)
            plain[3] = repair.get(column, np.nan)
            if self.codec.schema[name].kind is Kind.CONTINUOUS:  # what single precision knows, the same in any batch
                plain[:3] = [float(f"{value:.5g}") for value in plain[:3]]
        expected, low, high, repaired = self._shown(column, plain)
        states = [] if number else belief.likely(_LIKELY)
        likely = tuple(zip(self._shown(column, [v for v, _ in states]), (p for _, p in states), strict=True))
        return Reason(name, value, float(contribution), expected, low, high, likely, repaired)

    def _shown(self, column: int, plain: Sequence[Any]) -> list[Any]:
        """Plain values as the user's table writes them."""
        series = self._canonical(column, plain)
        values: list[Any] = self.codec.schema.restore(pl.DataFrame([series]))[series.name].to_list()
        return values

    def _canonical(self, column: int, plain: Sequence[Any]) -> pl.Series:
        name = self.codec.columns[column]
        text = isinstance(self.codec.codes[name], CategoryCode)
        return to_series(self.codec.schema[name], np.array(plain, dtype=object if text else np.float64))

    # ------------------------------------------------------------------------------------------- what if

    def _grid(self, name: str) -> list[Any]:
        code = self.codec.codes[name]
        if isinstance(code, CategoryCode):
            return list(code.categories[:_STATES])
        knots = np.asarray(code.rank_of_all.knots)
        spread = np.quantile(knots, (np.arange(_GRID) + 0.5) / _GRID)
        values: list[Any] = np.unique(np.concatenate([code.atoms, spread])).tolist()
        return values

    def _edited(self, edits: Sequence[tuple[int, Changes]]) -> Encoded:
        """The rows with cells exchanged, one for each edit; all other cells are the same to the bit."""
        rows = np.array([row for row, _ in edits], dtype=np.int64)
        places: dict[int, list[int]] = {}
        for place, (_, changes) in enumerate(edits):
            for column in changes:
                places.setdefault(column, []).append(place)
        series = []
        for column, name in enumerate(self.codec.columns):
            held, take = self.rows[name], rows
            if column in places:
                new = self._canonical(column, [edits[place][1][column] for place in places[column]])
                take = rows.copy()
                take[places[column]] = np.arange(len(held), len(held) + len(new))
                held = pl.concat([held, new])
            series.append(held.gather(take))
        return self.codec.encode(pl.DataFrame(series))

    def _judged(self, edits: Sequence[tuple[int, Changes]]) -> tuple[np.ndarray, np.ndarray]:
        """Scores and p-values of edited rows."""
        size = 8 * CHUNK_ROWS
        parts = [self.judge(self._edited(edits[start : start + size])) for start in range(0, len(edits), size)]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _beliefs(self, cells: Sequence[tuple[int, Changes, int]]) -> list[Belief]:
        columns = np.array([column for _, _, column in cells], dtype=np.int64)
        return self.believer(self._edited([(row, changes) for row, changes, _ in cells]), columns)

    def _best(self, cells: Sequence[tuple[int, Changes, int]]) -> list[_Edit]:
        """For each cell of an edited row the value with which the row scores lowest; the expected one if that is enough."""
        values: list[list[Any]] = []
        for belief, (_, _, column) in zip(self._beliefs(cells), cells, strict=True):
            if belief.values.dtype == object:
                tried = [value for value, _ in belief.likely(_STATES)]
            else:
                tried = [belief.quantile(share) for share in _SHARES]
            values.append(list(dict.fromkeys([*tried, *self.grids[column]])))
        scores, p_values = self._try(cells, values)
        order: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for index in sorted(range(len(cells)), key=lambda i: scores[i].min()):
            row, changes, column = cells[index]
            if not isinstance(self.codec.codes[self.codec.columns[column]], CategoryCode):
                order.setdefault((row, tuple(changes)), []).append(index)
        polished = [index for own in order.values() for index in own[:_POLISHED]]
        finer = []
        for index in polished:
            sorted_values = np.sort(values[index])
            place = int(np.searchsorted(sorted_values, values[index][int(scores[index].argmin())]))
            low, high = sorted_values[max(place - 1, 0)], sorted_values[min(place + 1, len(sorted_values) - 1)]
            finer.append(np.linspace(low, high, _REFINED + 2)[1:-1].tolist())
        fine_scores, fine_p = self._try([cells[i] for i in polished], finer)
        for place, index in enumerate(polished):
            values[index] = values[index] + finer[place]
            scores[index] = np.append(scores[index], fine_scores[place])
            p_values[index] = np.append(p_values[index], fine_p[place])
        found = []
        for index, (row, changes, column) in enumerate(cells):
            best = 0 if p_values[index][0] > self.alpha else int(scores[index].argmin())
            change = {**changes, column: values[index][best]}
            found.append(_Edit(row, change, float(scores[index][best]), float(p_values[index][best])))
        return found

    def _try(
        self, cells: Sequence[tuple[int, Changes, int]], values: Sequence[Sequence[Any]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Scores and p-values of each cell's row with each of its values."""
        if not cells:
            return [], []
        edits = [
            (row, {**changes, column: value})
            for (row, changes, column), own in zip(cells, values, strict=True)
            for value in own
        ]
        ends = np.cumsum([len(own) for own in values])[:-1]
        scores, p_values = self._judged(edits)
        return np.split(scores, ends), np.split(p_values, ends)

    # ------------------------------------------------------------------------------------------- repairs

    def _search(self, p_value: np.ndarray, largest: int) -> tuple[list[list[_Edit]], list[_Edit]]:
        """The best change of each single column, and the smallest repair of each row, of at most `largest` columns."""
        count, rows = len(self.codec.columns), range(self.rows.height)
        every = self._best([(row, {}, column) for row in rows for column in range(count)])
        firsts = [every[row * count : (row + 1) * count] for row in rows]
        repairs = [self._choose(own) for own in firsts]
        beams = {row: firsts[row] for row in rows if max(p_value[row], repairs[row].p_value) <= self.alpha}
        for _ in range(1, min(largest, count)):
            cells = []
            for row, beam in beams.items():
                order = sorted(range(count), key=lambda column: firsts[row][column].score)
                seen: set[frozenset[int]] = set()
                for edit in self._lowest(beam):
                    for column in [column for column in order if column not in edit.changes][:_PARTNERS]:
                        together = frozenset([*edit.changes, column])
                        if together not in seen:
                            cells.append((row, edit.changes, column))
                        seen.add(together)
            found: dict[int, list[_Edit]] = {}
            for edit in self._best(cells) if cells else []:
                found.setdefault(edit.row, []).append(edit)
            for edit in self._revised([edit for edits in found.values() for edit in self._lowest(edits)]):
                found[edit.row].append(edit)
            for row, edits in found.items():
                repairs[row] = self._choose(edits)
            beams = {row: edits for row, edits in found.items() if repairs[row].p_value <= self.alpha}
        return firsts, self._pruned(repairs)

    @staticmethod
    def _lowest(edits: Sequence[_Edit]) -> list[_Edit]:
        """The sets of columns that are followed."""
        best: dict[frozenset[int], _Edit] = {}
        for edit in sorted(edits, key=lambda edit: edit.score):
            best.setdefault(frozenset(edit.changes), edit)
        return list(best.values())[:_BEAM]

    def _revised(self, edits: Sequence[_Edit]) -> list[_Edit]:
        """The same columns with earlier values chosen anew: they were chosen while a later cell was still broken."""
        cells = [
            (edit.row, {c: v for c, v in edit.changes.items() if c != column}, column)
            for edit in edits
            if edit.p_value <= self.alpha
            for column in list(edit.changes)[:-1]
        ]
        return self._best(cells) if cells else []

    def _choose(self, edits: Sequence[_Edit]) -> _Edit:
        """The lowest score among rows that are normal, or among all if none is."""
        normal = [edit for edit in edits if edit.p_value > self.alpha]
        return min(normal or edits, key=lambda edit: edit.score)

    def _pruned(self, repairs: Sequence[_Edit]) -> list[_Edit]:
        """Without a change that turns out not to be needed."""
        result = list(repairs)
        for row, repair in enumerate(repairs):
            while len(result[row].changes) > 1 and repair.p_value > self.alpha:
                less = self._without(result[row])
                scores, p_values = self._judged(less)
                enough = [i for i in range(len(less)) if p_values[i] > self.alpha]
                if not enough:
                    break
                best = min(enough, key=lambda i: scores[i])
                result[row] = _Edit(row, less[best][1], float(scores[best]), float(p_values[best]))
        return result

    @staticmethod
    def _without(edit: _Edit) -> list[tuple[int, Changes]]:
        return [(edit.row, {c: v for c, v in edit.changes.items() if c != column}) for column in edit.changes]

    def _contributions(
        self, score: np.ndarray, firsts: Sequence[Sequence[_Edit]], repairs: Sequence[_Edit]
    ) -> Float64[np.ndarray, "n c"]:
        """Parts of the score: for each column the mean of what goes away when it alone is repaired, and when it is repaired last.

        First and last are the two ends of the orders that a Shapley value averages over; with two columns they are all. Columns
        outside the repair have no part in the latter, and count for less: what they would do, the repair has done. The parts
        are scaled to sum to the score.
        """
        drops = np.maximum(score[:, None] - [[edit.score for edit in own] for own in firsts], 0.0)
        last = np.zeros_like(drops)
        for row, repair in enumerate(repairs):
            columns = list(repair.changes)
            before = self._judged(self._without(repair))[0] if len(columns) > 1 else score[[row]]
            last[row, columns] = np.maximum(before - repair.score, 0.0)
            drops[row, [column for column in range(drops.shape[1]) if column not in repair.changes]] *= _ALTERNATIVE
        parts = drops + last
        total = parts.sum(axis=1, keepdims=True)
        share = np.where(total > 0, parts / np.where(total > 0, total, 1.0), 1.0 / parts.shape[1])
        return np.asarray(share * score[:, None], dtype=np.float64)


def to_frame(explanations: Sequence[Explanation]) -> pl.DataFrame:
    """One line per reason, as text where columns differ in type: for files."""
    lines = [
        {
            "row": found.row,
            "score": found.score,
            "p_value": found.p_value,
            "column": reason.column,
            "value": _text(reason.value),
            "contribution": reason.contribution,
            "expected": _text(reason.expected),
            "low": _text(reason.low),
            "high": _text(reason.high),
            "probability": reason.likely[0][1] if reason.likely else None,
            "repaired": _text(reason.repaired),
            "repaired_score": found.repaired_score,
            "repaired_p_value": found.repaired_p_value,
            "normal_after_repair": found.normal,
        }
        for found in explanations
        for reason in found.reasons
    ]
    numbers = {"row": pl.Int64, "score": pl.Float64, "p_value": pl.Float64, "contribution": pl.Float64}
    numbers |= {"probability": pl.Float64, "repaired_score": pl.Float64, "repaired_p_value": pl.Float64}
    texts = dict.fromkeys(("column", "value", "expected", "low", "high", "repaired"), pl.String)
    order = ["row", "score", "p_value", "column", "value", "contribution", "expected", "low", "high", "probability"]
    order += ["repaired", "repaired_score", "repaired_p_value", "normal_after_repair"]
    types = {**numbers, **texts, "normal_after_repair": pl.Boolean}
    return pl.DataFrame(lines, schema={name: types[name] for name in order})


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
