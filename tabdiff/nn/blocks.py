"""The categories of a layout as one tensor."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tabdiff.layout import Layout


class Blocks(nn.Module):
    """The one-hot blocks of a layout's K categories, all handled at once: padded to the widest, (.., K, M), and back."""

    units: Tensor
    slots: Tensor
    unit_of_slot: Tensor
    membership: Tensor
    padded_slots: Tensor
    valid: Tensor
    more: Tensor
    place: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        padded, slots = layout.padded_blocks, layout.category_slots
        units = np.array(layout.category_units, dtype=np.int64)
        membership = np.zeros((layout.model_width, len(units)), np.float32)
        membership[slots, np.searchsorted(units, layout.unit_of_slot[slots])] = 1.0
        valid = padded >= 0
        buffers = {
            "units": units,
            "slots": slots,
            "unit_of_slot": np.searchsorted(units, layout.unit_of_slot[slots]),  # counted among categories
            "membership": membership,  # (W, K)
            "padded_slots": np.maximum(padded, 0),
            "valid": valid,
            "more": np.concatenate([valid[:, 1:], np.zeros((len(units), min(1, valid.shape[1])), bool)], axis=1),
            "place": np.flatnonzero(valid),
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value), persistent=False)

    def pad(self, x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b k m"]:
        """Blocks side by side; what stands in the padding means nothing."""
        return x[..., self.padded_slots]

    def unpad(self, blocks: Float[Tensor, "*b k m"]) -> Float[Tensor, "*b s"]:
        """Values of the category slots, in order."""
        return blocks.flatten(-2)[..., self.place]

    def total(self, x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b k"]:
        """Sum of each block."""
        return x @ self.membership

    def masked(self, x: Float[Tensor, "*b w"]) -> Bool[Tensor, "*b k"]:
        """Which categories are in the masked state, all zeros."""
        return self.total(x) == 0

    def draw(self, probability: Float[Tensor, "*b w"], u: Float[Tensor, "*b k"]) -> Float[Tensor, "*b s"]:
        """One-hot category slots, drawn by inverse CDF from uniform noise."""
        below = self.pad(probability).cumsum(-1) <= u[..., None]
        # The last state takes the rest, so that rounding of the cumulated sum never leaves a cell without one.
        choice = (below & self.more).sum(-1)
        states = torch.arange(self.more.shape[1], device=u.device)
        return self.unpad((choice[..., None] == states).to(probability.dtype))
