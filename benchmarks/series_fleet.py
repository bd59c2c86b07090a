"""Wear of many machines of one kind, beside windowed peers; see README.md here.

    python benchmarks/series_fleet.py FD001.parquet --out fleet.csv

The recording has columns `unit`, `cycle` and `label` (NASA's turbofans, C-MAPSS FD001: 100 engines run to failure, the last 30 cycles labelled). The first `--healthy` cycles of every engine are the history of one model, the others are
scored; no label is used. Windows lie within engines.
"""

from __future__ import annotations

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from series import (
    NOT_SENSORS,
    Scorer,
    capped,
    centred,
    forest,
    gaussian,
    kmeans,
    knn,
    mahalanobis,
    pca,
    windows_of,
)
from vus import vus

from tabdiff import fit_series
from tabdiff.config import FitConfig


def peers(core: Scorer, length: int, history: list[np.ndarray], runs: list[np.ndarray], seed: int) -> np.ndarray:
    """Scores of the places of all runs, one after the other."""
    rows = np.concatenate(history)
    mean, std = rows.mean(0), rows.std(0)
    std = np.where(std < 1e-6 * np.maximum(1, np.abs(mean)), 1.0, std)

    def windows(x: np.ndarray) -> np.ndarray:
        return windows_of(np.clip((x - mean) / std, -20, 20), length)

    train = capped(np.concatenate([windows(x) for x in history]), 6000, seed)
    cut = [windows(x) for x in runs]
    scores = np.split(core(train, np.concatenate(cut), seed), np.cumsum([len(each) for each in cut])[:-1])
    return np.concatenate([centred(score, length, len(x)) for score, x in zip(scores, runs, strict=True)])


def ours(healthy: pl.DataFrame, worn: pl.DataFrame, normalise: str, seed: int) -> np.ndarray:
    series = {"time": "cycle", "entity": "unit", "normalise": normalise}
    config = FitConfig.model_validate({"series": series, "train": {"steps": 1, "seed": seed}})
    overrides = {name: {"role": "feature"} for name in healthy.columns if name not in NOT_SENSORS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fit_series(healthy, config, overrides=overrides)
        places = model.score(worn).places
    print("#", model.describe(), flush=True)
    keys = worn.select(pl.col("unit").cast(pl.String), pl.col("cycle").cast(pl.Int64))
    found = places.select(pl.col("unit").cast(pl.String), pl.col("cycle").cast(pl.Int64), "score")
    score = keys.join(found, on=["unit", "cycle"], how="left", maintain_order="left")["score"]
    return score.fill_null(score.min()).to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--healthy", type=int, default=60, help="cycles of each engine that are its history")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fleet.csv"))
    options = parser.parse_args()
    if not hasattr(np, "Inf"):
        np.inf = np.inf  # tsb-ad 1.5 is older than numpy 2
    seed = options.seed
    table = pl.read_parquet(options.recording).sort("unit", "cycle")
    first = pl.col("cycle") <= options.healthy
    healthy, worn = table.filter(first), table.filter(~first)
    sensors = [name for name in table.columns if name not in NOT_SENSORS]
    truth = worn["label"].to_numpy().astype(int)
    history, runs = (
        [each.select(sensors).to_numpy().astype(np.float64) for each in part.partition_by("unit")]
        for part in (healthy, worn)
    )
    methods = {
        "tabdiff": partial(ours, healthy.drop("label"), worn.drop("label"), "together", seed),
        "tabdiff, each in its own units": partial(ours, healthy.drop("label"), worn.drop("label"), "entity", seed),
        "random": lambda: np.random.default_rng(seed).random(len(truth)),
    }
    cores = {"PCA": pca, "Gaussian": gaussian, "KNN": knn, "KMeans": kmeans, "Mahalanobis": mahalanobis}
    for length in (1, 16, 30):
        for name, core in {**cores, "IForest": forest}.items():
            methods[f"{name}-w{length}"] = partial(peers, core, length, history, runs, seed)
    rows = []
    for name, method in methods.items():
        started = time.process_time()
        score = method()
        seconds = time.process_time() - started
        rows.append([name, *(round(value, 4) for value in (*vus(score, truth, 30), seconds))])
        found = pl.DataFrame(rows, ["method", "vus_pr", "vus_roc", "seconds"], orient="row")
        found.write_csv(options.out)
    pl.Config.set_tbl_rows(50)
    print(found.sort("vus_pr", descending=True))


if __name__ == "__main__":
    main()
