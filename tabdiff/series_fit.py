"""Fit a model of a series: lay rows on tracks, choose the window, fit the programs, calibrate on stretches of held-out time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float32

from tabdiff.bundle import Bundle
from tabdiff.codec import Codec
from tabdiff.config import DataConfig, FitConfig, SeriesConfig
from tabdiff.errors import TABLE, ConfigError, Problem, SchemaError
from tabdiff.files import fingerprint
from tabdiff.layout import Layout
from tabdiff.nn.assemble import build_denoiser, build_window_score, describe, report_of
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.programs import Step
from tabdiff.nn.runtime import TorchRuntime, resolve_device, threads
from tabdiff.nn.train import TrainEvent, train
from tabdiff.rhythm import Clock, Rhythm, find_rhythm
from tabdiff.schema import Schema
from tabdiff.series import Grid, Recording
from tabdiff.series_calibration import MOST_WINDOWS, Fold, calibrate, fit_codec, folds_of, readings_of
from tabdiff.series_generation import levels_of
from tabdiff.series_model import SeriesModel
from tabdiff.tracks import Plan, Track, prepared, starts_of, units_of
from tabdiff.windows import runs_of, spans_of

_WINDOW = 128  # places, where there is enough history
_LEAST_WINDOW = 4
_STRETCHES = 4  # windows that training time must hold at least
_SLOTS = 2048  # of a window of the network: longer ones are cut
_TRAINING_WINDOWS = 100_000


def fit_series(
    frame: Any,
    config: FitConfig,
    *,
    overrides: Mapping[str, Mapping[str, str]] | None = None,
    checkpoint: Path | None = None,
    on_event: Callable[[TrainEvent], None] | None = None,
) -> SeriesModel:
    """Fit a model of sensor series.

    Args:
        frame: polars, pandas or Arrow table, rows in any order. If a column has the role `label`, rows that it marks are known
            anomalies; they become gaps.
        config: every option; `config.series.time` names the column of times.
        overrides, checkpoint, on_event: as for `tabdiff.fit`.

    Raises:
        SchemaError: the table cannot be modelled, its times cannot be used, or there is too little of it.
        ConfigError: two options contradict each other.
        TrainingError: the loss is not finite, or the checkpoint belongs to another fit.
    """
    with threads(config.train.threads):
        return _fit(frame, config, overrides, checkpoint, on_event)


def _fit(
    frame: Any,
    config: FitConfig,
    overrides: Mapping[str, Mapping[str, str]] | None,
    checkpoint: Path | None,
    on_event: Callable[[TrainEvent], None] | None,
) -> SeriesModel:
    series = _checked(config)
    assert series.time is not None
    table = prepared(frame, series)
    roles = {series.time: {"role": "time"}} | ({series.entity: {"role": "entity"}} if series.entity else {})
    dtype = table.schema[series.time]
    zone = (dtype.time_zone if isinstance(dtype, pl.Datetime) else None) or series.time_zone
    schema = Schema.infer(table, overrides={**(overrides or {}), **roles})
    conformed = schema.without_known_anomalies(schema.conform(table))
    if series.entity is not None:
        conformed = conformed.with_columns(pl.col(series.entity).cast(pl.String))
    grid = Grid.infer(conformed, series.time, series.entity, series.interval)
    names = [column.name for column in schema.modelled]
    keys = [series.time, *([series.entity] if series.entity else [])]
    recordings = list(grid.recordings(conformed.select(*keys, *names), series.duplicates))
    plan = Plan(
        grid,
        series,
        starts_of(conformed, schema),
        units_of(recordings, schema) if series.normalise == "entity" else {},
    )
    plan = replace(plan, rhythm=_rhythm(plan, recordings, schema, zone))
    window = choose_window(recordings, series.window)
    data = _continuous(config.data)
    codec = fit_codec(plan, recordings, schema, data)
    spans = spans_of(window, len(codec.layout.view_columns))
    tracks = [plan.encode(recording, codec) for recording in recordings]
    seed = config.train.seed

    folds = list(folds_of(recordings, window))
    calibration, expected, planted = calibrate(plan, recordings, schema, data, folds, spans, window, seed)
    length = network_length(codec, window)
    fold = Fold(tracks, folds[0])
    denoiser, last = _learn(fold, codec, plan.rhythm, length, config, checkpoint, on_event, fingerprint(conformed))
    every = Fold(tracks, [np.zeros(len(track.x), bool) for track in tracks])
    windows, _ = every.windows(window, MOST_WINDOWS, seed)
    torch.manual_seed(seed)
    score = build_window_score(denoiser.cpu().eval(), codec, windows, spans)
    runtime = TorchRuntime(score, Step(denoiser), config.train.device)
    first_place = min(recording.first for recording in recordings)
    next_place = max(recording.first + len(recording.recorded) for recording in recordings)
    described = {
        "plan": plan.to_json(),
        "window": window,
        "spans": [span.to_json() for span in spans],
        "silence": _longest_silence(recordings, codec),
        "next": next_place,
        "first": first_place,
        "places": next_place - first_place,
        "levels": levels_of(conformed, codec),
        **expected,
    }
    tensors = {f"score.{name}": value.cpu().numpy() for name, value in score.state_dict().items()}
    held_out = int(sum(mine.sum() for mine in folds[0]))
    places = sum(len(track.x) for track in tracks)
    report = report_of(last, denoiser, places - held_out, held_out, len(calibration["normal"]))
    report |= {"rows_per_day": None, "planted": planted}
    bundle = Bundle(
        config,
        schema,
        codec,
        calibration,
        {**describe(denoiser, report), "dials": [list(dial) for dial in plan.rhythm.dials], "series": described},
        tensors,
        fingerprint(conformed),
    )
    return SeriesModel(bundle, runtime)


def _rhythm(plan: Plan, recordings: Sequence[Recording], schema: Schema, zone: str | None) -> Rhythm:
    """What the calendar says of numbers, where there is one and it is asked for."""
    wanted, grid = plan.config.calendar, plan.grid
    if wanted == "none" or not wanted:
        return Rhythm()
    if grid.unit != "datetime":
        if wanted == "auto":
            return Rhythm()
        raise ConfigError(
            f"series.calendar needs dates and times; {grid.time!r} counts {grid.unit}. Leave it out, or give times."
        )
    clock = Clock(grid.interval, grid.phase, zone)
    return find_rhythm(clock, readings_of(plan, recordings, schema), None if wanted == "auto" else wanted)


def _checked(config: FitConfig) -> SeriesConfig:
    if config.series.time is None:
        raise ConfigError("a series needs series.time, the column of times. Name it, or use fit for a table.")
    unfit = {
        "process.kind=anisotropic": config.process.kind != "gaussian",
        "data.pca_components": config.data.pca_components is not None,
        "score.contaminated": config.score.contaminated,
        "data.trim": config.data.trim > 0,
    }
    wrong = [name for name, given in unfit.items() if given]
    if wrong:
        raise ConfigError(
            f"series.time makes the table a series, for which there is no {', '.join(wrong)}. Leave it out."
        )
    return config.series


def _continuous(data: DataConfig) -> DataConfig:
    """Numbers of sensors stay numbers: neighbouring times are compared, which bins would blur."""
    return data.model_copy(update={"bins": 0, "max_levels": 0, "max_atoms": 0})


def choose_window(recordings: Sequence[Recording], wanted: int | None) -> int:
    """Places in a window: 128, and less for a short history.

    Raises:
        SchemaError: there are too few places.
    """
    places = sum(len(recording.recorded) for recording in recordings)
    longest = max(len(recording.recorded) for recording in recordings)
    most = min(places // _STRETCHES, longest if wanted else longest // 2)
    if most < (wanted or _LEAST_WINDOW):
        need = _STRETCHES * (wanted or _LEAST_WINDOW)
        cure = f"Collect more, or take a shorter window (series.window, at least {_LEAST_WINDOW})."
        raise SchemaError(
            [
                Problem(
                    TABLE,
                    f"fitting needs at least {need} places in time",
                    f"{places}, the longest recording {longest}",
                    cure,
                )
            ]
        )
    return wanted or min(_WINDOW, 2 ** int(np.log2(most)))


def network_length(codec: Codec, window: int) -> int:
    """Places in a window of the network: as many as its slots allow."""
    return max(2, min(window, _SLOTS // codec.layout.model_width))


def _learn(
    fold: Fold,
    codec: Codec,
    rhythm: Rhythm,
    length: int,
    config: FitConfig,
    checkpoint: Path | None,
    on_event: Callable[[TrainEvent], None] | None,
    data: str,
) -> tuple[Denoiser, TrainEvent | None]:
    """The network, for drawing and filling series."""
    layout = codec.layout.beside(rhythm.dials)
    fold = Fold([_learnable(track, codec, rhythm) for track in fold.tracks], fold.held_out)
    windows, seen = fold.windows(length, _TRAINING_WINDOWS, config.train.seed)
    held_out, held_seen = fold.windows(length, 2048, config.train.seed, held_out=True)
    torch.manual_seed(config.train.seed)
    denoiser = build_denoiser(layout, windows, config).to(resolve_device(config.train.device))
    last = None
    for event in train(
        denoiser,
        *_arrays(windows, seen, layout),
        *_arrays(held_out if len(held_out) else windows[:2048], held_seen if len(held_out) else seen[:2048], layout),
        config.train,
        checkpoint=checkpoint,
        identity=f"{data} {length} {config.model_dump_json(include={'data', 'process', 'network', 'series'})}",
    ):
        last = event
        if on_event is not None:
            on_event(event)
    return denoiser, last


def _learnable(track: Track, codec: Codec, rhythm: Rhythm) -> Track:
    """What the network is shown: gaps of numbers as straight lines, and the calendar. No loss is taken there, but they are seen."""
    x, places = track.x.copy(), np.arange(len(track.x))
    for unit in (codec.layout.units[index] for index in codec.layout.number_units):
        seen = np.flatnonzero(track.observed[:, unit.column])
        if 0 < len(seen) < len(x):
            x[:, unit.start] = np.interp(places, seen, x[seen, unit.start])
    dials = rhythm.shown(track.first + places)
    observed = np.pad(track.observed, ((0, 0), (0, len(rhythm.dials))))
    return replace(track, x=np.hstack([x[:, : codec.layout.model_width], dials]), observed=observed)


def _arrays(
    windows: Float32[np.ndarray, "n t w"], seen: Bool[np.ndarray, "n t c"], layout: Layout
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.ascontiguousarray(windows)), torch.from_numpy(layout.cells(seen))


def _longest_silence(recordings: Sequence[Recording], codec: Codec) -> dict[str, int]:
    """For how many places each sensor was silent in training while others reported, at most."""
    found = dict.fromkeys(codec.columns, 0)
    for recording in recordings:
        for name in codec.columns:
            gaps = runs_of(recording.frame[name].is_null().to_numpy())
            found[name] = max([found[name], *(end - start for start, end in gaps)])
    return found
