"""Faults planted into held-out time of sensor recordings, and what a place costs; see README.md here.

    python benchmarks/series_faults.py DATA --families skab tep --seeds 0 1 2
    python benchmarks/series_faults.py --cost 100000

DATA as for series.py, or one table. A fit plants 24 faults of single sensors, six kinds, into time that it held out, and counts those that
score above everything in the same time without them; windowed principal components look at the same faults by the same rule. A fault is findable if a matched filter
that knows it finds it. Where another sensor is named, it is one that the same place names without the fault (anyway), or one that goes with
the broken one (alike). --size makes spikes, drifts and noise larger or smaller by a factor.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tabdiff import fit_series, planting
from tabdiff.config import validate_fit_config

NOT_SENSORS = {"timestamp", "label", "unit", "cycle", "t"}
MEASURES = (
    "found",
    "control",
    "findable",
    "found_of_findable",
    "sensor_first",
    "sensor_first_of_findable",
    "anyway",
    "alike",
)


def recordings(data: Path, families: list[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Training rows of the files of the families, or the rows of a table by itself, sensors only."""
    if data.is_file():
        table = pl.read_parquet(data)
        yield data.stem, table
        return
    index = pl.read_csv(data / "index.csv", infer_schema_length=None)
    for row in index.filter(pl.col("family").is_in(families)).iter_rows(named=True):
        yield row["family"], pl.read_parquet(data / row["path"])[: int(row["train"])]


def faults(data: Path, families: list[str], seeds: list[int], out: Path | None) -> None:
    rows = []
    for family, table in recordings(data, families):
        sensors = table.select([name for name in table.columns if name.lower() not in NOT_SENSORS])
        frame = sensors.cast(pl.Float64).with_columns(pl.int_range(sensors.height).alias("step"))
        for seed in seeds:
            config = validate_fit_config({"series": {"time": "step"}, "train": {"steps": 1, "seed": seed}})
            overrides = {name: {"role": "feature"} for name in sensors.columns}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = fit_series(frame, config, overrides=overrides).bundle.model["report"]["planted"]
            if not found:
                continue
            every = {"all": found} | found["kinds"]
            for kind, shares in every.items():
                rows.append({"family": family, "seed": seed, "kind": kind, **{m: shares.get(m) for m in MEASURES}})
            if out:
                pl.DataFrame(rows, infer_schema_length=None).write_csv(out)
    pl.Config.set_tbl_rows(100)
    pl.Config.set_tbl_width_chars(200)
    weighed = {
        "found_of_findable": pl.col("findable"),
        "sensor_first": pl.col("found"),
        "sensor_first_of_findable": pl.col("found") * pl.col("findable"),
        "anyway": pl.col("found"),
        "alike": pl.col("found"),
    }
    print(
        pl.DataFrame(rows, infer_schema_length=None)
        .group_by("family", "kind", maintain_order=True)
        .agg(
            pl.len().alias("fits"),
            *[pl.col(name).mean().round(2) for name in MEASURES[:3]],
            # Shares among some of the faults weigh as many as there are.
            *[
                ((pl.col(name) * w).sum() / w.filter(pl.col(name).is_not_null()).sum()).round(2)
                for name, w in weighed.items()
            ],
        )
    )


def cost(places: int) -> None:
    rng = np.random.default_rng(0)
    step = np.arange(places + 5000)
    x = {f"s{i}": np.sin(2 * np.pi * (step + 3 * i) / 40) + 0.1 * rng.normal(size=len(step)) for i in range(8)}
    frame = pl.DataFrame({"at": [datetime(2024, 1, 1) + timedelta(seconds=int(i)) for i in step], **x})
    started = time.process_time()
    model = fit_series(frame[:5000], validate_fit_config({"series": {"time": "at"}, "train": {"steps": 1}}))
    print(
        f"fit on 5,000 places of 8 sensors, without the network: {time.process_time() - started:.1f} CPU-s; {model.describe()}"
    )
    for part in (places // 4, places):
        started = time.process_time()
        model.score(frame[5000 : 5000 + part])
        print(f"score {part:,} places: {time.process_time() - started:.1f} CPU-s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--families", nargs="+", default=["skab", "tep"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--size", type=float, default=1.0)
    parser.add_argument("--cost", type=int, default=None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.cost:
        cost(options.cost)
    for kind in planting.SIZES:
        planting.SIZES[kind] *= options.size
    if options.data:
        faults(options.data, options.families, options.seeds, options.out)


if __name__ == "__main__":
    main()
