"""Categories and binned numbers in the network: blocks, shared weights, the likelihood bound, details."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tabdiff.config import TrainConfig
from tabdiff.layout import Layout, Unit
from tabdiff.nn.blocks import Blocks
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.objective import Uncertainty, denoising_loss, draw_noise
from tabdiff.nn.train import planned_batch, planned_steps, train
from tests.oracles import isotropic

PLACES = tuple(np.linspace(-2, 2, 9).tolist())
# A category, a binned number with one atom and its detail, a plain number.
UNITS = (
    Unit(0, "category", 0, 3),
    Unit(1, "category", 3, 9, places=PLACES),
    Unit(1, "detail", 12, 1, places=PLACES[1:]),
    Unit(2, "number", 13, 1),
)
MIXED = Layout(("c", "v", "n"), UNITS)
STATES = Layout(("c", "v"), UNITS[:3])


def denoiser_of(layout: Layout, **options) -> Denoiser:
    count = len(layout.number_units)
    one = torch.ones(count)
    return Denoiser(isotropic(layout), 0 * one, torch.eye(count), one, one, width=16, blocks=1, **options)


def rows(layout: Layout, count: int, seed: int = 0) -> torch.Tensor:
    """A binned number that decides the category, and details and numbers that are noise."""
    rng = np.random.default_rng(seed)
    x = np.zeros((count, 1, layout.model_width), np.float32)
    state = rng.integers(0, 9, count)
    x[np.arange(count), 0, state // 3], x[np.arange(count), 0, 3 + state] = 1.0, 1.0
    x[..., 12:] = rng.normal(size=x[..., 12:].shape)
    return torch.from_numpy(x)


def test_probabilities_are_softmax_of_each_block():
    logits = 3 * torch.randn(50, 1, 14)
    blocks = Blocks(MIXED)
    found, log = blocks.probability(logits), blocks.log_probability(logits)
    for slots in (slice(0, 3), slice(3, 12)):
        torch.testing.assert_close(found[..., slots], logits[..., slots].softmax(-1))
        torch.testing.assert_close(log[..., slots], logits[..., slots].log_softmax(-1))
    assert not found[..., 12:].any()
    assert not log[..., 12:].any()


def test_states_are_drawn_by_inverse_cdf_and_never_one_of_weight_zero():
    rng, blocks = np.random.default_rng(0), Blocks(MIXED)
    weights = rng.random((4000, 14)) * (rng.random((4000, 14)) < 0.4)
    weights[:, [1, 7]] += 0.01  # something can be drawn
    u = rng.random((4000, 2))
    u[:200], u[200:400] = 0.0, 1 - 2.0**-24
    drawn = blocks.draw(torch.tensor(weights).float()[:, None], torch.tensor(u).float()[:, None])[:, 0].numpy()
    for block, slots in enumerate((slice(0, 3), slice(3, 12))):
        one_hot, weight = drawn[:, slots], weights[:, slots]
        assert (one_hot.sum(1) == 1).all()
        assert weight[one_hot == 1].min() > 0
        cumulated = weight.cumsum(1) / weight.sum(1, keepdims=True)
        truth = (cumulated <= u[:, block : block + 1]).sum(1)
        inner = slice(400, None)  # at the ends rounding decides
        assert (one_hot.argmax(1)[inner] != truth[inner]).mean() < 0.001
    assert not drawn[:, 12:].any()


@pytest.mark.parametrize("layout", [STATES, MIXED])
def test_folding_does_not_change_the_function(layout):
    torch.manual_seed(0)
    denoiser = denoiser_of(layout)
    denoiser.unfold()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, t = rows(layout, 30), torch.rand(30)
    before = denoiser(x, t)
    names = set(denoiser.state_dict())
    denoiser.fold()
    torch.testing.assert_close(denoiser(x, t), before, rtol=1e-4, atol=1e-5)
    assert set(denoiser.state_dict()) < names


def test_what_one_bin_learns_its_neighbours_learn_most_of():
    """One gradient step on a single state moves the others by how near they lie."""
    torch.manual_seed(0)
    denoiser = denoiser_of(STATES)
    denoiser.unfold()
    h = torch.randn(16)
    write = denoiser._weights()[1]
    (write[3 + 4] @ h).backward()
    with torch.no_grad():
        for parameter in denoiser.smooth["write"].parameters():
            parameter += parameter.grad
        moved = (denoiser._weights()[1] @ h)[3:12].numpy()
    assert moved.argmax() == 4
    assert moved[3] > moved[2] > moved[1]
    assert moved[5] > moved[6] > moved[7]
    assert min(moved[3], moved[5]) > 0
    assert not (denoiser._weights()[1] @ h)[:3].any()  # the category beside it knows nothing


def test_the_network_never_sees_a_detail():
    torch.manual_seed(0)
    denoiser = denoiser_of(MIXED)
    torch.nn.init.normal_(denoiser.write.weight)
    x, t = rows(MIXED, 20), torch.rand(20)
    other = x.clone()
    other[..., 12] += 5
    shown = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    torch.testing.assert_close(denoiser(x, t)[..., shown], denoiser(other, t)[..., shown])


def test_the_loss_bounds_the_negative_log_likelihood():
    """States that are independent and evenly spread: exactly the entropy, whatever is masked. Learned: the joint entropy."""
    torch.manual_seed(0)
    denoiser, plain = denoiser_of(STATES), Uncertainty(1)
    x = rows(STATES, 20_000)
    generator = torch.Generator().manual_seed(0)
    present = torch.ones(20_000, 1, 3, dtype=torch.bool)
    t = (torch.arange(20_000) + 0.5) / 20_000

    def loss() -> float:
        with torch.no_grad():
            noise = draw_noise(STATES, (20_000, 1), generator)
            return 2 * float(denoising_loss(denoiser, plain, x, present, t, noise))

    # Over uniform t both are shown in 1/3 of the rows, which leaves nothing to say.
    assert loss() == pytest.approx((np.log(3) + np.log(9)) * 2 / 3, rel=0.01)
    config = TrainConfig(steps=300, batch_size=128, patience=100)
    for _ in train(denoiser, x[:16_000], present[:16_000], x[16_000:], present[16_000:], config):
        pass
    # Both masked, 1/3: each at its own entropy. The number masked, 1/6, twice log 3; the category masked, 1/6, is known.
    best = (np.log(3) + np.log(9)) / 3 + 2 * np.log(3) / 6
    assert loss() == pytest.approx(best, rel=0.02)


def test_small_tables_get_small_batches_and_enough_steps():
    config, denoiser = TrainConfig(), denoiser_of(STATES)
    assert [planned_batch(config, rows) for rows in (8, 500, 1000, 100_000)] == [32, 32, 64, 256]
    assert planned_steps(denoiser, config, 200) == 2400
    assert planned_steps(denoiser, config, 10_000) == 30 * 10_000 // 256
    assert planned_steps(denoiser, TrainConfig(steps=7), 10_000) == 7
