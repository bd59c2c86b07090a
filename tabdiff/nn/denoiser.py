"""The learned denoiser: noisy row in, clean row out.

Preconditioning (Karras et al. 2022, section 5) happens here and nowhere else, in the eigenbasis of the training
covariance: with an untrained network the denoiser of the numbers is already the best linear one (the Wiener filter),
and the network learns what is left. Categories come out as probabilities.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tabdiff.nn.process import MixedProcess

_TIME_FEATURES = 32
_LEVEL_WIDTH = 64  # wider embeddings of one number cost as much as the blocks and gave nothing


class ResidualBlock(nn.Module):
    """Pre-norm MLP block, modulated by the noise level. Shape: (B, width) -> (B, width)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(_LEVEL_WIDTH, 2 * width)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        # A block starts as the identity, so depth costs nothing at the start of training.
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, h: Float[Tensor, "b h"], level: Float[Tensor, "b l"]) -> Float[Tensor, "b h"]:
        """Add the block's change to h."""
        scale, shift = self.modulate(level).chunk(2, dim=-1)
        z = self.norm(h) * (1 + scale) + shift
        change: Tensor = self.contract(self.dropout(nn.functional.silu(self.expand(z))))
        return h + change


class Denoiser(nn.Module):
    """x0_hat = E[x_0 | x_t] for windows of a fixed length; a table has windows of length one.

    Args:
        process: the diffusion process whose noise is removed.
        mean: (T n,) mean of the encoded training numbers, n numbers a row.
        basis: (T n, T n) eigenvectors of their covariance, in columns.
        variance: (T n,) its eigenvalues.
        noise_scale: (T n,) standard deviation of the process noise along each eigenvector at sigma = 1.
        width, blocks, dropout: size of the network.
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor
    noise_scale: Tensor

    def __init__(
        self,
        process: MixedProcess,
        mean: Float[Tensor, " tn"],
        basis: Float[Tensor, "tn tn"],
        variance: Float[Tensor, " tn"],
        noise_scale: Float[Tensor, " tn"],
        *,
        length: int = 1,
        width: int = 256,
        blocks: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.process, self.length = process, length
        layout = process.layout
        for name, value in {
            "mean": mean,
            "basis": basis,
            "variance": variance,
            "noise_scale": noise_scale,
        }.items():
            self.register_buffer(name, value)
        inputs = length * (layout.model_width + len(layout.number_units) + len(layout.units))
        self.level = nn.Sequential(nn.Linear(_TIME_FEATURES, _LEVEL_WIDTH), nn.SiLU())
        self.read = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, length * layout.model_width)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(
        self, x_t: Float[Tensor, "b t w"], t: Float[Tensor, " b"], given: Bool[Tensor, "b t u"] | None = None
    ) -> Float[Tensor, "b t w"]:
        """x0_hat: means of numbers, probabilities of categories. `given` marks units shown without noise; they return as they are."""
        mean, log_probability, _ = self.estimate(x_t, t, given)
        x0 = log_probability.exp()
        x0[..., self.process.number_slots] = mean
        return x0 if given is None else torch.where(given[..., self.process.unit_of_slot], x_t, x0)

    def estimate(
        self, x_t: Float[Tensor, "b t w"], t: Float[Tensor, " b"], given: Bool[Tensor, "b t u"] | None = None
    ) -> tuple[Float[Tensor, "b t n"], Float[Tensor, "b t w"], Float[Tensor, "b tn"]]:
        """What training needs: mean of the numbers, log-probabilities of the categories (0 elsewhere), and c_out.

        c_out (B, T n) is the scale of the network's part along each eigenvector: sqrt(lambda) sigma / sqrt(lambda + sigma^2).
        """
        process, layout = self.process, self.process.layout
        if given is None:
            given = x_t.new_zeros((*x_t.shape[:-1], len(layout.units)), dtype=torch.bool)
        noise_variance = (process.sigma(t)[:, None] * self.noise_scale) ** 2
        total = self.variance + noise_variance
        centred = x_t[..., process.number_slots].flatten(1) - self.mean
        rotated = centred @ self.basis
        c_skip, c_out, c_in = (
            self.variance / total,
            (self.variance * noise_variance / total).sqrt(),
            total.rsqrt(),
        )

        seen = x_t.clone()
        seen[..., process.number_slots] = (rotated * c_in).view(x_t.shape[0], self.length, -1)
        level = self.level(time_features(t))
        # Given numbers enter once more by themselves: scaled with the noisy ones they would vanish at high levels.
        known = centred * given[..., process.number_units].flatten(1)
        h = self.read(torch.cat([seen.flatten(1), known, given.flatten(1).to(x_t.dtype)], dim=-1))
        for block in self.blocks:
            h = block(h, level)
        out = self.write(nn.functional.silu(self.norm(h))).view(x_t.shape[0], self.length, -1)

        correction = out[..., process.number_slots].flatten(1)
        mean = self.mean + (c_skip * rotated + c_out * correction) @ self.basis.T
        log_probability = torch.zeros_like(out)
        logits = process.blocks.pad(out).masked_fill(~process.blocks.valid, -1e9)
        log_probability[..., process.blocks.slots] = process.blocks.unpad(logits.log_softmax(-1))
        return mean.view(x_t.shape[0], self.length, -1), log_probability, c_out


def time_features(t: Float[Tensor, " b"]) -> Float[Tensor, "b f"]:
    """Fourier features of t, frequencies from 1/2 to 64 half turns."""
    frequencies = (
        torch.exp(torch.linspace(math.log(0.5), math.log(64.0), _TIME_FEATURES // 2, device=t.device)) * math.pi
    )
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
