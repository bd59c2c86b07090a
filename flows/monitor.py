"""Watch a source for drift, odd rows and silence."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.common import FLOW, job_task, show_text, tell, workspace
from tabdiff.operations import MonitorJob
from tabdiff.operations import monitor as look


@job_task
def compare_rows(job: MonitorJob) -> dict[str, Any]:
    """The work."""
    return look(workspace(), job)


@flow(name="tabdiff-monitor", **FLOW)
def monitor(job: MonitorJob) -> dict[str, Any]:
    """Compare new rows with those of the fit, and say what is wrong."""
    result = compare_rows(job)
    show_text(job.source, "monitor", [f"verdict: {result['verdict']}", *result["findings"]])
    if result["verdict"] != "fine":
        tell("drift", job.source, {"verdict": result["verdict"], "run": result["run"]})
    return result
