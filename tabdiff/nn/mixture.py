"""The closed-form denoiser of a Gaussian mixture.

Between the two other closed forms: the kernel denoiser knows rows and no directions, the Wiener filter directions and one
centre. A mixture knows the directions in which the rows of a region spread, so it notices a row that lies across them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

_ROWS = 8192  # rows that a mixture is fitted on, at most
_ROWS_PER_COMPONENT = 20
_ENTRIES = 2**19  # of all covariances together, so that wide tables have fewer components
_FIT_VARIANCE = (
    0.3  # noise variance under which the rows are seen in the fit; keeps components from shrinking onto rows
)
_NOTHING = 1e-30  # of a variance of about 1


class MixtureView(nn.Module):
    """Reconstruct rows as the mean of the Gaussian components that may have made them, and measure the miss in their metric.

    At noise level s component k is N(mean_k, C_k + s^2), and w_k its share in having made x. The error is
    sum_k w_k (x - mean_k)' (C_k + s^2)^-1 (x - mean_k): the squared noise that would have to be taken away, in units
    of what is expected along each axis of the component.

    Args:
        means: (K, R).
        axes: (K, R, R) eigenvectors of each covariance, in columns.
        variance: (K, R) its eigenvalues.
        log_share: (K,) log share of the rows.
        levels: (L,) noise levels.
    """

    means: Tensor
    axes: Tensor
    variance: Tensor
    log_share: Tensor
    levels: Tensor

    def __init__(
        self,
        means: Float[Tensor, "k r"],
        axes: Float[Tensor, "k r r"],
        variance: Float[Tensor, "k r"],
        log_share: Float[Tensor, " k"],
        levels: Float[Tensor, " l"],
    ) -> None:
        super().__init__()
        stored = {"means": means, "axes": axes, "variance": variance, "log_share": log_share, "levels": levels}
        for name, value in stored.items():
            self.register_buffer(name, value)

    def forward(self, x: Float[Tensor, "b r"]) -> Float[Tensor, "b l r"]:
        """Error at each level, shared out over the slots as at the middle level."""
        count, width = self.means.shape
        into = self.axes.permute(1, 0, 2).reshape(width, count * width)
        start = (self.means[:, None] @ self.axes).reshape(count * width)
        # In double precision: far from all components distances are large, and their differences decide.
        along = torch.addmm(-start.double(), x.double(), into.double()).float()
        variance = self.variance + self.levels[:, None, None] ** 2  # (L, K, R)
        # Sums over the slots of each component are products with a matrix that holds the components in blocks.
        own = torch.eye(count, device=x.device).repeat_interleave(width, dim=0)  # (K R, K)
        inverse = torch.cat([own / one.reshape(-1, 1) for one in variance], dim=1)  # (K R, L K)
        distance = ((along * along) @ inverse).view(-1, len(variance), count)
        share = torch.softmax(self.log_share - 0.5 * (variance.log().sum(-1) + distance), dim=-1)
        totals = (share * distance).sum(-1)
        # The pull towards each component, along its axes, and what it is in each slot: (x - mean) * (pull axes').
        middle = len(variance) // 2
        pull = along * (share[:, middle] @ (own / variance[middle].reshape(-1, 1)).T)
        back = self.axes.permute(0, 2, 1).reshape(count * width, width)
        moved = (self.means[:, None] * self.axes.permute(0, 2, 1)).reshape(count * width, width)
        whole, offset = (pull @ torch.cat([back, moved], dim=1)).chunk(2, dim=-1)
        parts = (x * whole - offset).clamp_min(0) + 1e-30
        return totals[..., None] * (parts / parts.sum(-1, keepdim=True))[:, None]


def fit_mixture(
    rows: Float[Tensor, "n r"], levels: tuple[float, ...], generator: torch.Generator, *, components: int = 16
) -> MixtureView:
    """Fit by expectation-maximisation (Dempster et al. 1977) from k-means++ centres (Arthur & Vassilvitskii 2007).

    Args:
        rows: standardised rows; of many, a random part is used.
        levels: noise levels of the view.
        generator: draws rows and centres.
        components: at most so many, fewer for few rows and for wide tables.
    """
    x = rows[torch.randperm(len(rows), generator=generator)[:_ROWS]].double()
    count = max(1, min(components, len(x) // _ROWS_PER_COMPONENT, _ENTRIES // x.shape[1] ** 2))
    share = nn.functional.one_hot(torch.cdist(x, _centres(x, count, generator)).argmin(1), count).double()
    for _ in range(10):
        size = share.sum(0) + 1e-9
        means = (share.T @ x) / size[:, None]
        covariance = torch.stack([_covariance(x - mean, part) for mean, part in zip(means, share.T, strict=True)])
        variance, axes = torch.linalg.eigh(covariance)
        share = _shares(x, means, axes, variance.clamp_min(0) + _FIT_VARIANCE, size)
    return MixtureView(
        means.float(),
        axes.float().contiguous(),
        variance.clamp_min(0).float(),
        torch.log(size / size.sum()).float(),
        torch.tensor(levels),
    )


def _centres(x: Float64[Tensor, "n r"], count: int, generator: torch.Generator) -> Float64[Tensor, "k r"]:
    """k-means++: far rows are likely to be the next centre; then a few rounds of k-means."""
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    for _ in range(count - 1):
        squared = torch.cdist(x, centres).amin(1).square()
        centres = torch.cat([centres, x[torch.multinomial(squared + 1e-12, 1, generator=generator)]])
    for _ in range(5):
        member = nn.functional.one_hot(torch.cdist(x, centres).argmin(1), count).double()
        size = member.sum(0)[:, None]
        centres = torch.where(size > 0, (member.T @ x) / size.clamp_min(1), centres)
    return centres


def _covariance(centred: Float64[Tensor, "n r"], share: Float64[Tensor, " n"]) -> Float64[Tensor, "r r"]:
    found = (share[:, None] * centred).T @ centred / (share.sum() + 1e-9)
    # A component that one far row has for itself holds the others with shares down to 1e-323; eigenvectors of such are not found.
    return torch.where(found.abs() < _NOTHING, 0.0, found)


def _shares(
    x: Float64[Tensor, "n r"],
    means: Float64[Tensor, "k r"],
    axes: Float64[Tensor, "k r r"],
    variance: Float64[Tensor, "k r"],
    size: Float64[Tensor, " k"],
) -> Float64[Tensor, "n k"]:
    """Probability that each component made each row."""
    distance = [
        (((x - mean) @ axis).square() / spread).sum(1) for mean, axis, spread in zip(means, axes, variance, strict=True)
    ]
    return torch.softmax(size.log() - 0.5 * (variance.log().sum(1) + torch.stack(distance, dim=1)), dim=1)
