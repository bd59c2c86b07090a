"""The closed-form denoiser of a finite set of rows.

For data that is exactly the training rows, the best denoiser is a weighted mean of them (Karras et al. 2022, appendix
B.3): no training, exact at every noise level. It scores rows by their distance to the training set, and in the tests
it is the truth that learned denoisers and samplers are held against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tabdiff.nn.process import MixedProcess

NEIGHBOURS = 12  # stored rows that reconstruct a row; more reconstruct hardly better and cost more
_SORTED = 256  # stored rows that are sorted at once; of more, the closest of each group is found first
_SPARE = 2  # stored rows that are looked at beyond the nearest
_SAME = 1e-3  # a range of the stored rows, in noise levels, below which they count as the same
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
    measured: Tensor
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
        centred = rows - rows.mean(0)
        ranges = centred.amax(0) - centred.amin(0)
        # Along a combination of slots that is the same in all rows, as the sum of a category's states, no row is nearer:
        # such coordinates come last, behind that of the penalty, and are not looked up.
        differs = ranges > _SAME * levels.min()
        order, looked_up = torch.argsort(~differs, stable=True), int(differs.sum())

        def with_penalty(values: Tensor, dim: int, penalty: Tensor | None = None) -> Tensor:
            """Coordinates of the metric in the order of this view."""
            parts = values.index_select(dim, order).tensor_split([looked_up], dim=dim)
            between = torch.zeros_like(values.narrow(dim, 0, 1)) if penalty is None else penalty
            return torch.cat([parts[0], between, parts[1]], dim=dim)

        derived = {
            "centre": with_penalty(-rows.mean(0), 0).double(),
            "exact": with_penalty(transform, 1).double(),
            "stored": with_penalty(centred, 1, penalty.sqrt()[:, None]),
            "lookup": _lookup(centred[:, differs], 0.5 * (centred.square().sum(-1) + penalty)),
            "low": with_penalty(centred.amin(0), 0).double(),
            "high": with_penalty(centred.amax(0), 0).double(),
            "one": nn.functional.pad(torch.zeros(looked_up), (0, 1), value=1.0),
            # |r T|^2 = sum over slots of r (T T' r): what each slot adds. The penalty is no residual.
            "slots": with_penalty(torch.cat([inverse, transform.T], dim=1), 0),
            "measured": with_penalty(torch.ones(rows.shape[1], 1), 0),
        }
        for name, value in derived.items():
            self.register_buffer(name, value.contiguous(), persistent=False)

    def nearest(self, x: Float[Tensor, "b r"], left_out: Tensor | None = None) -> Int[Tensor, "b n"]:
        """The stored rows nearest to each x, in any order. `left_out` (B,) is the stored row to ignore, -1 for none."""
        return self.find(x, left_out).nearest

    def find(self, x: Float[Tensor, "b r"], left_out: Tensor | None = None) -> Found:
        """The stored rows nearest to each x, and what the view needs to reconstruct x from them.

        A row far outside looks from where the range of the stored rows is nearest to it: in single precision its own
        distances would be rounded to the same number. Single precision only proposes, a few more than asked for, and double
        precision decides: or two engines that round differently would compare a row with different neighbours.
        """
        place = self._place(x)
        edge = torch.clamp(place, self.low, self.high)
        inside, outside = edge.float(), (edge - place).float()
        closeness = (inside[:, : len(self.one)] + self.one) @ self.lookup
        if left_out is not None:
            own = torch.arange(closeness.shape[1], device=x.device) == left_out[:, None]
            closeness = closeness.masked_fill(own, -torch.inf)
        proposed = highest(closeness, min(self.count + _SPARE, max(1, len(self.rows) - 1)))
        # Proposals first, rows second: what is subtracted is then one piece of memory for each proposal.
        difference = nn.functional.embedding(proposed.T, self.stored) - inside
        squared = (difference * difference).double().sum(-1).T
        closest = squared.topk(self.count, largest=False, sorted=False)
        kept = squared <= closest.values.amax(-1, keepdim=True)
        # |d + o|^2 = |d|^2 + 2 d.o + |o|^2: how far from x itself, but for the last term, which is that of all of them.
        squared = squared + (difference * (2 * outside)).double().sum(-1).T
        return Found(proposed.gather(1, closest.indices), proposed, kept, squared, difference, outside)

    def errors(self, residual: Float[Tensor, "b k r1"]) -> tuple[Float[Tensor, "b k r"], Float[Tensor, "b k 1"]]:
        """Square of residuals, and in which shares the slots of the view make it up; shares need not add up to 1."""
        left, right = (residual @ self.slots).chunk(2, dim=-1)
        return (left * right).clamp_min(0), (residual * residual) @ self.measured

    def forward(
        self, x: Float[Tensor, "b r"], nearest: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b k r"], Float[Tensor, "b k 1"]]:
        """`errors` of one noiseless step at each level, from given stored rows.

        Distances are taken from differences, not from products, and added up in double precision: for a row far outside they
        are large, and their differences decide on the weights.
        """
        difference = nn.functional.embedding(nearest.T, self.stored) - self._place(x).float()
        squared = (difference * difference).double().sum(-1).T
        return self.errors(local_weights(squared, self.levels) @ difference.transpose(0, 1))

    def _place(self, x: Float[Tensor, "b r"]) -> Float[Tensor, "b r1"]:
        """x in the metric, as far from the middle of the stored rows, in double precision; 0 where those have their penalty."""
        return torch.addmm(self.centre, x.double(), self.exact)


@dataclass(frozen=True)
class Found:
    """Stored rows near to rows x, as `KernelView.find` gives them.

    Attributes:
        nearest: (B, N) places of the nearest.
        proposed: (B, P) places of those and a few others, which were looked at.
        kept: (B, P) which of them are the nearest.
        squared: (B, P) squared distances of x, up to a constant for each x.
        difference: (P, B, r + 1) what is to be added to where x looks from.
        outside: (B, r + 1) how far that is from x.
    """

    nearest: Int[Tensor, "b n"]
    proposed: Int[Tensor, "b p"]
    kept: Bool[Tensor, "b p"]
    squared: Float[Tensor, "b p"]
    difference: Float[Tensor, "p b r1"]
    outside: Float[Tensor, "b r1"]

    def residual(self, weights: Float[Tensor, "b k p"]) -> Float[Tensor, "b k r1"]:
        """From x to its reconstructions."""
        return weights @ self.difference.transpose(0, 1) + self.outside[:, None]


def _lookup(rows: Float[Tensor, "m r"], offset: Float[Tensor, " m"]) -> Float[Tensor, "r1 columns"]:
    """What (x, 1) is multiplied by for x.r - offset of each row r; filled up to whole groups with rows that are near to nothing."""
    table = torch.cat([rows.T, -offset[None]])
    missing = -len(rows) % _group(len(rows)) if len(rows) > _SORTED else 0
    filling = table.new_zeros(len(table), missing)
    filling[-1] = -torch.finfo(table.dtype).max
    return torch.cat([table, filling], dim=1).contiguous()


def _group(columns: int) -> int:
    """Values of which only the largest is looked at before any are sorted: about the square root of their number."""
    return 1 << (columns.bit_length() - 1) // 2


def highest(values: Float[Tensor, "b m"], count: int) -> Int[Tensor, "b n"]:
    """Places of the `count` largest values of each row, in any order; M is a multiple of its group, or at most 256.

    The `count` groups with the largest maxima hold them all, so only those are sorted: a maximum is taken at the speed of memory, a
    heap of thousands is not.
    """
    size = _group(values.shape[1])
    groups = values.shape[1] // size
    if values.shape[1] <= _SORTED or groups <= count:
        return values.topk(count, dim=-1, sorted=False).indices
    top, best = values.reshape(-1, groups, size).amax(-1).topk(count, dim=-1, sorted=False)
    first = torch.arange(values.shape[0], device=values.device)[:, None] * groups
    inside = nn.functional.embedding(best + first, values.reshape(-1, size)).flatten(1)  # (B, count * size)
    # Few others are as high as the lowest of these maxima. Where all that is lower is alike, a heap takes in hardly more than those.
    least = top.amin(-1, keepdim=True)
    place = torch.maximum(inside, least - (1e-6 * least.abs() + 1e-30)).topk(count, dim=-1, sorted=False).indices
    start = (best - torch.arange(count, device=values.device)) * size
    return start.gather(1, torch.div(place, size, rounding_mode="trunc")) + place


def local_weights(
    squared: Float[Tensor, "b n"], levels: Float[Tensor, " k"], kept: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, "b k n"]:
    """Weights of the N nearest rows: exp(-d^2 / 2 sigma^2), lowered so that the farthest of them weighs nothing.

    The reconstruction is then continuous: a row that rounding lets in or keeps out at the edge makes no difference. Rows
    that are not `kept` are none of the nearest.
    """
    far = squared
    if kept is not None:
        squared, far = squared.masked_fill(~kept, torch.inf), squared.masked_fill(~kept, -torch.inf)
    near, far = squared.amin(-1, keepdim=True), far.amax(-1, keepdim=True)
    rate = -0.5 / levels.square()[:, None]
    beyond, span = (squared - near).float(), (far - near).float()
    weight = torch.exp(beyond[:, None] * rate) - torch.exp(span[:, None] * rate)
    if kept is not None:
        weight = weight.clamp_min(0)
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
