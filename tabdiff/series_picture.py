"""A picture of a scored series: sensors with their expected band, the score below them, events and gaps in colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tabdiff.errors import ConfigError
from tabdiff.files import atomic_write

if TYPE_CHECKING:
    from tabdiff.series_results import SeriesScores

_BINS = (
    1500  # places across the picture; of more, the lowest and highest of each bin are drawn, so that no peak is lost
)
_MOST = 6  # sensors
_BLUE, _GREY, _ORANGE, _GREEN = "#0072b2", "#9a9a9a", "#d55e00", "#009e73"  # told apart by colour-blind readers


def draw(
    frame: pl.DataFrame, scores: SeriesScores, time: str, sensors: Sequence[str], path: Path, *, title: str = ""
) -> None:
    """Write a PNG or SVG of one recording.

    Args:
        frame: the user's rows, sorted by time.
        scores: of these rows.
        time: the column of times.
        sensors: numbers to show, at most six.
        path: where to; the ending decides the format.

    Raises:
        ConfigError: the ending is neither .png nor .svg, or no sensor is named.
        SourceError: the file cannot be written.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"a picture ends in .png or .svg; got {path.name!r}.")
    if not sensors:
        raise ConfigError("a picture needs at least one sensor that is a number; got none.")
    from matplotlib.figure import Figure

    sensors = list(sensors)[:_MOST]
    figure = Figure(figsize=(11, 1.6 * (len(sensors) + 1) + 0.6), layout="constrained")
    axes = figure.subplots(len(sensors) + 1, 1, sharex=True, squeeze=False)[:, 0]
    when = scores.places[time].to_numpy()
    for axis, name in zip(axes, sensors, strict=False):
        low, high = scores.expected[f"{name}_low"].to_numpy(), scores.expected[f"{name}_high"].to_numpy()
        axis.fill_between(*_envelope(when, low, high), color=_GREY, alpha=0.45, lw=0, label="expected (95 %)")
        x, y = _peaks(frame[time].to_numpy(), frame[name].cast(pl.Float64).to_numpy())
        axis.plot(x, y, color=_BLUE, lw=0.7, label=name)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.tick_params(labelsize=7)
    x, y = _peaks(when, scores.places["score"].cast(pl.Float64).fill_null(np.nan).to_numpy())
    axes[-1].plot(x, np.sqrt(np.maximum(y, 0)), color=_GREEN, lw=0.8)
    axes[-1].set_ylabel("score\n(square root)", rotation=0, ha="right", va="center", fontsize=8)
    axes[-1].tick_params(labelsize=7)
    for event in scores.events.iter_rows(named=True):
        for axis in axes:
            axis.axvspan(
                event["start"], event["end"], color=_ORANGE, alpha=0.25 if event["kind"] == "abnormal" else 0.1
            )
    figure.suptitle(
        title or f"{scores.events.height} events (orange); grey: what the neighbouring times led to expect", fontsize=9
    )
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=110)


def _peaks(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most two points a bin: its lowest and highest."""
    if len(x) <= 2 * _BINS:
        return x, y
    keep = []
    for part in np.array_split(np.arange(len(x)), _BINS):
        values = y[part]
        if np.isnan(values).all():
            keep.append(part[0])
            continue
        keep += sorted({part[int(np.nanargmin(values))], part[int(np.nanargmax(values))]})
    return x[keep], y[keep]


def _envelope(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The band, in wide bins from the lowest to the highest edge."""
    if len(x) <= 2 * _BINS:
        return x, low, high
    parts = np.array_split(np.arange(len(x)), _BINS)
    starts = [part[0] for part in parts]
    return x[starts], np.array([low[part].min() for part in parts]), np.array([high[part].max() for part in parts])
