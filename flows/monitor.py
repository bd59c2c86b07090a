"""Watch a source for drift, odd rows and silence."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.common import FLOW, job_task, log, show_text, tell, workspace
from tabdiff.operations import MonitorJob
from tabdiff.operations import monitor as look
from tabdiff.terminal import count


@job_task
def compare_rows(job: MonitorJob) -> dict[str, Any]:
    """The work."""
    return look(workspace(), job)


@flow(name="tabdiff-monitor", flow_run_name="monitor {job.source} with {job.model}", **FLOW)
def monitor(job: MonitorJob) -> dict[str, Any]:
    """Compare new rows with those of the fit, and say what is wrong."""
    result = compare_rows(job)
    log(f"{result['verdict']}; {count(len(result['findings']), 'finding')}")
    show_text(job.source, "monitor", [f"verdict: {result['verdict']}", *result["findings"]])
    if result["verdict"] != "fine":
        tell("drift", job.source, {"verdict": result["verdict"], "run": result["run"]})
    return result
