"""What the pages Overview and Anomalies are made of: stories, counts by day, health, the closer look, thresholds, actions."""

from __future__ import annotations

import random
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

import tabdiff
from dashboard import queries, stories, triage, welcome
from dashboard.state import ago
from tabdiff.demo_workspace import FAILED, last_night, readings
from tabdiff.errors import StoreError
from tabdiff.operations import MonitorJob, ScoreJob, monitor, score_new
from tabdiff.operations.inspection import inspect
from tabdiff.operations.tuning import _scores, tuning
from tabdiff.store import Workspace
from tabdiff.store.triage import Filter
from tests.workspaces import orders, with_champion


@pytest.fixture
def workspace(tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """300 scored orders, 30 of them alerts; the first has a price that is far off."""
    monkeypatch.setenv("TABDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "analyst")
    monkeypatch.delenv("TABDIFF_DATABASE_URL", raising=False)
    made = with_champion(tmp_path / "home", None, small_bundle)
    (tmp_path / "orders").mkdir()
    rows = orders(300, 0, seed=5)
    odd = pl.when(pl.int_range(300) == 3).then(900.0).otherwise("price").alias("price")
    rows.with_columns(odd).write_parquet(tmp_path / "orders" / "a.parquet")
    made.sources.add("orders", location=str(tmp_path / "orders"), keys=("order_id",))
    score_new(made, ScoreJob.of(source="orders", model="orders", contamination=0.1))
    return made


# ---------------------------------------------------------------------------------------------- stories


def alert(number: int, parts: dict[str, tuple[float, Any, Any]], **more: Any) -> dict[str, Any]:
    """Column to (part, value, expected)."""
    reasons = [{"column": name, "part": part, "expected": expected} for name, (part, _, expected) in parts.items()]
    values = {name: value for name, (_, value, _) in parts.items()}
    fixed = {"entity": None, "model": "m", "when": datetime(2026, 1, number, tzinfo=UTC)}
    return {"id": number, "reasons": reasons, "values": values, **fixed, **more}


def test_five_stories_are_told_whatever_the_order() -> None:
    kinds: list[dict[str, tuple[float, Any, Any]]] = [
        {"heat": (8.0, 80, "60"), "flow": (4.0, 2, "9")},
        {"heat": (8.0, 40, "60"), "flow": (4.0, 2, "9")},
        {"pressure": (5.0, None, "3")},
        {"channel": (5.0, "fax", "web")},
        {"channel": (5.0, "letter", "web")},
    ]
    rng = random.Random(0)
    noisy = [
        {name: (part * rng.uniform(0.8, 1.25), value, expected) for name, (part, value, expected) in kind.items()}
        for kind in kinds
        for _ in range(20)
    ]
    for seed in range(3):
        random.Random(seed).shuffle(noisy)
        told = stories.tell([alert(1 + n % 28, kind) for n, kind in enumerate(noisy)])
        assert [len(story.alerts) for story in told] == [20] * 5
        assert {tuple(story.carried_by) for story in told} == {
            (("heat", "high"), ("flow", "low")),
            (("heat", "low"), ("flow", "low")),
            (("pressure", "missing"),),
            (("channel", "= fax"),),
            (("channel", "= letter"),),
        }


def test_stories_of_two_models_stay_apart_and_know_who_and_when() -> None:
    heat = {"heat": (9.0, 80, "60")}
    told = stories.tell([alert(n, heat, model="ab"[n % 2], entity=f"m{n % 3}") for n in range(1, 10)])
    assert [len(story.alerts) for story in told] == [5, 4]
    assert told[0].entities == [("m1", 2), ("m0", 2), ("m2", 1)] or sum(n for _, n in told[0].entities) == 5
    assert told[0].span == (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 9, tzinfo=UTC))
    assert sorted(told[0].numbers + told[1].numbers) == list(range(1, 10))


def test_similar_alerts_are_those_with_the_same_cause() -> None:
    one = alert(1, {"heat": (9.0, 80, "60")})
    others = [
        alert(2, {"heat": (9.0, 90, "60")}),
        alert(3, {"heat": (9.0, 10, "60")}),
        alert(4, {"flow": (1.0, 1, "2")}),
    ]
    assert [(like, other["id"]) for like, other in stories.similar(one, [one, *others])] == [(pytest.approx(1.0), 2)]


# ---------------------------------------------------------------------------------------------- questions


def test_days_are_those_of_the_viewer(workspace: Workspace) -> None:
    zone = "Pacific/Kiritimati"  # 14 hours ahead of UTC, so its day is another one for most of the time
    counts = triage.by_day.of(workspace, Filter(), zone, 3)
    assert counts["day"].unique().sort().to_list()[-1] == datetime.now(ZoneInfo(zone)).date()
    expected = {row["when"].astimezone(ZoneInfo(zone)).date() for row in workspace.triage.queue(Filter(), limit=100)}
    days = {
        row["day"] for row in triage.by_day.of(workspace, Filter(), zone, 1000).filter(pl.col("alerts") > 0).to_dicts()
    }
    assert days == {day for day in expected if day > date.today() - timedelta(days=990)}


def test_health_tells_the_worst_first(workspace: Workspace, tmp_path: Path) -> None:
    def states() -> dict[str, str]:
        return {line["source"]: line["state"] for line in triage.health.of(workspace)}

    workspace.sources.add("unused", location=str(tmp_path / "nowhere"))
    assert states() == {"unused": "never scored", "orders": "fine"}
    monitor(workspace, MonitorJob.of(source="orders", model="orders", every=1e-6))
    assert states()["orders"] in ("stale", "odd rows", "drifting")
    folder = Path(str(workspace.sources.get("orders")[1].location))
    orders(3, 900).drop("price").write_parquet(folder / "other.parquet")
    for new in (1, 0):  # told of once, and a state for as long as it is so
        assert score_new(workspace, ScoreJob.of(source="orders", model="orders"))["new_findings"] == new
        assert states()["orders"] == "not all scored"
    assert triage.health.of(workspace)[0]["why"].startswith("other.parquet: ")
    with pytest.raises(RuntimeError), workspace.runs.start("score", "orders:orders"):
        raise RuntimeError("disk <b>full</b>")
    first = triage.health.of(workspace)[0]
    assert (first["source"], first["state"]) == ("orders", "failing")
    assert "disk <b>full</b>" in first["why"]


def test_schedules_come_with_their_last_run(workspace: Workspace) -> None:
    assert triage.schedules.of(workspace) == ([], "UTC")
    from flows.deploy import EXAMPLE

    (workspace.home / "flows.toml").write_text(EXAMPLE)
    found, zone = triage.schedules.of(workspace)
    assert zone == "UTC"
    assert [(line["name"], line["status"]) for line in found] == [
        ("orders-hourly", "done"),
        ("orders-nightly", "never ran"),
        ("orders-watch", "never ran"),
    ]


def test_answers_are_kept_until_something_was_done(workspace: Workspace) -> None:
    first = triage.count(Filter())
    number = triage.queue(Filter(), False, 50, 0)[0]["id"]
    workspace.scores.judge(number, "normal", author="ann")
    assert triage.count(Filter()) == first
    queries.refresh()
    assert triage.count(Filter()) == first - 1


# ---------------------------------------------------------------------------------------------- the closer look


def test_an_alert_is_explained_as_the_model_explains_its_row(workspace: Workspace, tmp_path: Path) -> None:
    found = workspace.triage.queue(Filter())[0]
    assert found["row"] == 3
    said = inspect(workspace, found["id"])
    version = workspace.models.get("orders")
    assert version.folder is not None
    model = tabdiff.load(version.folder / "bundle")
    (truth,) = model.explain(pl.read_parquet(tmp_path / "orders" / "a.parquet"), [3])
    assert said["contributions"] == pytest.approx(truth.contributions)
    assert [reason["column"] for reason in said["reasons"]] == [reason.column for reason in truth.reasons]
    assert said["repair"].keys() == truth.repair.keys()
    assert (said["version"], said["own"], said["normal"]) == (1, True, truth.normal)
    reference = pl.read_parquet(version.folder / "reference.parquet")
    assert len(said["nearest"]) == 3
    assert all(int(row["order_id"]) in reference["order_id"].to_list() for row in said["nearest"])


def test_a_normal_row_is_its_own_neighbour(workspace: Workspace) -> None:
    """A row of the reference, kept as an alert, is found again as the nearest normal row."""
    version = workspace.models.get("orders")
    assert version.folder is not None
    reference = pl.read_parquet(version.folder / "reference.parquet")
    model = tabdiff.load(version.folder / "bundle")
    place = int(np.argmax(model.score(reference).p_value))
    reference[[place]].write_parquet(Path(str(workspace.sources.get("orders")[1].location)) / "b.parquet")
    score_new(workspace, ScoreJob.of(source="orders", model="orders", contamination=0.99))
    number = next(a["id"] for a in workspace.triage.queue(Filter(), limit=100) if a["unit"] == "b.parquet")
    nearest = inspect(workspace, number)["nearest"][0]
    assert int(nearest["order_id"]) == reference["order_id"][place]


def test_without_its_version_an_alert_is_explained_by_the_champion(workspace: Workspace) -> None:
    from tabdiff.store import tables as t

    number = workspace.triage.queue(Filter())[0]["id"]
    folder = workspace.models.get("orders").folder
    assert folder is not None
    again = workspace.models.add("orders", str(folder.relative_to(workspace.home)), "e" * 64, "c" * 64, {})
    workspace.models.promote("orders", again.version)
    retire = t.models.update().where(t.models.c.version == 1).values(folder=None)
    workspace.database.write(lambda connection: connection.execute(retire))
    said = inspect(workspace, number)
    assert (said["version"], said["own"]) == (2, False)


def test_a_threshold_is_judged_by_scores_and_verdicts(workspace: Workspace) -> None:
    high = workspace.triage.queue(Filter(), limit=4)
    for found, verdict in zip(high, ("anomaly", "anomaly", "normal", "unsure"), strict=True):
        workspace.scores.judge(found["id"], verdict, author="ann")  # type: ignore[arg-type]
    found = tuning(workspace, "orders", "orders")
    scores = pl.read_parquet(workspace.scores.partitions()[0]["file"])["score"]
    assert (found.rows, sum(found.counts), found.days) == (300, 300, None)
    for rate in (1.0, 20.0, 60.0):
        would = found.at(rate, 300)
        assert would["flagged"] == int((scores > would["threshold"]).sum())
        above = [a["score"] > would["threshold"] for a in high[:3]]
        assert (would["confirmed"], would["false_alarms"]) == (sum(above[:2]), int(above[2]))
        assert would["missed"] == 2 - sum(above[:2])
    assert found.at(60.0, 300)["precision"] == pytest.approx(2 / 3)
    assert min(found.choices(300)) >= 300 / (3 * len(found.normal))
    workspace.sources.add("other", location="/nowhere")
    with pytest.raises(StoreError, match="has not scored 'other' yet"):
        tuning(workspace, "other", "orders")


def test_scores_are_read_together_though_the_type_of_the_times_changed(tmp_path: Path) -> None:
    hours = pl.Series("at", [datetime(2024, 1, 1), datetime(2024, 1, 2)])
    berlin = hours.dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")
    forms = [hours, hours.cast(pl.Datetime("ns")), hours.cast(pl.Date), berlin, hours.dt.to_string("%F")]
    for number, times in enumerate(forms):
        frame = pl.DataFrame({"score": [1.0, number], "at": times, "machine": [number, 1]})
        frame.write_parquet(tmp_path / f"[{number}].parquet")
    read = [_scores(str(tmp_path / f"[{number}].parquet"), ["at"], ["machine"]) for number in range(len(forms))]
    found = pl.concat(read, how="diagonal").collect()
    assert found["at"].to_list() == [*(4 * hours.to_list()), None, None]  # a text has no known form
    assert found["score"].sum() == 15.0
    assert found["machine"].dtype == pl.String


# ---------------------------------------------------------------------------------------------- actions and greeting


def script() -> None:
    import streamlit as st

    from dashboard import state

    @state.action("admin")
    def act() -> str:
        st.session_state["done"] = True
        return "It is *done*."

    with state.page("Page"):
        st.button("Act", on_click=act)


def test_an_action_is_refused_to_lower_roles_even_when_its_button_is_there(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = AppTest.from_function(script, default_timeout=30).run()
    app.button[0].click().run()
    assert "needs the role admin" in app.error[0].value.replace("\\", "")
    assert "done" not in app.session_state
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "admin")
    app.button[0].click().run()
    assert app.session_state["done"]
    assert not app.error
    assert app.toast[0].value == r"It is \*done\*\."


def test_an_error_of_the_workspace_is_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TABDIFF_HOME", str(tmp_path / "gone"))
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "viewer")
    app = AppTest.from_file(Path(welcome.__file__).parent / "app.py", default_timeout=30).run()
    assert "there is no workspace here" in app.error[0].value.replace("\\", "")
    assert not app.exception


def test_the_demo_runs_once_and_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "work").mkdir()
    demo = welcome.Demo(tmp_path)
    assert not demo.at_work
    code = "import sys, time; print('2/4 fitting pumps', flush=True); sys.stdin.close(); time.sleep(2); print('error: no disk')"
    monkeypatch.setattr(welcome, "_COMMAND", (sys.executable, "-c", code))
    demo.start()
    ends = time.monotonic() + 30
    while demo.progress[0] == 0.0 and time.monotonic() < ends:
        time.sleep(0.02)
    assert demo.progress == (0.25, "fitting pumps")
    assert demo.at_work
    demo.start()  # a second click changes nothing
    assert demo.progress == (0.25, "fitting pumps")
    while demo.at_work and time.monotonic() < ends:
        time.sleep(0.02)
    assert demo.failure == "error: no disk"


def test_ago() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    passed = {5: "just now", 60: "1 minute ago", 7_300: "2 hours ago", 86_400 * 3: "3 days ago"}
    assert {seconds: ago(now - timedelta(seconds=seconds), now) for seconds in passed} == passed
    assert ago(None) == "never"


def test_one_pump_of_the_demo_fails_in_the_night() -> None:
    until = datetime(2026, 5, 5, 9, tzinfo=UTC)
    frame = readings(until)
    begun = last_night(until)
    night = frame.filter(pl.col("time").is_between(begun + timedelta(hours=1), begun + timedelta(hours=3)))
    shaking = night.group_by("machine").agg(pl.col("vibration_mm_s").mean()).sort("vibration_mm_s")
    assert shaking["machine"][-1] == FAILED
    assert shaking["vibration_mm_s"][-1] > 1.8 * shaking["vibration_mm_s"][-2]
    assert last_night(datetime(2026, 5, 5, 3, tzinfo=UTC)).day == 4  # that of today is not over
    assert frame.equals(readings(until))
