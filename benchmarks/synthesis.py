"""Synthetic rows beside peers: fidelity, detector, utility, privacy and speed on mixed tables.

    OMP_NUM_THREADS=1 python benchmarks/synthesis.py DATA [--tables adult ...] [--seeds 0 1 2] [--peer tabularargn=FOLDER]

DATA is a folder of `NAME.parquet`. A table is shuffled by the seed; its first half (at most `--rows`) trains, as many
further rows are the holdout. With `--split COLUMN` the rows that say "train" there train (at most `--rows`) and all others are the holdout.
Every method draws as many rows as it was fitted on. `--set train.steps=9000` and the like are options of our fit; `--models FOLDER` keeps
models and checkpoints there and does not fit a second time what it finds; `--log FILE` appends each result as a line of JSON.

A peer that lives in an environment of its own is measured by what it wrote: `--write-training FOLDER` writes the training rows as
FOLDER/NAME-SEED.parquet, and `--peer name=FOLDER` reads synthetic rows from FOLDER/NAME-SEED.csv and, if it is there,
`{"fit": CPU-s, "sample": CPU-s}` from FOLDER/NAME-SEED.json (`tabularargn.py` writes both).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.neighbors import NearestNeighbors

import tabdiff
from tabdiff.config import parse_fit_config
from tabdiff.errors import TabdiffError
from tabdiff.evaluate import fidelity, privacy, utility
from tabdiff.evaluate.detection import encode_for_controls
from tabdiff.nn.assemble import likelihood_along
from tabdiff.nn.runtime import build_programs

TARGETS = {
    "adult": "income",
    "default": "default payment next month",
    "telco": "Churn",
    "california": "median_house_value",
    "churn_iran": "Churn",
    "insurance": "charges",
    "taxis": "fare",
}
# Ids, dates and the split marks of a source say nothing about a row.
LEFT_OUT = ("split", "customerID", "pickup", "dropoff")
METRICS = ("shape", "trend", "trend all", "detector", "utility", "closest", "copies", "fit s", "rows/s")
Timed = tuple[pl.DataFrame, float, float]


def read(path: Path, rows: int | None, seed: int, split: str | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    frame = pl.read_parquet(path)
    marks = frame[split] if split is not None else None
    left_out = [name for name in (*LEFT_OUT, split) if name in frame.columns]
    frame = frame.drop(left_out)
    if "TotalCharges" in frame.columns:  # numbers kept as text
        frame = frame.with_columns(pl.col("TotalCharges").cast(pl.Float64, strict=False))
    if marks is not None:
        train, holdout = frame.filter(marks == "train"), frame.filter(marks != "train")
        train = train.sample(fraction=1, shuffle=True, seed=seed)[: rows or train.height]
        return train, holdout
    frame = frame.sample(fraction=1, shuffle=True, seed=seed)
    count = min(rows or frame.height, frame.height // 2)
    return frame[:count], frame[count : 2 * count]


def ours(
    train: pl.DataFrame, holdout: pl.DataFrame, seed: int, settings: list[str], models: Path | None, name: str
) -> tuple[Timed, dict[str, Any]]:
    """Rows, CPU seconds of fitting and drawing, and what else there is to say about the model."""
    config = parse_fit_config(None, [f"train.seed={seed}", *settings])
    kept = models / name if models is not None else None
    started = time.process_time()
    if kept is not None and kept.exists():
        model, seconds = tabdiff.load(kept), json.loads(kept.with_suffix(".json").read_text(encoding="utf-8"))["fit"]
    else:
        checkpoint = kept.with_suffix(".checkpoint") if kept is not None else None
        events = (lambda event: print(name, event, flush=True)) if kept is not None else None
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
        model = tabdiff.fit(train, config, checkpoint=checkpoint, on_event=events)
        seconds = time.process_time() - started
        if kept is not None:
            model.save(kept)
            kept.with_suffix(".json").write_text(json.dumps({"fit": seconds}), encoding="utf-8")
    started = time.process_time()
    rows = model.sample(train.height, seed=seed)
    drawn = time.process_time() - started
    notes = {
        "settings": settings,
        "report": model.bundle.model["report"],
        "nats of training rows": nats(model, train),
        "nats of holdout rows": nats(model, holdout),
    }
    return (rows, seconds, drawn), notes


def nats(model: tabdiff.Model, frame: pl.DataFrame, rows: int = 4096) -> float | None:
    """Mean negative log-likelihood of rows, cell by cell in the order of drawing; None where there is no one order."""
    order = model.bundle.model["order"]
    if not order:
        return None
    denoiser = build_programs(model.bundle)[0].denoiser.eval()
    denoiser.order = tuple(order)
    encoded = model.codec.encode(model.schema.conform(frame[:rows]))
    x = torch.from_numpy(encoded.x[:, None, : model.codec.layout.model_width])
    return -float(np.diag(likelihood_along(denoiser, x, torch.from_numpy(encoded.present[:, None]))).sum())


def smote(train: pl.DataFrame, seed: int, neighbours: int = 5) -> Timed:
    """Interpolate a row and one of its nearest neighbours; a category comes from either (Chawla et al. 2002, SMOTE-NC)."""
    started, rng = time.process_time(), np.random.default_rng(seed)
    features, _ = encode_for_controls(train, train)
    places = NearestNeighbors(n_neighbors=neighbours + 1).fit(features).kneighbors(features)[1][:, 1:]
    fitted = time.process_time()
    first = rng.integers(0, train.height, train.height)
    second = places[first, rng.integers(0, neighbours, train.height)]
    share = rng.random(train.height)
    columns = []
    for column in train.get_columns():
        left, right = column.gather(first), column.gather(second)
        if column.dtype.is_numeric():
            between = left.cast(pl.Float64) + pl.Series(share) * (right.cast(pl.Float64) - left.cast(pl.Float64))
            columns.append((between.round() if column.dtype.is_integer() else between).cast(column.dtype))
        else:
            columns.append(left.zip_with(pl.Series(share < 0.5), right))
    return pl.DataFrame(columns), fitted - started, time.process_time() - fitted


def judge(
    train: pl.DataFrame,
    holdout: pl.DataFrame,
    synthetic: pl.DataFrame,
    target: str,
    seed: int,
    detector_rows: int = 5000,
) -> list[float]:
    synthetic = synthetic.select(train.columns)
    trend = fidelity.trend_error(train, synthetic)
    return [
        fidelity.shape_error(train, synthetic).mean,
        trend.strong_mean,
        trend.mean,
        fidelity.detector_auc(train, synthetic, seed, detector_rows),
        utility.train_on_synthetic(train, synthetic, holdout, target, seed).synthetic,
        privacy.distance_to_closest_record_share(train, holdout, synthetic, seed).share,
        privacy.exact_copies(train, synthetic, holdout).copies * train.height / synthetic.height,
    ]


def peer(folder: Path, name: str, seed: int, train: pl.DataFrame) -> Timed | None:
    path = folder / f"{name}-{seed}.csv"
    if not path.exists():
        return None
    texts = pl.read_csv(path, infer_schema=False, null_values=[""])
    casts = []
    for column, dtype in train.schema.items():
        number = pl.col(column).cast(pl.Float64)
        casts.append((number.round().cast(dtype) if dtype.is_integer() else number) if dtype.is_numeric() else column)
    seconds = {"fit": float("nan"), "sample": float("nan")}
    if path.with_suffix(".json").exists():
        seconds |= json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return texts.select(casts), seconds["fit"], seconds["sample"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tables", nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", default="10000", help="training rows at most, or all")
    parser.add_argument("--split", help="column that says train of the rows that train")
    parser.add_argument("--methods", nargs="*", default=["tabdiff", "smote", "independent", "holdout"])
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="options of our fit")
    parser.add_argument("--detector-rows", type=int, default=5000, help="rows of each table that the detector sees")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--models", type=Path, help="keep our models and checkpoints here, and use what is there")
    parser.add_argument("--log", type=Path, help="append each result to this file")
    parser.add_argument("--write-training", type=Path, help="write training rows for peers, and stop")
    options = parser.parse_args()
    peers = {entry.partition("=")[0]: Path(entry.partition("=")[2]) for entry in options.peer}
    most = None if options.rows == "all" else int(options.rows)
    print(f"{'table':12} {'method':14} " + " ".join(f"{metric:>16}" for metric in METRICS))
    for table in options.tables:
        found: dict[str, list[list[float]]] = {}
        for seed in options.seeds:
            train, holdout = read(options.data / f"{table}.parquet", most, seed, options.split)
            if options.write_training:
                options.write_training.mkdir(parents=True, exist_ok=True)
                train.write_parquet(options.write_training / f"{table}-{seed}.parquet")
                continue
            notes: dict[str, Any] = {}

            def fitted() -> Timed:
                timed, more = ours(train, holdout, seed, options.set, options.models, f"{table}-{seed}")  # noqa: B023
                notes.update(more)  # noqa: B023
                return timed

            methods: dict[str, Callable[[], Timed | None]] = {
                "tabdiff": fitted,
                "smote": lambda: smote(train, seed),  # noqa: B023 - called before the loop goes on
                "independent": lambda: (fidelity.independent_columns(train, train.height, seed), 0.0, float("nan")),  # noqa: B023
                "holdout": lambda: (holdout, 0.0, float("nan")),  # noqa: B023
            }
            chosen = {name: methods[name] for name in options.methods}
            chosen |= {name: lambda folder=folder: peer(folder, table, seed, train) for name, folder in peers.items()}  # noqa: B023
            for name, make in chosen.items():
                try:
                    made = make()
                except TabdiffError as error:
                    print(f"{table:12} {name:14} {error}")
                    continue
                if made is None:
                    continue
                rows, fit, draw = made
                values = judge(train, holdout, rows, TARGETS[table], seed, options.detector_rows)
                if name == "holdout":  # it would be measured against itself: what real training rows are worth instead
                    values[4] = utility.train_on_synthetic(train, train, holdout, TARGETS[table], seed).synthetic
                    values[5] = float("nan")
                values += [fit, rows.height / draw]
                found.setdefault(name, []).append(values)
                if options.log is not None:
                    line = {"table": table, "seed": seed, "method": name, **dict(zip(METRICS, values, strict=True))}
                    line |= {"rows": train.height, "detector rows": options.detector_rows}
                    with options.log.open("a", encoding="utf-8") as log:
                        log.write(json.dumps(line | (notes if name == "tabdiff" else {})) + "\n")
        for name, runs in found.items():
            cells = [
                f"{mean:.3f}" + (f" ± {spread:.3f}" if len(runs) > 1 else "")
                for mean, spread in zip(np.mean(runs, axis=0), np.std(runs, axis=0), strict=True)
            ]
            print(f"{table:12} {name:14} " + " ".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
