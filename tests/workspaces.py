"""What tests of the workspace share: a workspace with a champion, and tables whose rows can be told apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from tabdiff.store import Workspace
from tests.conftest import make_mixed_table

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
    """The numbers of all rows in score files that the database names, sorted."""
    files = [part["file"] for part in workspace.scores.partitions() if part["file"]]
    return sorted(number for file in files for number in pl.read_parquet(file)["order_id"].to_list())


def files_without_a_row(workspace: Workspace) -> list[str]:
    """What `gc` would take."""
    return workspace.clean(grace=0, dry_run=True).left_over
