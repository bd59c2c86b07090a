"""Train a challenger and promote it if it is good enough."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.common import FLOW, Progress, job_task, log, show_link, show_text, workspace
from tabdiff.operations import TrainJob
from tabdiff.operations import train as train_challenger


@job_task
def fit_and_compare(job: TrainJob) -> dict[str, Any]:
    """The work."""
    return train_challenger(workspace(), job, on_event=Progress(job.model))


@flow(name="tabdiff-train", flow_run_name="train {job.model} on {job.source}", **FLOW)
def train(job: TrainJob) -> dict[str, Any]:
    """Fit a challenger, compare it with the champion, promote it or say why not."""
    result = fit_and_compare(job)
    log(f"{job.model} version {result['version']}: {result['decision']}; {'; '.join(result['reasons'])}")
    folder = workspace().models.get(job.model, result["version"]).folder
    show_text(job.model, "decision", [f"version {result['version']}: {result['decision']}", *result["reasons"]])
    if folder is not None:
        show_link(folder / "bundle" / "card.md", job.model, "model card")
    return result
