"""The two ways to get a model: fit one, load one. The only module that knows both the torch side and the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float32

from tabdiff.bundle import Bundle
from tabdiff.codec import Codec, Encoded, trim_outermost
from tabdiff.config import FitConfig
from tabdiff.errors import Problem, SchemaError
from tabdiff.layout import Layout
from tabdiff.model import Model
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.process import MixedProcess
from tabdiff.nn.programs import Score, Step
from tabdiff.nn.runtime import TorchRuntime, resolve_device
from tabdiff.nn.train import TrainEvent, fill_gated, train
from tabdiff.schema import Role, Schema
from tabdiff.scoring import Calibration, errors_of
from tabdiff.sources import fingerprint

MINIMUM_ROWS = 10
_MAXIMUM_HELD_OUT = 10_000
_NEIGHBOURS = 5

# The views that make up the score, chosen on benchmark tables; docs/decisions has the measurements.
_KERNEL_FACTORS = (0.2, 0.3, 0.5)  # noise levels of the kernel views, in mean distances to the 5 nearest rows
_LEARNED_SIGMAS = (0.6, 0.8, 1.2)  # noise levels of the learned views, in standard deviations
_LEARNED_WEIGHT = 0.5  # of all learned views together; the kernel views together weigh 1
_PROBES = 4


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
        TrainingError: the loss is not finite, or the checkpoint belongs to another fit.
        RuntimeUnavailable: train.device=cuda without a CUDA device.
    """
    config = config or FitConfig()
    device = resolve_device(config.train.device)
    schema = Schema.infer(frame, overrides=overrides)
    conformed = _without_known_anomalies(schema.conform(frame), schema)
    if conformed.height < MINIMUM_ROWS:
        cure = "Collect more rows."
        raise SchemaError([Problem("(all)", f"fitting needs at least {MINIMUM_ROWS} rows", f"{conformed.height} rows", cure)])
    train_rows, held_out_rows = _split(conformed, config)
    codec = Codec.fit(train_rows, schema, config.data)
    if config.data.trim:
        train_rows = trim_outermost(train_rows, codec, config.data.trim)
        codec = Codec.fit(train_rows, schema, config.data)
    encoded, held_out = codec.encode(train_rows), codec.encode(held_out_rows)

    torch.manual_seed(config.train.seed)  # initial weights and dropout
    denoiser = _build_denoiser(codec.layout, encoded, config).to(device)
    last = None
    for event in train(
        denoiser, *_windows(encoded, codec.layout), *_windows(held_out, codec.layout), config.train, checkpoint=checkpoint
    ):
        last = event
        if on_event is not None:
            on_event(event)

    score = _build_score(denoiser.cpu().eval(), codec, encoded, config)
    runtime = TorchRuntime(score, Step(denoiser), config.train.device)
    weights = [1.0] * len(score.kernel_sigmas)
    learned = _LEARNED_WEIGHT * max(1, len(weights)) / len(_LEARNED_SIGMAS)
    names = [f"kernel {factor:g}" for factor in _KERNEL_FACTORS[: len(weights)]] + [f"learned {s:g}" for s in _LEARNED_SIGMAS]
    calibration = Calibration.fit(errors_of(runtime, held_out), names, weights + [learned] * len(_LEARNED_SIGMAS))
    report = _report(last, denoiser, train_rows.height, held_out_rows.height)
    bundle = Bundle(
        config,
        schema,
        codec,
        calibration.to_json(),
        _describe(denoiser, report),
        {f"score.{name}": value.cpu().numpy() for name, value in score.state_dict().items()},
        fingerprint(conformed),
    )
    return Model(bundle, runtime)


def load(path: str | Path, *, device: str = "auto") -> Model:
    """Load a model folder.

    Raises:
        BundleError: a file is missing, altered or from another version.
        RuntimeUnavailable: the device is not there.
    """
    bundle = Bundle.read(Path(path))
    return Model(bundle, TorchRuntime.from_bundle(bundle, device))


def _without_known_anomalies(frame: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    for column in schema.columns:
        if column.role is Role.LABEL and column.name in frame.columns:
            normal = frame[column.name].cast(pl.String).str.to_lowercase().is_in(["", "0", "0.0", "false", "no", "normal"])
            frame = frame.filter(normal.fill_null(True))
    return frame


def _split(frame: pl.DataFrame, config: FitConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Random training and held-out rows; a function of the seed."""
    order = np.random.default_rng(config.train.seed).permutation(frame.height)
    held_out = int(np.clip(round(config.data.holdout * frame.height), 2, _MAXIMUM_HELD_OUT))
    return frame[np.sort(order[held_out:])], frame[np.sort(order[:held_out])]


def _windows(
    encoded: Encoded, layout: Layout
) -> tuple[Float32[torch.Tensor, "n 1 w"], Bool[torch.Tensor, "n 1 u"]]:
    x = torch.from_numpy(encoded.x[:, None, : layout.model_width])
    return x, torch.from_numpy(encoded.present[:, None, :])


def _build_denoiser(layout: Layout, encoded: Encoded, config: FitConfig) -> Denoiser:
    """Preconditioning from the training rows, network size from their number and width."""
    generator = torch.Generator().manual_seed(config.train.seed)
    x = fill_gated(torch.from_numpy(encoded.x[:, None, : layout.model_width]), layout, generator)[:, 0]
    numbers = x[:, layout.number_slots].double()
    mean = numbers.mean(0)
    # A small ridge: collinear columns have eigenvalues near 0, which no noise level would resolve.
    covariance = (numbers - mean).T @ (numbers - mean) / len(numbers) + 1e-4 * torch.eye(numbers.shape[1], dtype=torch.double)
    variance, basis = torch.linalg.eigh(covariance)
    basis = basis.contiguous()  # as it will be after loading, so that scores stay the same to the last bit
    correlated = config.process.kind == "anisotropic"
    noise_scale = variance.sqrt() if correlated else torch.ones_like(variance)
    largest = 1.0 if correlated or not len(variance) else float(variance.max())
    sigma_max = config.process.sigma_max or 6.0 * largest**0.5
    process = MixedProcess(
        layout, config.process.sigma_min, sigma_max, config.process.rho, basis.float(), noise_scale.float()
    )
    width = config.network.width or (128 if len(x) < 1500 else 256 if layout.model_width <= 256 else 384)
    return Denoiser(
        process,
        *(tensor.float() for tensor in (mean, basis, variance, noise_scale)),
        width=width,
        blocks=config.network.blocks,
        dropout=config.network.dropout,
    )


def _build_score(denoiser: Denoiser, codec: Codec, encoded: Encoded, config: FitConfig) -> Score:
    """The scoring program: memory of training rows, noise levels and probe bank."""
    layout, rng = codec.layout, np.random.default_rng(config.train.seed)
    raw = encoded.x[:, layout.model_width :]
    stored = min(config.score.kernel_rows, len(raw))
    memory = torch.from_numpy(raw[np.sort(rng.permutation(len(raw))[:stored])])
    factors = torch.tensor(_KERNEL_FACTORS if stored else ())
    process = denoiser.process
    low, high = process.sigma_min ** (1 / process.rho), process.sigma_max ** (1 / process.rho)
    levels = (torch.tensor(_LEARNED_SIGMAS) ** (1 / process.rho) - low) / (high - low)
    raw_columns = np.zeros((len(layout.raw), len(codec.columns)), np.float32)
    raw_columns[np.arange(len(layout.raw)), list(layout.raw)] = 1.0
    return Score(
        denoiser,
        memory=memory,
        kernel_sigmas=factors * _neighbour_distance(memory) if stored else factors,
        levels=levels,
        noise=_probe_bank(layout, len(_LEARNED_SIGMAS), rng),
        raw_columns=torch.from_numpy(raw_columns),
        units_to_columns=torch.from_numpy(layout.units_to_columns @ codec.attribution),
        surprise=torch.tensor(2 * np.log(len(raw) + 1), dtype=torch.float32),
    )


def _probe_bank(layout: Layout, levels: int, rng: np.random.Generator) -> Float32[torch.Tensor, "l p 1 u"]:
    """Fixed probes: numbers without noise (the score-norm view), categories masked in turn so that each one is asked about."""
    bank = np.zeros((levels, _PROBES, 1, len(layout.units)), np.float32)
    for level in range(levels):
        for index in layout.category_units:
            bank[level, :, 0, index] = (rng.permutation(_PROBES) + 0.5) / _PROBES
    return torch.from_numpy(bank)


def _neighbour_distance(memory: Float32[torch.Tensor, "m r"]) -> Float32[torch.Tensor, ""]:
    """Mean distance of a stored row to its nearest others; the natural length of the kernel views."""
    nearest = []
    for start in range(0, len(memory), 512):
        distance = torch.cdist(memory[start : start + 512], memory)
        distance[torch.arange(len(distance)), torch.arange(start, start + len(distance))] = torch.inf
        nearest.append(distance.topk(min(_NEIGHBOURS, len(memory) - 1), largest=False).values.mean(1))
    # Tables full of duplicates have no distances to speak of; a small one keeps the kernel defined.
    return torch.cat(nearest).mean().clamp_min(1e-2 * memory.shape[1] ** 0.5)


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
