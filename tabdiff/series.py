"""Sensor recordings on a regular grid: rows of a table put in order of time, one recording for each entity.

Real recordings have jitter, gaps, repeated and out-of-order stamps, and clocks that are put back in autumn. All of that is
dealt with here, once: above this module a recording is a table whose row k is the k-th place of a regular grid, with nulls
where nothing was recorded. The grid is absolute (a stamp's place does not depend on the other rows), so a series that is
scored batch by batch falls on the same places as the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from tabdiff.errors import ConfigError, Problem, SchemaError, warn

_REGULAR = 0.5  # share of steps that must be of the usual length for a recording to have an interval
_TOLERANCE = 0.25  # of an interval: steps that differ by less count as of one length
_LONGEST_GAP = 1_000_000  # places; a longer silence is more likely a wrong stamp
_SECOND = 1_000_000  # microseconds

Duplicates = Literal["refuse", "mean", "last"]


@dataclass(frozen=True)
class Grid:
    """Regular places in time.

    Attributes:
        time: the time column: datetimes, whole numbers (steps), or floats (seconds).
        entity: column that tells recordings apart, or None for one recording.
        interval: between places: microseconds for datetimes and seconds, else steps.
        phase: stamp of place 0, in [0, interval).
        unit: how stamps are written.
    """

    time: str
    entity: str | None
    interval: int
    phase: int
    unit: Literal["datetime", "seconds", "steps"]

    @classmethod
    def infer(cls, frame: pl.DataFrame, time: str, entity: str | None = None, interval: float | None = None) -> Grid:
        """Find the interval that most steps between neighbouring stamps have, over all entities.

        Args:
            frame: rows in any order.
            time, entity: names of columns.
            interval: in seconds (steps if the time column counts steps), if it is not to be inferred.

        Raises:
            SchemaError: the time column is not one, has gaps, or its steps have no usual length.
            ConfigError: the given interval is not positive.
        """
        unit = _unit_of(frame, time, entity)
        stamps = _stamps(frame[time], unit)
        if interval is not None:
            scale = 1 if unit == "steps" else _SECOND
            if not np.isfinite(interval) or round(interval * scale) < 1:
                raise ConfigError(
                    f"the interval is a positive number of {'steps' if unit == 'steps' else 'seconds'}; got {interval}."
                )
            length = round(interval * scale)
        else:
            length = _usual_step(frame, stamps, time, entity)
        return cls(time, entity, length, _phase(stamps, length), unit)

    def describe(self) -> str:
        """The interval in words, such as "every 10 s"."""
        if self.unit == "steps":
            return "every step" if self.interval == 1 else f"every {self.interval} steps"
        sizes = {"d": 86_400 * _SECOND, "h": 3600 * _SECOND, "min": 60 * _SECOND, "s": _SECOND, "ms": 1000}
        for name, size in sizes.items():
            if self.interval >= size:
                return f"every {self.interval / size:.4g} {name}"
        return f"every {self.interval} µs"

    def places(self, stamps: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The nearest place of each stamp."""
        return np.asarray((stamps - self.phase + self.interval // 2) // self.interval)

    def places_of(self, times: pl.Series) -> Int[np.ndarray, " n"]:
        """The nearest place of each time of a column that holds such times as the grid was found in."""
        return self.places(_stamps(times, self.unit))

    def stamp(self, places: Int[np.ndarray, " n"]) -> pl.Series:
        """The time column at the given places."""
        values = pl.Series(self.time, places * self.interval + self.phase, dtype=pl.Int64)
        if self.unit == "datetime":
            return values.cast(pl.Datetime("us"))
        return values if self.unit == "steps" else values / _SECOND

    def recordings(self, frame: pl.DataFrame, duplicates: Duplicates = "refuse") -> Iterator[Recording]:
        """Yield the recording of each entity, in order of the entities' names.

        Rows are sorted by time. Rows of one stamp that say the same are one row; if they differ, `duplicates` decides.
        Rows whose stamps differ but share a place are averaged (numbers) or the last is taken (others).

        Raises:
            SchemaError: a stamp or entity is missing; rows of one stamp differ and are refused; a gap is longer than
                a million places. Names entity, stamp and column.
        """
        _unit_of(frame, self.time, self.entity)
        numbered = frame.with_columns(
            pl.Series("__stamp__", _stamps(frame[self.time], self.unit)), pl.int_range(pl.len()).alias("__row__")
        )
        if self.entity is None:
            yield self._recording(None, numbered, duplicates)
            return
        groups = numbered.partition_by(self.entity, maintain_order=True, as_dict=True)
        for key in sorted(groups, key=lambda key: str(key[0])):
            yield self._recording(key[0], groups[key], duplicates)

    def _recording(self, entity: Any, rows: pl.DataFrame, duplicates: Duplicates) -> Recording:
        where = "" if entity is None else f" of {self.entity} {entity!r}"
        unsorted = int((rows["__stamp__"].diff().drop_nulls() < 0).sum())
        if unsorted:
            warn(f"{self.time}: rows{where} go back in time {unsorted} times; they were sorted")
        rows = rows.sort("__stamp__", maintain_order=True)
        sensors = [name for name in rows.columns if name not in (self.time, self.entity, "__stamp__", "__row__")]
        rows = self._without_repeats(rows, sensors, where, duplicates)
        place = self.places(rows["__stamp__"].to_numpy())
        jump = np.diff(place, prepend=place[:1])
        if jump.max(initial=0) > _LONGEST_GAP:
            at = int(jump.argmax())
            found = f"nothing between {rows[self.time][at - 1]} and {rows[self.time][at]}{where}"
            raise SchemaError(
                [
                    Problem(
                        self.time,
                        f"a gap is at most {_LONGEST_GAP:,} intervals ({self.describe()})",
                        found,
                        "Correct the stamp, leave out the rows on one side of it, or give a longer interval.",
                    )
                ]
            )
        together = rows.with_columns(pl.Series("__place__", place))
        if len(np.unique(place)) < len(place):
            combined = [_one_of(name, together.schema[name], mean=True) for name in sensors]
            together = together.group_by("__place__", maintain_order=True).agg(
                *combined, pl.col("__row__").last(), pl.len().alias("__count__")
            )
            crowded = int((together["__count__"] > 1).sum())
            warn(
                f"{self.time}: {crowded} intervals{where} hold several rows; numbers were averaged ({self.describe()})"
            )
        first, last = int(place[0]), int(place[-1])
        joined = pl.DataFrame({"__place__": np.arange(first, last + 1)}).join(
            together, on="__place__", how="left", maintain_order="left"
        )
        row_of = dict(zip(rows["__row__"].to_list(), place.tolist(), strict=True))
        return Recording(
            entity=entity,
            first=first,
            frame=joined.select(sensors),
            recorded=joined["__row__"].is_not_null().to_numpy(),
            rows=np.fromiter(row_of.keys(), np.int64, len(row_of)),
            places=np.fromiter(row_of.values(), np.int64, len(row_of)) - first,
        )

    def _without_repeats(
        self, rows: pl.DataFrame, sensors: list[str], where: str, duplicates: Duplicates
    ) -> pl.DataFrame:
        """One row for each stamp."""
        if not rows["__stamp__"].is_duplicated().any():
            return rows
        distinct = rows.unique(["__stamp__", *sensors], keep="first", maintain_order=True)
        clash = distinct["__stamp__"].is_duplicated()
        if dropped := rows.height - distinct.height:
            warn(f"{self.time}: {dropped} repeated rows{where} were taken once")
        if not clash.any():
            return distinct
        if duplicates == "refuse":
            pair = distinct.filter(clash).head(2)
            column = next(name for name in sensors if not pair[name][0:1].equals(pair[name][1:2], null_equal=True))
            values = " and ".join(repr(value) for value in pair[column].to_list())
            raise SchemaError(
                [
                    Problem(
                        column,
                        "a sensor has one value at a time",
                        f"{values} at {pair[self.time][0]}{where}, and {int(clash.sum())} such rows in all",
                        'Say how to settle it: duplicates = "mean" or "last". If a clock was put back, give time_zone; '
                        "if several machines are in the table, give the entity column.",
                    )
                ]
            )
        chosen = [_one_of(name, distinct.schema[name], mean=duplicates == "mean") for name in sensors]
        return distinct.group_by("__stamp__", maintain_order=True).agg(pl.exclude(sensors).last(), *chosen)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `Grid(**values)` reads them."""
        return asdict(self)


def _one_of(name: str, dtype: pl.DataType, *, mean: bool) -> pl.Expr:
    """One reading of several: their mean, rounded where they are whole, or the last that there is."""
    if not (mean and dtype.is_numeric()):
        return pl.col(name).drop_nulls().last()
    return pl.col(name).mean() if dtype.is_float() else pl.col(name).mean().round(0).cast(dtype)


@dataclass(frozen=True)
class Recording:
    """One entity's sensors on the grid, K places.

    Attributes:
        entity: value of the entity column, or None.
        first: place of the first row on the grid.
        frame: (K, sensors) with nulls where nothing was recorded.
        recorded: (K,) something was recorded there.
        rows: (N,) numbers of the rows of the table that were used, counted from 0.
        places: (N,) row of `frame` that each of them went to.
    """

    entity: Any
    first: int
    frame: pl.DataFrame
    recorded: Bool[np.ndarray, " k"]
    rows: Int[np.ndarray, " n"]
    places: Int[np.ndarray, " n"]


def wide(frame: pl.DataFrame, time: str, sensor: str, value: str, entity: str | None = None) -> pl.DataFrame:
    """Turn readings, one a row, into one column for each sensor.

    Raises:
        SchemaError: a sensor has several values at one time.
    """
    keys = [time] if entity is None else [time, entity]
    clash = frame.group_by(*keys, sensor).len().filter(pl.col("len") > 1)
    if clash.height:
        first = clash.row(0, named=True)
        where = "" if entity is None else f" of {entity} {first[entity]!r}"
        raise SchemaError(
            [
                Problem(
                    value,
                    "a sensor has one value at a time",
                    f"{first['len']} values of {first[sensor]!r} at {first[time]}{where}",
                    "Leave all but one out, or average them first.",
                )
            ]
        )
    return frame.pivot(on=sensor, index=keys, values=value, sort_columns=True).sort(keys)


def localise(stamps: pl.Series, zone: str, entity: pl.Series | None = None) -> pl.Series:
    """Naive local times as UTC, in the order they were recorded.

    When a clock is put back an hour happens twice: times are of its first run until they stop rising, then of its second.

    Raises:
        ConfigError: there is no such time zone.
        SchemaError: a time was skipped when the clock was put forward.
    """
    try:
        early = stamps.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
        late = stamps.dt.replace_time_zone(zone, ambiguous="latest", non_existent="null")
    except pl.exceptions.ComputeError as error:
        raise ConfigError(f"time_zone is a name of the tz database, such as Europe/Berlin; got {zone!r}.") from error
    skipped = early.is_null() & stamps.is_not_null()
    if skipped.any():
        found = f"{stamps.filter(skipped)[0]} in {zone}, and {int(skipped.sum())} such rows in all"
        cure = "The clocks were put forward then. Check the time zone, or record UTC."
        raise SchemaError([Problem(stamps.name, "a local time must exist", found, cure)])
    table = pl.DataFrame({"stamp": stamps, "twice": (early != late).fill_null(False), "early": early, "late": late})
    table = table.with_columns(pl.lit(0).alias("who") if entity is None else entity.cast(pl.String).alias("who"))
    day = pl.col("stamp").dt.date()
    back = (pl.col("stamp") <= pl.col("stamp").shift(1)).fill_null(False)
    second = back.cum_sum().over("who", day, "twice") > 0
    chosen = table.select(pl.when(pl.col("twice") & second).then("late").otherwise("early")).to_series()
    return chosen.dt.convert_time_zone("UTC").dt.replace_time_zone(None).alias(stamps.name)


def period(values: Float[np.ndarray, "n c"], longest: int) -> int | None:
    """The length of the cycle that most sensors share, in places, or None if there is none.

    Of each sensor that varies: the first clear peak of its autocorrelation (Wiener-Khinchin, by FFT) after the trend is
    taken away; then the median over the sensors that have one. A sensor that is constant says nothing.
    """
    n = len(values)
    longest = min(longest, n // 3)
    if longest < 4:
        return None
    x = np.nan_to_num(values - np.nanmean(values, axis=0))
    line = np.linspace(-1, 1, n)[:, None]
    x = x - line * (line * x).sum(0) / (line**2).sum()
    power = np.abs(np.fft.rfft(x, 2 * n, axis=0)) ** 2
    correlation = np.fft.irfft(power, axis=0)[: longest + 2]
    alive = correlation[0] > 1e-12 * n
    found = []
    for column in np.flatnonzero(alive):
        r = correlation[:, column] / correlation[0, column]
        fallen = np.flatnonzero(r < 0.5 * r.max(initial=1.0))  # past the first fall, so that smoothness is no cycle
        if not len(fallen):
            continue
        inner = np.arange(max(2, fallen[0]), longest)
        peaks = inner[(r[inner] > r[inner - 1]) & (r[inner] >= r[inner + 1]) & (r[inner] > 0.3)]
        if len(peaks):
            found.append(int(peaks[np.argmax(r[peaks])]) if r[peaks].max() > 2 * r[peaks[0]] else int(peaks[0]))
    return int(np.median(found)) if 2 * len(found) >= max(1, int(alive.sum())) else None


# ------------------------------------------------------------------------------------------------------ stamps


def _unit_of(frame: pl.DataFrame, time: str, entity: str | None) -> Literal["datetime", "seconds", "steps"]:
    """How the stamps are written; refuses what cannot be a time axis."""
    problems = []
    for name in (time, *([entity] if entity else [])):
        if name not in frame.columns:
            cure = f"The columns are {frame.columns}."
            problems.append(Problem(name, "a series needs this column", "no such column", cure))
        elif frame[name].null_count():
            row = int(frame[name].is_null().arg_true()[0])
            cure = "Leave these rows out."
            problems.append(
                Problem(
                    name, "every row needs one", f"{frame[name].null_count()} missing, first in row {row + 1}", cure
                )
            )
    if problems:
        raise SchemaError(problems)
    dtype = frame.schema[time]
    if isinstance(dtype, pl.Datetime) or dtype == pl.Date:
        return "datetime"
    if dtype.is_integer():
        return "steps"
    if dtype.is_float() and frame[time].is_finite().all():
        return "seconds"
    cure = "Give a column of dates and times, of whole numbers, or of seconds."
    raise SchemaError([Problem(time, "a time column holds times or finite numbers", f"{dtype}", cure)])


def _stamps(values: pl.Series, unit: str) -> Int[np.ndarray, " n"]:
    if unit == "datetime":
        dtype = values.dtype
        if isinstance(dtype, pl.Datetime) and dtype.time_zone:
            values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return np.asarray(values.cast(pl.Datetime("us")).to_physical().to_numpy())
    if unit == "seconds":
        return np.asarray(np.rint(values.to_numpy() * _SECOND), np.int64)
    return np.asarray(values.cast(pl.Int64).to_numpy())


def _usual_step(frame: pl.DataFrame, stamps: Int[np.ndarray, " n"], time: str, entity: str | None) -> int:
    who = pl.lit(0).alias("who") if entity is None else frame[entity].alias("who")
    steps = (
        pl.DataFrame({"stamp": stamps})
        .with_columns(who)
        .unique()
        .sort("who", "stamp")
        .select(pl.col("stamp").diff().over("who"))
        .drop_nulls()
        .to_series()
        .to_numpy()
    )
    if not len(steps):
        raise SchemaError(
            [Problem(time, "a recording needs at least two times", "one", "Add rows, or check the entity column.")]
        )
    middle = int(np.median(steps))
    values, counts = np.unique(steps, return_counts=True)
    for candidate in (middle, int(values[counts.argmax()])):
        if np.mean(np.abs(steps - candidate) <= _TOLERANCE * candidate) >= _REGULAR:
            # Their mean is a telescoping sum: jitter of single stamps falls out of it.
            near = steps[np.abs(steps - candidate) <= _TOLERANCE * candidate]
            return _round_number(float(near.mean()), 3 * float(near.std()) / len(near) ** 0.5)
    raise SchemaError(
        [
            Problem(
                time,
                f"at least {_REGULAR:.0%} of the steps between rows must be about equally long",
                f"steps from {steps.min():,} to {steps.max():,}, half of them under {middle:,} (microseconds, or steps)",
                "Give the interval to put the rows on, for instance the time that the slowest sensor needs.",
            )
        ]
    )


def _round_number(step: float, error: float) -> int:
    """A step as people choose them, such as 60 s for 59.998 s, if that is within the error of the estimate."""
    for size in (3600 * _SECOND, 60 * _SECOND, _SECOND, 100_000, 10_000, 1000, 100, 10):
        whole = round(step / size) * size
        if whole and abs(whole - step) <= error:
            return whole
    return max(1, round(step))


def _phase(stamps: Int[np.ndarray, " n"], interval: int) -> int:
    """The middle of where stamps fall between places, on a circle."""
    angle = 2 * np.pi * (stamps % interval) / interval
    middle = float(np.angle(np.exp(1j * angle).mean())) % (2 * np.pi)
    return round(middle / (2 * np.pi) * interval) % interval
