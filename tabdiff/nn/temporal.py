"""The network of windows: dilated convolutions over time, each followed by a mix of features, modulated by the noise level.

Chosen by measurement against an MLP of flattened windows, a transformer over places and a mixer, at equal seconds of a CPU:
it has the lowest held-out loss (docs/decisions/0017).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

_DILATIONS = (1, 2, 4, 8)


class TemporalBlock(nn.Module):
    """A dilated convolution over time and an MLP at each place. Shape: (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, level_width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.before_time = nn.LayerNorm(width, elementwise_affine=False)
        self.before_mix = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(level_width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.time = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Float[Tensor, "b t h"], level: Float[Tensor, "b l"]) -> Float[Tensor, "b t h"]:
        """Add the block's changes to h."""
        scale, shift, gate, scale_mix, shift_mix, gate_mix = self.modulate(level)[:, None].chunk(6, dim=-1)
        z = self.before_time(h) * (1 + scale) + shift
        z = nn.functional.silu(self.time(z.transpose(1, 2)).transpose(1, 2))
        h = h + (1 + gate) * 0.5 * z
        z = self.before_mix(h) * (1 + scale_mix) + shift_mix
        z = self.contract(self.dropout(nn.functional.silu(self.expand(z))))
        mixed: Tensor = h + (1 + gate_mix) * 0.5 * z
        return mixed


class TemporalNetwork(nn.Module):
    """Features of T places in, as many values as a place has slots out; 0 when untrained."""

    def __init__(
        self, features: int, slots: int, length: int, *, level_width: int, width: int, blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.read = nn.Linear(features, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(
            TemporalBlock(width, level_width, _DILATIONS[index % len(_DILATIONS)], dropout) for index in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, slots)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, x: Float[Tensor, "b t f"], level: Float[Tensor, "b l"]) -> Float[Tensor, "b t w"]:
        """Values of slots."""
        h = self.read(x) + self.place
        for block in self.blocks:
            h = block(h, level)
        values: Tensor = self.write(nn.functional.silu(self.norm(h)))
        return values
