"""What tests of the workspace share: a workspace with a champion, tables whose rows can be told apart, machines with sensors."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tabdiff.store import Workspace
from tests.conftest import make_mixed_table

START = datetime(2026, 3, 1)
QUICK = {"network": {"width": 16, "blocks": 1}, "train": {"steps": 30, "batch_size": 64}}


def orders(rows: int, first: int, seed: int = 0) -> pl.DataFrame:
    """Orders numbered from `first`."""
    return make_mixed_table(rows, seed).with_columns(order_id=pl.int_range(first, first + rows))


def with_champion(home: Path, url: str | None, bundle: Path) -> Workspace:
    """A workspace whose model `orders` is a copy of a folder."""
    workspace = Workspace.create(home, url)
    folder = home / "models" / "orders" / "first"
    shutil.copytree(bundle, folder / "bundle")
    orders(60, 0, seed=9).write_parquet(folder / "reference.parquet")
    metrics = {"evaluation_share": 0.5}
    version = workspace.models.add("orders", "models/orders/first", "f" * 64, "c" * 64, metrics)
    workspace.models.promote("orders", version.version)
    return workspace


def scored_ids(workspace: Workspace) -> list[int]:
    """The numbers of all orders in score files that the database names, sorted."""
    files = [part["file"] for part in workspace.scores.partitions() if part["file"] and part["source"] != "fleet"]
    return sorted(number for file in files for number in pl.read_parquet(file)["order_id"].to_list())


def files_without_a_row(workspace: Workspace) -> list[str]:
    """What `gc` would take."""
    return workspace.clean(grace=0, dry_run=True).left_over


def fleet(first: int, count: int, every: int = 60) -> pl.DataFrame:
    """Two machines: a cycle, one that follows it, a level, a switch; a row each minute. A place has the same values in every call."""
    parts = []
    for index, machine in enumerate(("left", "right")):
        steps = np.arange(first, first + count)
        noise = np.stack([np.random.default_rng([index, step]).normal(size=3) for step in steps.tolist()])
        cycle = np.sin(2 * np.pi * steps / 24 + index)
        part = pl.DataFrame(
            {
                "machine": [machine] * count,
                "at": [START + timedelta(seconds=every * step) for step in steps.tolist()],
                "flow": 10 + 3 * cycle + 0.2 * noise[:, 0],
                "pressure": 4 + cycle + 0.1 * noise[:, 1],
                "level": 50 + noise[:, 2],
                "pump": np.where(cycle > 0, "on", "off"),
            }
        )
        parts.append(part)
    return pl.concat(parts).sort("at", "machine")


def broken(frame: pl.DataFrame, machine: str, first: int, last: int, shift: float = 1.5) -> pl.DataFrame:
    """The pressure of one machine too high from one place to another."""
    at = pl.col("at")
    inside = (pl.col("machine") == machine) & (at >= minute(first)) & (at <= minute(last))
    return frame.with_columns(pl.when(inside).then(pl.col("pressure") + shift).otherwise("pressure").alias("pressure"))


def minute(step: int) -> datetime:
    return START + timedelta(minutes=step)
