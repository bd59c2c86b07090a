"""What the dashboard asks of Prefect, on a real server: start, progress, log, fail, retry, cancel; and clear words when nobody answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboard.jobs import FlowRun, Jobs
from flows.deploy import ON_DEMAND, Plan, read_plan
from tabdiff.errors import ConfigError, RuntimeUnavailable, StoreError
from tabdiff.operations import MonitorJob, SynthesizeJob, TrainJob
from tabdiff.store import Workspace
from tests.databases import free_port
from tests.prefect_server import Server, prefect_server, wait_for
from tests.workspaces import QUICK, orders, with_champion

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("jobs")
    workspace = with_champion(folder / "home", None, small_bundle)
    (folder / "data").mkdir()
    orders(200, 0, seed=2).write_parquet(folder / "data" / "a.parquet")
    workspace.sources.add("orders", location=str(folder / "data"))
    with prefect_server(workspace, folder) as started:
        yield started


@pytest.fixture
def jobs(server: Server, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.setenv("PREFECT_API_URL", server.address)
    return Jobs(server.workspace.home)


def ended(jobs: Jobs, run: FlowRun) -> FlowRun:
    return wait_for(lambda: (found := jobs.get(run.id)) and not found.alive and found)  # type: ignore[no-any-return]


def test_from_start_to_end(server: Server, jobs: Jobs) -> None:
    job = TrainJob.of(source="orders", model="second", fit=QUICK, evaluation_share=0.3)
    assert "tabdiff flows serve" in jobs.trouble()
    with pytest.raises(RuntimeUnavailable, match="tabdiff flows serve"):
        jobs.start("train", job, author="ann")
    with server.process("flows", "serve", name="serve"):
        wait_for(lambda: not jobs.trouble())
        run = jobs.start("train", job, author="ann")
        assert run.alive
        assert (run.kind, run.author, run.job["model"], run.job["fit"]) == ("train", "ann", "second", QUICK)
        impossible = jobs.start("synthesize", SynthesizeJob.of(model="absent"), author="ann")
        trained = ended(jobs, run)
        assert trained.state == "Completed"
        assert trained.seconds > 0
        assert jobs.progress([trained]) == {trained.id: 1.0}
        assert any("Finished in state Completed" in text for _, text in jobs.log(trained))
        assert server.workspace.models.get("second").version == 1
        jobs.cancel(impossible)  # it waits for a second try
        cancelled = ended(jobs, impossible)
        assert (cancelled.kind_of_state, cancelled.failed) == ("CANCELLED", True)
        with pytest.raises(ConfigError, match="has not ended"):
            jobs.cancel(cancelled)
        # Values that training never saw: no second try would help, so it fails at once, and says why.
        unseen = SynthesizeJob.of(model="orders", rows=10, given={"channel": "pigeon"}, sample={"steps": 2})
        failed = ended(jobs, jobs.start("synthesize", unseen, author="bob"))
        assert failed.failed
        assert "pigeon" in failed.reason
        again = jobs.retry(failed, author="ann")
        assert (again.id != failed.id, again.job, again.author) == (True, failed.job, "ann")
        listed = {found.id: found for found in jobs.latest()}
        assert {run.id, impossible.id, failed.id, again.id} <= listed.keys()
        assert listed[run.id].url.startswith("http://127.0.0.1")
        assert jobs.latest(kind="monitor") == []
        assert jobs.upcoming() == []
        ended(jobs, again)
    with pytest.raises(StoreError, match="no such run"):
        jobs.get("00000000-0000-0000-0000-000000000000")


def test_another_password_is_refused_in_words(server: Server, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABDIFF_PREFECT_AUTH", "tabdiff:a-wrong-password")
    trouble = Jobs(server.workspace.home).trouble()
    assert "refuses the password" in trouble
    assert "a-wrong-password" not in trouble


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://user:hidden@127.0.0.1:{free_port()}/api")
    jobs = Jobs(Workspace.create(tmp_path / "home").home)
    with pytest.raises(RuntimeUnavailable, match="Start it: tabdiff flows server") as found:
        jobs.start("monitor", MonitorJob.of(source="a", model="b"), author="ann")
    assert "hidden" not in str(found.value)


def test_a_schedule_cannot_take_the_name_of_runs_on_demand(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f"[[schedules]]\nname='{ON_DEMAND}'\nflow='score'\nevery=60\njob={{source='a',model='b'}}")
    with pytest.raises(ConfigError, match="on-demand"):
        read_plan(plan)
    plan.write_text('timezone = "Europe/Berlin"')
    assert read_plan(plan) == Plan(timezone="Europe/Berlin")
