"""Overview: is everything fresh, what is odd, which models are in service."""

from __future__ import annotations

import streamlit as st

from dashboard import bars, charts, glance, queries, triage, welcome
from dashboard.state import ago, local, local_span, page, zone
from dashboard.text import plain
from tabdiff.store.ledger import in_words


def _numbers() -> None:
    with st.container(horizontal=True):
        for name, value, means in glance.figures():
            st.metric(name, value, border=True, help=means or None)


def _anomalies() -> None:
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader(f"Anomalies of {glance.DAYS} days")
        counts = glance.by_day(str(zone()))
        st.html(bars.by_day(counts, charts.describe_days(counts)))
    with right:
        st.subheader("What they tell")
        stories = glance.stories()
        if not stories:
            st.write("Nothing is open.")
        for told in stories:
            carried = " · ".join(plain(each, 70) for each in told.carried)
            about = ", ".join(plain(each, 40) for each in told.about)
            st.markdown(f"**{told.alerts:,} ×** {carried}  \n{about}, {plain(local_span(*told.span))}")
        st.page_link("pages/anomalies.py", label="Work through them", icon=":material/troubleshoot:")


def _sources() -> None:
    st.subheader("Sources")
    shown, more = glance.sources()
    for line in shown:
        facts = f" ({line.facts})" if line.facts else ""
        st.markdown(f"**{line.state}**: {plain(line.name)}  \n{plain(line.why)}{facts}")
    if more:
        st.caption(f"and {more} more, in no worse state")
    plan, timezone = triage.schedules()
    if plan:
        st.subheader("Schedules")
    for each in plan:
        last = f"last run {local(each['last'])}, {each['status']}" if each["last"] else "never ran"
        st.markdown(
            f"**{plain(each['name'])}**: {plain(each['flow'])} {plain(each['of'])}, {plain(each['when'])} ({plain(timezone)})  \n{plain(last)}"
        )


def _results() -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Models in service")
        models = triage.in_service()
        for line in models:
            others = f", of {line['versions']} versions" if line["versions"] > 1 else ""
            st.markdown(f"**{plain(line['model'])}** version {line['version']}{others}  \nfitted {ago(line['since'])}")
        if not models:
            st.write("None yet.")
        st.page_link("pages/models.py", label="All models", icon=":material/deployed_code:")
    with right:
        st.subheader("Last synthetic sets")
        sets = triage.synthetic_sets()[:5]
        for found in sets:
            st.markdown(
                f"**{found['rows']:,} rows** like {plain(found['model'])} version {found['version']}  \ndrawn {ago(found['created'])}"
            )
        if not sets:
            st.write("None yet.")
        st.page_link("pages/synthesize.py", label="Draw another", icon=":material/auto_awesome:")
    findings = triage.findings()
    if findings:
        st.subheader("Findings")
        for event in findings:
            what = f"{event['kind'].replace('_', ' ')} of {event['subject']}"
            st.markdown(
                f"**{plain(event['severity'])}**: {plain(what)}, {plain(local(event['created']))}  \n{plain(in_words(event['detail']), 400)}"
            )


with page("Overview"):
    workspace = queries.workspace()
    if welcome.is_empty():
        welcome.greet(workspace)
    else:
        welcome.watch_demo(workspace)
        _numbers()
        _anomalies()
        _sources()
        _results()
