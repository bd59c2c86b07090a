"""Draw synthetic rows: set what they shall be like, see some at once, draw the full set as a flow, judge it and take it along."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboard import access, drawing, forms, pictures, queries, records, sets, work
from dashboard.state import action, page, select, selected
from dashboard.text import literal, plain
from tabdiff.errors import TabdiffError
from tabdiff.operations.jobs import SynthesizeJob


@action("analyst")
def start(job: SynthesizeJob) -> str:
    """Draw the full set as a flow."""
    select(set=None)
    return work.begin("synthesize", job, "synthesize")


def choose() -> tuple[str, int, dict[str, Any]] | None:
    """The version that draws, and what its folder says; None if there is no model."""
    every = [version for version in records.versions() if version["folder"] and not version["series"]]
    if not every:
        st.info("There is no model of a table yet. Register a source and start training on the page Data.")
        return None
    names = sorted({version["model"] for version in every})
    wanted = selected("model", names[0])
    left, right = st.columns([2, 1])
    name = left.selectbox("Model", names, index=names.index(wanted) if wanted in names else 0, key="draw_model")
    mine = [version for version in every if version["model"] == name]
    numbers = [version["version"] for version in mine]
    champion = next((v["version"] for v in mine if "champion" in v["aliases"]), numbers[0])
    asked = selected("version") if wanted == name else ""
    start_at = int(asked) if asked.isdecimal() and int(asked) in numbers else champion
    version = right.selectbox(
        "Version",
        numbers,
        index=numbers.index(start_at),
        format_func=lambda number: f"{number}, in service" if number == champion else str(number),
        key=f"draw_version-{name}",
    )
    if name != wanted:
        select(job=None, set=None, run=None)
    select(model=name, version=version)
    return name, version, records.passport(name, version)


def show_preview(folder: str, job: SynthesizeJob) -> None:
    """Some rows at once, and one column beside real rows."""
    with st.spinner("Drawing a preview"):
        drawn, copies, engine = drawing.preview(folder, job)
    st.caption(f"The first {drawn.height:,} rows, drawn here by {plain(engine)}. {plain(copies['found'])}.")
    short = [literal(name, 30) for name in drawn.columns]
    shown = drawn.rename(dict(zip(drawn.columns, short, strict=True))) if len(set(short)) == len(short) else drawn
    st.dataframe(shown, height=300, alt="Preview of synthetic rows")
    column = st.selectbox("Column in the chart", drawn.columns, format_func=literal, key=f"chart-{job.model}")
    real = drawing.real_values(folder, job.model_dump_json(), column)
    st.altair_chart(pictures.compared(drawn[column], real), alt="Shares of values in synthetic and in real rows")
    if job.balance and real:
        st.caption("The real rows are as they are, not balanced.")
    elif not real:
        st.caption(
            "Hardly any row that the model was not fitted on meets the conditions, so there is nothing to compare with."
        )


def full(name: str, version: int, job: SynthesizeJob | None) -> None:
    """Start the full set; follow it; find it."""
    may_draw = access.may("analyst")
    words = f"Draw all {job.rows:,} rows" if job is not None else "Draw all rows"
    st.button(
        words,
        type="primary",
        key="draw_full",
        on_click=start,
        args=(job,),
        disabled=job is None or not may_draw,
        icon=":material/auto_awesome:",
    )
    if not may_draw:
        st.caption("Drawing a full set needs the role analyst.")
    run_id = work.followed()
    if not run_id:
        work.say_trouble()
        return
    with st.container(border=True):
        run = work.follow(run_id)
    if run is None or run.kind_of_state != "COMPLETED" or selected("set"):
        return
    try:
        asked: SynthesizeJob = SynthesizeJob.of(**run.job)
        which = queries.workspace().models.get(asked.model, asked.version or "champion")
        made = queries.workspace().find_synthetic(which.id, asked.digest("model", "version"))
    except TabdiffError:
        return
    if made is not None:
        select(set=made["id"])


def main() -> None:
    """The page."""
    picked = choose()
    if picked is None:
        return
    name, version, found = picked
    left, right = st.columns([5, 7], gap="large")
    job: SynthesizeJob | None = None
    with left:
        try:
            job = forms.form(name, version, found)
        except TabdiffError as error:
            st.info(plain(error, 600), icon=":material/tune:")
    with right:
        st.subheader("Preview")
        if job is not None:
            select(job=drawing.to_address(job))
            try:
                show_preview(found["folder"], job)
            except TabdiffError as error:
                st.error(plain(error, 1200))
                job = None
        full(name, version, job)
    st.divider()
    sets.show(name)


with page("Synthesize", "Rows like the real ones: with conditions, balanced, tested for copies."):
    main()
