"""The page of series and events in the queue: peaks, gaps, spans and stretches, on recordings from a seeded generator."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import event, lanes, queries, recordings, stories, triage
from dashboard.state import lasting
from tabdiff.operations.inspection import inspect
from tabdiff.operations.tracing import Trace
from tabdiff.store import Workspace
from tabdiff.store.triage import Filter
from tests.recordings import BEGIN, NUMBERS, SPIKE, THRESHOLD, about, pumps, recording

APP = Path(__file__).parent.parent / "dashboard" / "app.py"
ABOUT = about(15)
TRACE = Trace(1, "pumps", "pumps", numbers=NUMBERS, categories=("valve",), entities=("pump-1",), **{k: ABOUT[k] for k in ("time", "entity", "interval", "interval_us", "steps", "window", "threshold")})  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return pumps(tmp_path_factory.mktemp("pumps") / "home")


@pytest.fixture
def workspace(made: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("TABDIFF_HOME", str(made.home))
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "admin")
    monkeypatch.delenv("TABDIFF_DATABASE_URL", raising=False)
    return made


def opened(name: str, **query: str | list[str]) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.run()
    for key, value in query.items():
        app.query_params[key.rstrip("_")] = value
    app.switch_page(f"pages/{name}.py").run()
    assert not app.exception
    return app


def drawn(app: AppTest) -> list[dict[str, Any]]:
    """Options of the charts on a page."""
    return [json.loads(chart.proto.spec) for chart in app.get("echarts_chart")]


def test_a_single_place_among_a_million_is_drawn_at_its_full_height(tmp_path: Path) -> None:
    spike = 654_321
    workspace = pumps(tmp_path / "home", count=1_000_000, minutes=1, machines=1, spike=spike)
    (trace,) = recordings.traces.of(workspace)
    whole = recordings.span.of(workspace, trace.stream_id, "pump-1")
    assert whole is not None
    frame = recordings.stretch.of(workspace, trace.stream_id, "pump-1", *whole, ("vibration",))
    points = lanes.strokes(frame, trace, ["vibration"])
    assert frame["places"].sum() == 1_000_000
    assert points.height <= 2 * recordings.BUCKETS + 10
    assert points["v0"].max() == SPIKE
    assert points["score"].max() == 60.0
    when = points.filter(pl.col("v0") == SPIKE)["x"][0]
    planted = BEGIN.replace(tzinfo=UTC) + timedelta(minutes=spike + 120)
    assert abs(when - planted) <= (whole[1] - whole[0]) / recordings.BUCKETS
    assert points.filter(pl.col("v0") > 10)["x"].n_unique() == 1  # and nowhere else
    strip = recordings.strip.of(workspace, trace.stream_id, "pump-1")
    assert strip["score"].max() == 60.0


def stretch(workspace: Workspace, pump: str = "pump-1") -> tuple[Trace, pl.DataFrame, tuple[Any, Any]]:
    (trace,) = recordings.traces.of(workspace)
    whole = recordings.span.of(workspace, trace.stream_id, pump)
    assert whole is not None
    return trace, recordings.stretch.of(workspace, trace.stream_id, pump, *whole, trace.sensors, 5000), whole


def test_lines_break_where_nothing_was_recorded(workspace: Workspace) -> None:
    trace, frame, _ = stretch(workspace)
    points = lanes.strokes(frame, trace, ["flow", "valve"])
    missing = points.with_row_index().filter(pl.col("v0").is_null())
    assert missing.height == frame["gap"].sum() == 1
    (gap,) = missing["index"]
    raw = recording("pump-1", 1500, 15, 0)
    assert points["v0"].drop_nulls().to_list() == raw["value:flow"].to_list()  # every place as it was recorded
    assert points["x"][gap + 1] - points["x"][gap - 1] == timedelta(minutes=135)
    width = (raw["high:flow"] - raw["low:flow"]).to_list()
    assert points["h0"].drop_nulls().to_list() == pytest.approx(width, rel=1e-5)
    assert set(points["v1"].drop_nulls()) == {"open", "half"}


def test_events_are_spans_on_every_lane_with_their_state_in_words(workspace: Workspace) -> None:
    trace, frame, whole = stretch(workspace, "pump-4")
    found = recordings.events.of(workspace, "pumps", "pumps", "pump-4", *whole)
    assert [one["excess"] for one in found] == [1.5, 4.0]
    states = {found[0]["id"]: "confirmed", found[1]["id"]: "open"}
    near = (found[0]["at"] - timedelta(hours=2), found[0]["ended"] + timedelta(hours=2))
    picture = lanes.draw(frame, trace, ["vibration", "valve"], found, states, near)
    areas = [one["markArea"]["data"] for one in picture.option["series"] if "markArea" in one]
    assert len(areas) == 3  # two sensors and the score
    first, last = areas[0][0]
    assert lanes.from_moment(first["xAxis"], whole[0]) == found[0]["at"]
    assert lanes.from_moment(last["xAxis"], whole[0]) == found[0]["ended"]
    assert first["label"] == {**first["label"], "show": True, "formatter": f"{found[0]['id']}: confirmed"}
    colours = {
        area[0]["itemStyle"]["color"] + area[0]["itemStyle"]["borderType"] + str(area[0]["itemStyle"]["opacity"])
        for area in areas[0]
    }
    assert len(colours) == 2
    assert {
        one["yAxis"] for series in picture.option["series"] for one in series.get("markLine", {}).get("data", [])
    } == {THRESHOLD}
    assert picture.option["yAxis"][-1]["max"] > THRESHOLD
    assert f"{found[0]['id']} confirmed" in picture.words
    assert "1 gaps" in picture.words
    assert len({lanes.STATES[name] for name in lanes.STATES}) == len(lanes.STATES)


def test_events_that_touch_a_stretch_are_found(workspace: Workspace) -> None:
    def ask(first: float, last: float) -> int:
        start = BEGIN.replace(tzinfo=UTC)
        ends = (start + timedelta(hours=first), start + timedelta(hours=last))
        return len(recordings.events.of(workspace, "pumps", "pumps", "pump-4", *ends))

    # One lasts from hour 60 to hour 63.
    assert [ask(0, 59), ask(0, 60), ask(61, 62), ask(63, 70), ask(63.01, 70), ask(50, 80)] == [0, 1, 1, 1, 0, 1]


def test_a_link_leads_back_to_the_same_stretch(workspace: Workspace) -> None:
    query: dict[str, Any] = {
        "recording": "pumps by pumps",
        "about": "pump-2",
        "sensors": ["flow", "valve"],
        "beside": "pump-3",
    }
    app = opened("series", from_="2026-11-03T00:00:00Z", to="2026-11-04T00:00:00Z", **query)
    _, option = drawn(app)
    assert [axis["name"] for axis in option["yAxis"]] == ["flow", "valve", "score"]
    ends = [lanes.from_moment(option["xAxis"][0][name], datetime.now(UTC)) for name in ("min", "max")]
    assert ends == [datetime(2026, 11, 3, tzinfo=UTC), datetime(2026, 11, 4, tzinfo=UTC)]
    assert any(series["name"] == "flow, pump-3" for series in option["series"])
    app.button(key="go-Zoom out").click().run()
    assert app.query_params["from"] == "2026-11-02T12:00:00Z"
    assert app.query_params["to"] == "2026-11-04T12:00:00Z"
    app.button(key="go-Earlier").click().run()
    assert app.query_params["from"] == "2026-11-01T12:00:00Z"
    app.button(key="go-All").click().run()
    assert "from" not in app.query_params


@pytest.mark.parametrize(
    "nonsense", [("x", "y"), ("2030-01-01", "2031-01-01"), ("2026-11-09", "2026-11-02"), ("9" * 400, "")]
)
def test_an_address_that_asks_for_no_stretch_shows_everything(workspace: Workspace, nonsense: tuple[str, str]) -> None:
    app = opened("series", from_=nonsense[0], to=nonsense[1], beside="a week before")
    assert len(drawn(app)) == 2
    assert app.button(key="go-All").disabled


def test_rows_are_not_drawn_from_a_series(workspace: Workspace) -> None:
    app = opened("synthesize", model="pumps")
    assert not app.error
    assert not app.dataframe


def test_the_first_look_is_at_what_is_worst(workspace: Workspace) -> None:
    app = opened("series")
    assert app.selectbox(key="about").value == "pump-4"
    assert app.multiselect(key="sensors").value[:2] == ["vibration", "current"]
    assert any("2 events in this stretch" in heading.value for heading in app.subheader)


def test_the_queue_shows_events_and_narrows_to_them(workspace: Workspace) -> None:
    app = opened("anomalies")
    table = app.dataframe[0].value
    assert table["Lasted"][0] == "8 h, still open"
    assert table["Because"][0] == "vibration 6.2 (expected 2.1), current 15 (expected 11)"
    app.selectbox(key="kind").select("rows").run()
    assert any("No alert fits" in info.value for info in app.info)
    app.selectbox(key="kind").select("events").run()
    assert len(app.dataframe[0].value) == 4
    overview = opened("overview")
    assert {one.label: one.value for one in overview.metric}["of them events"] == "4"


def test_an_event_is_told_with_its_sensors_around_it(workspace: Workspace) -> None:
    number = next(one["id"] for one in workspace.triage.queue(Filter()) if one["excess"] == 4.0)
    app = opened("anomalies", alert=f"{number}")
    (option,) = drawn(app)
    assert [axis["name"] for axis in option["yAxis"]] == ["vibration", "current", "score"]
    assert "brush" not in option
    shown = " ".join(one.value for one in app.markdown)
    assert "1\\.5 to 2\\.7 would be expected" in shown
    assert "seal was worn" in shown  # the judged one that is like it
    assert "8 h\\, still open" in app.subheader[0].value
    ends = inspect(workspace, number)["trace"]["start"]
    assert option["xAxis"][0]["min"] <= lanes.moment(ends[0].replace(tzinfo=UTC))


def test_a_level_is_accepted_by_admins_only(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str, str]] = []

    def accept(_: Workspace, number: int, author: str, note: str) -> dict[str, Any]:
        asked.append((number, author, note))
        return {"version": 2, "model": "pumps"}

    monkeypatch.setattr(event, "accept_level", accept)
    number = workspace.triage.queue(Filter())[0]["id"]
    app = opened("anomalies", alert=f"{number}")
    app.text_input(key=f"accept-{number}").set_value("new seal").run()
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "analyst")  # between drawing the page and the click
    app.button(key=f"accepted-{number}").click().run()
    assert any("needs the role admin" in error.value for error in app.error)
    assert asked == []
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "admin")
    app.run()
    app.text_input(key=f"accept-{number}").set_value("new seal").run()
    app.button(key=f"accepted-{number}").click().run()
    assert [(one[0], one[2]) for one in asked] == [(number, "new seal")]


def test_events_tell_stories_too(workspace: Workspace) -> None:
    told = stories.tell(workspace.triage.queue(Filter(state="all")))
    assert (("vibration", "high"),) in {tuple(story.carried_by) for story in told}
    assert max(len(story.alerts) for story in told) == 2


def test_words_for_how_long_something_lasted(workspace: Workspace) -> None:
    spans = [
        timedelta(seconds=5),
        timedelta(minutes=45),
        timedelta(minutes=135),
        timedelta(hours=8),
        timedelta(days=3, hours=4),
    ]
    assert [lasting(span) for span in spans] == ["5 s", "45 min", "2 h 15 min", "8 h", "3 d 4 h"]
    steps = {
        "kind": "silent",
        "at": None,
        "first_place": 5,
        "last_place": 9,
        "open": True,
        "reasons": [{"column": "flow"}],
        "values": {},
    }
    assert event.lasted(steps) == "5 places, still open"
    assert event.because(steps) == "no readings of flow"
    assert triage.count.of(workspace, Filter(kind="event")) == 4
    queries.refresh()
