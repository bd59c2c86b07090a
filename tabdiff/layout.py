"""Which slots of an encoded batch belong to which column.

Every encoded batch is one float32 array ``(B, T, W)``: batch, time, slots. A *unit* is the smallest thing that
is noised as a whole: one number (one slot) or one category (a one-hot block, whose masked state is all zeros).
A column owns one or two units: a plain number or category one, a number with atoms or gaps two (which state, and
the value, *gated* by the state that says "any other value"). A number whose values are binned owns a category, its
atoms and bins in places along a line, and a *detail*, the exact value, which the process neither noises nor shows to
the network: it is drawn inside the bin when the bin is known. The slots past ``model_width`` are *views* of the row
for scores that compare rows by distance, one after the other, each of the same slots on another scale; the diffusion
process never touches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int


@dataclass(frozen=True)
class Unit:
    """One number, category or detail: ``width`` slots from ``start``, part of column number ``column``.

    ``gate`` is the slot that is 1 where this number applies; elsewhere the column holds an atom or is missing.
    ``places`` are normal scores of the states of a number, in slot order; missing, if it is a state, has none. Those of a
    detail are the middles of its bins, the last of its category's states that have a place.
    """

    column: int
    kind: Literal["number", "category", "detail"]
    start: int
    width: int
    gate: int | None = None
    places: tuple[float, ...] = ()

    @property
    def slots(self) -> slice:
        """The unit's place in the last axis of an encoded batch."""
        return slice(self.start, self.start + self.width)


@dataclass(frozen=True)
class Layout:
    """Columns, their units, and the views behind them.

    Attributes:
        columns: names of the C modelled columns.
        units: U units, in slot order, without gaps.
        view_columns: for each slot of a view, in order, the number of its column in the user's table.
        views: names of the views.
    """

    columns: tuple[str, ...]
    units: tuple[Unit, ...]
    view_columns: tuple[int, ...] = ()
    views: tuple[str, ...] = ()

    @property
    def model_width(self) -> int:
        """Slots that the diffusion process covers."""
        return self.units[-1].start + self.units[-1].width if self.units else 0

    @property
    def width(self) -> int:
        """All slots: W."""
        return self.model_width + len(self.views) * len(self.view_columns)

    def view(self, name: str) -> slice:
        """Slots of a view."""
        start = self.model_width + self.views.index(name) * len(self.view_columns)
        return slice(start, start + len(self.view_columns))

    @cached_property
    def number_units(self) -> tuple[int, ...]:
        """Indices of the units that hold a number."""
        return tuple(index for index, unit in enumerate(self.units) if unit.kind == "number")

    @cached_property
    def category_units(self) -> tuple[int, ...]:
        """Indices of the units that hold a category."""
        return tuple(index for index, unit in enumerate(self.units) if unit.kind == "category")

    @cached_property
    def detail_units(self) -> tuple[int, ...]:
        """Indices of the units that hold the exact value of a binned number."""
        return tuple(index for index, unit in enumerate(self.units) if unit.kind == "detail")

    @cached_property
    def number_slots(self) -> Int[np.ndarray, " numbers"]:
        """Slot of each number unit."""
        return np.array([self.units[index].start for index in self.number_units], dtype=np.int64)

    @cached_property
    def unit_of_slot(self) -> Int[np.ndarray, " slots"]:
        """For each model slot, the unit it belongs to."""
        return np.repeat(np.arange(len(self.units)), [unit.width for unit in self.units])

    @cached_property
    def units_to_columns(self) -> Float32[np.ndarray, "units columns"]:
        """1 where the unit belongs to the column: ``errors (.., U) @ units_to_columns`` sums errors per column."""
        member = np.zeros((len(self.units), len(self.columns)), dtype=np.float32)
        for index, unit in enumerate(self.units):
            member[index, unit.column] = 1.0
        return member

    @cached_property
    def category_slots(self) -> Int[np.ndarray, " category_slots"]:
        """Slots of all category units, in order."""
        return np.flatnonzero(np.isin(self.unit_of_slot, self.category_units))

    @cached_property
    def padded_blocks(self) -> Int[np.ndarray, "categories widest"]:
        """Slots of each category unit, padded with -1 to the widest: all blocks are handled in one tensor operation."""
        widths = [self.units[index].width for index in self.category_units]
        padded = np.full((len(widths), max(widths, default=0)), -1)
        for row, index in enumerate(self.category_units):
            padded[row, : widths[row]] = np.arange(self.units[index].start, self.units[index].start + widths[row])
        return padded

    def beside(self, categories: Sequence[tuple[str, int]]) -> Layout:
        """With further categories behind the units: names, and how many states each has. Without views if there are any."""
        if not categories:
            return self
        columns, units = list(self.columns), list(self.units)
        for name, states in categories:
            start = units[-1].start + units[-1].width
            units.append(Unit(len(columns), "category", start, states))
            columns.append(name)
        return Layout(tuple(columns), tuple(units))

    def units_of(self, column: int) -> tuple[int, ...]:
        """Indices of the units that make up a column."""
        return tuple(index for index, unit in enumerate(self.units) if unit.column == column)

    def draw(self, rng: np.random.Generator, *shape: int) -> Float32[np.ndarray, "..."]:
        """Noise for ``shape`` cells, shape ``(*shape, U)``: N(0, 1) for numbers, U(0, 1) for categories."""
        # One draw of each kind for every cell, so that the stream does not depend on which units are numbers.
        normal = rng.standard_normal((*shape, len(self.units)), dtype=np.float32)
        uniform = rng.random((*shape, len(self.units)), dtype=np.float32)
        is_category = np.array([unit.kind == "category" for unit in self.units], dtype=bool)
        return np.where(is_category, uniform, normal).astype(np.float32)

    def cells(self, given: Bool[np.ndarray, "... columns"]) -> Bool[np.ndarray, "... units"]:
        """Spread a mask over columns to their units."""
        return given[..., [unit.column for unit in self.units]]

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        return {
            "columns": list(self.columns),
            "units": [[unit.column, unit.kind, unit.start, unit.width, unit.gate, unit.places] for unit in self.units],
            "view_columns": list(self.view_columns),
            "views": list(self.views),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Layout:
        """Rebuild from `to_json`."""
        units = tuple(
            Unit(column, kind, start, width, gate, tuple(places))
            for column, kind, start, width, gate, places in values["units"]
        )
        return cls(tuple(values["columns"]), units, tuple(values["view_columns"]), tuple(values["views"]))
