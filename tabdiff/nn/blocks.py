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

    Sums over blocks and copies into them are products with the 0/1 matrix of membership: nothing is padded or moved.
    """

    units: Tensor
    slots: Tensor
    membership: Tensor
    member: Tensor
    last: Tensor
    rank: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        units = np.array(layout.category_units, dtype=np.int64)
        membership = np.zeros((layout.model_width, len(units)), np.float32)
        last, rank = np.zeros_like(membership), np.full(layout.model_width, -1.0, np.float32)
        for column, index in enumerate(units):
            slots = layout.units[index].slots
            membership[slots, column] = 1.0
            rank[slots], last[slots.stop - 1, column] = np.arange(slots.stop - slots.start), 1.0
        buffers = {
            "units": units,
            "slots": layout.category_slots,
            "membership": membership,  # (W, K)
            "member": membership.sum(1),  # (W,) 1 where a slot belongs to any category
            "last": last,  # (W, K) 1 where a slot ends a block
            "rank": rank,  # (W,) place of a slot in its block
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value), persistent=False)

    def total(self, x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b k"]:
        """Sum of each block."""
        return x @ self.membership

    def spread(self, values: Float[Tensor, "*b k"]) -> Float[Tensor, "*b w"]:
        """Each category's value in every slot of its block, 0 elsewhere."""
        return values @ self.membership.T

    def masked(self, x: Float[Tensor, "*b w"]) -> Bool[Tensor, "*b k"]:
        """Which categories are in the masked state, all zeros."""
        return self.total(x) == 0

    def log_probability(self, logits: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        """Log-softmax of each block, 0 elsewhere."""
        logits = logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT) * self.member
        # Where there are no categories the logarithm of nothing is not asked for.
        return (logits - self.spread(torch.log(self.total(logits.exp())))) * self.member

    def draw(self, weights: Float[Tensor, "*b w"], u: Float[Tensor, "*b k"]) -> Float[Tensor, "*b w"]:
        """One-hot blocks, drawn by inverse CDF from uniform noise; weights need not sum to 1. A state of weight 0 never."""
        weights = weights * self.member
        cumulated = weights.cumsum(-1)
        # A state of weight 0 adds exactly nothing to the sum, and none is passed once a block's end is reached.
        end = cumulated @ self.last
        start = torch.cat([torch.zeros_like(end[..., :1]), end[..., :-1]], dim=-1)
        threshold = start + u * (end - start)
        below = (cumulated <= self.spread(threshold)) & (cumulated < self.spread(end))
        choice = self.total(below.to(weights.dtype))
        return (self.rank == self.spread(choice)).to(weights.dtype) * self.member


class Details(nn.Module):
    """The exact values of a layout's D binned numbers, to be expected from the probabilities of their bins."""

    bins: Tensor
    middles: Tensor
    slots: Tensor
    others: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        bins = np.zeros((layout.model_width, len(layout.detail_units)), np.float32)
        middles, slots = np.zeros_like(bins), np.zeros_like(bins)
        for column, index in enumerate(layout.detail_units):
            block, detail = layout.units[index - 1], layout.units[index]
            first = block.start + len(block.places) - len(detail.places)  # atoms come first
            rows = slice(first, first + len(detail.places))
            bins[rows, column], middles[rows, column] = 1.0, detail.places
            slots[detail.start, column] = 1.0
        # bins, middles: (W, D) which bins, where their middles lie. others: (W,) 1 where a slot is no detail.
        buffers = {"bins": bins, "middles": middles, "slots": slots, "others": 1 - slots.sum(1)}
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value), persistent=False)

    def expect(self, x0: Float[Tensor, "*b w"]) -> Float[Tensor, "*b w"]:
        """Set details to the mean place of their bins: what the number is expected to be if it is no atom."""
        if not self.slots.shape[1]:
            return x0
        expected = (x0 @ self.middles) / (x0 @ self.bins).clamp_min(1e-12)
        return x0 * self.others + expected @ self.slots.T
