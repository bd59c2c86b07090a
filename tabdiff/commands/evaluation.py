"""Judge a synthetic table: the report, and whether synthetic rows help a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tabdiff.commands.common import DataArgument, JsonOption, api, files, needs, read_table
from tabdiff.errors import SourceError, SynthesisError
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
    from tabdiff.sources import is_csv

    _check_folder(out)
    frames = [read_table(data, None) if data else None for data in (real, synthetic, holdout)]
    assert frames[0] is not None  # the arguments are required
    assert frames[1] is not None
    schema, rules = _rules(frames[0], frames[2], model, constraints)
    report, report_page, _ = _judges()
    typed = not (is_csv(real) or is_csv(synthetic))
    found = report.evaluate(*frames, target=target, schema=schema, constraints=rules, seed=seed, typed=typed)
    html = report_page.report_page(found, frames[0], frames[1], schema)
    with files().atomic_folder(out, replace=True) as folder:
        (folder / "report.html").write_text(html, encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    outcome = _describe(found, out)
    if strict and found.failures:
        lines = "\n".join(f"  - {check.column}: {check.rule}; {check.found}" for check in found.failures)
        raise SynthesisError(f"{len(found.failures)} checks failed, see {out / 'report.html'}:\n{lines}")
    return outcome


def augment_check(
    data: DataArgument,
    target: Annotated[
        str,
        typer.Option(
            "--target", metavar="COLUMN", help="Column with two classes, one of them rare.", show_default=False
        ),
    ],
    positive: Annotated[
        str | None, typer.Option("--positive", help="The class of interest; the rarer one if left out.")
    ] = None,
    positives: Annotated[
        int | None,
        typer.Option("--positives", min=10, help="Train with so many positives only; all of them are a ceiling."),
    ] = None,
    test_share: Annotated[float, typer.Option("--test-share", help="Share of the rows that are tested on.")] = 0.4,
    seeds: Annotated[int, typer.Option("--seeds", min=3, help="Splits to train and test on.")] = 5,
    seed: ReportSeedOption = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Gradient steps of each fit of the rare class.")] = 300,
    as_json: JsonOption = False,
) -> Outcome:
    """Do synthetic rows of a rare class help a classifier here? Measured; the answer may be no."""
    from tabdiff.config import SampleConfig, parse_fit_config

    report = _judges()[2]
    frame = read_table(data, None)
    fit = api().fit

    def ours(train: pl.DataFrame, rows: int, split: int) -> pl.DataFrame:
        """A model of the rare class alone: one of all rows learns too little of a class that is hardly there."""
        rare = train.filter(train[target].cast(str) == chosen).drop(target)
        options = [f"train.steps={steps}", "train.evaluate_every=50", "train.warmup=20", f"train.seed={split}"]
        publish_nothing = SampleConfig(copies="keep", rare="keep")  # type: ignore[call-arg]
        drawn: pl.DataFrame = fit(rare, parse_fit_config(None, options)).sample(
            rows, seed=split, config=publish_nothing
        )
        return drawn

    chosen = positive if positive is not None else report.rarer_class(frame, target)
    found = report.augmentation_check(
        frame,
        target,
        {"tabdiff": ours},
        positive=chosen,
        positives=positives,
        test_share=test_share,
        seeds=seeds,
        seed=seed,
    )
    arms = table("training rows", "AUC-PR", "F1", "change of AUC-PR (95 %)")
    for arm in found.arms:
        change = "" if arm.name == "none" else f"{arm.gain:+.3f} ({arm.gain_low:+.3f} to {arm.gain_high:+.3f})"
        arms.add_row(arm.name, f"{arm.auc_pr:.3f}", f"{arm.f1:.3f}", change)
    shown = [
        f"{found.train_positives} of {found.train_rows:,} training rows are {target}={found.positive}; tested on {found.test_rows:,} other real "
        f"rows with {found.test_positives}; {found.added:,} rows added; mean over {seeds} splits.",
        arms,
        found.recommendation,
    ]
    return Outcome(found.to_json(), shown)


def _check_folder(out: Path) -> None:
    """Refuse a folder that could not be written, or that holds something that is no report."""
    files().check_parent(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "report.json").is_file())):
        raise SourceError(
            f"{out}: only a report may be replaced; found something else there. Choose another name for --out."
        )


def _judges() -> Any:
    """The modules that judge, or a word on what to install for them."""
    with needs("this command needs", "train"):
        from tabdiff.evaluate import augmentation, report, report_page
    return report, report_page, augmentation


def _rules(
    real: pl.DataFrame, holdout: pl.DataFrame | None, model_dir: Path | None, file: Path | None
) -> tuple[Schema, Any]:
    """What the columns are and which rules hold: from a model, else found in the real table; a file goes first.

    A rule that real rows of the holdout break is none.
    """
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
        if rules and holdout is not None:
            others = schema.conform(holdout)
            rules = tuple(rule for rule in rules if not rule.broken(others).any())
    return schema, read_constraints(file, schema) if file else rules


def _describe(found: Evaluation, out: Path) -> Outcome:
    """The headline figures and what failed."""
    from tabdiff.evaluate.validity import counted

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
        f"{counted(checks)}; {found.validity.invalid_rows:.2f} % of the rows are invalid.",
        *(f"FAILED {check['column']}: {check['rule']}; {check['found']}" for check in failed[:10]),
        "Floor: real rows that were not trained on. Ceiling: columns drawn independently. Lower is better unless said.",
        figures,
        *(f"{check.rule}: {check.found}" for check in found.privacy.checks if check.passed),
        f"Report: {out / 'report.html'} ({out / 'report.json'} has every figure)",
    ]
    keys = ("seed", "real_rows", "synthetic_rows", "holdout_rows", "figures", "target")
    short = {"out": str(out), "passed": not failed, "failed": failed, **{key: values[key] for key in keys}}
    return Outcome(short, shown)
