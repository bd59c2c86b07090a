"""Fit a model: the only module that knows both the torch side and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float32

from tabdiff.bundle import Bundle
from tabdiff.codec import Codec, Encoded, trim_outermost
from tabdiff.config import FitConfig
from tabdiff.errors import TABLE, ConfigError, Problem, SchemaError
from tabdiff.files import fingerprint
from tabdiff.layout import Layout
from tabdiff.model import Model
from tabdiff.nn.assemble import build_denoiser, build_score
from tabdiff.nn.calibrate import calibrate
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.programs import Step
from tabdiff.nn.runtime import TorchRuntime, resolve_device
from tabdiff.nn.train import TrainEvent, train
from tabdiff.schema import Role, Schema

MINIMUM_ROWS = 10
_MAXIMUM_HELD_OUT = 10_000


def fit(
    frame: Any,
    config: FitConfig | None = None,
    *,
    overrides: Mapping[str, Mapping[str, str]] | None = None,
    checkpoint: Path | None = None,
    on_event: Callable[[TrainEvent], None] | None = None,
) -> Model:
    """Fit a model of a table.

    Args:
        frame: polars, pandas or Arrow table, one row per case. If a column has the role `label`, rows that it marks are
            known anomalies and are left out.
        config: every option; the defaults are meant for ordinary use.
        overrides: kind and role of columns that the inference should not decide, as in ``{"zip": {"kind": "categorical"}}``.
        checkpoint: folder that makes the fit resumable: kill it at any moment and call again with the same arguments.
        on_event: called after every held-out evaluation.

    Raises:
        SchemaError: the table cannot be modelled. Lists every problem.
        ConfigError: two options contradict each other.
        TrainingError: the loss is not finite, or the checkpoint belongs to another fit.
        RuntimeUnavailable: train.device=cuda without a CUDA device.
    """
    config = config or FitConfig()
    with _threads(config.train.threads):
        return _fit(frame, config, overrides, checkpoint, on_event)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads, and give it back what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    frame: Any,
    config: FitConfig,
    overrides: Mapping[str, Mapping[str, str]] | None,
    checkpoint: Path | None,
    on_event: Callable[[TrainEvent], None] | None,
) -> Model:
    if config.score.contaminated and not config.score.kernel_rows:
        raise ConfigError(
            "score.contaminated compares rows with stored ones; got score.kernel_rows=0. Allow some, or leave contaminated out."
        )
    device = resolve_device(config.train.device)
    schema = Schema.infer(frame, overrides=overrides)
    conformed = _without_known_anomalies(schema.conform(frame), schema)
    if conformed.height < MINIMUM_ROWS:
        cure = "Collect more rows."
        raise SchemaError(
            [Problem(TABLE, f"fitting needs at least {MINIMUM_ROWS} rows", f"{conformed.height} rows", cure)]
        )
    data = fingerprint(conformed)
    train_rows, held_out_rows = _split(conformed, config)
    codec = Codec.fit(train_rows, schema, config.data)
    if config.data.trim:
        train_rows = trim_outermost(train_rows, codec, config.data.trim)
        codec = Codec.fit(train_rows, schema, config.data)
    encoded, held_out = codec.encode(train_rows), codec.encode(held_out_rows)

    torch.manual_seed(config.train.seed)  # initial weights and dropout
    denoiser = build_denoiser(codec.layout, encoded, config).to(device)
    last = None
    for event in train(
        denoiser,
        *_windows(encoded, codec.layout),
        *_windows(held_out, codec.layout),
        config.train,
        checkpoint=checkpoint,
        identity=f"{data} {config.model_dump_json(include={'data', 'process', 'network'})}",
    ):
        last = event
        if on_event is not None:
            on_event(event)

    stored, score = build_score(denoiser.cpu().eval(), codec, encoded, held_out, config)
    runtime = TorchRuntime(score, Step(denoiser), config.train.device)
    calibration = calibrate(score, runtime.device, encoded, held_out, stored)
    report = _report(last, denoiser, train_rows.height, held_out_rows.height)
    bundle = Bundle(
        config,
        schema,
        codec,
        calibration.to_json(),
        _describe(denoiser, report),
        {f"score.{name}": value.cpu().numpy() for name, value in score.state_dict().items()},
        data,
    )
    return Model(bundle, runtime)


def _without_known_anomalies(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    for column in schema.columns:
        if column.role is Role.LABEL and column.name in frame.columns:
            normal = (
                frame[column.name].cast(pl.String).str.to_lowercase().is_in(["", "0", "0.0", "false", "no", "normal"])
            )
            frame = frame.filter(normal.fill_null(True))
    return frame


def _split(frame: pl.DataFrame, config: FitConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Random training and held-out rows; a function of the seed."""
    order = np.random.default_rng(config.train.seed).permutation(frame.height)
    held_out = int(np.clip(round(config.data.holdout * frame.height), 2, _MAXIMUM_HELD_OUT))
    return frame[np.sort(order[held_out:])], frame[np.sort(order[:held_out])]


def _windows(encoded: Encoded, layout: Layout) -> tuple[Float32[torch.Tensor, "n 1 w"], Bool[torch.Tensor, "n 1 u"]]:
    x = torch.from_numpy(encoded.x[:, None, : layout.model_width])
    return x, torch.from_numpy(encoded.present[:, None, :])


def _report(last: TrainEvent | None, denoiser: Denoiser, rows: int, held_out: int) -> dict[str, Any]:
    assert last is not None  # training always ends with an event
    return {
        "train_rows": rows,
        "held_out_rows": held_out,
        "planned_steps": last.steps,
        "steps": last.step,
        "finished": last.finished,
        "held_out": last.best,
        "seconds": last.elapsed,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
    }


def _describe(denoiser: Denoiser, report: dict[str, Any]) -> dict[str, Any]:
    process = denoiser.process
    first = denoiser.blocks[0]
    return {
        "sigma_min": process.sigma_min,
        "sigma_max": process.sigma_max,
        "rho": process.rho,
        "length": denoiser.length,
        "width": denoiser.read.out_features,
        "blocks": len(denoiser.blocks),
        "dropout": float(first.dropout.p),  # type: ignore[union-attr, arg-type]
        "report": report,
    }
