"""What pages share that start work: the connection to Prefect, what to say when nothing runs, and a run that is followed to its end."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import streamlit as st

from dashboard import access, queries
from dashboard.jobs import FlowRun, Jobs, Kind
from dashboard.state import action, local, selected
from dashboard.text import literal, plain
from tabdiff.errors import ConfigError, TabdiffError
from tabdiff.operations.jobs import MonitorJob, ScoreJob, SynthesizeJob, TrainJob

_EVERY = 2.0  # seconds between two looks at a run
_SIGNS = {
    "COMPLETED": ("Done", ":material/check_circle:"),
    "FAILED": ("Failed", ":material/error:"),
    "CRASHED": ("Crashed", ":material/error:"),
    "CANCELLED": ("Cancelled", ":material/cancel:"),
    "CANCELLING": ("Being cancelled", ":material/cancel:"),
    "RUNNING": ("Running", ":material/sync:"),
    "PENDING": ("Starting", ":material/schedule:"),
    "SCHEDULED": ("Waiting", ":material/schedule:"),
    "PAUSED": ("Paused", ":material/pause_circle:"),
}
Job = TrainJob | ScoreJob | SynthesizeJob | MonitorJob


def jobs() -> Jobs:
    """The flow runs of this workspace."""
    return _jobs(
        str(queries.workspace().home), os.environ.get("PREFECT_API_URL"), os.environ.get("TABDIFF_PREFECT_AUTH")
    )


@functools.lru_cache(maxsize=4)
def _jobs(home: str, address: str | None, auth: str | None) -> Jobs:
    return Jobs(queries.workspace().home)


@st.cache_data(ttl=5, max_entries=8, show_spinner=False)
def _trouble(home: str, address: str, changes: int) -> str:
    return jobs().trouble()


def trouble() -> str:
    """Why nothing would run now, at most seconds old; empty if all is well."""
    return str(_trouble(str(queries.workspace().home), jobs().address, 0))


def say_trouble() -> bool:
    """Say so if nothing would run now; whether something is wrong."""
    words = trouble()
    if words:
        sentence, colon, command = words.rpartition(": ")
        is_command = bool(colon) and command.startswith("tabdiff ")
        st.warning(plain(f"{sentence}:" if is_command else words, 600), icon=":material/power_off:")
        if is_command:
            st.code(command, language=None)
    return bool(words)


def begin(kind: Kind, job: Job, page: str) -> str:
    """Start a flow and remember the run for this page; call it in an action.

    Raises:
        RuntimeUnavailable: no Prefect server answers, or no process serves flows.
        StoreError, ConfigError: the server refuses.
    """
    run = jobs().start(kind, job, author=access.who())
    st.session_state[f"_{page}_run"] = run.id
    st.query_params["run"] = run.id
    _trouble.clear()
    return f"Started {kind}. It goes on if you leave this page."


def followed() -> str:
    """The run that the address names."""
    return selected("run")


def state_words(run: FlowRun) -> str:
    """The state in a word of ours, or Prefect's own."""
    words = _SIGNS.get(run.kind_of_state, (run.state, ""))[0]
    return "Late: nobody has taken it up" if run.state == "Late" else words


def subject(run: FlowRun) -> str:
    """What a run is about."""
    source, model = run.job.get("source"), run.job.get("model")
    return literal(" → ".join(str(part) for part in (source, model) if part) or run.name)


def seconds_words(seconds: float) -> str:
    """A duration in at most two units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def follow(run_id: str, *, log: bool = False) -> FlowRun | None:
    """Show a run: state, progress, log, what can be done. Looks again by itself while it is alive; None if it cannot be shown."""
    try:
        run = jobs().get(run_id)
    except TabdiffError as error:
        st.caption(plain(error, 600))
        return None
    every = _EVERY if run.alive else None
    st.fragment(_show, run_every=every)(run_id, log)
    return run


def _show(run_id: str, log: bool) -> None:
    try:
        run = jobs().get(run_id)
        share = jobs().progress([run]).get(run.id)
        lines = jobs().log(run) if log else []
    except TabdiffError as error:
        st.caption(plain(error, 600))
        return
    if not run.alive and st.session_state.get("_alive") == run_id:
        st.session_state.pop("_alive")
        queries.refresh()
        st.rerun()
    if run.alive:
        st.session_state["_alive"] = run_id
    _head(run, share)
    if log:
        text = "\n".join(f"{local(when, '%H:%M:%S')}  {literal(line, 400)}" for when, line in lines)
        st.code(text or "The log is empty so far.", language=None, height=260, wrap_lines=True)
    _buttons(run)


def _head(run: FlowRun, share: float | None) -> None:
    words, sign = state_words(run), _SIGNS.get(run.kind_of_state, ("", ""))[1]
    line = f"{sign} **{plain(words)}** · {plain(run.kind)} {plain(subject(run))}"
    if run.started is not None:
        line += f" · {plain(seconds_words(run.seconds))}"
    if run.author:
        line += f" · by {plain(run.author)}"
    st.markdown(line)
    if run.alive:
        st.progress(
            share if share is not None else 0.0,
            text=f"{100 * share:.0f} %" if share is not None else "no word on progress yet",
        )
    if run.waiting and trouble():
        say_trouble()
    if run.failed and run.message:
        st.error(plain(run.reason, 2000))


def _buttons(run: FlowRun) -> None:
    with st.container(horizontal=True):
        st.link_button("Open in Prefect", run.url, icon=":material/open_in_new:")
        if run.alive:
            st.button(
                "Cancel",
                key=f"cancel-{run.id}",
                on_click=cancel,
                args=(run.id,),
                icon=":material/cancel:",
                disabled=not access.may("analyst"),
            )
        elif run.job:
            st.button(
                "Run again",
                key=f"retry-{run.id}",
                on_click=retry,
                args=(run.id,),
                icon=":material/replay:",
                disabled=not access.may("analyst"),
            )


@action("analyst")
def cancel(run_id: str) -> str:
    """Ask for the end of a run."""
    run = jobs().get(run_id)
    access.allow(needed(run.kind))
    jobs().cancel(run)
    return f"{run.name} is being cancelled."


@action("analyst")
def retry(run_id: str) -> str:
    """Run a job again."""
    run = jobs().get(run_id)
    access.allow(needed(run.kind))
    new = jobs().retry(run, author=access.who())
    st.query_params["run"] = new.id
    return "Started again, as a new run."


def needed(kind: str) -> access.Role:
    """The role that may start, cancel or repeat a kind of job.

    Raises:
        ConfigError: it is none of ours.
    """
    if kind not in ("train", "score", "synthesize", "monitor"):
        raise ConfigError("this run is no flow of tabdiff; look after it in Prefect.")
    return "admin" if kind == "train" else "analyst"


def shown_json(values: Any) -> None:
    """Plain values as text, never as Markdown."""
    st.code(json.dumps(values, indent=1, ensure_ascii=False, default=str)[:20_000], language="json", wrap_lines=True)
