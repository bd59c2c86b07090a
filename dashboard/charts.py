"""Charts as pure functions: values in, a specification out. Colours are told apart by colour-blind readers, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

# Okabe & Ito (2008). Severity is never told by colour alone: order and words say the same.
SEVERITY = {"high": "#D55E00", "medium": "#E69F00", "low": "#56B4E9", "unrated": "#8a97a5"}
ACTUAL, EXPECTED, QUIET = "#D55E00", "#0072B2", "#8a97a5"
Chart = Any  # Altair's layers have a type for each way of being put together
_FARTHEST = 25.0  # widths of an interval; what lies farther is drawn there
_LABEL = 260  # pixels for names of columns


def _data(rows: Sequence[Mapping[str, Any]]) -> Any:
    return alt.Data(values=list(rows))  # type: ignore[no-untyped-call]


def describe_days(counts: pl.DataFrame) -> str:
    """Alerts by day, in words."""
    total = counts.group_by("day").agg(pl.col("alerts").sum()).sort("alerts", descending=True)
    if not total["alerts"].sum():
        return "Bar chart of alerts by day: none in this time."
    day, most = total.row(0)
    return f"Bar chart of alerts by day and severity: {total['alerts'].sum()} in all, most on {day:%d %B} ({most})."


def contributions(parts: Mapping[str, float], most: int = 12) -> Chart:
    """Bars of the columns that carry a score, largest first; the rest together."""
    order = sorted(parts.items(), key=lambda pair: -pair[1])
    total = sum(max(value, 0.0) for value in parts.values()) or 1.0
    rows = [{"column": name, "share": max(value, 0.0) / total} for name, value in order[:most]]
    rest = sum(max(value, 0.0) for _, value in order[most:]) / total
    rows += [{"column": f"{len(order) - most} others", "share": rest}] if rest > 0 else []
    names = [str(row["column"]) for row in rows]
    base = alt.Chart(_data(rows)).encode(
        y=alt.Y("column:N", sort=names, title=None, axis=alt.Axis(labelLimit=_LABEL, labelOverlap=False)),
        x=alt.X("share:Q", title="part of the score", axis=alt.Axis(format=".0%", tickCount=5)),
        tooltip=[alt.Tooltip("column:N"), alt.Tooltip("share:Q", format=".1%")],
    )
    return base.mark_bar(color=ACTUAL, cornerRadius=2, height={"band": 0.7}).properties(
        height=max(130, 28 * len(rows) + 70)
    )


def describe_contributions(parts: Mapping[str, float]) -> str:
    """What `contributions` shows, in words."""
    total = sum(max(value, 0.0) for value in parts.values()) or 1.0
    order = sorted(parts.items(), key=lambda pair: -pair[1])[:3]
    return "Bar chart of parts of the score: " + ", ".join(f"{name} {max(v, 0) / total:.0%}" for name, v in order) + "."


_BACK = "format(pow(10, datum.value) - 1, ',.2~s')"  # from log10(1 + x) to x


def _ticks(end: float) -> list[float]:
    """Places of 0, 1, 3, 10, 30, ... on a scale of log10(1 + x) up to its end."""
    values = [0, *(digit * 10**power for power in range(9) for digit in (1, 3))]
    return [place for value in values if (place := math.log10(1 + value)) <= end]


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    thresholds: Mapping[str, float],
    judged: Sequence[tuple[float, bool]],
    what: str = "rows",
) -> Chart:
    """Scores on a log scale with thresholds as lines and judged alerts as marks.

    Args:
        edges: of log10(1 + score).
        counts: rows in each bin.
        thresholds: scores, by what they are called.
        judged: (score, whether confirmed).
        what: is counted.
    """
    bars = [
        {"low": low, "high": high, "rows": count, "drawn": math.log10(1 + count), "zero": 0, "from": 10**low - 1}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    axis = alt.Axis(labelExpr=_BACK, values=_ticks(edges[-1]), grid=False)
    left = (
        alt.Chart(_data(bars))
        .mark_bar(color=EXPECTED, opacity=0.75)
        .encode(
            x=alt.X("low:Q", title="score (log scale)", axis=axis, scale=alt.Scale(nice=False)),
            x2="high:Q",
            y2="zero:Q",
            y=alt.Y(
                "drawn:Q",
                title=f"{what} (log scale)",
                axis=alt.Axis(labelExpr=_BACK, values=_ticks(math.log10(1 + max(counts)))),
            ),
            tooltip=[
                alt.Tooltip("from:Q", format=".3~r", title="score from"),
                alt.Tooltip("rows:Q", format=",", title=what),
            ],
        )
    )
    lines = [
        {"at": math.log10(1 + max(value, 0.0)), "name": name}
        for name, value in thresholds.items()
        if math.isfinite(value)
    ]
    rules = (
        alt.Chart(_data(lines))
        .mark_rule(color=ACTUAL, strokeWidth=2)
        .encode(x="at:Q", strokeDash=alt.StrokeDash("name:N", legend=alt.Legend(orient="top", title=None)))
    )
    marks = [
        {"at": math.log10(1 + max(score, 0.0)), "verdict": "confirmed" if fine else "false alarm", "y": 0.0}
        for score, fine in judged[-500:]
    ]
    points = (
        alt.Chart(_data(marks))
        .mark_point(size=60, filled=True, opacity=0.8)
        .encode(
            x="at:Q",
            y="y:Q",
            shape=alt.Shape(
                "verdict:N",
                scale=alt.Scale(domain=["confirmed", "false alarm"], range=["triangle-up", "circle"]),
                legend=alt.Legend(orient="top", title=None),
            ),
            color=alt.Color(
                "verdict:N",
                scale=alt.Scale(domain=["confirmed", "false alarm"], range=[ACTUAL, "#009E73"]),
                legend=alt.Legend(orient="top", title=None),
            ),
        )
    )
    return alt.layer(left, rules, *([points] if marks else [])).properties(height=260)


def interval(reasons: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Numbers beside what was expected of them: the interval as a bar, the value as a mark, in widths of the interval.

    None if no column is a number.
    """
    rows = []
    for reason in reasons:
        try:
            value, low, high, middle = (float(reason[name]) for name in ("value", "low", "high", "expected"))
        except (TypeError, ValueError):
            continue
        width = max(high - low, abs(middle) * 1e-6, 1e-12)
        place = (value - middle) / width
        rows.append(
            {
                "column": reason["column"],
                "place": max(-_FARTHEST, min(_FARTHEST, place)),
                "low": (low - middle) / width,
                "high": (high - middle) / width,
                "said": f"{value:.5g} (expected {low:.5g} to {high:.5g})",
            }
        )
    if not rows:
        return None
    data, names = _data(rows), [row["column"] for row in rows]
    y = alt.Y("column:N", sort=names, title=None, axis=alt.Axis(labelLimit=_LABEL, labelOverlap=False))
    title = "distance in expected intervals (80 %)"
    band = (
        alt.Chart(data)
        .mark_bar(color=EXPECTED, opacity=0.55, height=14, cornerRadius=3)
        .encode(
            y=y,
            x=alt.X("low:Q", title=title, axis=alt.Axis(tickCount=6)),
            x2="high:Q",
            tooltip=[alt.Tooltip("said:N", title="value")],
        )
    )
    mark = (
        alt.Chart(data)
        .mark_point(shape="diamond", filled=True, size=130, color=ACTUAL, opacity=1)
        .encode(y=y, x="place:Q", tooltip=[alt.Tooltip("said:N", title="value")])
    )
    return alt.layer(band, mark).properties(height=max(100, 36 * len(rows) + 50))
