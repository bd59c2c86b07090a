"""What the overview says first, within the document itself: it is there before Streamlit's scripts are loaded, and goes when they have drawn the page.

Plain HTML without data in scripts. It depends on nobody and on no clock: whoever signs in gets none of it (at the first request nobody is known yet), and it says
no time but that of the server, as UTC. `static/first.js` takes it away.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from streamlit import config

from dashboard import access, bars, charts, glance, welcome
from dashboard.text import literal
from tabdiff.errors import TabdiffError

_STATIC = Path(__file__).parent / "static"
_LOGO, _STYLE = ((_STATIC / name).read_text(encoding="utf-8") for name in ("logo.svg", "first.css"))
_COLOURS = ("backgroundColor", "textColor", "borderColor", "linkColor", "sidebar.backgroundColor")
_PAGES = {"Watch": ("anomalies", "series"), "Make": ("synthesize", "models", "data"), "Operate": ("runs",)}
_log = logging.getLogger("tabdiff.dashboard")


def html() -> str:
    """The view; empty if people sign in, if nobody may look, or if there is nothing to see."""
    if access.signs_in() or access.role() is None:
        return ""
    try:
        return "" if welcome.is_empty() else _view(datetime.now(UTC))
    except TabdiffError as error:  # the page says it in words
        _log.warning("the first view is left out: %s", error)
        return ""


def _view(now: datetime) -> str:
    here = '<a href="./" aria-current="page">Overview</a>'
    links = "".join(
        f"<b>{section}</b>{here if section == 'Watch' else ''}"
        + "".join(f'<a href="./{name}">{name.capitalize()}</a>' for name in names)
        for section, names in _PAGES.items()
    )
    return (
        f'<div id="first-view"><style>{_style()}</style>'
        f'<nav aria-label="Pages">{_LOGO}{links}</nav>'
        f"<main><h1>Overview</h1>"
        f'<p class="quiet" role="status">As of {now:%H:%M} UTC. The page is loading.</p>'
        f"{_figures()}<div class=halves><section>{_days()}</section><section>{_stories()}</section></div>{_sources()}</main></div>"
    )


def _figures() -> str:
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value, _ in glance.figures()
    )
    return f"<dl>{cards}</dl>"


def _days() -> str:
    counts = glance.by_day("UTC")
    return f"<h2>Anomalies of {glance.DAYS} days (UTC)</h2>{bars.by_day(counts, charts.describe_days(counts))}"


def _stories() -> str:
    lines = "".join(
        f"<p><b>{told.alerts:,} ×</b> {' · '.join(_safe(each) for each in told.carried)}<br>{', '.join(_safe(each) for each in told.about)}</p>"
        for told in glance.stories()
    )
    return f"<h2>What they tell</h2>{lines or '<p>Nothing is open.</p>'}"


def _sources() -> str:
    shown, more = glance.sources()
    lines = "".join(
        f"<p><b>{_safe(line.state)}</b>: {_safe(line.name)}<br>{_safe(line.why)}{f' ({_safe(line.facts)})' if line.facts else ''}</p>"
        for line in shown
    )
    return f"<h2>Sources</h2>{lines}{f'<p>and {more} more, in no worse state</p>' if more else ''}"


def _safe(value: str) -> str:
    return escape(literal(value))


def _style() -> str:
    """The rules with the colours of both themes, which are those of `.streamlit/config.toml`."""
    light, dark = (
        ";".join(f"--{name.split('.')[-2:][0]}:{config.get_option(f'theme.{theme}.{name}')}" for name in _COLOURS)
        for theme in ("light", "dark")
    )
    return _STYLE.replace("/* light */", light).replace("/* dark */", dark)
