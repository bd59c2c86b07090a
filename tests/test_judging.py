"""Jobs that draw: conditions, shares and rules of a job, the checks of what came out, and progress."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tabdiff.errors import ConfigError, SchemaError, StoreError, SynthesisError
from tabdiff.model import Model
from tabdiff.operations import SynthesizeJob, synthesize
from tabdiff.operations.judging import copy_check, judge, validity
from tabdiff.operations.synthesis import draw
from tests.workspaces import with_champion

FEW = {"steps": 4}


def job(**options: Any) -> SynthesizeJob:
    made: SynthesizeJob = SynthesizeJob.of(**{"model": "orders", "sample": FEW, **options})
    return made


def test_conditions_shares_and_rules_are_those_of_sample(small_model: Model) -> None:
    asked = job(rows=60, given={"price": {"low": 10, "high": 30}, "channel": ["web", "shop"], "rating": None})
    drawn = draw(small_model, asked)
    assert drawn["price"].is_between(10, 30).all()
    assert set(drawn["channel"]) <= {"web", "shop"}
    assert drawn["rating"].null_count() == 60
    direct = small_model.sample(
        60, given={"price": (10, 30), "channel": ["web", "shop"], "rating": None}, config=asked.sample
    )
    assert drawn.equals(direct)
    late = draw(small_model, job(rows=20, given={"ordered": {"low": "2024-05-01"}}))
    assert late["ordered"].min() >= datetime(2024, 5, 1)  # type: ignore[operator]
    assert (
        draw(small_model, job(rows=40, balance={"channel": {"web": 3, "shop": 1}}))["channel"].to_list().count("web")
        == 30
    )
    ruled = draw(small_model, job(rows=30, constraints=[{"kind": "range", "column": "items", "low": 4}]))
    assert (ruled["items"] >= 4).all()
    for wrong, error in (
        ({"constraints": [{"kind": "range", "column": "absent"}]}, ConfigError),
        ({"given": {"channel": "pigeon"}}, SchemaError),
        ({"given": {"price": {"low": 9e9}}}, SynthesisError),
    ):
        with pytest.raises(error):
            draw(small_model, job(rows=5, **wrong))
    with pytest.raises(ConfigError):
        job(given={"price": {"low": 1, "hihg": 2}})


def test_progress_only_grows_and_changes_nothing(small_model: Model) -> None:
    shares: list[float] = []
    asked = job(rows=1500, sample={"steps": 6})
    drawn = draw(small_model, asked, shares.append)
    assert drawn.equals(draw(small_model, asked))
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 0.9


def test_what_breaks_training_is_found(small_model: Model) -> None:
    drawn = draw(small_model, job(rows=50))
    assert validity(small_model.schema, drawn, small_model.constraints).passed
    spoilt = drawn.with_columns(
        price=pl.when(pl.int_range(50) == 3).then(1e6).otherwise("price"),
        channel=pl.when(pl.int_range(50) < 2).then(pl.lit("pigeon")).otherwise("channel"),
        items=pl.when(pl.int_range(50) == 9).then(None).otherwise("items"),
    )
    found = validity(small_model.schema, spoilt, ())
    failed = {(check.column, check.found) for check in found.failures}
    assert failed == {
        ("price", "1 of 50 rows break it"),
        ("channel", "2 of 50 rows break it"),
        ("items", "1 of 50 rows break it"),
    }
    assert found.invalid_rows == pytest.approx(100 * 4 / 50)


def test_copies_of_training_rows_fail_the_check(small_model: Model, fitted_table: pl.DataFrame) -> None:
    columns = list(small_model.codec.columns)
    assert copy_check(small_model, draw(small_model, job(rows=50)))["passed"]
    copied = copy_check(small_model, fitted_table.select(columns))
    assert not copied["passed"]
    assert copied["copies"] > 300  # those held out are not remembered


def test_a_conditional_set_is_compared_with_rows_that_meet_the_condition(
    small_model: Model, mixed_table: Callable[..., pl.DataFrame]
) -> None:
    unseen = mixed_table(400, seed=8)
    asked = job(rows=120, given={"express": False, "price": {"low": 10}})
    drawn = draw(small_model, asked)
    judged = judge(small_model, drawn, unseen, asked.conditions, small_model.constraints, balanced=False)
    alike = unseen.filter(~pl.col("express") & (pl.col("price") >= 10))
    assert judged.report["compared_with"] == alike.height
    names = {figure["name"] for figure in judged.report["figures"]}
    assert {"shape error", "detector (C2ST)"} <= names
    assert "express" not in {each["name"] for each in judged.report["columns"]}  # it is the same everywhere
    assert judged.report["valid"]
    assert "<html" in judged.page
    few = judge(small_model, drawn, unseen[:10], {}, (), balanced=False)
    assert "are needed" in few.report["not_compared"]
    assert few.page == ""
    shares = judge(small_model, drawn, unseen, {}, (), balanced=True)
    assert "shape_error" not in shares.report
    assert shares.report["valid"]


def test_a_set_of_a_version_is_registered_with_its_report(tmp_path: Path, small_bundle: Path) -> None:
    workspace = with_champion(tmp_path / "home", None, small_bundle)
    told: list[float] = []
    done = synthesize(workspace, job(rows=30, version=1), on_progress=told.append)
    assert told[-1] == 1.0
    assert done["report"]["copies"]["tested"]
    assert synthesize(workspace, job(rows=30))["file"] == done["file"]  # the champion is version 1
    (listed,) = workspace.synthetics(model="orders")
    assert (listed["model"], listed["version"], listed["rows"]) == ("orders", 1, 30)
    assert pl.read_parquet(f"{listed['folder']}/rows.parquet").height == 30
    assert workspace.synthetics(model="other") == []
    with pytest.raises(StoreError, match="has no 2"):
        synthesize(workspace, job(version=2))
