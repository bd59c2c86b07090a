"""Judge a synthetic table: the report, and whether synthetic rows help a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tabdiff.commands.common import JsonOption, files, read_table
from tabdiff.errors import RuntimeUnavailable, SourceError, SynthesisError
from tabdiff.terminal import Outcome, table

if TYPE_CHECKING:
    import polars as pl

    from tabdiff.evaluate.report import Evaluation
    from tabdiff.schema import Schema

RealArgument = Annotated[
    str, typer.Argument(metavar="REAL", help="Table that the generator was trained on.", show_default=False)
]
SyntheticArgument = Annotated[
    str, typer.Argument(metavar="SYNTHETIC", help="Table to judge, from any generator.", show_default=False)
]
ReportSeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same report.")]


def evaluate(
    real: RealArgument,
    synthetic: SyntheticArgument,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Folder for the report; made or replaced.", show_default=False
        ),
    ],
    holdout: Annotated[
        str | None,
        typer.Option("--holdout", metavar="DATA", help="Real rows kept out of training; privacy needs them."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="COLUMN", help="Column that models shall predict.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="MODEL_DIR", help="Take schema and constraints from this model.")
    ] = None,
    constraints: Annotated[
        Path | None, typer.Option("--constraints", help="Rules as TOML, instead of those found in REAL.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if a check fails; the report is written.")] = False,
    seed: ReportSeedOption = 0,
    as_json: JsonOption = False,
) -> Outcome:
    """Judge a synthetic table: validity, fidelity, usefulness, privacy. One HTML page, and JSON beside it."""
    _check_folder(out)
    frames = [read_table(data, None) if data else None for data in (real, synthetic, holdout)]
    assert frames[0] is not None  # the arguments are required
    assert frames[1] is not None
    schema, rules = _rules(frames[0], model, constraints)
    report, report_page = _judges()
    found = report.evaluate(frames[0], frames[1], frames[2], target=target, schema=schema, constraints=rules, seed=seed)
    html = report_page.report_page(found, frames[0], frames[1], schema)
    with files().atomic_folder(out, replace=True) as folder:
        (folder / "report.html").write_text(html, encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    outcome = _describe(found, out)
    if strict and found.failures:
        lines = "\n".join(f"  - {check.column}: {check.rule}; {check.found}" for check in found.failures)
        raise SynthesisError(f"{len(found.failures)} checks failed, see {out / 'report.html'}:\n{lines}")
    return outcome


def _check_folder(out: Path) -> None:
    """Refuse a folder that could not be written, or that holds something that is no report."""
    files().check_parent(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "report.json").is_file())):
        raise SourceError(
            f"{out}: only a report may be replaced; found something else there. Choose another name for --out."
        )


def _judges() -> Any:
    """The modules that judge, or a word on what to install for them."""
    try:
        from tabdiff.evaluate import report, report_page
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tabdiff"):
            raise
        raise RuntimeUnavailable(
            f"this command needs {error.name}, which is not installed here. Run pip install 'tabdiff[train]'."
        ) from error
    return report, report_page


def _rules(real: pl.DataFrame, model_dir: Path | None, file: Path | None) -> tuple[Schema, Any]:
    """What the columns are and which rules hold: from a model, else found in the real table; a file goes first."""
    from tabdiff.constraints import read_constraints
    from tabdiff.discovery import infer_constraints
    from tabdiff.schema import Schema

    if model_dir is not None:
        from tabdiff.bundle import Bundle

        bundle = Bundle.read(model_dir)
        schema, rules = bundle.schema, bundle.constraints
    else:
        schema = Schema.infer(real)
        rules = () if file else infer_constraints(schema.conform(real), schema)
    return schema, read_constraints(file, schema) if file else rules


def _describe(found: Evaluation, out: Path) -> Outcome:
    """The headline figures and what failed."""
    values = found.to_json()
    failed = [check.to_json() for check in found.failures]
    figures = table("measure", "synthetic", "floor", "ceiling")
    for figure in found.figures:
        unit = " %" if figure.unit else ""
        digits = 2 if figure.unit else 3
        cells = (f"{value:.{digits}f}{unit}" for value in (figure.value, figure.floor, figure.ceiling))
        figures.add_row(figure.name + (" (higher is better)" if figure.higher_is_better else ""), *cells)
    checks = [*found.validity.checks, *found.privacy.checks]
    shown: list[Any] = [
        f"{len(checks) - len(failed)} of {len(checks)} checks passed; {found.validity.invalid_rows:.2f} % of the rows are invalid.",
        *(f"FAILED {check['column']}: {check['rule']}; {check['found']}" for check in failed[:10]),
        "Floor: real rows that were not trained on. Ceiling: columns drawn independently. Lower is better unless said.",
        figures,
        *(f"{check.rule}: {check.found}" for check in found.privacy.checks if check.passed),
        f"Report: {out / 'report.html'} ({out / 'report.json'} has every figure)",
    ]
    keys = ("seed", "real_rows", "synthetic_rows", "holdout_rows", "figures", "target")
    short = {"out": str(out), "passed": not failed, "failed": failed, **{key: values[key] for key in keys}}
    return Outcome(short, shown)
