"""Score what is new in a source, each row exactly once."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.common import FLOW, job_task, show_anomalies, show_text, tell, workspace
from tabdiff.operations import ScoreJob, score_new


@job_task
def score_rows(job: ScoreJob) -> dict[str, Any]:
    """The work."""
    return score_new(workspace(), job)


@flow(name="tabdiff-score", **FLOW)
def score(job: ScoreJob) -> dict[str, Any]:
    """Score new rows with the champion, record alerts, show the highest, and say what could not be scored."""
    result = score_rows(job)
    show_anomalies(workspace(), result["run"], job.source)
    if result["flagged"] or result["alerts"]:
        tell("alerts", job.source, {"flagged": result["flagged"], "rows": result["rows"], "run": result["run"]})
    if result["new_findings"]:  # kinds and names only: reasons quote values of rows, and stay in the workspace
        left = [f"{f['kind']}: {f['subject']}" for f in result["findings"] if f["kind"] != "unfinished"]
        show_text(job.source, "left-out", [*left, f"late rows: {result['late']}", "see tabdiff workspace events"])
        tell("left_out", job.source, {"findings": len(left), "late": result["late"], "run": result["run"]})
    return result
