"""A backfill of many parts, measured: where the time goes, and what a scheduler adds to a run.

    OMP_NUM_THREADS=1 python benchmarks/backfill.py [--parts 1000] [--rows 1000] [--columns 10] [--kernel-rows N] [--database URL] [--flows 10]

Writes PARTS Parquet files of ROWS rows of 10 columns (or the first few of them), fits a small model of them, and scores everything in one run of `score_new`, as after
a long time without one. Then every row is looked up: lost or doubled ones make the exit code 1. `--flows` runs the scoring flow so often on a
real Prefect server when nothing is new, beside the same job without Prefect: the difference is what the scheduler costs.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FIT = {"network": {"width": 16, "blocks": 1}, "train": {"steps": 60, "batch_size": 64}}


def rows(first: int, count: int, seed: int) -> Any:
    import numpy as np
    import polars as pl

    rng = np.random.default_rng([seed, first])
    x, y = rng.normal(size=(2, count))
    columns = {"number": np.arange(first, first + count), "x": x, "y": 2 * x + 0.3 * y, "z": rng.gamma(2, 3, count)}
    more = {f"more_{index}": x + rng.normal(0, 1 + index, count) for index in range(4)}
    kinds = {"kind": rng.choice(["a", "b", "c"], count), "where": rng.choice(["north", "south"], count, p=[0.8, 0.2])}
    return pl.DataFrame({**columns, **more, **kinds, "items": rng.poisson(3, count)})


def backfill(home: Path, given: argparse.Namespace) -> bool:
    import polars as pl

    from tabdiff.operations import ScoreJob, TrainJob, score_new, train
    from tabdiff.store import Workspace
    from tabdiff.store.scores import Scores

    url, parts, count = given.database, given.parts, given.rows
    workspace = Workspace.create(home / "home", url)
    data = home / "data"
    data.mkdir()
    workspace.sources.add("rows", location=str(data), keys=("number",))
    chosen = rows(0, 1, 1).columns[: 1 + given.columns]  # the number of the row besides
    rows(0, 2000, 1).select(chosen).write_parquet(data / "first.parquet")
    fit = FIT if given.kernel_rows is None else {**FIT, "score": {"kernel_rows": given.kernel_rows}}
    train(workspace, TrainJob.of(source="rows", model="m", fit=fit))
    (data / "first.parquet").unlink()
    for index in range(parts):
        rows(index * count, count, 0).select(chosen).write_parquet(data / f"{index:06d}.parquet")
    spent: dict[str, list[float]] = {"wall": [], "cpu": []}
    original = Scores.commit

    def commit(*arguments: Any, **options: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        done = original(*arguments, **options)
        spent["wall"].append(time.perf_counter() - wall)
        spent["cpu"].append(time.process_time() - cpu)
        return done

    Scores.commit = commit  # type: ignore[method-assign]
    job = ScoreJob.of(source="rows", model="m", contamination=0.01, max_parts=10 * parts)
    wall, cpu = time.perf_counter(), time.process_time()
    result = score_new(workspace, job)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    Scores.commit = original  # type: ignore[method-assign]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before the look at all rows at once below
    again_wall, again = time.perf_counter(), score_new(workspace, job)
    again_wall = time.perf_counter() - again_wall
    files = [part["file"] for part in workspace.scores.partitions() if part["file"]]
    numbers = pl.concat([pl.read_parquet(file, columns=["number"]) for file in files])["number"]
    lost, doubled = parts * count - numbers.n_unique(), numbers.len() - numbers.n_unique()
    early, late = (
        statistics.mean(spent["cpu"][part])
        for part in (slice(None, max(1, parts // 10)), slice(-max(1, parts // 10), None))
    )
    print(
        f"{parts} parts x {count} rows on {'SQLite' if url is None else 'PostgreSQL'}: {result['rows']} rows, {result['flagged']} flagged"
    )
    print(
        f"  whole run          {wall:8.1f} s, {cpu:8.1f} CPU-s, {result['rows'] / cpu:8.0f} rows per CPU-s, peak {peak:.2f} GiB"
    )
    print(
        f"  commit of a part   {1e3 * statistics.mean(spent['wall']):8.1f} ms, {1e3 * statistics.mean(spent['cpu']):.1f} CPU-ms (first tenth {1e3 * early:.1f}, last {1e3 * late:.1f})"
    )
    print(f"  the rest of a part {1e3 * (cpu - sum(spent['cpu'])) / parts:8.1f} CPU-ms (listing, reading, scoring)")
    print(f"  a run with nothing new {again_wall:.2f} s, {again['rows']} rows")
    print(f"  rows lost {lost}, rows twice {doubled}")
    return lost == doubled == 0


@contextmanager
def server(home: Path) -> Iterator[None]:
    from flows.deploy import prepare

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_LOGGING_LEVEL": "ERROR"}
    os.environ |= {"PREFECT_HOME": str(home / "prefect"), "TABDIFF_HOME": str(home)}
    prepare(home)
    call = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "from tabdiff.cli import main; main()",
        "flows",
        "server",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()


def overhead(home: Path, times: int) -> None:
    from tabdiff.operations import ScoreJob, score_new
    from tabdiff.store import Workspace

    job = ScoreJob(source="rows", model="m", contamination=0.01)
    with server(home):
        from flows.score import score

        score(job)  # the first run imports and connects
        found: dict[str, list[float]] = {"with Prefect": [], "without": []}
        for _ in range(times):
            for name, run in (
                ("with Prefect", lambda: score(job)),
                ("without", lambda: score_new(Workspace.open(), job)),
            ):
                started = time.perf_counter()
                run()
                found[name].append(time.perf_counter() - started)
    for name, seconds in found.items():
        print(
            f"  score, nothing new, {name:13} median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f} s, {times} runs"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--parts", type=int, default=1000)
    options.add_argument("--rows", type=int, default=1000)
    options.add_argument("--columns", type=int, default=10)
    options.add_argument(
        "--kernel-rows", type=int, help="stored rows that scores compare with; as by default if not given"
    )
    options.add_argument("--database", help="URL of an empty PostgreSQL database")
    options.add_argument("--flows", type=int, default=10)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fine = backfill(Path(folder), given)
        if given.flows and given.database is None:
            overhead(Path(folder) / "home", given.flows)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
