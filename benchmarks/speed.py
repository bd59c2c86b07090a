"""Speed of fitting, scoring and sampling on a seeded table of 10,000 rows and 10 mixed columns, beside simple peers.

    OMP_NUM_THREADS=1 python benchmarks/speed.py [--repeats 5]

Everything runs in one process, peers and ours in turn, and ratios are taken pair by pair, so that a machine whose speed
drifts drifts for both. Peers: scikit-learn's k-NN (5 neighbours, the same number of stored rows) and Isolation Forest for
scores, a bootstrap for samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import polars as pl
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

import tabdiff
from tabdiff.evaluate.detection import encode_for_controls

ROWS = 10_000


def table(rows: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    kind = rng.choice(["a", "b", "c", "d"], rows, p=[0.5, 0.3, 0.15, 0.05])
    level = np.select([kind == name for name in "abcd"], [0.0, 1.0, 2.0, 4.0])
    x = level + rng.normal(size=rows)
    return pl.DataFrame(
        {
            "kind": kind,
            "region": rng.choice([f"r{i}" for i in range(12)], rows),
            "on": x + rng.normal(size=rows) > 1,
            "x": x,
            "y": 2 * x + rng.normal(0, 0.5, rows),
            "z": rng.gamma(2, 3, rows),
            "spend": np.where(rng.random(rows) < 0.6, 0.0, rng.lognormal(3, 1, rows)).round(2),
            "count": rng.poisson(40 + 5 * level),
            "small": rng.integers(0, 6, rows),
            "gap": [
                None if u < 0.1 else v for u, v in zip(rng.random(rows), rng.normal(size=rows).tolist(), strict=True)
            ],
        }
    )


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    train, fresh = table(ROWS, 0), table(ROWS, 1)
    started = time.process_time()
    model = tabdiff.fit(train)
    print(
        f"fit, default options: {time.process_time() - started:.1f} CPU-s ({model.bundle.model['report']['steps']} steps)"
    )
    stored, queries = encode_for_controls(train.head(4096), fresh)
    neighbours = NearestNeighbors(n_neighbors=5).fit(stored)
    forest = IsolationForest(random_state=0).fit(stored)
    jobs: dict[str, Callable[[], object]] = {
        "score: tabdiff": lambda: model.score(fresh),
        "score: k-NN": lambda: neighbours.kneighbors(queries),
        "score: Isolation Forest": lambda: forest.score_samples(queries),
        "sample: tabdiff, 20 steps": lambda: model.sample(ROWS),
        "sample: bootstrap": lambda: train.sample(ROWS, with_replacement=True, seed=0),
    }
    seconds = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, work in jobs.items():
            taken = timed(work)
            if turn:  # the first turn warms up
                seconds[name].append(max(taken, 1e-6))
    print(f"{'job':28} {'rows per CPU-s':>16} {'min':>12} {'max':>12} {'ours / this':>12}")
    for name, taken in seconds.items():
        rates = ROWS / np.array(taken)
        ours = ROWS / np.array(seconds[next(job for job in jobs if job.split(":")[0] == name.split(":")[0])])
        print(
            f"{name:28} {np.median(rates):16,.0f} {rates.min():12,.0f} {rates.max():12,.0f} {np.median(ours / rates):12.3f}"
        )


if __name__ == "__main__":
    main()
