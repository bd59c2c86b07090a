"""The categories of a layout as one tensor."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tabdiff.layout import Layout

_LARGEST_LOGIT = 30.0  # far beyond what a probability can show, small enough that exponentials need no shift


class Blocks(nn.Module):
    """The one-hot blocks of a layout's K categories, all handled at once, in place among the W slots.

    Sums over blocks are products with the 0/1 matrix of membership: nothing is padded or moved. The matrix has a multiple
    of 16 columns, as products with fewer take a CPU more than twice as long.
    """

    units: Tensor
    slots: Tensor
    membership: Tensor
    spreading: Tensor
    last: Tensor
    member: Tensor
    rank: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        units = np.array(layout.category_units, dtype=np.int64)
        self.count = len(units)
        membership = np.zeros((layout.model_width, -(-(self.count + 1) // 16) * 16), np.float32)
        last, rank = np.zeros_like(membership), np.full(layout.model_width, -1.0, np.float32)
        for column, index in enumerate(units):
            slots = layout.units[index].slots
            membership[slots, column] = 1.0
            rank[slots], last[slots.stop - 1, column] = np.arange(slots.stop - slots.start), 1.0
        buffers = {
            "units": units,
            "slots": layout.category_slots,
            "membership": membership,  # (W, K or more)
            "spreading": membership.T.copy(),  # (K or more, W)
            "last": last,  # (W, K or more) 1 where a slot ends a block
            "member": membership.sum(1),  # (W,) 1 where a slot belongs to any category
            "rank": rank,  # (W,) place of a slot in its block
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value), persistent=False)

    def total(self, x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b k"]:
        """Sum of each block."""
        return (x @ self.membership)[..., : self.count]

    def spread(self, values: Float[Tensor, "*b k"]) -> Float[Tensor, "*b w"]:
        """Each category's value in every slot of its block, 0 elsewhere."""
        return self._spread(nn.functional.pad(values, (0, self.membership.shape[1] - self.count)))

    def _spread(self, values: Float[Tensor, "*b kp"]) -> Float[Tensor, "*b w"]:
        # Exact, as one of the summands is not 0. To pick columns instead took ONNX Runtime ten times as long.
        return values @ self.spreading

    def masked(self, x: Float[Tensor, "*b w"]) -> Bool[Tensor, "*b k"]:
        """Which categories are in the masked state, all zeros."""
        return self.total(x) == 0

    def probability(self, logits: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        """Softmax of each block, 0 elsewhere."""
        return self.normalise(logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT).exp() * self.member)

    def normalise(self, weights: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        """Blocks that sum to 1, or stay 0; slots outside blocks must be 0."""
        return weights * self._spread((weights @ self.membership).clamp_min(1e-30).reciprocal())

    def log_probability(self, logits: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        """Log-softmax of each block, 0 elsewhere."""
        logits = logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT) * self.member
        # A product here and no copy, as the gradient of a copy is slow.
        total = torch.log((logits.exp() @ self.membership).clamp_min(1e-12)) @ self.spreading
        return (logits - total) * self.member

    def draw(self, weights: Float[Tensor, "*b w"], u: Float[Tensor, "*b k"]) -> Float[Tensor, "*b w"]:
        """One-hot blocks, drawn by inverse CDF from uniform noise; weights need not sum to 1. A state of weight 0 never."""
        cumulated = (weights * self.member).cumsum(-1)
        # A state of weight 0 adds exactly nothing to the sum, and none is passed once a block's end is reached.
        end = (cumulated @ self.last)[..., : self.count]
        start = nn.functional.pad(end[..., :-1], (1, 0))
        threshold = start + u * (end - start)
        # A hair below the end, so that the last state with a weight is drawn at the latest.
        threshold = torch.minimum(threshold, end * (1 - 2.0**-23))
        choice = self.total((cumulated <= self.spread(threshold)).to(weights.dtype))
        # Slots outside blocks have rank -1, which is no choice.
        return (self.rank == self.spread(choice)).to(weights.dtype)
