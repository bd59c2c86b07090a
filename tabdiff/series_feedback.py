"""What people say of a series that was scored: this level is the new normal, this stretch was a false alarm."""

from __future__ import annotations

from collections.abc import Iterable
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


class SeriesFeedback:
    """The part of a series' model that takes in what people say. Nothing is fitted anew."""

    plan: Plan
    window: int
    expectation: Expectation
    false_alarms: tuple[FalseAlarm, ...]

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle, self.runtime = bundle, runtime

    def accept(self, frame: Any) -> Self:
        """The same model for which the levels in these rows are normal: a shift that was looked at and is there to stay.

        Each number of each entity whose median has left its band is moved by as much. This one is not changed; `save` the
        result.

        Raises:
            SchemaError: as for `score`.
        """
        units = {entity: dict(found) for entity, found in self.plan.units.items()}
        band = self.bundle.model["series"]["band"]
        for recording in self.plan.recordings(frame, self.bundle.schema):
            mine = units.setdefault(str(recording.entity), {})
            even = self._even(recording)
            for name in self.expectation.columns():
                values = even[name].drop_nulls().cast(pl.Float64)
                if len(values):
                    shift, scale = mine.get(name, (0.0, 1.0))
                    middle: Any = values.median()
                    own = self.bundle.config.series.normalise == "entity" and str(recording.entity) in self.plan.units
                    usual = shift if own else float(self.plan.start[name]) + shift
                    moved = float(middle) - usual
                    if abs(moved) > scale * max(map(abs, band[name])):
                        mine[name] = (shift + moved, scale)
        described = self.bundle.model["series"]
        plan = replace(self.plan, units=units).to_json()
        model = {**self.bundle.model, "series": {**described, "plan": plan}}
        return type(self)(replace(self.bundle, model=model), self.runtime)

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
