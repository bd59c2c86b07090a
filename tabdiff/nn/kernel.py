"""The closed-form denoiser of a finite set of rows.

For data that is exactly the training rows, the best denoiser is a weighted mean of them (Karras et al. 2022, appendix
B.3): no training, exact at every noise level. It scores rows by their distance to the training set, and in the tests
it is the truth that learned denoisers and samplers are held against.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tabdiff.nn.process import MixedProcess

NEIGHBOURS = 12  # stored rows that reconstruct a row; more reconstruct hardly better and cost more
_GROUP = 16  # stored rows whose closest one is found before any are sorted
_SPARE = 2  # stored rows that are looked at beyond the nearest
_PENALTY = 0.02  # largest penalty, in squared distances to the nearest rows
_MISMATCH = 1e-6  # probability that a shown category is not the row's own; keeps a row that matches nowhere defined


def kernel_mean(x: Float[Tensor, "b d"], rows: Float[Tensor, "m d"], sigma: float | Tensor) -> Float[Tensor, "b d"]:
    """E[x_0 | x] for x_0 uniform over `rows` and x = x_0 + N(0, sigma^2): softmax of -|x - r|^2 / 2 sigma^2 (eq. B.3)."""
    return torch.softmax(log_kernel(x, rows) / sigma**2, dim=-1) @ rows


def log_kernel(x: Float[Tensor, "b d"], rows: Float[Tensor, "m d"]) -> Float[Tensor, "b m"]:
    """-|x - r|^2 / 2 up to a constant per x, which drops out of any softmax; 0 at the nearest row.

    In double precision: the terms are far larger than their difference, and in single precision a score would depend on
    how its batch was cut.
    """
    x, rows = x.double(), rows.double()
    logits = x @ rows.T - 0.5 * rows.square().sum(-1)
    return (logits - logits.amax(-1, keepdim=True)).float()


class KernelView(nn.Module):
    """Reconstruct rows by the kernel denoiser in one view of the numbers, in a metric of its own, from a few rows near each.

    The metric whitens the residuals that training rows show when each is left out: a direction in which rows are
    reconstructed closely counts for more, and errors are in units of what is usual (a Mahalanobis distance of residuals).
    Noise levels are multiples of the mean distance to the nearest rows, so they mean the same in every table. At these
    levels nearly all weight lies on the nearest rows, so only those are looked at.

    Args:
        rows: (M, R) stored training rows, already in the metric.
        transform: (R, R) takes a row into the metric.
        inverse: (R, R) takes it back.
        levels: (K,) noise levels.
        penalty: (M,) small fixed addition to each row's squared distance, which decides among rows that are equally far.
        count: N, stored rows that reconstruct a row.
    """

    rows: Tensor
    transform: Tensor
    inverse: Tensor
    levels: Tensor
    penalty: Tensor
    centre: Tensor
    exact: Tensor
    stored: Tensor
    lookup: Tensor
    low: Tensor
    high: Tensor
    slots: Tensor
    one: Tensor

    def __init__(
        self,
        rows: Float[Tensor, "m r"],
        transform: Float[Tensor, "r r"],
        inverse: Float[Tensor, "r r"],
        levels: Float[Tensor, " k"],
        penalty: Float[Tensor, " m"],
        count: int = NEIGHBOURS,
    ) -> None:
        super().__init__()
        self.count = min(count, max(1, len(rows) - 1))
        stored = {"rows": rows, "transform": transform, "inverse": inverse, "levels": levels, "penalty": penalty}
        for name, value in stored.items():
            self.register_buffer(name, value)
        pad = nn.functional.pad
        centred = rows - rows.mean(0)
        derived = {
            "centre": pad(rows.mean(0), (0, 1)).double(),
            "exact": pad(transform, (0, 1)).double(),
            "stored": torch.cat([centred, penalty.sqrt()[:, None]], dim=1),
            "lookup": _lookup(centred, 0.5 * (centred.square().sum(-1) + penalty)),
            "low": pad(centred.amin(0), (0, 1)).double(),
            "high": pad(centred.amax(0), (0, 1)).double(),
            "one": pad(torch.zeros(rows.shape[1]), (0, 1), value=1.0),
            # |r T|^2 = sum over slots of r (T T' r): what each slot adds. The penalty is no residual.
            "slots": pad(torch.cat([inverse, transform.T], dim=1), (0, 0, 0, 1)),
        }
        for name, value in derived.items():
            self.register_buffer(name, value.contiguous(), persistent=False)

    def nearest(self, x: Float[Tensor, "b r"], left_out: Tensor | None = None) -> Int[Tensor, "b n"]:
        """The stored rows nearest to each x, in any order. `left_out` (B,) is the stored row to ignore, -1 for none.

        A row far outside looks from where the range of the stored rows is nearest to it: in single precision its own
        distances would be rounded to the same number. Single precision only proposes, a few more than asked for, and double
        precision decides: or two engines that round differently would compare a row with different neighbours.
        """
        inside = torch.clamp(self._place(x), self.low, self.high).float()
        closeness = (inside + self.one) @ self.lookup
        if left_out is not None:
            own = torch.arange(closeness.shape[1], device=x.device) == left_out[:, None]
            closeness = closeness.masked_fill(own, -torch.inf)
        proposed = highest(closeness, min(self.count + _SPARE, max(1, len(self.rows) - 1)))
        # Proposals first, rows second: what is subtracted from is then one piece of memory for each proposal.
        difference = nn.functional.embedding(proposed.T, self.stored) - inside
        squared = (difference * difference).double().sum(-1).T
        return proposed.gather(1, squared.topk(self.count, largest=False, sorted=False).indices)

    def forward(
        self, x: Float[Tensor, "b r"], nearest: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b k r"], Float[Tensor, "b n"]]:
        """Squared residual of one noiseless step at each level, shared out over the slots of the view, and squared distances.

        Distances are taken from differences, not from products, and added up in double precision: for a row far outside they
        are large, and their differences decide on the weights.
        """
        difference = self._place(x).float()[:, None] - nn.functional.embedding(nearest, self.stored)
        squared = (difference * difference).double().sum(-1)
        residual = local_weights(squared, self.levels) @ difference
        left, right = (residual @ self.slots).chunk(2, dim=-1)
        parts = (left * right).clamp_min(0)
        total = (residual * residual)[..., :-1].sum(-1, keepdim=True)
        return parts * (total / parts.sum(-1, keepdim=True).clamp_min(1e-30)), squared

    def _place(self, x: Float[Tensor, "b r"]) -> Float[Tensor, "b r1"]:
        """x in the metric, as far from the middle of the stored rows, in double precision; 0 where those have their penalty."""
        return x.double() @ self.exact - self.centre


def _lookup(rows: Float[Tensor, "m r"], offset: Float[Tensor, " m"]) -> Float[Tensor, "r1 columns"]:
    """What (x, 1) is multiplied by for x.r - offset of each row r; filled up to whole groups with rows that are near to nothing."""
    table = torch.cat([rows.T, -offset[None]])
    missing = -len(rows) % _GROUP if len(rows) > _GROUP**2 else 0
    filling = table.new_zeros(len(table), missing)
    filling[-1] = -torch.finfo(table.dtype).max
    return torch.cat([table, filling], dim=1).contiguous()


def highest(values: Float[Tensor, "b m"], count: int) -> Int[Tensor, "b n"]:
    """Places of the `count` largest values of each row, in any order; M is a multiple of the group, or small.

    The `count` groups with the largest maxima hold them all, so only those are sorted: a maximum is taken at the speed of memory, a
    heap of thousands is not.
    """
    groups = values.shape[1] // _GROUP
    if groups <= max(count, _GROUP):
        return values.topk(count, dim=-1, sorted=False).indices
    top, best = values.reshape(-1, groups, _GROUP).amax(-1).topk(count, dim=-1, sorted=False)
    first = torch.arange(values.shape[0], device=values.device)[:, None] * groups
    inside = nn.functional.embedding(best + first, values.reshape(-1, _GROUP))  # (B, count, group)
    # The maxima come first: nearly all of them are among the highest, and a heap that begins with those hardly changes.
    own = inside.argmax(-1)
    rest = inside.masked_fill(torch.arange(_GROUP, device=values.device) == own[..., None], -torch.inf)
    place = torch.cat([top, rest.flatten(1)], dim=1).topk(count, dim=-1, sorted=False).indices
    other = (place - count).clamp_min(0)
    maximum = (best * _GROUP + own).gather(1, place.clamp_max(count - 1))
    found: Tensor = torch.where(place < count, maximum, best.gather(1, other // _GROUP) * _GROUP + other % _GROUP)
    return found


def local_weights(squared: Float[Tensor, "b n"], levels: Float[Tensor, " k"]) -> Float[Tensor, "b k n"]:
    """Weights of the N nearest rows: exp(-d^2 / 2 sigma^2), lowered so that the farthest of them weighs nothing.

    The reconstruction is then continuous: a row that rounding lets in or keeps out at the edge makes no difference.
    """
    near, far = squared.amin(-1, keepdim=True), squared.amax(-1, keepdim=True)
    rate = -0.5 / levels.square()[:, None]
    beyond, span = (squared - near).float(), (far - near).float()
    weight = torch.exp(beyond[:, None] * rate) - torch.exp(span[:, None] * rate)
    weight = weight + 1e-12  # all equally far: all weigh the same
    return weight / weight.sum(-1, keepdim=True)


def fit_kernel_view(
    rows: Float[Tensor, "m r"], factors: tuple[float, ...], generator: torch.Generator, floor: float = 1e-3
) -> KernelView:
    """Choose metric and noise levels from the stored rows, each left out in turn.

    Args:
        rows: (M, R) standardised rows.
        factors: noise levels in mean distances to the nearest rows.
        generator: draws the penalties.
        floor: smallest eigenvalue of the residual covariance, as a share of the largest.
    """
    identity = torch.eye(rows.shape[1])
    level = 0.3 * neighbour_distance(rows)
    residuals = []
    for start in range(0, len(rows), 512):
        chunk = rows[start : start + 512]
        logits = log_kernel(chunk, rows)
        logits[torch.arange(len(chunk)), torch.arange(start, start + len(chunk))] = -torch.inf
        residuals.append(chunk - torch.softmax(logits / level**2, dim=-1) @ rows)
    residual = torch.cat(residuals).double()
    centred = residual - residual.mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(residual) + 1e-12 * identity)
    deviation = variance.clamp_min(floor * variance.max()).sqrt()
    transform = (axes / deviation).float().contiguous()
    moved = rows @ transform
    inverse = (axes * deviation).T.float().contiguous()
    length = neighbour_distance(moved)
    penalty = _PENALTY * length**2 * torch.rand(len(rows), generator=generator)
    return KernelView(moved, transform, inverse, torch.tensor(factors) * length, penalty)


class SubsetKernels(nn.Module):
    """Kernel denoisers over small random subsets of rows, for training tables that contain anomalies.

    A subset of 32 rows hardly ever holds two anomalies of the same kind, so an anomaly finds nothing like itself there
    (the argument of Isolation Forest, Liu et al. 2008, for a reconstruction). A row never counts as its own neighbour.

    Args:
        rows: (P, S, R) the subsets.
        levels: (P,) noise level of each.
    """

    rows: Tensor
    levels: Tensor

    def __init__(self, rows: Float[Tensor, "p s r"], levels: Float[Tensor, " p"]) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("levels", levels)

    def forward(self, x: Float[Tensor, "b r"]) -> Float[Tensor, "b p r"]:
        """Squared residual of one noiseless step in each subset."""
        squared = (x[:, None, None] - self.rows).square().sum(-1)
        level = self.levels[:, None] ** 2
        logits = torch.where(squared < 1e-6 * level, -1e6, -0.5 * squared / level)
        found = torch.einsum("bps,psr->bpr", torch.softmax(logits, dim=-1), self.rows)
        return (x[:, None] - found).square()


def fit_subset_kernels(
    rows: Float[Tensor, "n r"],
    generator: torch.Generator,
    *,
    subsets: int = 16,
    size: int = 32,
    level: float = 0.5,
) -> SubsetKernels:
    """Draw subsets, drop the half of all rows that they reconstruct worst, and draw again from the better half."""
    trial = _draw_subsets(rows, generator, 4 * subsets, size, level)
    energy = torch.cat([trial(chunk).sum(-1).clamp_min(1e-9).log().mean(-1) for chunk in torch.split(rows, 512)])
    return _draw_subsets(rows[energy <= energy.median()], generator, subsets, size, level)


def _draw_subsets(
    rows: Float[Tensor, "n r"], generator: torch.Generator, count: int, size: int, level: float
) -> SubsetKernels:
    size = min(size, max(2, len(rows) // 2))
    drawn = torch.stack([rows[torch.randperm(len(rows), generator=generator)[:size]] for _ in range(count)])
    distance = torch.cdist(drawn, drawn)
    distance[:, torch.arange(size), torch.arange(size)] = torch.inf
    return SubsetKernels(drawn, level * distance.amin(-1).mean(-1).clamp_min(1e-3))


def neighbour_distance(rows: Float[Tensor, "m r"], neighbours: int = 5) -> Float[Tensor, ""]:
    """Mean distance of a row to its nearest others; the natural length of a table."""
    nearest = []
    for start in range(0, len(rows), 512):
        distance = torch.cdist(rows[start : start + 512], rows)
        distance[torch.arange(len(distance)), torch.arange(start, start + len(distance))] = torch.inf
        nearest.append(distance.topk(min(neighbours, len(rows) - 1), largest=False).values.mean(1))
    # Tables full of duplicates have no distances to speak of; a small one keeps the kernel defined.
    return torch.cat(nearest).mean().clamp_min(1e-3)


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
        return torch.where(process.slots_of(given), x_t, x0)
