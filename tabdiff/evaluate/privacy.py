"""Does a synthetic table give away rows of the real one? Measures of copying, each with its innocent floor.

    exact_copies       rows that equal a training row in every cell
    near_copies        rows closer to a training row than a real row that training never saw hardly ever is
    closest record     are they nearer to the rows of training than to as many rows that were kept out?
    membership         can an attacker who has the synthetic table tell which real rows were trained on?

They find careless copying. They do not prove privacy: only a training procedure with a guarantee, such as
differential privacy, does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from sklearn.metrics import pairwise_distances, roc_auc_score

from tabdiff.evaluate.frames import Floats, Report, align, draw_rows, joint_codes, kind_of, kinds_of, numbers

NORMAL_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""
NEAR = 0.01
"""Share of real rows, kept out of training, that lie closer to a training row than the threshold of a near copy."""


@dataclass(frozen=True)
class Copies(Report):
    """Rows that equal a training row in every cell; the holdout's are the floor. Lower is better."""

    synthetic_rows: int
    copies: int
    percent: float
    holdout_rows: int
    holdout_copies: int
    holdout_percent: float


@dataclass(frozen=True)
class ClosestRecordShare(Report):
    """Percent of synthetic rows nearer to the training rows than to as many holdout rows; 50 is ideal.

    `low` and `high` are the 95 % interval for the drawn synthetic rows. 100: copies of the training rows.
    """

    share: float
    low: float
    high: float
    synthetic_rows: int
    real_rows: int
    median_to_train: float
    median_to_holdout: float


@dataclass(frozen=True)
class NearCopies(Report):
    """Percent of rows that lie closer to a training row than `threshold`, with 95 % intervals; lower is better.

    `threshold` is the distance below which 1 % of the real rows lie that were kept out of training; the holdout's
    percentage is that of other such rows, so about 1. `ratio` is the median of the distance to the closest training
    row over that to the second closest, 0 to 1: copies of single rows have a low one. The holdout's is the floor.
    """

    threshold: float
    percent: float
    low: float
    high: float
    holdout_percent: float
    holdout_low: float
    holdout_high: float
    ratio: float
    holdout_ratio: float
    synthetic_rows: int
    holdout_rows: int

    @property
    def suspicious(self) -> bool:
        """More near copies than chance explains: the two intervals do not meet."""
        return self.low > self.holdout_high


@dataclass(frozen=True)
class Membership(Report):
    """Area under the ROC curve of a distance attack, with its 95 % interval; 0.5 is ideal, 1 gives every row away."""

    auc: float
    low: float
    high: float
    members: int
    others: int


def exact_copies(train: pl.DataFrame, synthetic: pl.DataFrame, holdout: pl.DataFrame) -> Copies:
    """Count the synthetic rows that occur in `train`, and the holdout rows that do.

    A holdout was never seen, so its share shows how often rows coincide by chance. Cells are compared as
    values: 1 equals 1.0, missing equals missing.
    """
    synthetic = align(train, synthetic, "synthetic")
    holdout = align(train, holdout, "holdout")
    found = []
    for frame in (synthetic, holdout):
        codes = [joint_codes(kind, train[name], frame[name]) for name, kind in kinds_of(train).items()]
        left, right = (pl.DataFrame([pl.Series(str(i), part[side]) for i, part in enumerate(codes)]) for side in (0, 1))
        found.append(right.join(left, on=left.columns, how="semi").height)
    return Copies(
        synthetic_rows=synthetic.height,
        copies=found[0],
        percent=100 * found[0] / synthetic.height,
        holdout_rows=holdout.height,
        holdout_copies=found[1],
        holdout_percent=100 * found[1] / holdout.height,
    )


def distance_to_closest_record_share(
    train: pl.DataFrame,
    holdout: pl.DataFrame,
    synthetic: pl.DataFrame,
    seed: int = 0,
    most_rows: int = 1500,
    most_real_rows: int = 20_000,
) -> ClosestRecordShare:
    """Share of synthetic rows whose closest real row is a training row, percent; 50 is ideal.

    Distance: sum over numbers of |difference| / range of train, plus 2 for each category that differs (L1 of
    one-hot). A missing number counts as the median, and 1 more against a present one. Train and holdout are
    drawn to the same size, at most `most_real_rows`, and at most `most_rows` synthetic rows are judged.
    Ties count 1/2. The interval is Wilson's: it covers the draw of synthetic rows, not that of the real ones.
    """
    holdout = align(train, holdout, "holdout")
    synthetic = align(train, synthetic, "synthetic")
    generator = np.random.default_rng(seed)
    size = min(train.height, holdout.height, most_real_rows)
    frames = (train, draw_rows(train, size, generator), draw_rows(holdout, size, generator))
    values, codes = _encode(*frames, draw_rows(synthetic, most_rows, generator))
    to_train = _closest((values[3], codes[3]), (values[1], codes[1]))
    to_holdout = _closest((values[3], codes[3]), (values[2], codes[2]))
    share = float((to_train < to_holdout).mean() + (to_train == to_holdout).mean() / 2)
    low, high = wilson_interval(share, len(to_train))
    return ClosestRecordShare(
        share=100 * share,
        low=100 * low,
        high=100 * high,
        synthetic_rows=len(to_train),
        real_rows=size,
        median_to_train=float(np.median(to_train)),
        median_to_holdout=float(np.median(to_holdout)),
    )


def near_copies(
    train: pl.DataFrame,
    holdout: pl.DataFrame,
    synthetic: pl.DataFrame,
    seed: int = 0,
    most_rows: int = 1500,
    most_real_rows: int = 20_000,
) -> NearCopies:
    """Share of the synthetic rows that are closer to a training row than real rows hardly ever are.

    Distance as in `distance_to_closest_record_share`. Half of the holdout rows sets the threshold, the other half is
    the floor; at most `most_rows` rows of each table ask, and at most `most_real_rows` training rows answer.

    Raises:
        SchemaError: the tables are not comparable, or train or holdout has fewer than two rows.
    """
    holdout = align(train, holdout, "holdout", least=2)
    synthetic = align(train, synthetic, "synthetic")
    generator = np.random.default_rng(seed)
    held_out = draw_rows(holdout, 2 * most_rows, generator)
    frames = (train, draw_rows(train, most_real_rows, generator), held_out, draw_rows(synthetic, most_rows, generator))
    values, codes = _encode(*frames)
    nearest = [_nearest((values[side], codes[side]), (values[1], codes[1])) for side in (2, 3)]
    asked = generator.permutation(held_out.height)
    setting, floor = (nearest[0][part] for part in np.array_split(asked, 2))
    threshold = float(np.quantile(setting[:, 0], NEAR))
    shares = [float((distances[:, 0] <= threshold).mean()) for distances in (nearest[1], floor)]
    intervals = [wilson_interval(share, len(d)) for share, d in zip(shares, (nearest[1], floor), strict=True)]
    return NearCopies(
        threshold=threshold,
        percent=100 * shares[0],
        low=100 * intervals[0][0],
        high=100 * intervals[0][1],
        holdout_percent=100 * shares[1],
        holdout_low=100 * intervals[1][0],
        holdout_high=100 * intervals[1][1],
        ratio=_ratio(nearest[1]),
        holdout_ratio=_ratio(floor),
        synthetic_rows=len(nearest[1]),
        holdout_rows=len(floor),
    )


def membership_auc(
    train: pl.DataFrame,
    holdout: pl.DataFrame,
    synthetic: pl.DataFrame,
    seed: int = 0,
    most_rows: int = 1500,
    most_synthetic_rows: int = 20_000,
) -> Membership:
    """How well the distance to the closest synthetic row tells training rows from others (Chen et al., CCS 2020).

    Equally many rows of train and holdout, at most `most_rows` of each. The interval is that of Hanley and McNeil
    (Radiology 1982). A stronger attacker may do better: an AUC of 0.5 rules out this attack, not every one.
    """
    holdout = align(train, holdout, "holdout")
    synthetic = align(train, synthetic, "synthetic")
    generator = np.random.default_rng(seed)
    size = min(train.height, holdout.height, most_rows)
    frames = [draw_rows(frame, size, generator) for frame in (train, holdout)]
    values, codes = _encode(train, *frames, draw_rows(synthetic, most_synthetic_rows, generator))
    closeness = [-_closest((values[side], codes[side]), (values[3], codes[3])) for side in (1, 2)]
    auc = float(roc_auc_score(np.repeat([1, 0], size), np.concatenate(closeness))) if size else 0.5
    low, high = auc_interval(auc, size, size)
    return Membership(auc, low, high, size, size)


def auc_interval(auc: float, positives: int, negatives: int) -> tuple[float, float]:
    """95 % interval, within 0 to 1, of an area under the ROC curve (Hanley and McNeil, Radiology 1982)."""
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (first - auc**2) + (negatives - 1) * (second - auc**2)
    half = NORMAL_95 * float(np.sqrt(max(variance, 0.0) / (positives * negatives)))
    return max(0.0, auc - half), min(1.0, auc + half)


def _ratio(distances: Floats) -> float:
    """Median of closest over second closest; 1 where both are 0."""
    ratio = np.divide(distances[:, 0], distances[:, 1], out=np.ones(len(distances)), where=distances[:, 1] > 0)
    return float(np.median(ratio))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval, within 0 to 1, of a share seen in `count` draws (Wilson, JASA 1927)."""
    square = NORMAL_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL_95 * np.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _encode(*frames: pl.DataFrame) -> tuple[list[Floats], list[Floats]]:
    """Scaled numbers with indicators of missing, and codes of categories; the first table sets scales."""
    values: list[list[Floats]] = [[] for _ in frames]
    codes: list[list[Floats]] = [[] for _ in frames]
    for name, dtype in frames[0].schema.items():
        columns = [frame[name] for frame in frames]
        if kind_of(dtype) == "category":
            for part, code in zip(codes, joint_codes("category", *columns), strict=True):
                part.append(code.astype(np.float64))
            continue
        parts = [numbers(column) for column in columns]
        known = parts[0][~np.isnan(parts[0])]
        middle = float(np.median(known)) if known.size else 0.0
        scale = float(known.max() - known.min()) if known.size else 0.0
        scale = scale or 1.0
        for table, cells in zip(values, parts, strict=True):
            table.append(np.where(np.isnan(cells), middle, cells) / scale)
            table.append(np.isnan(cells).astype(np.float64))
    heights = [frame.height for frame in frames]
    return _stack(values, heights), _stack(codes, heights)


def _stack(tables: list[list[Floats]], heights: list[int]) -> list[Floats]:
    """The columns of each table as a matrix (n, c), c = 0 included."""
    return [np.array(parts).reshape(len(parts), rows).T for parts, rows in zip(tables, heights, strict=True)]


def _closest(asked: tuple[Floats, Floats], known: tuple[Floats, Floats]) -> Floats:
    """Distance (n,) of each asked row to its closest known row."""
    return np.concatenate([_distances(chunk, known).min(axis=1) for chunk in _chunks(asked)])


def _nearest(asked: tuple[Floats, Floats], known: tuple[Floats, Floats]) -> Floats:
    """Distances (n, 2) of each asked row to its closest and second closest known row; the same if there is one."""
    second = min(1, len(known[0]) - 1)
    parts = [np.partition(_distances(chunk, known), second, axis=1)[:, [0, second]] for chunk in _chunks(asked)]
    return np.concatenate(parts)


def _chunks(table: tuple[Floats, Floats], rows: int = 256) -> Iterator[tuple[Floats, Floats]]:
    """The table in pieces, so that a matrix of distances stays small."""
    for start in range(0, len(table[0]), rows):
        yield table[0][start : start + rows], table[1][start : start + rows]


def _distances(asked: tuple[Floats, Floats], known: tuple[Floats, Floats]) -> Floats:
    """All distances (n, m)."""
    total = np.zeros((len(asked[0]), len(known[0])))
    if asked[0].shape[1]:
        total += pairwise_distances(asked[0], known[0], metric="cityblock")
    if asked[1].shape[1]:
        differing = pairwise_distances(asked[1], known[1], metric="hamming") * asked[1].shape[1]
        total += 2 * np.round(differing)
    return total
