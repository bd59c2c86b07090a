"""What it costs to score a series hour by hour instead of at once, and how late a fault is told of.

    OMP_NUM_THREADS=1 python benchmarks/series_stream.py [--machines 4] [--hours 48] [--faults 24]

Simulated machines with a reading a minute and five sensors: a daily and an hourly cycle, followers with delays, noise. Printed are: places
a second at once and in hourly runs of the workspace, where the time of such a run goes, the size of the state, alerts in normal time (and those
that final scores did not confirm), and for faults planted into single sensors the places between the first faulty row and the alert, with
a run after every place; beside it how long it takes until flagged places are final.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl

SENSORS, WINDOW, DAYS = 5, 64, 3


def readings(first: int, count: int, machines: int) -> pl.DataFrame:
    """A row a minute of each machine; a place has the same values in every call."""
    parts = []
    for machine in range(machines):
        step = np.arange(first, first + count)
        noise = np.stack([np.random.default_rng([machine, each]).normal(size=SENSORS) for each in step.tolist()])
        load = np.sin(2 * np.pi * step / 1440) + 0.5 * np.sin(2 * np.pi * step / 60 + machine)
        columns: dict[str, Any] = {"machine": [f"m{machine}"] * count, "minute": step}
        for sensor in range(SENSORS):
            late = np.sin(2 * np.pi * (step - 3 * sensor) / 1440) + 0.5 * np.sin(
                2 * np.pi * (step - 3 * sensor) / 60 + machine
            )
            columns[f"s{sensor}"] = (load if sensor == 0 else late) * (1 + sensor) + 0.1 * (1 + sensor) * noise[
                :, sensor
            ]
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts).sort("minute", "machine")


class Clock:
    """Seconds of CPU inside some functions."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def patch(self, name: str, owner: Any, attribute: str) -> Any:
        """Count a function under a name."""
        original = getattr(owner, attribute)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds[name] += time.process_time() - started

        return mock.patch.object(owner, attribute, timed)


def hourly(folder: Path, machines: int, hours: int) -> None:
    """The workspace, an hour at a time."""
    from tabdiff.loading import load_series
    from tabdiff.operations import ScoreJob, TrainJob, score_new, train
    from tabdiff.operations.series_passes import SeriesPass
    from tabdiff.operations.stream_state import Kept
    from tabdiff.series_model import SeriesModel
    from tabdiff.store import Workspace
    from tabdiff.store.scores import Scores
    from tabdiff.store.triage import Filter

    history = DAYS * 1440
    workspace = Workspace.create(folder / "home")
    for name in ("old", "new"):
        (folder / name).mkdir()
        workspace.sources.add(name, location=str(folder / name))
    readings(0, history, machines).write_parquet(folder / "old" / "0.parquet")
    series = {"time": "minute", "entity": "machine", "window": WINDOW}
    fit = {"series": series, "train": {"steps": 5}}
    train(workspace, TrainJob.of(source="old", model="m", fit=fit))
    version = workspace.models.get("m").folder
    assert version is not None
    model = load_series(version / "bundle")
    frame = readings(history, 60 * hours, machines)
    started = time.process_time()
    whole = model.score(frame)
    seconds = time.process_time() - started
    print(
        f"at once: {frame.height:,} places in {seconds:.1f} s of CPU, {frame.height / seconds:,.0f} places/s",
        flush=True,
    )
    clock = Clock()
    with (
        clock.patch("model: final places", SeriesModel, "_next"),
        clock.patch("part (model, tables, events)", SeriesPass, "take"),
        clock.patch("state: read", Kept, "from_bytes"),
        clock.patch("state: write", Kept, "to_bytes"),
        clock.patch("commit", Scores, "commit"),
    ):
        started = time.process_time()
        for hour in range(hours):
            frame[60 * machines * hour : 60 * machines * (hour + 1)].write_parquet(
                folder / "new" / f"{hour:04d}.parquet"
            )
            score_new(workspace, ScoreJob.of(source="new", model="m"))
        seconds = time.process_time() - started
    print(
        f"hourly: {seconds / hours * 1000:.0f} ms of CPU a run, {frame.height / seconds:,.0f} places/s; of a run in ms:"
    )
    print("  " + ", ".join(f"{name} {value / hours * 1000:.1f}" for name, value in clock.seconds.items()), flush=True)
    state = workspace.scores.stream(workspace.sources.get("new")[0], "m").state
    assert state is not None
    print(f"state: {len(state) / machines / 1024:.1f} kB an entity (window {WINDOW}, {SENSORS} sensors)")
    parts = [pl.read_parquet(part["file"]) for part in workspace.scores.partitions() if part["file"]]
    found = pl.concat(parts).join(whole.places, on=["machine", "minute"], suffix=" whole")
    off = (found["score"] - found["score whole"]).abs() / found["score whole"].abs()
    print(f"largest relative difference of {found.height:,} final scores from the whole: {off.max():.1e}")
    alerts = workspace.triage.queue(Filter(state="all"), limit=10_000)
    days = hours * machines / 24
    print(
        f"normal time: {len(alerts)} alerts in {days:.0f} machine days by hourly runs, {whole.events.height} events of the whole",
        flush=True,
    )


def delays(machines: int, faults: int, folder: Path) -> None:
    """A run after every place."""
    from tabdiff.loading import load_series
    from tabdiff.operations.series_passes import SeriesPass
    from tabdiff.operations.stream_state import Kept
    from tabdiff.planting import KINDS, Plant
    from tabdiff.store import Workspace

    version = Workspace.open(folder / "home").models.get("m").folder
    assert version is not None
    passing = SeriesPass(load_series(version / "bundle"), None)
    frame = readings(DAYS * 1440 + 6000, 900, 1)
    rng = np.random.default_rng(0)
    begin = 2 * WINDOW + 40
    told: dict[str, list[int | None]] = {kind: [] for kind in KINDS}
    final: list[int] = []
    for index in range(faults):
        kind, sensor = KINDS[index % len(KINDS)], f"s{rng.integers(SENSORS)}"
        part = frame[40 * (index % 10) : 40 * (index % 10) + begin + 2 * WINDOW]
        length = Plant.draw(kind, 900, 0, rng).length
        values = part[sensor].to_numpy()
        part = part.with_columns(
            pl.Series(sensor, Plant(kind, begin, length).apply(values, float(frame[sensor].to_numpy().std()), rng))
        )
        kept = passing.take(Kept(), part[:begin], []).kept
        delay = None
        for place in range(begin, part.height):
            taken = passing.take(kept, part[place : place + 1], [])
            kept = taken.kept
            if delay is None and any(
                alert.last_place is not None and alert.last_place >= part["minute"][begin] - 2 for alert in taken.alerts
            ):
                delay = place - begin
            if (
                taken.table is not None
                and taken.table.filter(taken.table["minute"] >= part["minute"][begin])["flagged"].any()
            ):
                final.append(place - begin)
                break
        told[kind].append(delay)
    for kind, found in told.items():
        known = sorted(each for each in found if each is not None)
        middle = f"{np.median(known):.0f} places (all: {known})" if known else "-"
        print(f"{kind}: {len(known)} of {len(found)} told, median after {middle}", flush=True)
    print(
        f"flagged places final, median after {np.median(final):.0f} places of {len(final)} faults"
        if final
        else "none final"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=4)
    parser.add_argument("--hours", type=int, default=48)
    parser.add_argument("--faults", type=int, default=24)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        hourly(Path(folder), options.machines, options.hours)
        delays(options.machines, options.faults, Path(folder))


if __name__ == "__main__":
    main()
