"""Before the first visitor: import what pages need, ask what the first page asks, and load the model of the most severe alert."""

from __future__ import annotations

import importlib
import logging
import threading

from dashboard import queries, triage, upkeep, welcome
from tabdiff.errors import TabdiffError
from tabdiff.store.triage import Filter

_MODULES = (
    "altair",
    "pandas",
    "pyarrow",
    "dashboard.alert",
    "dashboard.lanes",
    "dashboard.forms",
    "dashboard.sets",
    "dashboard.records",
)
_log = logging.getLogger("tabdiff.dashboard")


def up() -> None:
    """What the first page needs, at once; what the first alert needs, beside the first visitors."""
    for name in _MODULES:
        importlib.import_module(name)
    try:
        _ask()
    except TabdiffError as error:
        _log.warning("the workspace cannot be read yet: %s", error)
        return
    upkeep.settle()
    threading.Thread(target=_explain, name="warm-up", daemon=True).start()


def _ask() -> None:
    """What every visitor of the overview asks, whatever their clock."""
    if welcome.is_empty():
        return
    for chosen in (Filter(), Filter(severities=("high",))):
        triage.count(chosen)
    triage.stories(Filter())
    for ask in (
        triage.health,
        triage.in_service,
        triage.names,
        triage.schedules,
        triage.synthetic_sets,
        triage.findings,
    ):
        ask()


def _explain() -> None:
    """Explain what people look at first, so that the engine is there when they do."""
    try:
        for number in triage.numbers(Filter(kind="row"))[:1]:
            triage.explained(number)
    except Exception as error:  # the page says it in words when somebody asks
        _log.warning("the most severe alert could not be explained beforehand: %s", error)
    queries.workspace()
    upkeep.settle_if_grown()
