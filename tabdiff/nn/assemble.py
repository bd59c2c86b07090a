"""What a model consists of, chosen from its training rows: the denoiser and the scoring program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from tabdiff.codec import Codec, Encoded
from tabdiff.config import FitConfig
from tabdiff.layout import Layout
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.kernel import NEIGHBOURS, KernelView, fit_kernel_view, fit_subset_kernels
from tabdiff.nn.mixture import fit_mixture
from tabdiff.nn.objective import fill_gated
from tabdiff.nn.process import MixedProcess
from tabdiff.nn.programs import Score
from tabdiff.nn.train import TrainEvent
from tabdiff.nn.wiener import fit_window_view
from tabdiff.scoring import CHUNK_ROWS
from tabdiff.windows import Span

# What the score is made of, chosen on benchmark tables; docs/decisions has the measurements.
_KERNEL_VIEWS = ("raw", "rank")
_KERNEL_FACTORS = (0.2, 0.3, 0.5)  # noise levels of the kernel views, in mean distances to the nearest rows
_NEIGHBOUR_FACTOR = 1.0  # the level at which a row's neighbours are weighed
_MIXTURE_SIGMAS = (0.32, 1.73)  # noise levels of the two mixture views, in standard deviations
_LEARNED_SIGMAS = (1.4, 2.0, 3.0)  # noise levels of the learned view, in standard deviations
_FEW_ROWS, _FEW_CATEGORIES = 3000, 16  # that a narrow network is enough for
_ORDERED_ROWS = 5000  # from which one order of drawing pays; with fewer, the errors of all orders together are smaller
_WINDOW_WIDTH, _WINDOW_BLOCKS = 96, 4  # of the network of windows
_MASKING_SIGMA, _MASKING_PROBES = 2.0, 4  # with categories: one level, each category masked in about half of the probes


def build_denoiser(layout: Layout, windows: Float32[np.ndarray, "n t w"], config: FitConfig) -> Denoiser:
    """Preconditioning from the training windows, network size from their number and width."""
    generator = torch.Generator().manual_seed(config.train.seed)
    x = fill_gated(torch.from_numpy(windows[..., : layout.model_width]), layout, generator)
    numbers = x[..., layout.number_slots].flatten(1).double()
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
    # The noise of a window is that of its places, each by itself.
    places = len(layout.number_slots)
    shape = (basis, noise_scale) if x.shape[1] == 1 else (torch.eye(places), torch.ones(places))
    process = MixedProcess(
        layout, config.process.sigma_min, sigma_max, config.process.rho, *(tensor.float() for tensor in shape)
    )
    rows = x.shape[1] == 1
    network = config.network
    narrow = len(x) < _FEW_ROWS or len(layout.category_units) <= _FEW_CATEGORIES
    width, blocks = ((128, 3) if narrow else (256, 2)) if rows else (_WINDOW_WIDTH, _WINDOW_BLOCKS)
    denoiser = Denoiser(
        process,
        *(tensor.float() for tensor in (mean, basis, variance, noise_scale)),
        length=x.shape[1],
        width=network.width or width,
        blocks=network.blocks or blocks,
        dropout=network.dropout if network.dropout is not None else 0.2 * rows,
    )
    with torch.no_grad():  # an untrained network knows the columns, each by itself
        slots = torch.as_tensor(layout.category_slots)
        share = torch.log((x[..., slots].sum(0) + 0.5) / (len(x) + 1.0))
        denoiser.last.bias[slots] = share.mean(0)
    if rows and len(x) >= _ORDERED_ROWS and not layout.number_units and not scored_by_network(config):
        denoiser.order = drawing_order(layout, windows[:, 0])
    return denoiser


def drawing_order(layout: Layout, x: Float32[np.ndarray, "n w"]) -> tuple[int, ...]:
    """The order in which a sampler draws the categories of a row: those of most entropy among the training rows first."""
    entropy = []
    for index in layout.category_units:
        share = x[:, layout.units[index].slots].mean(axis=0, dtype=np.float64)
        entropy.append(-float((share * np.log(np.maximum(share, 1e-300))).sum()))
    return tuple(np.argsort(-np.array(entropy), kind="stable").tolist())


@torch.no_grad()
def likelihood_along(
    denoiser: Denoiser, x: Float32[torch.Tensor, "n 1 w"], present: Bool[torch.Tensor, "n 1 u"]
) -> Float64[np.ndarray, "k k"]:
    """Mean log-likelihood of category j of the denoiser's order, the first i of which are shown, at [i, j]; cells that are absent count nothing."""
    order, blocks = list(denoiser.order), denoiser.process.blocks
    counted = present[:, 0, blocks.units].to(x.dtype)
    found = np.zeros((len(order), len(order)))
    for known in range(len(order)):
        shown = torch.zeros(len(x), 1, len(order), device=x.device)
        shown[..., order[:known]] = 1.0
        log_probability = denoiser.estimate(x * blocks.spread(shown), torch.ones(len(x), device=x.device))[1]
        found[known] = ((blocks.total(x * log_probability)[:, 0] * counted).mean(0))[order].double().cpu().numpy()
    return found


def scored_by_network(config: FitConfig) -> bool:
    """The learned denoiser scores only where no rows are stored: beside views that compare rows it does not pay."""
    return not (config.score.kernel_rows or config.score.contaminated)


def build_score(denoiser: Denoiser, codec: Codec, encoded: Encoded, held_out: Encoded, config: FitConfig) -> Score:
    """The scoring program. Held-out rows may be among those that it stores."""
    layout, rng = codec.layout, np.random.default_rng(config.train.seed)
    x = np.concatenate([encoded.x, held_out.x])
    rows = np.sort(rng.permutation(len(x))[: config.score.kernel_rows])
    kernels: dict[str, KernelView] = {}
    mixture = subsets = None
    generator = torch.Generator().manual_seed(config.train.seed)
    usual_log, usual_level = torch.zeros(0), torch.ones(())
    if config.score.contaminated:
        subsets = fit_subset_kernels(torch.from_numpy(x[:, layout.view("asinh")]), generator)
    else:
        mixture = fit_mixture(torch.from_numpy(encoded.x[:, layout.view("raw")]), _MIXTURE_SIGMAS, generator)
    if not config.score.contaminated and len(rows) > 1:
        memory = torch.from_numpy(x[rows])
        kernels = {
            view: fit_kernel_view(memory[:, layout.view(view)], _KERNEL_FACTORS, generator) for view in _KERNEL_VIEWS
        }
        usual_level = kernels["raw"].levels[0] * (_NEIGHBOUR_FACTOR / _KERNEL_FACTORS[0])
        usual_log = _left_out_log(kernels["raw"], memory[:, layout.view("raw")])
    sigmas: tuple[float, ...] = ()
    if scored_by_network(config):
        sigmas = (_MASKING_SIGMA,) if layout.category_units else _LEARNED_SIGMAS
    process = denoiser.process
    low, high = process.sigma_min ** (1 / process.rho), process.sigma_max ** (1 / process.rho)
    return Score(
        denoiser,
        kernels,
        mixture,
        subsets,
        usual_log=usual_log,
        usual_level=usual_level,
        times=((torch.tensor(sigmas) ** (1 / process.rho) - low) / (high - low)).clamp_max(1.0),
        noise=_probe_bank(layout, len(sigmas), rng),
        **_of_codec(codec, len(x)),
    )


def build_window_score(
    denoiser: Denoiser, codec: Codec, windows: Float32[np.ndarray, "n t w"], spans: Sequence[Span]
) -> Score:
    """The scoring program of windows: a Gaussian denoiser for each span."""
    raw = torch.from_numpy(windows[..., codec.layout.view("raw")])
    views = {span.name: fit_window_view(raw, start=span.start, length=span.length, pool=span.pool) for span in spans}
    nothing = torch.zeros(0)
    return Score(
        denoiser,
        {},
        None,
        None,
        usual_log=nothing,
        usual_level=torch.ones(()),
        times=nothing,
        noise=_probe_bank(codec.layout, 0, np.random.default_rng(0)),
        windows=views,
        layout=codec.layout,
        **_of_codec(codec, len(windows)),
    )


def _of_codec(codec: Codec, rows: int) -> dict[str, Any]:
    """What a scoring program knows of the columns."""
    layout = codec.layout
    view_columns = np.zeros((len(layout.view_columns), len(codec.columns)), np.float32)
    view_columns[np.arange(len(layout.view_columns)), list(layout.view_columns)] = 1.0
    return {
        "bounds": torch.from_numpy(codec.bounds[:, layout.number_slots]),
        "view_columns": torch.from_numpy(view_columns),
        "units_to_columns": torch.from_numpy(layout.units_to_columns @ codec.attribution),
        "surprise": torch.tensor(2 * np.log(rows + 1), dtype=torch.float32),
    }


@torch.no_grad()
def _left_out_log(kernel: KernelView, rows: Float32[torch.Tensor, "m r"]) -> Float32[torch.Tensor, " m"]:
    """Log error of each stored row when it is left out, averaged over the levels."""
    logs = []
    for start in range(0, len(rows), CHUNK_ROWS):
        own = torch.arange(start, min(start + CHUNK_ROWS, len(rows)))
        _, squared = kernel(rows[own], kernel.nearest(rows[own], own))
        logs.append(torch.log(squared[..., 0] + 1e-9).mean(-1))
    return torch.cat(logs)


def _probe_bank(layout: Layout, levels: int, rng: np.random.Generator) -> Float32[torch.Tensor, "l p 1 u"]:
    """Fixed probes: numbers without noise (the score-norm view), categories masked in turn so that each one is asked about."""
    probes = _MASKING_PROBES if layout.category_units else 1
    bank = np.zeros((levels, probes, 1, len(layout.units)), np.float32)
    for level in range(levels):
        for index in layout.category_units:
            bank[level, :, 0, index] = (rng.permutation(probes) + 0.5) / probes
    return torch.from_numpy(bank)


def report_of(
    last: TrainEvent | None, denoiser: Denoiser, rows: int, held_out: int, calibration: int
) -> dict[str, Any]:
    """How a fit went, for the record: rows of each kind, steps, loss, seconds."""
    assert last is not None  # training always ends with an event
    return {
        "train_rows": rows,
        "held_out_rows": held_out,
        "calibration_rows": calibration,
        "planned_steps": last.steps,
        "steps": last.step,
        "finished": last.finished,
        "held_out": last.best,
        "seconds": last.elapsed,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
    }


def describe(denoiser: Denoiser, report: dict[str, Any]) -> dict[str, Any]:
    """What `runtime.build_programs` needs to know of a network, beside its tensors, and the report of the fit."""
    process = denoiser.process
    return {
        "sigma_min": process.sigma_min,
        "sigma_max": process.sigma_max,
        "rho": process.rho,
        "length": denoiser.length,
        "width": denoiser.width,
        "blocks": denoiser.depth,
        "dropout": denoiser.dropout,
        "order": list(denoiser.order),
        "neighbours": NEIGHBOURS,
        "report": report,
    }
