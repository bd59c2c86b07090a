"""Series in the user's columns: windows, long series, forecasts, completed and translated recordings.

Between the user's rows and `codenoising` lie the grid, the units of each entity, and the values that a sensor can show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64

from tabdiff.bundle import Bundle
from tabdiff.codec import Codec, to_series
from tabdiff.codenoising import Known, SeriesSampler
from tabdiff.codes import CategoryCode, NumberCode
from tabdiff.columns import Kind, parse_dtype
from tabdiff.conversion import restore
from tabdiff.errors import TABLE, ConfigError, Problem, SchemaError
from tabdiff.runtime import Runtime
from tabdiff.schema import Schema
from tabdiff.series import Recording
from tabdiff.tracks import Plan, prepared

_BEYOND = 1.0  # standard deviations that a drawn number may lie outside all that was seen


@dataclass(frozen=True)
class Canvas:
    """A recording to draw on.

    Attributes:
        entity: whose units it has; None if recordings have no entity.
        first: its first place on the grid.
        known: what is known of it, longer than `places` if that is less than a window.
        places: K.
        recording: the user's rows, if it comes from some.
        among: each series begins at a place of its own among so many from `first` on.
    """

    entity: Any
    first: int
    known: Known
    places: int
    recording: Recording | None = None
    among: int = 1

    def first_of(self, number: int, seed: int) -> int:
        """The first place of the series of this number."""
        if self.among == 1:
            return self.first
        return self.first + int(
            np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, 1))).integers(self.among)
        )


_MOST_LEVELS, _ROWS_PER_LEVEL = 256, 5  # a number with so few values, each so often, only has these


class SeriesGenerator:
    """Draws series from a bundle."""

    def __init__(self, bundle: Bundle, runtime: Runtime, plan: Plan) -> None:
        self.bundle, self.plan = bundle, plan
        self.schema, self.codec, self.layout = bundle.schema, bundle.codec, bundle.codec.layout
        self.sampler = SeriesSampler(runtime, self.layout, bundle.model, bundle.tensors)
        # Numbers in units of an entity are whole or round only after these are undone.
        plain = [
            replace(column, kind=Kind.CONTINUOUS, decimals=None) if column.kind is Kind.INTEGER else
            replace(column, decimals=None) if column.kind is Kind.CONTINUOUS else column
            for column in self.schema.columns
        ]  # fmt: skip
        self._codec = Codec(Schema(tuple(plain)), self.codec.codes)
        self._levels: Mapping[str, Sequence[float]] = bundle.model["series"].get("levels", {})
        self._allowed = self._drawable()

    # ---------------------------------------------------------------------------------------------- canvases

    def blank(self, places: int, entity: Any, first: int, among: int = 1) -> Canvas:
        """Nothing is known."""
        known = Known.nothing(self.layout, max(places, self.sampler.length))
        return Canvas(entity, first, replace(known, allowed=self._allowed), places, among=among)

    def canvases(self, frame: Any, more: int = 0, *, opened: Sequence[str] = ()) -> list[Canvas]:
        """One canvas for each recording of `frame`: its cells are given, gaps and `more` places after it are open.

        Args:
            opened: columns whose cells are open, too; drawing may start from what they hold.

        Raises:
            SchemaError: as for `score`, but columns may be absent; or a given category was never seen in training.
        """
        grid = self.plan.grid
        conformed = self.schema.conform(self._whole(frame))
        if grid.entity is not None and grid.entity in conformed.columns:
            conformed = conformed.with_columns(pl.col(grid.entity).cast(pl.String))
        keys = [key for key in (grid.time, grid.entity) if key is not None and key in conformed.columns]
        rows = conformed.select(*keys, *self.codec.columns)
        return [
            self._canvas(recording, more, opened) for recording in grid.recordings(rows, self.plan.config.duplicates)
        ]

    def _canvas(self, recording: Recording, more: int, opened: Sequence[str]) -> Canvas:
        track = self.plan.encode(recording, self.codec)
        wanted = track.observed & ~np.isin(self.codec.columns, opened)
        if (strange := ~track.present & self.layout.cells(wanted)).any():
            place, unit = np.argwhere(strange)[0]
            name = self.codec.columns[self.layout.units[unit].column]
            where = f"{recording.frame[name][int(place)]!r} at {self.plan.grid.stamp(np.array([recording.first + place]))[0]}"
            cure = "Leave the cell open, or fit with rows that have it."
            raise SchemaError([Problem(name, "a given category must have been seen in training", where, cure)])
        places = len(track.x) + more
        pad = max(places, self.sampler.length) - len(track.x)
        x = np.pad(track.x[:, : self.layout.model_width], ((0, pad), (0, 0)), mode="edge")
        given = np.pad(self.layout.cells(wanted), ((0, pad), (0, 0)))
        return Canvas(recording.entity, recording.first, Known(x, given, self._allowed), places, recording)

    def _whole(self, frame: Any) -> pl.DataFrame:
        """The rows with every modelled column; those that they lack are open."""
        table = prepared(frame, self.plan.config)
        absent = [self.schema[name] for name in self.codec.columns if name not in table.columns]
        if len(absent) == len(self.codec.columns):
            found, cure = f"the columns {table.columns}", f"Give some of {', '.join(self.codec.columns)}."
            raise SchemaError([Problem(TABLE, "given rows hold a sensor", found, cure)])
        return table.with_columns(
            pl.Series(column.name, [None] * table.height, dtype=parse_dtype(column.dtype)) for column in absent
        )

    # ------------------------------------------------------------------------------------------------ drawing

    def draw(
        self, canvas: Canvas, numbers: Sequence[int], *, steps: int, seed: int, strength: float = 1.0
    ) -> Iterator[pl.DataFrame]:
        """Canonical frames of the series of these numbers, K rows each; given cells are exactly as given."""
        low, high = self._range(canvas.known)
        slots = self.layout.number_slots
        done = 0
        calendar = self._calendar(canvas, seed) if self.bundle.model.get("dials") else None
        for several in self.sampler.draw(canvas.known, numbers, calendar, steps=steps, seed=seed, strength=strength):
            firsts = [canvas.first_of(number, seed) for number in numbers[done : done + len(several)]]
            done += len(several)
            several[..., slots] = np.clip(several[..., slots], low, high)
            # All at once: decoding has a price for each call.
            whole = self._decoded(several[:, : canvas.places].reshape(-1, several.shape[2]), canvas, firsts)
            for index in range(len(several)):
                yield whole[index * canvas.places : (index + 1) * canvas.places]

    def _calendar(self, canvas: Canvas, seed: int) -> Callable[[int], Float32[np.ndarray, "k s"]]:
        """What the network is shown of the calendar, for the series of a number."""
        places = np.arange(len(canvas.known.x))
        return lambda number: self.plan.rhythm.shown(canvas.first_of(number, seed) + places)

    def table(
        self, canvas: Canvas, drawn: Iterator[pl.DataFrame], numbers: Sequence[int] | None = None, seed: int = 0
    ) -> Iterator[pl.DataFrame]:
        """Drawn frames in the user's types, with time, entity, and a number where several are drawn."""
        grid, stamps = self.plan.grid, self._stamps(canvas, canvas.first)
        for index, frame in enumerate(drawn):
            if canvas.among > 1 and numbers is not None:
                stamps = self._stamps(canvas, canvas.first_of(numbers[index], seed))
            columns = [stamps, *self.schema.restore(frame).get_columns()]
            if grid.entity is not None:
                columns.insert(0, pl.Series(grid.entity, [canvas.entity] * canvas.places, dtype=pl.String))
            if numbers is not None:
                columns.insert(0, pl.Series(self.number_column, [numbers[index]] * canvas.places))
            yield pl.DataFrame(columns)

    def numbers(self, name: str, values: Float64[np.ndarray, " k"]) -> pl.Series:
        """Numbers in the user's units as a canonical column: on the grid of integers and decimals."""
        return to_series(self.schema[name], np.asarray(values))

    def categories(self, name: str, texts: Sequence[str | None]) -> pl.Series:
        """Categories as a canonical column."""
        return to_series(self.schema[name], np.array(texts, dtype=object))

    @property
    def number_column(self) -> str:
        """Name of the column that numbers the series that were drawn: "series", unless the table has one."""
        name = "series"
        while any(column.name == name for column in self.schema.columns):
            name += "_"
        return name

    def _stamps(self, canvas: Canvas, first: int) -> pl.Series:
        """The time column, as the user writes it."""
        stamps = self.plan.grid.stamp(first + np.arange(canvas.places))
        column = self.schema[self.plan.grid.time]
        return restore(stamps, column).alias(column.name)

    def _decoded(self, x: Float32[np.ndarray, "n w"], canvas: Canvas, firsts: Sequence[int]) -> pl.DataFrame:
        """Rows of one or several series on the same canvas; and the first place of each."""
        plain = self.plan.restored(self._codec.decode_canonical(x), canvas.entity)
        places = (np.asarray(firsts)[:, None] + np.arange(canvas.places)).ravel()
        plain = self.plan.timed(plain, canvas.entity, places)
        columns = []
        for name in self.codec.columns:
            values = plain[name]
            if name in self._levels:
                values = pl.Series(name, _nearest(values.to_numpy(), np.asarray(self._levels[name])))
            if self.schema[name].kind in (Kind.CONTINUOUS, Kind.INTEGER):
                values = self.numbers(name, values.to_numpy())
            if canvas.recording is not None and (given := self._given(canvas, name)).any():
                values = _overlaid(values, canvas.recording.frame[name], given)
            columns.append(values.alias(name))
        return pl.DataFrame(columns)

    def _given(self, canvas: Canvas, name: str) -> Bool[np.ndarray, " k"]:
        unit = self.layout.units_of(self.codec.columns.index(name))[0]
        return canvas.known.given[: canvas.places, unit]

    def _range(self, known: Known) -> tuple[Any, Any]:
        """Where drawn numbers may lie: a little beyond training and what is given."""
        slots, units = self.layout.number_slots, list(self.layout.number_units)
        codes: list[Any] = [self.codec.codes[self.codec.columns[self.layout.units[unit].column]] for unit in units]
        low = np.array([code.rank.scores[0] for code in codes])
        high = np.array([code.rank.scores[-1] for code in codes])
        seen = np.where(known.given[:, units], known.x[:, slots], np.nan)
        if len(units) and known.given.any():
            low = np.fmin(low, np.nanmin(np.vstack([seen, low]), axis=0))
            high = np.fmax(high, np.nanmax(np.vstack([seen, high]), axis=0))
        return (low - _BEYOND).astype(np.float32), (high + _BEYOND).astype(np.float32)

    def _drawable(self) -> Float32[np.ndarray, " w"]:
        """Rare categories that training pooled have no name to be drawn with, and a gap is no value."""
        allowed = np.ones(self.layout.model_width, np.float32)
        for index, name in enumerate(self.codec.columns):
            code = self.codec.codes[name]
            if isinstance(code, CategoryCode) and code.categories:
                unit = self.layout.units[self.layout.units_of(index)[0]]
                allowed[unit.start + len(code.categories) : unit.start + unit.width] = 0
        return allowed


def levels_of(frame: pl.DataFrame, codec: Codec) -> dict[str, list[float]]:
    """The values of numbers that have few: what is drawn between two of them becomes the nearer one."""
    found = {}
    for name, code in codec.codes.items():
        if isinstance(code, NumberCode):
            values = frame[name].drop_nulls().cast(pl.Float64)
            levels = values.unique().sort()
            if len(levels) <= _MOST_LEVELS and len(values) >= _ROWS_PER_LEVEL * len(levels):
                found[name] = levels.to_list()
    return found


def _nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    if len(levels) == 1:
        return np.full(len(values), levels[0])
    after = np.clip(np.searchsorted(levels, values), 1, len(levels) - 1)
    lower, upper = levels[after - 1], levels[after]
    return np.asarray(np.where(values - lower <= upper - values, lower, upper))


def _overlaid(drawn: pl.Series, recorded: pl.Series, given: Bool[np.ndarray, " k"]) -> pl.Series:
    """What was given, exactly as it was, in each of the series that were drawn one after the other."""
    copies = len(drawn) // len(given)
    nothing = pl.Series([None] * (len(given) - len(recorded)), dtype=recorded.dtype)
    whole = pl.concat([recorded.alias("x"), nothing.alias("x")] * copies)
    return whole.cast(drawn.dtype).zip_with(pl.Series(np.tile(given, copies)), drawn.alias("x"))


def checked_entity(plan: Plan, entity: Any) -> list[Any]:
    """Entities whose units drawn series take in turn.

    Raises:
        ConfigError: there is no such entity, or none can be named.
    """
    if plan.grid.entity is None:
        if entity is not None:
            raise ConfigError(f"entity names a machine of a table with an entity column; got {entity!r}. Leave it out.")
        return [None]
    known = sorted(plan.units)
    if entity is None:
        return list(known) or ["drawn"]
    if known and str(entity) not in known:
        raise ConfigError(f"entity is one that training had; got {entity!r}. There are {', '.join(known[:10])}.")
    return [str(entity)]
