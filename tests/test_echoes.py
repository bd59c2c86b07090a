"""Numbers that repeat another number of their row."""

import json

import numpy as np
import polars as pl
import pytest

import tabdiff
from tabdiff.codec import Codec
from tabdiff.config import DataConfig, FitConfig
from tabdiff.schema import Schema

ROWS = 6000


def bills(rows: int, seed: int) -> pl.DataFrame:
    """A third of the bills are paid in full, the others in part; `month` and `day` agree by chance alone."""
    rng = np.random.default_rng(seed)
    bill = rng.gamma(2, 5000, rows).round(2)
    full = rng.random(rows) < 1 / 3
    return pl.DataFrame(
        {
            "bill": bill,
            "paid": np.where(full, bill, (bill * rng.random(rows)).round(2)),
            "month": rng.integers(1, 40, rows),
            "day": rng.integers(1, 40, rows),
        }
    )


@pytest.fixture(scope="module")
def codec() -> Codec:
    frame = bills(ROWS, seed=0)
    schema = Schema.infer(frame)
    return Codec.fit(schema.conform(frame), schema, DataConfig())


def redrawn(codec: Codec, frame: pl.DataFrame, given: tuple[str, ...] = ()) -> pl.DataFrame:
    """The rows with every number drawn anew inside its bin, but for the given columns."""
    encoded = codec.encode(codec.schema.conform(frame)).x[:, : codec.layout.model_width]
    mask = codec.layout.cells(np.tile([name in given for name in codec.columns], (frame.height, 1)))
    uniform = np.random.default_rng(1).random(mask.shape, dtype=np.float32)
    return codec.decode(codec.draw_details(encoded, uniform, mask))


def equal(frame: pl.DataFrame) -> float:
    return (frame["bill"] == frame["paid"]).mean()


def test_only_what_repeats_beyond_chance_is_found(codec):
    assert [(echo.column, echo.source) for echo in codec.echoes] == [("paid", "bill")]


@pytest.mark.parametrize("largest", [1e6, 1e8])
def test_large_numbers_are_equal_to_the_last_digit(largest):
    rng = np.random.default_rng(4)
    bill = (largest * rng.random(ROWS)).round(2)
    same = rng.random(ROWS) < 0.4
    frame = pl.DataFrame({"bill": bill, "paid": np.where(same, bill, (largest * rng.random(ROWS)).round(2))})
    schema = Schema.infer(frame)
    codec = Codec.fit(schema.conform(frame), schema, DataConfig())
    assert equal(redrawn(codec, frame)) == pytest.approx(0.4, abs=0.03)


def test_the_order_of_the_rows_does_not_matter():
    frame = bills(30_000, seed=5)
    frame = pl.concat([frame.filter(pl.col("bill") != pl.col("paid")), frame.filter(pl.col("bill") == pl.col("paid"))])
    schema = Schema.infer(frame)
    found = [Codec.fit(schema.conform(rows), schema, DataConfig()).echoes for rows in (frame, frame.reverse())]
    assert [[(echo.column, echo.source) for echo in echoes] for echoes in found] == 2 * [[("paid", "bill")]]


def test_drawn_rows_repeat_as_often_as_real_ones(codec):
    real = bills(ROWS, seed=2)
    drawn = redrawn(codec, real)
    without = Codec(codec.schema, codec.codes)
    assert equal(real) == pytest.approx(1 / 3, abs=0.02)
    assert equal(drawn) == pytest.approx(equal(real), abs=0.02)
    assert equal(redrawn(without, real)) < 0.01  # what they were before
    # Each stays in its bin and spread over it as training values are.
    for name in ("bill", "paid"):
        difference = np.sort(drawn[name].to_numpy()) - np.sort(real[name].to_numpy())
        assert np.abs(difference).mean() < 0.02 * real[name].std()
    states = [codec.codes["paid"].state_of(table["paid"].to_numpy()) for table in (real, drawn)]
    assert (states[0] == states[1]).mean() > 0.999  # rounding to cents may cross an edge


@pytest.mark.parametrize("name", ["bill", "paid"])
def test_given_values_stay_and_are_repeated(codec, name):
    real = bills(ROWS, seed=3)
    drawn = redrawn(codec, real, given=(name,))
    assert (drawn[name] == real[name]).all()
    assert equal(drawn) == pytest.approx(equal(real), abs=0.02)


def test_both_given_values_stay(codec):
    real = bills(200, seed=4)
    assert redrawn(codec, real, given=("bill", "paid"))[["bill", "paid"]].equals(real[["bill", "paid"]])


def test_they_are_kept_with_a_model(codec, tmp_path):
    again = Codec.from_json(json.loads(json.dumps(codec.to_json())), codec.schema)
    assert again.echoes == codec.echoes
    old = {name: value for name, value in codec.to_json().items() if name != "echoes"}
    assert Codec.from_json(old, codec.schema).echoes == ()


def test_samples_repeat_values():
    frame = bills(1000, seed=5)
    options = {"train": {"steps": 150}, "network": {"width": 64}, "data": {"bins": 8}, "score": {"turns": 1}}
    model = tabdiff.fit(frame, FitConfig.model_validate(options))
    drawn = model.sample(1000, seed=0)
    assert equal(drawn) > 0.5 * equal(frame)  # as far as so short a fit brings the two into bins that overlap
    value = frame["bill"][0]
    given = model.sample(300, given={"bill": value}, seed=0)
    assert (given["bill"] == value).all()
    assert 0.1 < equal(given) < 0.7
