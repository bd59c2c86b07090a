"""Does it pay to score on Ray workers? The same files by the loop of one process and by workers, start-up included.

OMP_NUM_THREADS=1 python benchmarks/cluster.py [--rows 50000 200000] [--workers 1]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000])
    options.add_argument("--workers", type=int, nargs="+", default=[1])
    given = options.parse_args()
    import backfill  # beside this file

    import tabdiff
    from tabdiff.cluster import RayWorkers
    from tabdiff.config import FitConfig
    from tabdiff.streaming import score_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tabdiff.fit(backfill.rows(0, 2000, 1), FitConfig.model_validate(backfill.FIT)).save(folder / "model")
        model = tabdiff.load(folder / "model")
        for count in given.rows:
            data = folder / f"data-{count}"
            data.mkdir()
            for first in range(0, count, 10_000):
                backfill.rows(first, min(10_000, count - first), 0).write_parquet(data / f"{first:09d}.parquet")
            ways: dict[str, Any] = {"loop": None}
            ways |= {
                f"ray, {number}": RayWorkers(folder / "model", model.runtime.provider, number)
                for number in given.workers
            }
            results = []
            for way, workers in ways.items():
                out = folder / f"{count}-{way}.parquet"
                started = time.perf_counter()
                score_file(model, data, out, model.rule(contamination=0.01), part_rows=10_000, workers=workers)
                seconds = time.perf_counter() - started
                results.append(pl.read_parquet(out))
                same = results[0].equals(results[-1])
                print(
                    f"{count:9,} rows, {way:8} {seconds:7.1f} s, {count / seconds:8,.0f} rows/s, same scores: {same}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
