"""Overview: is everything fresh, what is odd, which models are in service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import streamlit as st

from dashboard import bars, charts, queries, triage, welcome
from dashboard.state import ago, local, page, zone
from dashboard.text import plain, table
from tabdiff.store.ledger import in_words
from tabdiff.store.triage import Filter

_DAYS = 14
_LINES = 50  # of a table


def _numbers() -> None:
    health, models = triage.health(), triage.in_service()
    fine = sum(line["state"] == "fine" for line in health)
    with st.container(horizontal=True):
        st.metric("Open anomalies", f"{triage.count(Filter()):,}", border=True)
        if events := triage.count(Filter(kind="event")) + triage.count(Filter(kind="silent")):
            st.metric(
                "of them events",
                f"{events:,}",
                border=True,
                help="Stretches of a series, and sensors that fell silent.",
            )
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
        st.html(bars.by_day(counts, charts.describe_days(counts)))
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
    lines = triage.health()
    for line in lines[:_LINES]:
        name = plain(line["source"]) + (f" by {plain(line['model'])}" if line["model"] else ", no model")
        facts = f"{line['rows']:,} rows, scored {ago(line['scored'])}, watched {ago(line['watched'])}"
        like = (
            ", and like the rows of the fit"
            if line["watched"]
            else "; nobody looked for drift yet (tabdiff run monitor)"
        )
        why = plain(line["why"] or f"scored{like}")
        st.markdown(f"**{triage.STATES[line['state']]}**: {name}  \n{why} ({facts})")
    if len(lines) > _LINES:
        st.caption(f"and {len(lines) - _LINES} more, in no worse state")
    plan, timezone = triage.schedules()
    if plan:
        st.subheader("Schedules")
        rows = [
            {
                "Schedule": plain(line["name"]),
                "Runs": plain(line["flow"]),
                "Of": plain(line["of"]),
                "When": plain(f"{line['when']} ({timezone})"),
                "Last run": plain(local(line["last"]) or "never"),
                "Ended": plain(line["status"]),
            }
            for line in plan
        ]
        st.markdown(table(rows))


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
                "When": plain(local(event["created"])),
                "Severity": plain(event["severity"]),
                "What": plain(event["kind"].replace("_", " ")),
                "Of": plain(event["subject"]),
                "Details": plain(in_words(event["detail"]), 400),
            }
            for event in findings
        ]
        st.markdown(table(rows))


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
