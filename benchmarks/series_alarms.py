"""Detection delay and false alarms at a threshold that is fixed on training time; see README.md here.

    python benchmarks/series_alarms.py DATA --families nab msl smap skab tep --out alarms.csv

DATA as for series.py. Ours flags by the rule that a fit stores: above every stretch of training time, each scored by a model that did not
see it. A peer is fitted on the first 80 % of the training time, and its threshold is its highest score in the rest.
Flags at most 8 places apart are one alarm. An alarm that overlaps a labelled stretch, or the window after it, is true; one that touches
neither that nor the window before it is false. Delay: places from the start of a labelled stretch to its first flag; a stretch without
one is missed. A place of ours is final a window after it, which comes on top in a stream.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from pathlib import Path

import numpy as np
import polars as pl
from series import METHODS, NOT_SENSORS

from tabdiff import fit_series
from tabdiff.config import FitConfig
from tabdiff.windows import runs_of

APART, WINDOW = 8, 128
MINUTES = {"nab": None, "tep": 3.0, "skab": 1 / 60}  # between places; of NAB the stamps say


def ours(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    names = [f"s{i}" for i in range(train.shape[1])]
    config = FitConfig.model_validate({"series": {"time": "step"}, "train": {"steps": 1, "seed": seed}})
    frames = [pl.DataFrame(x, schema=names).with_columns(pl.int_range(len(x)).alias("step")) for x in (train, test)]
    model = fit_series(frames[0], config, overrides={name: {"role": "feature"} for name in names})
    return model.score(frames[1]).places["flagged"].to_numpy()


def peer(name: str, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    cut = int(0.8 * len(train))
    threshold = METHODS[name](train[:cut], train[cut:], seed).max()
    return np.asarray(METHODS[name](train[:cut], test, seed) > threshold)


def alarms(flagged: np.ndarray) -> list[tuple[int, int]]:
    """First places and ends, flags that are near each other as one."""
    found: list[tuple[int, int]] = []
    for start, end in runs_of(flagged.astype(bool)):
        if found and start - found[-1][1] < APART:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def judged(flagged: np.ndarray, label: np.ndarray) -> dict[str, float | None]:
    stretches = runs_of(label.astype(bool))
    around = label.astype(bool)
    for start, end in stretches:
        around[max(0, start - WINDOW) : end + WINDOW] = True
    false = sum(not around[start:end].any() for start, end in alarms(flagged))
    delays = [int(np.argmax(flagged[start:end])) for start, end in stretches if flagged[start:end].any()]
    return {
        "stretches": len(stretches),
        "found": len(delays),
        "delay": float(np.median(delays)) if delays else None,
        "false": false,
        "normal": int((~around).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--families", nargs="+", default=["nab", "msl", "smap", "skab", "tep"])
    parser.add_argument("--methods", nargs="+", default=["tabdiff", "PCA-w16", "PCA-w100", "KMeans-w16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("alarms.csv"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    index = pl.read_csv(options.data / "index.csv", infer_schema_length=None)
    with options.out.open("w", newline="") as file:
        columns = [
            "method",
            "family",
            "name",
            "seed",
            "stretches",
            "found",
            "delay",
            "false",
            "normal",
            "minutes",
            "seconds",
        ]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in index.filter(pl.col("family").is_in(options.families)).iter_rows(named=True):
            table = pl.read_parquet(options.data / row["path"])
            x = table.select([name for name in table.columns if name not in NOT_SENSORS]).to_numpy().astype(np.float64)
            label, train = table["label"].to_numpy().astype(int)[int(row["train"]) :], int(row["train"])
            if train == len(x):
                continue
            minutes = MINUTES.get(row["family"])
            if "timestamp" in table.columns and row["family"] == "nab":
                minutes = table["timestamp"].diff().median().total_seconds() / 60
            for seed in options.seeds:
                for name in options.methods:
                    started = time.process_time()
                    call = (ours,) if name == "tabdiff" else (peer, name)
                    flagged = call[0](*call[1:], x[:train].copy(), x[train:].copy(), seed)  # type: ignore[operator]
                    found = {
                        "method": name,
                        "family": row["family"],
                        "name": row["name"],
                        "seed": seed,
                        "minutes": minutes,
                    }
                    writer.writerow(
                        found | judged(flagged, label) | {"seconds": f"{time.process_time() - started:.2f}"}
                    )
                    file.flush()
    table = pl.read_csv(options.out, infer_schema_length=None)
    day = 1440 / pl.col("minutes")
    pl.Config.set_tbl_rows(100)
    pl.Config.set_tbl_cols(20)
    print(
        table.group_by("family", "method", maintain_order=True).agg(
            pl.col("stretches", "found").sum(),
            pl.col("delay").median().alias("delay, places"),
            (pl.col("delay") * pl.col("minutes") / 60).median().round(2).alias("delay, hours"),
            (1000 * pl.col("false").sum() / pl.col("normal").sum()).round(2).alias("false in 1000 places"),
            pl.when(pl.col("minutes").is_not_null().all())
            .then((pl.col("false").sum() / (pl.col("normal") / day).sum()).round(2))
            .alias("false a day"),
        )
    )


if __name__ == "__main__":
    main()
