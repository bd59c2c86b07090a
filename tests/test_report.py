"""The report: every figure between its ends, checks that pass and fail, the page, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tabdiff.cli import app
from tabdiff.constraints import Order
from tabdiff.errors import ConfigError, SchemaError
from tabdiff.evaluate import privacy
from tabdiff.evaluate.fidelity import independent_columns, shape_error, trend_error
from tabdiff.evaluate.report import Evaluation, evaluate
from tabdiff.evaluate.report_page import report_page
from tests.test_evaluate import dependent
from tests.test_page import HOSTILE, Outline


@pytest.fixture(scope="module")
def tables() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Training rows, holdout rows and an honest synthetic table: all from one distribution."""
    train, holdout, synthetic = (dependent(400, seed) for seed in (0, 1, 2))
    inside = [pl.col(name).clip(train[name].min(), train[name].max()) for name in ("height", "count", "day", "noise")]
    return train, holdout, synthetic.with_columns(inside)


def judge(tables, **options) -> Evaluation:
    train, holdout, synthetic = tables
    return evaluate(train, synthetic, holdout, **options)


@pytest.fixture(scope="module")
def honest(tables) -> Evaluation:
    return judge(tables, target="flag")


def test_an_honest_table_passes_and_lies_at_the_floor(honest: Evaluation) -> None:
    assert not honest.failures
    figures = {figure.name: figure for figure in honest.figures}
    detector = figures["detector (C2ST)"]
    assert detector.ceiling > 0.9
    assert abs(detector.value - 0.5) < 0.1 > abs(detector.floor - 0.5)
    assert honest.detector_interval[0] < detector.value < honest.detector_interval[1]
    trend = figures["trend error of dependent pairs"]
    assert trend.value < 0.5 * trend.ceiling
    utility = figures["utility: ROC AUC for flag"]
    assert utility.ceiling < 0.65 < 0.95 < utility.value
    assert [row.error for row in honest.columns] == sorted((row.error for row in honest.columns), reverse=True)
    assert len(honest.pairs) == 15


def test_figures_are_those_of_the_measures(tables, honest: Evaluation) -> None:
    train, holdout, synthetic = tables
    numeric = [pl.col("flag").cast(pl.Boolean)]
    shape, trend = (
        each(train.with_columns(numeric), synthetic.with_columns(numeric)) for each in (shape_error, trend_error)
    )
    assert honest.figures[0].value == pytest.approx(shape.mean)
    assert honest.figures[1].value == pytest.approx(trend.mean)
    assert honest.figures[0].floor == pytest.approx(shape_error(train, holdout).mean)


def test_copies_fail_every_privacy_check(tables) -> None:
    train, holdout, _ = tables
    found = evaluate(train, train.sample(fraction=1, shuffle=True, seed=1), holdout, target="flag")
    assert {check.rule for check in found.failures} == {check.rule for check in found.privacy.checks}
    assert found.privacy.closest.share > 95
    assert found.privacy.membership.auc > 0.95
    assert found.privacy.near.percent == 100
    assert found.privacy.near.ratio < 0.05 < 0.5 < found.privacy.near.holdout_ratio


def test_near_copies_are_found_where_exact_ones_are_not(tables) -> None:
    train, holdout, honest = tables
    moved = train.with_columns(pl.col("height") + 1e-4, pl.col("noise") - 1e-4)
    some = pl.concat([moved.head(60), honest.head(340)])
    assert privacy.exact_copies(train, some, holdout).copies == 0
    near = privacy.near_copies(train, holdout, some)
    assert near.suspicious
    assert near.percent == pytest.approx(15, abs=3)
    assert not privacy.near_copies(train, holdout, honest).suspicious


def test_membership_agrees_with_counting_pairs() -> None:
    train, holdout = (pl.DataFrame({"x": values}) for values in ([0.0, 1.0, 10.0], [2.5, 4.0, 9.0]))
    synthetic = pl.DataFrame({"x": [0.5, 1.2]})
    closest = [[min(abs(x - s) for s in (0.5, 1.2)) for x in values] for values in ([0, 1, 10], [2.5, 4, 9])]
    wins = np.mean([(m < o) + 0.5 * (m == o) for m in closest[0] for o in closest[1]])
    assert privacy.membership_auc(train, holdout, synthetic).auc == pytest.approx(wins)


@pytest.mark.parametrize(("auc", "positives", "negatives"), [(0.5, 50, 50), (0.9, 20, 80), (1.0, 10, 10), (0.0, 3, 3)])
def test_interval_of_an_auc_holds_it(auc: float, positives: int, negatives: int) -> None:
    low, high = privacy.auc_interval(auc, positives, negatives)
    assert 0 <= low <= auc <= high <= 1
    assert privacy.auc_interval(auc, 100 * positives, 100 * negatives)[0] >= low


def test_interval_of_an_auc_has_the_width_of_its_spread() -> None:
    """Against simulation: scores of two normal groups."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        first, second = rng.normal(1, 1, 40), rng.normal(0, 1, 60)
        drawn.append(float((first[:, None] > second).mean()))
    low, high = privacy.auc_interval(float(np.mean(drawn)), 40, 60)
    assert (high - low) / 2 / 1.96 == pytest.approx(np.std(drawn), rel=0.15)


def test_broken_rules_and_columns_are_named(tables) -> None:
    train, holdout, synthetic = tables
    odd = synthetic.with_columns(
        count=pl.lit(10_000),
        colour=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("mauve")).otherwise("colour"),
        day=pl.lit("never"),
        more=1,
    ).drop("flag")
    found = evaluate(
        train, odd, holdout, constraints=[Order(columns=("height", "count")), Order(columns=("day", "day"))]
    )
    failed = {(check.column, check.rule): check.found for check in found.failures}
    assert "10000" not in failed  # the value itself is not needed
    assert ("count", "within the real range") in failed
    assert "mauve" in failed["colour", "known levels"]
    assert ("flag", "is in the synthetic table") in failed
    assert any(column == "day" and "date" in rule for column, rule in failed)
    assert "more" in failed["(the table)", "has no column that the real table lacks"]
    assert ("(the table)", "day <= day") in failed
    assert set(found.left_out) == {"flag", "day"}
    broken = evaluate(train, synthetic, holdout, constraints=[Order(columns=("count", "height"))])
    assert any(check.rule == "count <= height" and "of 400 rows" in check.found for check in broken.failures)


def test_without_a_holdout_half_of_the_real_rows_stands_for_one(tables) -> None:
    train, _, synthetic = tables
    found = evaluate(train, synthetic)
    assert not found.holdout_given
    assert found.holdout_rows == 200
    assert found.privacy.closest is None
    assert "no --holdout" in found.privacy.checks[0].found
    assert found.target is not None
    html = report_page(found, train, synthetic)
    assert "No holdout was given" in html
    made = len(found.validity.checks)
    assert f"{made} of {made} checks passed, 1 could not be made." in html  # what was not looked at has not passed


@pytest.mark.parametrize("rows", [(5, 100), (100, 5)])
def test_short_tables_are_refused(rows) -> None:
    with pytest.raises(SchemaError, match="at least 20 rows"):
        evaluate(dependent(rows[0], 0), dependent(rows[1], 1))


def test_a_wrong_target_is_refused(tables) -> None:
    with pytest.raises(ConfigError, match="got 'nope'"):
        judge(tables, target="nope")


def test_the_page_is_whole_and_the_same_for_the_same_seed(tables, honest: Evaluation) -> None:
    train, _, synthetic = tables
    source = report_page(honest, train, synthetic)
    assert source == report_page(judge(tables, target="flag"), train, synthetic)
    outline = Outline(source)
    assert not {tag for tag, _ in outline.seen} & {"script", "link", "iframe", "img", "form"}
    words = "".join(outline.words)
    for heading in ("In short", "Validity", "Columns", "Pairs of columns", "Told apart", "Usefulness", "Privacy"):
        assert heading in words
    assert "differential privacy" in words
    assert "nan" not in source.lower().replace("dominant", "")
    json.dumps(honest.to_json(), allow_nan=False)


def test_hostile_names_and_values_stay_text() -> None:
    rng = np.random.default_rng(0)
    frames = [
        pl.DataFrame(
            {HOSTILE: rng.normal(size=60), "=1+1": rng.choice(["<b>", HOSTILE, "c"], 60), "y": rng.normal(size=60)}
        )
        for _ in range(3)
    ]
    source = report_page(evaluate(*frames), frames[0], frames[1], title=HOSTILE)
    tags = {tag for tag, _ in Outline(source).seen}
    assert not tags & {"script", "img", "b2"}
    assert "<script" not in source
    assert "onerror='boom()'" not in source


# ------------------------------------------------------------------------------ frozen values of SDMetrics


def for_sdmetrics() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two tables without gaps: SDMetrics treats missing values otherwise."""
    left, right = (dependent(300, seed).drop("noise", "day", "flag") for seed in (11, 12))
    return left, right.with_columns(pl.col("height") * 1.3 + 0.2)


def test_errors_are_those_of_sdmetrics() -> None:
    """1 - score of SDMetrics 0.32.0 on the same tables (thresholds 0): KSComplement, TVComplement, ColumnPairTrends."""
    real, synthetic = for_sdmetrics()
    shape = {column.column: column.error / 100 for column in shape_error(real, synthetic).columns}
    pairs = {(pair.first, pair.second): pair.error / 100 for pair in trend_error(real, synthetic).pairs}
    assert shape == pytest.approx(SDMETRICS_SHAPE, abs=1e-9)
    assert pairs == pytest.approx(SDMETRICS_PAIRS, abs=1e-9)


SDMETRICS_SHAPE = {"height": 0.18333333333333335, "count": 0.026666666666666616, "colour": 0.016666666666666607}
SDMETRICS_PAIRS = {
    ("height", "count"): 0.001906764165896746,
    ("height", "colour"): 0.13333333333333336,
    ("count", "colour"): 0.053333333333333344,
}


# ------------------------------------------------------------------------------------------- the command


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_rows_in_csv_are_not_blamed_for_having_no_types(tables, tmp_path: Path) -> None:
    tables[0].write_parquet(tmp_path / "real.parquet")
    tables[1].write_parquet(tmp_path / "holdout.parquet")
    tables[2].write_csv(tmp_path / "synthetic.csv")
    paths = [tmp_path / name for name in ("real.parquet", "synthetic.csv", "holdout.parquet", "report")]
    assert run("evaluate", *paths[:2], "--holdout", paths[2], "--out", paths[3], "--strict")[0] == 0
    text = tables[2].with_columns(pl.col("day").cast(pl.String))
    failed = [check.rule for check in evaluate(tables[0], text, tables[1]).failures]
    assert failed == ["same dtype as the real column"]


def test_the_command_writes_a_page_and_json(tables, tmp_path: Path) -> None:
    for name, frame in zip(("real", "holdout", "synthetic"), tables, strict=True):
        frame.write_parquet(tmp_path / f"{name}.parquet")
    paths = [tmp_path / f"{name}.parquet" for name in ("real", "synthetic", "holdout")]
    call = ("evaluate", paths[0], paths[1], "--holdout", paths[2], "--target", "flag", "--out", tmp_path / "report")
    code, out, _ = run(*call, "--strict", "--json")
    assert code == 0
    assert json.loads(out)["passed"] is True
    page = (tmp_path / "report" / "report.html").read_bytes()
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [figure["name"] for figure in figures["figures"]][:2] == ["shape error", "trend error"]
    code, out, _ = run(*call)
    assert code == 0
    assert "floor" in out
    assert (tmp_path / "report" / "report.html").read_bytes() == page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "holdout.parquet",
        "real.parquet",
        "report",
        "synthetic.parquet",
    ]


def test_strict_fails_after_writing_and_other_folders_are_left_alone(tables, tmp_path: Path) -> None:
    tables[0].write_parquet(tmp_path / "real.parquet")
    independent_columns(tables[0], 300, 0).with_columns(count=pl.lit(999)).write_parquet(tmp_path / "bad.parquet")
    code, _, err = run(
        "evaluate", tmp_path / "real.parquet", tmp_path / "bad.parquet", "--out", tmp_path / "r", "--strict"
    )
    assert code == 1
    assert "within the real range" in err
    assert (tmp_path / "r" / "report.html").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    code, _, err = run("evaluate", tmp_path / "real.parquet", tmp_path / "bad.parquet", "--out", tmp_path / "mine")
    assert code == 1
    assert "only a report may be replaced" in err
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
