"""How good a synthetic set is: copies, validity, and figures beside real rows.

Ranges and categories are those of the model's schema, and copies are told by what the model remembers of its rows. Everything
else is measured against rows of the fit, with rows that no version was fitted on for the floor; against the latter alone
where a version kept none of its own. A conditional set is compared with those of them that meet the condition; a balanced
one is not meant to be like any real rows, and is only checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tabdiff.errors import TABLE
from tabdiff.originals import Originals
from tabdiff.restrictions import among, split_given
from tabdiff.schema import Kind, Schema

if TYPE_CHECKING:
    from tabdiff.evaluate.report import Evaluation
    from tabdiff.evaluate.validity import Check, Validity
    from tabdiff.model import Model

FEWEST = 20  # rows of either table without which nothing is measured
_HALVED = 100  # real rows that can be cut in halves, of which one stands for a perfect generator
_MOST = 2000  # rows of either table that figures are computed on
_PAIRS = 20  # worst pairs of columns that are kept


@dataclass(frozen=True)
class Judged:
    """The verdict on a set: plain values for the record, and the page for people (empty if nothing could be compared)."""

    report: dict[str, Any]
    page: str


def judge(
    model: Model,
    drawn: pl.DataFrame,
    unseen: pl.DataFrame,
    given: Mapping[str, Any],
    rules: Sequence[Any],
    *,
    balanced: bool,
    fitted: pl.DataFrame | None = None,
) -> Judged:
    """Check drawn rows and compare them with real ones.

    Args:
        model: what drew them.
        drawn: N rows of the modelled columns.
        unseen: real rows that no version was fitted on.
        given: the conditions of `Model.sample`.
        rules: the constraints that were to be obeyed.
        balanced: shares of a column were set, so the rows are not meant to be like real ones.
        fitted: rows that the model was fitted on, if the version kept some.
    """
    from tabdiff.evaluate.fidelity import shape_error, trend_error  # brings scikit-learn
    from tabdiff.evaluate.report import evaluate
    from tabdiff.evaluate.report_page import report_page

    copies, valid = copy_check(model, drawn), validity(model.schema, drawn, rules)
    report: dict[str, Any] = {
        "rows": drawn.height,
        "copies": copies,
        "valid": valid.passed,
        "checks": [check.to_json() for check in valid.checks],
    }
    exact, _ = split_given(given, model.schema)
    alike = unseen.clear() if balanced else meeting(model.schema, unseen, given)
    report["compared_with"] = alike.height
    free = Schema(tuple(c for c in model.schema.modelled if c.name not in exact))
    columns = [column.name for column in free.columns]
    if balanced:
        report["not_compared"] = "shares of a column were set, so these rows are not meant to be like all real ones"
        return Judged(report, "")
    if min(alike.height, drawn.height) < FEWEST or not columns:
        few = f"{alike.height} rows that no version was fitted on{' meet the conditions' if given else ''}"
        report["not_compared"] = f"{few}, and {drawn.height} were drawn; {FEWEST} of each are needed"
        return Judged(report, "")
    alike, drawn = alike.select(columns), drawn.select(columns)
    shape, trend = shape_error(alike, drawn).mean, trend_error(alike, drawn).mean
    equal = drawn.join(alike.unique(), on=columns, how="semi", nulls_equal=True).height
    report |= {"shape_error": float(shape), "trend_error": float(trend), "equal_to_unseen_rows": equal}
    own = alike.clear() if fitted is None else meeting(model.schema, fitted, given).select(columns)
    known = own.height >= FEWEST
    # Without rows of the fit the others are cut in halves, of which one stands for a perfect generator.
    if not known and min(alike.height, drawn.height) < _HALVED:
        report["not_compared"] = f"fewer than {_HALVED} rows on either side are too few for a floor and a detector"
        return Judged(report, "")
    real, holdout = (_some(own), _some(alike)) if known else (_some(alike), None)
    synthetic = _some(drawn)
    evaluation = evaluate(real, synthetic, holdout, schema=free)
    checked = replace(evaluation, validity=valid, privacy=_privacy(evaluation, copies))
    report |= {
        "holdout_given": known,
        "figures": [figure.to_json() for figure in evaluation.figures],
        "columns": [each.to_json() for each in evaluation.columns],
        "pairs": [each.to_json() for each in evaluation.pairs[:_PAIRS]],
    }
    return Judged(report, report_page(checked, real, synthetic, free, "Synthetic set"))


def copy_check(model: Model, drawn: pl.DataFrame) -> dict[str, Any]:
    """How many rows equal a training row that occurs once, and whether chance explains it; {"tested": False} if the model cannot tell."""
    remembered = model.bundle.model.get("sampling", {}).get("originals")
    if remembered is None:
        return {"tested": False, "passed": True, "found": "not tested: the model remembers nothing of single rows"}
    originals = Originals.from_json(remembered)
    copies = int(originals.copies(_canonical(model.schema, drawn)).sum())
    passed = not originals.beyond_chance(copies, drawn.height)
    expected = 100 * originals.paired / max(originals.rows, 1)
    found = (
        f"{copies:,} of {drawn.height:,} rows equal a training row that occurs once ({100 * copies / max(drawn.height, 1):.2g} %); "
        f"among real rows {expected:.2g} % have one equal"
    )
    return {"tested": True, "passed": passed, "copies": copies, "found": found}


def validity(schema: Schema, drawn: pl.DataFrame, rules: Sequence[Any]) -> Validity:
    """Ranges, categories and gaps as in training, and the rules: pass or fail, failed ones first."""
    from tabdiff.evaluate.validity import Check, Validity

    canonical = _canonical(schema, drawn)
    checks: list[Check] = []
    invalid = np.zeros(drawn.height, bool)

    def add(column: str, rule: str, bad: Any) -> None:
        nonlocal invalid
        wrong = np.asarray(bad, dtype=bool)
        checks.append(Check(column, rule, not wrong.any(), f"{int(wrong.sum()):,} of {drawn.height:,} rows break it"))
        invalid |= wrong

    for column in schema.modelled:
        values = canonical[column.name]
        if column.minimum is not None and column.maximum is not None:
            numbers = values.dt.epoch("us") if values.dtype == pl.Datetime else values
            outside = ~numbers.is_between(column.minimum, column.maximum)
            add(column.name, "within the training range", outside.fill_null(False).to_numpy())
        elif column.kind is Kind.CATEGORICAL and column.categories:
            unknown = ~values.is_in(column.categories)
            add(column.name, "known categories", unknown.fill_null(False).to_numpy())
        if not column.nullable:
            add(column.name, "no missing values, as in training", values.is_null().to_numpy())
    for rule in rules:
        add(TABLE, str(rule), rule.broken(canonical))
    checks.sort(key=lambda check: check.passed)
    return Validity(tuple(checks), float(100 * invalid.mean()) if len(invalid) else 0.0)


def _canonical(schema: Schema, frame: pl.DataFrame) -> pl.DataFrame:
    return Schema(schema.modelled).conform(frame.select(column.name for column in schema.modelled))


def meeting(schema: Schema, frame: pl.DataFrame, given: Mapping[str, Any]) -> pl.DataFrame:
    """The rows that meet conditions.

    Args:
        schema: of the model.
        frame: rows with its modelled columns.
        given: as for `Model.sample`.

    Raises:
        ConfigError, SchemaError: as for `Model.sample`.
    """
    if not given or not frame.height:
        return frame
    exact, rules = split_given(given, schema)
    canonical = _canonical(schema, frame)
    kept = np.ones(frame.height, bool)
    for name, value in exact.items():
        missing = canonical[name].is_null().to_numpy()
        kept &= missing if value is None else ~missing & ~among(schema[name], [value]).broken(canonical)
    for rule in rules:
        kept &= ~rule.broken(canonical) & canonical[rule.column].is_not_null().to_numpy()
    return frame.filter(pl.Series(kept, dtype=pl.Boolean))


def _some(frame: pl.DataFrame) -> pl.DataFrame:
    return frame if frame.height <= _MOST else frame.sample(_MOST, seed=0)


def _privacy(evaluation: Evaluation, copies: dict[str, Any]) -> Any:
    from tabdiff.evaluate.validity import Check

    rule = "copies of training rows no more than chance explains"
    check = Check(TABLE, rule, copies["passed"], copies["found"], tested=copies["tested"])
    return replace(evaluation.privacy, checks=(check,))
