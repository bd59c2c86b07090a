"""Truth that does not come from the project: closed forms, loops that are too slow to ship, small known tables."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tabdiff.layout import Layout, Unit
from tabdiff.nn.process import MixedProcess
from tabdiff.nn.programs import Step
from tabdiff.nn.runtime import TorchRuntime
from tabdiff.sampling import NoiseSchedule


def numbers_layout(count: int) -> Layout:
    units = tuple(Unit(i, "number", i, 1) for i in range(count))
    return Layout(tuple(f"n{i}" for i in range(count)), units, tuple(range(count)))


def categories_layout(*widths: int) -> Layout:
    starts = np.cumsum([0, *widths[:-1]]).tolist()
    units = tuple(
        Unit(i, "category", start, width) for i, (start, width) in enumerate(zip(starts, widths, strict=True))
    )
    return Layout(tuple(f"c{i}" for i in range(len(widths))), units)


def isotropic(layout: Layout, sigma_min: float = 0.01, sigma_max: float = 20.0) -> MixedProcess:
    count = len(layout.number_units)
    return MixedProcess(layout, sigma_min, sigma_max, 7.0, torch.eye(count), torch.ones(count))


class GaussianDenoiser(nn.Module):
    """E[x0 | x] for x0 ~ N(mean, covariance): the Wiener filter, by solving a linear system."""

    def __init__(self, process: MixedProcess, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.process, self.mean, self.covariance = process, mean, covariance

    def forward(self, x_t: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        out = torch.empty_like(x_t)
        for i in range(len(x_t)):
            noisy = self.covariance + self.process.sigma(t[i]) ** 2 * torch.eye(len(self.mean))
            out[i, 0] = self.mean + self.covariance @ torch.linalg.solve(noisy, x_t[i, 0] - self.mean)
        return out


class MixtureDenoiser(nn.Module):
    """E[x0 | x] for a mixture of isotropic Gaussians: responsibilities times component posteriors."""

    def __init__(self, process: MixedProcess, centers: Tensor, variance: float) -> None:
        super().__init__()
        self.process, self.centers, self.variance = process, centers, variance

    def forward(self, x_t: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        s2 = self.process.sigma(t)[:, None] ** 2
        x = x_t[:, 0]
        responsibility = torch.softmax(-(torch.cdist(x, self.centers) ** 2) / (2 * (self.variance + s2)), dim=1)
        return ((self.variance * x + s2 * (responsibility @ self.centers)) / (self.variance + s2))[:, None]


def runtime_of(denoiser: nn.Module) -> TorchRuntime:
    """A runtime that can step with any denoiser; it cannot score."""
    return TorchRuntime(nn.Identity(), Step(denoiser), "cpu")  # type: ignore[arg-type]


def schedule_of(process: MixedProcess) -> NoiseSchedule:
    root = (process.basis * process.scale).numpy()
    return NoiseSchedule(process.sigma_min, process.sigma_max, process.rho, root)


def kernel_mean_by_loops(x: np.ndarray, rows: np.ndarray, sigma: float) -> np.ndarray:
    result = np.zeros_like(x)
    for i, point in enumerate(x):
        weights = np.array([np.exp(-np.sum((point - row) ** 2) / (2 * sigma**2)) for row in rows])
        for weight, row in zip(weights, rows, strict=True):
            result[i] += weight / weights.sum() * row
    return result
