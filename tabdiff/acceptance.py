"""Which of the drawn rows may come out: those that meet the conditions, obey the constraints, are wanted and copy no training row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from tabdiff.constraints import Sum, Unique
from tabdiff.errors import ConfigError, SynthesisError
from tabdiff.originals import CopyTest
from tabdiff.restrictions import Restriction
from tabdiff.schema import Column, Schema

LEAST_ACCEPTANCE = 0.001
_TRIED_BEFORE_GIVING_UP, _IDLE_BEFORE_GIVING_UP = 2000, 5000
_COPIES = "copies of training rows"

Judge = Callable[[pl.DataFrame], Any]
_Test = Callable[[pl.DataFrame, pl.DataFrame], Bool[np.ndarray, " rows"]]


class Acceptance:
    """Judges the rows of one request, attempt after attempt.

    Args:
        schema: of the modelled columns.
        given: columns of which cells are given.
        restrictions: ranges and sets.
        rules: constraints.
        judge: the user's own rule, see `Request`.
        copies: tells copies of training rows; None if it is not asked for.

    Attributes:
        drawn, done: rows that were judged, and those that came out.
    """

    def __init__(
        self,
        schema: Schema,
        given: Sequence[str],
        restrictions: Sequence[Restriction],
        rules: Sequence[Any],
        judge: Judge | None,
        copies: CopyTest | None,
    ) -> None:
        self.drawn = self.done = self._idle = 0
        self._schema, self._copies = schema, copies
        self._unique = [rule for rule in rules if isinstance(rule, Unique)]
        self._keys: list[list[pl.DataFrame]] = [[] for _ in self._unique]  # of the rows that came out
        self._tests: dict[str, _Test] = {str(asked): partial(_misses, asked) for asked in restrictions}
        self._tests |= {str(rule): partial(_breaks, rule) for rule in rules if not isinstance(rule, Unique)}
        sums = {name for rule in rules if isinstance(rule, Sum) for name in rule.about}
        if computed := sorted(sums - set(given)):
            self._tests["sums inside the training range"] = partial(_outside, [schema[name] for name in computed])
        if judge is not None:
            self._tests["the wanted rows"] = partial(_unwanted, judge)
        self._counts = {**dict.fromkeys(self._tests, 0), **{str(rule): 0 for rule in self._unique}, _COPIES: 0}

    @property
    def broken(self) -> dict[str, int]:
        """For each rule that some of the drawn rows broke, how many did."""
        return {name: count for name, count in self._counts.items() if count}

    @property
    def copied(self) -> int | None:
        """Copies of training rows that came out; None if they are not told."""
        return None if self._copies is None else self._copies.accepted

    def choose(
        self, frame: pl.DataFrame, tries: int, *, again: bool
    ) -> tuple[Int[np.ndarray, " kept"], Bool[np.ndarray, " places"]]:
        """The rows that come out, at most one for each place; and which places have none.

        Args:
            frame: rows in the user's types: some tries for the first place, as many for the second, and so on.
            tries: for each place.
            again: whether the places were tried before.

        Raises:
            ConfigError: the user's own rule does not say one thing of each row.
            SynthesisError: hardly any row comes out, or there are more copies than chance explains.
        """
        bad = self._bad(frame, again)
        good = ~bad.reshape(-1, tries)
        has = np.asarray(good.any(axis=1))
        keep = (np.arange(len(good)) * tries + good.argmax(axis=1))[has]
        for keys, rule in zip(self._keys, self._unique, strict=True):
            keys.append(frame[keep].select(rule.columns))
        self.drawn, self.done = self.drawn + frame.height, self.done + len(keep)
        self._idle = 0 if len(keep) else self._idle + frame.height
        if not has.all():
            self._give_up()
        return keep, ~has

    def _bad(self, frame: pl.DataFrame, again: bool) -> Bool[np.ndarray, " rows"]:
        bad = np.zeros(frame.height, bool)
        canonical = self._schema.conform(frame) if self._tests or self._copies else frame
        for name, test in self._tests.items():
            bad |= self._counted(name, test(frame, canonical))
        for keys, rule in zip(self._keys, self._unique, strict=True):
            bad |= self._counted(str(rule), _repeats(rule, keys, frame, bad))
        if self._copies is not None:
            bad |= self._counted(_COPIES, self._copies.excess(canonical, ~bad, again=again))
        return bad

    def _counted(self, name: str, hit: Bool[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        self._counts[name] += int(hit.sum())
        return hit

    def _give_up(self) -> None:
        """An error instead of an endless loop."""
        hopeless = self.drawn >= _TRIED_BEFORE_GIVING_UP and self.done < LEAST_ACCEPTANCE * self.drawn
        if hopeless or self._idle >= _IDLE_BEFORE_GIVING_UP:
            worst = sorted(self.broken.items(), key=lambda item: -item[1])[:3]
            named = "; ".join(f"{name!r} was broken by {count:,}" for name, count in worst)
            raise SynthesisError(
                f"rows must obey the conditions and constraints; of {self.drawn:,} drawn rows {self.done:,} came out: {named}. "
                "Widen the condition, take a constraint out, or fit longer: what training never showed cannot be drawn."
            )


def _breaks(rule: Any, _: pl.DataFrame, canonical: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
    return np.asarray(rule.broken(canonical))


def _misses(asked: Restriction, _: pl.DataFrame, canonical: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
    """A restriction is not met by a missing value either."""
    return np.asarray(asked.broken(canonical) | canonical[asked.column].is_null().to_numpy())


def _outside(columns: Sequence[Column], _: pl.DataFrame, canonical: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
    tests = [~pl.col(c.name).is_between(c.minimum or 0.0, c.maximum or 0.0) for c in columns]
    return canonical.select(pl.any_horizontal(tests).fill_null(False)).to_series().to_numpy()


def _unwanted(judge: Judge, frame: pl.DataFrame, _: pl.DataFrame) -> Bool[np.ndarray, " rows"]:
    wanted = np.asarray(judge(frame), dtype=bool)
    if wanted.shape != (frame.height,):
        raise ConfigError(
            f"where says of each row whether it is wanted; got shape {wanted.shape} for {frame.height} rows."
        )
    return ~wanted


def _repeats(
    rule: Unique, accepted: Sequence[pl.DataFrame], frame: pl.DataFrame, bad: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Rows that agree with one that came before in the columns of a rule; rows that are bad already do not count."""
    before = pl.concat([*accepted, frame.select(rule.columns)])
    counted = np.concatenate([np.zeros(before.height - frame.height, bool), bad])
    repeats = np.zeros(before.height, bool)
    places = np.flatnonzero(~counted)
    repeats[places] = rule.broken(before[places])
    return repeats[before.height - frame.height :]
