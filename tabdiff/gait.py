"""The sensor part of the demo: nine accelerometer channels of a walking person, with faults planted into the last third.

The recording is subject 6 of Daphnet (Bächlin et al. 2010), as the package aeon ships it. That subject's gait never freezes, so
nothing in it is marked as an anomaly: faults of single sensors stand in for them.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tabdiff.config import parse_fit_config
from tabdiff.errors import SourceError
from tabdiff.evaluate import page
from tabdiff.files import write
from tabdiff.planting import Plant
from tabdiff.series_fit import fit_series
from tabdiff.series_picture import draw
from tabdiff.sources import read
from tabdiff.terminal import count, table_of

_FILE = Path("datasets", "data", "Daphnet_S06R02E0", "S06R02E0.csv")
_TRAIN = 4500  # of 7,040 readings, 64 a second
_PLANTS = (("stuck", "leg_vert", 500, 128), ("drift", "trunk_vert", 1200, 192), ("noise", "ankle_vert", 1900, 64))


def recording() -> pl.DataFrame | None:
    """The recording, or None where aeon is not installed. Its file is read; aeon itself is not imported."""
    found = find_spec("aeon")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / _FILE
    if not path.is_file():
        raise SourceError(f"{path}: this version of aeon ships no such file. The demo was made with aeon 1.6.0.")
    return read(path).collect().drop("is_anomaly").with_columns(pl.col("timestamp").str.to_datetime())


def planted(frame: pl.DataFrame, usual: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The recording with three sensors broken for a while each."""
    rng = np.random.default_rng(seed)
    for kind, sensor, start, length in _PLANTS:
        values = frame[sensor].cast(pl.Float64).to_numpy()
        deviation: Any = usual[sensor].std()
        broken = np.rint(Plant(kind, start, length).apply(values, float(deviation), rng))
        frame = frame.with_columns(pl.Series(sensor, broken).cast(frame.schema[sensor]))
    return frame


def watch(
    out: Path,
    *,
    seed: int,
    say: Callable[[Any], None],
    step: Callable[[str], AbstractContextManager[None]],
    explain: Callable[[str], None],
) -> tuple[dict[str, Any], list[page.Section]]:
    """Fit on a walk, score the rest of it with faults, and draw a picture; nothing if the recording is not there."""
    frame = recording()
    say("3. Events: a person's gait (Daphnet, nine accelerometer channels at 64 Hz, 110 s)\n")
    if frame is None:
        explain("Left out, as the recording is not here: pip install --no-deps aeon==1.6.0 brings it.")
        return {}, []
    usual, rest = frame[:_TRAIN], frame[_TRAIN:]
    # The network draws series, which the demo does not; scores do without it.
    options = parse_fit_config(None, ["series.time=timestamp", "train.steps=10", f"train.seed={seed}"])
    with step(f"Fitting on the first {_TRAIN / 64:.0f} seconds, in which nothing is wrong."):
        model = fit_series(usual, options)
        model.save(out / "gait.model")
    with step(
        f"Scoring the other {rest.height / 64:.0f} seconds as they are, and with three faults planted into them."
    ):
        untouched = model.score(rest).events.height
        broken = planted(rest, usual, seed)
        scores = model.score(broken)
        write(scores.places, out / "gait.parquet")
        write(scores.events, out / "gait.events.parquet")
    picture = out / "gait.png"
    sensors = [sensor for _, sensor, _, _ in _PLANTS]
    draw(broken, scores, "timestamp", sensors, picture, title="Three sensors of nine; events in orange")
    lines = [_found(plant, broken, scores.events) for plant in _PLANTS]
    say(table_of(lines, dict.fromkeys(lines[0]), 1))
    report = model.bundle.model["report"]["planted"]
    words = (
        f"As it is, the rest of the walk has {count(untouched, 'event')}. With faults it has {scores.events.height}. Of {report['planted']} other faults, planted into "
        f"held-out time when the model was fitted, it finds {report['found']:.0%}; windowed principal components find {report['control']:.0%}. "
        f"Look at {picture}."
    )
    explain(words)
    image = base64.b64encode(picture.read_bytes()).decode()
    alt = html.escape("Three accelerometer channels with their expected band, the score below, and events in orange")
    shown = f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{image}">'
    body = page.table(lines, list(lines[0]), words) + shown
    return {"untouched_events": untouched, "faults": lines, "planted": report}, [page.Section("Events in a walk", body)]


def _found(plant: tuple[str, str, int, int], frame: pl.DataFrame, events: pl.DataFrame) -> dict[str, Any]:
    """One planted fault, and the event that touches it."""
    kind, sensor, start, length = plant
    begin, end = frame["timestamp"][start], frame["timestamp"][start + length]
    touching = events.filter((pl.col("start") <= end) & (pl.col("end") >= begin))
    named = touching["sensors"][0][0] if touching.height else ""
    return {
        "fault": f"{kind}, {sensor}",
        "from": begin.strftime("%M:%S.%f")[:-4],
        "to": end.strftime("%M:%S.%f")[:-4],
        "event": "yes" if touching.height else "no",
        "first sensor named": named,
    }
