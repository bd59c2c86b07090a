"""Explanations, judged on rows in which a known cell was broken.

    OMP_NUM_THREADS=1 python benchmarks/explanation.py DATA [DATA ...] [--plants 40] [--models FOLDER] [--out results.csv]

DATA are NAME.npz files (X, y; the normal rows are used) or .parquet tables. At most 8,000 rows, shuffled by the seed; one half
is fitted, the other half is where plants are made.

*Plant.* A cell of a row that the model takes for normal (p > 0.05) gets the value that another held-out row has in this
column. A gradient-boosted model of the column given all others, fitted on the training half, decides which plants count:
the column must depend on others (held-out R^2 >= 0.5; categories: half of what the most frequent one gets wrong), the
new number must lie inside the column's 1 to 99 % range and at least 4 rms residuals from the prediction; the new
category must be held by at least 5 % of the rows and have a predicted probability of at most 1 %. *Two cells*: two plants in one
row, each judged against the row as it was.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.neighbors import NearestNeighbors

import tabdiff
from tabdiff.beliefs import Believer
from tabdiff.explanation import Explanation

ALPHA = 0.05
NUMBERS = ("continuous", "integer", "datetime")


def load(path: Path, limit: int, seed: int) -> pl.DataFrame:
    """Normal rows in random order, at most `limit`."""
    if path.suffix == ".npz":
        table = np.load(path)
        x = table["X"][table["y"] == 0].astype(np.float64)
        frame = pl.DataFrame(x, schema=[f"column {i}" for i in range(x.shape[1])])
    else:
        frame = pl.read_parquet(path)
    order = np.random.default_rng(seed).permutation(frame.height)[:limit]
    return frame[order]


def fit_once(path: Path, frame: pl.DataFrame, folder: Path | None, seed: int) -> tabdiff.Model:
    place = None if folder is None else folder / f"{path.stem}-{seed}"
    if place is not None and place.exists():
        return tabdiff.load(place)
    model = tabdiff.fit(frame, tabdiff.FitConfig.model_validate({"train": {"seed": seed}}))
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        model.save(place)
    return model


# ---------------------------------------------------------------------------------------------- the reference


@dataclass
class Reference:
    """Gradient-boosted models of single columns given all others, fitted on the training half."""

    schema: tabdiff.Schema
    names: list[str]
    numeric: list[bool]
    codes: list[dict[str, int]]
    models: dict[int, object]
    rms: dict[int, float]

    def matrix(self, frame: pl.DataFrame) -> np.ndarray:
        """Numbers, and places of categories in the order of the training half; gaps are NaN."""
        columns, canonical = [], self.schema.conform(frame)
        for name, numeric, code in zip(self.names, self.numeric, self.codes, strict=True):
            series = canonical[name]
            if numeric:
                series = series.dt.epoch("us") if series.dtype.is_temporal() else series
                columns.append(series.cast(pl.Float64).fill_null(np.nan).to_numpy())
            else:
                texts = series.cast(pl.String).to_list()
                columns.append(np.array([code.get(text, np.nan) for text in texts], dtype=float))
        return np.stack(columns, axis=1)

    def surprise(self, x: np.ndarray, column: int) -> np.ndarray:
        """How far each cell is from its prediction: in rms residuals, or as sqrt(-2 log p)."""
        rest = np.delete(x, column, axis=1)
        model = self.models[column]
        if self.numeric[column]:
            return np.abs(np.nan_to_num(x[:, column] - model.predict(rest))) / self.rms[column]  # type: ignore[attr-defined]
        probability = model.predict_proba(rest)  # type: ignore[attr-defined]
        place = {value: i for i, value in enumerate(model.classes_)}  # type: ignore[attr-defined]
        p = [row[place[v]] if v in place else 1.0 for row, v in zip(probability, x[:, column], strict=True)]
        return np.sqrt(-2 * np.log(np.maximum(p, 1e-9)))


def build_reference(model: tabdiff.Model, train: pl.DataFrame, test: pl.DataFrame, seed: int, most: int) -> Reference:
    """Models of the columns that depend on others; of at most `most` columns, drawn at random."""
    names = list(model.codec.columns)
    numeric = [str(model.schema[name].kind) in NUMBERS for name in names]
    codes: list[dict[str, int]] = []
    for name, is_number in zip(names, numeric, strict=True):
        texts = model.schema.conform(train)[name].cast(pl.String).drop_nulls()
        counts = [] if is_number else texts.value_counts(sort=True)[name].to_list()
        codes.append({text: i for i, text in enumerate(counts[:200])})
    reference = Reference(model.schema, names, numeric, codes, {}, {})
    x, y = reference.matrix(train), reference.matrix(test)
    for column in np.sort(np.random.default_rng(seed).permutation(len(names))[:most]).tolist():
        rest = np.delete(np.array([not n for n in numeric]), column)
        known, fresh = ~np.isnan(x[:, column]), ~np.isnan(y[:, column])
        a, b = np.delete(x, column, axis=1), np.delete(y, column, axis=1)[fresh]
        target, truth = x[known, column], y[fresh, column]
        if len(np.unique(target)) < 2 or (len(np.unique(target)) > 60 and not numeric[column]):
            continue
        kind = HistGradientBoostingRegressor if numeric[column] else HistGradientBoostingClassifier
        fitted = kind(max_iter=60, categorical_features=rest, random_state=seed).fit(a[known], target)
        predicted = fitted.predict(b)
        if numeric[column]:
            rms = float(np.sqrt(np.mean((truth - predicted) ** 2)))
            depends = len(np.unique(target)) > 10 and rms**2 <= 0.5 * truth.var()
            reference.rms[column] = max(rms, 1e-9)
        else:
            most_frequent = np.mean(truth == np.bincount(target.astype(int)).argmax())
            depends = np.mean(predicted != truth) <= 0.5 * (1 - most_frequent)
        if depends:
            reference.models[column] = fitted
    return reference


# -------------------------------------------------------------------------------------------------- plants


@dataclass
class Plants:
    clean: pl.DataFrame
    broken: pl.DataFrame
    columns: np.ndarray  # (N, cells) which columns were broken


def plant(
    reference: Reference, model: tabdiff.Model, test: pl.DataFrame, count: int, cells: int, seed: int
) -> Plants | None:
    rng = np.random.default_rng(seed + cells)
    x = reference.matrix(test)
    normal = np.flatnonzero(model.score(test).p_value > ALPHA)
    dependent = np.array(sorted(reference.models))
    rows, columns, donors = [], [], []
    for row in rng.permutation(normal):
        if len(rows) == count or len(dependent) < cells:
            break
        chosen, found = rng.permutation(dependent)[:cells], []
        for column in chosen:
            possible = _donors(reference, x, row, column)
            if len(possible):
                found.append(rng.choice(possible))
        if len(found) == cells:
            rows.append(row)
            columns.append(chosen)
            donors.append(found)
    if len(rows) < 10:
        return None
    clean = test[rows]
    broken = clean
    for place, name in enumerate(reference.names):
        take = np.array(rows)
        for i, (own, given) in enumerate(zip(columns, donors, strict=True)):
            if place in own:
                take[i] = given[list(own).index(place)]
        broken = broken.with_columns(test[name].gather(take))
    return Plants(clean, broken, np.array(columns))


def _donors(reference: Reference, x: np.ndarray, row: int, column: int) -> np.ndarray:
    if np.isnan(x[row, column]):
        return np.zeros(0, int)
    if reference.numeric[column]:
        low, high = np.nanquantile(x[:, column], [0.01, 0.99])
        trial = np.repeat(x[row : row + 1], len(x), axis=0)
        trial[:, column] = x[:, column]
        prediction = reference.models[column].predict(np.delete(x[row : row + 1], column, axis=1))[0]  # type: ignore[attr-defined]
        far = np.abs(x[:, column] - prediction) >= 4 * reference.rms[column]
        return np.flatnonzero(far & (x[:, column] >= low) & (x[:, column] <= high))
    model = reference.models[column]
    probability = model.predict_proba(np.delete(x[row : row + 1], column, axis=1))[0]  # type: ignore[attr-defined]
    unlikely = model.classes_[probability <= 0.01]  # type: ignore[attr-defined]
    values, counts = np.unique(x[:, column], return_counts=True)
    frequent = values[counts >= 0.05 * len(x)]
    return np.flatnonzero(np.isin(x[:, column], np.intersect1d(unlikely, frequent)))


# --------------------------------------------------------------------------------------------- attributions


def one_hot(reference: Reference, x: np.ndarray, against: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised numbers and one-hot categories (a distance of 1 apart), and the column of each slot."""
    parts, owner = [], []
    for column, numeric in enumerate(reference.numeric):
        if numeric:
            mean, std = np.nanmean(against[:, column]), np.nanstd(against[:, column])
            parts.append(np.nan_to_num((x[:, column] - mean) / (std or 1.0))[:, None])
        else:
            states = np.arange(len(reference.codes[column]))
            parts.append((x[:, column, None] == states) * np.sqrt(0.5))
        owner += [column] * parts[-1].shape[1]
    return np.concatenate(parts, axis=1), np.array(owner)


def z_scores(reference: Reference, x: np.ndarray, against: np.ndarray) -> np.ndarray:
    """|x - mean| / std of numbers; sqrt(-2 log share) of categories."""
    result = np.zeros_like(x)
    for column, numeric in enumerate(reference.numeric):
        if numeric:
            mean, std = np.nanmean(against[:, column]), np.nanstd(against[:, column])
            result[:, column] = np.abs(np.nan_to_num(x[:, column] - mean)) / (std or 1.0)
        else:
            share = [np.mean(against[:, column] == value) for value in x[:, column]]
            result[:, column] = np.sqrt(-2 * np.log(np.maximum(share, 1e-9)))
    return result


def leave_one_out_knn(reference: Reference, x: np.ndarray, against: np.ndarray) -> np.ndarray:
    """How much the mean distance to the 5 nearest training rows falls when a column is left out."""
    a, owner = one_hot(reference, against, against)
    b, _ = one_hot(reference, x, against)
    whole = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(a).kneighbors(b)[0].mean(axis=1)
    drops = []
    for column in range(x.shape[1]):
        keep = owner != column
        found = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(a[:, keep]).kneighbors(b[:, keep])[0]
        drops.append(whole - found.mean(axis=1))
    return np.stack(drops, axis=1)


def gaussian(reference: Reference, x: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Residual of each column given all others in a Gaussian model, in its standard deviations: |P r|_c / sqrt(P_cc)."""
    a, owner = one_hot(reference, against, against)
    b, _ = one_hot(reference, x, against)
    precision = np.linalg.inv(np.cov(a.T) + 1e-3 * np.eye(a.shape[1]))
    z2 = ((b - a.mean(axis=0)) @ precision) ** 2 / np.diag(precision)
    return np.stack([z2[:, owner == column].max(axis=1) for column in range(x.shape[1])], axis=1)


def hits(attribution: np.ndarray, columns: np.ndarray) -> dict[str, float]:
    """Top-1 and top-3 shares; with two cells: any of them first, both among the first two and three."""
    order = np.argsort(-attribution, axis=1, kind="stable")
    inside = np.array(
        [[np.isin(own, row[:k]).sum() for k in (1, 2, 3)] for own, row in zip(columns, order, strict=True)]
    )
    if columns.shape[1] == 1:
        return {"top1": float(np.mean(inside[:, 0] == 1)), "top3": float(np.mean(inside[:, 2] == 1))}
    first, both = np.mean(inside[:, 0] >= 1), inside == 2
    return {"any_first": float(first), "both_top2": float(both[:, 1].mean()), "both_top3": float(both[:, 2].mean())}


# ----------------------------------------------------------------------------------------------------- measuring


def measure(path: Path, count: int, most: int, folder: Path | None, seed: int) -> list[dict[str, object]]:
    frame = load(path, 8000, seed)
    half = frame.height // 2
    train, test = frame[:half], frame[half:]
    model = fit_once(path, train, folder, seed)
    reference = build_reference(model, train, test, seed, most)
    against = reference.matrix(train)
    lines = []
    for cells in (1, 2):
        plants = plant(reference, model, test, count, cells, seed)
        if plants is None:
            print(f"{path.stem}: fewer than 10 plants of {cells} cells", flush=True)
            continue
        scores = model.score(plants.broken)
        started = time.process_time()
        explained = model.explain(plants.broken, range(plants.broken.height), alpha=ALPHA)
        cpu = time.process_time() - started
        x = reference.matrix(plants.broken)
        boosted = np.zeros_like(x)
        for column in reference.models:
            boosted[:, column] = reference.surprise(x, column)
        attributions = {
            "explain": np.array([list(one.contributions.values()) for one in explained]),
            "score": scores.contributions,
            "z-score": z_scores(reference, x, against),
            "leave-one-out k-NN": leave_one_out_knn(reference, x, against),
            "Gaussian conditional": gaussian(reference, x, against),
            "boosted (the judge)": boosted,
        }
        flagged = scores.p_value <= ALPHA
        repaired = repairs(reference, plants, explained, flagged)
        for method, attribution in attributions.items():
            line: dict[str, object] = {"table": path.stem, "cells": cells, "method": method, "plants": len(flagged)}
            line |= {"columns": len(reference.names), "dependent": len(reference.models), "flagged": int(flagged.sum())}
            line |= {name: float("nan") for name in HITS}
            if flagged.any():
                line |= hits(attribution[flagged], plants.columns[flagged])
            line |= {f"{name}_all": value for name, value in hits(attribution, plants.columns).items()}
            line["cpu_s_per_row"] = cpu / len(flagged)
            lines.append(line | (repaired if method == "explain" else {}))
    return lines


def repairs(
    reference: Reference, plants: Plants, explained: list[Explanation], flagged: np.ndarray
) -> dict[str, float]:
    """Of the flagged plants: how many were repaired, with how many cells, and how close to the truth.

    `error` is the distance of the repaired number from the one before planting, over the distance of the planted one (median);
    `same` the share of repaired categories that are the one before planting. Both of planted columns that were repaired.
    """
    chosen = [(one, place) for place, one in enumerate(explained) if flagged[place]]
    if not chosen:
        return {}
    planted = [{reference.names[c] for c in plants.columns[place]} for _, place in chosen]
    truth, broken = reference.schema.conform(plants.clean), reference.schema.conform(plants.broken)
    error, same = [], []
    for (one, place), names in zip(chosen, planted, strict=True):
        for name in names & set(one.repair):
            if reference.numeric[reference.names.index(name)]:
                new = reference.schema.conform(
                    plants.broken[place : place + 1].with_columns(
                        pl.Series(name, [one.repair[name]], dtype=plants.broken.schema[name])
                    )
                )[name][0]
                error.append(
                    abs(_number(new) - _number(truth[name][place]))
                    / abs(_number(broken[name][place]) - _number(truth[name][place]))
                )
            else:
                same.append(one.repair[name] == plants.clean[name][place])
    sizes = [len(one.repair) for one, _ in chosen]
    return {
        "repaired": float(np.mean([one.normal for one, _ in chosen])),
        "cells_changed": float(np.mean(sizes)),
        "within_planted": float(
            np.mean([set(one.repair) <= names for (one, _), names in zip(chosen, planted, strict=True)])
        ),
        "exactly_planted": float(
            np.mean([set(one.repair) == names for (one, _), names in zip(chosen, planted, strict=True)])
        ),
        "error": float(np.median(error)) if error else float("nan"),
        "same": float(np.mean(same)) if same else float("nan"),
    }


def _number(value: object) -> float:
    return value.timestamp() if hasattr(value, "timestamp") else float(value)  # type: ignore[arg-type, no-any-return]


def coverage(model: tabdiff.Model, test: pl.DataFrame, count: int, level: float, seed: int) -> dict[str, float]:
    """Of held-out rows: how often the interval of a number holds it, and the probability of the category that is there."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(test.height)[:count]
    canonical = model.schema.conform(test[rows])
    believer = Believer(model.codec, model.runtime, model._schedule())
    encoded = model.codec.encode(canonical)
    inside, expected_log, width = [], [], []
    for column, name in enumerate(model.codec.columns):
        beliefs = believer(encoded, np.full(count, column))
        for value, belief in zip(canonical[name].to_list(), beliefs, strict=True):
            if value is None:
                continue
            if belief.values.dtype != object:
                low, high = belief.quantile((1 - level) / 2), belief.quantile((1 + level) / 2)
                number = value.timestamp() * 1e6 if hasattr(value, "timestamp") else value
                inside.append(low - 1e-9 * abs(low) <= number <= high + 1e-9 * abs(high))
            else:
                text = str(value).lower() if isinstance(value, bool) else value
                expected_log.append(belief.likely(1)[0][0] == text)
                width.append(belief.likely(1)[0][1])
    return {
        "cells": float(len(inside)),
        "covered": float(np.mean(inside)) if inside else float("nan"),
        "most probable is there": float(np.mean(expected_log)) if expected_log else float("nan"),
        "its probability": float(np.mean(width)) if width else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="files or folders")
    parser.add_argument("--plants", type=int, default=40, help="rows with one broken cell, and as many with two")
    parser.add_argument("--columns", type=int, default=12, help="columns that may be broken, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, help="keep fitted models here, and use those that are there")
    parser.add_argument("--coverage", type=int, default=0, help="check intervals on all cells of so many rows instead")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/explanation.csv"))
    arguments = parser.parse_args()
    paths = [
        p
        for d in arguments.data
        for p in (sorted(d.glob("*.npz")) + sorted(d.glob("*.parquet")) if d.is_dir() else [d])
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if arguments.coverage:
                frame = load(path, 8000, arguments.seed)
                model = fit_once(path, frame[: frame.height // 2], arguments.models, arguments.seed)
                for level in (0.5, 0.8, 0.9):
                    found = coverage(model, frame[frame.height // 2 :], arguments.coverage, level, arguments.seed)
                    print(path.stem, level, {name: round(value, 3) for name, value in found.items()}, flush=True)
                continue
            lines = measure(path, arguments.plants, arguments.columns, arguments.models, arguments.seed)
        new = pl.DataFrame([{name: line.get(name) for name in FIELDS} for line in lines], schema=FIELDS)
        if arguments.out.exists():
            new = pl.concat([pl.read_csv(arguments.out, schema=FIELDS), new])
        new.write_csv(arguments.out)
        print(path.stem, flush=True)
    if not arguments.coverage:
        report(pl.read_csv(arguments.out, schema=FIELDS))


def report(results: pl.DataFrame) -> None:
    """Hits of every method, pooled over the flagged plants of all tables; then repairs table by table."""
    pl.Config.set_tbl_rows(60).set_tbl_cols(20).set_tbl_width_chars(180).set_float_precision(3)
    pl.Config.set_tbl_hide_column_data_types(True).set_tbl_hide_dataframe_shape(True)
    for cells in (1, 2):
        part = results.filter(cells=cells)
        names = [name for name in HITS if part[name].is_not_null().any()]
        weighed = [
            ((pl.col(n).fill_nan(0.0) * pl.col("flagged")).sum() / pl.col("flagged").sum()).alias(n) for n in names
        ]
        every = [
            ((pl.col(f"{n}_all") * pl.col("plants")).sum() / pl.col("plants").sum()).alias(f"{n}_all") for n in names
        ]
        sums = [pl.len().alias("tables"), pl.col("plants").sum(), pl.col("flagged").sum()]
        print(f"\n{cells} broken: pooled\n{part.group_by('method', maintain_order=True).agg(*sums, *weighed, *every)}")
        shown = ["table", "columns", "dependent", "plants", "flagged", *names, *REPAIRS, "cpu_s_per_row"]
        print(part.filter(method="explain").select(shown))


HITS = ("top1", "top3", "any_first", "both_top2", "both_top3")
REPAIRS = ("repaired", "cells_changed", "within_planted", "exactly_planted", "error", "same")
FIELDS = {"table": pl.String, "cells": pl.Int64, "method": pl.String, "columns": pl.Int64, "dependent": pl.Int64}
FIELDS |= {"plants": pl.Int64, "flagged": pl.Int64}
FIELDS |= dict.fromkeys((*HITS, *(f"{name}_all" for name in HITS), *REPAIRS, "cpu_s_per_row"), pl.Float64)


if __name__ == "__main__":
    main()
