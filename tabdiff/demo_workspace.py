"""A workspace with real results to look at: pumps of which one failed last night (a series), tumours, and penguins (tables).

Tumours and penguins are real tables that packages bring. The pumps are simulated, as no package brings such readings: what makes a
pump fail here is written below, and the model is told none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tabdiff.demo import penguin_table, tumour_table
from tabdiff.errors import StoreError
from tabdiff.operations import MonitorJob, ScoreJob, SynthesizeJob, TrainJob, monitor, score_new, synthesize, train
from tabdiff.store import Workspace

SOURCES = ("pumps", "tumours", "penguins")
FAILED = "pump-3"
_PUMPS, _EVERY, _DAYS, _NEW = 4, 15, 14, 3  # machines, minutes between readings, days in all, days that are scored
_FEWER = 15  # steps of a series: one in so many
_WINDOW = 32  # places, eight hours; what is newer than that is provisional
_SEED = 7
_PLAN = """# Schedules of the demo; `tabdiff flows serve` runs them.
timezone = "UTC"

[[schedules]]
name = "pumps-hourly"
flow = "score"
cron = "5 * * * *"
job = { source = "pumps", model = "pumps", alerts_per_day = 0.1 }

[[schedules]]
name = "pumps-watch"
flow = "monitor"
cron = "30 6 * * *"
job = { source = "pumps", model = "pumps", every = 86400 }

[[schedules]]
name = "tumours-nightly"
flow = "score"
cron = "0 2 * * *"
job = { source = "tumours", model = "tumours", contamination = 0.05 }
"""


@dataclass(frozen=True)
class Step:
    """One step of making the workspace: its number, how many there are, and what it does."""

    number: int
    of: int
    what: str


def readings(until: datetime, seed: int = _SEED) -> pl.DataFrame:
    """Readings of four pumps, every quarter of an hour for two weeks up to a time, by time and machine.

    Load follows the hour; flow, pressure, current and vibration follow the load, temperature follows the current with a delay. In
    the last night the bearing of one pump wears out: it vibrates, heats up and draws more current at the same flow. Two days
    before, a pressure sensor of another one sticks for an hour, and single readings of a third are off by a factor.
    """
    rng = np.random.default_rng(seed)
    count = _DAYS * 24 * 60 // _EVERY
    times = [until - timedelta(minutes=_EVERY * (count - step)) for step in range(count)]
    hours = np.array([moment.hour + moment.minute / 60 for moment in times])
    night, earlier = _hours_before(times, last_night(until), 3.5), _hours_before(times, until - timedelta(days=2), 1.0)
    place = np.arange(count)
    glitch = (place % 97 == 50) & (place > count - _NEW * 24 * 60 // _EVERY)
    frames = []
    for pump in range(1, _PUMPS + 1):
        load = 0.62 + 0.25 * np.sin((hours - 8) / 24 * 2 * np.pi) + 0.06 * rng.standard_normal(count)
        load = np.clip(load, 0.15, 1.1)
        wear = night if pump == 3 else np.zeros(count)
        flow = 42 * load * (1 - 0.1 * wear) + 0.5 * rng.standard_normal(count)
        pressure = 3.1 + 1.9 * load**2 + 0.05 * rng.standard_normal(count)
        current = 5 + 11 * load * (1 + 0.35 * wear) + 0.25 * rng.standard_normal(count)
        heat = np.convolve(current, np.ones(4) / 4)[:count]
        heat[:3] = current[:3]
        temperature = 28 + 2.1 * heat + 14 * wear + 0.5 * rng.standard_normal(count)
        vibration = 1.1 + 1.6 * load + 4.2 * wear + 0.12 * rng.standard_normal(count)
        if pump == 1:
            pressure = np.where(earlier > 0, 6.4, pressure)
        if pump == 4:
            current = np.where(glitch, current * 1.8, current)
        frame = pl.DataFrame(
            {
                "time": times,
                "machine": [f"pump-{pump}"] * count,
                "flow_l_per_min": flow.round(2),
                "pressure_bar": pressure.round(3),
                "current_a": current.round(2),
                "temperature_c": temperature.round(1),
                "vibration_mm_s": vibration.round(2),
            }
        )
        frames.append(frame)
    return pl.concat(frames).sort("time", "machine")


def last_night(until: datetime) -> datetime:
    """When the failure began: 01:10 of the day, or of the day before if that is not four hours ago."""
    begun = until.replace(hour=1, minute=10, second=0, microsecond=0)
    return begun if until - begun > timedelta(hours=4) else begun - timedelta(days=1)


def _hours_before(times: list[datetime], begin: datetime, hours: float) -> np.ndarray:
    """Rises from 0 to 1 within a quarter of the span after `begin`, stays, and is 0 outside."""
    passed = np.array([(moment - begin).total_seconds() / 3600 for moment in times])
    inside = (passed >= 0) & (passed < hours)
    return np.where(inside, np.clip(0.3 + 4 * passed / hours, 0, 1), 0.0)


def make(
    workspace: Workspace,
    *,
    until: datetime | None = None,
    steps: int = 150,
    on_step: Callable[[Step], None] | None = None,
) -> dict[str, Any]:
    """Register three sources, fit a model of each, score new rows, look for drift, and draw penguins.

    Killed and called again it goes on: everything it does can be repeated.

    Args:
        workspace: where to; its other sources and models are left alone.
        until: the time of the newest reading; now if not given.
        steps: of each fit.
        on_step: told before each step.

    Returns:
        For each source the champion's version, the rows scored and how many were flagged.

    Raises:
        StoreError: the workspace has a source of one of these names that is not the demo's.
        RuntimeUnavailable: the package with the penguins is not installed.
        TabdiffError: as the jobs do.
    """
    folder = workspace.home / "demo"
    known = workspace.sources.all()
    taken = [name for name in SOURCES if name in known and not known[name].root.is_relative_to(folder)]
    if taken:
        raise StoreError(f"the workspace has a source {taken[0]!r} of its own. Make the demo in another TABDIFF_HOME.")
    tell = iter(range(1, 100))

    def step(what: str) -> None:
        if on_step is not None:
            on_step(Step(next(tell), 9, what))

    step("writing the tables")
    fitted, fresh = _tables(until or datetime.now(UTC))
    plan = workspace.home / "flows.toml"
    if not plan.exists():
        plan.write_text(_PLAN, encoding="utf-8")
    found: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {"pumps": {"alerts_per_day": 0.1}, "tumours": {"contamination": 0.05}}
    keys = {"pumps": ("time", "machine"), "tumours": ("tumour",), "penguins": ()}
    roles = {"tumours": {"tumour": {"role": "id"}}}
    fit = {"train": {"steps": steps, "evaluate_every": 50}}
    # Closed forms judge a series; its network, which is slow to train, only draws and fills.
    few = {**fit["train"], "steps": max(1, steps // _FEWER)}
    series = {"pumps": {"train": few, "series": {"time": "time", "entity": "machine", "window": _WINDOW}}}
    for name in SOURCES:
        where = folder / name
        _write(where, fitted[name])
        workspace.sources.add(name, location=str(where), keys=keys[name])
        step(f"fitting {name}")
        result = train(
            workspace,
            TrainJob.of(source=name, model=name, fit={**fit, **series.get(name, {})}, columns=roles.get(name, {})),
        )
        found[name] = {"version": result["version"], "rows": 0, "flagged": 0}
        if name not in options:
            continue
        _write(where, fresh[name])
        step(f"scoring new rows of {name}")
        scored = score_new(workspace, ScoreJob.of(source=name, model=name, **options[name]))
        found[name] |= {"rows": scored["rows"], "flagged": scored["flagged"]}
        step(f"looking whether {name} has drifted")
        monitor(workspace, MonitorJob.of(source=name, model=name))
    step("drawing penguins")
    synthesize(workspace, SynthesizeJob.of(model="penguins", rows=300, seed=1))
    synthesize(workspace, SynthesizeJob.of(model="penguins", rows=100, seed=1, given={"species": "Gentoo"}))
    return found


def _tables(until: datetime) -> tuple[dict[str, dict[str, pl.DataFrame]], dict[str, dict[str, pl.DataFrame]]]:
    """Files to fit on and files that come later, by source and name."""
    until = until.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    pumps = readings(until)
    border = (until - timedelta(days=_NEW)).replace(hour=0)
    table, malignant = tumour_table()
    table = table.with_columns(tumour=pl.int_range(table.height))
    benign = np.flatnonzero(~malignant)
    chosen = np.sort(np.random.default_rng(_SEED).permutation(benign)[: len(benign) * 2 // 3])
    rest = np.setdiff1d(np.arange(table.height), chosen)
    fitted = {
        "pumps": _by_day(pumps.filter(pl.col("time") < border)),
        "tumours": {"a-benign": table[chosen]},
        "penguins": {"penguins": penguin_table()},
    }
    fresh = {"pumps": _by_day(pumps.filter(pl.col("time") >= border)), "tumours": {"b-unknown": table[rest]}}
    return fitted, fresh


def _by_day(frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    days = frame.with_columns(day=pl.col("time").dt.strftime("%Y-%m-%d")).partition_by(
        "day", include_key=False, as_dict=True
    )
    return {str(day): rows for (day,), rows in days.items()}


def _write(folder: Path, files: dict[str, pl.DataFrame]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in files.items():
        path = folder / f"{name}.parquet"
        if not path.exists():  # one that was scored must not change
            frame.write_parquet(path)
