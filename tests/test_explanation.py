"""Reasons, expected values and repairs: against closed forms, and on rows in which a known cell was broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import stats
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LinearRegression
from typer.testing import CliRunner

import tabdiff
from tabdiff import ConfigError, FitConfig, Model
from tabdiff.beliefs import Believer
from tabdiff.cli import app
from tabdiff.codec import Codec
from tabdiff.config import DataConfig
from tabdiff.explanation import Explanation, to_frame
from tabdiff.nn.kernel import KernelDenoiser
from tabdiff.schema import Schema
from tests.oracles import isotropic, runtime_of, schedule_of

ALPHA = 0.05

# ------------------------------------------------------------------------------------------------ beliefs


def believer_of(frame: pl.DataFrame) -> tuple[Believer, Codec]:
    """What the exact denoiser of these rows believes."""
    import torch

    schema = Schema.infer(frame)
    codec = Codec.fit(schema.conform(frame), schema, DataConfig())  # type: ignore[call-arg]
    process = isotropic(codec.layout, sigma_min=0.15)
    encoded = codec.encode(schema.conform(frame))
    denoiser = KernelDenoiser(process, torch.from_numpy(encoded.x[:, None, :]))
    return Believer(codec, runtime_of(denoiser), schedule_of(process)), codec


def test_quantiles_are_those_of_the_gaussian_conditional():
    rng = np.random.default_rng(0)
    a = rng.normal(size=3000)
    frame = pl.DataFrame({"a": a, "b": 3 + 2 * (0.8 * a + 0.6 * rng.normal(size=3000))})
    believer, codec = believer_of(frame)
    asked = pl.DataFrame({"a": [-1.0, 0.0, 1.2], "b": [9.0, 9.0, 9.0]})  # what b holds must not matter
    beliefs = believer(codec.encode(asked), np.array([1, 1, 1]))
    for given, belief in zip(asked["a"], beliefs, strict=True):
        exact = stats.norm(3 + 2 * 0.8 * given, 2 * 0.6)
        assert belief.weights.sum() == pytest.approx(1)
        for share in (0.1, 0.5, 0.9):
            assert belief.quantile(share) == pytest.approx(exact.ppf(share), abs=0.35), share


def test_probabilities_are_those_of_the_rows_alike():
    rng = np.random.default_rng(1)
    kind = rng.choice(["x", "y"], 4000)
    size = rng.choice(["small", "large", "none"], 4000, p=[0.5, 0.3, 0.2])
    size = np.where((kind == "x") & (size == "none"), "small", size)
    spent = np.where(size == "none", 0.0, rng.normal(5, 1, 4000))
    believer, codec = believer_of(pl.DataFrame({"kind": kind, "size": size, "spent": spent}))
    asked = pl.DataFrame({"kind": ["x", "y"], "size": ["none", "none"], "spent": [5.0, 0.0]})
    of_size = believer(codec.encode(asked), np.array([1, 1]))
    alike = (kind == "x") & (spent > 0)
    exact = [("small", np.mean(size[alike] == "small")), ("large", np.mean(size[alike] == "large"))]
    for (name, share), (expected_name, expected) in zip(of_size[0].likely(2), exact, strict=True):
        assert name == expected_name
        assert share == pytest.approx(expected, abs=0.05)
    assert of_size[1].expected == "none"
    # An atom beside a number: all of the belief is on it where the size says so, none where it does not.
    of_spent = believer(codec.encode(asked.with_columns(size=pl.Series(["large", "none"]))), np.array([2, 2]))
    assert of_spent[0].quantile(0.1) == pytest.approx(stats.norm(5, 1).ppf(0.1), abs=0.35)
    assert of_spent[1].quantile(0.05) == of_spent[1].quantile(0.95) == 0.0


def test_a_projected_column_is_believed_as_a_regression_would_have_it():
    rng = np.random.default_rng(2)
    factors = rng.normal(size=(4000, 3)) * [3, 2, 1.5]
    x = factors @ rng.normal(size=(3, 12)) + 0.3 * rng.normal(size=(4000, 12))
    frame = pl.DataFrame(x, schema=[f"c{i}" for i in range(12)])
    schema = Schema.infer(frame)
    codec = Codec.fit(schema.conform(frame), schema, DataConfig(pca_components=3))  # type: ignore[call-arg]
    believer = Believer(codec, runtime_of(KernelDenoiser(isotropic(codec.layout), _rows(codec, frame))), _prior(codec))
    asked = frame[:200]
    beliefs = believer(codec.encode(asked.with_columns(c4=pl.lit(100.0))), np.full(200, 4))
    others = np.delete(x, 4, axis=1)
    regression = LinearRegression().fit(others, x[:, 4])
    rms = np.std(x[:, 4] - regression.predict(others))
    assert np.abs([b.expected for b in beliefs] - regression.predict(others[:200])).max() < rms
    inside = [b.quantile(0.1) <= value <= b.quantile(0.9) for b, value in zip(beliefs, asked["c4"], strict=True)]
    assert np.mean(inside) == pytest.approx(0.8, abs=0.1)


def _rows(codec, frame):
    import torch

    return torch.from_numpy(codec.encode(frame).x[:, None, :])


def _prior(codec):
    return schedule_of(isotropic(codec.layout))


# ------------------------------------------------------------------------------------------------ plants


def table(rows: int, seed: int) -> pl.DataFrame:
    """Numbers that hang together, a category and a boolean that go with them, a count, zeros, gaps, an id and a date."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["low", "mid", "high"], rows, p=[0.4, 0.35, 0.25])
    level = np.select([kind == "low", kind == "mid"], [0.0, 4.0], 8.0)
    a, d = level + rng.normal(0, 0.6, rows), rng.normal(0, 2, rows)
    gap = np.where(rng.random(rows) < 0.15, np.nan, a - d + rng.normal(0, 0.3, rows))
    return pl.DataFrame(
        {
            "id": [f"row-{i}" for i in range(rows)],
            "kind": kind,
            "a": a,
            "b": 2 * a + rng.normal(0, 0.3, rows),
            "c": (a + d + rng.normal(0, 0.3, rows)).round(2),
            "d": d,
            "count": np.round(np.maximum(3 * a + rng.normal(0, 1, rows), 0) + 5).astype(int),
            "spare": np.where(rng.random(rows) < 0.5, 0.0, rng.gamma(2, 5, rows)),
            "gap": pl.Series(gap).fill_nan(None),
            "day": pl.Series(np.datetime64("2024-01-01") + rng.integers(0, 300, rows)).cast(pl.Date),
        }
    )


@pytest.fixture(scope="module")
def model() -> Model:
    config = FitConfig.model_validate({"train": {"steps": 500, "batch_size": 128}, "network": {"width": 64}})
    return tabdiff.fit(table(700, 0), config)


@pytest.fixture(scope="module")
def plants(model: Model) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """Clean rows, the same with one broken cell each, and its column. Values stay inside their column's own range."""
    clean = table(400, 1)
    clean = clean.filter(pl.Series(model.score(clean).p_value > 0.2))
    lines, kept, broken = [], [], []
    for row in range(45):
        own, name = clean.row(row, named=True), ["b", "c", "gap"][row % 3]
        true = own[name]
        other = clean[name].drop_nulls().sort()
        low, high = other[int(0.02 * len(other))], other[int(0.98 * len(other))]
        if true is None:
            continue
        value = high if abs(high - true) > abs(low - true) else low
        kept.append(row)
        broken.append(name)
        lines.append({**own, name: value})
    return clean[kept], pl.DataFrame(lines, schema=clean.schema), broken


@pytest.fixture(scope="module")
def explained(model: Model, plants: tuple[pl.DataFrame, pl.DataFrame, list[str]]) -> list[Explanation]:
    broken = plants[1]
    return model.explain(broken, range(broken.height), alpha=ALPHA)


def test_the_broken_column_is_named_and_repaired(model, plants, explained):
    clean, broken, columns = plants
    flagged = [one for one in explained if one.p_value <= ALPHA]
    assert len(flagged) >= 0.8 * len(explained)
    order = [sorted(one.contributions, key=one.contributions.get, reverse=True) for one in flagged]
    planted = [columns[one.row] for one in flagged]
    assert np.mean([names[0] == name for names, name in zip(order, planted, strict=True)]) >= 0.9
    assert np.mean([name in names[:3] for names, name in zip(order, planted, strict=True)]) >= 0.95
    assert np.mean([one.normal for one in flagged]) >= 0.95
    assert np.mean([set(one.repair) == {name} for one, name in zip(flagged, planted, strict=True)]) >= 0.9
    # The repair is near the value before planting, measured in what was done to it.
    moved = [
        abs(one.repair[name] - clean[name][one.row]) / abs(broken[name][one.row] - clean[name][one.row])
        for one, name in zip(flagged, planted, strict=True)
        if name in one.repair
    ]
    assert np.median(moved) < 0.25


def test_two_broken_cells_are_both_named(model):
    clean = table(400, 4)
    clean = clean.filter(pl.Series(model.score(clean).p_value > 0.2))[:12]
    far = pl.when(pl.col("b") > 9).then(0.0).otherwise(18.0)
    broken = clean.with_columns(b=far, gap=pl.when(pl.col("gap") > 4).then(-4.0).otherwise(11.0))
    found = model.explain(broken, range(12), alpha=ALPHA, largest=3)
    top = [{reason.column for reason in one.reasons[:2]} for one in found]
    assert np.mean([names == {"b", "gap"} for names in top]) >= 0.7
    assert np.mean([one.normal for one in found]) >= 0.9
    assert max(len(one.repair) for one in found) >= 2


def test_contributions_sum_to_the_score(model, plants, explained):
    scores = model.score(plants[1])
    for one in explained:
        assert sum(one.contributions.values()) == pytest.approx(scores.score[one.row], abs=1e-4)
        assert min(one.contributions.values()) >= 0
        assert one.p_value == scores.p_value[one.row]
        assert tuple(one.contributions) == model.codec.columns


def test_a_repaired_row_scores_what_is_said_and_nothing_else_changed(model, plants, explained):
    broken = plants[1]
    for one in explained[:12]:
        row = broken[one.row].with_columns(
            [pl.Series(name, [value], dtype=broken.schema[name]) for name, value in one.repair.items()]
        )
        assert model.score(row).score[0] == pytest.approx(one.repaired_score, abs=1e-3)
        assert one.normal == (one.repaired_p_value > ALPHA)
        assert {reason.column for reason in one.reasons if reason.repaired is not None} == set(one.repair)
        assert [r.value for r in one.reasons] == [broken[r.column][one.row] for r in one.reasons]


def test_an_explanation_depends_on_its_row_alone(model, plants, explained):
    alone = model.explain(plants[1], [5], alpha=ALPHA)[0]
    assert alone.repair == explained[5].repair
    assert [r.column for r in alone.reasons] == [r.column for r in explained[5].reasons]
    assert list(alone.contributions.values()) == pytest.approx(list(explained[5].contributions.values()), abs=1e-3)


def test_intervals_hold_the_values_of_clean_rows(model):
    clean = table(40, 7)
    found = model.explain(clean, range(40), level=0.8, top=9, largest=1)
    reasons = [r for one in found for r in one.reasons if r.value is not None and r.low is not None]
    assert {r.column for r in reasons} >= {"a", "b", "c", "d", "day"}
    assert 0.7 < np.mean([r.low <= r.value <= r.high for r in reasons]) < 0.97
    b = [r for r in reasons if r.column == "b"]
    assert np.corrcoef([r.expected for r in b], [r.value for r in b])[0, 1] > 0.9
    kinds = [r for one in found for r in one.reasons if r.column == "kind"]
    assert np.mean([r.expected == r.value for r in kinds]) > 0.85
    assert all(r.low is None and r.high is None and 0 < sum(p for _, p in r.likely) < 1.001 for r in kinds)


def test_odd_cells_are_repaired_with_values_of_their_type(model):
    row = table(30, 3).filter(pl.col("kind") == "high")[:1]
    odd = pl.concat([row.with_columns(kind=pl.lit("unheard of")), row.with_columns(a=pl.lit(None, pl.Float64))])
    unheard, gone = model.explain(odd, [0, 1], alpha=0.2)
    assert unheard.repair == {"kind": "high"}
    assert [r.value for r in unheard.reasons if r.column == "kind"] == ["unheard of"]
    assert set(gone.repair) == {"a"}
    assert gone.repair["a"] == pytest.approx(row["b"][0] / 2, abs=1.5)
    late = model.explain(row.with_columns(day=pl.lit("2031-05-05").str.to_date()), [0], alpha=0.2)[0]
    assert set(late.repair) == {"day"}
    assert type(late.repair["day"]) is type(row["day"][0])
    assert late.repair["day"].year == 2024


def test_normal_rows_need_no_repair_and_hopeless_ones_say_so(model):
    clean = table(60, 1)
    ordinary = int(model.score(clean).p_value.argmax())
    one = model.explain(clean, [ordinary])[0]
    assert one.normal
    assert one.repair == {}
    assert one.repaired_score == one.score
    wrong = clean[:1].with_columns(a=pl.lit(-50.0), b=pl.lit(90.0), c=pl.lit(-70.0), d=pl.lit(44.0))
    hopeless = model.explain(wrong, [0], largest=2)[0]
    assert not hopeless.normal
    assert len(hopeless.repair) == 2
    assert hopeless.repaired_score < hopeless.score


def test_without_rows_the_flagged_ones_are_explained(model, plants):
    table_ = pl.concat([table(60, 9), plants[1][:6].with_columns(b=pl.lit(500.0))])
    scores = model.score(table_)
    found = model.explain(table_)
    assert {one.row for one in found} == set(np.flatnonzero(scores.flagged).tolist())
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert model.explain(table_, []) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": [400]}, "from 0 to 9 in this table; got 400"),
        ({"rows": [-1]}, "got -1"),
        ({"alpha": 0.0}, "alpha is inside"),
        ({"level": 0.99}, "level is inside"),
        ({"top": 0}, "top is at least 1"),
        ({"largest": 0}, "largest is at least 1"),
    ],
)
def test_bad_questions_are_refused(model, options, message):
    with pytest.raises(ConfigError, match=message):
        model.explain(table(10, 1), **{"rows": [0], **options})


def test_a_wide_projected_table_of_real_measurements():
    """Breast cancer cells, 30 columns of which 27 follow from others; a mean is swapped for that of a very different tumour."""
    data = load_breast_cancer(as_frame=True)
    frame = pl.from_pandas(data.frame[data.target == 1].drop(columns="target"))
    train, test = frame[:250], frame[250:]
    config = FitConfig.model_validate({"train": {"steps": 60}, "data": {"pca_components": 8}, "network": {"width": 32}})
    model = tabdiff.fit(train, config)
    test = test.filter(pl.Series(model.score(test).p_value > 0.1))[:24]
    columns = ["mean radius", "worst perimeter", "mean area", "worst concave points"]
    lines = []
    for row in range(test.height):
        name = columns[row % 4]
        values = train[name].sort()
        low, high = values[5], values[-6]
        true = test[name][row]
        lines.append({**test.row(row, named=True), name: high if abs(high - true) > abs(low - true) else low})
    broken = pl.DataFrame(lines, schema=test.schema)
    found = [one for one in model.explain(broken, range(test.height)) if one.p_value <= ALPHA]
    assert len(found) >= 12
    planted = [columns[one.row % 4] for one in found]
    order = [sorted(one.contributions, key=one.contributions.get, reverse=True) for one in found]
    assert np.mean([names[0] == name for names, name in zip(order, planted, strict=True)]) >= 0.8
    assert np.mean([one.normal for one in found]) >= 0.9
    for one in found:
        assert sum(one.contributions.values()) == pytest.approx(one.score, abs=1e-4)


# ------------------------------------------------------------------------------------------------ files and commands


def test_reasons_as_a_table(explained):
    frame = to_frame(explained[:4])
    assert frame.height == sum(len(one.reasons) for one in explained[:4])
    assert frame["row"].unique(maintain_order=True).to_list() == [0, 1, 2, 3]
    repaired = frame.filter(pl.col("repaired").is_not_null())
    assert [(line["row"], line["column"]) for line in repaired.iter_rows(named=True)] == [
        (one.row, r.column) for one in explained[:4] for r in one.reasons if r.column in one.repair
    ]
    assert to_frame([]).schema == frame.schema


@pytest.fixture
def files(tmp_path: Path, model: Model, plants: tuple[pl.DataFrame, pl.DataFrame, list[str]]) -> Path:
    model.save(tmp_path / "model")
    plants[1].write_parquet(tmp_path / "rows.parquet")
    return tmp_path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_tells_people_and_programs_the_same(files, plants, explained):
    out = files / "reasons.parquet"
    text = run("explain", files / "model", files / "rows.parquet", "--row", 3, "--out", out)
    one = explained[3]
    assert f"Row 3 (id {plants[1]['id'][3]}): score {one.score:.2f}, p-value {one.p_value:.3g}" in text
    assert all(reason.column in text for reason in one.reasons)
    assert "repaired: score" in text
    told = json.loads(run("explain", files / "model", files / "rows.parquet", "--row", 3, "--json"))["rows"][0]
    assert told["repair"] == pytest.approx(one.repair)
    assert [reason["column"] for reason in told["reasons"]] == [reason.column for reason in one.reasons]
    assert_frame_equal(pl.read_parquet(out), to_frame([one]), abs_tol=1e-3)


def test_the_command_explains_the_highest(files, model, plants):
    highest = np.argsort(-model.score(plants[1]).score, kind="stable")[:2].tolist()
    told = json.loads(run("explain", files / "model", files / "rows.parquet", "--top", 2, "--json"))
    assert [row["row"] for row in told["rows"]] == highest


def test_the_command_refuses_two_ways_to_choose(files):
    arguments = ["explain", str(files / "model"), str(files / "rows.parquet"), "--row", "1", "--top", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "--row and --top" in result.stderr
