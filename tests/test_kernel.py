"""The closed-form views of the score, against brute force and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.neighbors import NearestNeighbors

import tabdiff
from tabdiff.nn.kernel import NEIGHBOURS, KernelView, fit_kernel_view, highest, local_weights
from tabdiff.nn.mixture import MixtureView, fit_mixture
from tabdiff.nn.runtime import build_programs
from tests.oracles import kernel_mean_by_loops


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(rows: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, 3, generator=seeded(seed))
    return x @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.4, 0.3], [0.0, 0.0, 1.0]])


def plain_view(rows: torch.Tensor, level: float) -> KernelView:
    """A view without metric and penalties."""
    identity = torch.eye(rows.shape[1])
    return KernelView(rows, identity, identity, torch.tensor([level]), torch.zeros(len(rows)))


def test_few_neighbours_reconstruct_as_all_rows_do():
    rows, x = correlated(400), correlated(50, seed=1)
    view = plain_view(rows, 0.08)
    _, squared = view(x, view.nearest(x))
    everything = kernel_mean_by_loops(x.double().numpy(), rows.double().numpy(), 0.08)
    expected = ((x.double().numpy() - everything) ** 2).sum(1)
    np.testing.assert_allclose(squared[:, 0, 0], expected, rtol=0.02, atol=2e-5)


def test_nearest_rows_are_those_of_scikit_learn_in_the_metric():
    rows, x = correlated(500), correlated(60, seed=1)
    view = fit_kernel_view(rows, (0.2, 0.3), seeded())
    x = torch.minimum(torch.maximum(x, rows.amin(0)), rows.amax(0))
    inside = torch.clamp(x @ view.transform, view.rows.amin(0), view.rows.amax(0))
    index = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(view.rows.double().numpy())
    theirs, _ = index.kneighbors(inside.double().numpy())
    ours = (inside[:, None] - view.rows[view.nearest(x)]).norm(dim=-1).sort(dim=-1).values
    # Penalties of at most 2 % of a squared neighbour distance may swap rows that are nearly equally far.
    np.testing.assert_allclose(ours, theirs, rtol=0.05)


@pytest.mark.parametrize(
    ("columns", "count"), [(4096, 16), (1024, 12), (272, 16), (272, 3), (257, 16), (40, 16), (16, 16), (3, 2)]
)
def test_the_highest_of_many_are_those_of_sorting_them_all(columns: int, count: int):
    values = torch.randn(33, columns if columns <= 256 else -(-columns // 16) * 16, generator=seeded())
    values[0, :20] = 3.0  # several that are equally high, some of them in one group
    found = values.gather(1, highest(values, count))
    assert torch.equal(found.sort(descending=True).values, values.topk(count, dim=-1).values)
    assert all(len(set(places)) == count for places in highest(values, count).tolist())


@pytest.mark.parametrize("stored", [100, 203, 256, 257, 300, 1000])
def test_rows_that_fill_up_a_group_are_never_found(stored: int):
    rows = correlated(stored)
    view = fit_kernel_view(rows, (0.3,), seeded())
    far = 1e4 * torch.randn(20, 3, generator=seeded(3))
    assert (view.nearest(torch.cat([rows, far])) < stored).all()


def test_rows_far_outside_have_the_neighbours_that_double_precision_finds():
    """In single precision these distances round to steps of 1e-3 and more, and each engine rounds in its own way."""
    rows = correlated(2000) + 500.0
    view = fit_kernel_view(rows, (0.3,), seeded())
    x = 500.0 + 30 * torch.randn(200, 3, generator=seeded(4))
    exact = view.rows.double()
    inside = torch.clamp(x.double() @ view.transform.double(), exact.amin(0), exact.amax(0))
    squared = (inside[:, None] - exact).square().sum(-1) + view.penalty
    assert torch.equal(view.nearest(x).sort().values, squared.topk(NEIGHBOURS, largest=False).indices.sort().values)


@pytest.mark.parametrize("out", [0.0, 30.0, 1e5])
def test_weights_of_neighbours_are_those_of_double_precision_however_far_out(out: float):
    rows = correlated(2000)
    view = fit_kernel_view(rows, (0.2, 0.5), seeded())
    x = rows[:50] + (0.3 + out) * torch.randn(50, 3, generator=seeded(5))
    found = view.find(x)
    place = x.double() @ view.transform.double()
    squared = (place[:, None] - view.rows[found.nearest].double()).square().sum(-1) + view.penalty[found.nearest]
    # In tables of weights, one column for each stored row.
    empty = torch.zeros(50, 2, 2000)
    expected = empty.scatter(2, found.nearest[:, None].expand(-1, 2, -1), local_weights(squared, view.levels))
    weights = local_weights(found.squared, view.levels, found.kept)
    ours = empty.scatter(2, found.proposed[:, None].expand(-1, 2, -1), weights)
    np.testing.assert_allclose(ours, expected, atol=2e-3 if out > 1000 else 1e-4)
    residual = expected.double() @ view.rows.double() - place[:, None]
    shares, total = view.errors(found.residual(weights))
    np.testing.assert_allclose(total[..., 0], residual.square().sum(-1), rtol=1e-3, atol=1e-6)
    assert (shares.sum(-1) > 0.999 * total[..., 0]).all()  # what is negative by rounding counts as nothing


def test_rows_are_looked_up_only_along_what_they_differ_in():
    """States of a category add up to 1 in every stored row, so no row is nearer than another along their sum."""
    state = torch.nn.functional.one_hot(torch.arange(600) % 4).float()
    rows = torch.cat([correlated(600), state], dim=1)
    view = fit_kernel_view(rows, (0.3,), seeded())
    assert len(view.lookup) == 3 + 3 + 1
    x = torch.cat([correlated(40, seed=2), torch.zeros(40, 4)], dim=1)  # a category never seen
    inside = torch.clamp(x.double() @ view.transform.double(), view.rows.amin(0), view.rows.amax(0))
    squared = (inside[:, None] - view.rows.double()).square().sum(-1) + view.penalty
    assert torch.equal(view.nearest(x).sort().values, squared.topk(NEIGHBOURS, largest=False).indices.sort().values)


@pytest.mark.parametrize("stored", [200, 3000])
def test_stored_rows_that_are_alike_are_all_found(stored: int):
    """Copies lie in one group, and as the largest value of it are as large as its maximum."""
    rows = correlated(stored)
    rows[40:48] = rows[40]
    view = fit_kernel_view(rows, (0.3,), seeded())
    assert set(range(40, 48)) <= set(view.nearest(rows[40:41])[0].tolist())


def test_a_model_that_does_not_say_looks_at_sixteen_neighbours():
    options = {"train": {"steps": 2}, "network": {"width": 8}}
    bundle = tabdiff.fit(ties(), tabdiff.FitConfig.model_validate(options)).bundle
    before = replace(bundle, model={name: value for name, value in bundle.model.items() if name != "neighbours"})
    for model, count in ((bundle, NEIGHBOURS), (before, 16)):
        kernels = build_programs(model)[0].kernels
        x = torch.zeros(2, len(bundle.codec.layout.view_columns))
        assert [kernel.nearest(x).shape[1] for kernel in kernels.values()] == [count, count]


def test_a_stored_row_that_is_left_out_is_not_found():
    rows = correlated(100)
    view = fit_kernel_view(rows, (0.3,), seeded())
    own = torch.arange(100)
    assert (view.nearest(rows) == own[:, None]).any(-1).all()
    assert not (view.nearest(rows, own) == own[:, None]).any()


def test_the_farthest_neighbour_weighs_nothing_and_weights_add_up():
    squared = torch.tensor([[0.0, 0.5, 1.0], [2.0, 2.0, 2.0], [1e8, 1e8 + 4, 2e8]])
    weights = local_weights(squared, torch.tensor([0.5, 1.0]))
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
    assert (weights[0, :, 2] < 1e-10).all()
    np.testing.assert_allclose(weights[1], 1 / 3, rtol=1e-6)
    by_hand = np.exp([0.0, -1.0]) - np.exp(-2.0)
    np.testing.assert_allclose(weights[0, 0, :2], by_hand / by_hand.sum(), rtol=1e-5)


def test_metric_makes_left_out_residuals_white():
    rows = correlated(120)
    view = fit_kernel_view(rows, (0.3,), seeded())
    exact = rows.double().numpy()
    distance = NearestNeighbors(n_neighbors=6).fit(exact).kneighbors(exact)[0][:, 1:].mean()
    found = [kernel_mean_by_loops(exact[i : i + 1], np.delete(exact, i, axis=0), 0.3 * distance)[0] for i in range(120)]
    spread = np.cov(((exact - found) @ view.transform.double().numpy()).T, bias=True)
    np.testing.assert_allclose(spread, np.eye(3), atol=1e-3)


def test_errors_of_slots_add_up_and_are_never_negative():
    rows, x = correlated(200), 3 * correlated(40, seed=1)
    view = fit_kernel_view(rows, (0.2, 0.5), seeded())
    nearest = view.nearest(x)
    shares, total = view(x, nearest)
    assert (shares >= 0).all()
    difference = (x @ view.transform)[:, None] - view.rows[nearest]
    weights = local_weights(difference.square().sum(-1) + view.penalty[nearest], view.levels)
    np.testing.assert_allclose(total[..., 0], (weights @ difference).square().sum(-1), rtol=1e-4)
    assert (shares.sum(-1) > 0.999 * total[..., 0]).all()


def random_mixture(components: int, width: int) -> MixtureView:
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(components, width, width))
    variance, axes = np.linalg.eigh(roots @ roots.transpose(0, 2, 1))
    share = np.log(rng.dirichlet(np.ones(components)))
    values = (rng.normal(size=(components, width)), axes, variance, share, np.array([0.5, 1.0]))
    return MixtureView(*(torch.tensor(value, dtype=torch.float32) for value in values))


@pytest.mark.parametrize("components", [1, 4])
def test_mixture_error_is_the_mahalanobis_distance_under_the_posterior(components):
    mixture = random_mixture(components, 3)
    x = np.random.default_rng(1).normal(0, 2, (20, 3))
    found = mixture(torch.tensor(x).float())
    for place, level in enumerate(mixture.levels.tolist()):
        density, distance = [], []
        for mean, axes, variance, share in zip(
            *(value.double().numpy() for value in (mixture.means, mixture.axes, mixture.variance, mixture.log_share)),
            strict=True,
        ):
            covariance = axes @ np.diag(variance + level**2) @ axes.T
            density.append(np.exp(share) * multivariate_normal(mean, covariance).pdf(x))
            distance.append(((x - mean) @ np.linalg.inv(covariance) * (x - mean)).sum(1))
        posterior = np.array(density) / np.sum(density, axis=0)
        np.testing.assert_allclose(found[:, place].sum(-1), (posterior * distance).sum(0), rtol=1e-3)
    assert (found >= 0).all()


def test_mixture_fit_recovers_its_components():
    truth = torch.tensor([[-6.0, 0.0, 0.0], [6.0, 3.0, 0.0]])
    x = torch.cat([truth[0] + correlated(300), truth[1] + correlated(700, seed=1)])
    mixture = fit_mixture(x, (1.0,), seeded(), components=2)
    order = mixture.means[:, 0].argsort()
    np.testing.assert_allclose(mixture.means[order], truth, atol=0.2)
    np.testing.assert_allclose(mixture.log_share.exp()[order], [0.3, 0.7], atol=0.01)
    covariance = mixture.axes @ torch.diag_embed(mixture.variance) @ mixture.axes.mT
    np.testing.assert_allclose(covariance[order[1]], np.cov(correlated(700, seed=1).T), atol=0.1)


def test_mixture_notices_a_row_across_the_direction_of_its_region():
    x = correlated(500)
    mixture = fit_mixture(x, (0.1,), seeded(), components=1)
    values, axes = np.linalg.eigh(np.cov(x.T))
    along = torch.tensor(axes[:, -1] * values[-1] ** 0.5).float()
    across = torch.tensor(axes[:, 0]).float() * along.norm()
    errors = mixture(torch.stack([along, across]))[:, 0].sum(-1)
    assert errors[1] > 3 * errors[0]


@pytest.mark.parametrize("rows", [2, 25])
def test_mixtures_of_few_rows_are_finite(rows):
    mixture = fit_mixture(torch.zeros(rows, 2), (0.3, 1.0), seeded())
    assert torch.isfinite(mixture(torch.tensor([[0.0, 0.0], [1e6, -1e6]]))).all()


@pytest.mark.parametrize("far", [20.6, 20.8])
def test_a_mixture_is_fitted_beside_a_row_that_others_hardly_reach(far):
    # At this distance the shares of all others are the smallest numbers there are, which no eigenvalue routine takes.
    rng = np.random.default_rng(0)
    hot = np.concatenate([np.eye(20)[rng.integers(0, 20, 400)] * 0.7 for _ in range(2)], axis=1)
    rows = np.concatenate([rng.normal(0, 0.01, (400, 1)), hot], axis=1)
    rows[0, 0] = far
    mixture = fit_mixture(torch.tensor(rows).float(), (0.3,), seeded())
    assert torch.isfinite(mixture(torch.tensor(rows).float())).all()


def ties() -> pl.DataFrame:
    """Most rows are equally far from any new one: only categories."""
    rng = np.random.default_rng(0)
    return pl.DataFrame({f"column {i}": rng.choice(list("abcde"), 400) for i in range(5)})


def test_scores_are_a_function_of_the_row_even_among_ties_and_far_out():
    numbers = {f"number {i}": np.random.default_rng(i).normal(size=400) for i in range(2)}
    table = ties().with_columns(**{name: pl.Series(value) for name, value in numbers.items()})
    options = {"train": {"steps": 2}, "network": {"width": 8}}
    model = tabdiff.fit(table, tabdiff.FitConfig.model_validate(options))
    strange = table.head(60).with_columns(pl.col("number 0") * pl.Series(np.logspace(0, 6, 60)))
    strange = strange.with_columns(pl.Series("column 0", ["a"] * 60), pl.Series("column 1", ["b"] * 60))
    whole = model.score(strange).score
    alone = np.concatenate([model.score(strange[i : i + 1]).score for i in range(0, 60, 6)])
    np.testing.assert_allclose(alone, whole[::6], rtol=1e-4, atol=1e-4)
    assert model.calibration.views == ("raw", "neighbours", "rank", "close mixture", "wide mixture")


def test_a_model_without_rows_scores_by_mixture_and_network():
    options = {"train": {"steps": 2}, "network": {"width": 8}, "score": {"kernel_rows": 0}}
    model = tabdiff.fit(ties(), tabdiff.FitConfig.model_validate(options))
    assert model.calibration.views == ("close mixture", "wide mixture", "learned")
    assert not [name for name in model.bundle.tensors if name.endswith(".rows")]
    assert np.isfinite(model.score(ties()).score).all()
