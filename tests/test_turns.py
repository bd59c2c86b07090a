"""Which columns may share a step: against enumeration, and a network whose law is known."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
import torch

import tabdiff
from tabdiff.config import SampleConfig
from tabdiff.layout import Layout, Unit
from tabdiff.nn.assemble import likelihood_along
from tabdiff.nn.denoiser import Denoiser
from tabdiff.sampling import BLOCK_ROWS, Condition, draw
from tabdiff.turns import share_steps, turns_of
from tests.oracles import isotropic, runtime_of, schedule_of

LAYOUT = Layout(tuple("abc"), tuple(Unit(i, "category", 2 * i, 2) for i in range(3)))


class Chain(Denoiser):
    """P(a) and P(b) are even; c equals a with a probability of 0.9, whatever b is."""

    def __init__(self) -> None:
        super().__init__(
            isotropic(LAYOUT), torch.zeros(0), torch.eye(0), torch.ones(0), torch.ones(0), width=8, blocks=1
        )

    def _network(self, seen, more, level):
        out = torch.zeros_like(seen)
        agree = float(np.log(9.0))
        out[..., 4:6] = agree * seen[..., 0:2]
        out[..., 0:2] = agree * seen[..., 4:6]
        return out


@pytest.mark.parametrize("seed", range(3))
def test_the_best_cuts_are_those_of_enumeration(seed):
    likelihood = np.random.default_rng(seed).normal(size=(6, 6))
    ways, costs = share_steps(likelihood, tolerance=0.0)
    assert costs[-1] == 0
    assert ways[-1][-1] == 6
    for steps, (way, cost) in enumerate(zip(ways, costs, strict=True), 1):
        every = {}
        for inner in itertools.combinations(range(1, 6), steps - 1):
            ends = (*inner, 6)
            runs = zip((0, *inner), ends, strict=True)
            every[ends] = sum(
                max(0.0, likelihood[j, j] - likelihood[start, j]) for start, end in runs for j in range(start, end)
            )
        assert cost == pytest.approx(min(every.values()))
        assert every[way] == pytest.approx(cost)


def test_the_list_ends_where_steps_cost_nothing_more():
    independent = np.tile([-1.0, -2.0, -0.5], (3, 1))
    assert share_steps(independent) == (((3,),), (0.0,))
    chained = (
        independent + np.triu(np.ones((3, 3)), 0).T
    )  # each column known loses one nat of every later one: nothing to share
    assert len(share_steps(chained)[0]) == 3
    assert turns_of((2, 0, 1), (1, 3)) == [1, 1, 0]


def test_what_is_measured_is_the_likelihood_that_is_known():
    denoiser, rows = Chain().eval(), 4000
    denoiser.order = (0, 1, 2)
    rng = np.random.default_rng(0)
    states = rng.integers(2, size=(rows, 3))
    states[:, 2] = np.where(rng.random(rows) < 0.9, states[:, 0], 1 - states[:, 0])
    x = torch.from_numpy(np.eye(2, dtype=np.float32)[states].reshape(rows, 1, 6))
    present = torch.ones(rows, 1, 3, dtype=torch.bool)
    found = likelihood_along(denoiser, x, present)
    agree = (states[:, 0] == states[:, 2]).mean()
    known = agree * np.log(0.9) + (1 - agree) * np.log(0.1)
    np.testing.assert_allclose(found[0], np.log(0.5), atol=1e-5)
    np.testing.assert_allclose(found[1:, 2], known, atol=1e-5)
    ways, costs = share_steps(found)
    assert ways == ((3,), (1, 3)) or ways == ((3,), (2, 3))  # c waits for a, b may go with either
    assert costs == pytest.approx((known - np.log(0.5), 0.0), abs=1e-6)


def test_rows_are_drawn_in_the_turns_and_given_ones_a_step_each():
    """One step makes a and c independent, two make them agree; a row that shows a cell takes steps of its own."""
    denoiser, rows = Chain().eval(), 8 * BLOCK_ROWS

    def agreement(condition: Condition, ways: tuple[tuple[int, ...], ...], steps: int = 32) -> float:
        arguments = (
            runtime_of(denoiser),
            LAYOUT,
            schedule_of(denoiser.process),
            condition,
            SampleConfig(steps=steps),
            7,
        )
        x = np.concatenate(list(draw(*arguments, order=(0, 1, 2), ways=ways)))[:, 0]
        assert (x.reshape(-1, 3, 2).sum(axis=2) == 1).all()
        return float((x[:, 0] == x[:, 4]).mean())

    nothing = Condition.nothing(LAYOUT, rows)
    margin = 4 * (0.25 / rows) ** 0.5
    assert abs(agreement(nothing, ((3,),)) - 0.5) < margin
    assert abs(agreement(nothing, ((3,), (1, 3))) - 0.9) < margin
    assert abs(agreement(nothing, ((3,), (1, 3)), steps=1) - 0.5) < margin
    given = Condition(nothing.x.copy(), nothing.given.copy(), nothing.allowed)
    given.x[..., 2], given.given[..., 1] = 1.0, True
    assert abs(agreement(given, ((3,),)) - 0.9) < margin


def test_a_fit_keeps_how_its_columns_share_steps_and_draws_so_after_loading(tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.integers(4, size=(2, 5900))
    third = np.where(rng.random(5900) < 0.95, first, rng.integers(4, size=5900))
    frame = pl.DataFrame({name: values.astype(str) for name, values in zip("abc", (first, second, third), strict=True)})
    options = {"train": {"steps": 150}, "network": {"width": 32}, "score": {"kernel_rows": 64, "turns": 1}}
    model = tabdiff.fit(
        frame.with_columns(pl.all().replace_strict(dict(zip("0123", "wxyz", strict=True)))),
        tabdiff.FitConfig.model_validate(options),
    )
    assert len(model.bundle.model["ways"]) == 2  # of three columns two depend on each other
    model.save(tmp_path / "model")
    loaded = tabdiff.load(tmp_path / "model", runtime="torch")
    rows = loaded.sample(3000)
    assert rows.equals(model.sample(3000))
    assert (rows["a"] == rows["c"]).mean() > 0.9
    together = loaded.sample(3000, config=SampleConfig(steps=1, copies="keep"))
    assert (together["a"] == together["c"]).mean() < 0.35
