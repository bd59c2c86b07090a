"""From the rows of a series to tracks: one encoded recording for each entity, on a regular grid, without gaps.

A cell that was not recorded is carried forward from the last reading of its sensor: that is what the machine was known to do,
and it needs no future, so a track that grows row by row is the same as the whole. Which cells were really seen is kept
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int

from tabdiff.codec import Codec
from tabdiff.columns import Kind
from tabdiff.config import SeriesConfig
from tabdiff.errors import Problem, SchemaError
from tabdiff.rhythm import Rhythm
from tabdiff.schema import Schema, to_polars
from tabdiff.series import Grid, Recording, localise, wide


@dataclass(frozen=True)
class Track:
    """One entity's recording as arrays, K places.

    Attributes:
        entity: value of the entity column, or None.
        first: place of row 0 on the grid.
        x: (K, W) encoded, gaps carried forward.
        present: (K, U) False where a category was never seen in training.
        observed: (K, C) the sensor was read at this place.
        rows: (N,) rows of the user's table, counted from 0, that were used.
        places: (N,) row of `x` of each of them.
    """

    entity: Any
    first: int
    x: Float32[np.ndarray, "k w"]
    present: Bool[np.ndarray, "k u"]
    observed: Bool[np.ndarray, "k c"]
    rows: Int[np.ndarray, " n"]
    places: Int[np.ndarray, " n"]

    @property
    def recorded(self) -> Bool[np.ndarray, " k"]:
        """Places at which any sensor was read."""
        return np.asarray(self.observed.any(axis=1))


@dataclass(frozen=True)
class Plan:
    """How rows of a series are laid on tracks; fixed when the model is fitted.

    Attributes:
        grid: places in time.
        config: names of columns and rules.
        start: for each modelled column the value before its first reading.
        units: for each entity, and each number column, what is subtracted and divided by (`normalise`, `accept`); entities
            that are not listed are taken as they are.
        rhythm: what the calendar says of numbers, in the units of their entity.
    """

    grid: Grid
    config: SeriesConfig
    start: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    rhythm: Rhythm = field(default_factory=Rhythm)

    def recordings(self, frame: Any, schema: Schema) -> Iterator[Recording]:
        """Conformed rows on the grid, entity by entity, gaps open.

        Raises:
            SchemaError: the table is not what was fitted, or its times cannot be used.
        """
        conformed = schema.conform(prepared(frame, self.config))
        keep = [self.grid.time, *([self.grid.entity] if self.grid.entity else [])]
        names = [column.name for column in schema.modelled]
        if self.grid.entity is not None:
            conformed = conformed.with_columns(pl.col(self.grid.entity).cast(pl.String))
        yield from self.grid.recordings(conformed.select(*keep, *names), self.config.duplicates)

    def tracks(self, frame: Any, schema: Schema, codec: Codec) -> Iterator[Track]:
        """Encoded recordings.

        Raises:
            SchemaError: as for `recordings`.
        """
        for recording in self.recordings(frame, schema):
            yield self.encode(recording, codec)

    def encode(self, recording: Recording, codec: Codec, before: Mapping[str, Any] | None = None) -> Track:
        """One recording as a track; `before` is what its sensors read last, calendar taken out, where it goes on from an earlier part.

        Raises:
            SchemaError: each entity has units of its own, and this one was not in training.
        """
        if self.config.normalise == "entity" and self.units and str(recording.entity) not in self.units:
            known = ", ".join(sorted(self.units)[:5])
            raise SchemaError(
                [
                    Problem(
                        str(self.grid.entity),
                        "with series.normalise=entity every entity was in training, as its units are its own",
                        f"{recording.entity!r}; known are {known}",
                        "Fit again with its rows, or with series.normalise=together.",
                    )
                ]
            )
        frame = recording.frame.select(codec.columns)
        observed = np.stack([frame[name].is_not_null().to_numpy() for name in codec.columns], axis=1)
        even = self.timeless(frame, recording.entity, recording.first + np.arange(frame.height))
        encoded = codec.encode(self.normalised(self.filled(even, before or self.start), recording.entity))
        return Track(
            recording.entity, recording.first, encoded.x, encoded.present, observed, recording.rows, recording.places
        )

    def filled(self, frame: pl.DataFrame, before: Mapping[str, Any]) -> pl.DataFrame:
        """Every gap carried forward, from `before` if it opens the recording."""
        return frame.with_columns(
            pl.col(name).forward_fill().fill_null(pl.lit(before.get(name), dtype=frame.schema[name]))
            for name in frame.columns
        )

    def timeless(self, frame: pl.DataFrame, entity: Any, places: Int[np.ndarray, " k"]) -> pl.DataFrame:
        """Numbers with the calendar taken out: as if it were the same time always. In the user's units."""
        changed = []
        for name, (mean, spread) in self.rhythm.at(places).items():
            if name in frame.columns:
                level, scale = self._level(name, entity)
                rest = (pl.col(name).cast(pl.Float64) - level - pl.Series(mean * scale)) / pl.Series(spread)
                changed.append((rest + level).alias(name))
        return frame.with_columns(changed)

    def timed(self, frame: pl.DataFrame, entity: Any, places: Int[np.ndarray, " k"]) -> pl.DataFrame:
        """Undo `timeless`."""
        changed = []
        for name, (mean, spread) in self.rhythm.at(places).items():
            if name in frame.columns:
                level, scale = self._level(name, entity)
                rest = (pl.col(name).cast(pl.Float64) - level) * pl.Series(spread)
                changed.append((rest + level + pl.Series(mean * scale)).alias(name))
        return frame.with_columns(changed)

    def _level(self, name: str, entity: Any) -> tuple[float, float]:
        """What the rhythm of a number is about, and the unit that it has, for an entity."""
        shift, scale = self.units.get(str(entity), {}).get(name, (0.0, 1.0))
        return shift + scale * self.rhythm.profiles[name].level, scale

    def normalised(self, frame: pl.DataFrame, entity: Any) -> pl.DataFrame:
        """Numbers in the entity's own units."""
        units = self.units.get(str(entity), {})
        return frame.with_columns(
            ((pl.col(name).cast(pl.Float64) - shift) / scale).alias(name) for name, (shift, scale) in units.items()
        )

    def restored(self, frame: pl.DataFrame, entity: Any) -> pl.DataFrame:
        """Undo `normalised`."""
        units = self.units.get(str(entity), {})
        return frame.with_columns(
            (pl.col(name) * scale + shift).alias(name)
            for name, (shift, scale) in units.items()
            if name in frame.columns
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads."""
        units = {entity: {name: list(pair) for name, pair in found.items()} for entity, found in self.units.items()}
        return {"grid": self.grid.to_json(), "start": dict(self.start), "units": units, "rhythm": self.rhythm.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], config: SeriesConfig) -> Plan:
        """Rebuild from `to_json`."""
        units = {
            entity: {name: (float(pair[0]), float(pair[1])) for name, pair in found.items()}
            for entity, found in values["units"].items()
        }
        rhythm = Rhythm.from_json(values.get("rhythm"))
        return cls(Grid(**values["grid"]), config, values["start"], units, rhythm)


def prepared(frame: Any, config: SeriesConfig) -> pl.DataFrame:
    """The user's rows with one column for each sensor and times in UTC.

    Raises:
        SchemaError: a named column is not there, or its times cannot be read.
        ConfigError: there is no such time zone.
    """
    table = to_polars(frame)
    named = {"time": config.time, "entity": config.entity, "sensor": config.sensor, "value": config.value}
    missing = [(option, name) for option, name in named.items() if name is not None and name not in table.columns]
    if missing:
        raise SchemaError(
            [
                Problem(name, f"series.{option} names a column", "no such column", f"The columns are {table.columns}.")
                for option, name in missing
            ]
        )
    assert config.time is not None  # whoever calls this has a series
    if (
        config.time_zone is not None
        and isinstance(dtype := table.schema[config.time], pl.Datetime)
        and dtype.time_zone is None
    ):
        entity = table[config.entity] if config.entity else None
        table = table.with_columns(localise(table[config.time], config.time_zone, entity))
    if config.sensor is not None and config.value is not None:
        keys = [config.time, *([config.entity] if config.entity else [])]
        table = wide(
            table.select(*keys, config.sensor, config.value), config.time, config.sensor, config.value, config.entity
        )
    return table


def starts_of(frame: pl.DataFrame, schema: Schema) -> dict[str, Any]:
    """What a sensor is taken to read before its first reading: the median, or the most frequent category."""
    found: dict[str, Any] = {}
    for column in schema.modelled:
        values = frame[column.name].drop_nulls()
        if column.kind in (Kind.CATEGORICAL, Kind.BOOLEAN):
            found[column.name] = values.mode().sort()[0]
        else:
            middle = values.to_physical().sort()[len(values) // 2]
            found[column.name] = middle
    return found


def units_of(recordings: list[Recording], schema: Schema) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation of every number of every entity; a sensor that stands still keeps the unit 1."""
    units: dict[str, dict[str, tuple[float, float]]] = {}
    for recording in recordings:
        mine = units.setdefault(str(recording.entity), {})
        for column in schema.modelled:
            if column.kind not in (Kind.CONTINUOUS, Kind.INTEGER):
                continue
            values = recording.frame[column.name].drop_nulls().cast(pl.Float64).to_numpy()
            if len(values):
                mean, scale = float(values.mean()), float(values.std())
                mine[column.name] = (mean, scale if scale > 1e-6 * max(1.0, abs(mean)) else 1.0)
    return units
