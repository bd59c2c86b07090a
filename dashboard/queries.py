"""What pages read from the workspace. Functions take a workspace; pages call them without, and get what is at most seconds old.

Only aggregates and at most 1,000 rows are kept. An action calls `refresh`, so that people see what they did.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import streamlit as st

from tabdiff.store import Workspace

MOST_ROWS = 1000
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_changes = {"count": 0}  # of this process; part of every key


def workspace() -> Workspace:
    """The workspace of TABDIFF_HOME and TABDIFF_DATABASE_URL, opened once.

    Raises:
        StoreError: there is none yet, or it is out of reach.
    """
    return _open(os.environ.get("TABDIFF_HOME"), os.environ.get("TABDIFF_DATABASE_URL"))


@functools.lru_cache(maxsize=8)
def _open(home: str | None, url: str | None) -> Workspace:
    return Workspace.open()


class Cached(Generic[_Arguments, _Result]):
    """A question to the workspace whose answer is kept for some seconds. `of` asks a workspace directly."""

    def __init__(self, function: Callable[Concatenate[Workspace, _Arguments], _Result], seconds: float) -> None:
        self.of = function
        functools.update_wrapper(self, function)

        @st.cache_data(ttl=seconds, max_entries=300, show_spinner=False)
        def ask(name: str, home: str, changes: int, args: Any, options: Any) -> _Result:
            return function(workspace(), *args, **options)

        self._ask = ask

    def __call__(self, *args: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        """The answer of the workspace of the environment."""
        where = workspace()
        name = f"{self.of.__module__}.{self.of.__qualname__}"
        return self._ask(name, f"{where.home} {where.database.engine.url}", _changes["count"], args, options)


def cached(
    seconds: float = 15.0,
) -> Callable[[Callable[Concatenate[Workspace, _Arguments], _Result]], Cached[_Arguments, _Result]]:
    """Make a function of a workspace a `Cached` question."""
    return lambda function: Cached(function, seconds)


def refresh() -> None:
    """Ask everything anew from now on."""
    _changes["count"] += 1
