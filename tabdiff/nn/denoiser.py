"""The learned denoiser: noisy row in, clean row out.

Preconditioning (Karras et al. 2022, section 5) happens here and nowhere else, in the eigenbasis of the training
covariance: with an untrained network the denoiser of the numbers is already the best linear one (the Wiener filter),
and the network learns what is left. Categories come out as probabilities.

States that lie along a line, the atoms and bins of a number, share what is learned about them: their weights are smooth
functions of their place, plus a part of their own (`Smooth`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tabdiff.layout import Layout
from tabdiff.nn.process import MixedProcess
from tabdiff.nn.processes import Dropout
from tabdiff.nn.temporal import TemporalNetwork

_HARMONICS = 16  # of what is learned along the states of a number
_FREEDOM = 0.3  # how fast a state of a number departs from its neighbours, 1 as fast as a plain category
_TIME_FEATURES = 32
_LEVEL_WIDTH = 64  # wider embeddings of one number cost as much as the blocks and gave nothing


class ResidualBlock(nn.Module):
    """Pre-norm MLP block, modulated by the noise level if there is one. Shape: (B, width) -> (B, width)."""

    def __init__(self, width: int, dropout: float, modulated: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=not modulated)
        self.modulate = nn.Linear(_LEVEL_WIDTH, 2 * width) if modulated else None
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        # A block starts as the identity, so depth costs nothing at the start of training.
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, h: Float[Tensor, "b h"], level: Float[Tensor, "b l"] | None = None) -> Float[Tensor, "b h"]:
        """Add the block's change to h."""
        z = self.norm(h)
        if self.modulate is not None:
            scale, shift = self.modulate(level).chunk(2, dim=-1)
            z = z * (1 + scale) + shift
        change: Tensor = self.contract(self.dropout(nn.functional.silu(self.expand(z))))
        return h + change


class Smooth(nn.Module):
    """Weights of the W slots of a row, smooth along the states of each number.

    A slot in place r (a share of the training rows, 0 to 1) has the weight ``own + sum_k sqrt(2) cos(pi k r) / k a_k``: low
    frequencies first, as in a Gaussian process prior, so that few rows teach something about all bins. `fold` turns the sum
    into plain weights when training is over.
    """

    cosines: Tensor
    freedom: Tensor

    def __init__(self, layout: Layout, width: int, scale: float) -> None:
        super().__init__()
        units = [unit for unit in layout.units if unit.kind == "category" and unit.places]
        cosines = torch.zeros(len(units), layout.model_width, _HARMONICS)
        order = torch.arange(1, _HARMONICS + 1)
        freedom = torch.ones(layout.model_width, 1)
        for index, unit in enumerate(units):
            share = torch.special.ndtr(torch.tensor(unit.places))[:, None]
            rows = slice(unit.start, unit.start + len(unit.places))
            cosines[index, rows] = math.sqrt(2) * torch.cos(math.pi * order * share) / order
            freedom[rows] = _FREEDOM
        # (W, units x harmonics): which unit a slot belongs to is part of the matrix.
        self.register_buffer("cosines", cosines.permute(1, 0, 2).flatten(1), persistent=False)
        self.register_buffer("freedom", freedom, persistent=False)
        self.own = nn.Parameter(scale * torch.randn(layout.model_width, width))
        self.along = nn.Parameter(scale * torch.randn(self.cosines.shape[1], width))

    @torch.no_grad()
    def begin_with(self, weights: Float[Tensor, "w h"]) -> None:
        """Be these weights: of all ways to share them out, the one with the smallest parts."""
        cosines, freedom = self.cosines.double(), self.freedom.double()
        total = cosines @ cosines.T + torch.diag(freedom[:, 0] ** 2)
        solved = torch.linalg.solve(total, weights.double())
        self.own.copy_(freedom * solved)
        self.along.copy_(cosines.T @ solved)

    def forward(self) -> Float[Tensor, "w h"]:
        """The weights."""
        weights: Tensor = torch.addmm(self.own * self.freedom, self.cosines, self.along)
        return weights


class Denoiser(nn.Module):
    """x0_hat = E[x_0 | x_t] for windows of a fixed length; a table has windows of length one.

    Args:
        process: the diffusion process whose noise is removed.
        mean: (T n,) mean of the encoded training numbers, n numbers a row.
        basis: (T n, T n) eigenvectors of their covariance, in columns.
        variance: (T n,) its eigenvalues.
        noise_scale: (T n,) standard deviation of the process noise along each eigenvector at sigma = 1.
        width, blocks, dropout: size of the network: an MLP for rows, `TemporalNetwork` for windows, to which numbers that are
            given are as noisy as others (`tabdiff.codenoising` brings them in).
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor
    noise_scale: Tensor
    visible: Tensor

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
        self.order: tuple[int, ...] = ()  # in which a sampler draws the categories of a row; any if empty
        layout = process.layout
        for name, value in {
            "mean": mean,
            "basis": basis,
            "variance": variance,
            "noise_scale": noise_scale,
        }.items():
            self.register_buffer(name, value)
        self.width, self.depth, self.dropout = width, blocks, dropout
        numbers, units, slots = len(layout.number_units), len(layout.units), layout.model_width
        visible = np.ones(layout.model_width, np.float32)
        visible[[layout.units[index].start for index in layout.detail_units]] = 0.0
        self.register_buffer("visible", torch.as_tensor(visible), persistent=False)
        timed = bool(numbers) or length > 1
        self.level = nn.Sequential(nn.Linear(_TIME_FEATURES, _LEVEL_WIDTH), nn.SiLU()) if timed else None
        # While it is trained, weights along the states of a number are a sum of two; `fold` ends that.
        self.smooth: nn.ModuleDict | None = None
        if length > 1:
            self.network = TemporalNetwork(
                slots + numbers, slots, length, level_width=_LEVEL_WIDTH, width=width, blocks=blocks, dropout=dropout
            )
            return
        self.read = nn.Linear(slots + 2 * numbers, width)
        nn.init.normal_(self.read.weight, std=units**-0.5)
        self.blocks = nn.ModuleList(ResidualBlock(width, dropout, bool(numbers)) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, slots)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    @property
    def last(self) -> nn.Linear:
        """The layer whose bias is what an untrained network says, the same at every place."""
        return self.write if self.length == 1 else self.network.write

    @property
    def multiplications(self) -> int:
        """For one window, about: how long training takes."""
        return self.length * sum(p.numel() for p in self.parameters())

    def unfold(self, *, keep: bool = False) -> None:
        """Share what is learned between neighbouring states of a number from now on; with `keep` the function stays the same."""
        layout = self.process.layout
        if self.length == 1 and any(unit.places for unit in layout.units):
            scale = len(layout.units) ** -0.5
            parts = {"read": Smooth(layout, self.width, scale), "write": Smooth(layout, self.width, 0.0)}
            self.smooth = nn.ModuleDict(parts).to(self.mean.device)
            if keep:
                parts["read"].begin_with(self.read.weight[:, : self.write.out_features].T)
                parts["write"].begin_with(self.write.weight)

    def fold(self) -> None:
        """Make the shared weights plain ones; the function stays the same."""
        if self.smooth is not None:
            with torch.no_grad():
                read, write = self._weights()
                self.read.weight.copy_(read)
                self.write.weight.copy_(write)
            self.smooth = None

    def _weights(self) -> tuple[Float[Tensor, "h i"], Float[Tensor, "w h"]]:
        if self.smooth is None:
            return self.read.weight, self.write.weight
        slots = self.write.out_features
        read = torch.cat([self.smooth["read"]().T, self.read.weight[:, slots:]], dim=1)
        return read, self.smooth["write"]()

    def forward(
        self, x_t: Float[Tensor, "b t w"], t: Float[Tensor, " b"], given: Bool[Tensor, "b t u"] | None = None
    ) -> Float[Tensor, "b t w"]:
        """x0_hat: means of numbers, probabilities of categories. `given` marks units shown without noise; they return as they are."""
        mean, out, _ = self._run(x_t, t, given)
        x0 = self.process.blocks.probability(out)
        if len(self.process.number_slots):
            x0[..., self.process.number_slots] = mean
        return x0 if given is None else torch.where(self.process.slots_of(given), x_t, x0)

    def estimate(
        self, x_t: Float[Tensor, "b t w"], t: Float[Tensor, " b"], given: Bool[Tensor, "b t u"] | None = None
    ) -> tuple[Float[Tensor, "b t n"], Float[Tensor, "b t w"], Float[Tensor, "b tn"]]:
        """What training needs: mean of the numbers, log-probabilities of the categories (0 elsewhere), and c_out.

        c_out (B, T n) is the scale of the network's part along each eigenvector: sqrt(lambda) sigma / sqrt(lambda + sigma^2).
        """
        mean, out, c_out = self._run(x_t, t, given)
        return mean, self.process.blocks.log_probability(out), c_out

    def _run(
        self, x_t: Float[Tensor, "b t w"], t: Float[Tensor, " b"], given: Bool[Tensor, "b t u"] | None
    ) -> tuple[Float[Tensor, "b t n"], Float[Tensor, "b t w"], Float[Tensor, "b tn"]]:
        """Mean of the numbers, logits of the categories, c_out."""
        process, numbers = self.process, len(self.process.layout.number_units)
        seen, level = x_t * self.visible, None
        if self.level is not None:
            level = self.level(time_features(t))
        if not numbers:
            nothing = x_t.new_zeros((x_t.shape[0], self.length, 0))
            return nothing, self._network(seen, [], level), nothing.flatten(1)
        sigma = process.sigma(t)[:, None]
        noise_variance = (sigma * self.noise_scale) ** 2
        total = self.variance + noise_variance
        centred = x_t[..., process.number_slots].flatten(1) - self.mean
        rotated = centred @ self.basis
        c_skip, c_in = self.variance / total, total.rsqrt()
        c_out = (self.variance * noise_variance / total).sqrt()
        if self.length == 1:
            seen[..., process.number_slots] = (rotated * c_in).view(x_t.shape[0], 1, -1)
            # Given numbers enter once more by themselves: scaled with the noisy ones they would vanish at high levels.
            mask = (
                torch.zeros_like(centred)
                if given is None
                else given[..., process.number_units].flatten(1).to(x_t.dtype)
            )
            out = self._network(seen, [centred * mask, mask], level)
            correction = out[..., process.number_slots].flatten(1)
        else:
            # Convolutions go along time, so the network works in places: whitened there, and as they are.
            shape = (x_t.shape[0], self.length, -1)
            seen[..., process.number_slots] = ((rotated * c_in) @ self.basis.T).view(shape)
            out = self._network(seen, [(centred * (1 + sigma**2).rsqrt()).view(shape)], level)
            correction = out[..., process.number_slots].flatten(1) @ self.basis
        mean = self.mean + (c_skip * rotated + c_out * correction) @ self.basis.T
        return mean.view(x_t.shape[0], self.length, -1), out, c_out

    def _network(
        self, seen: Float[Tensor, "b t w"], more: list[Tensor], level: Float[Tensor, "b l"] | None
    ) -> Float[Tensor, "b t w"]:
        if self.length > 1:
            assert level is not None  # windows have noise levels
            values: Tensor = self.network(torch.cat([seen, *more], dim=-1), level)
            return values
        read, write = self._weights()
        h = nn.functional.linear(torch.cat([seen.flatten(1), *more], dim=-1), read, self.read.bias)
        for block in self.blocks:
            h = block(h, level)
        out = nn.functional.linear(nn.functional.silu(self.norm(h)), write, self.write.bias)
        return out[:, None]


def time_features(t: Float[Tensor, " b"]) -> Float[Tensor, "b f"]:
    """Fourier features of t, frequencies from 1/2 to 64 half turns."""
    frequencies = (
        torch.exp(torch.linspace(math.log(0.5), math.log(64.0), _TIME_FEATURES // 2, device=t.device)) * math.pi
    )
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
