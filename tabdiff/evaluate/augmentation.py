"""Do synthetic rows of a rare class help a classifier? Measured on rows that nobody trained on, beside the usual remedies.

The answer is often no. So it is measured, for the user's own table: every arm trains the same gradient-boosted trees, on the
same training rows plus what the arm adds, and is tested on the same real rows at their natural rate of positives. Several
splits; the recommendation asks for an improvement that holds over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, f1_score
from sklearn.neighbors import NearestNeighbors

from tabdiff.errors import ConfigError, Problem, SchemaError
from tabdiff.evaluate.frames import Floats, Report, kind_of, numbers, ordinal, texts

Maker = Callable[[pl.DataFrame, int, int], pl.DataFrame]
"""Makes rows of the rare class: (training table, rows, seed) -> table with the same columns; the target is not read."""

LEAST_POSITIVES, LEAST_SEEDS = 10, 3
TREES: dict[str, Any] = {"max_iter": 200, "learning_rate": 0.06, "early_stopping": False}
_STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % points of Student's t by degrees of freedom."""


@dataclass(frozen=True)
class Arm(Report):
    """One remedy over all seeds. AUC-PR and F1 are 0 to 1, higher is better.

    Attributes:
        auc_pr, f1: means over seeds; F1 at the threshold that flags as many test rows as there are positives.
        auc_pr_by_seed, f1_by_seed: one value for each seed.
        gain: mean of AUC-PR minus that of the arm `none` on the same seed, with its 95 % interval (paired Student's t).
    """

    name: str
    auc_pr: float
    f1: float
    auc_pr_by_seed: tuple[float, ...]
    f1_by_seed: tuple[float, ...]
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class Augmentation(Report):
    """Which remedy helps, if any.

    Attributes:
        positive: the rare class.
        train_positives, train_rows, test_positives, test_rows: of the first seed.
        added: rows that each augmenting arm adds.
        helps: the best arm's gain is above 0 over the whole interval.
        recommendation: in words; it may be "no".
    """

    target: str
    positive: str
    train_positives: int
    train_rows: int
    test_positives: int
    test_rows: int
    added: int
    seeds: int
    arms: tuple[Arm, ...]
    helps: bool
    best: str
    recommendation: str


def augmentation_check(
    frame: pl.DataFrame,
    target: str,
    makers: Mapping[str, Maker] | None = None,
    *,
    positive: Any = None,
    positives: int | None = None,
    ratio: float = 0.5,
    test_share: float = 0.4,
    seeds: int = 5,
    seed: int = 0,
) -> Augmentation:
    """Train the same trees with and without added rows of the rare class, and compare on held-out real rows.

    Args:
        frame: all real rows. Rows without a target are left out.
        target: a column with two classes.
        makers: generators of rows of the rare class, by name. They see training rows only.
        positive: the rare class; by default the rarer one.
        positives: keep only so many positives for training, as if fewer were known. Then an arm with all of them shows
            what more real rows would bring: the ceiling.
        ratio: rows of the rare class per other row after adding.
        test_share: share of rows that are tested on, stratified.
        seeds: how many splits, numbered from `seed`.

    Raises:
        ConfigError: an option is out of range, or a maker returns other columns or too few rows.
        SchemaError: the target does not have two classes, or too few positives.
    """
    if seeds < LEAST_SEEDS:
        raise ConfigError(f"seeds is at least {LEAST_SEEDS}, or chance decides; got {seeds}.")
    if not 0 < test_share < 1 or not 0 < ratio <= 1:
        raise ConfigError(f"test_share lies inside (0, 1) and ratio inside (0, 1]; got {test_share} and {ratio}.")
    table, labels, rare = _labelled(frame, target, positive)
    features = [name for name in table.columns if name != target and not table.schema[name].is_nested()]
    results: dict[str, list[tuple[float, float]]] = {}
    counts: tuple[int, ...] = ()
    for split in range(seed, seed + seeds):
        parts = _split(labels, test_share, positives, split)
        train, test, full = (table[rows] for rows in parts)
        truth = labels[parts[1]]
        wanted = _wanted(labels[parts[0]], ratio)
        if not counts:
            counts = (int(labels[parts[0]].sum()), train.height, int(truth.sum()), test.height, wanted)
        inputs = ordinal(table, test, features)

        def scored(
            rows: pl.DataFrame,
            marks: Any,
            weights: str | None = None,
            inputs: Floats = inputs,
            truth: Any = truth,
            split: int = split,
        ) -> tuple[float, float]:
            trees = HistGradientBoostingClassifier(random_state=split, class_weight=weights, **TREES)
            chance = trees.fit(ordinal(table, rows, features), marks).predict_proba(inputs)[:, 1]
            return _measures(truth, chance)

        base, marks = train, labels[parts[0]]
        results.setdefault("none", []).append(scored(base, marks))
        results.setdefault("class weights", []).append(scored(base, marks, "balanced"))
        minority = train.filter(pl.Series(marks == 1))
        own: dict[str, Maker] = {"duplicates": duplicates, "SMOTENC": smotenc, **(makers or {})}
        for name, maker in own.items():
            given = minority if name in ("duplicates", "SMOTENC") else train
            made = _checked(name, maker(given, wanted, split), table, target, wanted)
            both = pl.concat([base, made.select(base.columns)])
            results.setdefault(name, []).append(scored(both, np.append(marks, np.ones(made.height, dtype=np.int64))))
        if positives is not None:
            results.setdefault("all real positives (ceiling)", []).append(scored(full, labels[parts[2]]))
    arms = tuple(_arm(name, values, results["none"]) for name, values in results.items())
    return _conclusion(target, rare, counts, seeds, arms)


def duplicates(minority: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """Rows of the rare class again, drawn with replacement."""
    return minority[np.random.default_rng(seed).integers(minority.height, size=rows)]


def smotenc(minority: pl.DataFrame, rows: int, seed: int, neighbours: int = 5) -> pl.DataFrame:
    """SMOTE for numbers and categories (Chawla et al., JAIR 2002): between a row and one of its nearest neighbours.

    Numbers lie on the line between the two, whole numbers are rounded; a category is the commonest among the
    neighbours. Distance: numbers over their standard deviation, categories that differ count the median of the standard
    deviations, which is 1 then. A row without a number takes that of its neighbour.
    """
    generator = np.random.default_rng(seed)
    if minority.height < 2:
        return duplicates(minority, rows, seed)
    kinds = {name: kind_of(dtype) for name, dtype in minority.schema.items()}
    parts: list[Floats] = []
    for name, kind in kinds.items():
        if kind == "number":
            values = numbers(minority[name])
            spread = float(np.nanstd(values)) if not np.isnan(values).all() else 0.0
            middle = float(np.nanmedian(values)) if not np.isnan(values).all() else 0.0
            parts.append(np.nan_to_num(values, nan=middle)[:, None] / (spread or 1.0))
        else:
            shown = texts(minority[name]).fill_null("")
            parts.append(shown.to_dummies().to_numpy().astype(np.float64) / np.sqrt(2))
    space = np.hstack(parts)
    count = min(neighbours, minority.height - 1)
    near = NearestNeighbors(n_neighbors=count + 1).fit(space).kneighbors(space, return_distance=False)[:, 1:]
    first = generator.integers(minority.height, size=rows)
    second = near[first, generator.integers(count, size=rows)]
    step = generator.random(rows)
    columns = []
    for name, kind in kinds.items():
        column = minority[name]
        if kind == "number":
            values = numbers(column)
            ends = [values[first], values[second]]
            ends = [np.where(np.isnan(a), b, a) for a, b in (ends, ends[::-1])]
            between = pl.Series(name, ends[0] + step * (ends[1] - ends[0]), nan_to_null=True)
            columns.append((between if column.dtype.is_float() else between.round(0).cast(pl.Int64)).cast(column.dtype))
        else:
            levels, codes = np.unique(
                np.array(texts(column).fill_null("").to_list(), dtype=object), return_inverse=True
            )
            votes = np.stack([(codes[near] == level).sum(axis=1) for level in range(len(levels))], axis=1)
            chosen = pl.Series(name, levels[votes.argmax(axis=1)[first]].tolist())
            chosen = chosen.replace("", None) if column.null_count() else chosen
            columns.append((chosen == "true").alias(name) if column.dtype == pl.Boolean else chosen.cast(column.dtype))
    return pl.DataFrame(columns)


def rarer_class(frame: pl.DataFrame, target: str) -> str:
    """The rarer of two classes, as text.

    Raises:
        SchemaError: there is no such column, or it does not have two classes with enough rows.
    """
    return _labelled(frame, target, None)[2]


def _labelled(frame: pl.DataFrame, target: str, positive: Any) -> tuple[pl.DataFrame, Any, str]:
    """Rows with a target, 1 where it is the rare class, and the name of that."""
    if target not in frame.columns:
        rule = "the target is a column of the table"
        raise SchemaError([Problem(target, rule, f"columns {frame.columns}", "Name another target.")])
    table = frame.filter(pl.col(target).is_not_null())
    shown = texts(table[target])
    counts = shown.rename("level").value_counts().sort(["count", "level"])
    if counts.height != 2:
        cure = "Make a column that says yes or no."
        raise SchemaError([Problem(target, "the target has two classes", f"{counts.height} values", cure)])
    rare = str(counts["level"][0]) if positive is None else str(positive)
    if rare not in counts["level"].to_list():
        raise ConfigError(f"positive is one of the classes {counts['level'].to_list()}; got {rare!r}.")
    labels = np.asarray((shown == rare).to_numpy(), dtype=np.int64)
    if min(labels.sum(), len(labels) - labels.sum()) < 2 * LEAST_POSITIVES:
        rule = f"each class has at least {2 * LEAST_POSITIVES} rows, or nothing can be measured"
        raise SchemaError([Problem(target, rule, f"{int(labels.sum())} rows of {rare!r}", "Collect more rows.")])
    return table, labels, rare


def _split(labels: Any, test_share: float, positives: int | None, seed: int) -> tuple[Any, Any, Any]:
    """Rows to train on, to test on, and to train on if no positive were taken away."""
    generator = np.random.default_rng(seed)
    chosen = []
    for mark in (0, 1):
        rows = generator.permutation(np.flatnonzero(labels == mark))
        cut = round(test_share * len(rows))
        chosen.append((rows[cut:], rows[:cut]))
    kept = chosen[1][0] if positives is None else chosen[1][0][:positives]
    if len(kept) < LEAST_POSITIVES or (positives is not None and len(kept) < positives):
        raise ConfigError(
            f"at least {LEAST_POSITIVES} positives are trained on, and no more than there are; {len(chosen[1][0])} are left after the "
            f"split, positives={positives}. Lower test_share or positives."
        )
    parts = ((chosen[0][0], kept), (chosen[0][1], chosen[1][1]), (chosen[0][0], chosen[1][0]))
    train, test, full = (np.sort(np.concatenate(part)) for part in parts)
    return train, test, full


def _wanted(marks: Any, ratio: float) -> int:
    """Rows of the rare class to add, so that there are `ratio` of them per other row."""
    return max(int(ratio * (len(marks) - marks.sum())) - int(marks.sum()), 1)


def _measures(truth: Any, chance: Floats) -> tuple[float, float]:
    """AUC-PR, and F1 at the threshold that flags as many rows as are positive."""
    flagged = np.zeros(len(truth), dtype=np.int64)
    flagged[np.argsort(-chance, kind="stable")[: int(truth.sum())]] = 1
    return float(average_precision_score(truth, chance)), float(f1_score(truth, flagged))


def _checked(name: str, made: pl.DataFrame, table: pl.DataFrame, target: str, rows: int) -> pl.DataFrame:
    """Rows of a maker in the types of the table; columns that it did not make are missing."""
    surplus = [column for column in made.columns if column not in table.columns]
    if surplus or made.height != rows:
        raise ConfigError(
            f"maker {name!r} returns {rows} rows of the table's columns; got {made.height} rows, surplus {surplus}."
        )
    columns = [
        made[column].cast(dtype, strict=False)
        if column in made.columns
        else pl.Series(column, [None] * rows, dtype=dtype)
        for column, dtype in table.schema.items()
    ]
    return pl.DataFrame(columns)


def _arm(name: str, values: list[tuple[float, float]], none: list[tuple[float, float]]) -> Arm:
    precision, f1 = (tuple(value[side] for value in values) for side in (0, 1))
    gains = np.array(precision) - np.array([value[0] for value in none])
    point = _STUDENT.get(len(gains) - 1, 1.96 + 2.4 / max(len(gains) - 1, 1))
    half = point * float(gains.std(ddof=1)) / float(np.sqrt(len(gains)))
    gain = float(gains.mean())
    return Arm(name, float(np.mean(precision)), float(np.mean(f1)), precision, f1, gain, gain - half, gain + half)


def _conclusion(target: str, rare: str, counts: tuple[int, ...], seeds: int, arms: tuple[Arm, ...]) -> Augmentation:
    remedies = [arm for arm in arms if arm.name != "none" and "ceiling" not in arm.name]
    best = max(remedies, key=lambda arm: arm.auc_pr)
    helps = bool(best.gain_low > 0)
    if helps:
        words = (
            f"Yes: {best.name} raises AUC-PR by {best.gain:+.3f} (95 % interval {best.gain_low:+.3f} to {best.gain_high:+.3f} over {seeds} splits). "
            "Use it, and test again on new rows: the best of several remedies looks a little better than it is."
        )
    else:
        words = (
            f"No: the best remedy, {best.name}, changes AUC-PR by {best.gain:+.3f} (95 % interval {best.gain_low:+.3f} to {best.gain_high:+.3f} over "
            f"{seeds} splits), which may be chance. Train on the real rows as they are; more real rows of the class help most."
        )
    return Augmentation(
        target, rare, counts[0], counts[1], counts[2], counts[3], counts[4], seeds, arms, helps, best.name, words
    )
