"""Faults planted into held-out time of sensor recordings, and what a place costs; see README.md here.

    python benchmarks/series_faults.py DATA --families skab tep --seeds 0 1 2
    python benchmarks/series_faults.py --cost 100000

DATA as for series.py. A fit plants 24 faults of single sensors, six kinds, into time that it held out, and counts those that
score above everything in the same time without them; windowed principal components look at the same faults by the same rule.
"""

from __future__ import annotations

import argparse
import time
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tabdiff import fit_series
from tabdiff.config import validate_fit_config
from tabdiff.planting import KINDS

NOT_SENSORS = {"timestamp", "label", "unit", "cycle"}


def faults(data: Path, families: list[str], seeds: list[int]) -> None:
    index = pl.read_csv(data / "index.csv", infer_schema_length=None)
    rows = []
    for row in index.filter(pl.col("family").is_in(families)).iter_rows(named=True):
        table = pl.read_parquet(data / row["path"])
        sensors = table.select([name for name in table.columns if name not in NOT_SENSORS])[: int(row["train"])]
        frame = sensors.cast(pl.Float64).with_columns(pl.int_range(sensors.height).alias("step"))
        for seed in seeds:
            config = validate_fit_config({"series": {"time": "step"}, "train": {"steps": 1, "seed": seed}})
            overrides = {name: {"role": "feature"} for name in sensors.columns}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = fit_series(frame, config, overrides=overrides).bundle.model["report"]["planted"]
            if found:
                kinds = {kind: found["kinds"][kind]["found"] for kind in KINDS}
                control = {f"{kind} pca": found["kinds"][kind]["control"] for kind in KINDS}
                rows.append(
                    {
                        "family": row["family"],
                        **{k: found[k] for k in ("planted", "found", "control")},
                        "first": found["sensor_first"],
                        **kinds,
                        **control,
                    }
                )
    table = pl.DataFrame(rows, infer_schema_length=None)
    pl.Config.set_tbl_cols(30)
    pl.Config.set_tbl_width_chars(250)
    # The sensor counts among faults that were found.
    first = ((pl.col("first") * pl.col("found")).sum() / pl.col("found").sum()).alias("first")
    print(
        table.group_by("family").agg(
            pl.len().alias("fits"),
            pl.col("planted").sum(),
            pl.col("found", "control").mean().round(3),
            first.round(3),
            pl.col(*KINDS).mean().round(2),
            pl.col(*[f"{k} pca" for k in KINDS]).mean().round(2),
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
    parser.add_argument("--cost", type=int, default=None)
    options = parser.parse_args()
    if options.cost:
        cost(options.cost)
    if options.data:
        faults(options.data, options.families, options.seeds)


if __name__ == "__main__":
    main()
