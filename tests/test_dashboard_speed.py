"""What makes the dashboard quick: one query for many who ask, static files from memory, and a collector with little to do."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from starlette.testclient import TestClient

from dashboard import bars, queries, upkeep
from dashboard.assets import Assets, Shelf
from dashboard.charts import describe_days
from dashboard.server import at_once
from tabdiff.store import Workspace
from tabdiff.store.scores import Alert, Part
from tabdiff.store.triage import Filter
from tests.test_store import add_version


def test_ten_people_who_ask_the_same_cost_one_query() -> None:
    answers, asked, together = queries.Answers(), [0], threading.Barrier(10)
    release = threading.Event()

    def ask() -> int:
        asked[0] += 1
        release.wait(5)
        return asked[0]

    def somebody(_: int) -> int:
        together.wait()
        return answers.get("question", 10.0, ask)

    with ThreadPoolExecutor(10) as people:
        found = [people.submit(somebody, n) for n in range(10)]
        release.set()
        assert {one.result() for one in found} == {1}
    assert answers.get("another", 10.0, lambda: 7) == 7


def test_answers_grow_old_and_errors_are_not_kept() -> None:
    clock = [0.0]
    answers = queries.Answers(most=3, clock=lambda: clock[0])
    assert answers.get("a", 5.0, lambda: 1) == 1
    clock[0] = 4.9
    assert answers.get("a", 5.0, lambda: 2) == 1
    clock[0] = 5.0
    assert answers.get("a", 5.0, lambda: 3) == 3
    with pytest.raises(ValueError, match="broken"):
        answers.get("b", 5.0, lambda: (_ for _ in ()).throw(ValueError("broken")))
    assert answers.get("b", 5.0, lambda: 4) == 4
    for name in "cdef":  # the oldest go
        answers.get(name, 5.0, lambda: 0)
    assert answers.get("a", 5.0, lambda: 9) == 9


def test_answers_of_different_lives_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABDIFF_HOME", str(tmp_path))
    monkeypatch.delenv("TABDIFF_DATABASE_URL", raising=False)
    Workspace.create()
    asked: list[str] = []

    def make(name: str, seconds: float | None, lasting: bool) -> Any:
        def ask(workspace: Workspace, number: int) -> int:
            asked.append(f"{name}{number}")
            return number

        ask.__qualname__ = name
        return queries.Cached(ask, seconds, lasting)

    short, long, marked = make("short", 15.0, False), make("long", 3600.0, True), make("marked", None, False)
    for _ in range(3):
        assert (short(1), long(1), marked(1), long(2)) == (1, 1, 1, 2)
    assert asked == ["short1", "long1", "marked1", "long2"]
    queries.refresh()
    assert (short(1), long(1), marked(1)) == (1, 1, 1)
    assert asked[4:] == ["short1", "marked1"]


def test_the_mark_changes_with_everything_that_changes_answers(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "home")
    add_version(workspace, "m", "one")
    workspace.models.promote("m", 1)
    workspace.sources.add("s", location=str(tmp_path))
    marks = [workspace.triage.mark()]
    assert workspace.triage.mark() == marks[0]

    def changed() -> bool:
        marks.append(workspace.triage.mark())
        return marks[-1] not in marks[:-1]

    stream = workspace.scores.stream(workspace.sources.get("s")[0], "m")
    assert changed()
    options: dict[str, Any] = {"flagged": 2, "model_id": workspace.models.get("m").id, "watermark": None}
    with workspace.runs.start("score", "s:m") as run:
        rows = [Alert(n, 9.0 - n, 0.01, [], {}, excess=3.0 + n) for n in range(3)]
        workspace.scores.commit(
            stream, Part("u", 0, True, None, 9), pl.DataFrame({"score": [1.0]}), rows, run_id=run.id, **options
        )
    assert changed()
    numbers = workspace.triage.numbers(Filter())
    assert numbers == [alert["id"] for alert in workspace.triage.queue(Filter())]
    assert workspace.triage.numbers(Filter(), 1) == numbers[:1]
    workspace.scores.judge(numbers[0], "anomaly", author="ann")
    assert changed()
    soon = datetime.now(UTC) + timedelta(milliseconds=200)
    workspace.scores.judge(numbers[1], "snooze", author="ann", until=soon)
    assert changed()
    while datetime.now(UTC) < soon:
        threading.Event().wait(0.05)
    assert changed()  # awake again
    workspace.triage.save_rule(stream.id, {"fdr": 0.05}, author="ann")
    assert changed()
    add_version(workspace, "m", "two")
    assert changed()
    workspace.models.promote("m", 2)
    assert changed()
    workspace.models.roll_back("m")
    assert changed()


def test_static_files_come_from_memory_as_they_are_on_disk() -> None:
    shelf = Shelf()
    passed: list[str] = []

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    browser = TestClient(Assets(beyond, shelf, lambda: ""))
    name = next(name for name in shelf.files if name.startswith("/static/js/DataFrame."))
    expected = shelf.files[name].read_bytes()
    for coding in ("gzip", "identity"):
        for _ in range(2):
            answer = browser.get(name, headers={"accept-encoding": coding})
            assert answer.content == expected
            assert answer.headers.get("content-encoding", "identity") == coding
            assert "javascript" in answer.headers["content-type"]
            assert "immutable" in answer.headers["cache-control"]
    assert int(browser.get(name).headers["content-length"]) < len(expected) / 2
    for path in (
        "/static/js/none.js",
        "/static/../index.html",
        "/static/%2e%2e/%2e%2e/pyproject.toml",
        "/_stcore/health",
        "/media/x",
    ):
        assert browser.get(path).status_code == 404
    assert browser.get(name, headers={"range": "bytes=0-1"}).status_code == 404  # left to Streamlit
    assert browser.post("/").status_code == 404
    assert passed


def test_the_first_view_is_in_the_document_of_the_overview_only(caplog: pytest.LogCaptureFixture) -> None:
    release, shelf = threading.Event(), Shelf()

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(scope["path"])

    def broken() -> str:
        raise ValueError("no table")

    def late() -> str:
        release.wait(5)
        return "LATE"

    browser = TestClient(Assets(beyond, shelf, lambda: '<div id="first-view">7</div>'))
    overview = browser.get("/")
    assert '<div id="first-view">7</div><div id="root"></div>' in overview.text
    assert overview.headers["cache-control"] == "no-store"
    assert browser.get("/overview").url.path == "/"
    assert 'first-view">7' not in browser.get("/anomalies").text
    plain_document = browser.get("/anomalies").text
    assert TestClient(Assets(beyond, shelf, broken)).get("/").text == plain_document
    assert "no table" in caplog.text
    try:
        assert TestClient(Assets(beyond, shelf, late)).get("/").text == plain_document
    finally:
        release.set()


def test_what_is_written_is_sent_at_once() -> None:
    """The kernel keeps nothing back until the browser acknowledges what came before. Sockets are made as Streamlit makes them."""

    class Quiet(asyncio.Protocol):
        pass

    class Prompt(asyncio.Protocol):
        pass

    at_once(Prompt)

    async def delay(protocol: type[asyncio.Protocol]) -> bool:
        met: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Telling(protocol):  # type: ignore[misc,valid-type]
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                connected = transport.get_extra_info("socket")
                met.set_result(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        server = await asyncio.get_running_loop().create_server(Telling, sock=listening)
        async with server:
            _, writer = await asyncio.open_connection(*listening.getsockname())
            try:
                return not await met
            finally:
                writer.close()

    assert asyncio.run(delay(Quiet))  # if asyncio mends it, `at_once` can go
    assert not asyncio.run(delay(Prompt))


def test_the_document_names_what_pages_need_and_what_it_names_exists() -> None:
    shelf = Shelf()
    document = shelf.document().decode()
    original = (shelf.root / "index.html").read_text()
    assert len(document) > len(original)
    assert document.index('rel="stylesheet"') < document.index("modulepreload") < document.index('<div id="root">')
    now = {part.partition('"')[0] for part in document.split('href="./')[1:]}
    later = {part.partition('"')[0] for part in document.split('"./')[1:]}
    assert not any(name.startswith("static/js/DataFrame.") for name in now)  # it would hold up the first page
    named = now | later
    assert {f"/{name}" for name in named if name.startswith("static/js")} <= set(shelf.files)
    for part in (
        "DataFrame",
        "ArrowVegaLiteChart",
        "Metric",
        "Html",
    ):  # they were found under Streamlit's present names
        assert any(name.startswith(f"static/js/{part}.") for name in named), part
    assert {"/", "/anomalies"} <= shelf.documents


def test_the_collector_leaves_what_was_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        assert upkeep.settle()
        assert gc.get_freeze_count() > 10_000
        assert not upkeep.settle(at_least=1)  # nothing came since
    finally:
        gc.unfreeze()
        upkeep._state["modules"] = 0


def test_bars_say_their_numbers() -> None:
    days = [date(2026, 11, 30), date(2026, 12, 1)]
    lines = [(days[0], "high", 3), (days[0], "low", 1), (days[1], "high", 0), (days[1], "low", 1200)]
    counts = pl.DataFrame(lines, schema=["day", "severity", "alerts"], orient="row")
    said = describe_days(counts)
    drawn = bars.by_day(counts, said)
    assert f'aria-label="{said}"' in drawn
    assert "30 Nov: 3 high, 1 low" in drawn
    assert "01 Dec: 1,200 low" in drawn
    assert ">1.2k<" in drawn
    assert "none in this time" in describe_days(counts.with_columns(alerts=pl.lit(0)))
    assert bars.by_day(counts.head(0), "nothing")
