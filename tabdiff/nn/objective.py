"""What training minimises, and how its batches are corrupted.

Numbers: denoising score matching (Vincent 2011) with the weights of EDM (Karras et al. 2022) and learned uncertainty per
level (Karras et al. 2024). Categories: the bound of masked diffusion on the negative log-likelihood. Every source of
randomness is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tabdiff.layout import Layout
from tabdiff.nn.denoiser import Denoiser, time_features


class Uncertainty(nn.Module):
    """u(t): log of the error to be expected at each noise level, per number direction.

    Dividing by exp(u) and adding u (Karras et al. 2024, eq. 14 and 21; Kendall et al. 2018) gives every level and every
    direction the same say, whatever its difficulty, and puts numbers in the units of categories, a log-likelihood.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(time_features(torch.zeros(1))[0]), outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b outputs"]:
        """Clamped so that a column that is known for certain does not take the whole gradient."""
        u: Tensor = self.linear(time_features(t)).clamp_min(-5.0)
        return u


def denoising_loss(
    denoiser: Denoiser,
    uncertainty: Uncertainty,
    x: Float[Tensor, "b t w"],
    present: Bool[Tensor, "b t u"],
    t: Float[Tensor, " b"],
    noise: Float[Tensor, "b t u"],
    given: Bool[Tensor, "b t u"] | None = None,
) -> Float[Tensor, ""]:
    """Weighted denoising error: numbers in units of c_out per eigenvector (EDM's weight), categories by cross-entropy.

    Cells that are given or absent do not count. The mean cross-entropy of the masked categories of a row counts as often as
    the row has categories: over a uniform share of masks that bounds the negative log-likelihood of all of them (Hoogeboom
    et al. 2022, eq. 4).
    """
    process, layout = denoiser.process, denoiser.process.layout
    x_t = process.corrupt(x, t, noise, given)
    mean, log_probability, c_out = denoiser.estimate(x_t, t, given)
    free = present if given is None else present & ~given
    directions = denoiser.mean.numel()
    loss = x.new_zeros(len(x))
    if directions:
        u = uncertainty(t)
        counts = free[..., process.number_units].to(x.dtype)
        error = ((mean - x[..., process.number_slots]) * counts).flatten(1) @ denoiser.basis / c_out
        weight = counts.mean(dim=(1, 2))[:, None]
        loss = loss + (error.square() * torch.exp(-u) + weight * u).sum(-1)
    blocks, categories = process.blocks, len(layout.category_units) * denoiser.length
    masked = (blocks.masked(x_t) & free[..., blocks.units]).to(x.dtype)
    entropy = -blocks.total(x * log_probability) * masked
    counted = present[..., blocks.units].sum(
        (1, 2)
    )  # what a network is only shown, such as the calendar, is not asked for
    loss = loss + counted * entropy.sum((1, 2)) / masked.sum((1, 2)).clamp_min(1.0)
    mean_loss: Tensor = loss.mean() / (directions + categories)
    return mean_loss


def fill_gated(x: Float[Tensor, "b t w"], layout: Layout, generator: torch.Generator) -> Float[Tensor, "b t w"]:
    """Where a number does not apply (the column holds an atom or is missing) its slot is independent N(0, 1).

    Any fixed value there would tell the network the state of the column; independent noise makes (state, value) a
    proper joint distribution whose value is simply not read.
    """
    gated = [unit for unit in layout.units if unit.gate is not None]
    if not gated:
        return x
    slots, gates = [unit.start for unit in gated], [unit.gate for unit in gated]
    filler = torch.randn((*x.shape[:-1], len(gated)), generator=generator, device=generator.device).to(x.device)
    x = x.clone()
    x[..., slots] = torch.where(x[..., gates] == 1, x[..., slots], filler)
    return x


def draw_noise(layout: Layout, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "..."]:
    """N(0, 1) for number units, U(0, 1) for category units, shape (*shape, U)."""
    noise = torch.randn((*shape, len(layout.units)), generator=generator)
    uniform = torch.rand((*shape, len(layout.category_units)), generator=generator)
    noise[..., list(layout.category_units)] = uniform
    return noise


def decouple_categories(
    noise: Float[Tensor, "b t u"], layout: Layout, generator: torch.Generator
) -> Float[Tensor, "b t u"]:
    """In half of the rows, mask categories at a rate of their own instead of with probability t.

    Otherwise the network would hardly ever see a category beside numbers that are still noise, or clean numbers beside
    masked categories, which is what conditional sampling asks it about.
    """
    apart = torch.rand((len(noise), 1, 1), generator=generator) < 0.5
    rate = torch.rand((len(noise), 1, 1), generator=generator)
    categories = list(layout.category_units)
    # 1 is shown and 0 is masked at any t.
    noise[..., categories] = torch.where(apart, (noise[..., categories] >= rate).float(), noise[..., categories])
    return noise


def show_in_order(
    noise: Float[Tensor, "b 1 u"], layout: Layout, order: Sequence[int], share: float, generator: torch.Generator
) -> Float[Tensor, "b 1 u"]:
    """In a `share` of rows, show the first so many categories of `order` instead of a random set of them.

    Those are the rows that a sampler asks about which draws categories in this order; the others keep the network able to
    answer for any set of given cells.
    """
    count = len(order)
    place = torch.empty(count, dtype=torch.long)
    place[list(order)] = torch.arange(count)
    ordered = torch.rand((len(noise), 1, 1), generator=generator) < share
    first = torch.randint(0, count, (len(noise), 1, 1), generator=generator)
    categories = list(layout.category_units)
    # 1 is shown and 0 is masked at any t.
    noise[..., categories] = torch.where(ordered, (place < first).float(), noise[..., categories])
    return noise


def draw_given(
    layout: Layout, present: Bool[Tensor, "b t u"], share: float, generator: torch.Generator
) -> Bool[Tensor, "b t u"] | None:
    """Observation masks, None if nothing is given.

    Of rows with numbers: in a `share` of them each column is given with a probability drawn for that row. A window's numbers are given in
    closed form; given are its categories that are nowhere present in it, such as the calendar: the network is shown them always.
    """
    b, length, _ = present.shape
    if length > 1:
        category = torch.tensor([unit.kind == "category" for unit in layout.units], device=present.device)
        return (category & ~present.any(dim=1, keepdim=True)).expand(present.shape)
    if not layout.number_units:
        return None
    chance = torch.rand((b, 1, 1), generator=generator)
    conditional = torch.rand((b, 1, 1), generator=generator) < share
    columns = torch.rand((b, length, len(layout.columns)), generator=generator) < chance
    given = columns[..., [unit.column for unit in layout.units]] & conditional
    return given.to(present.device) & present
