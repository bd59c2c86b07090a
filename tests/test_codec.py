"""Encoding: round trips, states, and what happens to cells that training never showed."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.preprocessing import QuantileTransformer

from tabdiff.codec import Codec, trim_outermost
from tabdiff.codes import OTHER, CategoryCode, NumberCode
from tabdiff.config import DataConfig
from tabdiff.errors import ConfigError
from tabdiff.schema import Schema

rng = np.random.default_rng(0)


def fit(frame: pl.DataFrame, **options: object) -> Codec:
    schema = Schema.infer(frame)
    return Codec.fit(schema.conform(frame), schema, DataConfig(**options))


def round_trip(frame: pl.DataFrame, **options: object) -> pl.DataFrame:
    codec = fit(frame, **options)
    return codec.decode(codec.encode(codec.schema.conform(frame)).x)


def test_every_kind_comes_back():
    n = 400
    start = datetime(2024, 1, 1)
    frame = pl.DataFrame(
        {
            "price": rng.lognormal(3, 1, n).round(2),
            "ratio": rng.normal(size=n),
            "count": rng.poisson(300, n),
            "small": rng.integers(0, 5, n).astype(np.int8),
            "kind": rng.choice(["a", "b", "ü"], n),
            "on": rng.random(n) < 0.3,
            "when": [start + timedelta(hours=int(h)) for h in rng.integers(0, 9000, n)],
            "day": [date(2023, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, 700, n)],
            "gain": np.where(rng.random(n) < 0.6, 0.0, rng.gamma(2, 100, n).round(1)),
            "gap": [None if u < 0.2 else float(v) for u, v in zip(rng.random(n), rng.normal(size=n), strict=True)],
            "gap_kind": [None if u < 0.2 else "yes" for u in rng.random(n)],
        }
    )
    frame = frame.with_columns(single=pl.lit(7, dtype=pl.UInt16), narrow=pl.col("ratio").cast(pl.Float32))
    assert_frame_equal(round_trip(frame), frame, abs_tol=1e-5)


numbers = st.lists(
    st.one_of(st.none(), st.integers(-50, 50).map(float), st.floats(-1e6, 1e6, allow_nan=False)),
    min_size=12,
    max_size=80,
)


@settings(max_examples=60, deadline=None)
@given(numbers)
def test_numbers_of_any_shape_come_back(values):
    series = pl.Series("v", values, dtype=pl.Float64)
    if series.null_count() == len(series):
        return
    code = NumberCode.fit(series.fill_null(np.nan).to_numpy(), DataConfig())
    seen = series.drop_nulls().to_numpy()
    rest = seen[~np.isin(seen, code.atoms)]
    span = np.ptp(rest) if len(rest) else 0.0
    if len(rest):
        np.testing.assert_allclose(code.rank.inverse(code.rank(rest)), rest, atol=1e-9 * max(span, 1))
    assert code.has_missing == bool(series.null_count())


def test_rank_to_normal_agrees_with_scikit_learn():
    values = rng.gamma(2, 3, 2000)
    code = NumberCode.fit(values, DataConfig(knots=2000))
    ours = code.rank(values)
    theirs = QuantileTransformer(n_quantiles=2000, output_distribution="normal").fit_transform(values[:, None])[:, 0]
    inner = np.abs(ours) < 2.5  # scikit-learn sends the extremes to +-5.2, we to the normal score of their rank
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=0.02)
    assert stats.kstest(ours, "norm").statistic < 0.01


def test_an_outlier_stays_as_far_out_as_it_is():
    values = rng.normal(10, 2, 1000)
    code = NumberCode.fit(values, DataConfig())
    near, far = code.rank(np.array([values.max() + 2 * code.scale, values.max() + 20 * code.scale]))
    assert far - near == pytest.approx(18, rel=1e-6)
    assert code.rank.inverse(np.array([far]))[0] == pytest.approx(values.max() + 20 * code.scale)


def test_repeated_values_are_atoms_and_few_levels_are_all_atoms():
    inflated = np.where(rng.random(1000) < 0.7, 0.0, rng.gamma(2, 100, 1000))
    code = NumberCode.fit(inflated, DataConfig())
    assert code.atoms == (0.0,)
    assert code.has_value
    levels = NumberCode.fit(rng.integers(1, 6, 1000).astype(float), DataConfig())
    assert levels.atoms == (1, 2, 3, 4, 5)
    assert not levels.has_value
    plain = NumberCode.fit(rng.normal(size=1000), DataConfig(bins=0))
    assert plain.states == 0


def test_values_that_stand_out_are_atoms_and_a_grid_is_none():
    own = np.random.default_rng(1)
    amounts = own.gamma(2, 2000, 6000).round()
    round_ones = np.maximum((amounts / 500).round() * 500, 500)
    paid = np.where(own.random(6000) < 0.4, round_ones, amounts)
    atoms = np.array(NumberCode.fit(paid, DataConfig()).atoms)
    multiple = atoms % 500 == 0
    assert set(np.arange(500, 8001, 500)) <= set(atoms)  # those that some tens of rows have
    assert multiple.mean() > 0.9
    degrees = own.normal(20, 3, 30_000).round(2)  # about 30 rows for each hundredth of a degree
    assert NumberCode.fit(degrees, DataConfig()).atoms == ()
    assert NumberCode.fit(own.normal(size=6000), DataConfig()).atoms == ()
    # Zeros as before, and nothing that fewer than ten rows have.
    few = np.concatenate([own.normal(size=5000), np.zeros(100), np.full(9, 0.123), np.full(10, 0.456)])
    assert NumberCode.fit(few, DataConfig()).atoms == (0.0, 0.456)


def test_bins_hold_equally_many_rows_or_one_value_each():
    smooth = rng.gamma(2, 3, 5000)
    code = NumberCode.fit(smooth, DataConfig())
    counts = np.bincount(code.state_of(smooth), minlength=64)
    assert code.states == len(counts) == 64
    assert counts.min() >= 0.8 * counts.mean()
    low, high = (code.rank.inverse(side) for side in np.array(code.bins).T)
    assert (low[1:] > high[:-1]).all()
    ages = np.clip(rng.normal(40, 12, 5000).round(), 17, 90)
    code = NumberCode.fit(ages, DataConfig())
    assert code.states == len(np.unique(ages))
    halfway = float(ages.max()) - 0.5  # never seen: it has a bin, and its own value beside it
    assert code.state_of(np.array([halfway]))[0] >= 0
    assert code.rank.inverse(code.rank(np.array([halfway])))[0] == pytest.approx(halfway)
    assert NumberCode.fit(rng.normal(size=100), DataConfig()).states == 10  # ten rows in each


def test_values_drawn_inside_bins_have_the_training_distribution():
    frame = pl.DataFrame(
        {"v": rng.gamma(2, 3, 4000), "z": np.where(rng.random(4000) < 0.5, 0.0, rng.normal(size=4000))}
    )
    codec = fit(frame)
    x = codec.encode(codec.schema.conform(frame)).x[:, : codec.layout.model_width]
    details = [codec.layout.units[index].start for index in codec.layout.detail_units]
    blank = x.copy()
    blank[:, details] = 0
    uniform = rng.random((4000, len(codec.layout.units)), dtype=np.float32)
    drawn = codec.draw_details(blank, uniform, np.zeros(uniform.shape, bool))
    category = codec.layout.category_slots
    np.testing.assert_array_equal(drawn[:, category], x[:, category])
    values = codec.decode(drawn)
    assert np.abs(values["v"] - frame["v"]).max() > 0  # other values
    assert stats.ks_2samp(values["v"], frame["v"]).statistic < 0.01  # inside the same bins, as densely
    assert ((values["z"] == 0) == (frame["z"] == 0)).all()
    again = codec.encode(values).x[:, : codec.layout.model_width]
    np.testing.assert_array_equal(again[:, category], x[:, category])


def test_missing_is_a_state_and_never_a_mean():
    frame = pl.DataFrame({"a": [None, *rng.normal(50, 1, 99).tolist()], "b": rng.normal(size=100)})
    codec = fit(frame, bins=0)
    x = codec.encode(codec.schema.conform(frame)).x
    block = codec.layout.units[0]
    assert block.width == 2
    assert x[0, block.slots].tolist() == [0, 1]
    assert x[1, block.slots].tolist() == [1, 0]
    assert codec.decode(x)["a"][0] is None


def test_rare_categories_share_one_state():
    values = pl.Series("c", ["a"] * 50 + ["b"] * 30 + ["once"])
    code = CategoryCode.fit(values, DataConfig())
    assert code == CategoryCode(("a", "b"), has_other=True, has_missing=False)
    assert CategoryCode.fit(values, DataConfig(max_categories=2, min_category_rows=1)).categories == (
        "a",
        "b",
    )
    frame = pl.DataFrame({"c": values, "v": np.arange(81.0) ** 1.1})
    assert round_trip(frame)["c"].to_list()[-1] == OTHER


def test_cells_never_seen_in_training_are_marked_not_guessed():
    frame = pl.DataFrame({"c": ["a", "b"] * 50, "v": rng.normal(size=100), "level": [1, 2, 3, 4] * 25})
    codec = fit(frame)
    odd = pl.DataFrame({"c": ["new", "a", "a"], "v": [0.0, None, 0.0], "level": [1, 1, 9]})
    encoded = codec.encode(codec.schema.conform(odd))
    # Units: c, the bin of v, its exact value, level.
    assert encoded.present.tolist() == [
        [False, True, True, True],
        [True, False, False, True],
        [True, True, True, False],
    ]
    assert np.isfinite(encoded.x).all()
    unit = codec.layout.units[0]
    assert encoded.x[0, unit.slots].sum() == 0


def test_json_round_trip_encodes_the_same_bits():
    frame = pl.DataFrame(
        {
            "v": rng.normal(size=300),
            "g": np.where(rng.random(300) < 0.5, 0, rng.normal(size=300)),
            "c": ["x", "y", None] * 100,
        }
    )
    codec = fit(frame)
    import json

    again = Codec.from_json(json.loads(json.dumps(codec.to_json())), codec.schema)
    conformed = codec.schema.conform(frame)
    assert again.layout == codec.layout
    np.testing.assert_array_equal(again.encode(conformed).x, codec.encode(conformed).x)


def test_projection_agrees_with_scikit_learn_and_maps_errors_back():
    base = rng.normal(size=(500, 2))
    values = base @ rng.normal(size=(2, 6)) + 0.01 * rng.normal(size=(500, 6))
    frame = pl.DataFrame(values, schema=[f"v{i}" for i in range(6)]).with_columns(
        c=pl.Series(rng.choice(["a", "b"], 500))
    )
    codec = fit(frame, pca_components=2)
    assert codec.layout.columns == ("component 1", "component 2", "c")
    standard = (values - values.mean(0)) / values.std(0)
    np.testing.assert_allclose(np.abs(codec.projection.matrix), np.abs(PCA(2).fit(standard).components_), atol=1e-6)
    np.testing.assert_allclose(codec.attribution.sum(1), 1, rtol=1e-6)
    assert codec.attribution.shape == (3, 7)
    decoded = codec.decode(codec.encode(codec.schema.conform(frame)).x)
    assert np.abs(decoded.drop("c").to_numpy() - values).max() < 0.2
    with pytest.raises(ConfigError, match="pca_components"):
        fit(frame, pca_components=7)


def test_trimming_drops_the_outermost_rows_and_keeps_the_order():
    values = np.concatenate([rng.normal(size=99), [1000.0]])
    frame = pl.DataFrame({"v": values, "w": rng.normal(size=100)})
    codec = fit(frame)
    kept = trim_outermost(codec.schema.conform(frame), codec, 0.05)
    assert kept.height == 95
    assert kept["v"].max() < 1000
    assert kept["v"].to_list() == [v for v in values if v in set(kept["v"])]


def test_extreme_values_stay_finite():
    frame = pl.DataFrame({"v": rng.normal(size=100), "w": np.linspace(0, 1, 100) ** 2})
    codec = fit(frame)
    x = codec.encode(codec.schema.conform(pl.DataFrame({"v": [1e29, -1e29], "w": [0.0, 1e25]}))).x
    assert np.isfinite(x).all()
    assert np.isfinite(np.square(x)).all()
