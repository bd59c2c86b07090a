"""What a user asks of columns: exact values, ranges and sets; and how a value inside them is drawn.

A range or a set is met by drawing the column's value first, from its distribution in training cut to what is asked for, and
drawing the other columns given that value. p(value | asked) p(others | value) is the distribution of rows with the
restriction, so nothing has to be thrown away. Further restrictions on other columns are met by rejection.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from tabdiff.codec import Codec
from tabdiff.codes import CategoryCode, NumberCode
from tabdiff.constraints import Among, Range, numbers
from tabdiff.errors import ConfigError, SynthesisError, warn
from tabdiff.schema import Column, Kind, Schema

_OPERATORS = re.compile(r"\s*(>=|<=|=|>|<|\bin\b)\s*(.*)", re.DOTALL)
_EXAMPLES = "Examples: --given class=1, --given age=30..40, --given 'age>=50', --given 'class in {a,b}'."
Restriction = Range | Among


def parse_given(texts: Sequence[str], schema: Schema) -> dict[str, Any]:
    """Conditions as the command line has them: `name=value`, `name=low..high`, `name>=low`, `name in {a,b}`.

    Returns exact values as text (None: missing), ranges and sets as rules, for `split_given`.

    Raises:
        ConfigError: a text is none of these, or two speak of one column (but for two ends of a range).
    """
    kinds = {column.name: column for column in schema.columns}
    found: dict[str, Any] = {}
    for text in texts:
        name = max(
            (n for n in kinds if text.strip().startswith(n) and _OPERATORS.match(text.strip()[len(n) :])),
            key=len,
            default="",
        )
        if not name:
            name = re.split(r"[=<>]| in ", text, maxsplit=1)[0].strip()
        match = _OPERATORS.match(text.strip()[len(name) :])
        if not match or not name:
            raise ConfigError(f"--given reads COLUMN=VALUE, a range or a set; got {text!r}. {_EXAMPLES}")
        column, (operator, value) = kinds.get(name), match.groups()
        rule = _rule(name, column, operator, value.strip())
        if name in found and isinstance(rule, Range) and isinstance(found[name], Range):
            found[name] = _both(found[name], rule, text)
        elif name in found:
            raise ConfigError(f"--given takes a column once; got {name!r} twice. Leave one of them out.")
        else:
            found[name] = rule
    return found


def _rule(name: str, column: Column | None, operator: str, value: str) -> Any:
    """An exact value as text, or a rule."""
    measured = column is not None and column.kind not in (Kind.CATEGORICAL, Kind.BOOLEAN, Kind.TEXT)
    if operator == "in":
        parts = [part.strip() for part in value.strip("{}").split(",") if part.strip()]
        if not parts or column is None:
            raise ConfigError(f"--given {name} in {value}: a set lists values of a column. {_EXAMPLES}")
        return among(column, parts)
    if operator == "=" and not (measured and ".." in value):
        return value or None
    if column is None or not measured:
        raise ConfigError(
            f"--given {name}{operator}{value}: only numbers and dates have ranges; give a set instead. {_EXAMPLES}"
        )
    if operator == "=":
        low, _, high = value.partition("..")
        return between(column, low.strip() or None, high.strip() or None)
    if operator in (">=", ">"):
        return between(column, value, None, open_low=operator == ">")
    return between(column, None, value, open_high=operator == "<")


def _both(first: Range, second: Range, text: str) -> Range:
    lows = [end for end in (first.low, second.low) if end is not None]
    highs = [end for end in (first.high, second.high) if end is not None]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        raise ConfigError(f"--given {text}: nothing is between {low:g} and {high:g}. Widen the range.")
    return Range(column=first.column, low=low, high=high)


def between(column: Column, low: Any, high: Any, *, open_low: bool = False, open_high: bool = False) -> Range:
    """A range of a column; ends as the table writes them, None for no end, `open` for an end that does not count.

    Raises:
        ConfigError: an end is not a value of the column, or low is above high.
    """
    whole = column.kind is not Kind.CONTINUOUS
    ends = [None if end is None else _end(column, end) for end in (low, high)]
    if open_low and ends[0] is not None:
        ends[0] = float(np.floor(ends[0])) + 1.0 if whole else float(np.nextafter(ends[0], np.inf))
    if open_high and ends[1] is not None:
        ends[1] = float(np.ceil(ends[1])) - 1.0 if whole else float(np.nextafter(ends[1], -np.inf))
    if ends[0] is not None and ends[1] is not None and ends[0] > ends[1]:
        raise ConfigError(f"column {column.name!r}: nothing is between {low} and {high}. Give low..high, low first.")
    return Range(column=column.name, low=ends[0], high=ends[1])


def _end(column: Column, end: Any) -> float:
    """A number, or a date in microseconds; the end need not be on the grid of the column."""
    values = pl.Series(column.name, [end])
    if column.kind is not Kind.DATETIME:
        try:
            found = float(end)
        except (TypeError, ValueError):
            found = math.nan
        if math.isnan(found):
            raise ConfigError(f"column {column.name!r} holds numbers; a range cannot end at {end!r}. {_EXAMPLES}")
        return found
    if values.dtype == pl.String:
        values = (
            values.str.to_datetime(strict=False, time_unit="us")
            if ":" in str(end)
            else values.str.to_date(strict=False)
        )
    moment = values.cast(pl.Datetime("us"), strict=False)[0] if values.dtype.is_temporal() else None
    if moment is None:
        raise ConfigError(
            f"column {column.name!r} holds dates; a range cannot end at {end!r}. Write 2024-01-31 or '2024-01-31 12:00:00'."
        )
    return float(pl.Series([moment]).dt.epoch("us")[0])


def among(column: Column, values: Sequence[Any]) -> Among:
    """A set of values of a column, as the table writes them.

    Raises:
        ConfigError: the set is empty, or missing is among the values.
        SchemaError: one of them is not a value of the column.
    """
    if not values:
        raise ConfigError(f"column {column.name!r}: a set lists at least one value; got none.")
    canonical = Schema((column,)).conform(pl.DataFrame({column.name: pl.Series(list(values), strict=False)}))[
        column.name
    ]
    if canonical.null_count():
        raise ConfigError(f"column {column.name!r}: a set lists values, and missing is none; got {list(values)}.")
    cells = numbers(canonical).tolist() if canonical.dtype == pl.Datetime else canonical.to_list()
    unseen = [cell for cell in cells if column.categories and cell not in column.categories]
    if 0 < len(unseen) < len(cells) and column.kind is Kind.CATEGORICAL:
        warn(f"column {column.name!r}: no training row has {', '.join(map(repr, unseen))}, so none is drawn")
    return Among(column=column.name, values=tuple(cells))


def split_given(given: Mapping[str, Any], schema: Schema) -> tuple[dict[str, Any], list[Restriction]]:
    """Exact values, and ranges and sets as rules: a tuple of two is a range, a list or set a set.

    Raises:
        ConfigError: a range or set is not one of the column.
        SchemaError: a value of a set is not one of the column.
    """
    columns = {column.name: column for column in schema.modelled}
    exact: dict[str, Any] = {}
    rules: list[Restriction] = []
    for name, value in given.items():
        column = columns.get(name)
        if isinstance(value, Range | Among):
            rules.append(value)
        elif isinstance(value, tuple | list | set | frozenset) and column is not None:
            if not isinstance(value, tuple):
                rules.append(among(column, sorted(value, key=str)))
            elif len(value) != 2 or column.kind in (Kind.CATEGORICAL, Kind.BOOLEAN):
                raise ConfigError(
                    f"column {name!r}: a tuple is a range (low, high) of a number or date; got {value!r}. Give a list for a set."
                )
            else:
                rules.append(between(column, *value))
        else:
            exact[name] = value
    if not_modelled := [rule.column for rule in rules if rule.column not in columns]:
        raise ConfigError(
            f"ranges and sets are for modelled columns; got {not_modelled[0]!r}. Modelled columns: {', '.join(columns)}."
        )
    return exact, rules


@dataclass(frozen=True)
class Marginal:
    """The distribution of one column in training, cut to a restriction.

    Attributes:
        share: of the training rows that obey.
        points, weights: single values (categories, atoms, bins of one value) that obey, and their shares.
        stretches: normal scores between which other values lie, and their shares.
    """

    code: NumberCode | CategoryCode
    points: tuple[Any, ...]
    weights: tuple[float, ...]
    stretches: tuple[tuple[float, float, float], ...] = ()

    @property
    def share(self) -> float:
        """Of all training rows, those that obey."""
        return sum(self.weights) + sum(share for *_, share in self.stretches)

    def draw(self, rng: np.random.Generator, rows: int) -> list[Any]:
        """Values that obey; the first ones do not depend on how many are drawn."""
        uniform = rng.random((rows, 2))
        edges = np.cumsum([*self.weights, *(share for *_, share in self.stretches)]) / self.share
        place = np.minimum(np.searchsorted(edges, uniform[:, 0], side="right"), len(edges) - 1)
        values: list[Any] = [*self.points, *[None] * len(self.stretches)]
        drawn = [values[i] for i in place.tolist()]
        between = np.flatnonzero(place >= len(self.points))
        if len(between) and isinstance(self.code, NumberCode):
            ends = np.array([[NormalDist().cdf(low), NormalDist().cdf(high)] for low, high, _ in self.stretches])
            start, end = ends[place[between] - len(self.points)].T
            chances = (start + uniform[between, 1] * (end - start)).clip(1e-12, 1 - 1e-12)
            scores = np.array([NormalDist().inv_cdf(p) for p in chances.tolist()], dtype=np.float64)
            for row, value in zip(between.tolist(), self.code.rank.inverse(scores).tolist(), strict=True):
                drawn[row] = value
        return drawn


def marginal(codec: Codec, counts: Mapping[str, Sequence[int]], rule: Restriction) -> Marginal:
    """The training distribution of the restricted column, cut to what is asked for.

    Args:
        counts: for each column with states, how many training rows are in each; the first entry of others is all rows.

    Raises:
        SynthesisError: no training row obeys.
    """
    name, code = rule.column, codec.codes[rule.column]
    states = counts.get(name) or [1] * max(code.states, 1)
    total = max(sum(states), 1)
    if isinstance(code, CategoryCode):
        names = pl.Series(code.categories, dtype=pl.String)
        kept = ~rule.broken(pl.DataFrame({name: names}))
        points = [value for value, keep in zip(code.categories, kept, strict=True) if keep]
        weights = [states[i] / total for i in np.flatnonzero(kept).tolist()]
        found = Marginal(code, tuple(points), tuple(weights))
    else:
        atoms = np.array(code.atoms, dtype=np.float64)
        kept = ~rule.broken(pl.DataFrame({name: atoms}))
        weights = [states[i] / total for i in np.flatnonzero(kept).tolist()]
        last = len(atoms) + max(1, len(code.bins))
        rest = (sum(states[len(atoms) : last]) if code.states else total) / total if code.has_value else 0.0
        if isinstance(rule, Among):
            listed = [float(v) for v in rule.values if not isinstance(v, str) and float(v) not in set(code.atoms)]
            inside = [v for v in listed if code.has_value and code.rank.knots[0] <= v <= code.rank.knots[-1]]
            share = rest / max(len(code.rank.knots), 1)  # each about as frequent as any other value
            found = Marginal(code, (*atoms[kept].tolist(), *inside), (*weights, *[share] * len(inside)))
        else:
            low, high = _scores(code, _widened(rule, codec.schema[name])) if code.has_value else (0.0, 0.0)
            bins = [count / total for count in states[len(atoms) : last]] if code.bins else [rest]
            holds = code.has_value and _holds(code, rule)
            parts = _within(code, low, high, bins) if holds else []
            if holds and not parts:  # a point, or between two values of training
                span = NormalDist().cdf(high) - NormalDist().cdf(low) or 1 / max(len(code.rank.knots), 1)
                parts = [(low, high, rest * span)]
            single = [part for part in parts if part[0] == part[1]]
            values = code.rank.inverse(np.array([score for score, *_ in single])).tolist() if single else []
            found = Marginal(
                code,
                (*atoms[kept].tolist(), *values),
                (*weights, *(share for *_, share in single)),
                tuple(part for part in parts if part[0] < part[1]),
            )
    if not found.share > 0:
        raise SynthesisError(
            f"a condition must hold in some training row; none has {rule}. `tabdiff show` lists ranges and categories."
        )
    return found


def _within(code: NumberCode, low: float, high: float, shares: Sequence[float]) -> list[tuple[float, float, float]]:
    """The parts of the bins between two normal scores, and how many rows are there; a column without bins is one."""
    parts = []
    for (start, end), share in zip(code.bins or ((-math.inf, math.inf),), shares, strict=True):
        first, last = max(start, low), min(end, high)
        if start == end and low <= start <= high:
            parts.append((start, end, share))
        elif first < last:
            whole, inside = (NormalDist().cdf(b) - NormalDist().cdf(a) for a, b in ((start, end), (first, last)))
            parts.append((first, last, share * inside / whole))
    return [part for part in parts if part[2] > 0]


def _widened(rule: Range, column: Column) -> Range:
    """Half a step of the column's grid further at both ends: what is rounded into the range."""
    step = {Kind.INTEGER: 1.0, Kind.DATETIME: float(column.resolution or 1)}.get(column.kind, 0.0)
    if column.kind is Kind.CONTINUOUS and column.decimals is not None:
        step = 10.0**-column.decimals
    low, high = (None if end is None else end + sign * step / 2 for end, sign in ((rule.low, -1), (rule.high, 1)))
    return Range(column=rule.column, low=low, high=high)


def _scores(code: NumberCode, rule: Range) -> tuple[float, float]:
    """Normal scores of the ends, kept inside the training range; equal if the range is a point or outside."""
    first, last = code.rank.knots[0], code.rank.knots[-1]
    low = first if rule.low is None else min(max(rule.low, first), last)
    high = last if rule.high is None else min(max(rule.high, first), last)
    scores: Float64[np.ndarray, " ends"] = code.rank(np.array([low, high], dtype=np.float64))
    return float(scores[0]), float(scores[1])


def _holds(code: NumberCode, rule: Range) -> bool:
    """The range has a point in common with the training range."""
    return (rule.low is None or rule.low <= code.rank.knots[-1]) and (
        rule.high is None or rule.high >= code.rank.knots[0]
    )
