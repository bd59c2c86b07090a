"""The two programs that inference consists of. Torch runs them; ONNX is compiled from them.

Both are pure tensor functions of their arguments. Loops, calibration and decoding happen above, in numpy, once for every
engine (`tabdiff.runtime.Runtime`).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.kernel import kernel_mean


class Score(nn.Module):
    """Reconstruction error per view and column.

    A *view* is one way to reconstruct a row: by the kernel denoiser at one noise level on the raw numbers, or by the
    learned denoiser at one noise level, averaged over a few probes. The probes are a fixed bank stored with the model, so
    the score of a row depends on the row alone. Errors are deviances: squared residuals of numbers, -2 log p of masked
    categories, and `surprise` for a cell that holds something training never showed.

    Args:
        denoiser: the learned denoiser.
        memory: (M, T R) raw view of stored training rows, M may be 0.
        kernel_sigmas: (K,) noise levels of the kernel views.
        levels: (L,) times of the learned views.
        noise: (L, P, T, U) probe bank, P probes per level.
        raw_columns: (R, C) 1 where a raw slot belongs to a column.
        units_to_columns: (U, C) share of a unit's error that each column carries.
        surprise: error of a cell never seen, 2 log(rows + 1).
    """

    memory: Tensor
    kernel_sigmas: Tensor
    levels: Tensor
    noise: Tensor
    raw_columns: Tensor
    units_to_columns: Tensor
    surprise: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        memory: Float[Tensor, "m tr"],
        kernel_sigmas: Float[Tensor, " k"],
        levels: Float[Tensor, " l"],
        noise: Float[Tensor, "l p t u"],
        raw_columns: Float[Tensor, "r c"],
        units_to_columns: Float[Tensor, "u c"],
        surprise: Float[Tensor, ""],
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        buffers = {"memory": memory, "kernel_sigmas": kernel_sigmas, "levels": levels, "noise": noise}
        buffers |= {"raw_columns": raw_columns, "units_to_columns": units_to_columns, "surprise": surprise}
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Float[Tensor, "b t w"], present: Bool[Tensor, "b t u"]) -> Float[Tensor, "b t v c"]:
        """Errors of every view, kernel views first."""
        absent = (~present).to(x.dtype) @ self.units_to_columns * self.surprise
        views = [self.kernel_errors(x), self.learned_errors(x, present)]
        return torch.cat([view + absent[:, :, None, :] for view in views], dim=2)

    def kernel_errors(self, x: Float[Tensor, "b t w"]) -> Float[Tensor, "b t k c"]:
        """Squared residual of one noiseless step of the kernel denoiser, on the raw view."""
        raw = x[..., self.denoiser.process.layout.model_width :]
        residuals = [
            (raw - kernel_mean(raw.flatten(1), self.memory, sigma).view_as(raw)).square() @ self.raw_columns
            for sigma in self.kernel_sigmas
        ]
        return torch.stack(residuals, dim=2) if residuals else x.new_zeros((*x.shape[:2], 0, self.raw_columns.shape[1]))

    def learned_errors(self, x: Float[Tensor, "b t w"], present: Bool[Tensor, "b t u"]) -> Float[Tensor, "b t l c"]:
        """Deviance of one learned denoise per probe; all probes in one batch."""
        process, layout = self.denoiser.process, self.denoiser.process.layout
        levels, probes, length, units = self.noise.shape
        b = len(x)
        noise = self.noise.reshape(-1, 1, length, units).expand(-1, b, -1, -1).reshape(-1, length, units)
        t = self.levels.repeat_interleave(probes * b)
        x0 = x[..., : layout.model_width].repeat(levels * probes, 1, 1)
        x_t = process.corrupt(x0, t, noise)
        mean, log_probability, _ = self.denoiser.estimate(x_t, t)

        errors = x.new_zeros((*x0.shape[:2], units))
        weights = torch.ones_like(errors)
        errors[..., process.number_units] = (mean - x0[..., process.number_slots]).square()
        for index in layout.category_units:
            slots = layout.units[index].slots
            weights[..., index] = (x_t[..., slots].sum(-1) == 0).to(x.dtype)
            errors[..., index] = -2 * (x0[..., slots] * log_probability[..., slots]).sum(-1)
        for index, unit in enumerate(layout.units):
            if unit.gate is not None:  # a number that does not apply has no error
                weights[..., index] = x0[..., unit.gate]
        errors = (errors * weights).view(levels, probes, b, length, units)
        counts = weights.view(levels, probes, b, length, units).sum(1).clamp_min(1.0)
        per_unit = errors.sum(1) / counts * present.to(x.dtype)
        return (per_unit @ self.units_to_columns).permute(1, 2, 0, 3)


class Step(nn.Module):
    """One denoising step: x_t and what is known of the row in, x_s and the estimate of the clean row out."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self,
        x: Float[Tensor, "b t w"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"],
        noise: Float[Tensor, "b t u"],
        reveal: Bool[Tensor, "b t u"],
        given: Bool[Tensor, "b t u"],
        allowed: Float[Tensor, "b t w"],
        previous: Float[Tensor, "b t w"],
        extrapolate: Float[Tensor, " b"],
        churn: Float[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b t w"], Float[Tensor, "b t w"]]:
        """(x_s, x0_hat).

        Args:
            x: noisy model view; `given` units hold their clean values.
            t, s: current and next time, s < t; s = 0 ends at x0_hat.
            noise: fresh noise, N(0, 1) for numbers and U(0, 1) for categories.
            reveal: categories to draw in this step if they are still masked.
            given: units that are known and stay.
            allowed: 1 for category states that may be drawn, 0 for those that may not.
            previous: x0_hat of the step before, for the second-order term of DPM-Solver++(2M).
            extrapolate: its coefficient, 0 for a first-order step.
            churn: 0 deterministic, 1 ancestral.
        """
        process, layout = self.denoiser.process, self.denoiser.process.layout
        x0 = self.denoiser(x, t, given)
        for index in layout.category_units:
            slots = layout.units[index].slots
            block = x0[..., slots] * allowed[..., slots]
            x0[..., slots] = block / block.sum(-1, keepdim=True).clamp_min(1e-12)
        target = x0.clone()
        numbers = x0[..., process.number_slots]
        target[..., process.number_slots] = numbers + extrapolate[:, None, None] * (
            numbers - previous[..., process.number_slots]
        )
        x_s = process.step(x, target, t, s, noise, reveal, churn)
        known = given[..., process.unit_of_slot]
        return torch.where(known, x, x_s), x0
