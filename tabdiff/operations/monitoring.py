"""Is the source still what the champion was fitted on? Tells "the data drifted" from "a few rows are odd"."""

from __future__ import annotations

import warnings
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tabdiff.errors import SchemaError, TabdiffWarning
from tabdiff.operations import drift
from tabdiff.operations.jobs import MonitorJob
from tabdiff.operations.reading import newest_rows
from tabdiff.operations.series_monitoring import compare_series, conformed, newest_times
from tabdiff.operations.training import FITTED, REFERENCE, split
from tabdiff.store import Workspace
from tabdiff.store.registry import Version, now
from tabdiff.store.spec import SourceSpec

if TYPE_CHECKING:
    from tabdiff.model import Model
    from tabdiff.series_model import SeriesModel

_PARTS = 10  # newest parts whose share of flags is compared with the parts before
_FIT = "the rows of the fit"
_FEWEST = 20  # unseen rows without which scores are not compared


def monitor(workspace: Workspace, job: MonitorJob) -> dict[str, Any]:
    """Compare the newest rows of a source with rows that the champion was not fitted on, and record a report.

    Args:
        workspace: where sources, models and scores are.
        job: what to look at.

    Returns:
        run, verdict ("schema changed", "drifted", "odd rows", "alerts up", "stale" or "fine": the first that holds), findings in
        words, and the figures: schema, columns, scores, freshness, alerts.

    Raises:
        StoreError: source or champion are missing, or the database is out of reach.
        SourceError: the source cannot be read.
    """
    from tabdiff.loading import load_any
    from tabdiff.series_model import SeriesModel

    source_id, spec = workspace.sources.get(job.source)
    with workspace.runs.start("monitor", f"{job.source}:{job.model}") as run:
        version = workspace.models.get(job.model)
        assert version.folder is not None  # an alias keeps its folder
        model = load_any(version.folder / "bundle")
        stream = workspace.scores.stream(source_id, job.model)
        parts = [part for part in workspace.scores.partitions(source_id) if part["model"] == job.model]
        new, _ = newest_rows(spec, job.rows)
        found: dict[str, Any] = {
            "model": job.model,
            "version": version.version,
            "rows": new.height,
            "freshness": _freshness(spec, new, parts, job),
            "alerts": _alert_volume(parts, job.significance),
        }
        verdicts: list[tuple[str, str]] = []
        if isinstance(model, SeriesModel):
            verdicts += _series(model, version, new, parts, job, found)
        else:
            verdicts += _table(model, version, new, job, found)
        if found["alerts"]["up"]:
            verdicts.append(("alerts up", "the share of flagged rows is above that of earlier parts"))
        if found["freshness"]["stale"]:
            verdicts.append(("stale", found["freshness"].get("why", "no new rows came within the time that was set")))
        verdict = verdicts[0][0] if verdicts else "fine"
        found["findings"] = [f"{name}: {reason}" for name, reason in verdicts]
        workspace.add_report(stream, verdict, found, run_id=run.id)
        if verdict != "fine":
            once = f"{version.version}:{stream.revision}:{verdict}"
            workspace.events.tell(
                "monitor", f"{job.source}:{job.model}", "warning", {"findings": found["findings"]}, once=once
            )
        run.result = {"run": run.id, "verdict": verdict, **found}
        return run.result


def _table(
    model: Model, version: Version, new: pl.DataFrame, job: MonitorJob, found: dict[str, Any]
) -> list[tuple[str, str]]:
    """Verdicts on the rows of a table."""
    assert version.folder is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TabdiffWarning)  # new columns are reported below
            model.schema.conform(new)
    except SchemaError as error:
        return _changed(error, found)
    known = {column.name for column in model.schema.columns}
    found["schema"], found["new_columns"] = [], [name for name in new.columns if name not in known]
    old = pl.read_parquet(version.folder / REFERENCE)
    share = float(version.metrics["evaluation_share"])
    return _compare(model, old, new, split(new, share)[1], job, found)


def _series(
    model: SeriesModel,
    version: Version,
    new: pl.DataFrame,
    parts: list[dict[str, Any]],
    job: MonitorJob,
    found: dict[str, Any],
) -> list[tuple[str, str]]:
    """Verdicts on the rows and scores of a series."""
    assert version.folder is not None
    try:
        today, found["new_columns"] = conformed(model, new)
        newest, stopped = newest_times(model, new, version.metrics["series"]["until"])
    except SchemaError as error:
        return _changed(error, found)
    found["schema"] = []
    found["alerts"] = _alert_volume(parts, job.significance, model.window)
    if isinstance(newest, datetime):
        found["freshness"] = _age(newest.replace(tzinfo=now().tzinfo), job)
    found["freshness"]["stopped"] = {who: str(last) for who, last in stopped.items()}
    if stopped:
        told = ", ".join(f"{who} (last {last})" for who, last in list(stopped.items())[:5])
        found["freshness"] |= {"stale": True, "why": f"{model.plan.grid.entity} stopped reporting: {told}"}
    then = conformed(model, pl.read_parquet(version.folder / FITTED))[0]
    files = [part["file"] for part in parts if part["file"] and part["model_id"] == version.id]
    return compare_series(model, then, today, files, job, found)


def _changed(error: SchemaError, found: dict[str, Any]) -> list[tuple[str, str]]:
    found["schema"] = [str(problem) for problem in error.problems]
    named = ", ".join(repr(problem.column) for problem in error.problems[:5])
    more = f" and {len(error.problems) - 5} more" if len(error.problems) > 5 else ""
    return [("schema changed", f"the champion cannot read {named}{more} any more")]


def _compare(
    model: Any, old: pl.DataFrame, new: pl.DataFrame, unseen: pl.DataFrame, job: MonitorJob, found: dict[str, Any]
) -> list[tuple[str, str]]:
    """Columns and scores of now beside those of then. Scores only of rows that no version can have been fitted on."""
    names = model.codec.columns
    if not old.height:  # of a small table no row may have been put aside
        found["columns"], found["scores"] = [], {"rows": 0, "moved": False, "far_out": False}
        return []
    then, today = model.schema.conform(old), model.schema.conform(new)
    compared = drift.columns(then, today, names, psi=job.psi, significance=job.significance)
    drifted = [c["column"] for c in compared if c["drifted"] or c["gaps_changed"]]
    found["columns"], found["scores"] = compared, {"rows": unseen.height, "moved": False, "far_out": False}
    if min(old.height, unseen.height) < _FEWEST:
        return drift.verdicts(drifted, found["scores"], one="row", fit=_FIT)
    before, after = model.score(old), model.score(unseen)
    errors = drift.contributions(before.contributions, after.contributions, names, significance=job.significance)
    found["columns"] = [{**column, **error} for column, error in zip(compared, errors, strict=True)]
    found["scores"] |= drift.scores(
        np.asarray(before.score, dtype=np.float64),
        np.asarray(after.score, dtype=np.float64),
        significance=job.significance,
    )
    return drift.verdicts(drifted, found["scores"], one="row", fit=_FIT)


def _freshness(spec: SourceSpec, new: pl.DataFrame, parts: list[dict[str, Any]], job: MonitorJob) -> dict[str, Any]:
    """How long ago the newest row was, by its own time if the source has one, else by when a part was last scored."""
    newest: datetime | None = parts[0]["created"] if parts else None
    if spec.column is not None and new[spec.column].dtype.is_temporal():
        last = new[spec.column].cast(pl.Datetime("us")).max()
        if isinstance(last, datetime):
            newest = last.replace(tzinfo=now().tzinfo) if last.tzinfo is None else last
    return _age(newest, job)


def _age(newest: datetime | None, job: MonitorJob) -> dict[str, Any]:
    age = None if newest is None else (now() - newest).total_seconds()
    return {
        "newest": newest.isoformat() if newest else None,
        "seconds": age,
        "in_the_future": age is not None and age < -60,
        "stale": job.every is not None and (age is None or age > job.every),
    }


def _alert_volume(parts: list[dict[str, Any]], significance: float, dependent: int = 1) -> dict[str, Any]:
    """The share of flags in the newest parts beside the parts before; of a series so many `dependent` places count as one."""
    counts = [
        (sum(p["flagged"] for p in some), sum(p["rows"] for p in some)) for some in (parts[:_PARTS], parts[_PARTS:])
    ]
    (flags, rows), (earlier, before) = counts
    shares = [part / max(total, 1) for part, total in counts]
    usual = (earlier + 1) / (before + 2)
    up = (
        before > 0
        and rows > 0
        and shares[0] > 2 * shares[1]
        and drift.at_least_p_value(flags // dependent, rows // dependent, usual) < significance
    )
    return {"share": shares[0], "earlier": shares[1] if before else None, "up": bool(up)}
