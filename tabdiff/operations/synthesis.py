"""Draw a synthetic table from the champion and report how good it is."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tabdiff.files import atomic_folder, write
from tabdiff.operations.jobs import SynthesizeJob
from tabdiff.operations.training import FITTED, REFERENCE
from tabdiff.store import Workspace

if TYPE_CHECKING:
    from tabdiff.model import Model

_MOST_JUDGED = 10_000  # drawn rows that the report looks at


def synthesize(workspace: Workspace, job: SynthesizeJob) -> dict[str, Any]:
    """Draw rows from the champion, write them with a report, and register both.

    The same options and the same champion give the set that is there already.

    Args:
        workspace: where models and sets are.
        job: what to draw.

    Returns:
        run, new, rows, file, page (report.html beside the file, None if there is none), and the report: validity, fidelity,
        usefulness and privacy as `tabdiff.evaluate.report` has them, from rows that the model was and was not fitted on.

    Raises:
        StoreError: there is no champion, or the database is out of reach.
        SchemaError: a given value was never seen in training.
        SourceError: the file cannot be written.
    """
    from tabdiff.loading import load

    with workspace.runs.start("synthesize", job.model) as run:
        version = workspace.models.get(job.model)
        assert version.folder is not None  # an alias keeps its folder
        options = job.digest("model")
        found = workspace.find_synthetic(version.id, options)
        new = found is None or not (workspace.home / found["folder"]).is_dir()
        if found is None:
            model = load(version.folder / "bundle")
            drawn = model.sample(job.rows, given=job.given or None, seed=job.seed, config=job.sample)
            report, page, evaluation = _report(model, drawn, version.folder, job)
            report |= {"model": str(version), "options": job.model_dump(mode="json")}
            group = workspace.home / "synthetic" / str(version.id)
            group.mkdir(exist_ok=True)
            folder = group / f"{options[:12]}-{secrets.token_hex(6)}"
            with atomic_folder(folder) as temporary:
                write(drawn, temporary / "rows.parquet")
                (temporary / "report.json").write_text(json.dumps(report | evaluation, indent=1), encoding="utf-8")
                if page is not None:
                    (temporary / "report.html").write_text(page, encoding="utf-8")
            found = workspace.add_synthetic(
                model_id=version.id,
                config_hash=options,
                folder=str(folder.relative_to(workspace.home)),
                rows=drawn.height,
                report=report,
                run_id=run.id,
            )
        page_file = workspace.home / found["folder"] / "report.html"
        run.result = {
            "run": run.id,
            "model": version.version,
            "new": new,
            "rows": found["rows"],
            "file": str(workspace.home / found["folder"] / "rows.parquet"),
            "page": str(page_file) if page_file.exists() else None,
            "report": found["report"],
        }
        return run.result


def _report(
    model: Model, drawn: pl.DataFrame, folder: Path, job: SynthesizeJob
) -> tuple[dict[str, Any], str | None, dict[str, Any]]:
    """What there is to say about drawn rows in short, on a page, and column by column; a conditional sample is not meant to be like all rows."""
    from tabdiff.evaluate.report import LEAST_ROWS, evaluate  # brings scikit-learn
    from tabdiff.evaluate.report_page import report_page

    unseen = pl.read_parquet(folder / REFERENCE)
    names = [name for name in drawn.columns if name in unseen.columns]
    short: dict[str, Any] = {"rows": drawn.height, "compared_with": unseen.height, "judged_rows": 0}
    short["equal_to_unseen_rows"] = drawn.join(
        unseen.select(names).unique(), on=names, how="semi", nulls_equal=True
    ).height
    fitted = pl.read_parquet(folder / FITTED) if (folder / FITTED).is_file() else None  # older versions have none
    real, holdout = (unseen, None) if fitted is None else (fitted, unseen)
    least = min(real.height, drawn.height, *([] if holdout is None else [holdout.height]))
    if job.given:
        return short | {"why_short": "every row was drawn for given values"}, None, {}
    if least < LEAST_ROWS:
        return short | {"why_short": f"{least} rows; a report takes {LEAST_ROWS} of each kind"}, None, {}
    judged = drawn.sample(min(drawn.height, _MOST_JUDGED), seed=job.seed)
    found = evaluate(real, judged, holdout, schema=model.schema, constraints=model.constraints, seed=job.seed)
    figures = {figure.name.replace(" ", "_"): figure.value for figure in found.figures}
    short |= {
        "judged_rows": judged.height,
        "shape_error": figures["shape_error"],
        "trend_error": figures["trend_error"],
    }
    short |= {"failed_checks": [f"{check.column}: {check.rule}; {check.found}" for check in found.failures]}
    full = found.to_json()
    short["figures"] = full["figures"]
    short |= {name: full[name] for name in ("real_rows", "holdout_rows", "holdout_given", "detector_interval")}
    return short, report_page(found, real, judged, model.schema), {"evaluation": full}
