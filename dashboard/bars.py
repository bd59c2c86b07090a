"""Bars of HTML for the first page: drawn with the page itself, while a chart library alone would take longer than everything else on it.

Everything in them is ours, numbers, dates and the four words of severity; nothing comes from data. Hovering over a day says its numbers; the alternative text says the rest.
"""

from __future__ import annotations

from html import escape

import polars as pl

from dashboard.charts import SEVERITY

_HEIGHT = 190  # pixels


def by_day(counts: pl.DataFrame, said: str) -> str:
    """Bars of alerts by day, stacked by severity.

    Args:
        counts: day, severity, alerts; a line for each pair.
        said: the same in words.
    """
    days: dict[object, dict[str, int]] = {}
    for day, severity, alerts in counts.select("day", "severity", "alerts").iter_rows():
        days.setdefault(day, dict.fromkeys(SEVERITY, 0))[severity] += alerts
    shown = [name for name in SEVERITY if any(day[name] for day in days.values())] or ["high"]
    most = max((sum(day.values()) for day in days.values()), default=0) or 1
    columns, labels, month = [], [], None
    for date, severities in days.items():
        total = sum(severities.values())
        parts = ", ".join(f"{severities[name]:,} {name}" for name in shown if severities[name]) or "none"
        blocks = "".join(
            f'<div style="height:{100 * severities[name] / most:.2f}%;min-height:{2 if severities[name] else 0}px;background:{SEVERITY[name]}"></div>'
            for name in reversed(shown)
            if severities[name]
        )
        number = f'<div style="font-size:.72rem;text-align:center;opacity:.8">{_short(total)}</div>' if total else ""
        columns.append(
            f'<div title="{date:%d %b}: {parts}" style="flex:1 1 0;min-width:0;height:100%;display:flex;flex-direction:column;justify-content:flex-end">'
            f"{number}{blocks}</div>"
        )
        above = f"{date:%b}" if f"{date:%b}" != month else ""
        month = f"{date:%b}"
        labels.append(
            f'<div style="flex:1 1 0;min-width:0;text-align:center;font-size:.75rem;line-height:1.25;opacity:.8">{date:%d}<br>{above}</div>'
        )
    legend = "".join(
        f'<span style="margin-right:1rem;white-space:nowrap"><span style="display:inline-block;width:.7rem;height:.7rem;border-radius:2px;background:{SEVERITY[name]};margin-right:.35rem"></span>{name}</span>'
        for name in shown
    )
    row = "display:flex;gap:clamp(2px,.6vw,8px)"
    return (
        f'<div role="img" aria-label="{escape(said)}"><div style="font-size:.85rem;margin-bottom:.5rem">{legend}</div>'
        f'<div style="{row};align-items:flex-end;height:{_HEIGHT}px;padding-top:1rem;border-bottom:1px solid rgba(128,128,128,.5)">{"".join(columns)}</div>'
        f'<div style="{row};margin-top:.25rem">{"".join(labels)}</div></div>'
    )


def _short(number: int) -> str:
    """A number in at most four characters or so."""
    for size, sign in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f}{sign}" if number < 10 * size else f"{number / size:.0f}{sign}"
    return str(number)
