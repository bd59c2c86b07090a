"""What ran, what runs, what is due: flows of Prefect, and what the workspace itself recorded."""

from __future__ import annotations

from typing import Any

import polars as pl
import streamlit as st

from dashboard import records, work
from dashboard.jobs import KINDS, FlowRun
from dashboard.state import local, page, select, selected
from dashboard.text import literal, plain
from tabdiff.errors import TabdiffError

_ALL = "all kinds"


def flows() -> None:
    """Runs of flows, and one of them in full."""
    kind = st.selectbox(
        "Kind", [_ALL, *KINDS], index=_kind_index(), key="runs_kind", on_change=_kind_changed, width=220
    )
    try:
        runs = work.jobs().latest(100, kind=next((each for each in KINDS if each == kind), None))
        due = work.jobs().upcoming(5)
    except TabdiffError:
        work.say_trouble()
        return
    work.say_trouble()
    if not runs:
        st.info("No flow has run yet. Start one on the pages Data and Synthesize, or schedule one in flows.toml.")
    else:
        _table(runs)
    if due:
        with st.expander(f"Due next: {len(due)}"):
            shown = [{"Due": local(run.due), "What": run.kind, "About": work.subject(run)} for run in due]
            st.dataframe(pl.DataFrame(shown), hide_index=True)


def _table(runs: list[FlowRun]) -> None:
    chosen = work.followed()
    rows = [
        {
            "State": work.state_words(run),
            "What": literal(run.kind),
            "About": work.subject(run),
            "Started": local(run.started or run.due),
            "Took": work.seconds_words(run.seconds) if run.started else "",
            "By": literal(run.author or "schedule"),
        }
        for run in runs
    ]
    picked = st.dataframe(
        pl.DataFrame(rows),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="runs_table",
        height=min(33 * len(rows) + 37, 420),
        alt="Runs of flows, newest first",
    )
    places = picked["selection"]["rows"]
    if places and places[0] < len(runs) and st.session_state.get("runs_picked") != (places, runs[places[0]].id):
        st.session_state["runs_picked"] = (places, runs[places[0]].id)
        chosen = runs[places[0]].id
        select(run=chosen)
    if not chosen:
        st.caption("Choose a run to see its log, and to cancel it or run it again.")
        return
    with st.container(border=True):
        run = work.follow(chosen, log=True)
        if run is not None and run.job:
            with st.expander("Options of the job"):
                work.shown_json(run.job)


def recorded() -> None:
    """Runs as the workspace knows them, those of the command line too."""
    found = records.workspace_runs()
    if not found:
        st.info("Nothing has run in this workspace yet.")
        return
    rows = [_row(run) for run in found]
    picked = st.dataframe(
        pl.DataFrame(rows),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="recorded_table",
        height=min(33 * len(rows) + 37, 420),
        alt="Runs that the workspace recorded, newest first",
    )
    places = picked["selection"]["rows"]
    if places and places[0] < len(found):
        run = found[places[0]]
        st.markdown(f"**Run {run['id']}** · {plain(run['kind'])} {plain(run['subject'])} · {plain(run['status'])}")
        if run["error"]:
            st.error(plain(run["error"], 2000))
        if run["result"]:
            work.shown_json(run["result"])


def _row(run: dict[str, Any]) -> dict[str, Any]:
    took = (run["ended"] - run["started"]).total_seconds() if run["ended"] else None
    return {
        "Run": run["id"],
        "Status": run["status"],
        "What": run["kind"],
        "About": literal(run["subject"].replace(":", " → ")),
        "Started": local(run["started"]),
        "Took": "" if took is None else work.seconds_words(took),
        "Rows": run["rows"],
        "Error": literal(run["error"] or "", 120) if run["error"] else "",
    }


def _kind_index() -> int:
    named = selected("kind")
    return KINDS.index(named) + 1 if named in KINDS else 0


def _kind_changed() -> None:
    kind = st.session_state["runs_kind"]
    select(kind=None if kind == _ALL else kind)


with page("Runs", "Flows that Prefect runs, and what the workspace recorded of every run."):
    first, second = st.tabs(["Flows", "Record of the workspace"])
    with first:
        flows()
    with second:
        recorded()
