"""Draw a synthetic table from the champion and report how good it is."""

from __future__ import annotations

import json
import secrets
from typing import Any

import polars as pl

from tabdiff.files import atomic_folder, write
from tabdiff.operations.jobs import SynthesizeJob
from tabdiff.operations.training import REFERENCE
from tabdiff.store import Workspace

_FEWEST = 20  # rows that no version trained on, to compare with


def synthesize(workspace: Workspace, job: SynthesizeJob) -> dict[str, Any]:
    """Draw rows from the champion, write them with a report, and register both.

    The same options and the same champion give the set that is there already.

    Args:
        workspace: where models and sets are.
        job: what to draw.

    Returns:
        run, new, rows, file, and the report: how columns and pairs differ from rows that the model was not fitted on, and how many
        drawn rows equal one of those.

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
            report = _report(drawn, pl.read_parquet(version.folder / REFERENCE), conditional=bool(job.given))
            report |= {"model": str(version), "options": job.model_dump(mode="json")}
            group = workspace.home / "synthetic" / str(version.id)
            group.mkdir(exist_ok=True)
            folder = group / f"{options[:12]}-{secrets.token_hex(6)}"
            with atomic_folder(folder) as temporary:
                write(drawn, temporary / "rows.parquet")
                (temporary / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
            found = workspace.add_synthetic(
                model_id=version.id,
                config_hash=options,
                folder=str(folder.relative_to(workspace.home)),
                rows=drawn.height,
                report=report,
                run_id=run.id,
            )
        run.result = {
            "run": run.id,
            "model": version.version,
            "new": new,
            "rows": found["rows"],
            "file": str(workspace.home / found["folder"] / "rows.parquet"),
            "report": found["report"],
        }
        return run.result


def _report(drawn: pl.DataFrame, real: pl.DataFrame, *, conditional: bool) -> dict[str, Any]:
    """Compared with rows that the model was not fitted on; a conditional sample is not meant to be like all rows."""
    from tabdiff.evaluate.fidelity import shape_error, trend_error  # brings scikit-learn

    columns = [name for name in drawn.columns if name in real.columns]
    report: dict[str, Any] = {"rows": drawn.height, "compared_with": real.height}
    if real.height < _FEWEST or conditional:
        return report
    real, drawn = real.select(columns), drawn.select(columns)
    report["shape_error"] = float(shape_error(real, drawn).mean)
    report["trend_error"] = float(trend_error(real, drawn).mean)
    report["equal_to_unseen_rows"] = drawn.join(real.unique(), on=columns, how="semi", nulls_equal=True).height
    return report
