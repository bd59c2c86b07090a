"""A workspace with a recorded series, written by hand in the format of score files: four pumps with planted events, from a seeded generator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tabdiff.store import Workspace
from tabdiff.store.scores import Alert, Part

BEGIN = datetime(2026, 11, 1)
NUMBERS = ("vibration", "current", "flow")
SPIKE = 123.0  # the height of the planted place
THRESHOLD = 4.0


def about(minutes: int) -> dict[str, Any]:
    """What training writes of a series into the figures of a version."""
    return {
        "time": "at",
        "entity": "pump",
        "interval": f"every {minutes} min",
        "interval_us": minutes * 60_000_000,
        "steps": None,
        "window": 32,
        "numbers": list(NUMBERS),
        "categories": ["valve"],
        "threshold": THRESHOLD,
    }


def recording(pump: str, count: int, minutes: int, seed: int, spike: int | None = None) -> pl.DataFrame:
    """Places of one pump, a gap of two hours after a third of them; at `spike`, a single place, its vibration jumps."""
    rng = np.random.default_rng(seed)
    place = np.arange(count) + np.where(np.arange(count) > count // 3, 120 // minutes, 0)
    day = np.sin(2 * np.pi * place * minutes / 1440)
    values = {"vibration": 2 + day * 0.4, "current": 11 + 3 * day, "flow": 40 + 12 * day}
    recorded = {name: value + rng.normal(0, 0.03 * value.std() + 0.02, count) for name, value in values.items()}
    score = rng.gamma(3.0, 0.25, count)
    if spike is not None:
        recorded["vibration"][spike] = SPIKE
        score[spike] = 60.0
    columns: dict[str, Any] = {
        "pump": [pump] * count,
        "at": pl.Series(place).cast(pl.Int64) * 60_000_000 * minutes,
        "score": score,
        "p_value": np.exp(-score),
        "flagged": score > THRESHOLD,
    }
    for name in NUMBERS:
        width = 0.15 * values[name].std() + 0.1
        shapes = {
            "value": recorded[name],
            "expected": values[name],
            "low": values[name] - width,
            "high": values[name] + width,
        }
        columns |= {f"{what}:{name}": pl.Series(shape).cast(pl.Float32) for what, shape in shapes.items()}
    columns |= {"value:valve": np.where(day > 0, "open", "half")}
    columns |= {f"part:{name}": pl.Series(rng.random(count)).cast(pl.Float32) for name in (*NUMBERS, "valve")}
    return pl.DataFrame(columns).with_columns(
        at=pl.lit(BEGIN).cast(pl.Datetime("us")) + pl.col("at").cast(pl.Duration("us"))
    )


def event(
    pump: str,
    start: datetime,
    hours: float,
    columns: dict[str, tuple[float, float, float, float]],
    row: int,
    excess: float,
    open_: bool = False,
) -> Alert:
    """An event; of each column its part, its value at the peak, and what was expected from and to."""
    begin, end = start.replace(tzinfo=UTC), (start + timedelta(hours=hours)).replace(tzinfo=UTC)
    reasons = [
        {"column": name, "part": part, "expected": (low + high) / 2, "value": value, "low": low, "high": high}
        for name, (part, value, low, high) in columns.items()
    ]
    values = {
        "pump": pump,
        "at": str(begin + (end - begin) / 2),
        **{name: value for name, (_, value, _, _) in columns.items()},
    }
    return Alert(
        row, excess * THRESHOLD, 0.001, reasons, values, at=begin, entity=pump, excess=excess,
        kind="event", ended=end, open=open_, first_place=row, last_place=row + int(4 * hours),
    )  # fmt: skip


def pumps(
    home: Path, *, count: int = 1500, minutes: int = 15, machines: int = 4, spike: int | None = None
) -> Workspace:
    """The workspace: source and model `pumps`, `machines` of `count` places, and five events, of which one was judged."""
    workspace = Workspace.create(home)
    folder = home / "models" / "pumps" / "one"
    folder.mkdir(parents=True)
    workspace.models.add("pumps", "models/pumps/one", "f" * 64, "c" * 64, {"series": about(minutes)})
    workspace.models.promote("pumps", 1)
    workspace.sources.add("pumps", location=str(home.parent), keys=("pump", "at"))
    stream = workspace.scores.stream(workspace.sources.get("pumps")[0], "pumps")
    names = [f"pump-{number + 1}" for number in range(machines)]
    table = pl.concat(
        [
            recording(name, count, minutes, seed, spike if seed == machines - 1 else None)
            for seed, name in enumerate(names)
        ]
    )
    late = BEGIN + timedelta(minutes=minutes * count)
    heavy = {"vibration": (8.0, 6.2, 1.5, 2.7), "current": (2.0, 15.0, 9.0, 13.0)}
    alerts = [
        event(names[-1], late - timedelta(hours=9), 8, heavy, 0, 4.0, open_=True),
        event(names[0], BEGIN + timedelta(hours=30), 5, {"flow": (6.0, 12.0, 30.0, 50.0)}, 1, 2.5),
        event(names[-1], BEGIN + timedelta(hours=60), 3, heavy, 2, 1.5),
        event(names[1 % machines], BEGIN + timedelta(hours=90), 1, {"valve": (3.0, 0.0, 0.0, 0.0)}, 3, 1.1),
        event(names[1 % machines], BEGIN + timedelta(hours=95), 2, {"flow": (6.0, 10.0, 30.0, 50.0)}, 4, 0.7),
    ]
    with workspace.runs.start("score", "pumps:pumps") as run:
        options: dict[str, Any] = {
            "flagged": len(alerts),
            "model_id": workspace.models.get("pumps").id,
            "run_id": run.id,
        }
        workspace.scores.commit(
            stream, Part("all", 0, True, None, table.height), table, alerts, watermark=None, **options
        )
    judged = next(one["id"] for one in workspace.triage.queue(queue_filter()) if one["row"] == 2)
    workspace.scores.judge(judged, "anomaly", author="ann", note="seal was worn")
    return workspace


def queue_filter() -> Any:
    """Everything."""
    from tabdiff.store.triage import Filter

    return Filter(state="all")
