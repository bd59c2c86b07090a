"""Shared fixtures, and how the suite runs: shapes checked, one thread, repeatable examples."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

# One thread: the same sums in the same order on every machine, and no waiting where cores are shared.
# Read when torch is imported, here and in subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401 - the hook below finds it by name
from tests.databases import Postgres, postgres_server

if TYPE_CHECKING:
    from tabdiff import Model

# Array shapes are checked at every call. Must come before the first import of tabdiff.
install_import_hook("tabdiff", "tests.shapes.arrays")

settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def make_mixed_table(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    """A table with one of everything.

    `order_id` repeats nowhere and `remark` is free text: both are carried through. `weight` and `price` go
    together, `discount` is zero in most rows, `items` is an integer. `channel` depends on the price and has
    rare levels, `express` depends on the channel, `ordered` is a time, `rating` has gaps.
    """
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(0.5, 0.6, rows)
    price = 4 + 9 * weight + rng.normal(0, 1.5, rows)
    discount = np.where(rng.random(rows) < 0.7, 0.0, price * rng.uniform(0.05, 0.3, rows))
    expensive = price > np.median(price)
    channel = np.where(rng.random(rows) < np.where(expensive, 0.8, 0.3), "web", "shop").astype(object)
    rare = rng.random(rows) < 0.02
    channel[rare] = rng.choice(["phone", "fair", "letter"], rare.sum())
    stars = rng.integers(1, 6, rows).tolist()
    rating = [None if gap else star for gap, star in zip(rng.random(rows) < 0.15, stars, strict=True)]
    start = datetime(2024, 1, 1)
    words = ["please", "ring", "leave", "call", "gift", "urgent", "fragile", "thanks", "first", "twice"]
    hours = np.sort(rng.integers(0, 24 * 300, rows)).tolist()
    remarks = [f"{' '.join(rng.choice(words, 4))} {rng.integers(1_000_000)}" for _ in range(rows)]
    return pl.DataFrame(
        {
            "order_id": np.arange(10_000, 10_000 + rows),
            "weight": np.round(weight, 3),
            "price": np.round(price, 2),
            "discount": np.round(discount, 2),
            "items": rng.poisson(3, rows) + 1,
            "channel": channel.tolist(),
            "express": (channel == "web") & (rng.random(rows) < 0.6),
            "ordered": [start + timedelta(hours=hour) for hour in hours],
            "rating": rating,
            "remark": remarks,
        }
    )


@pytest.fixture(scope="session")
def mixed_table() -> Callable[..., pl.DataFrame]:
    """`mixed_table(rows, seed)`: see `make_mixed_table`."""
    return make_mixed_table


@pytest.fixture(scope="session")
def fitted_table() -> pl.DataFrame:
    """The rows that `small_model` was fitted on."""
    return make_mixed_table(400, seed=0)


@pytest.fixture(scope="session")
def small_model(fitted_table: pl.DataFrame) -> Model:
    """A model of `fitted_table`, trained just enough to be one. Do not change it: all tests share it."""
    import tabdiff
    from tabdiff.config import NetworkConfig, TrainConfig

    options = tabdiff.FitConfig(network=NetworkConfig(width=32, blocks=1), train=TrainConfig(steps=80, batch_size=256))
    return tabdiff.fit(fitted_table, options)


@pytest.fixture(scope="session")
def small_bundle(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model` as a folder. Copy it before changing anything in it."""
    path = tmp_path_factory.mktemp("bundle") / "model"
    small_model.save(path)
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A private PostgreSQL server, one for all tests."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'workspace.db'}"
    url: str = request.getfixturevalue("postgres").make_database()
    return url


@pytest.fixture(scope="session")
def compiled_bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model` as a folder with compiled programs, in half precision too. Copy it before changing anything in it."""
    from onnx_export import export

    path = tmp_path_factory.mktemp("compiled") / "model"
    shutil.copytree(small_bundle, path)
    export(path, fp16=True, triton=path.parent / "triton")
    return path
