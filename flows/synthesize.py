"""Draw a synthetic table with a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.common import FLOW, Progress, job_task, log, show_link, workspace
from tabdiff.operations import SynthesizeJob
from tabdiff.operations import synthesize as draw


@job_task
def draw_rows(job: SynthesizeJob) -> dict[str, Any]:
    """The work."""
    return draw(workspace(), job, on_progress=Progress(job.model).move)


@flow(name="tabdiff-synthesize", flow_run_name="synthesize {job.model}", **FLOW)
def synthesize(job: SynthesizeJob) -> dict[str, Any]:
    """Draw rows from the champion, once for the same options."""
    result = draw_rows(job)
    log(f"{result['rows']:,} rows drawn: {result['file']}")
    page = result["page"] or Path(result["file"]).with_name("report.json")
    show_link(Path(page), job.model, "report of the synthetic set")
    return {name: value for name, value in result.items() if name != "report"} | {"figures": _figures(result["report"])}


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    """Figures without the tables behind them, which stay in the workspace."""
    return {name: value for name, value in report.items() if isinstance(value, int | float)}
