"""The page of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tabdiff.evaluate import page
from tabdiff.evaluate.fidelity import independent_columns
from tabdiff.evaluate.intake import take_in
from tabdiff.evaluate.report import AUC_LIMIT, SHARE_LIMIT, Anchored, Evaluation, Figure
from tabdiff.evaluate.validity import Check, counted
from tabdiff.schema import Schema

_PICTURED, _LISTED, _CHECKS = 8, 15, 60
_ENDS = (
    "Floor: what real rows score that were not trained on, the best that can be hoped for. Ceiling: a table whose columns "
    "were drawn independently of each other. The dot is the synthetic table, the ticks are the two ends."
)


def report_page(
    evaluation: Evaluation,
    real: pl.DataFrame,
    synthetic: pl.DataFrame,
    schema: Schema | None = None,
    title: str = "Synthetic table report",
) -> str:
    """The page of an evaluation of these tables, as HTML. The same input gives the same bytes.

    Raises:
        SchemaError: the tables are not those of the evaluation.
        ConfigError: the page would exceed 2 MB.
    """
    tables = take_in(real, synthetic, None, schema or Schema.infer(real))
    subtitle = (
        f"{evaluation.synthetic_rows:,} synthetic rows beside {evaluation.real_rows:,} real ones and "
        f"{evaluation.holdout_rows:,} rows {'kept out of training' if evaluation.holdout_given else 'of the real table set aside'}."
    )
    sections = [
        page.Section("In short", _summary(evaluation)),
        page.Section("Validity", _validity(evaluation)),
        page.Section("Columns", _columns(evaluation, tables.real, tables.synthetic)),
        page.Section("Pairs of columns", _pairs(evaluation, tables.real, tables.synthetic)),
        page.Section("Told apart by a detector", _detector(evaluation)),
        page.Section("Usefulness for training", _utility(evaluation)),
        page.Section("Privacy", _privacy(evaluation)),
        page.Section("How this was computed", _method(evaluation)),
    ]
    return page.render(title, subtitle, sections)


def _summary(found: Evaluation) -> str:
    failed = found.failures
    verdict = f"{counted((*found.validity.checks, *found.privacy.checks))}."
    style = "fail" if failed else "pass"
    rows = [_figure_row(figure) for figure in found.figures]
    privacy = found.privacy.closest
    if privacy is not None:
        share = Figure("rows closer to training than to holdout", privacy.share, 50.0, 100.0, "%")
        rows.append(_figure_row(share))
    listed = (
        "" if not failed else page.raw_table(["failed", "rule", "found"], [_check_row(check) for check in failed[:10]])
    )
    return (
        f'<p class="verdict {style}">{page.text(verdict)}</p>{listed}'
        + page.raw_table(["measure", "synthetic", "floor", "ceiling", ""], rows, (1, 2, 3), _ENDS)
        + ("" if found.holdout_given else page.paragraph(_NO_HOLDOUT))
    )


_NO_HOLDOUT = (
    "No holdout was given, so half of the real rows stand for one. Floor and ceiling are right, but copies cannot be told "
    "from chance: keep some real rows out of training and give them with --holdout."
)


def _figure_row(figure: Figure) -> list[str]:
    unit = "&nbsp;%" if figure.unit == "%" else ""
    digits = 2 if figure.unit == "%" else 3
    values = (figure.value, figure.floor, figure.ceiling)
    cells = [page.number(value, digits) + unit for value in values]
    label = f"{figure.name}: {figure.value:.3g}, floor {figure.floor:.3g}, ceiling {figure.ceiling:.3g}"
    name = page.text(figure.name, 80) + (" (higher is better)" if figure.higher_is_better else "")
    return [name, *cells, page.scale(*values, label)]


def _mark(check: Check) -> str:
    return "untested" if not check.tested else "pass" if check.passed else "fail"


def _check_row(check: Check) -> list[str]:
    return [
        f'<span class="{_mark(check)}">{page.text(check.column, 60)}</span>',
        page.text(check.rule, 2000),
        page.text(check.found, 400),
    ]


def _validity(found: Evaluation) -> str:
    checks = found.validity.checks
    failed = [check for check in checks if not check.passed]
    words = (
        f"Could every cell have come from the real table? {len(checks)} rules, {len(failed)} broken. "
        f"{found.validity.invalid_rows:.2f} % of the rows break one."
    )
    passed: dict[str, list[str]] = {}
    for check in checks:
        if check.passed:
            passed.setdefault(check.column, []).append(check.rule)
    rows = [_check_row(check) for check in failed[:_CHECKS]]
    rows += [_check_row(Check(name, "; ".join(rules), True, "")) for name, rules in passed.items()][:_CHECKS]
    more = "The JSON file has every rule." if len(failed) > _CHECKS or len(passed) > _CHECKS else ""
    table = page.raw_table(["column", "rule", "found"], rows, caption=more)
    left = [{"column": name, "why": why} for name, why in found.left_out.items()]
    omitted = page.paragraph("Not compared:") + page.table(left[:40], ["column", "why"]) if left else ""
    return page.paragraph(words) + table + omitted


def _anchored(rows: Sequence[Anchored], heading: str) -> str:
    cells = []
    for row in rows[:_LISTED]:
        label = f"{row.name}: {row.error:.2f} %, floor {row.floor:.2f} %, ceiling {row.ceiling:.2f} %"
        numbers = [page.number(value, 2) for value in (row.error, row.floor, row.ceiling)]
        cells.append([page.text(row.name, 80), *numbers, page.scale(row.error, row.floor, row.ceiling, label)])
    more = f"The worst {_LISTED} of {len(rows)}; all are in the JSON file." if len(rows) > _LISTED else ""
    return page.raw_table([heading, "error %", "floor", "ceiling", ""], cells, (1, 2, 3), more)


def _columns(found: Evaluation, real: pl.DataFrame, synthetic: pl.DataFrame) -> str:
    words = (
        "How far is the distribution of each column from the real one, worst first? The greatest gap between the cumulated "
        "shares of numbers (Kolmogorov-Smirnov), total variation of categories. Independent columns are near the floor here: "
        "this measure does not see dependence."
    )
    worst = [row.name for row in found.columns[:_PICTURED]]
    pictures = page.histograms(real.select(worst), synthetic.select(worst))
    return page.paragraph(words) + _anchored(found.columns, "column") + pictures


def _pairs(found: Evaluation, real: pl.DataFrame, synthetic: pl.DataFrame) -> str:
    if not found.pairs:
        return page.paragraph("There is a single column, so there are no pairs.")
    words = "How far is the dependence of each pair of columns from the real one, worst first?"
    heat = page.correlation_heatmaps(real, synthetic, independent_columns(real, synthetic.height, found.seed))
    return page.paragraph(words) + _anchored(found.pairs, "pair") + heat


def _detector(found: Evaluation) -> str:
    figure = next(each for each in found.figures if each.name.startswith("detector"))
    low, high = found.detector_interval
    words = (
        "Gradient-boosted trees try to tell synthetic from real rows, and are tested on rows they were not trained on. "
        f"Area under the ROC curve {figure.value:.3f} (95 % interval {low:.3f} to {high:.3f}): 0.5 is indistinguishable, 1 is told "
        "apart at sight. It is the hardest test on this page: it sees what no single column and no pair shows."
    )
    bars = [
        ("holdout (floor)", figure.floor),
        ("synthetic", figure.value),
        ("independent columns (ceiling)", figure.ceiling),
    ]
    return page.paragraph(words) + page.bars(bars, "Area under the ROC curve of the detector")


def _utility(found: Evaluation) -> str:
    figure = next((each for each in found.figures if each.higher_is_better), None)
    if figure is None or found.utility is None:
        return page.paragraph("No column can be predicted from the others here, so there is nothing to train.")
    words = (
        f"Trees are trained to predict {found.target} on synthetic rows and on real rows, and both are tested on the same "
        f"real rows. On synthetic rows {figure.value:.3f}, on real rows {figure.floor:.3f}: a gap of {found.utility.gap:.3f}."
    )
    bars = [
        ("trained on real rows (floor)", figure.floor),
        ("trained on synthetic rows", figure.value),
        ("trained on independent columns (ceiling)", figure.ceiling),
    ]
    return page.paragraph(words) + page.bars([(name, max(value, 0.0)) for name, value in bars], figure.name)


def _privacy(found: Evaluation) -> str:
    privacy = found.privacy
    rows = [_check_row(check)[1:] for check in privacy.checks]
    rows = [
        [f'<span class="{_mark(check)}">{row[0]}</span>', row[1]]
        for check, row in zip(privacy.checks, rows, strict=True)
    ]
    table = page.raw_table(["check", "found"], rows)
    extra = ""
    if privacy.near is not None:
        extra = page.paragraph(
            f"A near copy lies within {privacy.near.threshold:.3g} of a training row, closer than 99 % of real rows that were kept out. "
            f"The median ratio of the distances to the closest and second closest training row is {privacy.near.ratio:.3f} "
            f"(holdout {privacy.near.holdout_ratio:.3f}); a much lower one would be a sign of copies."
        )
    promise = (
        "What this does not promise: these tests find rows that were copied or nearly so, and one simple attack. They are not "
        "differential privacy, which bounds what any attacker can learn and which no test of a finished table can show. "
        "Rare combinations of ordinary values may still point to a person. Do not take a pass for anonymity in the legal sense."
    )
    return table + extra + page.paragraph(promise)


def _method(found: Evaluation) -> str:
    words = (
        f"Seed {found.seed}. Shape, trend and detector compare {found.rows_compared:,} rows of each table with the real ones, the detector "
        f"at most 5,000. Privacy measures use at most 1,500 synthetic rows and equally many training and holdout rows. A privacy check "
        f"fails only if the whole 95 % interval is beyond its limit ({SHARE_LIMIT:g} % closer, AUC {AUC_LIMIT:g}) or beyond that of the holdout. "
        "The same tables and seed give the same page. Definitions follow SDMetrics, with missing values as a level of their own."
    )
    return page.paragraph(words)
