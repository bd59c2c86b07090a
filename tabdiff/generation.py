"""Draw rows that may be published: conditions met, constraints obeyed, rare categories left out, no copies.

Around the sampler stands a loop: draw, repair what has one obvious repair, keep the rows that obey, draw the others anew.
What a row becomes depends on its place and on the seed, not on how many rows are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Float32, Int

from tabdiff.acceptance import Acceptance, Judge
from tabdiff.bundle import Bundle
from tabdiff.codes import OTHER, CategoryCode
from tabdiff.columns import CANONICAL
from tabdiff.conditions import canonical_series, condition_on_cells, overlaid
from tabdiff.config import SampleConfig
from tabdiff.echoes import exactly
from tabdiff.originals import CopyTest, Originals
from tabdiff.restrictions import Restriction, marginal
from tabdiff.revealing import Revealer
from tabdiff.runtime import Runtime
from tabdiff.sampling import BLOCK_ROWS, Condition, NoiseSchedule, draw, several
from tabdiff.schema import Schema

# Rows of so many places are drawn at once, with so many tries for each: what is in hand does not grow with the rows, however few come out.
_PLACES, _TRIES = 2**14, 64


@dataclass(frozen=True)
class SampleReport:
    """How drawing went.

    Attributes:
        rows: rows that were wanted and came out.
        drawn: rows that were drawn for them.
        repaired: rows in which a constraint was mended.
        broken: for each rule, how many of the drawn rows broke it after repair.
        copies: rows that came out and equal a training row which occurs once; None if the model remembers no rows, or was not asked.
    """

    rows: int
    drawn: int
    repaired: int
    broken: dict[str, int] = field(default_factory=dict)
    copies: int | None = None

    @property
    def acceptance(self) -> float:
        """Share of the drawn rows that came out."""
        return self.rows / self.drawn if self.drawn else 1.0


@dataclass(frozen=True)
class Request:
    """What is asked of N rows.

    Attributes:
        given: canonical cells that are known: N rows, or one row that stands for all; columns that are absent are open.
        open_cells: (rows of `given`, columns of `given`) cells that are not known after all.
        missing_if_open: whether open cells may come out missing.
        restrictions: ranges and sets; the rarest is met by drawing its value first, the others by rejection.
        rules: constraints.
        judge: the user's own rule: canonical frame in the user's types -> which rows to keep.
        strength: below 1, open cells start from `given` noised to that time.
        own: each row starts from one of the user's own, so it is not tested for being a copy.
    """

    rows: int
    given: pl.DataFrame
    open_cells: Bool[np.ndarray, "n c"]
    missing_if_open: bool = True
    restrictions: tuple[Restriction, ...] = ()
    rules: tuple[Any, ...] = ()
    judge: Judge | None = None
    strength: float = 1.0
    own: bool = False

    @classmethod
    def nothing(cls, rows: int, **more: Any) -> Request:
        """No cell is known."""
        return cls(rows, pl.DataFrame(), np.zeros((1, 0), bool), **more)


class Generator:
    """Draws rows from a bundle. `on_drawn` is told how many more there are, block after block, accepted or not."""

    def __init__(
        self,
        bundle: Bundle,
        runtime: Runtime,
        config: SampleConfig,
        on_drawn: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.bundle, self.runtime, self.config, self._on_drawn = bundle, runtime, config, on_drawn
        self.schema, self.codec = bundle.schema, bundle.codec
        self._notes: dict[str, Any] = bundle.model.get("sampling", {})

    @cached_property
    def originals(self) -> Originals | None:
        """What the model remembers of its training rows."""
        return Originals.from_json(self._notes["originals"]) if "originals" in self._notes else None

    @cached_property
    def rare(self) -> dict[str, tuple[str, ...]]:
        """Categories of each column that few training rows have; none if that would be most of the column."""
        found = {}
        for name, code in self.codec.codes.items():
            counts = self._notes.get("counts", {}).get(name)
            if isinstance(code, CategoryCode) and counts:
                few = [i for i in range(len(code.categories)) if counts[i] < self.config.rare_rows]
                if 2 * sum(counts[i] for i in few) <= sum(counts):
                    found[name] = tuple(code.categories[i] for i in few)
        return found

    @cached_property
    def allowed(self) -> Float32[np.ndarray, "1 1 w"]:
        """States that may be drawn where nothing is given."""
        layout = self.codec.layout
        allowed = np.ones((1, 1, layout.model_width), np.float32)
        for index, name in enumerate(layout.columns):
            code = self.codec.codes.get(name)
            if code is None or not code.states:
                continue
            unit = layout.units[layout.units_of(index)[0]]
            mask = np.ones(unit.width, np.float32)
            if isinstance(code, CategoryCode) and self.config.rare == "redraw":
                mask[[code.categories.index(value) for value in self.rare.get(name, ())]] = 0
                if code.has_other and code.categories:
                    mask[len(code.categories)] = 0
            if code.has_missing and self.config.missing == "fill":
                mask[-1] = 0
            if mask.any():
                allowed[0, 0, unit.slots] = mask
        return allowed

    def generate(self, request: Request, seed: int) -> tuple[pl.DataFrame, SampleReport]:
        """Rows in the user's types, and how drawing them went.

        Raises:
            SchemaError: a given value was never seen in training.
            SynthesisError: hardly any row obeys, or there are more copies of training rows than chance explains.
        """
        how, copies = self.config.copies, None
        if self.originals is not None and (how == "redraw" or (how == "refuse" and not request.own)):
            copies = CopyTest(self.originals, none=how == "redraw")
        acceptance = Acceptance(
            self._modelled, request.given.columns, request.restrictions, request.rules, request.judge, copies
        )
        accepted: list[tuple[Any, pl.DataFrame]] = []
        repaired = 0
        for part, first in enumerate(range(0, request.rows, _PLACES)):
            pending, attempt = np.arange(first, min(first + _PLACES, request.rows)), 0
            while len(pending):
                tries = min(2**attempt, _TRIES)
                asked = np.repeat(pending, tries)
                frame, mended = self._attempt(request, asked, _seed(seed, part, attempt))
                keep, none = acceptance.choose(frame, tries, again=attempt > 0)
                accepted.append((asked[keep], frame[keep]))
                pending, attempt, repaired = pending[none], attempt + 1, repaired + mended
        place = np.argsort(np.concatenate([places for places, _ in accepted]), kind="stable")
        frame = pl.concat([table for _, table in accepted])[place]
        return frame, SampleReport(request.rows, acceptance.drawn, repaired, acceptance.broken, acceptance.copied)

    def encoded(self, condition: Condition, seed: int, strength: float = 1.0) -> Iterator[Float[np.ndarray, "b w"]]:
        """Blocks of clean encoded rows, no value beyond what training showed."""
        layout, schedule = self.codec.layout, NoiseSchedule.of(self.bundle.model, self.bundle.tensors)
        blocks = draw(
            self.runtime,
            layout,
            schedule,
            condition,
            self.config,
            seed,
            strength,
            order=self.bundle.model.get("order", ()),
            ways=self.bundle.model.get("ways", ()),
            revealer=self._revealer,
        )
        for block, windows in enumerate(blocks):
            x = windows[:, 0]
            if layout.detail_units:
                rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block, 1)))
                uniform = rng.random((BLOCK_ROWS, len(layout.units)), dtype=np.float32)[: len(x)]
                given = condition.given[block * BLOCK_ROWS :][: len(x), 0]
                x = self.codec.draw_details(x, uniform, given)
            self._on_drawn(len(x))
            values = x[:, self._values]  # states are 0 or 1
            x[:, self._values] = np.clip(values, *self.codec.bounds[:, self._values])
            yield x

    @cached_property
    def _values(self) -> Int[np.ndarray, " values"]:
        """Slots that hold more than 0 or 1."""
        layout = self.codec.layout
        return np.setdiff1d(np.arange(layout.model_width), layout.category_slots)

    @cached_property
    def _revealer(self) -> Revealer | None:
        """What draws categories where the engine computes on the CPU as well."""
        layout = self.codec.layout
        if self.runtime.on_device or layout.number_units or self.bundle.model["length"] > 1:
            return None
        return Revealer(layout, self.bundle.tensors, self.bundle.model["blocks"])

    def cleaned(self, condition: Condition) -> Condition:
        """The condition with states that may not be drawn ruled out."""
        return Condition(condition.x, condition.given, condition.allowed * self.allowed)

    def decoded(self, x: Float[np.ndarray, "b w"]) -> pl.DataFrame:
        """Canonical frame of encoded rows; rare categories as missing if so asked."""
        frame = self.codec.decode_canonical(x)
        if self.config.rare != "null":
            return frame
        return frame.with_columns(
            pl.when(pl.col(name).is_in([*self.rare.get(name, ()), OTHER]))
            .then(None)
            .otherwise(pl.col(name))
            .alias(name)
            for name, code in self.codec.codes.items()
            if isinstance(code, CategoryCode) and frame[name].dtype == pl.String
        )

    @cached_property
    def _modelled(self) -> Schema:
        return Schema(tuple(column for column in self.schema.columns if column.name in self.codec.columns))

    def _canonical(self, frame: pl.DataFrame) -> pl.DataFrame:
        return self._modelled.conform(frame)

    def _attempt(self, request: Request, asked: Int[np.ndarray, " n"], seed: int) -> tuple[pl.DataFrame, int]:
        """One draw of the rows at these places, in the user's types, and how many were repaired."""
        condition, cells, open_cells = self._condition(request, asked, seed)
        canonical = pl.concat([self.decoded(x) for x in several(self.encoded(condition, seed, request.strength))])
        canonical = exactly(self.codec.echoes, canonical, overlaid(canonical, cells, open_cells), cells.columns)
        mended = np.zeros(len(asked), bool)
        if request.rules or request.restrictions:
            canonical = self._canonical(self.schema.restore(canonical))  # as it will be read: rounded, on the grid
            canonical = overlaid(canonical, cells, open_cells)
            whole = {name for i, name in enumerate(cells.columns) if not open_cells[:, i].any()}
            fixed = frozenset({*whole, *(rule.column for rule in request.restrictions)})
            for rule in request.rules:
                wrong = rule.broken(canonical)
                if wrong.any():
                    canonical = overlaid(rule.repair(canonical, fixed), cells, open_cells)
                    mended |= wrong & ~rule.broken(canonical)
        return self.schema.restore(canonical), int(mended.sum())

    def _condition(
        self, request: Request, asked: Int[np.ndarray, " n"], seed: int
    ) -> tuple[Condition, pl.DataFrame, Bool[np.ndarray, "cells c"]]:
        """The condition of these rows, and the cells that they must show."""
        layout, cells, open_cells = self.codec.layout, request.given, request.open_cells
        shared = cells.height <= 1 and request.strength == 1
        if not shared:
            cells, open_cells = cells[asked], open_cells[asked]
        anchor = self._anchor(request)
        if anchor is not None:
            column = self.schema[anchor[0]]
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2**21,)))
            if shared and cells.width:
                cells, open_cells = cells[np.zeros(len(asked), int)], np.repeat(open_cells, len(asked), axis=0)
            drawn = canonical_series(column, anchor[1].draw(rng, len(asked)))
            cells = pl.DataFrame([*cells.get_columns(), drawn])
            open_cells = np.hstack(
                [np.broadcast_to(open_cells, (len(asked), cells.width - 1)), np.zeros((len(asked), 1), bool)]
            )
            shared = False
        if not cells.width:
            nothing = Condition.nothing(layout, 1)
            return self.cleaned(nothing).repeated(len(asked)), cells, open_cells
        blank = [
            pl.Series(n, [None] * cells.height, dtype=CANONICAL[self.schema[n].kind])
            for n in self.codec.columns
            if n not in cells.columns
        ]
        whole = cells.with_columns(blank)
        wide = np.ones((cells.height, len(self.codec.columns)), bool)
        for i, name in enumerate(cells.columns):
            wide[:, self.codec.columns.index(name)] = open_cells[:, i]
        condition = condition_on_cells(self.codec, whole, wide, missing_if_open=request.missing_if_open)
        condition = self.cleaned(condition)
        return (condition.repeated(len(asked)) if shared else condition), cells, open_cells

    def _anchor(self, request: Request) -> tuple[str, Any] | None:
        """The restricted column whose value is drawn first: the one that the fewest training rows satisfy."""
        projected = self.codec.projection.columns if self.codec.projection is not None else ()
        found = [
            (rule.column, marginal(self.codec, self._notes.get("counts", {}), rule))
            for rule in request.restrictions
            if rule.column not in projected
        ]
        return min(found, key=lambda pair: pair[1].share, default=None)


def _seed(seed: int, part: int, attempt: int) -> int:
    """Of an attempt at some of the places; the first is of the seed itself."""
    if not part and not attempt:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(2**20, part, attempt)).generate_state(1, np.uint64)[0] >> 1)
