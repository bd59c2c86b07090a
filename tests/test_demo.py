"""The demo runs for real: its files, its claims, its refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from tabdiff import demo
from tabdiff.cli import app

FILES = {
    *("breast-cancer.model", "penguins.model", "scores.parquet", "samples.parquet", "gentoo.parquet"),
    *("filled.parquet", "report.html"),
    *("gait.model", "gait.parquet", "gait.events.parquet", "gait.png"),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    out = tmp_path_factory.mktemp("demo") / "demo"
    result = CliRunner().invoke(app, ["demo", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout), result.stderr


@pytest.mark.slow
def test_files(done: tuple[Path, dict[str, Any], str]) -> None:
    out, values, told = done
    assert {path.name for path in out.iterdir()} == FILES
    assert pl.read_parquet(out / "scores.parquet").height == 391
    faults = values["series"]["faults"]
    assert [fault["first sensor named"] for fault in faults[:2]] == ["leg_vert", "trunk_vert"]
    assert values["series"]["untouched_events"] <= 1
    assert set(pl.read_parquet(out / "gentoo.parquet")["species"]) == {"Gentoo"}
    filled = pl.read_parquet(out / "filled.parquet")
    assert filled.height == 344
    assert filled.select(pl.all().null_count().sum()).row(0) == (0,) * 8
    assert values["seconds"] > 0
    assert str(out / "report.html") in told
    assert told.count("  done in") == 9


@pytest.mark.slow
def test_tumours_are_found(done: tuple[Path, dict[str, Any], str]) -> None:
    ours, neighbours, forest, chance = done[1]["detection"]["methods"]
    assert ours["roc_auc"] > 0.9
    assert ours["roc_auc"] > chance["roc_auc"] + 0.3
    assert ours["average_precision"] > chance["average_precision"] + 0.3
    assert abs(ours["roc_auc"] - max(neighbours["roc_auc"], forest["roc_auc"])) < 0.04


@pytest.mark.slow
def test_penguins_are_close(done: tuple[Path, dict[str, Any], str]) -> None:
    ours, alone, real = done[1]["sampling"]["quality"]
    assert ours["trend"] < alone["trend"] - 5
    assert ours["trend"] < real["trend"] + 5
    assert ours["detector"] < 0.75 < alone["detector"]
    assert ours["copies"] == 0
    filling = done[1]["sampling"]["filling"]
    assert filling["gaps"] == 11
    assert filling["right"] > 0.7 * filling["checked"]


@pytest.mark.slow
def test_report(done: tuple[Path, dict[str, Any], str]) -> None:
    page = (done[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 9  # scores, six number columns and years, three heat maps
    assert page.count('class="card"') == 5
    assert "Isolation Forest" in page
    assert "other real penguins" in page
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all my work")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "thesis.tex" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    taken = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "thesis.tex")])
    assert taken.exit_code == 1


def test_without_the_penguins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> Path:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(demo.resources, "files", absent)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 1
    assert "pip install 'tabdiff[demo]'" in result.stderr
    assert not (tmp_path / "demo").exists()
