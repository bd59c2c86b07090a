"""The two programs that inference consists of. Torch runs them; ONNX is compiled from them.

Both are pure tensor functions of their arguments. Loops, calibration and decoding happen above, in numpy, once for every
engine (`tabdiff.runtime.Runtime`).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tabdiff.layout import Layout
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.kernel import KernelView, SubsetKernels, local_weights
from tabdiff.nn.mixture import MixtureView
from tabdiff.nn.wiener import WindowView

_MIXTURES = ("close mixture", "wide mixture")
_NEIGHBOUR_SHARE = 0.5  # how far a row is excused by the errors of its neighbours


class Score(nn.Module):
    """Reconstruction error per view and column.

    A *view* is one way to reconstruct a row: by the kernel denoiser on one scale of the numbers, by a Gaussian mixture, or by
    the learned denoiser, each at a few noise levels (their geometric mean). All kernel views look at the same stored rows,
    the nearest ones in the raw view. All probes are stored with the model, so the score of a row depends on the row alone. Errors are deviances: squared residuals of numbers, -2 log p of masked categories, and
    `surprise` for a cell that holds something training never showed.

    Args:
        denoiser: the learned denoiser.
        kernels: kernel views by name; the raw one, if there are any, finds the nearest rows.
        usual_log: (M,) log error that each row stored in the raw view shows when it is left out; a row is also judged
            against what its neighbours show.
        usual_level: () noise level at which neighbours are weighed.
        mixture: Gaussian mixture of the raw view at two levels, each a view, or None.
        subsets: kernels for contaminated tables, or None; if given they are the only view.
        times: (L,) times of the learned view, L may be 0.
        noise: (L, P, T, U) probe bank, P probes per level.
        bounds: (2, n) range of the numbers in training. The learned denoiser sees rows moved into it, as it knows nothing of
            what lies outside and may copy it; the error is still that of the row itself.
        view_columns: (R, C) 1 where a slot of a distance view belongs to a column.
        units_to_columns: (U, C) share of a unit's error that each column carries.
        surprise: () error of a cell never seen, 2 log(rows + 1).
        windows: views of windows of several places, by name; a table has none, a series no others.
    """

    usual_log: Tensor
    usual_level: Tensor
    times: Tensor
    noise: Tensor
    bounds: Tensor
    view_columns: Tensor
    units_to_columns: Tensor
    surprise: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        kernels: dict[str, KernelView],
        mixture: MixtureView | None,
        subsets: SubsetKernels | None,
        *,
        usual_log: Float[Tensor, " m"],
        usual_level: Float[Tensor, ""],
        times: Float[Tensor, " l"],
        noise: Float[Tensor, "l p t u"],
        bounds: Float[Tensor, "2 n"],
        view_columns: Float[Tensor, "r c"],
        units_to_columns: Float[Tensor, "u c"],
        surprise: Float[Tensor, ""],
        windows: dict[str, WindowView] | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        self.windows = nn.ModuleDict(windows or {})
        self.layout = (
            layout or denoiser.process.layout
        )  # of what is scored: a denoiser of windows may know the calendar beside it
        self.denoiser, self.kernels, self.mixture, self.subsets = denoiser, nn.ModuleDict(kernels), mixture, subsets
        buffers = {"usual_log": usual_log, "usual_level": usual_level, "times": times, "noise": noise, "bounds": bounds}
        buffers |= {"view_columns": view_columns, "units_to_columns": units_to_columns, "surprise": surprise}
        for name, value in buffers.items():
            self.register_buffer(name, value)

    @property
    def views(self) -> list[str]:
        """Names of the views, in order."""
        names = [part for name in self.kernels for part in ((name, "neighbours") if name == "raw" else (name,))]
        names += [*_MIXTURES] * (self.mixture is not None) + ["subsets"] * (self.subsets is not None) + [*self.windows]
        return names + ["learned"] * (len(self.times) > 0)

    def forward(
        self, x: Float[Tensor, "b t w"], present: Bool[Tensor, "b t u"], left_out: Tensor | None = None
    ) -> Float[Tensor, "b t v c"]:
        """Errors of every view. `left_out` (B,) names stored rows to ignore, for calibration on the stored rows."""
        layout = self.layout
        raw = x[..., layout.view("raw")].flatten(1)
        views = self._compared(x, raw, left_out) if len(self.kernels) else []
        if self.mixture is not None:
            views += (self.mixture(raw) @ self.view_columns).unbind(1)  # a view for each of its two levels
        if self.subsets is not None:
            views.append(_merge(self.subsets(x[..., layout.view("asinh")].flatten(1)), self.view_columns))
        errors = [view[:, None] for view in views]
        errors += [view(x[..., layout.view("raw")]) @ self.view_columns for view in self.windows.values()]
        if len(self.times):
            errors.append(self.learned_errors(x, present))
        # The same for every view, and as one product already in the shape of the errors.
        absent = (~present).to(x.dtype) @ (self.units_to_columns * self.surprise).repeat(1, len(errors))
        return torch.stack(errors, dim=2) + absent.view(*absent.shape[:2], len(errors), self.units_to_columns.shape[1])

    def _compared(self, x: Tensor, raw: Float[Tensor, "b r"], left_out: Tensor | None) -> list[Float[Tensor, "b c"]]:
        """Errors of the kernel views, and of the raw one against what the neighbours show."""
        kernels: Any = self.kernels
        found = kernels["raw"].find(raw, left_out)
        levels = torch.cat([kernels["raw"].levels, self.usual_level[None]])
        weights = local_weights(found.squared, levels, found.kept)
        errors = {"raw": kernels["raw"].errors(found.residual(weights[:, :-1]))}
        for name in list(kernels)[1:]:
            errors[name] = kernels[name](x[..., self.layout.view(name)].flatten(1), found.nearest)
        shares, totals = (torch.stack(parts, dim=1) for parts in zip(*errors.values(), strict=True))
        first, *others = _mean_level(shares, totals, self.view_columns).unbind(1)
        usual = nn.functional.embedding(found.proposed, self.usual_log[:, None]).flatten(1)
        excuse = torch.exp(-_NEIGHBOUR_SHARE * (weights[:, -1] * usual).sum(-1, keepdim=True))
        return [first, first * excuse, *others]

    def learned_errors(self, x: Float[Tensor, "b t w"], present: Bool[Tensor, "b t u"]) -> Float[Tensor, "b t c"]:
        """Deviance of one learned denoise per probe; all probes in one batch."""
        process, layout = self.denoiser.process, self.denoiser.process.layout
        levels, probes, length, units = self.noise.shape
        b = x.shape[0]  # not len(x), which a compiled program would take for a constant
        noise = self.noise.reshape(-1, 1, length, units).expand(-1, b, -1, -1).reshape(-1, length, units)
        t = self.times.repeat_interleave(probes * b)
        x0 = x[..., : layout.model_width].repeat(levels * probes, 1, 1)
        inside = x0.clone()
        inside[..., process.number_slots] = torch.minimum(
            torch.maximum(x0[..., process.number_slots], self.bounds[0]), self.bounds[1]
        )
        x_t = process.corrupt(inside, t, noise)
        mean, log_probability, _ = self.denoiser.estimate(x_t, t)

        errors = x.new_zeros((*x0.shape[:2], units))
        weights = torch.ones_like(errors)
        errors[..., process.number_units] = (mean - x0[..., process.number_slots]).square()
        weights[..., process.blocks.units] = process.blocks.masked(x_t).to(x.dtype)
        errors[..., process.blocks.units] = (-2 * process.blocks.total(x0 * log_probability)).clamp_min(0)  # rounding
        for index, unit in enumerate(layout.units):
            if unit.gate is not None:  # a number that does not apply has no error
                weights[..., index] = x0[..., unit.gate]
        errors = (errors * weights).view(levels, probes, b, length, units)
        counts = weights.view(levels, probes, b, length, units).sum(1).clamp_min(1.0)
        per_column = (errors.sum(1) / counts * present.to(x.dtype)) @ self.units_to_columns
        return _merge(per_column.permute(1, 2, 0, 3), torch.eye(per_column.shape[-1], device=x.device))


def _merge(errors: Float[Tensor, "*b k r"], columns: Float[Tensor, "r c"]) -> Float[Tensor, "*b c"]:
    """One error per column from K noise levels: the geometric mean of the totals, shared out as the levels do on average."""
    return _mean_level(errors, errors.sum(-1, keepdim=True), columns)


def _mean_level(
    shares: Float[Tensor, "*b k r"], totals: Float[Tensor, "*b k 1"], columns: Float[Tensor, "r c"]
) -> Float[Tensor, "*b c"]:
    """`_merge` of errors that are known by their totals and by what they are in proportion to."""
    parts = shares @ columns
    parts = parts / parts.sum(-1, keepdim=True).clamp_min(1e-30)
    levels, width = parts.shape[-2:]
    mean = torch.eye(width, device=columns.device).repeat(levels, 1) / levels
    # The floor only keeps exact copies of training rows finite.
    return parts.flatten(-2) @ mean * torch.log(totals.flatten(-2) + 1e-9).mean(-1, keepdim=True).exp()


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
        process = self.denoiser.process
        x0 = self.denoiser(x, t, given)
        blocks, numbers = process.blocks, process.number_slots
        share = blocks.normalise(x0 * (allowed * blocks.member))
        if not len(numbers):
            return process.step(x, share, t, s, noise, reveal, churn), share
        x0 = x0 * (1 - blocks.member) + share
        target = x0.clone()
        target[..., numbers] += extrapolate[:, None, None] * (x0[..., numbers] - previous[..., numbers])
        x_s = process.step(x, target, t, s, noise, reveal, churn)
        return torch.where(process.slots_of(given), x, x_s), x0
