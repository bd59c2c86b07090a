"""Anomaly detection on a folder of labelled tables, beside other people's detectors (peers.py).

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
from pathlib import Path

import numpy as np
import polars as pl
from peers import PEERS, Fitted
from scipy.stats import wilcoxon
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

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


METRICS = ("roc_auc", "average_precision")


def report(results: pl.DataFrame, ours: str, worst: int = 6) -> None:
    """Per protocol: means over tables and seeds, mean ranks and costs; ours against each peer; the tables where ours is worst.

    A table counts once, with the mean over its seeds. `p` is Wilcoxon's signed-rank test over tables, two-sided.
    """
    pl.Config.set_tbl_rows(60).set_tbl_cols(20).set_tbl_width_chars(160).set_float_precision(4)
    pl.Config.set_tbl_hide_column_data_types(True).set_tbl_hide_dataframe_shape(True)
    for protocol in results["protocol"].unique(maintain_order=True):
        part = results.filter(protocol=protocol)
        wide = part.group_by("table", "method").agg(pl.col(*METRICS).mean())
        # Ranks are over the methods that were measured on all tables; 1 is best.
        complete = wide.filter(pl.len().over("method") == wide["table"].n_unique())
        ranks = complete.select(
            "method", *(pl.col(m).rank(descending=True).over("table").alias(f"rank_{m}") for m in METRICS)
        )
        means = (
            part.group_by("method")
            .agg(
                pl.col("table").n_unique().alias("tables"),
                pl.col("seed").n_unique().alias("seeds"),
                pl.col(*METRICS, "fit_cpu_s", "score_cpu_s").mean(),
                pl.col("fit_cpu_s").max().alias("fit_most"),
            )
            .join(ranks.group_by("method").mean(), on="method", how="left")
            .sort("average_precision", descending=True)
        )
        print(f"\n{protocol}\n{means}")
        mine = wide.filter(method=ours).drop("method")
        for method in means["method"]:
            both = mine.join(wide.filter(method=method), on="table", suffix="_peer")
            if method == ours or both.height < 6:
                continue
            words = []
            for metric in METRICS:
                gap = (both[metric] - both[f"{metric}_peer"]).to_numpy()
                p = wilcoxon(gap).pvalue if gap.any() else 1.0
                words.append(f"{metric} {gap.mean():+.4f}, wins {(gap > 0).sum()}, losses {(gap < 0).sum()}, p={p:.3f}")
            print(f"{ours} against {method}: {'; '.join(words)}")
        if mine.height:
            others = wide.filter(pl.col("method") != ours).sort("average_precision", descending=True)
            best = others.group_by("table", maintain_order=True).first()
            gaps = mine.join(best, on="table", suffix="_best").with_columns(
                behind=pl.col("average_precision_best") - pl.col("average_precision")
            )
            print(
                f"Worst tables of {ours}, beside the best peer there\n{gaps.sort('behind', descending=True).head(worst)}"
            )


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
