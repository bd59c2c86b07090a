"""Find the rules that a training table obeys without exception and not by chance.

A rule is taken for certain if every row obeys it and rows with independent columns would do so with a probability below
1e-9. Even then it is an observation: the chance that a new row breaks a rule that n rows obey is up to about 3 / n
(with 95 % confidence). So every rule is listed, and can be taken out.

What needs no rule: the sampler keeps numbers inside the training range and knows no categories but those of training.
"""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int

from tabdiff.constraints import Combinations, OneHot, Order, Sum, Unique, flag_values, numbers
from tabdiff.schema import Column, Kind, Schema

LOG10_CHANCE = -9.0
LEAST_ROWS = 30
_EXPECTED = 25.0  # rows that an unseen pair of values would have by chance; e^-25 is about 1e-11
_MOST_NUMBERS, _MOST_LEVELS, _MOST_PAIRED, _MOST_RULES = 60, 400, 40, 60
_LOOKED_AT = 2000  # rows that candidates are looked for in; all rows decide


def infer_constraints(frame: pl.DataFrame, schema: Schema) -> tuple[Any, ...]:
    """The rules of a canonical training table of N rows: sums, order, one-hot groups, ties between categories, uniqueness."""
    if frame.height < LEAST_ROWS:
        return ()
    columns = [column for column in schema.modelled if frame[column.name].null_count() < frame.height]
    sums = _sums(frame, columns)
    tied = {frozenset(pair) for rule in sums for pair in combinations(rule.about, 2)}
    groups = _one_hot(frame, columns)
    tied |= {frozenset(pair) for rule in groups for pair in combinations(rule.columns, 2)}
    return (*sums, *_orders(frame, columns, tied), *groups, *_ties(frame, columns, tied), *_unique(frame, columns))


def _numeric(columns: list[Column]) -> list[Column]:
    kinds = (Kind.CONTINUOUS, Kind.INTEGER, Kind.DATETIME)
    return [column for column in columns if column.kind in kinds][:_MOST_NUMBERS]


def _sums(frame: pl.DataFrame, columns: list[Column]) -> list[Sum]:
    """Sums of two parts or more: candidates by least squares, then every row decides."""
    names = [c.name for c in _numeric(columns) if c.kind is not Kind.DATETIME and frame[c.name].n_unique() > 2]
    if len(names) < 2:
        return []
    values = {name: numbers(frame[name]) for name in names}
    matrix = np.stack([values[name] for name in names], axis=1)
    whole = np.flatnonzero(~np.isnan(matrix).any(axis=1))[:_LOOKED_AT]
    if len(whole) < LEAST_ROWS:
        return []
    found: list[Sum] = []
    seen: set[frozenset[str]] = set()
    scale = np.abs(matrix[whole]).max(axis=0)
    for index, name in enumerate(names):
        rest = [i for i in range(len(names)) if i != index and scale[i] > 0]
        solved, *_ = np.linalg.lstsq(matrix[whole][:, rest] / scale[rest], matrix[whole, index], rcond=None)
        weights = solved / scale[rest]
        whole_weights = np.round(weights)
        used = np.flatnonzero(whole_weights)
        if not 1 <= len(used) <= 8 or not np.isin(whole_weights, (-1, 0, 1)).all():
            continue
        if np.abs(weights - whole_weights)[used].max() > 1e-3:
            continue
        plus = [names[rest[i]] for i in used if whole_weights[i] == 1]
        minus = [names[rest[i]] for i in used if whole_weights[i] == -1]
        if len(plus) == 1 and minus:  # a = b - c is b = a + c
            total, parts = plus[0], (name, *minus)
        elif minus:
            continue
        else:
            total, parts = name, tuple(plus)
        about = frozenset((total, *parts))
        if about in seen:
            continue
        decimals = next(c.decimals for c in columns if c.name == total)
        largest = max(float(np.nanmax(np.abs(values[part]))) for part in about)
        rule = Sum(
            total=total,
            parts=parts,
            tolerance=max(0.5 * 10.0 ** -(decimals if decimals is not None else 9), 1e-9 * largest),
        )
        if not rule.broken(frame).any():
            seen.add(about)
            found.append(rule)
    return found


def _orders(frame: pl.DataFrame, columns: list[Column], tied: set[frozenset[str]]) -> list[Order]:
    """a <= b in every row, where the ranges overlap, chance does not explain it and no other rule implies it."""
    numeric = _numeric(columns)
    values = {c.name: numbers(frame[c.name]) for c in numeric}
    rows = np.linspace(0, frame.height - 1, min(frame.height, _LOOKED_AT)).astype(int)
    found: dict[tuple[str, str], bool] = {}
    for first, second in permutations(numeric, 2):
        if (first.kind is Kind.DATETIME) != (second.kind is Kind.DATETIME) or {first.name, second.name} in tied:
            continue
        a, b = values[first.name], values[second.name]
        if not np.nanmax(a) > np.nanmin(b):  # the ranges imply it
            continue
        with np.errstate(invalid="ignore"):
            if (a[rows] > b[rows]).any() or (a > b).any():
                continue
        both = ~np.isnan(a) & ~np.isnan(b)
        if both.sum() < LEAST_ROWS or not (a[both] != b[both]).any():
            continue
        ordered = np.sort(b[both])
        by_chance = 1 - np.searchsorted(ordered, a[both][:_LOOKED_AT], side="left").mean() / len(ordered)
        if both.sum() * np.log10(max(by_chance, 1e-300)) < LOG10_CHANCE:
            found[first.name, second.name] = bool((a[both] < b[both]).all())
    direct = [
        (a, b) for a, b in found if not any((a, c) in found and (c, b) in found for c in values if c not in (a, b))
    ]
    return [Order(columns=pair, strict=found[pair]) for pair in direct[:_MOST_RULES]]


def _one_hot(frame: pl.DataFrame, columns: list[Column]) -> list[OneHot]:
    """Runs of three or more neighbouring yes/no columns of which one is set in every row."""
    flags: list[tuple[str, Any]] = [
        (c.name, flag_values(frame[c.name]) if _is_flag(c, frame[c.name]) else None) for c in columns
    ]
    found, start = [], 0
    while start < len(flags):
        total, end = np.zeros(frame.height), start
        while end < len(flags) and flags[end][1] is not None and not (total + flags[end][1] > 1).any():
            total, end = total + flags[end][1], end + 1
            if end - start >= 3 and (total == 1).all():
                found.append(OneHot(columns=tuple(name for name, _ in flags[start:end])))
                start = end - 1
                break
        start += 1
    return found


def _is_flag(column: Column, values: pl.Series) -> bool:
    if column.kind is Kind.BOOLEAN:
        return True
    levels = set(values.drop_nulls().unique().to_list()) if column.kind in (Kind.CATEGORICAL, Kind.INTEGER) else set()
    return bool(levels) and (levels <= {"0", "1"} or levels <= {0, 1})


def _ties(frame: pl.DataFrame, columns: list[Column], tied: set[frozenset[str]]) -> list[Combinations]:
    """Columns that decide others, and pairs of values that never occur together though chance would pair them often."""
    coded: dict[str, tuple[Int[np.ndarray, " rows"], list[Any]]] = {}
    for column in columns:
        if column.kind in (Kind.CATEGORICAL, Kind.BOOLEAN, Kind.INTEGER):
            levels = frame[column.name].drop_nulls().unique().sort()
            if 2 <= len(levels) <= min(_MOST_LEVELS, frame.height // 5):
                codes = frame[column.name].replace_strict(
                    levels, list(range(len(levels))), default=-1, return_dtype=pl.Int64
                )
                coded[column.name] = codes.fill_null(-1).to_numpy(), levels.to_list()
    decided: list[Combinations] = []
    forbidden: list[Combinations] = []
    linked = set(tied)
    for first, second in permutations(coded, 2):
        if {first, second} in linked:
            continue
        table = _contingency(coded[first], coded[second])
        if len(coded[first][1]) < len(coded[second][1]) or not _decides(table):
            continue
        linked.add(frozenset((first, second)))
        rows = [
            (coded[first][1][i], coded[second][1][int(table[i].argmax())]) for i in np.flatnonzero(table.sum(axis=1))
        ]
        decided.append(Combinations(columns=(first, second), rows=tuple(rows), determined=True))
    for first, second in combinations(coded, 2):
        if {first, second} in linked or max(len(coded[first][1]), len(coded[second][1])) > _MOST_PAIRED:
            continue
        table = _contingency(coded[first], coded[second])
        expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(table.sum(), 1)
        unseen = np.argwhere((table == 0) & (expected >= _EXPECTED)).tolist()
        if unseen:
            rows = [(coded[first][1][i], coded[second][1][j]) for i, j in unseen]
            forbidden.append(Combinations(columns=(first, second), rows=tuple(rows), forbidden=True))
    return [*decided[:_MOST_RULES], *forbidden[:_MOST_RULES]]


def _contingency(first: tuple[Any, list[Any]], second: tuple[Any, list[Any]]) -> Float64[np.ndarray, "a b"]:
    both = (first[0] >= 0) & (second[0] >= 0)
    table = np.zeros((len(first[1]), len(second[1])))
    np.add.at(table, (first[0][both], second[0][both]), 1)
    return table


def _decides(table: Float64[np.ndarray, "a b"]) -> bool:
    """Every row of the table has one entry, and rows of independent columns would hardly agree so often."""
    if ((table > 0).sum(axis=1) > 1).any():
        return False
    agreeing = np.maximum(table.sum(axis=1) - 1, 0).sum()
    share = table.sum(axis=0) / max(table.sum(), 1)
    return bool(agreeing * np.log10(max(float((share**2).sum()), 1e-300)) < LOG10_CHANCE)


def _unique(frame: pl.DataFrame, columns: list[Column]) -> list[Unique]:
    """Whole numbers that never repeat though their range would make them, drawn at random."""
    found = []
    for column in columns:
        values = frame[column.name]
        if column.kind is Kind.INTEGER and not values.null_count() and values.n_unique() == frame.height:
            width = float((column.maximum or 0) - (column.minimum or 0) + 1)
            if frame.height**2 / 2 / width >= _EXPECTED:
                found.append(Unique(columns=(column.name,)))
    return found
