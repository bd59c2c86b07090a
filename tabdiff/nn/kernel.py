"""The closed-form denoiser of a finite set of rows.

For data that is exactly the training rows, the best denoiser is a weighted mean of them (Karras et al. 2022, appendix
B.3): no training, exact at every noise level. It scores rows by their distance to the training set, and in the tests
it is the truth that learned denoisers and samplers are held against.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tabdiff.nn.process import MixedProcess

_MISMATCH = 1e-6  # probability that a shown category is not the row's own; keeps a row that matches nowhere defined


def kernel_mean(
    x: Float[Tensor, "b d"], rows: Float[Tensor, "m d"], sigma: float | Float[Tensor, "b 1"], log_weight: Tensor | None = None
) -> Float[Tensor, "b d"]:
    """E[x_0 | x] for x_0 uniform over `rows` and x = x_0 + N(0, sigma^2): softmax of -|x - r|^2 / 2 sigma^2 (eq. B.3)."""
    # |x|^2 is the same for every row and drops out of the softmax.
    logits = (x @ rows.T - 0.5 * rows.square().sum(-1)) / sigma**2
    if log_weight is not None:
        logits = logits + log_weight
    return torch.softmax(logits, dim=-1) @ rows


class KernelDenoiser(nn.Module):
    """The exact denoiser of a mixed table that consists of `rows`, behind the same call as the learned one.

    Args:
        process: the process whose noise is removed; isotropic.
        rows: (M, T, W) clean encoded rows.
    """

    rows: Tensor

    def __init__(self, process: MixedProcess, rows: Float[Tensor, "m t w"]) -> None:
        super().__init__()
        self.process = process
        self.register_buffer("rows", rows)

    def forward(
        self, x_t: Float[Tensor, "b t w"], t: Float[Tensor, " b"], given: Bool[Tensor, "b t u"] | None = None
    ) -> Float[Tensor, "b t w"]:
        """x0_hat: posterior mean of numbers, posterior probabilities of categories; `given` units are returned as they are."""
        layout, process = self.process.layout, self.process
        sigma = process.sigma(t)[:, None]
        numbers = x_t[..., process.number_slots].flatten(1)
        rows = self.rows[..., process.number_slots].flatten(1)
        if given is None:
            given = x_t.new_zeros((*x_t.shape[:-1], len(layout.units)), dtype=torch.bool)
        # A given number is known exactly: it weighs as if its noise level were sigma_min.
        precision = torch.where(given[..., process.number_units].flatten(1), process.sigma_min**-2, sigma**-2)
        logits = -0.5 * (
            (precision * numbers**2).sum(1, keepdim=True)
            - 2 * (precision * numbers) @ rows.T
            + precision @ rows.square().T
        )
        for index in layout.category_units:
            slots = layout.units[index].slots
            shown, own = x_t[..., slots].flatten(1), self.rows[..., slots].flatten(1)
            visible = x_t[..., slots].sum(-1).sum(-1, keepdim=True)
            logits = logits + (visible - shown @ own.T) * torch.log(torch.tensor(_MISMATCH))
        mean = torch.softmax(logits, dim=-1) @ self.rows.flatten(1)
        x0 = mean.view(-1, *self.rows.shape[1:])[..., : layout.model_width]
        return torch.where(given[..., process.unit_of_slot], x_t, x0)
