"""What the pages on models, data, synthesis and runs read from the workspace: cached, plain values, small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dashboard.queries import MOST_ROWS, cached
from tabdiff.bundle import Bundle
from tabdiff.columns import Column
from tabdiff.constraints import to_json
from tabdiff.errors import StoreError
from tabdiff.store import Workspace

_POINTS = 200  # of a curve
_RUNS = 500  # latest trainings that a comparison is looked for in
FIGURES = {
    "false_alarms": ("False alarms at p ≤ 0.05", "nearer to 0.05"),
    "fill_error": ("Cost of filling one cell", "lower"),
    "separation": ("Telling rows from shuffled ones (ROC AUC)", "higher"),
    "agreement": ("Agreement with verdicts (average precision)", "higher"),
}


@cached(None)
def versions(workspace: Workspace, name: str | None = None) -> list[dict[str, Any]]:
    """Every version of a model, newest first."""
    found = workspace.models.all(name)
    return [
        {
            "id": version.id,
            "model": version.name,
            "version": version.version,
            "aliases": list(version.aliases),
            "created": version.created,
            "rows": (version.metrics.get("report") or {}).get("train_rows"),
            "loss": (version.metrics.get("report") or {}).get("held_out"),
            "folder": str(version.folder) if version.folder else None,
            "series": version.metrics.get("series") is not None,
        }
        for version in reversed(found)
    ]


@cached(300)
def passport(workspace: Workspace, name: str, version: int) -> dict[str, Any]:
    """What the model folder of a version says of itself. Every file is checked against its hash first.

    Raises:
        StoreError: there is no such version, or its folder was removed.
        BundleError: the folder is damaged.
    """
    found = workspace.models.get(name, version)
    if found.folder is None:
        raise StoreError(f"{found} was retired by gc: its record stays, its folder is gone.")
    bundle = Bundle.read(found.folder / "bundle")
    report, normal = bundle.model["report"], [float(score) for score in bundle.calibration["normal"]]
    sampling = bundle.model.get("sampling", {})
    return {
        "folder": str(found.folder / "bundle"),
        "report": report,
        "seed": bundle.config.train.seed,
        "process": bundle.config.process.kind,
        "width": bundle.model["width"],
        "blocks": bundle.model["blocks"],
        "rule": bundle.config.score.rule,
        "columns": [{"column": c.name, "kind": str(c.kind), "role": str(c.role)} for c in bundle.schema.columns],
        "fields": [_field(column) for column in bundle.schema.modelled],
        "rules": [str(rule) for rule in bundle.constraints],
        "rule_values": to_json(bundle.constraints),
        "remembers": "originals" in sampling,
        "kernel_rows": sum(
            tensor.size // tensor.shape[-1]
            for key, tensor in bundle.tensors.items()
            if key.endswith((".raw.rows", "subsets.rows"))
        ),
        "curve": survival(normal),
        "calibration_rows": len(normal),
        "compiled": sorted(name for name in bundle.compiled if name.endswith(".onnx")),
        "written": {key: bundle.manifest.get(key) for key in ("created", "tabdiff", "python", "platform")},
        "fingerprint": bundle.fingerprint,
        "card": bundle.card(),
    }


def _field(column: Column) -> dict[str, Any]:
    """What a page that sets conditions must know of a column."""
    return {
        "name": column.name,
        "kind": str(column.kind),
        "nullable": column.nullable,
        "minimum": column.minimum,
        "maximum": column.maximum,
        "categories": list(column.categories[:MOST_ROWS]),
    }


def survival(normal: list[float]) -> list[tuple[float, float]]:
    """Points (score, p-value that a row with this score has), at most a few hundred of them."""
    count = len(normal)
    if not count:
        return []
    places = sorted({round(index * (count - 1) / _POINTS) for index in range(_POINTS + 1)})
    places = sorted({*places, *range(max(0, count - 20), count)})
    return [(normal[place], (1 + count - place) / (count + 1)) for place in places]


@cached(15)
def comparison(workspace: Workspace, name: str, version: int) -> dict[str, Any] | None:
    """How a version did beside the champion of its time: decision, reasons, figures of both; None if nothing is recorded."""
    for run in workspace.runs.latest(_RUNS, "train"):
        result = run["result"] or {}
        metrics = result.get("metrics") or {}
        if result.get("model") == name and result.get("version") == version and "challenger" in metrics:
            return {
                "run": run["id"],
                "when": run["ended"],
                "decision": result.get("decision"),
                "reasons": list(result.get("reasons") or []),
                "challenger": metrics["challenger"],
                "champion": metrics.get("champion"),
            }
    return None


@cached(15)
def sources(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Registered sources by name, with their options."""
    return {name: spec.model_dump(mode="json") for name, spec in workspace.sources.all().items()}


@cached(15)
def findings_of(workspace: Workspace, source: str, limit: int = 20) -> list[dict[str, Any]]:
    """The last events about a source, newest first."""
    found = workspace.events.latest(MOST_ROWS)
    of_data = [e for e in found if e["kind"].startswith("source_") or e["kind"] in ("late_rows", "monitor")]
    mine = [e for e in of_data if e["subject"] == source or e["subject"].startswith((f"{source}/", f"{source}:"))]
    return mine[:limit]


@cached(10)
def synthetic_sets(workspace: Workspace, model: str | None = None) -> list[dict[str, Any]]:
    """Synthetic sets, newest first, without their reports' long parts."""
    return workspace.synthetics(50, model)


@cached(10)
def workspace_runs(workspace: Workspace, kind: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
    """What the workspace itself recorded of runs, newest first; those that died are found now."""
    workspace.runs.settle()
    return workspace.runs.latest(limit, kind)


def read_report(folder: str) -> dict[str, Any]:
    """The report beside a set.

    Raises:
        StoreError: it is gone.
    """
    try:
        found: dict[str, Any] = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StoreError(
            f"the report in {folder} cannot be read; gc may have removed the set. Draw it again."
        ) from None
    return found
