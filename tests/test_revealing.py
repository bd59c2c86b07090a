"""Drawing categories: the short way of numpy beside the step program, the order, and what is open."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tabdiff.config import SampleConfig
from tabdiff.layout import Layout, Unit
from tabdiff.nn.denoiser import Denoiser
from tabdiff.revealing import Revealer
from tabdiff.sampling import BLOCK_ROWS, Condition, draw
from tests.oracles import isotropic, runtime_of, schedule_of

WIDTHS = (3, 9, 2, 5)
# Categories of several widths, the second with a detail behind it.
UNITS = (
    Unit(0, "category", 0, 3),
    Unit(1, "category", 3, 9),
    Unit(1, "detail", 12, 1),
    Unit(2, "category", 13, 2),
    Unit(3, "category", 15, 5),
)
LAYOUT = Layout(("a", "b", "c", "d"), UNITS)
ROWS = BLOCK_ROWS + 300


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """A network that says something else of every state."""
    torch.manual_seed(0)
    made = Denoiser(isotropic(LAYOUT), torch.zeros(0), torch.eye(0), torch.ones(0), torch.ones(0), width=32, blocks=2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return made.eval()


def revealer_of(denoiser: Denoiser) -> Revealer:
    tensors = {f"score.denoiser.{name}": value.detach().numpy() for name, value in denoiser.state_dict().items()}
    return Revealer(LAYOUT, tensors, blocks=2)


def drawn(denoiser: Denoiser, condition: Condition, *, short: bool, steps: int = 20, **options) -> np.ndarray:
    revealer = revealer_of(denoiser) if short else None
    strength = options.pop("strength", 1.0)
    arguments = (runtime_of(denoiser), LAYOUT, schedule_of(denoiser.process), condition, SampleConfig(steps=steps), 7)
    return np.concatenate(list(draw(*arguments, strength, revealer=revealer, **options)))[:, 0]


def partly_given(rows: int) -> Condition:
    """Each row shows some cells, and may not draw some states."""
    rng = np.random.default_rng(1)
    x = np.zeros((rows, 1, LAYOUT.model_width), np.float32)
    for index in LAYOUT.category_units:
        unit = UNITS[index]
        x[np.arange(rows), 0, unit.start + rng.integers(unit.width, size=rows)] = 1
    x[..., 12] = rng.normal(size=(rows, 1))
    given = rng.random((rows, 1, len(UNITS))) < 0.4
    allowed = (rng.random(x.shape) < 0.8).astype(np.float32)
    for index in LAYOUT.category_units:  # something may be drawn of each
        allowed[:, 0, UNITS[index].start] = 1
    return Condition(x, given, allowed)


@pytest.mark.parametrize("order", [(), (2, 0, 3, 1)])
@pytest.mark.parametrize("steps", [20, 3, 1])
def test_the_short_way_draws_what_the_step_program_draws(denoiser, order, steps):
    for condition, strength in (
        (Condition.nothing(LAYOUT, ROWS), 1.0),
        (partly_given(ROWS), 1.0),
        (partly_given(ROWS), 0.5),
    ):
        options = {"steps": steps, "order": order, "strength": strength}
        short = drawn(denoiser, condition, short=True, **options)
        long = drawn(denoiser, condition, short=False, **options)
        # A state may change where a uniform number falls on the edge between two, to rounding.
        assert (short == long).all(axis=1).mean() > 0.997


def test_given_cells_stay_and_states_that_are_ruled_out_are_not_drawn(denoiser):
    condition = partly_given(ROWS)
    condition.allowed[::3, :, 13:15] = 0  # nothing at all may be drawn of the third category: it stays masked
    x = drawn(denoiser, condition, short=True)
    given = condition.given[:, 0][:, LAYOUT.unit_of_slot]
    np.testing.assert_array_equal(x[given], condition.x[:, 0][given])
    for index in LAYOUT.category_units:
        slots, opened = UNITS[index].slots, ~condition.given[:, 0, index]
        possible = condition.allowed[opened, 0, slots].any(axis=1)
        assert not (x[opened, slots] * (1 - condition.allowed[opened, 0, slots])).any()
        np.testing.assert_array_equal(x[opened, slots].sum(axis=1), possible)


def test_a_row_does_not_depend_on_how_many_are_drawn(denoiser):
    for order in ((), (3, 1, 0, 2)):
        many = drawn(denoiser, Condition.nothing(LAYOUT, 5 * BLOCK_ROWS), short=True, order=order)
        few = drawn(denoiser, Condition.nothing(LAYOUT, BLOCK_ROWS + 5), short=True, order=order)
        assert (many[: len(few)] == few).all(axis=1).mean() > 0.997


def test_the_order_decides_which_category_sees_which(denoiser):
    """The category that is drawn first has the distribution that the network gives a row of which nothing is known."""
    with torch.no_grad():
        expected = denoiser(torch.zeros(1, 1, LAYOUT.model_width), torch.ones(1))[0, 0].numpy()
    x = drawn(denoiser, Condition.nothing(LAYOUT, 20 * BLOCK_ROWS), short=True, order=(3, 1, 0, 2))
    spread = np.sqrt(expected[15:] * (1 - expected[15:]) / len(x))
    assert (np.abs(x[:, 15:].mean(axis=0) - expected[15:]) < 4.5 * spread).all()
    second = slice(3, 12)  # drawn when the fourth is known
    for state in range(5):
        shown = torch.zeros(1, 1, LAYOUT.model_width)
        shown[..., 15 + state] = 1
        with torch.no_grad():
            wanted = denoiser(shown, torch.ones(1))[0, 0, second].numpy()
        own = x[x[:, 15 + state] == 1][:, second]
        spread = np.sqrt(wanted * (1 - wanted) / max(len(own), 1)) + 1e-9
        assert (np.abs(own.mean(axis=0) - wanted) < 4.5 * spread + 1e-3).all()
