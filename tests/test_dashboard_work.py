"""Pages that start work, on a real Prefect server and in a real browser; and what they ask of Prefect."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dashboard.jobs import FlowRun, Jobs
from flows.deploy import ON_DEMAND, Plan, read_plan
from tabdiff.errors import ConfigError, RuntimeUnavailable, StoreError
from tabdiff.operations import MonitorJob, ScoreJob, SynthesizeJob
from tabdiff.store import Workspace
from tests.browser import Dashboard, chromium, dashboard, settle, tab
from tests.databases import free_port
from tests.prefect_server import Server, prefect_server, wait_for
from tests.workspaces import orders, with_champion

pytestmark = [pytest.mark.slow]
HOSTILE = "<img src=x onerror='window.broken=1'> :red[x] $a$ [l](http://x.org) **b**"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("work")
    workspace = with_champion(folder / "home", None, small_bundle)
    (folder / "data").mkdir()
    orders(200, 0, seed=2).write_parquet(folder / "data" / "a.parquet")
    workspace.sources.add("orders", location=str(folder / "data"))
    workspace.sources.add("unmounted", location=str(folder / "nowhere"))
    with prefect_server(workspace, folder) as started:
        yield started


@pytest.fixture
def jobs(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setenv("PREFECT_API_URL", server.address)
    asked = Jobs(server.workspace.home)
    yield asked
    asked.close()


def test_without_a_process_that_serves_nothing_starts(server: Server, jobs: Jobs) -> None:
    assert "tabdiff flows serve" in jobs.trouble()
    with pytest.raises(RuntimeUnavailable, match="tabdiff flows serve"):
        jobs.start("monitor", MonitorJob.of(source="orders", model="orders"), author="ann")


def test_another_password_is_refused_in_words(server: Server, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABDIFF_PREFECT_AUTH", "tabdiff:a-wrong-password")
    other = Jobs(server.workspace.home)
    trouble = other.trouble()
    other.close()
    assert "refuses the password" in trouble
    assert "a-wrong-password" not in trouble


@pytest.fixture(scope="module")
def serving(server: Server) -> Iterator[Server]:
    """With the process that runs flows, without a file of schedules."""
    with server.process("flows", "serve", name="serve"):
        yield server


def ended(jobs: Jobs, run: FlowRun) -> FlowRun:
    return wait_for(lambda: (found := jobs.get(run.id)) and not found.alive and found)  # type: ignore[no-any-return]


def test_from_start_to_end(serving: Server, jobs: Jobs) -> None:
    wait_for(lambda: not jobs.trouble())
    impossible = jobs.start("score", ScoreJob.of(source="unmounted", model="orders"), author="ann")
    # Values that training never saw: no second try would help, so it fails at once, and says why.
    unseen = SynthesizeJob.of(model="orders", rows=10, given={"channel": "pigeon"}, sample={"steps": 2})
    failing = jobs.start("synthesize", unseen, author="bob")
    assert failing.alive
    assert (failing.kind, failing.author, failing.job["given"]) == ("synthesize", "bob", {"channel": "pigeon"})
    failed = ended(jobs, failing)
    assert failed.failed
    assert "pigeon" in failed.reason
    wait_for(lambda: any("pigeon" in text for _, text in jobs.log(failed)))
    jobs.cancel(impossible)  # it waits for a second try
    cancelled = ended(jobs, impossible)
    assert (cancelled.kind_of_state, cancelled.failed) == ("CANCELLED", True)
    with pytest.raises(ConfigError, match="has not ended"):
        jobs.cancel(cancelled)
    again = jobs.retry(failed, author="ann")
    assert (again.id != failed.id, again.job, again.author) == (True, failed.job, "ann")
    jobs.cancel(again)
    listed = {found.id: found for found in jobs.latest()}
    assert {impossible.id, failed.id, again.id} <= listed.keys()
    assert listed[failed.id].url == f"{jobs.ui}/runs/flow-run/{failed.id}"
    assert jobs.latest(kind="monitor") == []
    assert jobs.upcoming() == []
    for unknown in ("00000000-0000-0000-0000-000000000000", "../version", "", "x" * 5000):
        with pytest.raises(StoreError, match="no such run"):
            jobs.get(unknown)


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://user:hidden@127.0.0.1:{free_port()}/api")
    jobs = Jobs(Workspace.create(tmp_path / "home").home)
    with pytest.raises(RuntimeUnavailable, match="Start it: tabdiff flows server") as found:
        jobs.start("monitor", MonitorJob.of(source="a", model="b"), author="ann")
    jobs.close()
    assert "hidden" not in str(found.value)


def test_a_schedule_cannot_take_the_name_of_runs_on_demand(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f"[[schedules]]\nname='{ON_DEMAND}'\nflow='score'\nevery=60\njob={{source='a',model='b'}}")
    with pytest.raises(ConfigError, match="on-demand"):
        read_plan(plan)
    plan.write_text('timezone = "Europe/Berlin"')
    assert read_plan(plan) == Plan(timezone="Europe/Berlin")


# ------------------------------------------------------------------------------------------------ in the browser


@pytest.fixture(scope="module")
def site(serving: Server) -> Iterator[Dashboard]:
    with dashboard(serving.workspace.home, serving.logs, PREFECT_API_URL=serving.address) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def opened(page: Any, site: Dashboard, path: str) -> None:
    page.goto(f"{site.url}/{path}")
    settle(page)


def choose(page: Any, label: str, *values: str) -> None:
    """In a select box or multiselect."""
    box = page.get_by_role("combobox", name=re.compile(re.escape(label)))
    for value in values:
        box.click()
        page.get_by_role("option", name=value, exact=True).first.click()
        settle(page)
    page.keyboard.press("Escape")


def download(page: Any, button: str) -> bytes:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button, exact=True).click()
    return Path(waiting.value.path()).read_bytes()


def never_run(page: Any) -> None:
    """Nothing of the hostile name became markup."""
    assert page.evaluate("window.broken") is None
    assert page.locator("img[src=x], .katex, a[href='http://x.org']").count() == 0
    assert page.outside == []


def test_a_csv_is_uploaded_and_trained_on_and_drawn_from(
    serving: Server, site: Dashboard, browser: Any, jobs: Jobs
) -> None:
    """The first page that a fresh server shows is not the start page: nobody gets around the entry of the dashboard."""
    table = orders(400, 0, seed=3).rename({"weight": HOSTILE})
    with tab(browser) as page:
        opened(page, site, "data")
        assert page.get_by_test_id("stSidebarNav").get_by_text("Operate").count() == 1
        page.get_by_text("Add a source").click()
        upload = {"name": "Shop orders.csv", "mimeType": "text/csv", "buffer": table.write_csv().encode()}
        page.locator("input[type=file]").set_input_files(upload)
        page.get_by_label("Name of the source").wait_for(timeout=60_000)
        page.get_by_label("Name of the source").fill("shop")
        page.get_by_role("button", name="Keep as a source").click()
        page.wait_for_url("**source=shop**", timeout=60_000)
        page.get_by_text("Start training").wait_for(timeout=60_000)
        settle(page)
        never_run(page)
        page.get_by_label("Name of the model").fill("shop")
        page.get_by_text("More options").click()
        page.get_by_label("Steps at most").fill("40")
        page.get_by_role("button", name="Start training").click()
        page.get_by_role("link", name="Look at the model").wait_for(timeout=240_000)
        never_run(page)
        version = serving.workspace.models.get("shop")
        assert version.metrics["report"]["planned_steps"] == 40
        run = serving.workspace.runs.latest(kind="train")[0]
        assert run["subject"] == "shop:shop"
        (trained,) = jobs.latest(kind="train")
        assert (trained.state, jobs.progress([trained])) == ("Completed", {trained.id: 1.0})

        page.get_by_role("link", name="Look at the model").click()
        page.get_by_text("Calibration rows").wait_for()
        settle(page)
        never_run(page)

        opened(page, site, "synthesize?model=shop")
        choose(page, "Conditions on columns", "channel", "price")
        choose(page, "Values", "web")
        page.get_by_label("from", exact=True).fill("20")
        page.get_by_label("from", exact=True).press("Enter")
        settle(page)
        page.get_by_label("Rows", exact=True).fill("150")
        page.get_by_label("Rows", exact=True).press("Enter")
        page.get_by_text("Draw all 150 rows").wait_for()
        settle(page)
        never_run(page)
        link = page.url
        page.get_by_role("button", name="Draw all 150 rows").click()
        page.get_by_role("button", name="Parquet", exact=True).wait_for(timeout=240_000)
        settle(page)
        drawn = pl.read_parquet(io.BytesIO(download(page, "Parquet")))
        assert drawn.height == 150
        assert set(drawn["channel"]) == {"web"}
        assert drawn["price"].min() >= 20  # type: ignore[operator]
        assert HOSTILE in drawn.columns
        text = pl.read_csv(io.BytesIO(download(page, "CSV for spreadsheets")))
        assert text.height == 150
        assert json.loads(download(page, "Report as JSON"))["valid"]
        never_run(page)
    with tab(browser) as page:  # the link leads somebody else to the same settings
        page.goto(link)
        page.get_by_text("Draw all 150 rows").wait_for(timeout=60_000)
        settle(page)
        assert page.get_by_label("from", exact=True).input_value() == "20"


def test_a_version_is_promoted_and_rolled_back(serving: Server, site: Dashboard, browser: Any) -> None:
    models = serving.workspace.models
    folder = models.home / "models" / "orders" / "second"
    first = models.get("orders")
    assert first.folder is not None
    folder.mkdir()
    (folder / "bundle").symlink_to(first.folder / "bundle")
    second = models.add("orders", "models/orders/second", "e" * 64, "c" * 64, first.metrics)
    with tab(browser) as page:
        opened(page, site, f"models?model=orders&version={second.version}")
        page.get_by_role("button", name=f"Promote version {second.version}").click()
        page.get_by_role("button", name="Promote", exact=True).click()
        wait_for(lambda: models.get("orders").version == second.version, 30)
        settle(page)
        assert models.get("orders", "previous").version == first.version
        page.get_by_role("button", name=f"Roll back to version {first.version}").click()
        page.get_by_role("button", name="Roll back", exact=True).click()
        wait_for(lambda: models.get("orders").version == first.version, 30)
    told = [
        (event["kind"], event["detail"]["version"])
        for event in serving.workspace.events.latest()
        if event["subject"] == "orders"
    ]
    assert told[:2] == [("rolled_back", first.version), ("promoted", second.version)]


def test_runs_show_their_log_and_are_run_again(serving: Server, site: Dashboard, browser: Any, jobs: Jobs) -> None:
    asked = SynthesizeJob.of(model="orders", rows=5, seed=77, sample={"steps": 2})
    done = ended(jobs, jobs.start("synthesize", asked, author="ann"))
    with tab(browser) as page:
        opened(page, site, f"runs?run={done.id}")
        page.get_by_text("Finished in state Completed").first.wait_for(timeout=30_000)
        assert page.get_by_role("link", name="Open in Prefect").get_attribute("href") == done.url
        before = {run.id for run in jobs.latest()}
        page.get_by_role("button", name="Run again").click()
        new = wait_for(lambda: [run for run in jobs.latest() if run.id not in before], 60)
        assert new[0].job == done.job
        ended(jobs, new[0])
    assert serving.auth[1] not in site.log.read_text()
