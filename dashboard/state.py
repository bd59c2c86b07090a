"""What a page remembers: the selection in the address, the viewer's clock, and what to say of the last action."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

from dashboard import access, queries, upkeep
from dashboard.text import plain
from tabdiff.errors import TabdiffError

_Arguments = ParamSpec("_Arguments")
_NOTICE = "_notice"
_log = logging.getLogger("tabdiff.dashboard")


@contextmanager
def page(title: str, about: str = "") -> Iterator[None]:
    """Around everything a page shows: heading, the word on the last action, and errors in words."""
    access.require_sign_in()
    st.title(title)
    if about:
        st.caption(about)
    kind, words = st.session_state.pop(_NOTICE, (None, ""))
    if kind == "error":
        st.error(plain(words, 2000))
    elif kind == "done":
        st.toast(plain(words), icon=":material/check_circle:")
    try:
        yield
    except TabdiffError as error:
        st.error(plain(error, 2000))
    upkeep.settle_if_grown()


def action(needed: access.Role) -> Callable[[Callable[_Arguments, str | None]], Callable[_Arguments, None]]:
    """Make a function a callback: it runs for people of this role only; what it returns, or refuses, is said on the next page.

    What was read before is read anew afterwards.
    """

    def wrap(function: Callable[_Arguments, str | None]) -> Callable[_Arguments, None]:
        @functools.wraps(function)
        def run(*args: _Arguments.args, **options: _Arguments.kwargs) -> None:
            try:
                access.allow(needed)
                words = function(*args, **options)
            except TabdiffError as error:
                _log.warning("%s by %s: %s", function.__name__, access.who(), error)
                st.session_state[_NOTICE] = ("error", str(error))
                return
            queries.refresh()
            if words:
                st.session_state[_NOTICE] = ("done", words)

        return run

    return wrap


def selected(name: str, default: str = "") -> str:
    """What the address says is selected."""
    return str(st.query_params.get(name, default))


def select(**chosen: Any) -> None:
    """Put a selection into the address, so that a link leads back to it; None takes it out."""
    for name, value in chosen.items():
        if value is None or value == "":
            st.query_params.pop(name, None)
        elif st.query_params.get(name) != str(value):
            st.query_params[name] = str(value)


def zone() -> ZoneInfo:
    """The viewer's time zone; UTC if the browser does not say."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")


def local(moment: datetime | None, style: str = "%d %b %Y, %H:%M") -> str:
    """A moment on the viewer's clock."""
    return "" if moment is None else moment.astimezone(zone()).strftime(style)


def local_span(first: datetime, last: datetime) -> str:
    """A stretch of time on the viewer's clock, to the minute."""
    begin, end = local(first), local(last)
    if begin == end:
        return begin
    same = local(first, "%d %b %Y") == local(last, "%d %b %Y")
    return f"{begin} to {local(last, '%H:%M' if same else '%d %b %H:%M')}"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in one unit."""
    if moment is None:
        return "never"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    for size, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {name}{'s' if number > 1 else ''} ago"
    return "just now"


def lasting(span: timedelta) -> str:
    """How long something took, in one or two units."""
    minutes = round(span.total_seconds() / 60)
    if minutes < 1:
        return f"{span.total_seconds():.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"
