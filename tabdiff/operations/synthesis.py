"""Draw a synthetic table and report how good it is."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import polars as pl

from tabdiff.constraints import parse
from tabdiff.errors import StoreError
from tabdiff.files import atomic_folder, write
from tabdiff.operations.jobs import SynthesizeJob
from tabdiff.operations.judging import judge
from tabdiff.operations.training import FITTED, REFERENCE
from tabdiff.store import Workspace

if TYPE_CHECKING:
    from tabdiff.model import Model

_TELLING = 0.02  # of the rows, between two reports of progress
_DRAWN = 0.9  # of the work, when all rows are drawn; the rest is the report
Progress = Callable[[float], None]


def synthesize(workspace: Workspace, job: SynthesizeJob, *, on_progress: Progress | None = None) -> dict[str, Any]:
    """Draw rows, write them with a report, and register both.

    The same options and the same version give the set that is there already.

    Args:
        workspace: where models and sets are.
        job: what to draw.
        on_progress: called with the share of the work that is done, in [0, 1].

    Returns:
        run, new, rows, file, page (report.html beside the file, None if there is none), and the report
        (`tabdiff.operations.judging`).

    Raises:
        StoreError: there is no such version, or the database is out of reach.
        ConfigError: a range, set, share or constraint is not valid.
        SchemaError: a given value was never seen in training.
        SynthesisError: hardly any drawn row obeys, or there are more copies of training rows than chance explains.
        SourceError: the file cannot be written.
    """
    from tabdiff.loading import load

    with workspace.runs.start("synthesize", job.model) as run:
        version = workspace.models.get(job.model, job.version or "champion")
        if version.folder is None:
            raise StoreError(f"{version} was retired by gc, its folder is gone. Choose another one.")
        options = job.digest("model", "version")
        found = workspace.find_synthetic(version.id, options)
        new = found is None or not (workspace.home / found["folder"]).is_dir()
        if found is None:
            model = load(version.folder / "bundle")
            drawn = draw(model, job, on_progress)
            rules = model.constraints if job.constraints is None else parse(job.constraints, model.schema)
            unseen = pl.read_parquet(version.folder / REFERENCE)
            stored = version.folder / FITTED  # versions of before have none
            fitted = pl.read_parquet(stored) if stored.is_file() else None
            judged = judge(model, drawn, unseen, job.conditions, rules, fitted=fitted, balanced=bool(job.balance))
            report = judged.report | {"model": str(version), "options": job.model_dump(mode="json")}
            group = workspace.home / "synthetic" / str(version.id)
            group.mkdir(exist_ok=True)
            folder = group / f"{options[:12]}-{secrets.token_hex(6)}"
            with atomic_folder(folder) as temporary:
                write(drawn, temporary / "rows.parquet")
                (temporary / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
                if judged.page:
                    (temporary / "report.html").write_text(judged.page, encoding="utf-8")
            found = workspace.add_synthetic(
                model_id=version.id,
                config_hash=options,
                folder=str(folder.relative_to(workspace.home)),
                rows=drawn.height,
                report=report,
                run_id=run.id,
            )
        if on_progress is not None:
            on_progress(1.0)
        page_file = workspace.home / found["folder"] / "report.html"
        run.result = {
            "run": run.id,
            "model": job.model,
            "version": version.version,
            "new": new,
            "rows": found["rows"],
            "file": str(workspace.home / found["folder"] / "rows.parquet"),
            "page": str(page_file) if page_file.exists() else None,
            "report": found["report"],
        }
        return run.result


def draw(model: Model, job: SynthesizeJob, on_progress: Progress | None = None) -> pl.DataFrame:
    """The rows of a job.

    Args:
        model: what draws; the job's name and version are not looked at.
        job: what to draw.
        on_progress: called with the share of the whole work that is done.

    Raises:
        ConfigError, SchemaError, SynthesisError: as for `Model.sample`.
    """
    drawn, told = 0, 0.0

    def count(rows: int) -> None:
        nonlocal drawn, told
        drawn += rows  # rejected rows are drawn again, so there may be more of them
        share = min(drawn / job.rows, 1.0)
        if on_progress is not None and share >= told + _TELLING:
            on_progress(_DRAWN * share)
            told = share

    return model.sample(
        job.rows,
        given=job.conditions or None,
        balance=job.balance or None,
        constraints=None if job.constraints is None else parse(job.constraints, model.schema),
        seed=job.seed,
        config=job.sample,
        on_drawn=count,
    )
