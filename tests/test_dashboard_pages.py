"""Logic of the pages on models, data, synthesis and runs, without a browser and without Prefect."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import drawing, intake, pictures, records, sets, work
from dashboard.access import NotAllowedError
from dashboard.jobs import FlowRun
from tabdiff.errors import ConfigError, SourceError, StoreError
from tabdiff.operations import SynthesizeJob, synthesize
from tabdiff.store import Workspace
from tests.databases import free_port
from tests.workspaces import orders, with_champion

APP = Path(__file__).parent.parent / "dashboard" / "app.py"
HOSTILE = "<img src=x onerror=alert(1)> :red[x] $a$ [l](http://x.org)"


@pytest.fixture
def workspace(tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """With a model and a source; nobody answers where Prefect should be."""
    made = with_champion(tmp_path / "home", None, small_bundle)
    (tmp_path / "data").mkdir()
    orders(200, 0).rename({"weight": HOSTILE}).write_parquet(tmp_path / "data" / "a.parquet")
    made.sources.add("orders", location=str(tmp_path / "data"))
    monkeypatch.setenv("TABDIFF_HOME", str(made.home))
    monkeypatch.delenv("TABDIFF_DATABASE_URL", raising=False)
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "admin")
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    return made


def opened(name: str, **query: str) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    for key, value in query.items():
        app.query_params[key] = value
    app.switch_page(f"pages/{name}.py").run()
    assert not app.exception
    return app


def second_version(workspace: Workspace) -> int:
    first = workspace.models.get("orders")
    assert first.folder is not None
    folder = workspace.home / "models" / "orders" / "second"
    folder.mkdir()
    (folder / "bundle").symlink_to(first.folder / "bundle")
    return workspace.models.add("orders", "models/orders/second", "e" * 64, "c" * 64, {}).version


def test_conditions_become_those_of_a_job() -> None:
    number = {"name": "price", "kind": "continuous", "categories": []}
    assert drawing.condition(number, low=1.0, high=2.0) == {"low": 1.0, "high": 2.0}
    assert drawing.condition(number, missing=True) is None
    day = {"name": "day", "kind": "datetime", "categories": []}
    until = drawing.condition(day, high=date(2024, 5, 1))
    assert until == {"low": None, "high": "2024-05-01 23:59:59"}
    choice = {"name": "channel", "kind": "categorical", "categories": ["a", "b"]}
    assert drawing.condition(choice, chosen=["a"]) == "a"
    assert drawing.condition(choice, chosen=["a", "b"]) == ["a", "b"]
    assert drawing.condition({"name": "express", "kind": "boolean", "categories": []}, chosen=["true"]) is True
    for wrong in (
        lambda: drawing.condition(number),
        lambda: drawing.condition(choice),
        lambda: drawing.condition(number, low=2.0, high=1.0),
        lambda: drawing.condition(choice, chosen=["a"], missing=True),
    ):
        with pytest.raises(ConfigError, match="column"):
            wrong()


def test_a_job_travels_in_the_address() -> None:
    job = SynthesizeJob.of(
        model="orders",
        rows=70,
        seed=3,
        given={"price": {"low": 1}, HOSTILE: None},
        balance=["express"],
        sample={"steps": 3},
    )
    assert drawing.from_address(drawing.to_address(job), "orders") == job
    for wrong in ("", "{", "[1]", '{"rows": -1}', '{"unknown": 1}', '"text"', "9" * 5000):
        assert drawing.from_address(wrong, "orders") == SynthesizeJob.of(model="orders")


def test_rules_of_the_model_and_own_ones() -> None:
    values = [{"kind": "range", "column": "a", "low": 1.0}, {"kind": "range", "column": "b", "low": 2.0}]
    assert drawing.rules(values, [0, 1], " ") is None
    assert drawing.rules(values, [1], "") == values[1:]
    own = drawing.rules(values, [0], '[[constraint]]\nkind = "order"\ncolumns = ["a", "b"]')
    assert own is not None
    assert [rule["kind"] for rule in own] == ["range", "order"]
    with pytest.raises(ConfigError, match="your rules"):
        drawing.rules(values, [0], "[[constraint]")


def test_a_survival_curve_is_that_of_the_p_value(small_model: Any) -> None:
    normal = [float(score) for score in small_model.calibration.normal]
    curve = records.survival(normal)
    scores, p_values = zip(*curve, strict=True)
    import numpy as np

    assert np.allclose(p_values, small_model.calibration.p_value(np.array(scores)))
    assert len(curve) <= 221
    assert curve[-1][0] == normal[-1]
    assert records.survival([]) == []


@pytest.mark.parametrize(
    ("drawn", "real"),
    [
        (pl.Series(HOSTILE, [1.0, 2.5, None]), [1.0, None, 9.0]),
        (pl.Series("channel", ["a", "b", None]), ["a", "c"]),
        (pl.Series("express", [True, False]), [True]),
        (pl.Series("day", [date(2024, 1, 1), date(2024, 3, 1)]), [date(2024, 2, 1)]),
        (pl.Series("constant", [3, 3]), []),
    ],
)
def test_charts_compare_shares(drawn: pl.Series, real: list[Any]) -> None:
    chart = pictures.compared(drawn, real)
    assert chart.to_dict()
    data = pl.DataFrame(chart.data)
    sums = data.group_by("rows").agg(pl.col("share").sum())["share"]
    assert sums.to_list() == pytest.approx([1.0] * len(sums))
    assert len(sums) == 1 + bool(real)
    figure = {"name": HOSTILE, "error": 3.0, "floor": 1.0, "ceiling": 9.0}
    assert isinstance(pictures.anchored([figure]), alt.LayerChart)


def test_file_names_of_strangers_are_made_harmless(workspace: Workspace) -> None:
    content = orders(50, 0).write_csv().encode()
    name = intake.safe_name("../../etc/pass wd\0<b>.CSV", content)
    assert name.endswith(".csv")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    kept = intake.keep(workspace, "shop", "../evil.csv", content)
    assert intake.keep(workspace, "shop", "../evil.csv", content) == kept  # sent twice
    assert [path.name for path in (workspace.home / "uploads" / "shop").iterdir()] == [kept]
    assert workspace.sources.get("shop")[1].location == str(workspace.home / "uploads" / "shop")
    with pytest.raises(StoreError, match="registered already"):
        intake.keep(workspace, "orders", "a.csv", content)
    with pytest.raises(StoreError, match="name of a source"):
        intake.keep(workspace, "../x", "a.csv", content)
    for name, wrong in (
        ("a.exe", content),
        ("a.csv", b""),
        ("a.csv.gz", content),
        ("a.csv", b"1" * (intake.MOST_BYTES + 1)),
    ):
        with pytest.raises(SourceError, match="an uploaded file"):
            intake.keep(workspace, "shop", name, wrong)


def test_uploads_stay_inside_the_data_roots(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TABDIFF_DATA_ROOTS", str(tmp_path / "elsewhere"))
    with pytest.raises(StoreError, match="TABDIFF_DATA_ROOTS"):
        intake.keep(workspace, "shop", "a.csv", b"a,b\n1,2\n")
    assert not (workspace.home / "uploads" / "shop").exists()


def test_sets_that_copy_are_not_given_away(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    done = synthesize(workspace, SynthesizeJob.of(model="orders", rows=30, sample={"steps": 2}))
    folder = str(Path(done["file"]).parent)
    assert pl.read_csv(sets.take(folder, "csv")).height == 30
    assert sets.take(folder, "parquet") == Path(done["file"]).read_bytes()
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "viewer")
    with pytest.raises(NotAllowedError):
        sets.take(folder, "parquet")
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "analyst")
    report = Path(folder, "report.json")
    values = json.loads(report.read_text())
    values["copies"] = {"tested": True, "passed": False, "copies": 30, "found": "30 of 30 rows equal a training row"}
    report.write_text(json.dumps(values))
    with pytest.raises(StoreError, match="30 of 30 rows"):
        sets.take(folder, "parquet")


def test_a_set_that_copies_is_blocked_with_the_reason(workspace: Workspace) -> None:
    version = workspace.models.get("orders")
    folder = workspace.home / "synthetic" / "copied"
    folder.mkdir()
    orders(30, 0).write_parquet(folder / "rows.parquet")
    report = {"copies": {"tested": True, "passed": False, "copies": 30, "found": "30 of 30 rows equal a training row"}}
    (folder / "report.json").write_text(json.dumps(report))
    workspace.add_synthetic(
        model_id=version.id, config_hash="a" * 64, folder="synthetic/copied", rows=30, report=report, run_id=None
    )
    app = opened("synthesize", model="orders", job='{"rows": 5, "sample": {"steps": 2}}')
    assert any("cannot be downloaded: 30 of 30 rows" in error.value.replace("\\", "") for error in app.error)
    assert not app.get("download_button")


def test_a_model_is_promoted_and_rolled_back_by_admins_only(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = second_version(workspace)
    app = opened("models", model="orders", version=str(new))
    assert any("No comparison" in caption.value for caption in app.caption)
    # The page was drawn for an admin; by the time of the click the person is one no more.
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "analyst")
    app.button(key="promote").click().run()
    assert any("needs the role admin" in error.value for error in app.error)
    assert workspace.models.get("orders").version == 1
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "admin")
    app.run()
    app.button(key="promote").click().run()
    assert workspace.models.get("orders").version == new
    app.button(key="roll_back").click().run()
    assert workspace.models.get("orders").version == 1
    assert [event["kind"] for event in workspace.events.latest()] == ["rolled_back", "promoted"]


def test_a_preview_is_drawn_at_once_and_trouble_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(
        "synthesize",
        model="orders",
        job='{"rows": 40, "given": {"channel": "web", "price": {"low": 20}}, "sample": {"steps": 3}}',
    )
    drawn = app.dataframe[0].value
    assert len(drawn) == 40
    assert set(drawn["channel"]) == {"web"}
    assert drawn["price"].min() >= 20
    assert any("Prefect server" in warning.value for warning in app.warning)
    app.button(key="draw_full").click().run()
    assert any("tabdiff flows server" in error.value.replace("\\", "") for error in app.error)
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "viewer")
    app.button(key="draw_full").click().run()
    assert any("needs the role analyst" in error.value for error in app.error)
    assert workspace.runs.latest() == []


@pytest.mark.parametrize(
    "asked",
    [
        {"seed": 2**60, "given": {"price": {"low": 1e300}, "items": {"high": -(2**70)}}},
        {"given": {"ordered": {"low": "0001-01-01", "high": "text"}, "channel": ["pigeon"], "absent": 1}},
        {"given": {"ordered": 3, "price": "text", "express": [1, None]}},
        {"balance": {"express": {"true": -5, "x": 2}}, "rows": 10_000_000},
        {"balance": ["absent", "price"], "sample": {"steps": 9999}},
    ],
)
def test_an_address_that_asks_for_nonsense_breaks_nothing(workspace: Workspace, asked: dict[str, Any]) -> None:
    app = opened("synthesize", model="orders", job=json.dumps(asked))
    assert app.multiselect


def test_data_shows_what_columns_were_taken_for(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.events.tell("source_changed", "orders/a.parquet", "warning", {"reason": HOSTILE})
    app = opened("data", source="orders")
    assert not app.error
    table = app.dataframe[0].value if app.dataframe else None
    shown = "".join(markdown.value for markdown in app.markdown)
    assert "looks like an identifier" in shown
    assert HOSTILE not in shown  # escaped
    assert "onerror" in shown
    assert table is not None
    app.button(key="use_score").click().run()  # Prefect is asked, and does not answer
    assert any("tabdiff flows server" in error.value.replace("\\", "") for error in app.error)
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "analyst")  # between drawing the page and the click
    next(button for button in app.button if button.label == "Start training").click().run()
    assert any("needs the role admin" in error.value for error in app.error)
    assert workspace.runs.latest() == []


def test_runs_without_prefect_show_what_the_workspace_recorded(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="broke"), workspace.runs.start("score", "orders:orders"):
        raise ValueError("it broke")
    app = opened("runs")
    assert any("Prefect server" in warning.value for warning in app.warning)
    (recorded,) = [frame.value for frame in app.dataframe]
    assert (
        recorded["Status"].to_list() == ["failed"]
        if hasattr(recorded["Status"], "to_list")
        else list(recorded["Status"]) == ["failed"]
    )
    assert "it broke" in recorded["Error"][0]


def run_of(kind: str, state: str, message: str = "") -> FlowRun:
    return FlowRun("i", "n", kind, {"model": "m"}, state.title(), state, message, None, None, None, 0.0, "", "http://x")


def test_words_of_a_run() -> None:
    failed = run_of("train", "FAILED", "Flow run encountered an exception: SchemaError: column 'a'")
    assert (failed.reason, failed.failed, failed.alive) == ("SchemaError: column 'a'", True, False)
    assert [work.seconds_words(seconds) for seconds in (3.4, 75, 7300)] == ["3 s", "1 min 15 s", "2 h 1 min"]
    assert (work.needed("train"), work.needed("score")) == ("admin", "analyst")
    with pytest.raises(ConfigError):
        work.needed("other")
