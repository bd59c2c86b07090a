"""Everything there is to say about a synthetic table, each figure between its two ends.

The *floor* is what real rows score that nobody trained on: no generator can be expected to do better. The *ceiling* is
what `independent_columns` score, a table with the right columns and no dependence between them. All three tables are
judged against the same real rows and have the same number of rows, as sampling noise alone gives an error.

Without a holdout the real table is cut in halves at random, and one half stands for the holdout. That makes the floor
and the ceiling right, but says nothing about privacy: both halves may have been trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from tabdiff.errors import TABLE, ConfigError, Problem, SchemaError
from tabdiff.evaluate.fidelity import association, detector_auc, independent_columns, shape_error, trend_error
from tabdiff.evaluate.frames import Report, draw_rows, kinds_of
from tabdiff.evaluate.intake import Tables, take_in
from tabdiff.evaluate.privacy import (
    ClosestRecordShare,
    Copies,
    Membership,
    NearCopies,
    auc_interval,
    distance_to_closest_record_share,
    exact_copies,
    membership_auc,
    near_copies,
    wilson_interval,
)
from tabdiff.evaluate.utility import Utility, train_on_synthetic
from tabdiff.evaluate.validity import Check, Validity, validity
from tabdiff.schema import Schema

LEAST_ROWS, MOST_CLASSES = 20, 10
SHARE_LIMIT, AUC_LIMIT = 55.0, 0.55
"""A privacy check fails if the whole 95 % interval of the share (percent) or of the AUC lies above."""


@dataclass(frozen=True)
class Figure(Report):
    """One measure of the synthetic table between its two ends; lower is better unless `higher_is_better`."""

    name: str
    value: float
    floor: float
    ceiling: float
    unit: Literal["%", ""] = ""
    higher_is_better: bool = False


@dataclass(frozen=True)
class Anchored(Report):
    """The error of one column, or of a pair of columns, percent, with what holdout rows and independent columns have."""

    name: str
    error: float
    floor: float
    ceiling: float


@dataclass(frozen=True)
class Privacy(Report):
    """Measures of copying and the checks made of them; None where a real holdout is needed and there is none."""

    copies: Copies | None
    near: NearCopies | None
    closest: ClosestRecordShare | None
    membership: Membership | None
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Evaluation(Report):
    """A synthetic table judged: validity first, then fidelity, utility and privacy.

    Attributes:
        holdout_given: rows that were kept out of training were given; otherwise half of the real rows stand for them.
        left_out: columns that were not compared, and why.
        rows_compared: rows of each table that shape, trend and detector are computed on.
        figures: the headline measures.
        columns, pairs: errors of each column and pair, worst first.
        detector_interval: 95 % interval of the detector's area under the ROC curve.
        target: the column of the utility figure, None if there is none.
    """

    seed: int
    real_rows: int
    synthetic_rows: int
    holdout_rows: int
    holdout_given: bool
    left_out: dict[str, str]
    rows_compared: int
    validity: Validity
    figures: tuple[Figure, ...]
    columns: tuple[Anchored, ...]
    pairs: tuple[Anchored, ...]
    detector_interval: tuple[float, float]
    target: str | None
    utility: Utility | None
    privacy: Privacy

    @property
    def failures(self) -> tuple[Check, ...]:
        """Failed checks of validity and privacy."""
        return tuple(check for check in (*self.validity.checks, *self.privacy.checks) if not check.passed)


def evaluate(
    real: pl.DataFrame,
    synthetic: pl.DataFrame,
    holdout: pl.DataFrame | None = None,
    *,
    target: str | None = None,
    schema: Schema | None = None,
    constraints: Sequence[Any] = (),
    seed: int = 0,
    typed: bool = True,
) -> Evaluation:
    """Judge a synthetic table against the real rows that its generator was trained on.

    Args:
        real: the training rows.
        synthetic: the table to judge.
        holdout: real rows that were kept out of training. The privacy measures need them.
        target: the column that models are trained to predict, on synthetic and on real rows; by default the number or
            column of at most 10 classes that depends most on the others.
        schema: kinds and roles of the columns; inferred from `real` if not given. Only modelled columns are compared.
        constraints: rules (`tabdiff.constraints`) that every synthetic row must obey.
        seed: of every draw; the same seed gives the same result.
        typed: whether the types of columns are to be compared; those of CSV are guesses.

    Raises:
        SchemaError: a table has too few rows, or no column can be compared.
        ConfigError: the target is not among the compared columns.
    """
    for frame, role in ((real, "real"), (synthetic, "synthetic"), (holdout, "holdout")):
        if frame is not None and frame.height < LEAST_ROWS:
            rule = f"the {role} table needs at least {LEAST_ROWS} rows to be judged"
            raise SchemaError([Problem(TABLE, rule, f"{frame.height} rows", "Give a longer table.")])
    tables = take_in(real, synthetic, holdout, schema or Schema.infer(real), typed=typed)
    names = tables.real.columns
    if target is not None and target not in names:
        raise ConfigError(f"the target is one of the compared columns; got {target!r}. Columns: {', '.join(names)}.")
    train, floor = _train_and_floor(tables, seed)
    rows = min(tables.synthetic.height, floor.height)
    generator = np.random.default_rng(seed)
    candidates = [
        draw_rows(tables.synthetic, rows, generator),
        draw_rows(floor, rows, generator),
        independent_columns(train, rows, seed),
    ]
    shapes = [shape_error(train, each) for each in candidates]
    trends = [trend_error(train, each) for each in candidates]
    detectors = [detector_auc(train, each, seed) for each in candidates]
    figures = [
        _figure("shape error", [each.mean for each in shapes], "%"),
        _figure("trend error", [each.mean for each in trends], "%"),
        _figure("trend error of dependent pairs", [each.strong_mean for each in trends], "%"),
        _figure("detector (C2ST)", detectors, ""),
    ]
    utility, figure = _utility(train, candidates, floor, target, seed)
    return Evaluation(
        seed=seed,
        real_rows=real.height,
        synthetic_rows=synthetic.height,
        holdout_rows=floor.height,
        holdout_given=holdout is not None,
        left_out=tables.left_out,
        rows_compared=rows,
        validity=_validity(tables, constraints),
        figures=(*figures, *([figure] if figure else [])),
        columns=_anchored([{column.column: column.error for column in each.columns} for each in shapes]),
        pairs=_anchored([{f"{pair.first} × {pair.second}": pair.error for pair in each.pairs} for each in trends]),
        detector_interval=auc_interval(detectors[0], min(rows, 5000), min(rows, 5000)),
        target=utility.target if utility else None,
        utility=utility,
        privacy=_privacy(tables, seed),
    )


def _figure(name: str, values: Sequence[float], unit: Literal["%", ""]) -> Figure:
    """Of the errors of the synthetic table, of the holdout and of independent columns."""
    value, floor, ceiling = values
    return Figure(name, value, floor, ceiling, unit)


def _train_and_floor(tables: Tables, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Reference rows and the rows that stand for what a perfect generator would draw."""
    if tables.holdout is not None:
        return tables.real, tables.holdout
    order = np.random.default_rng(seed).permutation(tables.real.height)
    half = tables.real.height // 2
    return tables.real[np.sort(order[half:])], tables.real[np.sort(order[:half])]


def _validity(tables: Tables, constraints: Sequence[Any]) -> Validity:
    known = set(tables.synthetic.columns)
    broken = [(str(rule), rule.broken(tables.synthetic)) for rule in constraints if set(rule.about) <= known]
    untested = [
        Check(TABLE, str(rule), False, "a column of it cannot be read")
        for rule in constraints
        if not set(rule.about) <= known
    ]
    found = validity(tables.real, tables.synthetic, broken, [*tables.checks, *untested])
    # In canonical types dtypes agree by construction; the user's own were compared at the intake.
    checks = tuple(check for check in found.checks if check.rule != "same dtype")
    return Validity(checks, found.invalid_rows)


def _anchored(errors: list[dict[str, float]]) -> tuple[Anchored, ...]:
    value, floor, ceiling = errors
    found = [Anchored(name, error, floor[name], ceiling[name]) for name, error in value.items()]
    return tuple(sorted(found, key=lambda each: -each.error))


def _utility(
    train: pl.DataFrame, candidates: list[pl.DataFrame], holdout: pl.DataFrame, target: str | None, seed: int
) -> tuple[Utility | None, Figure | None]:
    """Train on synthetic, real and independent rows, test on the holdout. None where no target can be predicted."""
    if train.width < 2:
        return None, None
    wanted = target or _predictable(train)
    if wanted is None:
        return None, None
    try:
        found, independent = (
            train_on_synthetic(train, table, holdout, wanted, seed) for table in (candidates[0], candidates[2])
        )
    except SchemaError:
        if target is not None:
            raise
        return None, None
    names = {"roc_auc": "ROC AUC", "macro_f1": "macro F1", "r2": "R²"}
    name = f"utility: {names[found.metric]} for {wanted}"
    return found, Figure(name, found.synthetic, found.real, independent.synthetic, higher_is_better=True)


def _predictable(train: pl.DataFrame) -> str | None:
    """The column that depends most on the others, if it is a number that varies or has 2 to 10 classes."""
    strength = (np.abs(association(train)) - np.eye(train.width)).mean(axis=0)
    levels = [column.drop_nulls().n_unique() for column in train]
    fit = [
        count > 1 and (count <= MOST_CLASSES or kind == "number")
        for count, kind in zip(levels, kinds_of(train).values(), strict=True)
    ]
    return train.columns[int(np.where(fit, strength, -1.0).argmax())] if any(fit) else None


def _privacy(tables: Tables, seed: int) -> Privacy:
    """Measures of copying; with a holdout, checks of them."""
    holdout = tables.holdout
    if holdout is None:
        same = exact_copies(tables.real, tables.synthetic, tables.real)
        found = (
            f"{same.copies:,} of {same.synthetic_rows:,} rows equal a real one; no --holdout: rows that were kept out of training are "
            "needed to tell copies from chance"
        )
        check = Check(TABLE, "copies no more than chance explains", True, f"not tested, {found}", tested=False)
        return Privacy(None, None, None, None, (check,))
    train, synthetic = tables.real, tables.synthetic
    copies = exact_copies(train, synthetic, holdout)
    near = near_copies(train, holdout, synthetic, seed)
    closest = distance_to_closest_record_share(train, holdout, synthetic, seed)
    member = membership_auc(train, holdout, synthetic, seed)
    low, _ = wilson_interval(copies.percent / 100, copies.synthetic_rows)
    _, high = wilson_interval(copies.holdout_percent / 100, copies.holdout_rows)
    checks = (
        Check(
            TABLE,
            "exact copies of training rows no more than chance explains",
            100 * low <= 100 * high,
            f"{copies.copies} of {copies.synthetic_rows} rows ({copies.percent:.2f} %), "
            f"holdout {copies.holdout_copies} of {copies.holdout_rows} ({copies.holdout_percent:.2f} %)",
        ),
        Check(
            TABLE,
            "near copies of training rows no more than chance explains",
            not near.suspicious,
            f"{near.percent:.2f} % ({near.low:.2f} to {near.high:.2f}), holdout {near.holdout_percent:.2f} % "
            f"({near.holdout_low:.2f} to {near.holdout_high:.2f})",
        ),
        Check(
            TABLE,
            "not closer to training rows than to holdout rows",
            closest.low <= SHARE_LIMIT,
            f"{closest.share:.1f} % ({closest.low:.1f} to {closest.high:.1f}); 50 is ideal, "
            f"fails if all of it is above {SHARE_LIMIT:g}",
        ),
        Check(
            TABLE,
            "a distance attack does not tell who was trained on",
            member.low <= AUC_LIMIT,
            f"AUC {member.auc:.3f} ({member.low:.3f} to {member.high:.3f}); 0.5 is ideal, "
            f"fails if all of it is above {AUC_LIMIT:g}",
        ),
    )
    return Privacy(copies, near, closest, member, checks)
