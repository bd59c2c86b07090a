"""The pictures and small helpers of the page: plain data in, HTML with inline SVG out.

Drawn by hand rather than by a plotting library, so that they follow the reader's light or dark theme, stay
sharp, weigh little and come out the same byte for byte. Colours are those of Okabe and Ito, told apart with
every common colour blindness; no chart relies on colour alone. Every text from data goes through `text`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from tabdiff.errors import ConfigError
from tabdiff.evaluate.fidelity import association
from tabdiff.evaluate.frames import Floats, align, kind_of, numbers, texts

HEAT_WIDTH = 270
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 34, 8, 8, 26
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def text(value: object, most: int = 200) -> str:
    """Any value as HTML text: escaped, control and direction characters made visible, cut to `most`."""
    shown = _HIDDEN.sub("\ufffd", str(value))
    return html.escape(shown if len(shown) <= most else shown[: most - 1] + "…")


def number(value: float, decimals: int | None = None) -> str:
    """A number with about three significant digits, or `decimals` of them after the point."""
    if not np.isfinite(value):
        return "–"
    if decimals is None:
        size = abs(value)
        if float(value).is_integer() and size < 1e9:
            return f"{value:,.0f}".replace("-", "−")
        if size >= 1e7 or size < 1e-3:
            power = f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
            return power.replace("-", "−")
        decimals = int(np.clip(2 - np.floor(np.log10(size)), 0, 5))
    if 0 < abs(value) < 0.5 * 10**-decimals:
        return f"&lt;{10**-decimals:.{decimals}f}" if value > 0 else f"&gt;−{10**-decimals:.{decimals}f}"
    return f"{value + 0.0:,.{decimals}f}".replace("-", "−")


def figure(title: str, picture: str, reading: str, legend: Sequence[tuple[str, str]] = ()) -> str:
    """A picture with its title, its key (style class, label) and a sentence on how to read it."""
    key = "".join(f'<span><i class="{style}"></i>{text(label)}</span>' for style, label in legend)
    key = f'<div class="key">{key}</div>' if key else ""
    note = f"<figcaption>{text(reading, 600)}</figcaption>" if reading else ""
    return f"<figure><h3>{text(title, 90)}</h3>{key}{picture}{note}</figure>"


def grid(*figures: str) -> str:
    """Figures side by side where there is room, below each other on a phone."""
    return f'<div class="grid">{"".join(figures)}</div>'


def bars(items: Sequence[tuple[str, float]], title: str = "", unit: str = "", reading: str = "") -> str:
    """Horizontal bars from 0, in the order given: (label, value) with a common `unit`, such as "%"."""
    values = [float(value) for _, value in items]
    if any(not np.isfinite(value) or value < 0 for value in values):
        raise ConfigError(f"a bar is a finite number of at least 0; found {values}")
    longest = max(values, default=0.0) or 1.0
    lines = "".join(
        f'<li><span class="name">{text(label, 60)}</span>'
        f'<span class="bar"><b style="width:{100 * value / longest:.1f}%"></b></span>'
        f'<span class="value">{number(value)}{text(unit)}</span></li>'
        for (label, _), value in zip(items, values, strict=True)
    )
    return figure(title, f'<ul class="bars">{lines}</ul>', reading)


def scale(value: float, floor: float, ceiling: float, label: str) -> str:
    """Where a value lies between a floor (what real rows have) and a ceiling (independent columns): a small picture."""
    ends = [end for end in (value, floor, ceiling) if np.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    width = high - low or 1.0
    places = [
        8 + 164 * (min(max(end, low), high) - low) / width if np.isfinite(end) else -20.0
        for end in (floor, ceiling, value)
    ]
    body = (
        f'<path class="axis" d="M8 10H172"/><path class="axis strong" d="M{places[0]:.1f} 4V16"/>'
        f'<path class="axis strong" d="M{places[1]:.1f} 4V16"/><circle class="fill-b" cx="{places[2]:.1f}" cy="10" r="4.5"/>'
    )
    return _svg(180, 20, label, body)


def histogram_pair(
    real: pl.Series, synthetic: pl.Series, title: str | None = None, reading: str = "", most_levels: int = 8
) -> str:
    """One column of two tables: filled bars for real, an outline for synthetic; heights are shares of rows.

    Numbers: 24 bins over the values of both, tails beyond the 0.5 % and 99.5 % points in the outer bins.
    Categories: the commonest real levels, then all others and missing as one bar each.
    """
    name = real.name if title is None else title
    if kind_of(real.dtype) != kind_of(synthetic.dtype) and pl.Null not in (real.dtype, synthetic.dtype):
        raise ConfigError(f"a pair of histograms shows one kind of values; found {real.dtype}, {synthetic.dtype}")
    legend = (("fill-a", "real"), ("line-b", "synthetic"))
    if kind_of(real.dtype) == "category":
        return figure(name, _level_bars(texts(real), texts(synthetic), most_levels, name), reading, legend)
    values = [numbers(column) for column in (real, synthetic)]
    gaps = [float(np.isnan(part).mean()) if len(part) else 0.0 for part in values]
    if any(gaps):
        reading = f"{reading} Missing: real {number(100 * gaps[0])} %, synthetic {number(100 * gaps[1])} %.".strip()
    dated = real.dtype if real.dtype.is_temporal() else None
    picture = _histogram(values[0], values[1], f"Histogram of {name}: real and synthetic", 24, dated)
    return figure(name, picture, reading, legend)


def histograms(
    real: pl.DataFrame,
    synthetic: pl.DataFrame,
    reading: str = "Filled: real rows; outline: synthetic rows. The closer the two shapes, the better.",
    most_columns: int = 12,
) -> str:
    """A `histogram_pair` for each of the first `most_columns` columns, with one sentence for all."""
    synthetic = align(real, synthetic, "synthetic")
    pairs = [histogram_pair(real[name], synthetic[name]) for name in real.columns[:most_columns]]
    return f'<p class="note">{text(reading, 600)}</p>{grid(*pairs)}'


def score_histogram(
    normal: npt.ArrayLike,
    anomalous: npt.ArrayLike,
    title: str = "Anomaly scores",
    reading: str = "The further right a row, the less normal it is. Good scores keep the two shapes apart.",
) -> str:
    """Scores of normal rows (filled) and of known anomalies (outline); heights are shares of each group.

    The outer bins hold what lies beyond the central 96 % of both groups.
    """
    values = [np.asarray(part, dtype=np.float64).ravel() for part in (normal, anomalous)]
    label = f"Histogram of scores: {len(values[0])} normal and {len(values[1])} anomalous rows"
    legend = (("fill-a", "normal rows"), ("line-b", "anomalies"))
    return figure(title, _histogram(values[0], values[1], label, 32, None, tail=0.02), reading, legend)


def correlation_heatmaps(
    real: pl.DataFrame,
    synthetic: pl.DataFrame,
    independent: pl.DataFrame | None = None,
    reading: str = "Each square is a pair of columns. Blue: they rise together, or depend on each other; "
    "orange: one falls as the other rises; blank: unrelated. Synthetic should repeat the pattern of real.",
    most_columns: int = 14,
) -> str:
    """Dependence of all pairs (see `fidelity.association`) in two or three tables, on one scale from -1 to 1.

    If there are more than `most_columns`, those that depend most on others in the real table are shown.
    """
    frames = {"Real": real, "Synthetic": align(real, synthetic, "synthetic")}
    if independent is not None:
        frames["Independent columns"] = align(real, independent, "independent")
    strength = np.abs(association(real)).sum(axis=0)
    chosen = sorted(np.argsort(-strength, kind="stable")[:most_columns].tolist())
    names = [real.columns[i] for i in chosen]
    panels = [figure(title, _heatmap(frame.select(names), title), "") for title, frame in frames.items()]
    key = '<div class="key"><span><i class="fill-b"></i>−1</span><span><i class="none"></i>0</span>'
    key += '<span><i class="full"></i>1</span></div>'
    return f'<div class="grid three">{"".join(panels)}</div>{key}<p class="note">{text(reading, 600)}</p>'


def _histogram(
    first: Floats, second: Floats, label: str, bins: int, dated: pl.DataType | None, tail: float = 0.005
) -> str:
    """Two histograms on one axis, from the lower `tail` of either group to the upper one."""
    groups = [part[np.isfinite(part)] for part in (first, second)]
    pooled = np.concatenate(groups)
    if not len(pooled):
        return '<p class="note">No values.</p>'
    ends = np.array([np.quantile(part, [tail, 1 - tail]) for part in groups if len(part)])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if not low < high:
        low, high = float(pooled.min()), float(pooled.max())
    if not low < high:
        low, high = low - 0.5 * max(1.0, abs(low)), high + 0.5 * max(1.0, abs(high))
    shown = [low, (low + high) / 2, high]
    levels = np.unique(pooled)
    if len(levels) <= bins and (levels == np.round(levels)).all() and levels[-1] - levels[0] < bins:
        low, high = float(levels[0]) - 0.5, float(levels[-1]) + 0.5  # a bin for each of a few whole numbers
        bins = round(high - low)
        shown = [float(levels[0]), (low + high) / 2, float(levels[-1])]
    places = [np.clip(((part - low) / (high - low) * bins).astype(int), 0, bins - 1) for part in groups]
    shares = [np.bincount(place, minlength=bins) / max(len(place), 1) for place in places]
    labels = [_tick(value, dated) for value in shown]
    labels[0] = f"≤ {labels[0]}" if pooled.min() < low else labels[0]
    labels[2] = f"≥ {labels[2]}" if pooled.max() > high else labels[2]
    return _columns(shares[0], shares[1], label, labels)


def _tick(value: float, dated: pl.DataType | None) -> str:
    """A value of the axis, a date as a date."""
    if dated is None or dated == pl.Time or isinstance(dated, pl.Duration):
        return number(value)
    moment = pl.Series([round(value)]).cast(pl.Int32 if dated == pl.Date else pl.Int64).cast(dated)
    return text(moment.dt.strftime("%Y-%m-%d")[0])


def _level_bars(real: pl.Series, synthetic: pl.Series, most: int, name: str) -> str:
    """Shares of the levels of a category in two tables."""
    counts = real.drop_nulls().rename("level").value_counts().sort(["count", "level"], descending=[True, False])
    levels = counts["level"].head(most).to_list()
    known = set(levels)
    rest = any(value is not None and value not in known for part in (real, synthetic) for value in part.unique())
    rows = [(text(level, 18), [(part == level).sum() for part in (real, synthetic)]) for level in levels]
    if rest:
        others = [(part.is_not_null() & ~part.is_in(levels)).sum() for part in (real, synthetic)]
        rows.append(("(others)", others))
    if real.null_count() or synthetic.null_count():
        rows.append(("(missing)", [part.null_count() for part in (real, synthetic)]))
    totals = [max(len(part), 1) for part in (real, synthetic)]
    shares = [[int(count or 0) / total for count, total in zip(pair, totals, strict=True)] for _, pair in rows]
    longest = max((share for pair in shares for share in pair), default=0.0) or 1.0
    lines = []
    for (label, _), (a, b) in zip(rows, shares, strict=True):
        widths = [100 * share / longest for share in (a, b)]
        lines.append(
            f'<li><span class="name">{label}</span>'
            f'<span class="bar pair"><b style="width:{widths[0]:.1f}%"></b>'
            f'<b class="line-b" style="width:{widths[1]:.1f}%"></b></span>'
            f'<span class="value">{100 * a:.1f}<br>{100 * b:.1f}&nbsp;%</span></li>'
        )
    return f'<ul class="bars" aria-label="Shares of the levels of {text(name)}">{"".join(lines)}</ul>'


def _columns(first: Floats, second: Floats, label: str, ticks: Sequence[str]) -> str:
    """Filled columns and an outline, as SVG with a share axis on the left and three ticks below."""
    top = max(float(first.max()), float(second.max())) or 1.0
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    step, base = wide / len(first), HEIGHT - BOTTOM
    parts = [
        f'<rect class="fill-a" x="{LEFT + i * step + 0.5:.1f}" y="{base - share / top * tall:.1f}" '
        f'width="{max(step - 1, 0.5):.1f}" height="{share / top * tall:.1f}"/>'
        for i, share in enumerate(first)
        if share > 0
    ]
    if second.any():
        path = f"M{LEFT} {base}"
        for i, share in enumerate(second):
            path += f"V{base - share / top * tall:.1f}H{LEFT + (i + 1) * step:.1f}"
        parts.append(f'<path class="line-b" d="{path}V{base}"/>')
    parts.append(f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{LEFT - 5}" y="{TOP + 9}" text-anchor="end">{100 * top:.2g}%</text>')
    parts.append(f'<text x="{LEFT - 5}" y="{base}" text-anchor="end">0</text>')
    for anchor, x, tick in zip(("start", "middle", "end"), (LEFT, LEFT + wide / 2, WIDTH - RIGHT), ticks, strict=True):
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{tick}</text>')
    return _svg(WIDTH, HEIGHT, label, "".join(parts))


def _svg(width: float, height: float, label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text(label)}">{body}</svg>'


def _heatmap(frame: pl.DataFrame, title: str) -> str:
    """One panel; rows carry names, columns the numbers of the rows."""
    matrix = association(frame)
    names, left, top = frame.columns, 94, 18
    cell = (HEAT_WIDTH - left - 2) / len(names)
    parts = []
    for i, name in enumerate(names):
        y = top + i * cell
        caption = f"{text(name, 11)} {i + 1}"
        parts.append(f'<text x="{left - 6}" y="{y + cell / 2 + 4:.1f}" text-anchor="end">{caption}</text>')
        parts.append(f'<text x="{left + (i + 0.5) * cell:.1f}" y="{top - 5}" text-anchor="middle">{i + 1}</text>')
        for j, other in enumerate(names):
            value = float(matrix[i, j])
            style = "fill-a" if value >= 0 else "fill-b"
            hint = f"{text(name, 40)} and {text(other, 40)}: {number(value, 2)}"
            parts.append(
                f'<rect class="cell {style}" x="{left + j * cell:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" '
                f'height="{cell - 1:.1f}" fill-opacity="{abs(value):.2f}"><title>{hint}</title></rect>'
            )
    label = f"{title}: dependence of {len(names)} columns"
    return _svg(HEAT_WIDTH, top + cell * len(names) + 2, label, "".join(parts))
