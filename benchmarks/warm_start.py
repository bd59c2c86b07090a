"""What it saves to begin a fit with the weights of the model before: steps and seconds until the held-out loss of a fresh fit.

    python benchmarks/warm_start.py [FILE ...] --seeds 0 1 2 --rows 4000

The nightly case: the champion was fitted on one window of rows, the challenger is fitted on a window that has moved on by a fifth of
it. Both kinds of fit see the same rows in the same encoding; the loss is that of rows that neither champion nor challenger was fitted on.
Without files the tables come with scikit-learn and palmerpenguins.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import polars as pl

from tabdiff import api
from tabdiff.config import FitConfig
from tabdiff.files import fingerprint
from tabdiff.model import Model
from tabdiff.nn import train as training
from tabdiff.schema import Schema
from tabdiff.sources import load


def shipped() -> dict[str, pl.DataFrame]:
    from palmerpenguins import load_penguins
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

    tables = {"penguins": pl.from_pandas(load_penguins())}
    for name, loader in (("breast cancer", load_breast_cancer), ("diabetes", load_diabetes), ("wine", load_wine)):
        tables[name] = pl.from_pandas(loader(as_frame=True).frame)
    return tables


def curve(
    frame: pl.DataFrame, rows: np.ndarray, unseen: np.ndarray, config: FitConfig, start: Model | None
) -> tuple[list[tuple[int, float, float]], int]:
    """(step, CPU seconds, held-out loss) of a fit, and the steps that were planned."""
    schema = Schema.infer(frame)
    found: list[tuple[int, float, float]] = []
    planned = 0
    began = time.process_time()

    def note(event: training.TrainEvent) -> None:
        nonlocal planned
        planned = event.steps
        found.append((event.step, time.process_time() - began, event.held_out))

    api._learn(schema.conform(frame), schema, rows, unseen, config, None, note, fingerprint(frame), start)
    return found, planned


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="*", type=Path)
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--rows", type=int, default=4000, help="rows of each table that are used, at most")
    given = options.parse_args()
    tables = {path.stem: load(path) for path in given.files} or shipped()
    print(
        "| table | seed | loss fresh | fresh, half the steps | warm, half the steps | best at step, fresh | warm is as good at | "
        "CPU-s fresh | CPU-s warm |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, table in tables.items():
        for seed in given.seeds:
            order = np.random.default_rng(seed).permutation(table.height)[: given.rows]
            count = len(order)
            unseen, window = np.sort(order[: count // 6]), order[count // 6 :]
            width = int(len(window) / 1.2)
            old, new = np.sort(window[:width]), np.sort(window[-width:])
            config = FitConfig.model_validate(
                {"train": {"seed": seed, "device": "cpu", "evaluate_every": 20, "patience": 40}}
            )
            champion = api.fit(table[old], config)
            later = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed + 1000})})
            fresh, planned = curve(table, new, unseen, later, None)
            half = later.model_copy(update={"train": later.train.model_copy(update={"steps": planned // 2})})
            short, _ = curve(table, new, unseen, half, None)
            warm, _ = curve(table, new, unseen, later, champion)
            best = min(fresh, key=lambda point: point[2])
            reached = next((str(step) for step, _, loss in warm if loss <= best[2]), "not reached")
            print(
                f"| {name} | {seed} | {best[2]:.4f} | {_least(short):.4f} | {_least(warm):.4f} | {best[0]} of {planned} | "
                f"{reached} of {warm[-1][0]} | {fresh[-1][1]:.1f} | {warm[-1][1]:.1f} |",
                flush=True,
            )


def _least(points: list[tuple[int, float, float]]) -> float:
    return min(loss for _, _, loss in points)


if __name__ == "__main__":
    main()
