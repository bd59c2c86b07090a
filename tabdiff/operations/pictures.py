"""Pictures of a run, as SVG that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import polars as pl

_WIDTH, _HEIGHT, _BINS = 480, 160, 48


def histogram(files: Sequence[str]) -> str:
    """Scores of a run's parts (places without a score left out), flagged rows in another colour; counts on a log scale, as flagged rows are few."""
    frame = pl.concat([pl.read_parquet(file, columns=["score", "flagged"]) for file in files]).drop_nulls()
    values, flagged = np.log1p(np.maximum(frame["score"].to_numpy(), 0.0)), frame["flagged"].to_numpy()
    edges = np.linspace(0.0, max(float(values.max()), 1e-9), _BINS + 1)
    counts = [np.histogram(values[mask], edges)[0] for mask in (~flagged, flagged)]
    highest = float(np.log1p(np.max(counts))) or 1.0
    step = _WIDTH / _BINS
    bars = [
        f'<rect x="{i * step:.1f}" y="{_HEIGHT - h:.1f}" width="{step - 1:.1f}" height="{h:.1f}" fill="{colour}"/>'
        for colour, part in (("#0072b2", counts[0]), ("#d55e00", counts[1]))
        for i, h in enumerate(np.log1p(part) / highest * _HEIGHT)
        if h
    ]
    ticks = [
        f'<text x="{x * _WIDTH:.0f}" y="{_HEIGHT + 16}" text-anchor="{anchor}">{np.expm1(edges[-1] * x):.3g}</text>'
        for x, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    ]
    note = f"score of {frame.height:,} rows; orange: flagged ({int(flagged.sum()):,})"
    return _drawn([*bars, *ticks], note)


def band(places: pl.DataFrame, sensor: str) -> str:
    """One sensor of a series: what was expected as a grey band, what was recorded as a line, flagged places in another colour.

    Args:
        places: as `tracing.trace` gives them, at least two.
        sensor: a number among their columns.
    """
    names = [f"{word}:{sensor}" for word in ("value", "low", "high")]
    value, low, high = (places[name].cast(pl.Float64).to_numpy() for name in names)
    x = places["start"].to_physical().cast(pl.Float64).to_numpy()
    x = (x - x[0]) / max(x[-1] - x[0], 1e-9) * _WIDTH
    bottom, top = np.nanmin([low, value]), np.nanmax([high, value])
    scale = _HEIGHT / max(float(top - bottom), 1e-9)
    line, lower, upper = ((top - each) * scale for each in (value, low, high))
    edge = [(a, b) for a, b in zip(x, upper, strict=True)] + [(a, b) for a, b in zip(x[::-1], lower[::-1], strict=True)]
    shade = " ".join(f"{a:.1f},{b:.1f}" for a, b in edge if np.isfinite(b))
    shapes = [f'<polygon points="{shade}" fill="#9a9a9a" fill-opacity="0.4"/>']
    gaps = np.flatnonzero(places["gap"].to_numpy() | ~np.isfinite(line))
    for part in np.split(np.arange(len(x)), gaps):
        points = " ".join(f"{x[i]:.1f},{line[i]:.1f}" for i in part if np.isfinite(line[i]))
        shapes.append(f'<polyline points="{points}" fill="none" stroke="#0072b2"/>')
    marked = np.flatnonzero(places["flagged"].fill_null(False).to_numpy() & np.isfinite(line))
    shapes += [f'<circle cx="{x[i]:.1f}" cy="{line[i]:.1f}" r="2" fill="#d55e00"/>' for i in marked]
    ends = [f'<text x="{at}" y="{_HEIGHT + 16}" text-anchor="{anchor}">{escape(str(when))}</text>'
            for at, anchor, when in ((0, "start", places["start"][0]), (_WIDTH, "end", places["end"][-1]))]  # fmt: skip
    note = f"{escape(sensor[:60])}: grey what was expected (95 %), orange flagged"
    return _drawn([*shapes, *ends], note)


def _drawn(shapes: Sequence[str], note: str) -> str:
    """The picture of some shapes, with a note below."""
    said = f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 34}" text-anchor="middle">{note}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -4 {_WIDTH + 16} {_HEIGHT + 44}" width="{_WIDTH + 16}" '
        f'font-family="sans-serif" font-size="12" fill="#444">{"".join(shapes)}{said}</svg>'
    )
