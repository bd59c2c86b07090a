"""The diffusion process over mixed columns: the core idea, on one page.

Numbers follow the variance-exploding process of EDM (Karras et al. 2022), ``x_t = x_0 + sigma(t) R n``, with ``R`` the
identity (*gaussian*) or a square root of the shrunk training covariance (*anisotropic*: the noise is shaped like the
data). Categories, among them the bins of numbers, follow masked diffusion (MDLM, Sahoo et al. 2024): at time ``t`` a cell
is masked, all zeros, with probability ``t``. One ``t`` in [0, 1] drives both; 0 is data, 1 is noise. Details have no
part in it. Randomness is always an argument.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tabdiff.layout import Layout
from tabdiff.nn.blocks import Blocks


class MixedProcess(nn.Module):
    """Corrupt rows and walk them back.

    Args:
        layout: which slots are numbers and which are categories.
        sigma_min, sigma_max, rho: the noise levels, ``sigma(t)``.
        basis: (n, n) orthonormal columns, the eigenvectors of the training covariance of the n numbers.
        scale: (n,) standard deviation of the noise along each of them; all 1 is isotropic.
    """

    basis: Tensor
    scale: Tensor
    number_slots: Tensor
    number_units: Tensor
    unit_slots: Tensor

    def __init__(
        self, layout: Layout, sigma_min: float, sigma_max: float, rho: float, basis: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        self.layout, self.sigma_min, self.sigma_max, self.rho = layout, sigma_min, sigma_max, rho
        self.blocks = Blocks(layout)
        self.register_buffer("basis", basis)
        self.register_buffer("scale", scale)
        self.register_buffer("number_slots", torch.as_tensor(layout.number_slots), persistent=False)
        self.register_buffer("number_units", torch.tensor(layout.number_units, dtype=torch.long), persistent=False)
        unit_slots = np.zeros((len(layout.units), layout.model_width), np.float32)
        unit_slots[layout.unit_of_slot, np.arange(layout.model_width)] = 1.0
        self.register_buffer("unit_slots", torch.as_tensor(unit_slots), persistent=False)  # (U, W)

    def sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Noise level at time t (Karras et al. 2022, eq. 5, read as a function of continuous time)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        sigma: Tensor = (low + t * (high - low)) ** self.rho
        return sigma

    def corrupt(
        self,
        x: Float[Tensor, "b t w"],
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b t u"],
        given: Bool[Tensor, "b t u"] | None = None,
    ) -> Float[Tensor, "b t w"]:
        """x_t: noise of level sigma(t) on numbers, a mask with probability t on categories; `given` units stay as they are."""
        shown = noise >= t[:, None, None]
        shown = shown if given is None else shown | given
        # Products with a 0/1 matrix instead of copies slot by slot: several times faster on a CPU.
        x_t = x * (shown.to(x.dtype) @ self.unit_slots)
        if not len(self.number_slots):
            return x_t
        given = torch.zeros_like(shown) if given is None else given
        numbers = x[..., self.number_slots]
        noisy = numbers + self.sigma(t)[:, None, None] * self.shape_noise(noise[..., self.number_units])
        x_t[..., self.number_slots] = torch.where(given[..., self.number_units], numbers, noisy)
        return x_t

    def slots_of(self, units: Bool[Tensor, "*b u"]) -> Bool[Tensor, "*b w"]:
        """A mask over units as one over slots."""
        return (units.to(self.unit_slots.dtype) @ self.unit_slots) > 0

    def shape_noise(self, noise: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        """R n: white noise given the covariance of the process."""
        return (noise * self.scale) @ self.basis.T

    def prior(self, noise: Float[Tensor, "b t u"]) -> Float[Tensor, "b t w"]:
        """x_1: numbers at sigma_max, every category masked."""
        x = noise.new_zeros((*noise.shape[:-1], self.layout.model_width))
        x[..., self.number_slots] = self.sigma_max * self.shape_noise(noise[..., self.number_units])
        return x

    def step(
        self,
        x: Float[Tensor, "b t w"],
        x0: Float[Tensor, "b t w"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        noise: Float[Tensor, "b t u"],
        reveal: Bool[Tensor, "b t u"],
        churn: Float[Tensor, " b"],
    ) -> Float[Tensor, "b t w"]:
        """x_s from x_t and an estimate x0 of the data, s < t.

        Numbers: churn 0 is the deterministic exponential-integrator step (DDIM, Song et al. 2021a, which is the
        first-order DPM-Solver++, Lu et al. 2022), churn 1 the ancestral step of DDPM (Ho et al. 2020) in
        variance-exploding form. s = 0 returns x0. Categories: a masked cell that is to be revealed is drawn from x0's
        block by inverse CDF; a shown cell stays (Sahoo et al. 2024, eq. 6, where a cell is revealed between t and s with
        probability 1 - s/t: when is the caller's choice).
        """
        x_s, blocks = x, self.blocks
        if len(self.number_slots):
            sigma_t, sigma_s = self.sigma(t), torch.where(s > 0, self.sigma(s), 0.0)
            ratio = sigma_s / sigma_t
            up = churn * sigma_s * (1 - ratio**2).sqrt()
            keep = ((sigma_s**2 - up**2).clamp_min(0).sqrt() / sigma_t)[:, None, None]
            x_n, x0_n = x[..., self.number_slots], x0[..., self.number_slots]
            fresh = up[:, None, None] * self.shape_noise(noise[..., self.number_units])
            x_s = x.clone()
            x_s[..., self.number_slots] = keep * x_n + (1 - keep) * x0_n + fresh
        # Masked blocks are all zeros, so what is drawn is added.
        fresh_cells = (blocks.masked(x) & reveal[..., blocks.units]).to(x.dtype)
        return x_s + blocks.draw(x0, noise[..., blocks.units]) * blocks.spread(fresh_cells)
