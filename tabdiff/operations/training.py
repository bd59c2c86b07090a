"""Fit a challenger, judge it beside the champion, and promote it by rule."""

from __future__ import annotations

import functools
import hashlib
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tabdiff.errors import BundleError, ConfigError, RuntimeUnavailable, StoreError, TrainingError
from tabdiff.files import as_text, atomic_folder, fingerprint
from tabdiff.operations.comparing import compare
from tabdiff.operations.jobs import TrainJob
from tabdiff.operations.judged_events import judged_events
from tabdiff.operations.levels import ACCEPTED, levelled
from tabdiff.operations.reading import newest_rows, reads_as
from tabdiff.operations.series_trials import about, split_time
from tabdiff.operations.verdicts import without_confirmed
from tabdiff.store import Workspace
from tabdiff.store.registry import Version
from tabdiff.store.spec import SourceSpec

if TYPE_CHECKING:
    from tabdiff.model import Model
    from tabdiff.nn.train import TrainEvent

REFERENCE = "reference.parquet"  # rows that no version trained on, kept beside the bundle
FITTED = "fitted.parquet"  # some of the rows that the version was fitted on, to compare others with
_MOST_FITTED = 10_000
_MOST_EVALUATED = 5000


def train(
    workspace: Workspace, job: TrainJob, *, on_event: Callable[[TrainEvent], None] | None = None
) -> dict[str, Any]:
    """Fit the newest rows of a source, compare the result with the champion on rows that neither saw, and promote it or not.

    The same rows with the same options give the version that is there already. A fit that was killed goes on from its checkpoint.

    Args:
        workspace: where sources and models are.
        job: what to fit.
        on_event: called after every held-out evaluation.

    Returns:
        run, version, new (whether it was fitted now), started_from (the version whose weights it began with, or why none), compiled ("yes", or
        why not), rows, left_out (rows that people confirmed as anomalies), levels (of a series: how many accepted ones the rows were brought to), metrics, decision (promoted, asked, kept) and its reasons.

    Raises:
        StoreError: the source is missing, or the database is out of reach.
        SourceError: the source cannot be read.
        SchemaError: the rows cannot be modelled.
        TrainingError: the loss is not finite.
    """
    source_id, spec = workspace.sources.get(job.source)
    with workspace.runs.start("train", f"{job.source}:{job.model}") as run:
        champion = _champion(workspace, job.model)
        frame, findings = newest_rows(spec, job.max_rows, reads_as(champion))
        job = job.model_copy(update={"columns": columns_of(job, spec, frame)})
        read = frame.height
        if job.leave_out_confirmed:
            frame = without_confirmed(workspace, job.source, frame, job.fit.series, champion)
        left_out = read - frame.height
        levels: list[Any] = []
        if job.fit.series.time is None:
            rest, judges = split(frame, job.evaluation_share)
        else:
            known = champion.metrics.get(ACCEPTED, []) if champion else []
            frame, levels = levelled(frame, job.fit.series, known)
            rest, judges = split_time(frame, job.fit.series, job.evaluation_share)
        version, new = _fit(workspace, job, rest, judges, levels, source_id, run.id, on_event)
        decision = decide(workspace, job, version)
        run.result = {
            "run": run.id,
            "model": job.model,
            "version": version.version,
            "new": new,
            "started_from": version.metrics.get("started_from", "random weights"),
            "compiled": version.metrics.get("compiled", "no: it was fitted before versions were"),
            "rows": rest.height,
            "left_out": left_out,
            **({} if job.fit.series.time is None else {"levels": len(levels)}),
            "findings": [vars(finding) for finding in findings],
            **decision,
        }
        return run.result


def columns_of(job: TrainJob, spec: SourceSpec, frame: pl.DataFrame) -> dict[str, dict[str, str]]:
    """Kinds and roles as the job has them; the column that tells new rows is not modelled unless the job gives it a role.

    It only grows, so every row that comes lies beyond all rows of the fit, and would be abnormal for that alone. It stays beside the scores,
    and says when an alert was.
    """
    said = {name: dict(options) for name, options in job.columns.items()}
    name = spec.column
    if name is None or job.fit.series.time is not None or name not in frame.columns or "role" in said.get(name, {}):
        return said
    timed = frame[name].dtype.is_temporal() and not any(options.get("role") == "time" for options in said.values())
    return {**said, name: {**said.get(name, {}), "role": "time" if timed else "id"}}


def split(frame: pl.DataFrame, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows to fit and rows to judge. Which is which depends on the row's content alone, so no version ever trains on a judge."""
    limit = int(share * 2**64)
    texts = frame.select(as_text(values).fill_null("\0") for values in frame).rows()
    judges = [
        int.from_bytes(hashlib.blake2b("\x1f".join(row).encode(), digest_size=8).digest(), "big") < limit
        for row in texts
    ]
    mask = pl.Series(judges, dtype=pl.Boolean)
    return frame.filter(~mask), frame.filter(mask).tail(_MOST_EVALUATED)


def _fit(
    workspace: Workspace,
    job: TrainJob,
    rest: pl.DataFrame,
    judges: pl.DataFrame,
    levels: list[Any],
    source_id: int,
    run_id: int,
    on_event: Callable[[TrainEvent], None] | None,
) -> tuple[Version, bool]:
    """The version of these rows and options: the one that is there, or a new one."""
    # How a fit begins is no part of what it is of: or the version that was just promoted would be fitted again from itself.
    apart = [
        "promote",
        "tolerance",
        "source",
        "model",
        "max_rows",
        "compiled",
        "leave_out_confirmed",
        *(["warm_start"] if job.warm_start else []),
    ]
    data, options = fingerprint(rest), job.digest(*apart)
    identity = hashlib.sha256(f"{job.model} {data} {options}".encode()).hexdigest()[:24]
    with claimed(workspace.home / "work" / identity) as checkpoint:
        found = workspace.models.find(job.model, data, options)
        if found is not None:
            shutil.rmtree(checkpoint, ignore_errors=True)  # of a run that was killed after its version was there
            return found, False
        begun = checkpoint.exists()
        try:
            model, started_from = _fit_or_go_on(workspace, job, rest, checkpoint, on_event)
        except TrainingError:
            if not begun:
                raise
            shutil.rmtree(checkpoint)  # a checkpoint that cannot be gone on with must not stop every later run
            model, started_from = _fit_or_go_on(workspace, job, rest, checkpoint, on_event)
        group = workspace.home / "models" / job.model
        group.mkdir(exist_ok=True)
        folder = group / f"{data[:12]}-{secrets.token_hex(6)}"
        with atomic_folder(folder) as temporary:
            model.save(temporary / "bundle")
            compiled = _compile(temporary / "bundle") if job.compiled else "no: not asked for"
            judges.write_parquet(temporary / REFERENCE)
            rest.sample(min(rest.height, _MOST_FITTED), seed=job.fit.train.seed).write_parquet(temporary / FITTED)
        metrics = {
            "report": model.bundle.model["report"],
            "judges": judges.height,
            "evaluation_share": job.evaluation_share,
            "started_from": started_from,
            "compiled": compiled,
            **({} if job.fit.series.time is None else {"series": about(model, rest), ACCEPTED: levels}),
        }
        name = str(folder.relative_to(workspace.home))
        version = workspace.models.add(job.model, name, data, options, metrics, source_id=source_id, run_id=run_id)
        shutil.rmtree(checkpoint, ignore_errors=True)
        if job.compiled and compiled != "yes":
            detail = {"version": version.version, "reason": compiled}
            workspace.events.tell("not_compiled", job.model, "warning", detail, once=str(version.version))
    return version, True


def _compile(bundle: Path) -> str:
    """Add the programs for ONNX Runtime: "yes", or why not. Torch runs a version without, so it is no reason to have none."""
    from onnx_export import export

    try:
        export(bundle)
    except (BundleError, RuntimeUnavailable) as error:
        return f"no: {error}"
    return "yes"


def _fit_or_go_on(
    workspace: Workspace,
    job: TrainJob,
    rest: pl.DataFrame,
    checkpoint: Path,
    on_event: Callable[[TrainEvent], None] | None,
) -> tuple[Any, str]:
    """A model, and which weights it began with: the champion's where that is possible."""
    from tabdiff.api import fit
    from tabdiff.loading import load

    if job.fit.series.time is not None:
        from tabdiff.series_fit import fit_series

        options = {"overrides": job.columns or None, "checkpoint": checkpoint, "on_event": on_event}
        # The closed forms that judge a series are made anew in any case; only drawing would begin elsewhere.
        return fit_series(rest, job.fit, **options), "random weights: a model of a series always begins so"  # type: ignore[arg-type]

    def begin(start_from: Model | None) -> Model:
        overrides = job.columns or None
        return fit(rest, job.fit, overrides=overrides, checkpoint=checkpoint, on_event=on_event, start_from=start_from)

    champion = _champion(workspace, job.model)
    if not job.warm_start or champion is None:
        return begin(None), "random weights: " + ("warm_start is off" if champion else "there was no champion")
    kept = float(champion.metrics.get("evaluation_share", 0.0))
    if kept < job.evaluation_share:
        reason = f"{champion} kept {kept:g} of the rows from its fit, so it may know some that judge this one"
        return begin(None), f"random weights: {reason}"
    try:
        assert champion.folder is not None  # an alias keeps its folder
        return begin(load(champion.folder / "bundle")), str(champion)
    except (BundleError, ConfigError) as error:
        # Told of in the result and in the metrics of the version. What is wrong with the options as such comes up again here.
        return begin(None), f"random weights: {error}"


def _champion(workspace: Workspace, model: str) -> Version | None:
    return next((version for version in workspace.models.all(model) if "champion" in version.aliases), None)


class claimed:  # noqa: N801 - used like a function
    """A folder for a fit that one process at a time may work in; others wait. The system frees it when the process dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        import fcntl

        self._file = self.folder.with_suffix(".lock").open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        for left in self.folder.parent.glob(f".{self.folder.name}.*"):  # half a checkpoint, of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        return self.folder

    def __exit__(self, *_: object) -> None:
        self._file.close()


def decide(workspace: Workspace, job: TrainJob, version: Version) -> dict[str, Any]:
    """Compare a version with the champion and promote it if the rule says so."""
    if "champion" in version.aliases:
        return {"decision": "kept", "reasons": ["it is the champion already"], "metrics": version.metrics}
    champion = _champion(workspace, job.model)
    verdicts = workspace.scores.judged(job.model)
    events = functools.partial(judged_events, workspace, job.model)
    judged = compare(version, champion, verdicts, events, tolerance=job.tolerance)
    if not judged.better or job.promote == "never":
        return {"decision": "kept", "reasons": judged.reasons, "metrics": judged.metrics}
    if job.promote == "ask" and champion is not None:
        detail = {"version": version.version, "reasons": judged.reasons, "metrics": judged.metrics}
        workspace.events.tell("challenger_waits", job.model, "info", detail, once=str(version.version))
        return {"decision": "asked", "reasons": judged.reasons, "metrics": judged.metrics}
    try:
        workspace.models.promote(job.model, version.version, unless_changed_from=champion.id if champion else None)
    except StoreError as error:
        return {"decision": "kept", "reasons": [str(error)], "metrics": judged.metrics}
    detail = {"version": version.version, "reasons": judged.reasons}
    workspace.events.tell("promoted", job.model, "info", detail, once=f"{version.version}-{secrets.token_hex(4)}")
    return {"decision": "promoted", "reasons": judged.reasons, "metrics": judged.metrics}
