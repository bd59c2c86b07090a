"""The closed-form denoiser of a Gaussian, over windows: the Wiener filter of several sensors at neighbouring times.

Its residual is a soft version of what principal components leave over (`windowed PCA`): a direction of variance lambda keeps
sigma^2 / (lambda + sigma^2) of itself. At several noise levels it needs no number of components; at levels above all
signal it is the distance to the mean.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tabdiff.windows import FARTHEST, SHARING, SIGMAS


class WindowView(nn.Module):
    """Reconstruct a stretch of a window by D(x; sigma) = mean + C (C + sigma^2)^-1 (x - mean), and measure what is left.

    Args:
        mean: (D,) of the stretch, flattened step by step; D = steps x R slots.
        axes: (D, D) eigenvectors of its covariance C, in columns.
        keep: (L, D) sigma^2 / (lambda + sigma^2) at each of L noise levels.
        start, length: where the stretch lies in the window.
        pool: places that are averaged into one step.
    """

    mean: Tensor
    axes: Tensor
    keep: Tensor

    def __init__(
        self,
        mean: Float[Tensor, " d"],
        axes: Float[Tensor, "d d"],
        keep: Float[Tensor, "l d"],
        *,
        start: int,
        length: int,
        pool: int,
    ) -> None:
        super().__init__()
        self.start, self.length, self.pool = start, length, pool
        for name, value in {"mean": mean, "axes": axes, "keep": keep}.items():
            self.register_buffer(name, value)

    def forward(self, x: Float[Tensor, "b t r"]) -> Float[Tensor, "b t r"]:
        """Error of each slot, 0 outside the stretch: the total is the geometric mean over the levels, shared out as at `SHARING`."""
        along = (stretch(x, self.start, self.length, self.pool) - self.mean) @ self.axes
        total = ((along[:, None] * self.keep).square().sum(-1) + 1e-9).log().mean(-1).exp()
        left = (along * self.keep[SHARING]) @ self.axes.T
        share = left.square() + 1e-30
        error = share * (total[:, None] / share.sum(-1, keepdim=True))
        error = error.view(x.shape[0], self.length // self.pool, x.shape[2]) / self.pool
        error = error.repeat_interleave(self.pool, dim=1) if self.pool > 1 else error
        return nn.functional.pad(error, (0, 0, self.start, x.shape[1] - self.start - self.length))


def stretch(x: Float[Tensor, "b t r"], start: int, length: int, pool: int) -> Float[Tensor, "b d"]:
    """Part of windows, neighbouring places averaged, flattened step by step."""
    part = x[:, start : start + length].clamp(-FARTHEST, FARTHEST)
    if pool > 1:
        part = part.reshape(x.shape[0], length // pool, pool, x.shape[2]).mean(2)
    return part.flatten(1)


def fit_window_view(windows: Float[Tensor, "n t r"], *, start: int, length: int, pool: int) -> WindowView:
    """Mean and covariance of the stretch over training windows."""
    x = stretch(windows, start, length, pool).double()
    mean = x.mean(0)
    variance, axes = _eigh((x - mean).T @ (x - mean) / len(x))
    levels = torch.tensor(SIGMAS, dtype=torch.double)[:, None] ** 2
    keep = levels / (variance.clamp_min(0) + levels)
    return WindowView(mean.float(), axes.float().contiguous(), keep.float(), start=start, length=length, pool=pool)


def _eigh(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Eigenvalues and eigenvectors of a symmetric matrix.

    One solver gives up on some matrices that are fine, such as that of 25 sensors of which one moves; another does not.
    """
    try:
        variance, axes = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # public, but not declared
        variance, axes = (torch.from_numpy(part) for part in np.linalg.eigh(matrix.cpu().numpy()))
    return variance.to(matrix.device), axes.to(matrix.device)
