"""The series of `faults.py`: scored beside its table by runs that are killed and by two at once. Each place must have the score of the whole scored at
once, once, and no fault two alerts.
"""

from __future__ import annotations

import itertools
import random
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faults import Bench

FILES = 3  # that a source grows by
WINDOW, HISTORY, PLACES = 16, 400, 12  # places in a window, fitted on, and in a file of both machines


def readings(first: int, count: int, seed: int) -> Any:
    """A row a minute of two machines; the pressure of one goes wrong for a quarter of an hour in each three hours."""
    import numpy as np
    import polars as pl

    parts = []
    for index, machine in enumerate(("left", "right")):
        step = np.arange(first, first + count)
        noise = np.stack([np.random.default_rng([seed, index, each]).normal(size=2) for each in step.tolist()])
        cycle = np.sin(2 * np.pi * step / 24 + index)
        fault = 2.0 * ((step % 180 < 15) & (step > HISTORY) & (machine == "left"))
        columns = {"machine": [machine] * count, "minute": step, "flow": 10 + 3 * cycle + 0.2 * noise[:, 0]}
        parts.append(pl.DataFrame({**columns, "pressure": 4 + cycle + 0.1 * noise[:, 1] + fault}))
    return pl.concat(parts).sort("minute", "machine")


class Series:
    """A series beside the table of a bench."""

    def __init__(self, bench: Bench) -> None:
        from tabdiff.loading import load_series
        from tabdiff.operations import TrainJob, train

        self.bench, self.data, self.count = bench, bench.folder / "series", HISTORY
        (self.data / "new").mkdir(parents=True)
        (self.data / "old").mkdir()
        readings(0, HISTORY, bench.seed).write_parquet(self.data / "old" / "0.parquet")
        sources = bench.workspace.sources
        sources.add("history", location=str(self.data / "old"), settle=0.0)
        sources.add("series", location=str(self.data / "new"), settle=0.0)
        series = {"time": "minute", "entity": "machine", "window": WINDOW}
        fit = {"network": {"width": 16, "blocks": 1}, "train": {"steps": 2}, "series": series}
        train(bench.workspace, TrainJob.of(source="history", model="s", fit=fit, compiled=False))
        folder = bench.workspace.models.get("s").folder
        assert folder is not None
        self.model = load_series(folder / "bundle")

    def grow(self) -> None:
        """New files of both machines."""
        for _ in range(FILES):
            temporary = self.data / f".{self.count}.tmp"
            readings(self.count, PLACES, self.bench.seed).write_parquet(temporary)
            temporary.rename(self.data / "new" / f"{self.count:08d}.parquet")
            self.count += PLACES

    def run(self) -> None:
        """One ordinary run."""
        from tabdiff.operations import ScoreJob, score_new

        score_new(self.bench.workspace, ScoreJob.of(source="series", model="s", rows_per_part=15))

    def examine(self) -> dict[str, int]:
        """Places against the whole scored at once, and alerts against each other."""
        import numpy as np
        import polars as pl

        workspace = self.bench.workspace
        stream = workspace.scores.stream(workspace.sources.get("series")[0], "s")
        files = [file for _, file in workspace.scores.files(stream)[1] if file]
        keys = ["machine", "minute"]
        found = pl.concat([pl.read_parquet(file) for file in files]).sort(keys)
        frame = readings(HISTORY, self.count - HISTORY, self.bench.seed)
        whole = self.model.score(frame).places
        final = whole.filter(pl.col("minute") < self.count - WINDOW)
        joined = final.join(found.unique(keys), on=keys, how="inner", suffix=" found")
        pair = [joined[name].fill_null(-1.0).to_numpy() for name in ("score", "score found")]
        wrong = int((~np.isclose(*pair, rtol=1e-9, atol=1e-12)).sum())
        wrong += int((joined["flagged"] != joined["flagged found"]).sum())
        wrong += stream.rows != frame.height
        alerts = workspace.scores.alerts(1_000_000, "series")
        alerts = sorted(alerts, key=lambda alert: (alert["entity"], alert["first_place"]))
        wrong += sum(
            after["entity"] == before["entity"] and after["first_place"] <= before["last_place"]
            for before, after in itertools.pairwise(alerts)
        )
        workspace.runs.settle()
        wrong += sum(run["status"] == "running" for run in workspace.runs.latest(1000))
        lost, twice = final.height - joined.height, found.height - found.unique(keys).height
        left_over = len(workspace.clean(grace=0).left_over)
        return {"lost": lost, "twice": twice, "wrong": wrong, "left over": left_over}


def kills_of_series(bench: Bench, steps: list[str], times: int) -> dict[str, Any]:
    """SIGKILL at a random moment of reading, judging or writing; in every other round a second run is at work."""
    own = Series(bench)
    total: dict[str, Any] = {"faults": 0, "lost": 0, "twice": 0, "wrong": 0, "left over": 0}
    rng = random.Random(bench.seed)
    attempts = 0
    while total["faults"] < times and attempts < 4 * times:
        attempts += 1
        own.grow()
        processes = [bench.start("series", rng.choice(steps))]
        processes += [bench.start("series", None)] if attempts % 2 else []
        for process in processes:
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        total["faults"] += processes[0].exitcode != 0
        own.run()
        add(total, own.examine())
    return total


def add(total: dict[str, Any], found: dict[str, int]) -> None:
    for name, value in found.items():
        # What was lost once is lost in every later examination as well.
        total[name] = max(total[name], value) if name in ("lost", "twice") else total[name] + value
