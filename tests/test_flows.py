"""Flows on a real Prefect server, on SQLite and on PostgreSQL: a schedule fires by itself, and nobody gets in without a password."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from flows import deploy
from tabdiff.errors import ConfigError, SourceError
from tests.databases import Postgres, free_port
from tests.prefect_server import ROOT, TABDIFF, Server, prefect_server, wait_for
from tests.workspaces import QUICK, broken, files_without_a_row, fleet, orders, scored_ids, with_champion

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Iterator[Server]:
    """One server on SQLite for all cheap tests."""
    folder = tmp_path_factory.mktemp("flows")
    workspace = with_champion(folder / "home", None, small_bundle)
    (folder / "data").mkdir()
    workspace.sources.add("orders", location=str(folder / "data"))
    with prefect_server(workspace, folder) as started:
        yield started


def plan(folder: Path, *schedules: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(
        'timezone = "Europe/Berlin"\n' + "".join(f"[[schedules]]\n{lines}\n" for lines in schedules), encoding="utf-8"
    )
    return path


def every_ten_seconds(source: str = "orders") -> str:
    return (
        'name = "often"\nflow = "score"\nevery = 10\noverlap = "skip"\n'
        f'job = {{ source = "{source}", model = "orders", contamination = 0.1 }}'
    )


def finished_runs(server: Server) -> list[dict[str, Any]]:
    runs = server.ask("/flow_runs/filter", sort="START_TIME_ASC")
    return [run for run in runs if run["state_type"] == "COMPLETED"]


def test_nobody_gets_in_without_the_password(server: Server) -> None:
    for method, path in (
        ("GET", "/version"),
        ("GET", "/admin/settings"),
        ("POST", "/flow_runs/filter"),
        ("POST", "/variables/"),
    ):
        for auth in (None, ("tabdiff", "wrong"), ("", "")):
            answer = httpx.request(method, server.address + path, auth=auth, verify=False)
            assert answer.status_code == 401 if method == "GET" else answer.status_code in (401, 403), path
    without_token = httpx.post(f"{server.address}/flow_runs/filter", auth=server.auth, json={}, verify=False)
    assert without_token.status_code == 403
    secret = server.workspace.home / "prefect-auth"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(server.auth[1]) >= 32


def test_a_schedule_fires_by_itself(server: Server) -> None:
    data = Path(server.workspace.sources.get("orders")[1].location)
    orders(40, 0).write_parquet(data / "a.parquet")
    with server.process("flows", "serve", "--plan", str(plan(server.logs, every_ten_seconds())), name="serve"):
        wait_for(lambda: scored_ids(server.workspace) == list(range(40)))
        log = server.logs / "serve.log"
        wait_for(lambda: "'score orders with orders' - 40 new rows scored by orders version 1, " in log.read_text())
        orders(40, 40).write_parquet(data / "b.parquet")
        wait_for(lambda: scored_ids(server.workspace) == list(range(80)))
        runs = wait_for(lambda: finished_runs(server))
    with server.client() as client:  # or the server goes on planning runs that nobody serves
        # Prefect's own SQLite answers 503 while it is busy.
        wait_for(lambda: client.delete(f"/deployments/{runs[0]['deployment_id']}").status_code in (204, 404))
    assert all(run["auto_scheduled"] for run in runs)
    assert {"tabdiff"} <= set(runs[0]["tags"])
    assert server.workspace.runs.latest()[0]["status"] == "done"
    artifacts = {artifact["key"]: artifact for artifact in server.ask("/artifacts/filter")}
    rows = json.loads(artifacts["tabdiff-anomalies-orders"]["data"])
    assert set(rows[0]) == {"alert", "unit", "row", "score", "p-value", "columns that say so"}
    assert artifacts["tabdiff-scores-orders"]["data"].startswith("data:image/svg+xml;base64,")
    assert files_without_a_row(server.workspace) == []


_IN_PROCESS = """
import json, sys
from flows.deploy import prepare
from tabdiff.store import Workspace
prepare(Workspace.open().home)
from flows.monitor import monitor
from flows.score import score
from flows.synthesize import synthesize
from flows.train import train
from tabdiff.operations import MonitorJob, ScoreJob, SynthesizeJob, TrainJob
fit = json.loads(sys.argv[1])
series = {**fit, "train": {"steps": 1}, "series": {"time": "at", "entity": "machine", "window": 16}}
results = [
    train(TrainJob(source="orders", model="second", fit=fit, evaluation_share=0.3)),
    train(TrainJob(source="orders", model="second", fit=fit, evaluation_share=0.3)),
    synthesize(SynthesizeJob(model="second", rows=20, sample={"steps": 2})),
    monitor(MonitorJob(source="orders", model="second")),
    train(TrainJob(source="history", model="fleet", fit=series)),
    score(ScoreJob(source="fleet", model="fleet")),
    monitor(MonitorJob(source="fleet", model="fleet")),
]
print("RESULTS", json.dumps(results))
"""


def test_train_draw_and_watch_as_flows(server: Server) -> None:
    data = Path(server.workspace.sources.get("orders")[1].location)
    orders(200, 1000, seed=2).write_parquet(data / "more.parquet")
    for name, frame in (("history", fleet(0, 300)), ("fleet", broken(fleet(300, 120), "right", 340, 360))):
        (data.parent / name).mkdir()
        frame.write_parquet(data.parent / name / "0.parquet")
        server.workspace.sources.add(name, location=str(data.parent / name))
    (data.parent / "fleet" / "half.parquet").write_bytes(b"PAR1")
    call = [sys.executable, "-c", _IN_PROCESS, json.dumps(QUICK)]
    done = subprocess.run(
        call, env=server.environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400
    )
    assert "RESULTS" in done.stdout, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULTS "))
    first, second, drawn, watched, fitted, scored, looked = json.loads(line.removeprefix("RESULTS "))
    assert (first["decision"], first["new"], second["new"], drawn["rows"]) == ("promoted", True, False, 20)
    assert watched["verdict"] in ("fine", "drifted", "odd rows")
    # A series goes through the same flows: its events are the table, the worst of them the picture.
    assert (fitted["decision"], scored["rows"], looked["freshness"]["stopped"]) == ("promoted", 240, {})
    artifacts = {artifact["key"]: artifact for artifact in server.ask("/artifacts/filter")}
    told = json.loads(artifacts["tabdiff-anomalies-fleet"]["data"])
    assert len(told) == scored["alerts"]
    assert (told[0]["entity"], told[0]["from"][:14]) == ("right", "2026-03-01 05:")
    assert told[0]["columns that say so"].startswith("pressure")
    assert artifacts["tabdiff-series-fleet"]["data"].startswith("data:image/svg+xml;base64,")
    assert (scored["new_findings"], "unreadable: half.parquet" in artifacts["tabdiff-left-out-fleet"]["data"]) == (
        1,
        True,
    )
    keys = {key: artifact["type"] for key, artifact in artifacts.items()}
    wanted = {
        "tabdiff-progress-second": "progress",
        "tabdiff-decision-second": "markdown",
        "tabdiff-monitor-orders": "markdown",
    }
    assert wanted.items() <= keys.items()
    assert "tabdiff-report-second" in keys
    kept = [path.read_bytes() for path in (server.workspace.home / "results").rglob("*") if path.is_file()]
    assert len(kept) >= 4
    assert all(isinstance(json.loads(content), dict) for content in kept)


def test_init_creates_what_watches_once(server: Server) -> None:
    for expected in (1, 0):
        call = [*TABDIFF, "flows", "init", "--json"]
        done = subprocess.run(call, env=server.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["created"]) == expected
    found = server.ask("/automations/filter")
    assert [(a["enabled"], a["trigger"]["posture"], a["actions"][0]["state"]) for a in found] == [
        (True, "Proactive", "CRASHED")
    ]
    deploy.read_plan(server.workspace.home / "flows.toml")


def prefect(server: Server, *arguments: str) -> None:
    call = [*TABDIFF, "flows", "prefect", *arguments]
    done = subprocess.run(call, env=server.environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_worker_of_a_work_pool_executes_a_run(server: Server) -> None:
    """The file for several hosts: its deployment, a process pool, and a worker that takes one run."""
    before = scored_ids(server.workspace)
    data = Path(server.workspace.sources.get("orders")[1].location)
    orders(40, 5000).write_parquet(data / "pool.parquet")
    prefect(server, "work-pool", "create", "tabdiff", "--type", "process")
    prefect(server, "--no-prompt", "deploy", "--prefect-file", "flows/prefect.yaml", "--name", "orders-hourly")
    (deployment,) = server.ask("/deployments/filter", deployments={"name": {"any_": ["orders-hourly"]}})
    assert (deployment["work_pool_name"], deployment["entrypoint"]) == ("tabdiff", "flows/score.py:score")
    assert [schedule["schedule"]["cron"] for schedule in deployment["schedules"]] == ["5 * * * *"]
    asked = server.ask(f"/deployments/{deployment['id']}/create_flow_run")
    with server.process("flows", "prefect", "worker", "start", "--pool", "tabdiff", "--limit", "1", name="worker"):
        done = wait_for(lambda: [run for run in finished_runs(server) if run["id"] == asked["id"]])
    with server.client() as client:
        wait_for(lambda: client.delete(f"/deployments/{deployment['id']}").status_code in (204, 404))
    assert done[0]["work_pool_name"] == "tabdiff"
    assert done[0]["parameters"]["job"]["source"] == "orders"
    assert set(range(5000, 5040)) <= set(scored_ids(server.workspace)) - set(before)
    assert server.auth[1] not in (server.logs / "worker.log").read_text()


def test_a_scheduled_run_on_postgres_and_no_secret_anywhere(
    postgres: Postgres, tmp_path: Path, small_bundle: Path
) -> None:
    """Workspace, Prefect and the source itself in PostgreSQL. The passwords show up nowhere: not in Prefect, not in a log."""
    shop, ours, theirs = (postgres.make_database() for _ in range(3))
    workspace = with_champion(tmp_path / "home", ours, small_bundle)
    rows = orders(40, 0)
    with psycopg.connect(shop, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE orders (order_id int, weight float, price float, discount float, items int, channel text, "
            "express bool, ordered timestamp, rating int, remark text)"
        )
        with connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO orders VALUES ({', '.join(['%s'] * 10)})", rows.rows())
    workspace.sources.add("orders", location="env:SHOP_URL", table="orders", new="column", column="order_id")
    with prefect_server(workspace, tmp_path, theirs) as server:
        server.environment["SHOP_URL"] = shop
        with server.process(
            "flows", "serve", "--plan", str(plan(tmp_path, every_ten_seconds())), name="serve"
        ) as serving:
            wait_for(lambda: scored_ids(workspace) == list(range(40)))
            runs = wait_for(lambda: finished_runs(server))
            os.killpg(serving.pid, signal.SIGKILL)  # the server goes on without it
        assert runs[0]["auto_scheduled"]
        password = server.auth[1]
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    with psycopg.connect(theirs) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        stored = "".join(str(connection.execute(f'SELECT * FROM "{name}"').fetchall()) for (name,) in tables)  # type: ignore[arg-type]
    assert "tabdiff-score" in stored
    for secret in (postgres.password, password):
        assert secret not in stored
        assert secret not in logs
    assert files_without_a_row(workspace) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timezone = 'Mars/Olympus'", "no time zone"),
        ("schedules = 3", "valid list"),
        ("[[schedules]]\nname='a'\nflow='score'\njob={source='a',model='b'}", "either cron or every"),
        ("[[schedules]]\nname='a'\nflow='score'\nevery=60\njob={source='../a',model='b'}", "pattern"),
        ("[[schedules]]\nname='a'\nflow='drop'\nevery=60\njob={}", "flow"),
        ("[[schedules]]\nname='a'\nflow='score'\nevery=60\njob={source='a',model='b'}\n" * 2, "several named 'a'"),
        ("not toml", "not TOML"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        deploy.read_plan(tmp_path / "plan.toml")
    with pytest.raises(ConfigError, match="flows init"):
        deploy.read_plan(tmp_path / "absent.toml")


def test_serving_says_what_runs_and_what_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tabdiff.store import Workspace

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    workspace = Workspace.create(tmp_path / "home")
    workspace.sources.add("orders", location=str(tmp_path))
    job = {"source": "orders", "model": "orders"}
    kinds = (("nightly", "train", job), ("hourly", "score", job), ("typo", "score", {**job, "source": "order"}))
    schedules = [
        deploy.Scheduled(name=name, flow=flow, cron="5 * * * *", every=None, overlap="skip", job=of)  # type: ignore[arg-type]
        for name, flow, of in kinds
    ]
    told = deploy.announce(deploy.Plan(timezone="Europe/Berlin", at_once=1, schedules=schedules), workspace)
    assert [line.strip().partition(":")[0] for line in told[1:-1]] == [
        "train/nightly",
        "score/hourly",
        "fails as it is",
        "score/typo",
        "fails as it is",
    ]
    assert told[1].endswith("5 * * * * (Europe/Berlin)")
    assert "no model is named 'orders'" in told[3]
    assert "no source is named 'order'; registered: orders" in told[5]
    assert told[-1].endswith("tabdiff flows prefect deployment run tabdiff-train/nightly")


def test_serving_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    from tabdiff.store import Workspace

    Workspace.create(tmp_path / "home")
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "TABDIFF"))}
    environment = {
        **bare,
        "TABDIFF_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }
    call = [*TABDIFF, "flows", "serve"]
    done = subprocess.run(call, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "tabdiff flows server" in done.stderr.splitlines()[-1]


def test_serving_with_another_password_says_where_it_is(server: Server) -> None:
    environment = {**server.environment, "TABDIFF_PREFECT_AUTH": "env:OTHER", "OTHER": "tabdiff:other"}
    call = [*TABDIFF, "flows", "serve"]
    done = subprocess.run(call, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "does not take this password" in done.stderr.splitlines()[-1]


def test_an_error_for_people_is_one_line_of_the_log_and_a_defect_keeps_its_traceback() -> None:
    from flows import common

    def logged(error: Exception, text: str = "Encountered exception during execution: %r") -> logging.LogRecord | None:
        try:
            raise error
        except Exception:
            record = logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 0, text, (error,), sys.exc_info())
        return record if common._IN_ONE_LINE.filter(record) else None

    told = logged(SourceError("/data: cannot be listed."))
    assert told is not None
    assert logging.Formatter().format(told).count("\n") == 0
    assert "cannot be listed" in told.getMessage()
    assert logged(SourceError("no"), "Engine execution exited with unexpected exception %r") is None
    defect = logged(KeyError("x"))
    assert defect is not None
    assert "Traceback" in logging.Formatter().format(defect)


def test_a_wrong_cron_expression_is_told_of() -> None:
    job = {"source": "orders", "model": "orders"}
    schedule = deploy.Scheduled(name="hourly", flow="score", cron="5 * * *", every=None, overlap="skip", job=job)
    plan = deploy.Plan(timezone="UTC", at_once=1, schedules=[schedule])
    with pytest.raises(ConfigError, match="schedule 'hourly' cannot be kept: Invalid cron"):
        deploy.deployments(plan)
