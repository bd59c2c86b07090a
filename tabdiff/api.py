"""The two ways to get a model: fit one, load one. The only module that knows both the torch side and the rest."""

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
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.kernel import KernelView, fit_kernel_view, fit_subset_kernels
from tabdiff.nn.objective import fill_gated
from tabdiff.nn.process import MixedProcess
from tabdiff.nn.programs import Score, Step
from tabdiff.nn.runtime import TorchRuntime, resolve_device
from tabdiff.nn.train import TrainEvent, train
from tabdiff.schema import Role, Schema
from tabdiff.scoring import CHUNK_ROWS, Calibration

MINIMUM_ROWS = 10
_MAXIMUM_HELD_OUT = 10_000

# What the score is made of, chosen on benchmark tables; docs/decisions has the measurements.
_KERNEL_FACTORS = (0.2, 0.3, 0.5)  # noise levels of the kernel views, in mean distances to the nearest rows
_NEIGHBOUR_FACTOR = 1.0  # the level at which a row's neighbours are weighed
_LEARNED_SIGMAS = (1.4, 2.0, 3.0)  # noise levels of the learned view, in standard deviations
_LEARNED_WEIGHT = 0.5  # of the learned view; the others weigh 1
_MASKING_SIGMA, _MASKING_PROBES = 2.0, 4  # with categories: one level, each category masked in about half of the probes


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
    denoiser = _build_denoiser(codec.layout, encoded, config).to(device)
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

    stored, score = _build_score(denoiser.cpu().eval(), codec, encoded, held_out, config)
    runtime = TorchRuntime(score, Step(denoiser), config.train.device)
    calibration = _calibrate(score, runtime.device, encoded, held_out, stored)
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


def _build_denoiser(layout: Layout, encoded: Encoded, config: FitConfig) -> Denoiser:
    """Preconditioning from the training rows, network size from their number and width."""
    generator = torch.Generator().manual_seed(config.train.seed)
    x = fill_gated(torch.from_numpy(encoded.x[:, None, : layout.model_width]), layout, generator)[:, 0]
    numbers = x[:, layout.number_slots].double()
    mean = numbers.mean(0)
    # A small ridge: collinear columns have eigenvalues near 0, which no noise level would resolve.
    covariance = (numbers - mean).T @ (numbers - mean) / len(numbers) + 1e-4 * torch.eye(
        numbers.shape[1], dtype=torch.double
    )
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


def _build_score(
    denoiser: Denoiser, codec: Codec, encoded: Encoded, held_out: Encoded, config: FitConfig
) -> tuple[np.ndarray, Score]:
    """The scoring program, and for every row (training rows first) its place among the stored ones, or -1.

    Held-out rows may be stored too: they are scored with themselves left out, as a new row would be.
    """
    layout, rng = codec.layout, np.random.default_rng(config.train.seed)
    x = np.concatenate([encoded.x, held_out.x])
    rows = np.sort(rng.permutation(len(x))[: config.score.kernel_rows])
    stored = np.full(len(x), -1)
    kernels: dict[str, KernelView] = {}
    subsets = None
    usual_log, usual_level = torch.zeros(0), torch.ones(())
    if config.score.contaminated:
        generator = torch.Generator().manual_seed(config.train.seed)
        subsets = fit_subset_kernels(torch.from_numpy(x[:, layout.view("asinh")]), generator)
    elif len(rows) > 1:
        stored[rows] = np.arange(len(rows))
        memory = torch.from_numpy(x[rows])
        kernels = {view: fit_kernel_view(memory[:, layout.view(view)], _KERNEL_FACTORS) for view in layout.views}
        usual_level = kernels["raw"].levels[0] * (_NEIGHBOUR_FACTOR / _KERNEL_FACTORS[0])
        usual_log = _left_out_log(kernels["raw"], memory[:, layout.view("raw")])
    view_columns = np.zeros((len(layout.view_columns), len(codec.columns)), np.float32)
    view_columns[np.arange(len(layout.view_columns)), list(layout.view_columns)] = 1.0
    sigmas: tuple[float, ...] = _LEARNED_SIGMAS if not layout.category_units else (_MASKING_SIGMA,)
    if config.score.contaminated:
        sigmas = ()
    process = denoiser.process
    low, high = process.sigma_min ** (1 / process.rho), process.sigma_max ** (1 / process.rho)
    score = Score(
        denoiser,
        kernels,
        subsets,
        usual_log=usual_log,
        usual_level=usual_level,
        times=((torch.tensor(sigmas) ** (1 / process.rho) - low) / (high - low)).clamp_max(1.0),
        noise=_probe_bank(layout, len(sigmas), rng),
        bounds=torch.from_numpy(codec.bounds[:, layout.number_slots]),
        view_columns=torch.from_numpy(view_columns),
        units_to_columns=torch.from_numpy(layout.units_to_columns @ codec.attribution),
        surprise=torch.tensor(2 * np.log(len(x) + 1), dtype=torch.float32),
    )
    return stored, score


@torch.no_grad()
def _left_out_log(kernel: KernelView, rows: Float32[torch.Tensor, "m r"]) -> Float32[torch.Tensor, " m"]:
    """Log error of each stored row when it is left out, averaged over the levels."""
    logs = []
    for start in range(0, len(rows), CHUNK_ROWS):
        own = torch.arange(start, min(start + CHUNK_ROWS, len(rows)))
        logs.append(torch.log(kernel(rows[own], own)[0].sum(-1) + 1e-9).mean(-1))
    return torch.cat(logs)


@torch.inference_mode()
def _calibrate(
    score: Score, device: torch.device, encoded: Encoded, held_out: Encoded, stored: np.ndarray
) -> Calibration:
    """Standardise kernel views on all stored rows, each left out, and the rest on held-out rows; count p-values there."""

    def errors(part: Encoded, places: np.ndarray) -> np.ndarray:
        chunks = []
        for start in range(0, len(part.x), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            arrays = (part.x[rows, None, :], part.present[rows, None, :])
            left_out = torch.from_numpy(places[rows]).to(device) if score.kernels else None
            chunks.append(
                score(*(torch.from_numpy(array).to(device) for array in arrays), left_out)[:, 0].cpu().numpy()
            )
        return np.concatenate(chunks)

    count = len(encoded.x)
    on_held_out = errors(held_out, stored[count:])
    in_memory = np.flatnonzero(stored[:count] >= 0)
    on_stored = (
        errors(Encoded(encoded.x[in_memory], encoded.present[in_memory]), stored[in_memory])
        if len(in_memory)
        else on_held_out[:0]
    )
    both = np.concatenate([on_held_out, on_stored])
    samples = [(on_held_out if name == "learned" else both)[:, index] for index, name in enumerate(score.views)]
    weight = [_LEARNED_WEIGHT if name == "learned" else 1.0 for name in score.views]
    return Calibration.fit(score.views, samples, weight).with_normal(on_held_out)


def _probe_bank(layout: Layout, levels: int, rng: np.random.Generator) -> Float32[torch.Tensor, "l p 1 u"]:
    """Fixed probes: numbers without noise (the score-norm view), categories masked in turn so that each one is asked about."""
    probes = _MASKING_PROBES if layout.category_units else 1
    bank = np.zeros((levels, probes, 1, len(layout.units)), np.float32)
    for level in range(levels):
        for index in layout.category_units:
            bank[level, :, 0, index] = (rng.permutation(probes) + 0.5) / probes
    return torch.from_numpy(bank)


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
