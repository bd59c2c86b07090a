"""Faults, one after the other, on one workspace: does every row end up scored exactly once?

    OMP_NUM_THREADS=1 python benchmarks/faults.py [--times 20] [--database URL] [--tmpfs FOLDER] [--restart COMMAND] [--only KIND ...]

Each fault hits a run at a random moment; then one ordinary run follows, and the store is examined: rows lost, rows scored twice,
files and figures that disagree, runs left as running. Kills are real SIGKILLs of the process, drawn uniformly over the time that
the chosen step takes. A series is scored beside the table, by runs that are killed and by two at once: its places must have the scores of the whole
scored at once, each once, and no fault two alerts. `--tmpfs` is a small file system for the full disk; `--restart` is a command that restarts the database
server while a run is at work. Exit code 1 if anything is lost, doubled or inconsistent.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from faults_of_series import FILES, add, kills_of_series

FIT = {"network": {"width": 16, "blocks": 1}, "train": {"steps": 60, "batch_size": 64, "evaluate_every": 10}}
ROWS = 40  # in a file
STEPS = {  # what a run does, where that lives, and how long it takes at most here
    "reading": ("tabdiff.operations.new_rows", "load_files", 0.03),
    "scoring": ("tabdiff.model.Model", "score", 0.15),
    "writing": ("tabdiff.store.scores.Scores", "commit", 0.06),
    "training": ("tabdiff.api", "fit", 2.0),
}
OF_SERIES = {  # the same for a series
    "reading": STEPS["reading"],
    "judging": ("tabdiff.operations.series_passes.SeriesPass", "take", 0.25),
    "writing": STEPS["writing"],
}


def rows(first: int, count: int, seed: int) -> Any:
    import numpy as np
    import polars as pl

    rng = np.random.default_rng([seed, first])
    x = rng.normal(size=count)
    columns = {"number": np.arange(first, first + count), "x": x, "y": 2 * x + rng.normal(0, 0.3, count)}
    return pl.DataFrame({**columns, "kind": rng.choice(["a", "b"], count), "z": rng.gamma(2, 3, count)})


def work(home: str, url: str | None, what: str, step: str | None, seed: int) -> None:
    """One run in a process of its own, which kills itself at a random moment of a step."""
    from tabdiff.operations import ScoreJob, TrainJob, score_new, train
    from tabdiff.store import Workspace

    rng = random.Random(seed)
    if step is not None:
        place, name, longest = (OF_SERIES if what == "series" else STEPS)[step]
        skip = rng.randrange(FILES) if what != "train" else 0
        delay = rng.uniform(0, longest)
        calls = 0
        owner = _find(place)
        original = getattr(owner, name)

        def dying(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > skip:
                threading.Thread(
                    target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL)), daemon=True
                ).start()
            return original(*arguments, **options)

        mock.patch.object(owner, name, dying).start()
        if name == "load_files":  # it was imported by name
            mock.patch("tabdiff.operations.reading.load_files", dying).start()
    workspace = Workspace.open(Path(home), url)
    if what == "score":
        score_new(workspace, ScoreJob.of(source="rows", model="m", contamination=0.1, rows_per_part=25))
    elif what == "series":
        score_new(workspace, ScoreJob.of(source="series", model="s", rows_per_part=15))
    else:
        train(
            workspace,
            TrainJob.of(source="rows", model="t", fit={**FIT, "train": {**FIT["train"], "seed": seed}}, compiled=False),
        )


def _find(place: str) -> Any:
    import importlib

    try:
        return importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, name = place.rpartition(".")
        return getattr(importlib.import_module(module), name)


class Bench:
    """A workspace, a growing source, and the examination after each fault."""

    def __init__(self, folder: Path, url: str | None, seed: int) -> None:
        from tabdiff.operations import TrainJob, train
        from tabdiff.store import Workspace

        self.folder, self.data, self.url, self.seed = folder, folder / "data", url, seed
        self.data.mkdir(parents=True)
        self.count = self.round = 0
        self.workspace = Workspace.create(folder / "home", url)
        self.workspace.sources.add("rows", location=str(self.data), keys=("number",), settle=0.0)
        self.grow(300, 1)
        train(self.workspace, TrainJob.of(source="rows", model="m", fit=FIT, evaluation_share=0.3, compiled=False))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["torch", "tabdiff.api", "tabdiff.operations", "tabdiff.evaluate.detection"]
        )

    def grow(self, count: int = ROWS, files: int = FILES) -> None:
        for _ in range(files):
            temporary = self.data / f".{self.count}.tmp"
            rows(self.count, count, self.seed).write_parquet(temporary)
            temporary.rename(self.data / f"{self.count:08d}.parquet")
            self.count += count

    def start(self, what: str, step: str | None) -> Any:
        self.round += 1
        arguments = (str(self.workspace.home), self.url, what, step, self.seed * 1000 + self.round)
        process = self.context.Process(target=work, args=arguments)
        process.start()
        return process

    def run(self) -> None:
        from tabdiff.operations import ScoreJob, score_new

        score_new(self.workspace, ScoreJob.of(source="rows", model="m", contamination=0.1, rows_per_part=25))

    def examine(self) -> dict[str, int]:
        """What is wrong with the store, and the left-overs that gc would take."""
        import polars as pl

        workspace = self.workspace
        number, _ = workspace.sources.get("rows")
        parts = [part for part in workspace.scores.partitions(number, limit=1_000_000) if part["model"] == "m"]
        frames = [pl.read_parquet(part["file"]) for part in parts]
        numbers = [number for frame in frames for number in frame["number"].to_list()]
        stream = workspace.scores.stream(number, "m")
        wrong = sum(part["rows"] != frame.height for part, frame in zip(parts, frames, strict=True))
        wrong += stream.rows != sum(part["rows"] for part in parts)
        wrong += stream.revision != len(parts)
        alerts = workspace.scores.alerts(1_000_000, "rows")
        wrong += len(alerts) != sum(part["flagged"] for part in parts)
        workspace.runs.settle()
        wrong += sum(run["status"] == "running" for run in workspace.runs.latest(1000))
        lost, twice = self.count - len(set(numbers)), len(numbers) - len(set(numbers))
        return {"lost": lost, "twice": twice, "wrong": wrong, "left over": len(workspace.clean(grace=0).left_over)}


def kills(bench: Bench, step: str, times: int) -> dict[str, Any]:
    """SIGKILL during a step."""
    total: dict[str, Any] = {"faults": 0, "lost": 0, "twice": 0, "wrong": 0, "left over": 0}
    attempts = 0
    while total["faults"] < times and attempts < 4 * times:
        attempts += 1
        if step != "training":
            bench.grow()
        process = bench.start("train" if step == "training" else "score", step)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        total["faults"] += process.exitcode != 0
        if step == "training":
            wrong = _finish_training(bench)
            bench.run()
            total["wrong"] += wrong
        else:
            bench.run()
        add(total, bench.examine())
    return total


def _finish_training(bench: Bench) -> int:
    """The same training again, undisturbed: one version more, whole, and no checkpoint left."""
    from tabdiff.bundle import Bundle
    from tabdiff.operations import TrainJob, train

    seed = bench.seed * 1000 + bench.round
    fit = {**FIT, "train": {**FIT["train"], "seed": seed}}
    result = train(bench.workspace, TrainJob.of(source="rows", model="t", fit=fit, compiled=False))
    version = bench.workspace.models.get("t", result["version"])
    assert version.folder is not None
    Bundle.read(version.folder / "bundle")
    checkpoints = [path for path in (bench.workspace.home / "work").iterdir() if path.is_dir()]
    same = [
        v
        for v in bench.workspace.models.all("t")
        if (v.fingerprint, v.config_hash) == (version.fingerprint, version.config_hash)
    ]
    return (len(same) != 1) + len(checkpoints)


def during(disturb: Callable[[Bench, random.Random], Callable[[], None]]) -> Callable[[Bench, int], dict[str, Any]]:
    """A fault that the process lives to see; what it undoes is undone before the ordinary run."""

    def repeat(bench: Bench, times: int) -> dict[str, Any]:
        from tabdiff.errors import TabdiffError

        total: dict[str, Any] = {"faults": 0, "lost": 0, "twice": 0, "wrong": 0, "left over": 0}
        for index in range(times):
            undo = disturb(bench, random.Random(f"{bench.seed} {index}"))
            try:
                bench.run()
            except TabdiffError:
                pass  # it says what is wrong; nothing else may come out
            finally:
                undo()
            total["faults"] += 1
            bench.run()
            add(total, bench.examine())
        return total

    return repeat


def half_written(bench: Bench, rng: random.Random) -> Callable[[], None]:
    """A file that ends somewhere."""
    bench.grow(ROWS, 1)
    path = max(bench.data.glob("*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[: rng.randrange(len(whole))])
    return lambda: path.write_bytes(whole)  # type: ignore[return-value]


def replaced(bench: Bench, rng: random.Random) -> Callable[[], None]:
    """A file that is replaced while it is read."""
    bench.grow(ROWS, 1)
    path = max(bench.data.glob("*.parquet"))
    whole = path.read_bytes()
    from tabdiff.operations import new_rows

    original = new_rows.load_files

    def replacing(files: Any) -> Any:
        frame = original(files)
        if path in files:
            rows(10**9, 5, 0).write_parquet(path)
        return frame

    patch = mock.patch.object(new_rows, "load_files", replacing)
    patch.start()

    def undo() -> None:
        patch.stop()
        path.write_bytes(whole)

    return undo


def other_schema(bench: Bench, rng: random.Random) -> Callable[[], None]:
    """A file that lacks a column or has text for numbers."""
    import polars as pl

    bench.grow(ROWS, 1)
    path = max(bench.data.glob("*.parquet"))
    whole = path.read_bytes()
    frame = pl.read_parquet(path)
    column = rng.choice(["x", "y", "z"])
    (frame.drop(column) if rng.random() < 0.5 else frame.with_columns(pl.lit("?").alias(column))).write_parquet(path)
    return lambda: path.write_bytes(whole)  # type: ignore[return-value]


def clock_jump(bench: Bench, rng: random.Random) -> Callable[[], None]:
    """All of the store's clocks are up to ten years off; files carry times of the future or the past."""
    from tabdiff.store import registry

    bench.grow()
    jump = timedelta(days=rng.uniform(-3650, 3650))
    real = registry.now

    def jumped() -> Any:
        return real() + jump

    names = ("registry", "scores", "ledger", "workspace", "cleaning")
    patches = [mock.patch(f"tabdiff.store.{name}.now", jumped) for name in names]
    for patch in patches:
        patch.start()
    for path in bench.data.glob("*.parquet"):
        if path.stat().st_mtime > time.time() - 3600 and path == max(bench.data.glob("*.parquet")):
            os.utime(path, (time.time() + jump.total_seconds(),) * 2)

    def undo() -> None:
        for patch in patches:
            patch.stop()

    return undo


def full_disk(tmpfs: Path) -> Callable[[Bench, random.Random], Callable[[], None]]:
    """Room is left for a random part of what a run writes."""

    def disturb(bench: Bench, rng: random.Random) -> Callable[[], None]:
        bench.grow()
        filler = tmpfs / "filler"
        free = shutil.disk_usage(tmpfs).free
        filler.write_bytes(b"x" * max(0, free - rng.randrange(0, 250_000)))
        return filler.unlink

    return disturb


def restart(command: str) -> Callable[[Bench, random.Random], Callable[[], None]]:
    """The database server goes down and comes back while a run is at work."""

    def disturb(bench: Bench, rng: random.Random) -> Callable[[], None]:
        bench.grow()

        def act() -> None:
            time.sleep(rng.uniform(0, 0.8))
            subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)

        thread = threading.Thread(target=act)
        thread.start()
        return thread.join

    return disturb


def together(bench: Bench, times: int) -> dict[str, Any]:
    """Two schedulers start a run on the same source at once."""
    total: dict[str, Any] = {"faults": 0, "lost": 0, "twice": 0, "wrong": 0, "left over": 0}
    for _ in range(times):
        bench.grow()
        processes = [bench.start("score", None) for _ in range(2)]
        for process in processes:
            process.join()
            total["wrong"] += process.exitcode != 0
        total["faults"] += 1
        add(total, bench.examine())
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", help="URL of an empty PostgreSQL database; SQLite if not given")
    parser.add_argument("--tmpfs", type=Path, help="small file system for the full disk")
    parser.add_argument("--restart", help="command that restarts the database server")
    parser.add_argument("--only", nargs="*", help="kinds of faults")
    options = parser.parse_args()
    scenes: dict[str, Callable[[Bench, int], dict[str, Any]]] = {
        f"kill -9 while {step}": lambda bench, times, step=step: kills(bench, step, times)
        for step in STEPS  # type: ignore[misc]
    }
    scenes |= {
        "source half-written": during(half_written),
        "source replaced while read": during(replaced),
        "source with another schema": during(other_schema),
        "clock jump": during(clock_jump),
        "two schedulers at once": together,
        "series: kill -9 at any step": lambda bench, times: kills_of_series(bench, list(OF_SERIES), times),
    }
    if options.tmpfs:
        scenes["disk full"] = during(full_disk(options.tmpfs))
    if options.restart:
        scenes["database restarted"] = during(restart(options.restart))
    if options.only:
        scenes = {name: scene for name, scene in scenes.items() if any(word in name for word in options.only)}
    with tempfile.TemporaryDirectory(dir=options.tmpfs) as folder:
        bench = Bench(Path(folder), options.database, options.seed)
        bench.run()
        bad = 0
        kind = "PostgreSQL" if options.database else "SQLite"
        print(
            f"| {kind} | faults | rows lost | rows twice | inconsistent | left-overs (gc takes them) | seconds |\n|---|---|---|---|---|---|---|"
        )
        for name, scene in scenes.items():
            started = time.monotonic()
            found = scene(bench, options.times)
            figures = " | ".join(str(found[key]) for key in ("faults", "lost", "twice", "wrong", "left over"))
            print(f"| {name} | {figures} | {time.monotonic() - started:.0f} |", flush=True)
            bad += found["lost"] + found["twice"] + found["wrong"]
        print(f"\n{bench.count:,} rows, {len(bench.workspace.runs.latest(100_000)):,} runs.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
