"""Series as sources of a workspace: any cut of a stream comes to what the whole comes to, and one fault alerts once."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest
from typer.testing import CliRunner

from flows.common import _series, _where
from tabdiff import load_series
from tabdiff.cli import app
from tabdiff.config import SeriesConfig
from tabdiff.errors import ConfigError, SchemaError, StoreError
from tabdiff.operations import MonitorJob, ScoreJob, TrainJob, accept_level, monitor, score_new, train
from tabdiff.operations.inspection import inspect
from tabdiff.operations.judged_events import agreement, judged_events
from tabdiff.operations.series_alerts import Seen, Told, settle
from tabdiff.operations.series_trials import worse_figures
from tabdiff.operations.stream_state import Kept
from tabdiff.operations.tracing import trace, traces
from tabdiff.operations.training import FITTED as FITTED_ROWS
from tabdiff.operations.verdicts import without_confirmed
from tabdiff.series_model import SeriesModel
from tabdiff.store import Workspace
from tabdiff.store.triage import Filter
from tests.databases import Postgres
from tests.workspaces import START, broken, files_without_a_row, fleet, minute

WINDOW, FITTED = 16, 400
FIT: dict[str, Any] = {
    "series": {"time": "at", "entity": "machine", "window": WINDOW},
    "train": {"steps": 2},
    "network": {"width": 16, "blocks": 1},
}
ALL = Filter(state="all")


@pytest.fixture(scope="module")
def first_fit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A workspace whose only version is of the fleet, its metrics, and what training said."""
    folder = tmp_path_factory.mktemp("fleet")
    workspace = Workspace.create(folder / "home")
    (folder / "data").mkdir()
    fleet(0, FITTED).write_parquet(folder / "data" / "0.parquet")
    workspace.sources.add("fleet", location=str(folder / "data"))
    result = train(workspace, TrainJob.of(source="fleet", model="fleet", fit=FIT, evaluation_share=0.2))
    version = workspace.models.get("fleet")
    assert version.folder is not None
    return version.folder, version.metrics, result


@pytest.fixture(scope="module")
def model(first_fit: tuple[Path, dict[str, Any], dict[str, Any]]) -> SeriesModel:
    return load_series(first_fit[0] / "bundle")


def with_fleet(home: Path, url: str | None, fitted: tuple[Path, dict[str, Any], dict[str, Any]]) -> Workspace:
    workspace = Workspace.create(home, url)
    shutil.copytree(fitted[0], home / "models" / "fleet" / "first")
    workspace.models.add("fleet", "models/fleet/first", "f" * 64, "c" * 64, fitted[1])
    workspace.models.promote("fleet", 1)
    return workspace


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def workspace(tmp_path: Path, data: Path, first_fit: tuple[Path, dict[str, Any], dict[str, Any]]) -> Workspace:
    made = with_fleet(tmp_path / "home", None, first_fit)
    made.sources.add("fleet", location=str(data))
    return made


def score(workspace: Workspace, **options: Any) -> dict[str, Any]:
    return score_new(workspace, ScoreJob.of(source="fleet", model="fleet", **options))


def places(workspace: Workspace) -> pl.DataFrame:
    """Everything in score files, by machine and time."""
    files = [part["file"] for part in workspace.scores.partitions() if part["file"]]
    return pl.concat([pl.read_parquet(file) for file in files], how="diagonal_relaxed").sort("machine", "at")


def same_as_whole(found: pl.DataFrame, model: SeriesModel, frame: pl.DataFrame) -> None:
    """Scores, flags, bands and parts of `found` are those of the whole scored at once; only the ends may wait.

    The version is compiled: ONNX Runtime rounds by how many windows it is given. With torch they agree to 1e-9 (test_series_model).
    """
    whole = model.score(frame)
    expected = whole.places.hstack(whole.contributions.rename({n: f"part:{n}" for n in whole.contributions.columns}))
    expected = expected.hstack(whole.expected.select(pl.col("flow").alias("f"), pl.col("flow_low").alias("l")))
    joined = found.join(expected, on=["machine", "at"], suffix=" whole", how="left", maintain_order="left")
    assert joined["score whole"].null_count() == found["score"].null_count()
    for name in ("score", "p_value", "f", "l", "part:pressure"):
        mine = {"f": "expected:flow", "l": "low:flow"}.get(name, name)
        other = name if name in "fl" else f"{name} whole"
        single = mine != "p_value"
        left, right = (joined[each].cast(pl.Float64).fill_null(-1.0).to_numpy() for each in (mine, other))
        assert left == pytest.approx(right, rel=1e-5 if single else 1e-9, abs=1e-6 if single else 1e-9), name
    assert joined["flagged"].equals(joined["flagged whole"].alias("flagged"))


# ------------------------------------------------------------------------------------------------------ training


def test_the_last_stretch_of_each_machine_judges(first_fit: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, metrics, result = first_fit
    judges = pl.read_parquet(folder / "reference.parquet")
    expected = fleet(0, FITTED).filter(pl.col("at") >= minute(round(FITTED * 0.8)))
    assert judges.sort("at", "machine").equals(expected)
    assert (result["decision"], result["started_from"][:14]) == ("promoted", "random weights")
    about = metrics["series"]
    assert (about["time"], about["entity"], about["interval"], about["window"]) == ("at", "machine", "every 1 min", 16)
    assert (about["numbers"], about["categories"]) == (["flow", "pressure", "level"], ["pump"])
    last = int(minute(round(FITTED * 0.8) - 1).replace(tzinfo=UTC).timestamp()) // 60
    assert {name: place - last for name, place in about["until"].items()} == {"left": 0, "right": 0}
    figures = result["metrics"]["challenger"]
    assert figures["planted"] > 0.5
    # What is left of the flow once the cycle is known is its noise; the error is in interquartile ranges of the judging time.
    spread = float(np.subtract(*np.quantile(judges["flow"].to_numpy(), [0.75, 0.25])))
    assert 0.2 * 0.6 / spread < figures["expectation_error"] < 0.6


def test_a_challenger_is_compared_on_time_that_is_new_to_both(workspace: Workspace, data: Path) -> None:
    fleet(0, FITTED + 40).write_parquet(data / "0.parquet")
    job = TrainJob.of(source="fleet", model="fleet", fit=FIT, evaluation_share=0.2)
    result = train(workspace, job)
    assert set(result["metrics"]) == {"challenger", "champion"}
    assert result["decision"] in ("promoted", "kept")
    assert result["metrics"]["champion"]["stretches"] == 2 * (88 // WINDOW)
    assert train(workspace, job)["new"] is False
    # Fitted on nearly all of the time that would judge: nothing is left to compare on.
    stale = workspace.models.get("fleet")
    late = {**stale.metrics, "series": {**stale.metrics["series"], "until": {"left": 10**12, "right": 10**12}}}
    shutil.copytree(stale.folder or "", workspace.home / "models" / "fleet" / "late")
    number = workspace.models.add("fleet", "models/fleet/late", "late", "late", late).version
    workspace.models.promote("fleet", number)
    other = {**FIT, "series": {**FIT["series"], "window": 8}}
    result = train(workspace, TrainJob.of(source="fleet", model="fleet", fit=other, evaluation_share=0.2))
    assert (result["decision"], "too few to compare" in result["reasons"][0]) == ("kept", True)


def test_what_counts_as_worse() -> None:
    good = {"alarms": 0.02, "alarms_meant": 0.02, "stretches": 100.0, "expectation_error": 0.2, "plants": 24.0}
    good |= {"planted": 0.9, "named": 0.9, "agreement": 0.9, "judged": 10.0}
    assert worse_figures(good, good, 0.02) == []
    bad = {"alarms": 0.3, "expectation_error": 0.25, "planted": 0.6, "named": 0.5, "agreement": 0.7}
    for name, value in bad.items():
        assert worse_figures({**good, name: value}, good, 0.02) == [name]
        assert worse_figures(good, {**good, name: value}, 0.02) == []


def test_versions_are_compared_on_what_people_said(
    workspace: Workspace, data: Path, first_fit: tuple[Path, dict[str, Any], dict[str, Any]], model: SeriesModel
) -> None:
    frame = fleet(FITTED, 400)
    for number in range(6):
        begin = FITTED + 30 + 60 * number
        frame = broken(frame, ("left", "right")[number % 2], begin, begin + 9, shift=4)
    frame.write_parquet(data / "a.parquet")
    score(workspace)
    queue = workspace.triage.queue(ALL, newest=True)
    assert len(queue) >= 6
    for place, alert in enumerate(queue):
        workspace.scores.judge(alert["id"], "anomaly" if place % 3 else "normal", author="ann")
    events = judged_events(workspace, "fleet", model)
    assert len(events) == len(queue)
    event = next(each for each in events if each.first == queue[0]["at"].replace(tzinfo=None))
    mine = frame.filter(machine=queue[0]["entity"]).select("at", "machine", "flow", "pressure", "level", "pump")
    mine = mine.filter(pl.col("at").is_between(event.rows["at"].min(), event.rows["at"].max()))
    assert event.rows.equals(mine.with_columns(pl.col("flow", "pressure", "level").cast(pl.Float32)))
    deaf = load_series(first_fit[0] / "bundle")
    deaf.blocks = deaf.blocks * 1e6
    # The version that alerted on all of them is right about the anomalies, one that never alerts about the rest.
    new, old = agreement(deaf, model, events)
    anomalies = np.mean([each.anomaly for each in events])
    assert (old["agreement"], new["agreement"]) == (pytest.approx(anomalies), pytest.approx(1 - anomalies))
    assert new["judged"] == old["judged"] == len(events)
    assert worse_figures(new, old, 0.02) == ["agreement"]
    assert agreement(deaf, model, events[:4]) == ({}, {})


def test_a_confirmed_event_is_no_part_of_a_training(scored: Workspace, data: Path) -> None:
    (alert,) = scored.triage.queue(ALL)
    frame = pl.concat(pl.read_parquet(file) for file in sorted(data.glob("*.parquet")))
    champion, config = scored.models.get("fleet"), SeriesConfig(time="at", entity="machine")
    scored.scores.judge(alert["id"], "unsure", author="ann")
    assert without_confirmed(scored, "fleet", frame, config, champion).equals(frame)
    scored.scores.judge(alert["id"], "anomaly", author="ann")
    first, last = (alert[end].replace(tzinfo=None) for end in ("at", "ended"))
    inside = (pl.col("machine") == "right") & pl.col("at").is_between(first, last)
    assert without_confirmed(scored, "fleet", frame, config, champion).equals(frame.filter(~inside))
    assert frame.filter(inside).height > 5
    assert without_confirmed(scored, "other", frame, config, champion).equals(frame)
    # One recording, which "right" is none of.
    alone = frame.filter(machine="right").drop("machine")
    assert without_confirmed(scored, "fleet", alone, SeriesConfig(time="at"), champion).equals(alone)


def test_a_false_alarm_is_said_once(workspace: Workspace, data: Path, model: SeriesModel) -> None:
    """A step of one machine that comes again is no alert, unless it is the other machine, or nobody is asked."""

    def day(name: str, begin: int, machine: str, shift: float) -> dict[str, Any]:
        broken(fleet(begin, 100), machine, begin + 40, begin + 60, shift).write_parquet(data / f"{name}.parquet")
        return score(workspace)

    assert day("1", FITTED, "left", 4)["verdicts"] == {"false_alarms": 0}
    (alert,) = workspace.triage.queue(ALL)
    workspace.scores.judge(alert["id"], "normal", author="ann")
    result = day("2", FITTED + 100, "left", 4.2)
    assert (result["verdicts"], result["alerts"]) == ({"false_alarms": 1}, 0)
    found = places(workspace).filter(machine="left")["score"].to_numpy()
    assert found[130:170].max() < 0.1 * found[30:70].max()
    assert day("3", FITTED + 200, "left", -4)["alerts"] == 1
    assert day("4", FITTED + 300, "right", 4)["alerts"] == 1
    workspace.scores.judge(alert["id"], "anomaly", author="bob")
    result = day("5", FITTED + 400, "left", 4)
    assert (result["verdicts"], result["alerts"]) == ({"false_alarms": 0}, 1)


def test_where_time_is_counted_the_champion_knows_it(tmp_path: Path, data: Path) -> None:
    workspace = Workspace.create(tmp_path / "home")
    workspace.sources.add("fleet", location=str(data))
    whole = fleet(0, 520).filter(machine="left").with_columns(step=pl.int_range(520) * 2 + 7).drop("machine", "at")
    whole[:FITTED].write_parquet(data / "a.parquet")
    fit = {**FIT, "series": {"time": "step", "window": WINDOW}}
    train(workspace, TrainJob.of(source="fleet", model="fleet", fit=fit, compiled=False, leave_out_confirmed=False))
    fault = pl.int_range(pl.len()).is_between(460, 470)
    frame = whole.with_columns(pressure=pl.when(fault).then(9.0).otherwise("pressure"))
    frame[FITTED:].write_parquet(data / "b.parquet")
    score(workspace)
    alert = workspace.triage.queue(ALL)[0]
    workspace.scores.judge(alert["id"], "anomaly", author="ann")
    config, champion = SeriesConfig(time="step"), workspace.models.get("fleet")
    left = without_confirmed(workspace, "fleet", frame, config, champion)
    gone = frame.join(left, on="step", how="anti")["step"]
    steps = frame.filter(fault)["step"]
    assert set(steps) <= set(gone) <= set(range(steps[0] - 2 * WINDOW, steps[-1] + 2 * WINDOW))
    assert without_confirmed(workspace, "fleet", frame, config, None).equals(frame)


# ------------------------------------------------------------------------------------------------------ scoring


@pytest.mark.parametrize("by", ["file", "column"])
def test_any_cut_comes_to_the_whole_and_a_fault_alerts_once(
    tmp_path: Path,
    data: Path,
    database_url: str,
    by: str,
    first_fit: tuple[Path, dict[str, Any], dict[str, Any]],
    model: SeriesModel,
) -> None:
    workspace = with_fleet(tmp_path / "home", database_url, first_fit)
    frame = broken(fleet(FITTED, 150), "right", 460, 490)
    options = {"new": "column", "column": "at", "settle": 0.0} if by == "column" else {}
    workspace.sources.add("fleet", location=str(data), **options)
    # By column, a minute is taken whole: its other machine would come late.
    cuts = [0, 1, 2, 41, 43, 131, 180, 240, 300] if by == "file" else [0, 2, 4, 40, 44, 132, 180, 240, 300]
    told, spans = [], []
    for index, (begin, end) in enumerate(pairwise(cuts)):
        frame[begin:end].write_parquet(data / f"{index}.parquet")
        done = score(workspace, rows_per_part=30)
        told.append(done["alerts"])
        spans += [(alert["at"], alert["ended"], alert["open"]) for alert in workspace.triage.queue(ALL)]
    assert score(workspace)["rows"] == 0
    stream = workspace.scores.stream(1, "fleet")
    assert stream.rows == 300
    found = places(workspace)
    assert found.height == 2 * (150 - WINDOW)  # the newest place waits for others like it, then for its windows
    same_as_whole(found, model, frame)
    recorded = found.join(frame, on=["machine", "at"])
    assert recorded["value:flow"].to_numpy() == pytest.approx(recorded["flow"].to_numpy(), rel=1e-6)
    assert recorded["value:pump"].equals(recorded["pump"].alias("value:pump"))
    (alert,) = workspace.triage.queue(ALL)  # one fault, one alert, whatever the cuts
    assert sum(told) == 1
    assert told.index(1) <= 4  # 131 rows are 65 minutes: told with the first rows of the fault, not a window later
    assert (alert["kind"], alert["entity"], alert["open"]) == ("event", "right", False)
    assert abs(alert["at"] - minute(460).replace(tzinfo=UTC)) <= timedelta(minutes=2)
    assert abs(alert["ended"] - minute(490).replace(tzinfo=UTC)) <= timedelta(minutes=2)
    assert alert["reasons"][0]["column"] == "pressure"
    assert alert["reasons"][0]["value"] == pytest.approx(alert["values"]["pressure"])
    events = model.score(frame).events.filter(machine="right")
    assert (alert["score"], alert["p_value"]) == pytest.approx((events["severity"][0], events["p_value"][0]))
    at = datetime.fromisoformat(alert["values"]["at"])
    assert alert["values"]["pressure"] == frame.filter(machine="right", at=at)["pressure"][0]
    assert sum(still for _, _, still in spans) >= 2  # it was told of while it went on
    assert files_without_a_row(workspace) == []


@pytest.mark.filterwarnings("ignore:.*hold several rows")
def test_rows_of_one_place_may_come_in_different_files(workspace: Workspace, data: Path, model: SeriesModel) -> None:
    frame = fleet(2 * FITTED, 240, every=30)  # two rows a minute share a place
    for index, begin in enumerate(range(0, 480, 37)):
        frame[begin : begin + 37].write_parquet(data / f"{index:02d}.parquet")
    assert (score(workspace)["rows"], score(workspace)["late"]) == (480, 0)
    same_as_whole(places(workspace), model, frame)


def test_a_gap_is_time_that_passes_and_a_century_is_refused(
    workspace: Workspace, data: Path, model: SeriesModel
) -> None:
    frame = fleet(FITTED, 60).vstack(fleet(FITTED + 60 + 3 * WINDOW, 60))
    frame[:120].write_parquet(data / "a.parquet")
    score(workspace)
    frame[120:].write_parquet(data / "b.parquet")
    assert score(workspace)["rows"] == 120
    same_as_whole(places(workspace), model, frame)
    late = fleet(FITTED + 200, 2).with_columns(at=pl.lit(datetime(2126, 3, 1)) + pl.duration(minutes=pl.int_range(4)))
    late.write_parquet(data / "c.parquet")
    (finding,) = score(workspace)["findings"]
    assert finding["kind"] == "schema"
    for words in ("2126-03-01", "of machine 'left'", "at most 1,000,000 intervals"):
        assert words in finding["reason"]


def test_late_rows_are_named_and_left_out(workspace: Workspace, data: Path, model: SeriesModel) -> None:
    frame = fleet(FITTED, 80)
    frame[:60].write_parquet(data / "a.parquet")
    score(workspace)
    pl.concat([frame[50:54], frame[60:]]).write_parquet(data / "b.parquet")
    done = score(workspace)
    assert (done["rows"], done["late"]) == (104, 4)
    (finding,) = done["findings"]
    assert finding["kind"] == "late"
    for words in ("4 rows", "2026-03-01 07:05:00", "machine 'left'"):
        assert words in finding["reason"]
    assert workspace.events.latest()[0]["kind"] == "source_late"
    same_as_whole(places(workspace), model, frame)
    with pytest.raises(StoreError, match="part of a series"):
        workspace.scores.forget(workspace.scores.stream(1, "fleet"), "a.parquet")


def test_what_is_for_tables_is_refused(workspace: Workspace, data: Path) -> None:
    for rule in ({"fdr": 0.1}, {"contamination": 0.1}, {"alerts_per_day": 1, "rows_per_day": 10}):
        with pytest.raises(ConfigError, match=r"alerts_per_day sets.*Leave it out"):
            score(workspace, **rule)
    workspace.sources.add("fleet", replace=True, location=str(data), keys=("at",))
    options = {"new": "column", "column": "at", "late_within": 60.0, "keys": ("at", "machine")}
    workspace.sources.add("other", location=str(data), **options)
    with pytest.raises(ConfigError, match=r"late_within.*lateness"):
        score_new(workspace, ScoreJob.of(source="other", model="fleet"))


def test_files_of_other_columns_and_sensors_that_fall_silent(workspace: Workspace, data: Path) -> None:
    frame = fleet(FITTED, 130)
    gone = (pl.col("machine") == "left") & pl.col("at").is_between(minute(FITTED + 50), minute(FITTED + 99))
    frame = frame.with_columns(pl.when(~gone).then("level").alias("level"))
    frame[:100].drop("flow").write_parquet(data / "a.parquet")
    done = score(workspace)
    assert (done["rows"], done["findings"][0]["kind"], "'flow'" in done["findings"][0]["reason"]) == (0, "schema", True)
    frame[:100].write_parquet(data / "a.parquet")
    silences = []
    for number, end in enumerate((100, 124, 160, 220, 260)):
        frame[0 if not number else (100, 124, 160, 220)[number - 1] : end].write_parquet(
            data / f"{'ab cde'[number]}.parquet"
        )
        score(workspace)
        silences.append([a for a in workspace.triage.queue(ALL) if a["kind"] == "silent"])
    assert [len(each) for each in silences] == [0, 1, 1, 1, 1]  # once; 12 places are more than half a window
    assert [each[0]["open"] for each in silences[1:]] == [True, True, False, False]
    assert silences[1][0]["at"] == minute(FITTED + 50).replace(tzinfo=UTC)
    assert [reason["column"] for reason in silences[1][0]["reasons"]] == ["level"]
    assert [each[0]["score"] for each in silences[1:3]] == [12.0, 30.0]
    assert silences[1][0]["entity"] == "left"


def test_a_growing_source_stops_with_a_word(workspace: Workspace, data: Path) -> None:
    fleet(FITTED, 40).write_parquet(data / "a.parquet")
    workspace.sources.add("grown", location=str(data), new="column", column="at", settle=0.0)
    job = ScoreJob.of(source="grown", model="fleet")
    assert score_new(workspace, job)["rows"] == 80
    fleet(FITTED + 40, 4).with_columns(pl.lit("much").alias("flow")).write_parquet(data / "a.parquet")
    before = workspace.scores.stream(workspace.sources.get("grown")[0], "fleet")
    with pytest.raises(SchemaError, match="'flow'"):
        score_new(workspace, job)
    assert workspace.scores.stream(before.id, "fleet").state is None  # another stream; ours is untouched
    assert workspace.scores.stream(workspace.sources.get("grown")[0], "fleet") == before


def test_rows_of_a_database(
    workspace: Workspace, postgres: Postgres, model: SeriesModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.make_database()
    monkeypatch.setenv("PLANT_URL", url)
    frame = fleet(FITTED, 60)
    workspace.sources.add("sql", location="env:PLANT_URL", table="readings", new="column", column="at")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE readings (machine text, at timestamp, flow float8, pressure float8, level float8, pump text)"
        )
        for begin, end in ((0, 50), (50, 120)):
            rows = frame[begin:end].select("machine", "at", "flow", "pressure", "level", "pump").rows()
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO readings VALUES (%s, %s, %s, %s, %s, %s)", rows)
            score_new(workspace, ScoreJob.of(source="sql", model="fleet", rows_per_part=20))
    assert workspace.scores.stream(workspace.sources.get("sql")[0], "fleet").rows == 120
    same_as_whole(places(workspace), model, frame)


def test_two_runs_at_once_score_every_place_once(
    tmp_path: Path,
    data: Path,
    database_url: str,
    first_fit: tuple[Path, dict[str, Any], dict[str, Any]],
    model: SeriesModel,
) -> None:
    workspace = with_fleet(tmp_path / "home", database_url, first_fit)
    workspace.sources.add("fleet", location=str(data))
    frame = fleet(FITTED, 80)
    for index in range(8):
        frame[20 * index : 20 * index + 20].write_parquet(data / f"{index}.parquet")
    failed: list[Exception] = []

    def run() -> None:
        try:
            score(workspace, rows_per_part=7)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    found = places(workspace)
    assert found.height == found.unique(["machine", "at"]).height == 2 * (80 - WINDOW)
    same_as_whole(found, model, frame)
    assert workspace.scores.stream(1, "fleet").rows == 160


def test_a_new_champion_begins_where_the_old_one_ends(
    workspace: Workspace, data: Path, first_fit: tuple[Path, dict[str, Any], dict[str, Any]], model: SeriesModel
) -> None:
    frame = broken(fleet(FITTED, 120), "left", 440, 480)
    frame[:130].write_parquet(data / "a.parquet")
    score(workspace)
    (alert,) = workspace.triage.queue(ALL)
    assert alert["open"]
    shutil.copytree(first_fit[0], workspace.home / "models" / "fleet" / "second")
    workspace.models.add("fleet", "models/fleet/second", "s" * 64, "c" * 64, first_fit[1])
    workspace.models.promote("fleet", 2)
    assert score(workspace)["parts"] == 0  # nothing ends before there is something new
    frame[130:].write_parquet(data / "b.parquet")
    assert score(workspace)["parts"] == 2
    parts = list(reversed(workspace.scores.partitions()))
    assert [part["version"] for part in parts] == [1, 1, 2]
    found = places(workspace).with_columns(early=pl.col("at") < frame["at"][130])
    same_as_whole(found.filter("early"), model, frame[:130])
    same_as_whole(found.filter(~pl.col("early")), model, frame[130:])
    assert found["early"].sum() == 130
    # A fault that goes on across the change is one alert, with the new version's places.
    (same,) = workspace.triage.queue(ALL)
    assert (same["id"], same["open"], same["at"]) == (alert["id"], False, alert["at"])
    assert abs(same["ended"].replace(tzinfo=None) - minute(480)) <= timedelta(minutes=WINDOW)
    # A version that is gone takes its newest places with it, and that is told.
    shutil.rmtree(workspace.home / "models" / "fleet" / "second")
    workspace.models.promote("fleet", 1)
    fleet(FITTED + 120, 10).write_parquet(data / "c.parquet")
    done = score(workspace)
    assert done["rows"] == 20
    assert [finding["kind"] for finding in done["findings"]] == ["state_lost"]
    assert "newest 32 places" in done["findings"][0]["reason"]


def test_states_are_read_back_as_they_were(workspace: Workspace, data: Path) -> None:
    broken(fleet(FITTED, 50), "left", 430, 440).write_parquet(data / "a.parquet")
    score(workspace)
    stored = workspace.scores.stream(1, "fleet").state
    assert stored is not None
    kept = Kept.from_bytes(stored)
    again = Kept.from_bytes(kept.to_bytes())
    assert kept.to_bytes() == again.to_bytes()
    assert again.held.equals(fleet(FITTED + 49, 1).select(again.held.columns))
    assert again.values.height == 2 * (WINDOW - 1)


# ------------------------------------------------------------------------------------------------------ events to alerts


def test_events_find_their_alerts() -> None:
    def told(first: int, last: int, *, entity: str = "a", opened: bool = False, severity: float = 5.0) -> Told:
        sensors = (("x", 0.7), ("y", 0.3))
        return Told(entity, entity, "event", first, last, first, severity, 0.1, 2.0, sensors, opened)

    def run(events: list[Told], opened: list[dict[str, Any]]) -> tuple[list[Any], dict[int, Any]]:
        seen = lambda event: Seen({"x": [1.0, 0.0, -1.0, 0.5], "y": ["on", None, None, None]})  # noqa: E731
        stamp = lambda place: START + timedelta(minutes=place)  # noqa: E731
        return settle(events, opened, {"a": 15, "b": 33}, reach=4, seen=seen, stamp=stamp, time="at")

    new, changed = run([told(10, 12, opened=True), told(30, 31, entity="b")], [])
    assert (len(new), changed) == (2, {})
    assert [alert.row for alert in new] == [0, 1]
    assert new[0].reasons[0] == {"column": "x", "part": 3.5, "expected": 0.0, "value": 1.0, "low": -1.0, "high": 0.5}
    assert new[0].values == {"at": "2026-03-01 00:10:00", "x": 1.0, "y": "on"}
    stored = [{"id": 7 + i, **vars(alert)} for i, alert in enumerate(new)]
    # The first goes on, another one comes; that of b is final, and so is one of an entity that nobody looked at.
    other = {**stored[0], "id": 99, "entity": "elsewhere"}
    new, changed = run([told(10, 18, opened=True, severity=9.0), told(40, 41, opened=True)], [*stored, other])
    assert [alert.first_place for alert in new] == [40]
    assert (changed[7].last_place, changed[7].score, changed[7].open) == (18, 9.0, True)
    assert changed[8] == replace(run([told(30, 31, entity="b")], [])[0][0], row=1, open=False)
    assert 99 not in changed
    # No event touches them any more: places up to 12 are final by now, those of a later one are not.
    later = {**stored[0], "id": 50, "first_place": 20, "last_place": 22}
    new, changed = run([], [stored[0], later])
    assert (new, set(changed)) == ([], {7})
    assert changed[7] == replace(run([told(10, 12, opened=True)], [])[0][0], open=False)


@pytest.mark.parametrize(("further", "risen"), [(0.0, 0), (9.0, 1)])
def test_an_event_that_becomes_graver_is_told_of_again(
    workspace: Workspace, data: Path, further: float, risen: int
) -> None:
    frame = fleet(FITTED, 140)

    def higher(by: float, begin: int) -> pl.Expr:
        there = (pl.col("machine") == "right") & (pl.col("at") >= minute(FITTED + begin))
        return pl.when(there).then(pl.col("level") + by).otherwise("level").alias("level")

    frame = frame.with_columns(higher(1.6, 80)).with_columns(higher(further, 110))
    frame[:220].write_parquet(data / "0.parquet")
    first = score(workspace)
    assert (first["alerts"], first["risen"]) == (1, 0)
    (alert,) = workspace.triage.queue(ALL)
    assert (alert["open"], alert["severity"]) == (True, "medium")
    frame[220:].write_parquet(data / "1.parquet")
    second = score(workspace)
    assert (second["alerts"], second["risen"]) == (0, risen)


# ------------------------------------------------------------------------------------------------------ around scoring


@pytest.fixture
def scored(workspace: Workspace, data: Path) -> Workspace:
    """The level of one machine is 8 higher from some minute on, and stays."""
    frame = fleet(FITTED, 140)
    later = (pl.col("machine") == "right") & (pl.col("at") >= minute(FITTED + 80))
    frame = frame.with_columns(pl.when(later).then(pl.col("level") + 8).otherwise("level").alias("level"))
    for index, begin in enumerate(range(0, 280, 40)):
        frame[begin : begin + 40].write_parquet(data / f"{index}.parquet")
    score(workspace)
    return workspace


def test_a_level_is_accepted_from_its_alert(
    scored: Workspace, data: Path, monkeypatch: pytest.MonkeyPatch, model: SeriesModel
) -> None:
    monkeypatch.setenv("TABDIFF_HOME", str(scored.home))
    monkeypatch.delenv("TABDIFF_DATABASE_URL", raising=False)
    (alert,) = scored.triage.queue(ALL)
    assert (alert["entity"], alert["reasons"][0]["column"], alert["severity"]) == ("right", "level", "high")
    shown = CliRunner().invoke(app, ["alerts", "list"]).stdout
    assert "right 2026-03-01" in " ".join(shown.split())
    call = ["alerts", "accept", str(alert["id"]), "--author", "ann", "--note", "new tank", "--json"]
    done = json.loads(CliRunner().invoke(app, call).stdout)
    rows = pl.concat([pl.read_parquet(path) for path in sorted(data.iterdir())])
    mine = rows.filter(pl.col("machine") == "right", pl.col("at") >= alert["at"].replace(tzinfo=None))
    usual = model.plan.start["level"]
    assert done["levels"]["level"] == pytest.approx(mine["level"].median() - usual, abs=0.02)  # type: ignore[operator]
    assert (done["version"], scored.models.get("fleet").version) == (2, 2)
    found = scored.triage.get(alert["id"])
    assert [(h["verdict"], h["author"]) for h in found["history"]] == [("normal", "ann")]
    fleet(FITTED + 140, 60).with_columns(
        pl.when(pl.col("machine") == "right").then(pl.col("level") + 8).otherwise("level").alias("level")
    ).write_parquet(data / "9.parquet")
    quiet = score(scored)
    assert (quiet["alerts"], quiet["verdicts"]) == (0, {"false_alarms": 0})
    assert not scored.triage.get(alert["id"])["open"]
    # A training on rows of both levels makes a model of the new one.
    again = train(scored, TrainJob.of(source="fleet", model="fleet", fit=FIT, promote="never", compiled=False))
    version = scored.models.get("fleet", str(again["version"]))
    assert (again["levels"], version.metrics["accepted"]) == (1, scored.models.get("fleet").metrics["accepted"])
    assert version.folder is not None
    known = pl.read_parquet(version.folder / FITTED_ROWS).filter(machine="right")
    assert known["level"].min() > 50 + 4  # type: ignore[operator]
    # The alert counts as a false alarm, and yet a fall back to the old level is told.
    fleet(FITTED + 200, 60).write_parquet(data / "99.parquet")
    assert score(scored)["alerts"] == 1
    scored.models.roll_back("fleet")
    with pytest.raises(StoreError, match="no alert"):
        accept_level(scored, 999, "ann")


def test_what_is_no_level_cannot_be_accepted(workspace: Workspace, data: Path) -> None:
    broken(fleet(FITTED, 60), "left", 455, 459).write_parquet(data / "a.parquet")
    score(workspace)
    (alert,) = workspace.triage.queue(ALL)
    with pytest.raises(StoreError, match=r"at least 8 places; .* have come"):
        accept_level(workspace, alert["id"], "ann")
    assert [version.version for version in workspace.models.all("fleet")] == [1]


def test_an_event_is_inspected_and_drawn(scored: Workspace) -> None:
    (alert,) = scored.triage.queue(ALL)
    found = inspect(scored, alert["id"])
    assert (found["kind"], found["version"], found["similar"]) == ("event", 1, [])
    assert sum(found["contributions"].values()) == pytest.approx(1)
    (about,) = traces(scored)
    margin = timedelta(minutes=WINDOW)
    expected = trace(
        scored, about.stream_id, "right", alert["at"] - margin, alert["ended"] + margin, list(found["contributions"])
    )
    assert found["trace"].equals(expected)
    drawn = _series(scored, alert)
    assert drawn is not None
    assert drawn.count("<circle") == int(expected["flagged"].sum())
    assert _where(alert)["entity"] == "right"
    assert _where(alert)["to"].endswith("...") == alert["open"]


def test_the_newest_places_are_shown_and_provisional(workspace: Workspace, data: Path) -> None:
    frame = broken(fleet(FITTED, 120), "left", 455, 470)
    early = pl.col("at") < minute(FITTED + 60)
    frame.filter(early).write_parquet(data / "a.parquet")
    score(workspace)
    (about,) = traces(workspace)
    before = trace(workspace, about.stream_id, "left")
    mine = frame.filter(pl.col("machine") == "left")
    assert before["value:flow"].to_list() == pytest.approx(mine.filter(early)["flow"].to_list(), rel=1e-6)
    assert before["provisional"].to_list() == [False] * (60 - WINDOW) + [True] * WINDOW
    assert before.filter("provisional")["score"].null_count() == 0
    assert before.filter("provisional", "flagged").height > 5  # what is looked at in the morning
    frame.filter(~early).write_parquet(data / "b.parquet")
    score(workspace)
    after = trace(workspace, about.stream_id, "left")
    assert after["start"].to_list() == mine["at"].to_list()
    assert after["provisional"].sum() == WINDOW
    final = places(workspace).filter(pl.col("machine") == "left")
    assert after.filter(~pl.col("provisional"))["score"].equals(final["score"])


def test_a_saved_rule_decides_on_the_next_places(scored: Workspace, data: Path, model: SeriesModel) -> None:
    stream = scored.scores.stream(1, "fleet")
    scored.triage.save_rule(stream.id, {"alerts_per_day": 80.0, "rows_per_day": 90.0}, author="ann")
    frame = fleet(FITTED + 140, 60)
    frame.write_parquet(data / "9.parquet")
    assert score(scored)["rule"] == {"alerts_per_day": 80.0}  # how many stretches a day has a series knows itself
    threshold = np.sort(model.blocks)[len(model.blocks) - int(80.0 / 90.0 * (len(model.blocks) + 1))]
    found = places(scored).filter(pl.col("at") >= minute(FITTED + 140))
    assert found["flagged"].equals((found["score"] > threshold).alias("flagged"))
    assert found["flagged"].sum() > 0


def test_monitoring_tells_drift_from_events_and_names_who_is_silent(workspace: Workspace, data: Path) -> None:
    frame = fleet(0, FITTED + 200)
    frame.write_parquet(data / "a.parquet")
    job = MonitorJob.of(source="fleet", model="fleet")
    score(workspace)
    found = monitor(workspace, job)
    assert (found["verdict"], found["new_columns"], found["scores"]["moved"]) == ("fine", [], False)
    assert found["scores"]["rows"] == 2 * (FITTED + 200 - WINDOW)
    moved = (
        fleet(FITTED + 200, 600)
        .with_columns(pl.col("level") + 6)
        .filter((pl.col("machine") == "right") | (pl.col("at") < minute(FITTED + 700)))
    )
    moved.write_parquet(data / "b.parquet")
    score(workspace)
    found = monitor(workspace, MonitorJob.of(source="fleet", model="fleet", rows=800))
    assert [each["column"] for each in found["columns"] if each["drifted"]] == ["level"]
    assert found["verdict"] == "drifted"
    assert found["freshness"]["stopped"] == {"left": str(minute(FITTED + 699))}
    assert any(line.startswith("stale: machine stopped reporting: left") for line in found["findings"])
    fleet(FITTED + 800, 60).drop("pressure").write_parquet(data / "c.parquet")
    assert monitor(workspace, MonitorJob.of(source="fleet", model="fleet", rows=100))["verdict"] == "schema changed"
