"""The training loop: resume, early stop, events, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch

from tabdiff.config import TrainConfig
from tabdiff.errors import TrainingError
from tabdiff.layout import Layout, Unit
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.objective import draw_noise, fill_gated
from tabdiff.nn.process import MixedProcess
from tabdiff.nn.train import train

LAYOUT = Layout(("g", "c"), (Unit(0, "category", 0, 2), Unit(0, "number", 2, 1, gate=1), Unit(1, "category", 3, 3)))


def table(rows: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    x = torch.zeros(rows, 1, 6)
    atom = torch.rand(rows, generator=rng) < 0.5
    x[:, 0, 0], x[:, 0, 1] = atom.float(), (~atom).float()
    x[:, 0, 2] = torch.where(atom, 0.0, torch.randn(rows, generator=rng))
    x[torch.arange(rows), 0, 3 + atom.long() + (torch.rand(rows, generator=rng) < 0.2).long()] = 1.0
    return x


def new_denoiser() -> Denoiser:
    torch.manual_seed(0)
    one = torch.ones(1)
    process = MixedProcess(LAYOUT, 0.01, 6.0, 7.0, torch.eye(1), one)
    return Denoiser(process, 0 * one, torch.eye(1), one, one, width=32, blocks=2, dropout=0.1)


def run(config: TrainConfig, checkpoint=None, events: int | None = None):
    denoiser, x, held = new_denoiser(), table(500), table(100, seed=1)
    present = torch.ones(500, 1, 3, dtype=torch.bool)
    loop = train(denoiser, x, present, held, present[:100], config, checkpoint=checkpoint)
    return denoiser, list(itertools.islice(loop, events))


def assert_same_weights(first: Denoiser, second: Denoiser) -> None:
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_resume_equals_uninterrupted(tmp_path):
    config = TrainConfig(steps=60, evaluate_every=10, batch_size=64)
    whole, events = run(config)
    assert [event.step for event in events] == [10, 20, 30, 40, 50, 60]
    checkpoint = tmp_path / "checkpoint"
    for stop in (2, 1, 1):  # killed three times, at different moments
        run(config, checkpoint, events=stop)
    resumed, rest = run(config, checkpoint)
    assert [event.step for event in rest] == [50, 60]
    assert [event.held_out for event in rest] == [event.held_out for event in events[4:]]
    assert_same_weights(whole, resumed)


def test_resuming_a_finished_fit_gives_its_weights_again(tmp_path):
    config = TrainConfig(steps=20, evaluate_every=10, batch_size=64)
    first, _ = run(config, tmp_path / "checkpoint")
    again, events = run(config, tmp_path / "checkpoint")
    assert [event.finished for event in events] == ["steps"]
    assert_same_weights(first, again)


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    run(TrainConfig(steps=20, evaluate_every=10, batch_size=64), tmp_path / "checkpoint", events=1)
    with pytest.raises(TrainingError, match=r"learning_rate was 0.004, is 0.1"):
        run(
            TrainConfig(steps=20, evaluate_every=10, batch_size=64, learning_rate=0.1),
            tmp_path / "checkpoint",
        )


def test_a_checkpoint_of_another_table_is_refused(tmp_path):
    config = TrainConfig(steps=20, evaluate_every=10, batch_size=64)
    run(config, tmp_path / "checkpoint", events=1)
    x, present = table(500, seed=9), torch.ones(500, 1, 3, dtype=torch.bool)
    with pytest.raises(TrainingError, match="the table or the options"):
        list(
            train(new_denoiser(), x, present, x, present, config, checkpoint=tmp_path / "checkpoint", identity="other")
        )


def test_an_unreadable_checkpoint_is_refused_with_the_cure(tmp_path):
    config = TrainConfig(steps=20, evaluate_every=10, batch_size=64)
    run(config, tmp_path / "checkpoint", events=1)
    file = tmp_path / "checkpoint" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"cannot be read.*Delete it"):
        run(config, tmp_path / "checkpoint")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    config = TrainConfig(steps=20, evaluate_every=10, batch_size=64)
    first, second = run(config)[0], run(config)[0]
    assert_same_weights(first, second)
    other = run(config.model_copy(update={"seed": 1}))[0]
    assert not torch.equal(first.read.weight, other.read.weight)


def test_it_stops_when_the_held_out_loss_no_longer_falls():
    config = TrainConfig(steps=4000, evaluate_every=5, batch_size=8, patience=2, learning_rate=0.05)
    _, events = run(config)
    assert events[-1].finished == "patience"
    assert events[-1].step < 4000
    assert events[-1].best == min(event.held_out for event in events)


def test_it_stops_when_time_is_up_and_can_be_given_more(tmp_path):
    config = TrainConfig(steps=100_000, evaluate_every=100_000, batch_size=64, time_limit=0.2)
    _, events = run(config, tmp_path / "checkpoint")
    assert events[-1].finished == "time"
    _, more = run(config.model_copy(update={"time_limit": 0.6}), tmp_path / "checkpoint")
    assert more[-1].step > events[-1].step


def test_a_loss_that_is_not_finite_is_an_error_with_the_cure():
    denoiser, x = new_denoiser(), table(100)
    x[3, 0, 2] = torch.nan
    x[3, 0, 1] = 1.0
    present = torch.ones(100, 1, 3, dtype=torch.bool)
    with pytest.raises(TrainingError, match="must stay finite"):
        list(train(denoiser, x, present, x, present, TrainConfig(steps=20, evaluate_every=10, batch_size=64)))


def test_training_lowers_the_held_out_loss():
    _, events = run(TrainConfig(steps=200, evaluate_every=4, batch_size=128, patience=50))
    assert events[-1].best < 0.95 * events[0].held_out


def test_a_number_that_does_not_apply_is_filled_with_independent_noise():
    x = fill_gated(table(5000), LAYOUT, torch.Generator().manual_seed(7))[:, 0]
    atom = x[:, 0] == 1
    torch.testing.assert_close(x[atom, 2].std(), torch.tensor(1.0), rtol=0.05, atol=0)
    torch.testing.assert_close(x[~atom], table(5000)[~atom, 0])


def test_noise_is_normal_for_numbers_and_uniform_for_categories():
    noise = draw_noise(LAYOUT, (20_000, 1), torch.Generator().manual_seed(0))[:, 0]
    for unit in (0, 2):
        assert noise[:, unit].min() >= 0
        assert noise[:, unit].max() < 1
        assert abs(noise[:, unit].mean() - 0.5) < 0.01
    assert abs(noise[:, 1].std() - 1) < 0.02
