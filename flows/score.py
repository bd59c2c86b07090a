"""Score what is new in a source, each row exactly once."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.common import FLOW, job_task, log, show_anomalies, show_text, tell, workspace
from tabdiff.operations import ScoreJob, score_new
from tabdiff.terminal import count


@job_task
def score_rows(job: ScoreJob) -> dict[str, Any]:
    """The work."""
    return score_new(workspace(), job)


@flow(name="tabdiff-score", flow_run_name="score {job.source} with {job.model}", **FLOW)
def score(job: ScoreJob) -> dict[str, Any]:
    """Score new rows with the champion, record alerts, show the highest, and say what could not be scored."""
    result = score_rows(job)
    by = f"{result['model']} version {result['version']}"
    log(
        f"{count(result['rows'], 'new row')} scored by {by}, {result['flagged']} flagged; {count(result['alerts'], 'new alert')}"
        + (f", {result['risen']} that went on became graver" if result["risen"] else "")
    )
    show_anomalies(workspace(), result["run"], job.source)
    if result["flagged"] or result["alerts"]:
        tell("alerts", job.source, {"flagged": result["flagged"], "rows": result["rows"], "run": result["run"]})
    if result["new_findings"]:  # kinds and names only: reasons quote values of rows, and stay in the workspace
        left = [f"{f['kind']}: {f['subject']}" for f in result["findings"] if f["kind"] != "unfinished"]
        log(f"not scored: {', '.join(left)}; late rows: {result['late']} (tabdiff workspace events says more)")
        show_text(job.source, "left-out", [*left, f"late rows: {result['late']}", "see tabdiff workspace events"])
        tell("left_out", job.source, {"findings": len(left), "late": result["late"], "run": result["run"]})
    return result
