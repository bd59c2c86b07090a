"""Does adding rows help? On tables where the answer is known, and with arms checked one by one."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tabdiff.cli import app
from tabdiff.errors import ConfigError, SchemaError
from tabdiff.evaluate.augmentation import augmentation_check, duplicates, rarer_class, smotenc


def ring(rows: int, seed: int) -> pl.DataFrame:
    """Positives lie on a thin ring: easy with many of them, hard with few."""
    rng = np.random.default_rng(seed)
    rare = rng.random(rows) < 0.05
    angle = rng.uniform(0, 2 * np.pi, rows)
    radius = np.where(rare, 2 + rng.normal(0, 0.05, rows), np.abs(rng.normal(0, 1.5, rows)))
    colour = np.where(rng.random(rows) < np.where(rare, 0.8, 0.4), "red", "blue")
    return pl.DataFrame(
        {
            "x": radius * np.cos(angle),
            "y": radius * np.sin(angle),
            "n": rng.integers(0, 9, rows),
            "colour": colour,
            "rare": np.where(rare, "yes", "no"),
        }
    )


def truth(_: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """A perfect generator: fresh rows of the class."""
    return ring(rows * 40, 1000 + seed).filter(pl.col("rare") == "yes").head(rows).drop("rare")


def nonsense(_: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """Rows of the other class under the wrong name."""
    return ring(rows * 2, 2000 + seed).filter(pl.col("rare") == "no").head(rows).drop("rare")


@pytest.mark.slow
def test_good_rows_help_bad_rows_do_not_and_the_ceiling_is_above() -> None:
    found = augmentation_check(ring(2400, 0), "rare", {"truth": truth, "nonsense": nonsense}, positives=15, seeds=3)
    arms = {arm.name: arm for arm in found.arms}
    assert list(arms) == [
        "none",
        "class weights",
        "duplicates",
        "SMOTENC",
        "truth",
        "nonsense",
        "all real positives (ceiling)",
    ]
    assert (found.positive, found.train_positives, found.seeds) == ("yes", 15, 3)
    assert arms["truth"].auc_pr > arms["none"].auc_pr + 0.1 > arms["nonsense"].auc_pr
    assert arms["all real positives (ceiling)"].gain > 0
    assert found.best == "truth"
    assert found.helps
    assert found.recommendation.startswith("Yes: truth")
    for arm in found.arms:
        assert arm.gain_low <= arm.gain <= arm.gain_high
        assert arm.gain == pytest.approx(np.mean(arm.auc_pr_by_seed) - np.mean(arms["none"].auc_pr_by_seed))
        assert 0 < arm.f1 < 1
    json.dumps(found.to_json(), allow_nan=False)


def test_the_answer_may_be_no() -> None:
    """A class that no column tells: nothing can help."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"x": rng.normal(size=400), "rare": rng.random(400) < 0.12})
    found = augmentation_check(frame, "rare", seeds=3)
    assert not found.helps
    assert found.recommendation.startswith("No: the best remedy")
    assert found.positive == "true"


def test_smotenc_lies_between_neighbours_and_keeps_types() -> None:
    minority = ring(1500, 1).filter(pl.col("rare") == "yes").head(30)
    gaps = minority.with_columns(y=pl.when(pl.int_range(30) < 3).then(None).otherwise("y"))
    made = smotenc(gaps, 200, 0)
    assert made.schema == gaps.schema
    assert set(made["colour"]) <= {"red", "blue"}
    assert made["x"].is_between(minority["x"].min(), minority["x"].max()).all()
    points = minority.select("x").to_numpy()[:, 0]
    line = smotenc(minority.select("x"), 300, 0, neighbours=1)["x"].to_numpy()
    nearest = {i: points[np.argsort(np.abs(points - x), kind="stable")[1]] for i, x in enumerate(points)}
    between = [
        any(min(x, nearest[i]) - 1e-9 <= v <= max(x, nearest[i]) + 1e-9 for i, x in enumerate(points)) for v in line
    ]
    assert all(between)
    assert made.equals(smotenc(gaps, 200, 0))
    assert not made.equals(smotenc(gaps, 200, 1))
    assert smotenc(minority.head(1), 5, 0).equals(duplicates(minority.head(1), 5, 0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": "nope"}, SchemaError, "is a column of the table"),
        ({"target": "n"}, SchemaError, "two classes; found 9 values"),
        ({"seeds": 1}, ConfigError, "at least 3"),
        ({"ratio": 0}, ConfigError, "ratio"),
        ({"positive": "maybe"}, ConfigError, "got 'maybe'"),
        ({"positives": 5}, ConfigError, "at least 10 positives"),
        ({"positives": 500}, ConfigError, "no more than there are"),
        ({"makers": {"short": lambda frame, rows, seed: frame.head(1)}}, ConfigError, "maker 'short' returns"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, error, message) -> None:
    arguments = {"target": "rare", "seeds": 3, **change}
    with pytest.raises(error, match=message):
        augmentation_check(ring(700, 2), **arguments)
    assert rarer_class(ring(700, 2), "rare") == "yes"


def test_too_few_positives_are_refused() -> None:
    with pytest.raises(SchemaError, match="at least 20 rows"):
        augmentation_check(ring(100, 2), "rare")


@pytest.mark.slow
def test_the_command_prints_every_arm_and_an_answer(tmp_path) -> None:
    ring(500, 3).write_parquet(tmp_path / "d.parquet")
    call = ["augment-check", str(tmp_path / "d.parquet"), "--target", "rare", "--seeds", "3", "--steps", "20"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    for words in ("none", "class weights", "SMOTENC", "tabdiff", "AUC-PR"):
        assert words in result.stdout
    assert "Yes: " in result.stdout or "No: " in result.stdout
