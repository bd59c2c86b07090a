"""Point anomalies of sensor series beside windowed peers; see README.md here for data, protocols and results.

    python benchmarks/series.py DATA --families nab msl skab tep --protocol prefix --out series.csv

DATA is a folder with index.csv (name, family, path, train) and Parquet files whose column `label` marks anomalies. VUS-PR and
VUS-ROC (Paparrizos et al. 2022) are those of the package tsb-ad (vus.py), in an environment where it is installed beside this one.
Protocols: `prefix` trains on the first `train` rows and scores the others; `tsb` scores all rows, as TSB-AD does, whose own
unsupervised detectors are fitted on what they score.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from vus import vus

from tabdiff.errors import SchemaError

NOT_SENSORS = {"timestamp", "label", "unit", "cycle"}
Scorer = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def windows_of(x: np.ndarray, length: int) -> np.ndarray:
    view = np.lib.stride_tricks.sliding_window_view(x, length, axis=0)
    return view.transpose(0, 2, 1).reshape(len(x) - length + 1, -1)


def scaled(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = train.mean(0), train.std(0)
    std = np.where(std < 1e-6 * np.maximum(1, np.abs(mean)), 1.0, std)
    return np.clip((train - mean) / std, -20, 20), np.clip((test - mean) / std, -20, 20)


def centred(score: np.ndarray, length: int, places: int) -> np.ndarray:
    left = (length - 1) // 2
    return np.concatenate([np.full(left, score[0]), score, np.full(places - left - len(score), score[-1])])


def capped(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    return rows if len(rows) <= count else rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])]


def windowed(core: Callable[[np.ndarray, np.ndarray, int], np.ndarray], length: int) -> Scorer:
    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        size = max(1, min(length, len(train) // 4, max(2, 2000 // train.shape[1])))
        a, b = scaled(train, test)
        return centred(core(capped(windows_of(a, size), 6000, seed), windows_of(b, size), seed), size, len(b))

    return score


def pca(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    model = PCA(n_components=0.9, svd_solver="full").fit(a)
    return ((b - model.inverse_transform(model.transform(b))) ** 2).mean(1)


def knn(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=min(5, len(a))).fit(a).kneighbors(b)[0].mean(1)


def kmeans(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(n_clusters=min(20, len(a)), n_init=2, random_state=seed).fit(a).transform(b).min(1)


def forest(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(n_estimators=200, random_state=seed).fit(a).score_samples(b)


def mahalanobis(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.covariance import LedoitWolf

    return LedoitWolf().fit(a).mahalanobis(b)


def gaussian(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    mean = a.mean(0)
    variance, axes = np.linalg.eigh(np.atleast_2d(np.cov((a - mean).T)))
    along = (b - mean) @ axes
    keep = [s**2 / (np.maximum(variance, 0) + s**2) for s in (0.1, 0.2, 0.4, 0.8, 1.5)]
    return np.mean([np.log(((along * k) ** 2).sum(1) + 1e-9) for k in keep], axis=0)


def kernel(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    rows = capped(a, 2000, seed)
    some = capped(rows, 400, seed)
    squared = np.maximum(((some[:, None] - rows[None]) ** 2).sum(-1), 0) if rows.shape[1] < 200 else None
    if squared is None:
        squared = np.maximum((some**2).sum(1)[:, None] + (rows**2).sum(1) - 2 * some @ rows.T, 0)
    near = np.sqrt(np.sort(squared, axis=1)[:, 1:6]).mean() + 1e-3
    found = []
    for part in np.array_split(b, max(1, len(b) // 500)):
        logits = part @ rows.T - 0.5 * (rows**2).sum(1)
        logits -= logits.max(1, keepdims=True)
        logs = 0.0
        for factor in (0.2, 0.3, 0.5):
            weight = np.exp(logits / (factor * near) ** 2)
            weight /= weight.sum(1, keepdims=True)
            logs = logs + np.log(((part - weight @ rows) ** 2).sum(1) + 1e-9)
        found.append(logs / 3)
    return np.concatenate(found)


def random(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(len(test))


def z_mean(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return (scaled(train, test)[1] ** 2).mean(1)


def tabdiff(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """The network takes no part in scores, so it is not trained here."""
    from tabdiff import fit_series
    from tabdiff.config import FitConfig

    names = [f"s{i}" for i in range(train.shape[1])]

    def frame(x: np.ndarray) -> pl.DataFrame:
        return pl.DataFrame(x, schema=names).with_columns(pl.int_range(len(x)).alias("step"))

    overrides = {name: {"role": "feature"} for name in names}
    config = FitConfig.model_validate({"series": {"time": "step"}, "train": {"steps": 1, "seed": seed}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = fit_series(frame(train), config, overrides=overrides).score(frame(test)).places["score"]
    return score.fill_null(score.min()).to_numpy()


def timed(calendar: str, stamps: pl.Series) -> Scorer:
    """With the times of the recording instead of counted steps: gaps are gaps, and days are known."""
    from tabdiff import fit_series
    from tabdiff.config import FitConfig

    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        names = [f"s{i}" for i in range(train.shape[1])]
        first = len(stamps) - len(test) if len(test) < len(stamps) else 0
        overrides = {name: {"role": "feature"} for name in names}
        series = {"time": "at", "calendar": calendar, "duplicates": "mean"}
        config = FitConfig.model_validate({"series": series, "train": {"steps": 1, "seed": seed}})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = pl.DataFrame(train, schema=names).with_columns(stamps[: len(train)].alias("at"))
            model = fit_series(history, config, overrides=overrides)
            frame = pl.DataFrame(test, schema=names).with_columns(stamps[first:].alias("at"))
            places = model.score(frame).places
            (recording,) = model.plan.recordings(frame, model.schema)
        print("#", model.describe(), flush=True)
        found = np.full(len(recording.recorded), np.nan)
        found[recording.recorded] = places["score"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        rows = np.full(len(test), np.nan)
        rows[recording.rows] = found[recording.places]
        known = np.flatnonzero(~np.isnan(rows))
        return rows[known[np.minimum(np.searchsorted(known, np.arange(len(rows))), len(known) - 1)]]

    return score


def on_all(method: Scorer) -> Scorer:
    """Fitted on all that is scored, anomalies with it, as TSB-AD's own unsupervised detectors are."""

    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        return method(test.copy(), test, seed)

    return score


TIMED = {"tabdiff, times": "auto", "tabdiff, times, no calendar": "none"}


def tsb(name: str, many: bool) -> Scorer:
    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        from TSB_AD import model_wrapper
        from TSB_AD.HP_list import Optimal_Multi_algo_HP_dict, Optimal_Uni_algo_HP_dict

        options = dict((Optimal_Multi_algo_HP_dict if many else Optimal_Uni_algo_HP_dict)[name])
        if name in ("IForest", "PCA"):
            options["slidingWindow"] = 1
        np.random.seed(seed)  # noqa: NPY002 - the detectors draw from it
        with contextlib.redirect_stdout(io.StringIO()):
            # Not through its run_Unsupervise_AD, which gives back a text about another thing when a package is missing.
            return np.asarray(getattr(model_wrapper, f"run_{name}")(test, **options))

    return score


METHODS: dict[str, Scorer] = {
    "tabdiff": tabdiff,
    "random": random,
    "z-mean": z_mean,
    "PCA-w16": windowed(pca, 16),
    "PCA-w64": windowed(pca, 64),
    "PCA-w100": windowed(pca, 100),
    "KNN-w16": windowed(knn, 16),
    "KMeans-w16": windowed(kmeans, 16),
    "IForest": windowed(forest, 1),
    "Mahalanobis": windowed(mahalanobis, 1),
    "Gaussian-w16": windowed(gaussian, 16),
    "kernel-w16": windowed(kernel, 16),
}
ON_ALL = ", fitted on all"  # after a method's name
PUBLISHED = {"POLY": False, "Sub_PCA": False, "KMeansAD_U": False, "KMeansAD": True, "PCA": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--families", nargs="+", default=["nab", "msl", "smap", "skab", "tep", "telemanom"])
    parser.add_argument("--protocol", choices=["prefix", "tsb"], default="prefix")
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--names", nargs="+", default=None, help="of files; all of the families if not given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("series.csv"))
    options = parser.parse_args()
    if not hasattr(np, "Inf"):
        np.inf = np.inf  # tsb-ad 1.5 is older than numpy 2
    from TSB_AD.utils.slidingWindows import find_length_rank

    index = pl.read_csv(options.data / "index.csv", infer_schema_length=None)
    done = set()
    if options.out.exists():
        done = {tuple(row[:5]) for row in csv.reader(options.out.open())}
    file = options.out.open("a", newline="")
    writer = csv.writer(file)
    if not done:
        writer.writerow(
            ["method", "protocol", "family", "name", "seed", "vus_pr", "vus_roc", "seconds", "places", "sensors"]
        )
    chosen = options.methods or list(METHODS)
    for row in index.filter(pl.col("family").is_in(options.families)).iter_rows(named=True):
        if options.names and row["name"] not in options.names:
            continue
        table = pl.read_parquet(options.data / row["path"])
        x = table.select([name for name in table.columns if name not in NOT_SENSORS]).to_numpy().astype(np.float64)
        label, train = table["label"].to_numpy().astype(int), int(row["train"])
        test, truth = (x, label) if options.protocol == "tsb" else (x[train:], label[train:])
        if truth.sum() in (0, len(truth)):
            continue
        window = int(find_length_rank(np.ascontiguousarray(x[:, 0]).reshape(-1, 1), rank=1))
        for seed in options.seeds:
            for name in chosen:
                if (name, options.protocol, row["family"], row["name"], str(seed)) in done:
                    continue
                if name in TIMED and "timestamp" not in table.columns:
                    continue
                if name in TIMED:
                    method = timed(TIMED[name], table["timestamp"])
                else:
                    plain = name.removesuffix(ON_ALL)
                    method = METHODS[plain] if plain in METHODS else tsb(name, PUBLISHED[name])
                    method = on_all(method) if plain != name else method
                started = time.process_time()
                try:
                    score = np.asarray(method(x[:train].copy(), test.copy(), seed), float)
                except SchemaError as error:  # times of which most places are gaps
                    print(f"# {row['name']}, {name}: {error}", flush=True)
                    continue
                seconds = time.process_time() - started
                pr, roc = vus(np.nan_to_num(score, nan=np.nanmin(score)), truth, window)
                writer.writerow(
                    [
                        name,
                        options.protocol,
                        row["family"],
                        row["name"],
                        seed,
                        f"{pr:.5f}",
                        f"{roc:.5f}",
                        f"{seconds:.3f}",
                        len(test),
                        x.shape[1],
                    ]
                )
                file.flush()
    file.close()
    found = pl.read_csv(options.out).filter(pl.col("protocol") == options.protocol)
    pl.Config.set_tbl_rows(500)
    print(
        found.group_by("family", "method")
        .agg(pl.col("vus_pr", "vus_roc").mean().round(3), pl.col("seconds").mean().round(2), pl.len())
        .sort("family", "vus_pr", descending=[False, True])
    )


if __name__ == "__main__":
    main()
