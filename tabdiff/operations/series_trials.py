"""Versions of a model of a series: which time they are fitted on and which judges them, and the figures that two of them share.

What judges is the last stretch of each recording, not rows drawn by a hash: neighbouring places are alike, so a model that saw both
neighbours of a place knows it, and a window needs time without holes. It is the newest time, too, which is what a version is for. A
later version is fitted on time that judged an earlier one, so it is compared with that one only on time that is new to both.

- `alarms`: share of the stretches of one window whose peak is above the model's own threshold; `alarms_meant` is what that allows.
- `expectation_error`: distance of each number from what its neighbours in time led to expect, in interquartile ranges, at most 1.
- `planted`: share of faults, planted into the judging time, that score above everything in the same time without them; `named`: the
  broken sensor is the first of those found.
- `agreement`: share of judged events on which the version says what people said (`judged_events`), if there are at least five.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tabdiff.config import SeriesConfig
from tabdiff.errors import TabdiffWarning
from tabdiff.schema import Schema
from tabdiff.series import Recording

if TYPE_CHECKING:
    from tabdiff.series_model import SeriesModel
    from tabdiff.series_results import SeriesScores

_MOST_JUDGING = 20_000  # rows
_PLANTS = 4  # faults of each kind
_FEWEST_STRETCHES = 2
_SEED = 20_240_501  # which faults: the same for every model
_ONLY = ""  # name of the entity where there is one recording


def split_time(frame: pl.DataFrame, config: SeriesConfig, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows to fit and rows to judge: of each recording the last `share` of its times, at most 20,000 rows in all.

    Raises:
        SchemaError: the columns of times or entities are missing or cannot be used.
        ConfigError: there is no such time zone.
    """
    times = canonical_times(frame, config)
    share = min(share, _MOST_JUDGING / max(frame.height, 1))
    who = _who(frame, config.entity)
    table = pl.DataFrame({"who": who, "at": times})
    border = pl.col("at").sort().gather((pl.len() * (1 - share)).floor().cast(pl.Int64).clip(0, pl.len() - 1))
    judging = table.select(pl.col("at") >= border.first().over("who")).to_series()
    return frame.filter(~judging), frame.filter(judging)


def canonical_times(frame: pl.DataFrame, config: SeriesConfig, schema: Schema | None = None) -> pl.Series:
    """The time of each row, whatever it is written as: UTC without a zone, seconds or steps.

    Args:
        frame: N rows of a source.
        config: says which column, and its time zone.
        schema: of the model, if there is one already.

    Raises:
        SchemaError: the columns of times or entities are missing or cannot be read.
        ConfigError: there is no such time zone.
    """
    from tabdiff.tracks import prepared

    assert config.time is not None  # whoever calls this has a series
    keys = [config.time, *([config.entity] if config.entity else [])]
    alone = config.model_copy(update={"sensor": None, "value": None})
    table = prepared(frame.select(name for name in keys if name in frame.columns), alone)
    if schema is None:
        roles = {config.time: {"role": "time"}} | ({config.entity: {"role": "entity"}} if config.entity else {})
        number = (pl.int_range(pl.len()) * 0.37 % 1.0).alias("__number__")  # a schema models something
        schema = Schema.infer(table.with_columns(number), overrides=roles)
    column = next(column for column in schema.columns if column.name == config.time)
    found = Schema((column,)).conform(table.select(config.time))[config.time]
    if isinstance(found.dtype, pl.Datetime) and found.dtype.time_zone is not None:
        found = found.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return found


def _who(frame: pl.DataFrame, entity: str | None) -> pl.Series:
    """Whose each row is."""
    return frame[entity].cast(pl.String) if entity else pl.repeat(_ONLY, frame.height, eager=True)


def about(model: SeriesModel, fitted: pl.DataFrame) -> dict[str, Any]:
    """What others need to know of a series without loading its model: columns, interval, window, threshold, and how far it was fitted."""
    grid, config = model.plan.grid, model.plan.config
    numbers = model.expectation.columns()
    places = grid.places_of(canonical_times(fitted, config, model.schema))
    who = _who(fitted, grid.entity)
    until = pl.DataFrame({"who": who, "place": places}).group_by("who").agg(pl.col("place").max()).sort("who")
    rule = model.rule()
    threshold = rule.threshold(model.blocks)
    return {
        "time": grid.time,
        "entity": grid.entity,
        "interval": grid.describe(),
        "interval_us": None if grid.unit == "steps" else grid.interval,
        "steps": grid.interval if grid.unit == "steps" else None,
        "window": model.window,
        "numbers": list(numbers),
        "categories": [name for name in model.codec.columns if name not in numbers],
        "threshold": threshold if math.isfinite(threshold) else None,
        "highest": float(model.blocks[-1]),
        "until": dict(until.iter_rows()),
    }


def unseen(judges: pl.DataFrame, model: SeriesModel, until: Mapping[str, int]) -> pl.DataFrame:
    """The rows that lie after the time a version was fitted on.

    Raises:
        SchemaError: the version cannot read them.
    """
    places = model.plan.grid.places_of(canonical_times(judges, model.plan.config, model.schema))
    who = _who(judges, model.plan.grid.entity)
    border = np.array([until.get(name, np.iinfo(np.int64).min) for name in who.to_list()], dtype=np.int64)
    return judges.filter(pl.Series(places > border))


def measure_series(model: SeriesModel, judges: pl.DataFrame) -> dict[str, float]:
    """The figures of one version; those that there is too little time for are left out.

    Raises:
        SchemaError: the model cannot read the rows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TabdiffWarning)  # of ends without a score, and of new columns
        recordings = list(model.plan.recordings(judges, model.schema)) if judges.height else []
        recordings = [each for each in recordings if len(each.recorded) >= _FEWEST_STRETCHES * model.window]
        if not recordings:
            return {}
        version = wide(model)
        scores = version.score(pl.concat([_rows(model, each, each.frame, each.recorded) for each in recordings]))
        peaks = _stretches(scores, model)
        rule = model.rule()
        found = {
            "alarms": float(np.mean(peaks > rule.threshold(model.blocks))) if len(peaks) else 0.0,
            "alarms_meant": rule.value / (rule.rows_per_day or 1.0),
            "stretches": float(len(peaks)),
        }
        found |= _expectation_error(model, recordings, scores)
        return found | _planted(version, max(recordings, key=lambda each: len(each.recorded)))


def worse_figures(new: Mapping[str, float], old: Mapping[str, float], tolerance: float) -> list[str]:
    """Figures of a challenger that are worse than the champion's by more than the tolerance and chance."""
    worse = []
    if "alarms" in new and "alarms" in old:
        off = {name: abs(each["alarms"] - each["alarms_meant"]) for name, each in (("new", new), ("old", old))}
        meant = new["alarms_meant"]
        noise = 3 * math.sqrt(meant * (1 - meant) / max(new["stretches"], 1.0))
        if off["new"] > max(noise, off["old"]) + tolerance:
            worse.append("alarms")
    name = "expectation_error"
    if name in new and name in old and new[name] > old[name] * (1 + tolerance):
        worse.append(name)
    # Two of the planted faults or one of the judged events more or less are chance.
    chance = {"planted": 2 / new.get("plants", 1.0), "named": 2 / new.get("plants", 1.0)}
    chance["agreement"] = 1 / new.get("judged", 1.0)
    return worse + [
        name for name in chance if name in new and name in old and new[name] < old[name] - tolerance - chance[name]
    ]


# ------------------------------------------------------------------------------------------------------ figures


def wide(model: SeriesModel) -> SeriesModel:
    """The same model for rows that have one column for each sensor and times in UTC already."""
    from tabdiff.series_model import SeriesModel

    series = model.bundle.config.series.model_copy(update={"sensor": None, "value": None, "time_zone": None})
    config = model.bundle.config.model_copy(update={"series": series})
    return SeriesModel(replace(model.bundle, config=config), model.runtime)


def _rows(
    model: SeriesModel, recording: Recording, frame: pl.DataFrame, keep: np.ndarray, begin: int = 0
) -> pl.DataFrame:
    """Places from `begin` of the recording on as rows of a table, typed as those of the fit."""
    grid = model.plan.grid
    keys = {grid.time: grid.stamp(recording.first + begin + np.arange(frame.height))}
    if grid.entity is not None:
        keys[grid.entity] = pl.repeat(str(recording.entity), frame.height, eager=True)
    return model.schema.restore(frame.with_columns(**keys).filter(pl.Series(keep)))


def _stretches(scores: SeriesScores, model: SeriesModel) -> np.ndarray:
    """Peaks of stretches of one window, recording by recording."""
    entity = model.plan.grid.entity
    parts = scores.places.partition_by(entity, maintain_order=True) if entity else [scores.places]
    peaks: list[float] = []
    for part in parts:
        score = part["score"].drop_nulls().to_numpy()
        whole = len(score) // model.window
        peaks += [float(score[i * model.window : (i + 1) * model.window].max()) for i in range(whole)]
    return np.asarray(peaks)


def spread_of(numbers: pl.Series) -> float:
    """Interquartile range, or the standard deviation if that is 0 (a number that mostly rests), or 1 if both are."""
    known = numbers.drop_nulls().to_numpy()
    if not len(known):
        return 1.0
    low, high = np.quantile(known, [0.25, 0.75])
    return float(high - low) or float(np.std(known)) or 1.0


def _expectation_error(model: SeriesModel, recordings: list[Recording], scores: SeriesScores) -> dict[str, float]:
    values = pl.concat([each.frame.filter(pl.Series(each.recorded)) for each in recordings])
    costs = []
    for name in model.expectation.columns():
        truth, expected = values[name].to_physical().cast(pl.Float64), scores.expected[name]
        costs += ((truth - expected).abs() / spread_of(truth)).clip(0, 1).drop_nulls().to_list()
    return {"expectation_error": float(np.mean(costs))} if costs else {}


def _planted(model: SeriesModel, recording: Recording) -> dict[str, float]:
    """Faults planted into the longest recording; in the units of its own sensors."""
    from tabdiff.series_calibration import deviations
    from tabdiff.series_check import plant_and_look  # brings scikit-learn

    def judge(frame: pl.DataFrame, begin: int) -> tuple[Any, Any]:
        scores = model.score(_rows(model, recording, frame, np.ones(frame.height, dtype=bool), begin))
        return scores.places["score"].fill_null(np.nan).to_numpy(), scores.contributions.to_numpy()

    found = plant_and_look(
        recording,
        model.schema,
        judge,
        # Neither the control nor what could be found is a figure of a version.
        lambda frame, begin: np.zeros(frame.height),
        lambda broken, frame: True,
        deviation=deviations([recording], model.schema),
        window=model.window,
        each=_PLANTS,
        rng=np.random.default_rng(_SEED),
    )
    if not found:
        return {}
    named = [each.first for each in found if each.found]
    figures = {"planted": float(np.mean([each.found for each in found])), "plants": float(len(found))}
    return figures | ({"named": float(np.mean(named))} if named else {})
