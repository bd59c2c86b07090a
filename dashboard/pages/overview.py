"""Overview: is everything fresh, what is odd, which models are in service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import streamlit as st

from dashboard import charts, queries, triage, welcome
from dashboard.state import ago, local, page, zone
from dashboard.text import literal, plain
from tabdiff.store.triage import Filter

_DAYS = 14


def _numbers() -> None:
    health, models = triage.health(), triage.in_service()
    fine = sum(line["state"] == "fine" for line in health)
    with st.container(horizontal=True):
        st.metric("Open anomalies", f"{triage.count(Filter()):,}", border=True)
        st.metric("of high severity", f"{triage.count(Filter(severities=('high',))):,}", border=True)
        st.metric("Sources fine", f"{fine} of {len(health)}", border=True)
        st.metric("Rows scored", f"{sum(line['rows'] for line in health):,}", border=True)
        st.metric("Models in service", len(models), border=True)


def _anomalies() -> None:
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader(f"Anomalies of {_DAYS} days")
        since = datetime.now(UTC) - timedelta(days=_DAYS + 1)
        midnight = since.replace(minute=0, second=0, microsecond=0)  # the same question for an hour, so that it is kept
        counts = triage.by_day(Filter(state="all", since=midnight), str(zone()), _DAYS)
        st.altair_chart(charts.alerts_by_day(counts), alt=charts.describe_days(counts))
    with right:
        st.subheader("What they tell")
        stories = triage.stories(Filter())
        if not stories:
            st.write("Nothing is open.")
        for story in stories[:5]:
            carried = " · ".join(f"{plain(name, 40)} {plain(how, 30)}" for name, how in story.carried_by[:3])
            first, last = story.span
            when = (
                local(first)
                if first == last
                else f"{local(first)} to {local(last, '%H:%M' if first.date() == last.date() else '%d %b %H:%M')}"
            )
            who = ", ".join(plain(name, 40) for name, _ in story.entities[:2]) or plain(story.alerts[0]["source"])
            st.markdown(f"**{len(story.alerts)} ×** {carried}  \n{who}, {plain(when)}")
        st.page_link("pages/anomalies.py", label="Work through them", icon=":material/troubleshoot:")


def _sources() -> None:
    st.subheader("Sources")
    lines = [
        {
            "Source": literal(line["source"]),
            "Model": literal(line["model"] or "none"),
            "State": triage.STATES[line["state"]],
            "Why": literal(line["why"] or "scored, and like the rows of the fit"),
            "Rows": line["rows"],
            "Scored": line["scored"],
            "Watched": line["watched"],
        }
        for line in triage.health()
    ]
    time = st.column_config.DatetimeColumn(timezone=str(zone()), format="D MMM YYYY, HH:mm", width="medium")
    columns = {"Scored": time, "Watched": time, "Why": st.column_config.TextColumn(width="large")}
    st.dataframe(pl.DataFrame(lines), hide_index=True, column_config=columns, alt="Table of sources with their state")
    plan, timezone = triage.schedules()
    if plan:
        st.subheader("Schedules")
        rows = [
            {
                "Schedule": literal(line["name"]),
                "Runs": line["flow"],
                "Of": literal(line["of"]),
                "When": literal(f"{line['when']} ({timezone})"),
                "Last run": line["last"],
                "Ended": literal(line["status"]),
            }
            for line in plan
        ]
        st.dataframe(pl.DataFrame(rows), hide_index=True, column_config={"Last run": time}, alt="Table of schedules")


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
        rows = [
            {
                "When": event["created"],
                "Severity": literal(event["severity"]),
                "What": literal(event["kind"].replace("_", " ")),
                "Of": literal(event["subject"]),
                "Details": literal(
                    "; ".join(map(str, event["detail"].get("findings", [])))
                    or event["detail"].get("reason")
                    or event["detail"],
                    400,
                ),
            }
            for event in findings
        ]
        time = st.column_config.DatetimeColumn(timezone=str(zone()), format="D MMM YYYY, HH:mm", width="medium")
        columns = {"When": time, "Details": st.column_config.TextColumn(width="large")}
        st.dataframe(pl.DataFrame(rows), hide_index=True, column_config=columns, alt="Table of findings, newest first")


with page("Overview"):
    workspace = queries.workspace()
    if welcome.is_empty(workspace):
        welcome.greet(workspace)
    else:
        welcome.watch_demo(workspace)
        _numbers()
        _anomalies()
        _sources()
        _results()
