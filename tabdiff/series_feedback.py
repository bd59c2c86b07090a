"""What people say of a series that was scored: this level is the new normal, this stretch was a false alarm."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, Self

import numpy as np
import polars as pl

from tabdiff.bundle import Bundle
from tabdiff.errors import ConfigError
from tabdiff.excuses import FalseAlarm
from tabdiff.expectation import Expectation
from tabdiff.runtime import Runtime
from tabdiff.series import Recording
from tabdiff.tracks import Plan

_LOOKED_AT = 200  # places that tell a level


class SeriesFeedback:
    """The part of a series' model that takes in what people say. Nothing is fitted anew."""

    plan: Plan
    window: int
    expectation: Expectation
    false_alarms: tuple[FalseAlarm, ...]

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle, self.runtime = bundle, runtime

    def accept(self, frame: Any, sensors: Collection[str] | None = None) -> Self:
        """The same model for which the levels in these rows are normal: a shift that was looked at and is there to stay.

        Each number of each entity that lies beyond its band half of the time, around what the other sensors lead to expect, is moved by as much.
        This one is not changed; `save` the result.

        Args:
            frame: rows as for `score`, since the shift.
            sensors: which may have moved; any if not given. The others tell what is expected.

        Raises:
            SchemaError: as for `score`.
        """
        units = {entity: dict(found) for entity, found in self.plan.units.items()}
        for recording in self.plan.recordings(frame, self.bundle.schema):
            mine = units.setdefault(str(recording.entity), {})
            for name, moved in self._moved(recording, sensors).items():
                shift, scale = mine.get(name, (0.0, 1.0))
                mine[name] = (shift + moved, scale)
        described = self.bundle.model["series"]
        plan = replace(self.plan, units=units).to_json()
        model = {**self.bundle.model, "series": {**described, "plan": plan}}
        return type(self)(replace(self.bundle, model=model), self.runtime)

    def _moved(self, recording: Recording, sensors: Collection[str] | None) -> dict[str, float]:
        """By how much numbers of a recording lie off what the others lead to expect, the farthest first: it is not believed when the rest are judged."""
        columns, band = self.bundle.codec.columns, self.bundle.model["series"]["band"]
        even = self._even(recording)
        x = self.plan.encode(recording, self.bundle.codec).x
        raw = self.expectation.raw(x)
        places = np.arange(0, len(raw), max(1, len(raw) // _LOOKED_AT))
        candidates = [name for name in self.expectation.columns() if sensors is None or name in sensors]
        if len(raw) < self.expectation.steps:
            return {}

        def off(name: str, gone: Collection[str]) -> tuple[float, float]:
            """Half of the readings lie farther off than this; and how many bands that is."""
            out = np.isin(columns, [*gone, name])
            expected, ratio = self.expectation.leaving_out(
                raw, places, lambda _, around: np.tile(out, (around.stop - around.start, 1))
            )
            values = pl.DataFrame({name: self.expectation.numbers(expected)[name]})
            values = self.plan.timed(
                self.plan.restored(values, recording.entity), recording.entity, recording.first + places
            )
            middle: Any = (even[name].cast(pl.Float64).gather(places) - values[name]).median()
            _, scale = self.plan.units.get(str(recording.entity), {}).get(name, (0.0, 1.0))
            uncertain = scale * max(map(abs, band[name])) * float(np.median(self.expectation.of_numbers(ratio)[name]))
            return (0.0, 0.0) if middle is None else (float(middle), abs(float(middle)) / uncertain)

        gone: list[str] = []
        while candidates:
            bands = {name: off(name, gone)[1] for name in candidates}
            farthest = max(bands, key=bands.__getitem__)
            if bands[farthest] <= 1:
                break
            gone.append(farthest)
            candidates.remove(farthest)
        return {name: off(name, gone)[0] for name in gone}

    def false_alarm(self, frame: Any, start: Any, end: Any) -> FalseAlarm:
        """A stretch that turned out to be a false alarm, for `with_false_alarms`.

        Args:
            frame: rows of its entity: its own, and those of a window before and after, as far as there are such.
            start, end: its first and last time, as the table of events has them.

        Raises:
            SchemaError: as for `score`.
            ConfigError: the rows are of several entities, or none lies between the times.
        """
        tracks = list(self.plan.tracks(frame, self.bundle.schema, self.bundle.codec))
        if len(tracks) != 1:
            raise ConfigError(
                f"a false alarm is of one entity; the rows have {len(tracks)}. Give those of the entity of the event."
            )
        track, grid = tracks[0], self.plan.grid
        times = pl.Series(grid.time, [start, end], dtype=grid.stamp(np.array([0])).dtype)
        first, last = (grid.places_of(times) - track.first).tolist()
        if not 0 <= first <= last < len(track.x):
            raise ConfigError(f"the rows do not reach from {start} to {end}. Give all of the event.")
        low, high = max(0, first - self.window + 1), min(len(track.x), last + self.window)
        entity = None if track.entity is None else str(track.entity)
        raw = self.bundle.codec.layout.view("raw")
        return FalseAlarm(entity, track.x[low:high, raw], first - low, last - low)

    def with_false_alarms(self, alarms: Iterable[FalseAlarm]) -> Self:
        """The same model, told of false alarms: what they left of their windows is taken out where it comes again.

        `tabdiff.excuses` has the rule; it holds for the entity of each alone. This model is not changed; `save` the result.
        """
        stored = [alarm.to_json() for alarm in (*self.false_alarms, *alarms)]
        calibration = {**self.bundle.calibration, "false_alarms": stored}
        return type(self)(replace(self.bundle, calibration=calibration), self.runtime)

    def _even(self, recording: Recording) -> pl.DataFrame:
        """The sensors with the calendar taken out."""
        places = recording.first + np.arange(recording.frame.height)
        return self.plan.timeless(recording.frame.select(self.bundle.codec.columns), recording.entity, places)
