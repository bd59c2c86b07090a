"""What a model of a series draws and fills: the part of `SeriesModel` that makes data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from tabdiff.bundle import Bundle
from tabdiff.errors import ConfigError
from tabdiff.runtime import Runtime
from tabdiff.schema import Schema, to_polars
from tabdiff.series_generation import SeriesGenerator, checked_entity
from tabdiff.series_imputation import SensorFill, fill_series
from tabdiff.tracks import Plan


class SeriesDrawing:
    """Draw, complete, translate and fill series."""

    bundle: Bundle
    runtime: Runtime
    plan: Plan

    @cached_property
    def _generator(self) -> SeriesGenerator:
        return SeriesGenerator(self.bundle, self.runtime, self.plan)

    @property
    def drawn_window(self) -> int:
        """Places in a window of the denoiser: what it knows about time reaches so far."""
        return self._generator.sampler.length

    def sample(
        self,
        *,
        length: int | None = None,
        series: int = 1,
        windows: int | None = None,
        given: Any = None,
        entity: Any = None,
        start: Any = None,
        seed: int = 0,
        steps: int = 20,
    ) -> pl.DataFrame:
        """Draw series: long ones, short windows, or what goes on from and around given rows.

        Args:
            length: places of a series; any number. With `given`, places after its last row (a forecast); 0, which is then the
                default, only completes it.
            series: how many. They are numbered in a column `series` if it is not 1.
            windows: instead of `length`: so many series, each as long as a window of the denoiser.
            given: rows that are known, in the form of the training table: a beginning, or other sensors (a null cell and an absent
                column are open). They come back with all open cells drawn.
            entity: whose units the series have; if not given, entities take turns. Not with `given`, whose rows say so.
            start: the first time; if not given, the place after the training table, and for each of `windows` a place in training
                time where the calendar matters. Not with `given`.
            seed: the same seed gives the same series; a series does not depend on how many are drawn.
            steps: noise levels visited, which is how often the denoiser is called.

        Raises:
            ConfigError: not exactly one of `length`, `windows` and `given` says how much, or a number is not positive.
            SchemaError: given rows cannot be used: see `score`; or a given category was never seen in training.
        """
        self._check_sizes(length, series, windows, steps, given is not None)
        generator = self._generator
        if given is not None:
            if entity is not None or start is not None or windows is not None:
                raise ConfigError("given rows say entity and time; got entity, start or windows, too. Leave them out.")
            canvases = [(canvas, range(series)) for canvas in generator.canvases(given, length or 0)]
        else:
            count = windows if windows is not None else series
            places = length if length is not None else self.drawn_window
            first, entities = self._first(start), checked_entity(self.plan, entity)
            among = 1
            if windows is not None and start is None and self.plan.rhythm.terms:
                # Windows of all hours and days that training had, as training windows are.
                among = max(1, int(self.bundle.model["series"]["places"]) - places)
                first = int(self.bundle.model["series"]["first"])
            canvases = [
                (generator.blank(places, name, first, among), range(turn, count, len(entities)))
                for turn, name in enumerate(entities[:count])
            ]
        numbered = windows is not None or series > 1
        tables = []
        for canvas, numbers in canvases:
            drawn = generator.draw(canvas, numbers, steps=steps, seed=seed)
            labels = numbers if numbered else None
            tables += list(generator.table(canvas, drawn, labels, seed))
        whole = pl.concat(tables)
        return whole.sort(generator.number_column, maintain_order=True) if numbered else whole

    def translate(
        self,
        frame: Any,
        changed: Mapping[str, Any],
        *,
        strength: float = 0.6,
        keep: Sequence[str] = (),
        seed: int = 0,
        steps: int = 20,
    ) -> pl.DataFrame:
        """What a recording would look like with some sensors changed, its shape kept.

        The recording is noised to a middle level and denoised under the changed sensors (SDEdit, Meng et al. 2022).

        Args:
            changed: for each changed sensor one value, or one for each row of `frame`.
            strength: noise level in (0, 1]: near 0 the other sensors hardly move, at 1 nothing of them is left.
            keep: sensors that stay as they are.

        Raises:
            SchemaError: as for `score`, or a changed category was never seen in training.
            ConfigError: strength is not in (0, 1], or a sensor is not there, or both changed and kept.
        """
        if not 0 < strength <= 1:
            raise ConfigError(f"strength is above 0 and at most 1; got {strength}. Start with 0.6.")
        if both := sorted(set(changed) & set(keep)):
            raise ConfigError(f"a sensor is changed or kept; got {both[0]!r} in both. Leave one of them out.")
        generator = self._generator
        columns = generator.codec.columns
        for name in [*changed, *keep]:
            if name not in columns:
                raise ConfigError(f"there is no sensor {name!r}. Sensors: {', '.join(columns)}.")
        table = to_polars(frame)
        if self.plan.config.sensor is not None:
            raise ConfigError(
                "translate takes sensors in columns; this model reads one reading a row. Pivot the rows first."
            )
        for name, value in changed.items():
            values = pl.Series(name, value) if isinstance(value, (pl.Series, list, np.ndarray)) else None
            if values is not None and len(values) != table.height:
                raise ConfigError(
                    f"{name!r} needs one value, or one for each of {table.height} rows; got {len(values)}."
                )
            table = table.with_columns(pl.lit(value).alias(name) if values is None else values)
        opened = [name for name in columns if name not in changed and name not in keep]
        tables = []
        for canvas in generator.canvases(table, opened=opened):
            drawn = generator.draw(canvas, range(1), steps=steps, seed=seed, strength=strength)
            tables += list(generator.table(canvas, drawn))
        return pl.concat(tables)

    def impute(
        self,
        frame: Any,
        *,
        draws: int = 15,
        interval: float | None = None,
        every_place: bool = False,
        seed: int = 0,
        steps: int = 20,
        on_report: Callable[[dict[str, SensorFill]], None] | None = None,
    ) -> pl.DataFrame:
        """Fill the gaps of recordings.

        Each sensor is filled by what fills gaps best that are cut into the recorded part of `frame` to see: the median (most
        frequent category) of the model's draws, linear interpolation, neighbouring cycles, or similar places. All draws one by one
        are what `sample(given=frame, series=draws)` gives.

        Args:
            draws: how many the median and the interval are made of.
            interval: a share such as 0.9 adds columns `NAME_low` and `NAME_high` for numbers: between them lies this share of
                the hidden cells. Both are null where the cell was there.
            every_place: give back a row for each place of the grid, also those at which nothing was recorded, instead of the rows
                of `frame`.
            steps: noise levels visited.
            on_report: called once with how each sensor was filled, and how well each method did.

        Raises:
            SchemaError: as for `score`.
            ConfigError: fewer than one draw is asked for, too few for the interval, or a column has the name of an end.
        """
        self._check_sizes(None, 1, 1, steps, False)
        filled, report = fill_series(
            self._generator, frame, draws=draws, interval=interval, steps=steps, seed=seed, every_place=every_place
        )
        if on_report is not None:
            on_report(report)
        return filled

    def _check_sizes(self, length: int | None, series: int, windows: int | None, steps: int, given: bool) -> None:
        if not given and (length is None) == (windows is None):
            raise ConfigError(
                f"either length or windows says how much to draw; got {length=} and {windows=}. Example: length=1000"
            )
        least = {
            "length": (length, 0 if given else 1),
            "series": (series, 1),
            "windows": (windows, 1),
            "steps": (steps, 1),
        }
        for name, (value, low) in least.items():
            if value is not None and value < low:
                raise ConfigError(f"{name} is at least {low}; got {value}.")

    def _first(self, start: Any) -> int:
        """The place of a time; by default the one after training."""
        grid = self.plan.grid
        if start is None:
            return int(self.bundle.model["series"].get("next", 0))
        conformed = Schema((self.bundle.schema[grid.time],)).conform(pl.DataFrame({grid.time: [start]}))
        (recording,) = replace(grid, entity=None).recordings(conformed)
        return recording.first
