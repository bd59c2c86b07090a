"""The process, denoisers and samplers against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tabdiff.config import SampleConfig, TrainConfig
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.kernel import KernelDenoiser, kernel_mean
from tabdiff.nn.train import train
from tabdiff.sampling import Condition, draw
from tests.oracles import (
    GaussianDenoiser,
    MixtureDenoiser,
    categories_layout,
    isotropic,
    kernel_mean_by_loops,
    numbers_layout,
    runtime_of,
    schedule_of,
)


def gaussian(dimensions: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dimensions, dimensions, generator=generator)
    return torch.randn(dimensions, generator=generator), root @ root.T / dimensions + 0.1 * torch.eye(dimensions)


def learned(layout, mean, covariance, **options):
    variance, basis = torch.linalg.eigh(covariance)
    process = isotropic(layout)
    return Denoiser(process, mean, basis, variance, torch.ones(len(mean)), **options)


def sampled(denoiser, layout, config, rows=4000, seed=0):
    condition = Condition.nothing(layout, rows)
    blocks = draw(runtime_of(denoiser), layout, schedule_of(denoiser.process), condition, config, seed)
    return np.concatenate(list(blocks))[:, 0]


def test_an_untrained_denoiser_is_the_wiener_filter():
    mean, covariance = gaussian(5)
    layout = numbers_layout(5)
    denoiser = learned(layout, mean, covariance, width=16)
    x, t = torch.randn(64, 1, 5) * 3, torch.rand(64)
    truth = GaussianDenoiser(denoiser.process, mean, covariance)(x, t)
    torch.testing.assert_close(denoiser(x, t), truth, rtol=1e-4, atol=1e-4)


def test_kernel_mean_equals_brute_force():
    rng = np.random.default_rng(0)
    x, rows = rng.normal(size=(20, 3)), rng.normal(size=(50, 3))
    for sigma in (0.2, 1.0, 5.0):
        ours = kernel_mean(torch.tensor(x).float(), torch.tensor(rows).float(), sigma).numpy()
        np.testing.assert_allclose(ours, kernel_mean_by_loops(x, rows, sigma), rtol=1e-4, atol=1e-5)


def test_kernel_denoiser_is_bayes_rule_on_a_mixed_table():
    from tabdiff.layout import Layout, Unit

    layout = Layout(("c", "n"), (Unit(0, "category", 0, 2), Unit(1, "number", 2, 1)))
    rows = torch.tensor([[1.0, 0, -1], [1, 0, 0], [0, 1, 2]])[:, None]
    process = isotropic(layout)
    denoiser = KernelDenoiser(process, rows)
    t = torch.tensor([0.5])
    sigma = float(process.sigma(t))
    weight = np.exp(-((0.3 - np.array([-1, 0, 2])) ** 2) / (2 * sigma**2))
    weight /= weight.sum()
    out = denoiser(torch.tensor([[[0.0, 0.0, 0.3]]]), t)[0, 0].numpy()  # category masked
    np.testing.assert_allclose(out, [weight[:2].sum(), weight[2], weight @ [-1, 0, 2]], rtol=1e-5)
    out = denoiser(torch.tensor([[[0.0, 1.0, 0.3]]]), t)[0, 0].numpy()  # category shown: only the third row fits
    np.testing.assert_allclose(out, [0, 1, 2], atol=1e-3)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_samplers_converge_at_second_order(sampler):
    """For Gaussian data the probability-flow ODE has the solution x(0) = mean + sqrt(v / (v + sigma_max^2)) (x(1) - mean)."""
    layout = numbers_layout(1)
    process = isotropic(layout, sigma_min=0.002, sigma_max=10.0)
    mean, variance = torch.tensor([0.7]), torch.tensor([[0.5]])
    denoiser = GaussianDenoiser(process, mean, variance)
    errors, counts = [], [10, 20, 40, 80]
    for steps in counts:
        config = SampleConfig(steps=steps, sampler=sampler)
        result = sampled(denoiser, layout, config, rows=64)
        # The prior of the same seed, replayed.
        rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0,)))
        start = 10.0 * layout.draw(rng, 1024, 1)[:64, 0]
        exact = 0.7 + np.sqrt(0.5 / (0.5 + 100.0)) * (start - 0.7)
        errors.append(np.abs(result - exact).mean())
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order > 1.7, (order, errors)
    assert errors[-1] < 2e-3


def test_ddpm_and_dpm_solver_reach_the_same_distribution():
    layout = numbers_layout(2)
    process = isotropic(layout)
    centers = torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.5, -1.0]])
    denoiser = MixtureDenoiser(process, centers, 0.05)
    fast = sampled(denoiser, layout, SampleConfig(steps=30), seed=1)
    slow = sampled(denoiser, layout, SampleConfig(steps=300, sampler="ddpm"), seed=2)
    rng = np.random.default_rng(0)
    truth = centers.numpy()[rng.integers(3, size=4000)] + np.sqrt(0.05) * rng.normal(size=(4000, 2))
    for column in range(2):
        assert stats.ks_2samp(fast[:, column], slow[:, column]).statistic < 0.04
        assert stats.ks_2samp(fast[:, column], truth[:, column]).statistic < 0.04
    assert np.abs(np.cov(fast.T) - np.cov(truth.T)).max() < 0.1


@pytest.mark.parametrize("steps", [4, 50])
def test_masked_categories_recover_a_known_joint_table(steps):
    """Spread reveal times make even few steps exact: no two categories are drawn at once."""
    joint = np.array([[30, 0, 10], [0, 40, 20]])
    layout = categories_layout(2, 3)
    rows = [
        torch.cat([torch.eye(2)[i], torch.eye(3)[j]]) for i in range(2) for j in range(3) for _ in range(joint[i, j])
    ]
    denoiser = KernelDenoiser(isotropic(layout), torch.stack(rows)[:, None])
    x = sampled(denoiser, layout, SampleConfig(steps=steps), rows=5000)
    assert (x[:, :2].sum(1) == 1).all()
    assert (x[:, 2:].sum(1) == 1).all()
    found = np.einsum("ni,nj->ij", x[:, :2], x[:, 2:])
    assert found[joint == 0].sum() <= 1  # _MISMATCH allows about one in a million
    expected = joint[joint > 0] / joint.sum() * found[joint > 0].sum()
    assert stats.chisquare(found[joint > 0], expected).pvalue > 1e-3


def test_given_cells_stay_and_condition_the_rest():
    layout = categories_layout(2, 3)
    joint = np.array([[30, 0, 10], [0, 40, 20]])
    rows = [
        torch.cat([torch.eye(2)[i], torch.eye(3)[j]]) for i in range(2) for j in range(3) for _ in range(joint[i, j])
    ]
    denoiser = KernelDenoiser(isotropic(layout), torch.stack(rows)[:, None])
    x, given = np.zeros((1, 1, 5), np.float32), np.zeros((1, 1, 2), bool)
    x[..., 0], given[..., 0] = 1.0, True
    condition = Condition(x, given, np.ones((1, 1, 5), np.float32)).repeated(3000)
    blocks = draw(runtime_of(denoiser), layout, schedule_of(denoiser.process), condition, SampleConfig(), 0)
    x = np.concatenate(list(blocks))[:, 0]
    assert (x[:, 0] == 1).all()
    assert abs(x[:, 2].mean() - 0.75) < 0.03


def test_a_row_does_not_depend_on_how_many_are_drawn():
    layout = numbers_layout(2)
    denoiser = MixtureDenoiser(isotropic(layout), torch.tensor([[-1.0, 0.0], [1.0, 1.0]]), 0.1)
    few = sampled(denoiser, layout, SampleConfig(steps=5), rows=7)
    many = sampled(denoiser, layout, SampleConfig(steps=5), rows=2500)
    np.testing.assert_allclose(few, many[:7], atol=1e-6)


def test_learned_denoiser_approaches_the_closed_form_of_a_mixture():
    torch.manual_seed(0)
    layout = numbers_layout(2)
    centers, variance = torch.tensor([[-1.5, 0.0], [1.0, 1.2], [0.5, -1.2]]), 0.02
    rng = torch.Generator().manual_seed(0)
    x = centers[torch.randint(3, (4000,), generator=rng)] + variance**0.5 * torch.randn(4000, 2, generator=rng)
    covariance = torch.cov(x.T)
    denoiser = learned(layout, x.mean(0), covariance, width=64, blocks=2)
    truth = MixtureDenoiser(denoiser.process, centers, variance)
    t = torch.full((2000,), 0.45)
    noisy = x[:2000, None] + denoiser.process.sigma(t)[:, None, None] * torch.randn(2000, 1, 2, generator=rng)
    best = truth(noisy, t)
    before = (denoiser(noisy, t) - best).square().mean()
    present = torch.ones(4000, 1, 2, dtype=torch.bool)
    config = TrainConfig(steps=1200, batch_size=256, condition_share=0.0, patience=100)
    for _ in train(denoiser, x[:3600, None], present[:3600], x[3600:, None], present[3600:], config):
        pass
    with torch.no_grad():
        after = (denoiser(noisy, t) - best).square().mean()
    assert after < 0.05 * before, (before, after)


def test_anisotropic_noise_has_the_training_covariance():
    _mean, covariance = gaussian(3)
    variance, basis = torch.linalg.eigh(covariance)
    layout = numbers_layout(3)
    from tabdiff.nn.process import MixedProcess

    process = MixedProcess(layout, 0.01, 6.0, 7.0, basis, variance.sqrt())
    noise = torch.randn(200_000, 1, 3, generator=torch.Generator().manual_seed(0))
    shaped = process.shape_noise(noise)[:, 0]
    torch.testing.assert_close(torch.cov(shaped.T), covariance, rtol=0.05, atol=0.02)
    x_t = process.corrupt(torch.zeros(4, 1, 3), torch.full((4,), 0.5), noise[:4])
    torch.testing.assert_close(x_t[:, 0], process.sigma(torch.tensor(0.5)) * shaped[:4])
