"""Anomaly detection on a folder of labelled tables, beside scikit-learn's detectors.

    python benchmarks/detection.py DATA [--protocols one-class contaminated] [--seeds 0 1 2] [--out results.csv]

DATA holds NAME.npz files with X (rows, columns) and y (1 = anomaly), as ADBench distributes them.

one-class: half of the normal rows, drawn by the seed, train; the other half and all anomalies are scored.
contaminated: all rows train, unlabelled, and the same rows are scored; ours then runs with score.contaminated=true.

Rows already in --out are not measured again, so a run that was stopped goes on. Peers get standardised columns, ours the
table as it is. Scores are higher = more abnormal; `random` is the floor.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import wilcoxon
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

import tabdiff

FIELDS = [
    "table",
    "method",
    "protocol",
    "seed",
    "rows",
    "columns",
    "roc_auc",
    "average_precision",
    "fit_cpu_s",
    "score_cpu_s",
]
Fitted = Callable[[np.ndarray], np.ndarray]


def neighbours(how: str) -> Callable[[np.ndarray, int], Fitted]:
    def fit(x: np.ndarray, seed: int) -> Fitted:
        index = NearestNeighbors(n_neighbors=min(5, len(x))).fit(x)
        reduce = np.mean if how == "mean" else np.max
        return lambda rows: reduce(index.kneighbors(rows)[0], axis=1)

    return fit


def scikit(make: Callable[[int, int], object]) -> Callable[[np.ndarray, int], Fitted]:
    def fit(x: np.ndarray, seed: int) -> Fitted:
        detector = make(len(x), seed).fit(x)  # type: ignore[attr-defined]
        return lambda rows: -detector.score_samples(rows)

    return fit


PEERS = {
    "KNN-mean": neighbours("mean"),
    "KNN": neighbours("max"),
    "GMM8": scikit(lambda n, s: GaussianMixture(min(8, n // 10 + 1), reg_covar=1e-3, random_state=s)),
    "GMM": scikit(lambda n, s: GaussianMixture(1, reg_covar=1e-3, random_state=s)),
    "IForest": scikit(lambda n, s: IsolationForest(random_state=s)),
    "LOF": scikit(lambda n, s: LocalOutlierFactor(novelty=True)),
    "OCSVM": scikit(lambda n, s: OneClassSVM()),
    "random": lambda x, seed: lambda rows: np.random.default_rng(seed).random(len(rows)),
}


def frame(x: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(x.astype(np.float64), schema=[f"column {i}" for i in range(x.shape[1])])


def fit_ours(x: np.ndarray, seed: int, protocol: str, settings: dict[str, object]) -> Fitted:
    options: dict[str, dict[str, object]] = {
        "train": {"seed": seed},
        "score": {"contaminated": protocol == "contaminated"},
    }
    if protocol == "contaminated":
        options["train"]["steps"] = 50  # the subsets score without the network, which would only serve sampling
    for key, value in settings.items():
        section, name = key.split(".")
        options.setdefault(section, {})[name] = value
    model = tabdiff.fit(frame(x), tabdiff.FitConfig.model_validate(options))
    return lambda rows: model.score(frame(rows)).score


def split(x: np.ndarray, y: np.ndarray, protocol: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if protocol == "contaminated":
        return x, x, y
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(y == 0))
    half = round(0.5 * len(normal))
    test = np.concatenate([normal[half:], np.flatnonzero(y == 1)])
    return x[normal[:half]], x[test], y[test]


def measure(path: Path, method: str, protocol: str, seed: int, settings: dict[str, object]) -> dict[str, object]:
    table = np.load(path)
    train, test, labels = split(table["X"].astype(np.float64), table["y"].astype(int), protocol, seed)
    started = time.process_time()
    if method.startswith("tabdiff"):
        score = fit_ours(train, seed, protocol, settings)
    else:
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
        score = PEERS[method](train, seed)
    fitted = time.process_time()
    scores = score(test)
    done = time.process_time()
    return {
        "table": path.stem,
        "method": method,
        "protocol": protocol,
        "seed": seed,
        "rows": len(train),
        "columns": train.shape[1],
        "roc_auc": round(float(roc_auc_score(labels, scores)), 5),
        "average_precision": round(float(average_precision_score(labels, scores)), 5),
        "fit_cpu_s": round(fitted - started, 2),
        "score_cpu_s": round(done - fitted, 3),
    }


def report(results: pl.DataFrame, ours: str) -> None:
    """Means over tables and seeds, and ours against each peer table by table (mean over seeds, Wilcoxon signed-rank)."""
    pl.Config.set_tbl_rows(60).set_tbl_hide_column_data_types(True).set_tbl_hide_dataframe_shape(
        True
    ).set_float_precision(4)
    for protocol in results["protocol"].unique(maintain_order=True):
        part = results.filter(protocol=protocol)
        means = part.group_by("method").agg(
            pl.col("table").n_unique().alias("tables"),
            pl.col("seed").n_unique().alias("seeds"),
            pl.col("roc_auc", "average_precision", "fit_cpu_s", "score_cpu_s").mean(),
        )
        print(f"\n{protocol}\n{means.sort('average_precision', descending=True)}")
        wide = part.group_by("table", "method").agg(pl.col("roc_auc", "average_precision").mean())
        mine = wide.filter(method=ours).drop("method")
        for method in means.sort("average_precision", descending=True)["method"]:
            both = mine.join(wide.filter(method=method), on="table", suffix="_peer")
            if method == ours or both.height < 6:
                continue
            words = []
            for metric in ("roc_auc", "average_precision"):
                gap = (both[metric] - both[f"{metric}_peer"]).to_numpy()
                words.append(
                    f"{metric} {gap.mean():+.4f}, wins {(gap > 0).sum()}/{len(gap)}, p={wilcoxon(gap).pvalue:.3f}"
                )
            print(f"{ours} against {method}: {'; '.join(words)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--protocols", nargs="+", default=["one-class", "contaminated"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", default=[*PEERS, "tabdiff"])
    parser.add_argument("--tables", nargs="+", help="names; all if not given")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SECTION.KEY=VALUE",
        help="options of ours",
    )
    parser.add_argument("--name", default="tabdiff", help="name of ours in the results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/detection.csv"))
    arguments = parser.parse_args()
    settings = {key: _value(text) for key, _, text in (setting.partition("=") for setting in arguments.settings)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    known = pl.read_csv(arguments.out) if arguments.out.exists() else pl.DataFrame(schema=FIELDS)
    done = set(known.select("table", "method", "protocol", "seed").rows()) if known.height else set()
    paths = sorted(arguments.data.glob("*.npz"), key=lambda path: path.stat().st_size)
    with arguments.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not known.height:
            writer.writeheader()
        for protocol in arguments.protocols:
            for seed in arguments.seeds:
                for method in [arguments.name if name == "tabdiff" else name for name in arguments.methods]:
                    for path in paths:
                        if (path.stem, method, protocol, seed) in done or (
                            arguments.tables and path.stem not in arguments.tables
                        ):
                            continue
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            writer.writerow(measure(path, method, protocol, seed, settings))
                        file.flush()
                        print(f"{protocol} seed {seed} {method} {path.stem}", flush=True)
    report(pl.read_csv(arguments.out), arguments.name)


def _value(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


if __name__ == "__main__":
    main()
