"""Fit a model: the only module that knows both the torch side and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float32, Int

from tabdiff.bundle import Bundle
from tabdiff.codec import Codec, Encoded, trim_outermost
from tabdiff.columns import Kind
from tabdiff.config import FitConfig
from tabdiff.errors import TABLE, ConfigError, Problem, SchemaError
from tabdiff.files import fingerprint
from tabdiff.flags import Rule
from tabdiff.layout import Layout
from tabdiff.memory import remember
from tabdiff.model import Model
from tabdiff.nn.assemble import build_denoiser, build_score, describe, likelihood_along, report_of, scored_by_network
from tabdiff.nn.calibrate import Part, calibrate, turns
from tabdiff.nn.processes import joined
from tabdiff.nn.programs import Step
from tabdiff.nn.runtime import TorchRuntime, build_programs, resolve_device, threads
from tabdiff.nn.train import TrainEvent, train
from tabdiff.nn.transfer import begin_with
from tabdiff.schema import Role, Schema
from tabdiff.turns import share_steps

MINIMUM_ROWS = 10
_MAXIMUM_HELD_OUT = 10_000
_STOPPING_ROWS = 64  # fewer say too little of when to stop
_SHARED_ROWS = 2048  # held-out rows that say which columns may share a step
_MICROSECONDS_A_DAY = 86_400_000_000


def fit(
    frame: Any,
    config: FitConfig | None = None,
    *,
    overrides: Mapping[str, Mapping[str, str]] | None = None,
    checkpoint: Path | None = None,
    on_event: Callable[[TrainEvent], None] | None = None,
    start_from: Model | None = None,
) -> Model:
    """Fit a model of a table. Under torchrun all processes share the work of training and return the same model.

    Args:
        frame: polars, pandas or Arrow table, one row per case. If a column has the role `label`, rows that it marks are
            known anomalies and are left out.
        config: every option; the defaults are meant for ordinary use.
        overrides: kind and role of columns that the inference should not decide, as in ``{"zip": {"kind": "categorical"}}``.
        checkpoint: folder that makes the fit resumable: kill it at any moment and call again with the same arguments.
        on_event: called after every held-out evaluation.
        start_from: a model of the same columns whose weights the network begins with; fewer steps are planned then. Encoding,
            calibration and stored rows are those of `frame` all the same.

    Raises:
        SchemaError: the table cannot be modelled. Lists every problem.
        ConfigError: two options contradict each other, or `start_from` has other columns or another network.
        TrainingError: the loss is not finite, or the checkpoint belongs to another fit.
        RuntimeUnavailable: train.device=cuda without a CUDA device, or torchrun's processes cannot meet.
    """
    config = config or FitConfig()
    if config.series.time is not None:
        raise ConfigError("series.time makes the table a series; got it for a model of a table. Use fit_series.")
    with threads(config.train.threads), joined(config.train.device):
        return _fit(frame, config, overrides, checkpoint, on_event, start_from)


def _fit(
    frame: Any,
    config: FitConfig,
    overrides: Mapping[str, Mapping[str, str]] | None,
    checkpoint: Path | None,
    on_event: Callable[[TrainEvent], None] | None,
    start_from: Model | None,
) -> Model:
    if config.score.contaminated and not config.score.kernel_rows:
        raise ConfigError(
            "score.contaminated compares rows with stored ones; got score.kernel_rows=0. Allow some, or leave contaminated out."
        )
    if start_from is not None and scored_by_network(config):
        raise ConfigError(
            "a fit whose score is the network's cannot begin with the weights of another model, which may know the rows that "
            "calibrate it; got score.kernel_rows=0. Allow some, or begin with random weights."
        )
    device = resolve_device(config.train.device)
    schema = Schema.infer(frame, overrides=overrides)
    conformed = schema.without_known_anomalies(schema.conform(frame))
    if conformed.height < MINIMUM_ROWS:
        cure = "Collect more rows."
        raise SchemaError(
            [Problem(TABLE, f"fitting needs at least {MINIMUM_ROWS} rows", f"{conformed.height} rows", cure)]
        )
    rows_per_day = _rows_per_day(conformed, schema)
    # A rule that cannot work is better known of before a long fit than after it.
    Rule.choose(config.score, measured=rows_per_day)
    data = fingerprint(conformed)
    train_places, held_out_places = _split(conformed.height, config)
    part, last = _learn(
        conformed, schema, train_places, held_out_places, config, checkpoint, on_event, data, start_from
    )
    parts = [part, *_turns(conformed, schema, train_places, held_out_places, config)]
    calibration = calibrate(parts, config, device)

    denoiser, codec = part.denoiser, part.codec
    score = build_score(denoiser.cpu().eval(), codec, part.encoded, part.held_out, config)
    shown = _windows(part.held_out, codec.layout, slice(_SHARED_ROWS))
    ways = share_steps(likelihood_along(denoiser, *shown))[0] if denoiser.order else ()
    runtime = TorchRuntime(score, Step(denoiser), config.train.device)
    report = report_of(last, denoiser, len(part.encoded.x), len(part.held_out.x), len(calibration.normal))
    report["rows_per_day"] = rows_per_day
    if start_from is not None:
        report["started_from"] = start_from.bundle.fingerprint
    bundle = Bundle(
        config,
        schema,
        codec,
        calibration.to_json(),
        {
            **describe(denoiser, report),
            "ways": ways,
            "sampling": remember(
                schema, codec, conformed, *_learned_from(conformed, train_places, held_out_places, config), data, config
            ),
        },
        {f"score.{name}": value.cpu().numpy() for name, value in score.state_dict().items()},
        data,
    )
    return Model(bundle, runtime)


def _learn(
    frame: pl.DataFrame,
    schema: Schema,
    train_places: Int[np.ndarray, " n"],
    held_out_places: Int[np.ndarray, " m"],
    config: FitConfig,
    checkpoint: Path | None = None,
    on_event: Callable[[TrainEvent], None] | None = None,
    data: str = "",
    start_from: Model | None = None,
    *,
    learn: bool = True,
) -> tuple[Part, TrainEvent | None]:
    """Codec and network of some rows; others stop the training. A network that nobody asks need not `learn`."""
    train_rows, held_out_rows = frame[train_places], frame[held_out_places]
    codec = Codec.fit(train_rows, schema, config.data)
    if config.data.trim:
        train_rows = trim_outermost(train_rows, codec, config.data.trim)
        codec = Codec.fit(train_rows, schema, config.data)
    encoded, held_out = codec.encode(train_rows), codec.encode(held_out_rows)

    torch.manual_seed(config.train.seed)  # initial weights and dropout
    denoiser = build_denoiser(codec.layout, encoded.x[:, None], config).to(resolve_device(config.train.device))
    last = None
    if start_from is not None:
        begin_with(denoiser, codec, build_programs(start_from.bundle)[0].denoiser, start_from.codec)
        order = tuple(start_from.bundle.model.get("order", ()))
        if len(order) == len(denoiser.order):  # what the old network has learned is about its own order
            denoiser.order = order
    also = _also_learned(len(held_out.x), config)
    rows, more = _windows(encoded, codec.layout), _windows(held_out, codec.layout, also)
    events = train(
        denoiser,
        torch.cat([rows[0], more[0]]),
        torch.cat([rows[1], more[1]]),
        *_windows(held_out, codec.layout, ~also),
        config.train,
        checkpoint=checkpoint,
        identity=" ".join(
            [data, config.model_dump_json(include={"data", "process", "network"})]
            + ([start_from.bundle.program_digest()] if start_from is not None else [])
        ),
        learned=start_from is not None,
    )
    for event in events if learn else ():
        last = event
        if on_event is not None:
            on_event(event)
    return Part(denoiser, codec, encoded, held_out), last


def _turns(
    frame: pl.DataFrame,
    schema: Schema,
    train_places: Int[np.ndarray, " n"],
    held_out_places: Int[np.ndarray, " m"],
    config: FitConfig,
) -> Iterator[Part]:
    """Hold out the training rows too, a part at a time."""
    count = turns(frame.height, config)
    if count == 1:
        return
    order = np.random.default_rng(config.train.seed).permutation(train_places)
    for held_out in np.array_split(order, count - 1):
        rest = np.setdiff1d(np.concatenate([train_places, held_out_places]), held_out)
        yield _learn(frame, schema, rest, np.sort(held_out), config, learn=scored_by_network(config))[0]


def _split(rows: int, config: FitConfig) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Places of random training and held-out rows; a function of the seed."""
    order = np.random.default_rng(config.train.seed).permutation(rows)
    held_out = int(np.clip(round(config.data.holdout * rows), 2, _MAXIMUM_HELD_OUT))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _also_learned(held_out: int, config: FitConfig) -> Bool[np.ndarray, " m"]:
    """Which held-out rows the network is trained on after all: it has no part in the score that they calibrate.

    A third, at least `_STOPPING_ROWS`, is kept for the early stop.
    """
    also = np.zeros(held_out, bool)
    if not scored_by_network(config) and not config.data.trim:  # trimming has looked at the other rows only
        also[max(_STOPPING_ROWS, -(-held_out // 3)) :] = True
    return np.random.default_rng(config.train.seed).permutation(also)


def _learned_from(
    frame: pl.DataFrame, train_places: Int[np.ndarray, " n"], held_out_places: Int[np.ndarray, " m"], config: FitConfig
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that the network has seen, and the others."""
    also = _also_learned(len(held_out_places), config)
    return frame[np.concatenate([train_places, held_out_places[also]])], frame[held_out_places[~also]]


def _windows(
    encoded: Encoded, layout: Layout, rows: Any = slice(None)
) -> tuple[Float32[torch.Tensor, "n 1 w"], Bool[torch.Tensor, "n 1 u"]]:
    x = torch.from_numpy(encoded.x[rows][:, None, : layout.model_width])
    return x, torch.from_numpy(encoded.present[rows][:, None, :])


def _rows_per_day(frame: pl.DataFrame, schema: Schema) -> float | None:
    """How many rows a day the column of times shows: the one with that role, or the only one with dates; else None."""
    marked = [column for column in schema.columns if column.role is Role.TIME]
    dated = marked or [column for column in schema.columns if column.kind is Kind.DATETIME and not column.empty]
    if len(dated) != 1 or dated[0].name not in frame.columns or not frame[dated[0].name].dtype.is_temporal():
        return None
    times = frame[dated[0].name].drop_nulls().cast(pl.Datetime("us")).cast(pl.Int64).to_numpy()
    days = float(np.ptp(times)) / _MICROSECONDS_A_DAY if len(times) > 1 else 0.0
    return (len(times) - 1) / days if days else None
