"""Fill held-out cells of a table and compare with scikit-learn: error, CRPS and coverage.

    OMP_NUM_THREADS=1 python benchmarks/imputation.py DATA [--seeds 0 1 2] [--draws 20] [--steps N]

DATA is a table (.parquet or .csv); its numbers are judged, its other columns help. Two masks, on rows that were not trained on: *random*, each
number missing with probability 0.2, and *structured*, half of the numbers missing together in the 40 % of the rows that are highest in the first
number. Errors are in standard deviations of the column. A method that gives one value instead of draws has CRPS = mean absolute error and no coverage.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - scikit-learn asks for it
from sklearn.impute import IterativeImputer, KNNImputer

import tabdiff
from tabdiff.columns import NUMBERS
from tabdiff.config import parse_fit_config
from tabdiff.sources import load

Draws = np.ndarray  # (draws, rows, columns)
INTERVAL = 0.9


def numeric_columns(frame: pl.DataFrame) -> list[str]:
    """Modelled numbers that are stored as numbers."""
    columns = tabdiff.Schema.infer(frame).modelled
    return [c.name for c in columns if c.kind in NUMBERS and frame[c.name].dtype.is_numeric()]


def masks(values: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    columns = values.shape[1]
    random = rng.random(values.shape) < 0.2
    structured = np.zeros_like(random)
    high = np.nan_to_num(values[:, 0], nan=-np.inf) >= np.nanquantile(values[:, 0], 0.6)
    structured[np.ix_(high, np.sort(rng.permutation(np.arange(1, columns))[: max(1, columns // 2)]))] = True
    return {name: mask & ~np.isnan(values) for name, mask in (("random", random), ("structured", structured))}


def with_gaps(frame: pl.DataFrame, names: list[str], mask: np.ndarray) -> pl.DataFrame:
    gaps = [pl.when(pl.Series(mask[:, i])).then(None).otherwise(pl.col(n)).alias(n) for i, n in enumerate(names)]
    return frame.with_columns(gaps)


def as_matrix(train: pl.DataFrame, frame: pl.DataFrame, names: list[str]) -> np.ndarray:
    """Standardised numbers, and categories of at most 20 levels one-hot, for scikit-learn."""
    parts = [(frame[n].cast(pl.Float64).to_numpy() - (train[n].mean() or 0.0)) / (train[n].std() or 1.0) for n in names]
    for name in frame.columns:
        levels = train[name].cast(pl.String).drop_nulls().unique().sort()
        if name not in names and len(levels) <= 20:
            parts += [
                (frame[name].cast(pl.String) == level).fill_null(False).cast(pl.Float64).to_numpy() for level in levels
            ]
    return np.stack([np.array(part, dtype=float) for part in parts], axis=1)


def scores(draws: Draws, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Mean absolute error of the median, CRPS of the draws (Gneiting and Raftery 2007, eq. 21), coverage of their 90 % interval."""
    drawn, wanted = draws[:, mask], truth[mask]
    ordered = np.sort(drawn, axis=0)
    count = len(ordered)
    spread = ((2 * np.arange(1, count + 1) - count - 1)[:, None] * ordered).sum(axis=0) / count**2
    crps = np.abs(drawn - wanted).mean(axis=0) - spread
    low, high = np.quantile(drawn, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], axis=0)
    inside = (wanted >= low) & (wanted <= high)
    return {
        "mae": float(np.abs(np.median(drawn, axis=0) - wanted).mean()),
        "crps": float(crps.mean()),
        "coverage": float(inside.mean()) if count > 1 else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--rows", type=int, default=500, help="held-out rows that are masked")
    parser.add_argument("--steps", type=int, default=None, help="gradient steps; the default of a fit if not given")
    options = parser.parse_args()
    frame = load(str(options.data))
    names = numeric_columns(frame)
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in options.seeds:
        rng = np.random.default_rng(seed)
        order = rng.permutation(frame.height)
        test, train = (
            frame[order[: min(options.rows, frame.height // 3)]],
            frame[order[min(options.rows, frame.height // 3) :]],
        )
        values = test.select(names).cast(pl.Float64).to_numpy()
        mean, std = (
            np.array([getattr(train[n], what)() or 0.0 for n in names], dtype=float) for what in ("mean", "std")
        )
        std = np.where(std > 0, std, 1.0)
        truth = (values - mean) / std
        settings = [f"train.seed={seed}", *([f"train.steps={options.steps}"] if options.steps else [])]
        model = tabdiff.fit(train, parse_fit_config(None, settings))
        matrix = as_matrix(train, train, names)

        def ours(holed: pl.DataFrame, mask: np.ndarray, model=model, mean=mean, std=std) -> Draws:
            filled = [
                model.impute(holed, draws=1, seed=i).select(names).cast(pl.Float64).to_numpy()
                for i in range(options.draws)
            ]
            return (np.stack(filled) - mean) / std

        def iterative(holed: pl.DataFrame, mask: np.ndarray, matrix=matrix, train=train, seed=seed) -> Draws:
            asked, found = as_matrix(train, holed, names), []
            for i in range(options.draws):
                peer = IterativeImputer(sample_posterior=True, random_state=1000 * seed + i, max_iter=10)
                # It fills what it was fitted on: training rows and holed ones together, the usual protocol.
                found.append(peer.fit(np.vstack([matrix, asked])).transform(asked)[:, : len(names)])
            return np.stack(found)

        def knn(holed: pl.DataFrame, mask: np.ndarray, matrix=matrix, train=train) -> Draws:
            return (
                KNNImputer(n_neighbors=10).fit(matrix).transform(as_matrix(train, holed, names))[None, :, : len(names)]
            )

        def median(holed: pl.DataFrame, mask: np.ndarray, matrix=matrix) -> Draws:
            return np.broadcast_to(np.nanmedian(matrix[:, : len(names)], axis=0), (1, *mask.shape))

        methods: dict[str, Callable[..., Draws]] = {
            "tabdiff": ours,
            "IterativeImputer": iterative,
            "KNNImputer": knn,
            "median": median,
        }
        for kind, mask in masks(values, rng).items():
            holed = with_gaps(test, names, mask)
            for name, method in methods.items():
                started = time.process_time()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    found = scores(method(holed, mask), truth, mask)
                results.setdefault((kind, name), []).append({**found, "seconds": time.process_time() - started})
    print(
        f"{options.data.stem}: {frame.height} rows, {len(names)} numbers, seeds {options.seeds}, {options.draws} draws\n"
    )
    print("| mask | method | mean absolute error | CRPS | coverage of 90 % | CPU-s |\n|---|---|---|---|---|---|")
    for (kind, name), parts in results.items():
        cells = []
        for key in ("mae", "crps", "coverage", "seconds"):
            found = np.array([part[key] for part in parts])
            cells.append(
                ""
                if np.isnan(found).all()
                else f"{found.mean():.3f} ± {found.std():.3f}"
                if key != "seconds"
                else f"{found.mean():.1f}"
            )
        print(f"| {kind} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
