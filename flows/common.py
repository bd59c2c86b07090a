"""What all flows share: the workspace, what is tried again, what is shown in Prefect."""

from __future__ import annotations

import base64
import logging
import re
from pathlib import Path
from typing import Any

from prefect import Task, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_logger, get_run_logger
from prefect.tasks import exponential_backoff

from tabdiff.errors import (
    BundleError,
    ConfigError,
    RuntimeUnavailable,
    SchemaError,
    SynthesisError,
    TabdiffError,
    UnknownNameError,
)
from tabdiff.operations.inspection import inspect
from tabdiff.operations.pictures import band, histogram
from tabdiff.store import Workspace

# What a second try cannot cure. A broken source, a full disk and a database that is away may all pass.
_FOR_GOOD = (BundleError, ConfigError, RuntimeUnavailable, SchemaError, SynthesisError, UnknownNameError)
# Results are small JSON: ids, counts and paths, never rows. tabdiff's own database is the record; Prefect only shows it.
FLOW: dict[str, Any] = {
    "result_serializer": "json",
    "persist_result": True,
    "log_prints": False,
    "validate_parameters": True,
}


class _InOneLine(logging.Filter):
    """What is raised on purpose says all in its message: Prefect logs it three times with some fifty lines of traceback, which hide it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the traceback off; a defect keeps its own."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if not isinstance(error, TabdiffError):
            return True
        record.exc_info = record.exc_text = None
        return "Engine execution exited" not in record.getMessage()  # said already, by task and flow


_IN_ONE_LINE = _InOneLine()  # one object: adding it again, when a process imports this twice, changes nothing
for _name in ("flow_runs", "task_runs"):
    get_logger(_name).addFilter(_IN_ONE_LINE)


def _passes(_: Task[..., Any], __: Any, state: Any) -> bool:
    return not isinstance(state.result(raise_on_failure=False), _FOR_GOOD)


# Jobs can be killed and called again at any moment, so trying again is safe. The source of truth is the workspace: nothing is cached.
job_task = task(
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=10),
    retry_jitter_factor=0.5,
    retry_condition_fn=_passes,
    cache_policy=NO_CACHE,
    result_serializer="json",
    persist_result=True,
)


def workspace() -> Workspace:
    """The workspace of TABDIFF_HOME and TABDIFF_DATABASE_URL; neither is ever a parameter, as those are stored in clear."""
    return Workspace.open()


def show_anomalies(where: Workspace, run: int, name: str) -> None:
    """A table of the highest alerts of a run: which rows or events, and which columns say so; a picture of the scores, or of the worst event.

    Values stay in the workspace: of an event machine and time are shown, and the course of a sensor without a scale.
    """
    alerts = where.scores.alerts(20, run_id=run)
    rows = [
        {
            "alert": alert["id"],
            **_where(alert),
            "score": round(alert["score"], 3),
            "p-value": round(alert["p_value"], 5),
            "columns that say so": ", ".join(f"{r['column']} {r['part']:.2f}" for r in alert["reasons"]),
        }
        for alert in alerts
    ]
    if not rows:
        return
    create_table_artifact(rows, key=key("anomalies", name), description=f"Highest scores of run {run}")
    files = [part["file"] for part in where.scores.partitions() if part["run_id"] == run and part["file"]]
    worst = max((alert for alert in alerts if alert["kind"] == "event"), key=lambda a: a["score"], default=None)
    pictures = {"scores": (histogram(files), f"Scores of run {run}")} if files else {}
    if worst is not None and (drawn := _series(where, worst)) is not None:
        pictures["series"] = (drawn, f"Alert {worst['id']}: {worst['reasons'][0]['column']}")
    for kind, (picture, text) in pictures.items():
        data = base64.b64encode(picture.encode()).decode()
        create_image_artifact(f"data:image/svg+xml;base64,{data}", key=key(kind, name), description=text)


def _where(alert: dict[str, Any]) -> dict[str, Any]:
    """Which row it is, or which machine and time."""
    if alert["kind"] == "row":
        return {"unit": alert["unit"], "row": alert["row"]}
    begin, end = alert["at"] or alert["first_place"], alert["ended"] or alert["last_place"]
    return {"entity": alert["entity"] or "", "from": str(begin), "to": f"{end}{' ...' if alert['open'] else ''}"}


def _series(where: Workspace, alert: dict[str, Any]) -> str | None:
    """The sensor that carries an event, around it; None if it is not a number, or its places are not final yet."""
    found = inspect(where, alert["id"])["trace"]
    sensor = alert["reasons"][0]["column"] if alert["reasons"] else ""
    return band(found, sensor) if f"expected:{sensor}" in found.columns and found.height > 1 else None


def tell(kind: str, subject: str, payload: dict[str, Any]) -> None:
    """An event that automations can react to: counts and names only."""
    emit_event(f"tabdiff.{kind}", resource={"prefect.resource.id": f"tabdiff.{subject}"}, payload=payload)


def log(line: str) -> None:
    """A line in the log of the run, and of who serves it: what was done. Counts and names only."""
    get_run_logger().info(line)


def show_text(name: str, kind: str, lines: list[str]) -> None:
    """A short text."""
    create_markdown_artifact("\n".join(f"- {escape(line)}" for line in lines), key=key(kind, name))


def show_link(path: Path, name: str, text: str) -> None:
    """Where a report lies."""
    create_link_artifact(path.as_uri(), link_text=text, key=key("report", name))


class Progress:
    """A bar that moves with the events of a fit."""

    def __init__(self, name: str) -> None:
        self.artifact: Any = create_progress_artifact(progress=0.0, key=key("progress", name))

    def __call__(self, event: Any) -> None:
        """Move to the event's step; a fit that stops early is done."""
        self.move(1.0 if event.finished else event.step / event.steps)

    def move(self, share: float) -> None:
        """Move to a share of the work."""
        update_progress_artifact(self.artifact, progress=100.0 * share)


def key(kind: str, name: str) -> str:
    """A key as Prefect wants it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", f"tabdiff-{kind}-{name}".lower()).strip("-")


def escape(line: str) -> str:
    """Text from data as literal text inside Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", " ".join(line.split()))
