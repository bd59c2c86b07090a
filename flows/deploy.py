"""When flows run: a file of schedules, the process that serves them, the server, and the automations that watch them."""

from __future__ import annotations

import os
import secrets
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tabdiff.errors import ConfigError, StoreError
from tabdiff.operations.jobs import MonitorJob, ScoreJob, SynthesizeJob, TrainJob
from tabdiff.store import Workspace
from tabdiff.store.names import resolve

TAG = "tabdiff"
ON_DEMAND = "on-demand"  # deployment of each flow that has no schedule: the job comes with the run, from the dashboard for instance
HEARTBEAT = 30  # seconds between signs of life of a run
_SILENT = 3 * HEARTBEAT  # seconds of silence after which it is taken for dead
_JOBS: dict[str, type[BaseModel]] = {
    "train": TrainJob,
    "score": ScoreJob,
    "synthesize": SynthesizeJob,
    "monitor": MonitorJob,
}
EXAMPLE = """# Schedules of `tabdiff flows serve`. Times are in this zone.
timezone = "UTC"

[[schedules]]
name = "orders-hourly"
flow = "score"
cron = "5 * * * *"          # or: every = 900, in seconds
overlap = "skip"            # while one is still running the next is skipped; "queue" keeps it waiting
job = { source = "orders", model = "orders", fdr = 0.05 }

[[schedules]]
name = "orders-nightly"
flow = "train"
cron = "0 2 * * *"
job = { source = "orders", model = "orders", promote = "ask" }

[[schedules]]
name = "orders-watch"
flow = "monitor"
cron = "30 6 * * *"
job = { source = "orders", model = "orders", every = 86400 }
"""


class Scheduled(BaseModel):
    """One deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="name of the deployment")
    flow: Literal["train", "score", "synthesize", "monitor"] = Field(description="what runs")
    cron: str | None = Field(None, description="when, as five fields")
    every: float | None = Field(None, ge=1, description="or every so many seconds")
    overlap: Literal["skip", "queue"] = Field("skip", description="what becomes of a run while one is still going")
    job: dict[str, Any] = Field(description="options of the job")

    @model_validator(mode="after")
    def _complete(self) -> Scheduled:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give either cron or every")
        if self.name == ON_DEMAND:
            raise ValueError(f"{ON_DEMAND!r} is what runs without a schedule belong to; choose another name")
        _JOBS[self.flow].model_validate(self.job)
        return self


class Plan(BaseModel):
    """Everything that is scheduled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timezone: str = Field("UTC", description="of cron times, as in Europe/Berlin")
    at_once: int = Field(2, ge=1, le=64, description="runs of this process at one time")
    schedules: list[Scheduled] = Field([], description="deployments")

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"no time zone is named {value!r}") from None
        return value

    @model_validator(mode="after")
    def _told_apart(self) -> Plan:
        names = [(each.flow, each.name) for each in self.schedules]
        for flow, name in names:
            if names.count((flow, name)) > 1:  # in Prefect the last of them would be all there is
                raise ValueError(f"schedules of one flow have names of their own; {flow!r} has several named {name!r}")
        return self


def read_plan(path: Path) -> Plan:
    """Read a file of schedules.

    Raises:
        ConfigError: it is missing, not TOML, or holds something that cannot be scheduled.
    """
    try:
        return Plan.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). tabdiff flows init writes an example."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error}).") from error
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: cannot be scheduled: {lines}.") from None


def prepare(home: Path) -> None:
    """Set up this process for Prefect: no telemetry, credentials from a file, results in the workspace. Call before importing prefect."""
    settings = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": "http://127.0.0.1:4200/api",
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",  # a forgotten address must not start a server without a password
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_API_AUTH_STRING", credentials(home))


def credentials(home: Path) -> str:
    """User and password of the Prefect server: TABDIFF_PREFECT_AUTH (a reference), or made once and kept in the workspace, 0600.

    Raises:
        StoreError: the file cannot be read or written.
    """
    given = os.environ.get("TABDIFF_PREFECT_AUTH")
    if given:
        return resolve(given)
    path = home / "prefect-auth"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return resolve(f"file:{path}")
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}). Check TABDIFF_HOME.") from error
    made = f"tabdiff:{secrets.token_urlsafe(24)}"
    with os.fdopen(handle, "w") as file:
        file.write(made)
    return made


def server_environment(home: Path) -> dict[str, str]:
    """Environment of a Prefect server as we ship it: password and CSRF on, telemetry off, its database beside ours."""
    database = os.environ.get("TABDIFF_PREFECT_DATABASE_URL")
    if database:
        url = resolve(database).replace("postgresql://", "postgresql+asyncpg://", 1)
    else:
        url = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
    return {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_AUTH_STRING": credentials(home),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": url,
        "PREFECT_HOME": str(home / "prefect"),
    }


def start_server(home: Path, host: str = "127.0.0.1", port: int = 4200) -> None:
    """Become a Prefect server; does not return."""
    call = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    os.execve(sys.executable, call, server_environment(home))


def become_prefect(arguments: list[str]) -> None:
    """Become Prefect's own command in the environment that `prepare` made; does not return."""
    os.execv(sys.executable, [sys.executable, "-m", "prefect", *arguments])


def deployments(plan: Plan) -> list[Any]:
    """The deployments of a plan, and one of each flow for runs on demand; for `serve` or a work pool.

    Raises:
        ConfigError: a cron expression is none.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.schedules import Cron, Interval
    from prefect.types.entrypoint import EntrypointType

    from flows.monitor import monitor
    from flows.score import score
    from flows.synthesize import synthesize
    from flows.train import train

    flows = {"train": train, "score": score, "synthesize": synthesize, "monitor": monitor}
    strategies = {"skip": ConcurrencyLimitStrategy.CANCEL_NEW, "queue": ConcurrencyLimitStrategy.ENQUEUE}
    made = [
        flow.to_deployment(name=ON_DEMAND, tags=[TAG], entrypoint_type=EntrypointType.MODULE_PATH)  # type: ignore[attr-defined]
        for flow in flows.values()
    ]
    for each in plan.schedules:
        try:
            when = (
                Cron(each.cron, timezone=plan.timezone)
                if each.cron is not None
                else Interval(timedelta(seconds=each.every or 0), timezone=plan.timezone)
            )
        except ValueError as error:
            cure = 'Write minute, hour, day, month and weekday, as in "5 * * * *".'
            raise ConfigError(f"schedule {each.name!r} cannot be kept: {error}. {cure}") from None
        made.append(
            flows[each.flow].to_deployment(  # type: ignore[attr-defined]
                name=each.name,
                schedule=when,
                parameters={"job": each.job},
                concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategies[each.overlap]),
                tags=[TAG],
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        )
    return made


def announce(plan: Plan, workspace: Workspace) -> list[str]:
    """What is going to run, and which schedules cannot do anything as they are; for the first lines of a log.

    A source or a model may still come, so a schedule without one is told of and kept.
    """
    sources, models = workspace.sources.all(), {version.name for version in workspace.models.all()}
    lines = [f"Serving until stopped, {plan.at_once} runs at once. Prefect: {os.environ['PREFECT_API_URL']}"]
    for each in plan.schedules:
        when = f"{each.cron} ({plan.timezone})" if each.cron is not None else f"every {each.every:g} s"
        lines.append(f"  {each.flow}/{each.name}: {when}")
        source, model = each.job.get("source"), each.job["model"]
        if source is not None and source not in sources:
            known = ", ".join(sources) or "none"
            lines.append(f"    fails as it is: no source is named {source!r}; registered: {known}. tabdiff sources add")
        elif each.flow != "train" and model not in models:
            lines.append(
                f"    fails as it is: no model is named {model!r}. tabdiff run train, or a schedule that trains"
            )
    now = f"tabdiff-{plan.schedules[0].flow}/{plan.schedules[0].name}" if plan.schedules else "NAME"
    return [*lines, f"To run one now: tabdiff flows prefect deployment run {now}"]


def serve(plan: Plan) -> None:
    """Run what is due and what is asked for on demand, in child processes, until stopped. Schedules stay active, so runs missed meanwhile show as late.

    Raises:
        ConfigError: a cron expression is none, or the server is out of reach or knows another password.
    """
    import httpx
    from prefect import serve as serve_deployments
    from prefect.client.orchestration import get_client

    made = deployments(plan)
    try:
        with get_client(sync_client=True) as client:
            _ = client.read_deployments(limit=1)
    except httpx.HTTPError as error:
        raise _unreachable(error) from error
    # Prefect's own message names its command, which knows neither our address nor the password.
    serve_deployments(*made, pause_on_shutdown=False, limit=plan.at_once, print_starting_message=False)


def _unreachable(error: Exception) -> ConfigError:
    address = os.environ["PREFECT_API_URL"]
    if "401" in str(error):
        return ConfigError(
            f"the Prefect server at {address} does not take this password (401). Use that of the server's workspace: "
            "TABDIFF_PREFECT_AUTH, or prefect-auth in TABDIFF_HOME."
        )
    return ConfigError(
        f"the Prefect server at {address} does not answer ({error}). Start it with tabdiff flows server, "
        "or name another address in PREFECT_API_URL."
    )


def automations(block: Any | None) -> list[Any]:
    """What the server watches: runs that went silent are failed; with a notification block, failures and alerts are sent on."""
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState, SendNotification
    from prefect.events.schemas.automations import EventTrigger, Posture

    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled")}
    of_ours: dict[str, str | list[str]] = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    silent = Automation(
        name="tabdiff: fail runs that went silent",
        description=f"A killed process cannot say so. No sign of life for {_SILENT} s means that it is gone.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=of_ours,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=_SILENT),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed", state=StateType.CRASHED, message=f"no sign of life for {_SILENT} s", force=False
            )
        ],
    )
    if block is None:
        return [silent]
    body = "{{ event.event }} of {{ event.resource.id }}: {{ event.payload }}"
    action = SendNotification(block_document_id=block, subject="tabdiff: {{ event.event }}", body=body)
    failed = EventTrigger(
        expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
        match_related=of_ours,
        posture=Posture.Reactive,
        threshold=1,
    )
    alerts = EventTrigger(expect={"tabdiff.alerts", "tabdiff.drift"}, posture=Posture.Reactive, threshold=1)
    left_out = EventTrigger(expect={"tabdiff.left_out"}, posture=Posture.Reactive, threshold=1)
    return [
        silent,
        Automation(name="tabdiff: tell of failed runs", trigger=failed, actions=[action]),
        Automation(name="tabdiff: tell of alerts and drift", trigger=alerts, actions=[action]),
        Automation(name="tabdiff: tell of what was not scored", trigger=left_out, actions=[action]),
    ]


def initialise(workspace: Workspace, notify: str | None = None) -> dict[str, Any]:
    """Write an example of schedules if there is none, and create the automations; both can be repeated.

    Args:
        workspace: where the example goes.
        notify: slug of a notification block of Prefect, as in slack-webhook/ops; its address is a secret that Prefect keeps.

    Raises:
        ConfigError: there is no such block, or the server is out of reach.
    """
    import httpx
    from prefect.automations import Automation
    from prefect.blocks.core import Block
    from prefect.exceptions import PrefectException

    plan = workspace.home / "flows.toml"
    if not plan.exists():
        plan.write_text(EXAMPLE, encoding="utf-8")
    made = []
    try:
        block = Block.load(notify)._block_document_id if notify else None  # type: ignore[union-attr]
        for automation in automations(block):
            try:
                _ = Automation.read(name=automation.name)
            except ValueError:
                automation.create()
                made.append(automation.name)
    except ValueError as error:
        raise ConfigError(
            f"there is no notification block {notify!r} ({error}). Create it in Prefect first."
        ) from error
    except (PrefectException, httpx.HTTPError, RuntimeError) as error:
        raise _unreachable(error) from error
    return {"schedules": str(plan), "created": made}
