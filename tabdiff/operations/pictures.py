"""Pictures of a run, as SVG that stands alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

_WIDTH, _HEIGHT, _BINS = 480, 160, 48


def histogram(files: Sequence[str]) -> str:
    """Scores of a run's parts, flagged rows in another colour; counts on a log scale, as flagged rows are few."""
    frame = pl.concat([pl.read_parquet(file, columns=["score", "flagged"]) for file in files])
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
    note = f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 34}" text-anchor="middle">score of {frame.height:,} rows; orange: flagged ({int(flagged.sum()):,})</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -4 {_WIDTH + 16} {_HEIGHT + 44}" width="{_WIDTH + 16}" '
        f'font-family="sans-serif" font-size="12" fill="#444">{"".join([*bars, *ticks, note])}</svg>'
    )
