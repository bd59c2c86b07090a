"""A fitted model as its user holds it: scores, reasons, samples, filled gaps, and the folder it lives in."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import stats

import tabdiff
from tabdiff import FitConfig, Model, SampleConfig
from tabdiff.errors import BundleError, ConfigError, RuntimeUnavailable, SchemaError
from tabdiff.sampling import Condition

ROWS = 900


def table(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    """Two dependent numbers, a category that decides them, an inflated number, gaps, a boolean, an id and a constant."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["low", "mid", "high"], rows, p=[0.5, 0.35, 0.15])
    level = np.select([kind == "low", kind == "mid"], [0.0, 3.0], 6.0)
    a = level + rng.normal(0, 0.5, rows)
    return pl.DataFrame(
        {
            "id": [f"row-{i}" for i in range(rows)],
            "kind": kind,
            "a": a,
            "b": 2 * a + rng.normal(0, 0.3, rows),
            "gain": np.where(rng.random(rows) < 0.6, 0.0, rng.gamma(2, 50, rows).round(1)),
            "gap": [
                None if u < 0.15 else v
                for u, v in zip(rng.random(rows), (a + rng.normal(0, 1, rows)).tolist(), strict=True)
            ],
            "on": a + rng.normal(0, 1, rows) > 3,
            "constant": [5] * rows,
        }
    )


@pytest.fixture(scope="module")
def model() -> Model:
    config = FitConfig.model_validate({"train": {"steps": 800, "batch_size": 256}, "network": {"width": 64}})
    return tabdiff.fit(table(), config)


@pytest.fixture(scope="module")
def fresh() -> pl.DataFrame:
    return table(300, seed=1)


# ------------------------------------------------------------------------------------------------ scores


def test_planted_anomalies_score_highest_and_name_their_column(model, fresh):
    broken = fresh.with_columns(
        b=pl.when(pl.int_range(pl.len()) < 20).then(pl.col("b").max() + pl.col("b").min() - pl.col("b")).otherwise("b")
    )
    # Inside b's own range, but against its relation to a; rows near the middle barely change and do not count.
    moved = ((broken["b"] - fresh["b"]).abs() > 4).to_numpy()
    assert moved.sum() >= 10
    scores = model.score(broken)
    assert scores.score[moved].min() > np.quantile(scores.score[~moved], 0.95)
    top = [scores.top_columns(row, 2) for row in np.flatnonzero(moved)]
    assert np.mean([any(name == "b" for name, _ in columns) for columns in top]) > 0.9


def test_expected_values_are_what_the_other_cells_say(model, fresh):
    row = fresh.filter(pl.col("kind") == "high").head(1).with_columns(b=pl.lit(0.5))
    scores = model.score(row, contamination=0.99)
    assert scores.flagged.all()
    shown = scores.to_frame().row(0, named=True)
    place = [shown[f"column_{i}"] for i in (1, 2, 3)].index("b") + 1
    assert float(shown[f"expected_{place}"]) == pytest.approx(2 * row["a"][0], abs=1.5)


def test_a_score_does_not_depend_on_batch_order_or_company(model, fresh):
    whole = model.score(fresh).score
    alone = np.concatenate([model.score(fresh[i : i + 1]).score for i in range(25)])
    order = np.random.default_rng(0).permutation(fresh.height)
    shuffled = model.score(fresh[order]).score
    np.testing.assert_allclose(alone, whole[:25], atol=1e-4)
    np.testing.assert_allclose(shuffled, whole[order], atol=1e-4)


def test_equal_rows_have_equal_scores_and_scores_differ(model, fresh):
    doubled = pl.concat([fresh, fresh])
    scores = model.score(doubled).score
    np.testing.assert_allclose(scores[:300], scores[300:], atol=1e-5)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores.round(6))) > 250


def test_p_values_of_fresh_normal_rows_are_uniform(model):
    p = model.score(table(2000, seed=5)).p_value
    # The calibration set has 135 rows; its own randomness bounds how close to uniform p-values can be.
    assert stats.kstest(p, "uniform").statistic < 0.13


def test_contributions_add_up(model, fresh):
    scores = model.score(fresh)
    np.testing.assert_allclose(scores.contributions.sum(1), scores.score, atol=1e-9)
    assert scores.columns == ("kind", "a", "b", "gain", "gap", "on", "constant")


def test_pandas_and_arrow_score_like_polars(model, fresh):
    expected = model.score(fresh).score
    np.testing.assert_allclose(model.score(fresh.to_arrow()).score, expected, atol=1e-6)
    np.testing.assert_allclose(model.score(fresh.to_pandas()).score, expected, atol=1e-6)


def test_cells_never_seen_in_training_raise_the_score_of_their_column(model, fresh):
    row = fresh.head(1)
    odd = pl.concat([row, row.with_columns(kind=pl.lit("unheard of")), row.with_columns(a=pl.lit(None, pl.Float64))])
    scores = model.score(odd)
    assert scores.score[1] > scores.score[0]
    assert scores.top_columns(1, 1)[0][0] == "kind"
    assert scores.score[2] > scores.score[0]
    assert scores.top_columns(2, 1)[0][0] == "a"


def test_a_table_that_does_not_fit_is_refused_with_every_problem(model, fresh):
    with pytest.raises(SchemaError) as caught:
        model.score(fresh.drop("a").with_columns(b=pl.lit("text")))
    assert {problem.column for problem in caught.value.problems} == {"a", "b"}


# ------------------------------------------------------------------------------------------------ samples


def test_samples_have_the_joint_distribution(model):
    real, drawn = table(2000, seed=9), model.sample(2000)
    assert drawn.columns == ["kind", "a", "b", "gain", "gap", "on", "constant"]
    assert drawn.schema == real.select(drawn.columns).schema
    for name in ("a", "b"):
        assert stats.ks_2samp(real[name], drawn[name]).statistic < 0.12, name
    assert drawn.select(pl.corr("a", "b")).item() > 0.95
    assert abs((drawn["gain"] == 0).mean() - 0.6) < 0.08
    assert abs(drawn["gap"].null_count() / 2000 - 0.15) < 0.06
    means = drawn.group_by("kind").agg(pl.col("a").mean()).sort("a")
    np.testing.assert_allclose(means["a"], [0, 3, 6], atol=0.6)
    assert means["kind"].to_list() == ["low", "mid", "high"]
    assert set(drawn["constant"]) == {5}
    assert drawn["a"].is_between(table()["a"].min(), table()["a"].max()).all()


def test_samples_are_reproducible_and_do_not_depend_on_their_number(model):
    assert_frame_equal(model.sample(50, seed=3), model.sample(50, seed=3))
    assert_frame_equal(model.sample(50, seed=3), model.sample(70, seed=3).head(50), abs_tol=1e-4)
    assert not model.sample(50, seed=3)["a"].equals(model.sample(50, seed=4)["a"])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "ddpm"])
def test_every_sampler_draws_the_same_distribution(model, sampler):
    steps = {"dpmpp_2m": 20, "heun": 12, "ddpm": 100}[sampler]
    drawn = model.sample(1500, seed=1, config=SampleConfig(steps=steps, sampler=sampler))
    reference = model.sample(1500, seed=2, config=SampleConfig(steps=60))
    assert stats.ks_2samp(reference["a"], drawn["a"]).statistic < 0.08


def test_given_columns_hold_and_condition_the_others(model):
    high = model.sample(400, given={"kind": "high"})
    assert set(high["kind"]) == {"high"}
    assert high["a"].median() == pytest.approx(6, abs=0.5)
    assert (high["a"] > 4.5).mean() > 0.65  # 0.999 in the truth, 0.15 unconditionally: 6 s of training
    typed = model.sample(300, given={"a": "0.0"})  # text, as the command line gives it
    np.testing.assert_allclose(typed["a"], 0.0, atol=1e-5)
    assert (typed["kind"] == "low").mean() > 0.9
    missing = model.sample(50, given={"gap": None})
    assert missing["gap"].null_count() == 50


def test_partial_rows_are_completed(model):
    partial = pl.DataFrame({"kind": ["high", None, "low"], "gain": [0.0, 0.0, None]})
    rows = model.sample(given=partial)
    assert rows["kind"][0] == "high"
    assert rows["kind"][2] == "low"
    assert rows["kind"][1] is not None
    assert rows["gain"][:2].to_list() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rows": 0}, ConfigError, "at least 1"),
        ({}, ConfigError, "at least 1"),
        ({"rows": 5, "given": {"nope": 1}}, SchemaError, "'nope'"),
        ({"rows": 5, "given": {"kind": "unheard of"}}, SchemaError, "unheard of"),
        ({"rows": 5, "given": {"a": "text"}}, SchemaError, "'a'"),
        ({"rows": 2, "given": pl.DataFrame({"kind": ["low"]})}, ConfigError, "rows=2"),
    ],
)
def test_bad_requests_are_refused(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.sample(**arguments)


# ------------------------------------------------------------------------------------------------ gaps


def test_gaps_are_filled_from_the_other_cells(model, fresh):
    holed = fresh.with_columns(
        b=pl.when(pl.int_range(pl.len()) < 100).then(None).otherwise("b"),
        kind=pl.when(pl.int_range(pl.len()).is_between(50, 149)).then(None).otherwise("kind"),
    )
    filled = model.impute(holed, draws=9)
    assert filled.columns == holed.columns
    assert filled.schema == holed.schema
    assert filled.null_count().sum_horizontal().item() == 0
    assert_frame_equal(filled[150:].drop("gap"), holed[150:].drop("gap"))
    error = (filled["b"][:50] - fresh["b"][:50]).abs().mean()
    assert error < 0.4 * (fresh["b"][:50] - fresh["b"].median()).abs().mean()
    assert (filled["kind"][50:150] == fresh["kind"][50:150]).mean() > 0.85


def test_a_column_that_is_empty_and_has_no_type_is_filled_in_the_type_of_training(model, fresh):
    holed = fresh[:20].with_columns(pl.lit(None).alias("b"))
    assert holed["b"].dtype == pl.Null
    filled = model.impute(holed, draws=20, interval=0.9)
    assert filled["b"].dtype == fresh["b"].dtype
    assert filled["b"].null_count() == 0
    assert (filled["b_low"] <= filled["b_high"]).all()


def test_a_table_without_gaps_comes_back_as_it_is(model, fresh):
    whole = fresh.drop_nulls()
    assert_frame_equal(model.impute(whole), whole)


# ------------------------------------------------------------------------------------------------ bundle


def test_a_saved_model_scores_and_samples_the_same(model, fresh, tmp_path):
    model.save(tmp_path / "m")
    again = tabdiff.load(tmp_path / "m")
    np.testing.assert_array_equal(again.score(fresh).score, model.score(fresh).score)
    assert_frame_equal(again.sample(20), model.sample(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    card = (tmp_path / "m" / "card.md").read_text()
    assert "900 standardised training rows" in card
    model.save(tmp_path / "m")  # replaces
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert set(manifest["files"]) == {path.name for path in (tmp_path / "m").iterdir()} - {"manifest.json"}


def files() -> list[str]:
    return [
        "manifest.json",
        "config.json",
        "schema.json",
        "codec.json",
        "calibration.json",
        "model.json",
        "weights.safetensors",
        "card.md",
    ]


@pytest.mark.parametrize("name", files())
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "altered", "link"])
def test_a_damaged_folder_is_refused_and_the_file_named(model, tmp_path, name, damage):
    folder = tmp_path / "m"
    model.save(folder)
    file = folder / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        (tmp_path / "elsewhere").write_bytes(content + b" ")
        file.unlink()
        file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        tabdiff.load(folder)


def test_a_newer_format_is_refused_with_the_version_to_use(model, tmp_path):
    model.save(tmp_path / "m")
    file = tmp_path / "m" / "manifest.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(BundleError, match=r"format 99.*reads format 2"):
        tabdiff.load(tmp_path / "m")


def test_a_file_path_is_not_a_model(tmp_path):
    with pytest.raises(BundleError, match="not a folder"):
        tabdiff.load(tmp_path / "nothing")


def test_asking_for_cuda_where_there_is_none_is_an_error(model, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model.save(tmp_path / "m")
    with pytest.raises(RuntimeUnavailable, match="device=cuda"):
        tabdiff.load(tmp_path / "m", device="cuda")
    assert tabdiff.load(tmp_path / "m", device="auto").score(table(5)).provider == "torch cpu"


def test_a_model_without_memory_carries_no_rows_and_still_scores(fresh):
    config = FitConfig.model_validate({"train": {"steps": 100}, "network": {"width": 32}, "score": {"kernel_rows": 0}})
    model = tabdiff.fit(table(300), config)
    assert not [name for name in model.bundle.tensors if "rows" in name]
    assert "no training rows" in model.bundle.card()
    assert len(np.unique(model.score(fresh).score)) > 250


# ------------------------------------------------------------------------------------------------ fits


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"a": np.random.default_rng(0).normal(size=60), "b": np.random.default_rng(1).normal(size=60)}),
        pl.DataFrame({"c": ["x", "y", "z"] * 20, "d": ["u", "v"] * 30}),
        pl.DataFrame({"a": [1.5, 2.5] * 10, "constant": [1] * 20}),
    ],
    ids=["only numbers", "only categories", "few rows"],
)
@pytest.mark.parametrize("kind", ["gaussian", "anisotropic"])
def test_small_and_plain_tables_fit(frame, kind):
    config = FitConfig.model_validate({"train": {"steps": 30}, "network": {"width": 16}, "process": {"kind": kind}})
    model = tabdiff.fit(frame, config)
    assert np.isfinite(model.score(frame).score).all()
    assert model.sample(20).height == 20


def test_projection_attributes_errors_to_the_users_columns():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(400, 2))
    frame = pl.DataFrame(
        base @ rng.normal(size=(2, 5)) + 0.05 * rng.normal(size=(400, 5)), schema=[f"v{i}" for i in range(5)]
    )
    config = FitConfig.model_validate({"train": {"steps": 50}, "data": {"pca_components": 2}})
    model = tabdiff.fit(frame, config)
    scores = model.score(frame, contamination=0.05)
    assert scores.columns == ("v0", "v1", "v2", "v3", "v4")
    np.testing.assert_allclose(scores.contributions.sum(1), scores.score, atol=1e-9)
    assert scores.to_frame()["expected_1"].drop_nulls().len() == 20
    assert model.sample(10).columns == list(scores.columns)


def test_rows_marked_as_anomalies_do_not_take_part():
    frame = table(300).with_columns(label=pl.int_range(pl.len()) < 30)
    config = FitConfig.model_validate({"train": {"steps": 20}, "network": {"width": 16}})
    model = tabdiff.fit(frame, config, overrides={"label": {"role": "label"}})
    report = model.bundle.model["report"]
    assert report["train_rows"] + report["held_out_rows"] == 270
    assert "label" not in model.codec.columns


def test_contaminated_training_rows_are_told_apart():
    rng = np.random.default_rng(0)
    normal, odd = rng.normal(size=(475, 4)), rng.uniform(-9, 9, size=(25, 4))
    frame = pl.DataFrame(np.concatenate([normal, odd]), schema=list("abcd"))
    options = {"train": {"steps": 20}, "network": {"width": 16}, "score": {"contaminated": True}}
    model = tabdiff.fit(frame, FitConfig.model_validate(options))
    assert model.calibration.views == ("subsets",)
    assert model.score(frame, contamination=0.05).flagged[475:].mean() > 0.8
    options["score"]["kernel_rows"] = 0
    with pytest.raises(ConfigError, match="kernel_rows=0"):
        tabdiff.fit(frame, FitConfig.model_validate(options))


def test_memory_does_not_grow_with_the_rows_asked_for(model):
    condition = Condition.nothing(model.codec.layout, 10**9)
    assert condition[5:8].x.shape == (3, 1, model.codec.layout.model_width)


def test_too_few_rows_are_refused():
    with pytest.raises(SchemaError, match="at least 10 rows"):
        tabdiff.fit(table(9))


def test_the_same_seed_gives_the_same_model():
    config = FitConfig.model_validate({"train": {"steps": 30}, "network": {"width": 16}})
    first, second = tabdiff.fit(table(200), config), tabdiff.fit(table(200), config)
    for name, tensor in first.bundle.tensors.items():
        np.testing.assert_array_equal(tensor, second.bundle.tensors[name], err_msg=name)
    assert first.calibration == second.calibration


def test_serving_modules_leave_torch_unimported():
    code = "import tabdiff, tabdiff.model, tabdiff.bundle, tabdiff.scoring, tabdiff.sampling, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_programs_of_another_calibration_are_refused(small_model: Model) -> None:
    from tabdiff.nn.runtime import TorchRuntime

    calibration = {**small_model.bundle.calibration, "views": ["raw", "rank"]}
    with pytest.raises(
        BundleError, match=r"calibration.json must be about the views of the programs.*it has raw, rank"
    ):
        TorchRuntime.from_bundle(replace(small_model.bundle, calibration=calibration), "cpu")
