"""One alert: what is odd about it, what it should have been, what like it was said before, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import streamlit as st

from dashboard import access, charts, event, queries, state, triage
from dashboard.text import about, literal, plain
from tabdiff.errors import TabdiffError

VERDICTS = event.VERDICTS
SEVERITY = {"high": "▲ high", "medium": "◆ medium", "low": "● low", "unrated": "○ unrated"}
_SNOOZES = {"1 hour": 1, "8 hours": 8, "1 day": 24, "1 week": 168, "30 days": 720}
_TONES = {"high": "red", "medium": "orange", "low": "blue", "unrated": "gray"}


def verdict_of(alert: dict[str, Any]) -> str:
    """Its state in a word."""
    if alert["verdict"]:
        return VERDICTS[alert["verdict"]]
    return "snoozed" if alert["snoozed"] else "open"


@state.action("analyst")
def judge(numbers: Sequence[int], verdict: str, key: str, leave: bool = False) -> str:
    """Keep a verdict on alerts, with the note and time of the form of this key."""
    note = str(st.session_state.get(f"{key}-note", ""))
    until = None
    if verdict == "snooze":
        until = datetime.now(UTC) + timedelta(hours=_SNOOZES[st.session_state.get(f"{key}-until", "1 day")])
    queries.workspace().scores.judge(list(numbers), verdict, author=access.who(), note=note, until=until)  # type: ignore[arg-type]
    st.session_state[f"{key}-note"] = ""
    if leave:
        state.select(alert=None)
    what = f"{len(numbers)} alerts" if len(numbers) > 1 else f"Alert {numbers[0]}"
    return f"{what}: {VERDICTS[verdict]}"


def verdict_form(numbers: Sequence[int], key: str, *, leave: bool = False) -> None:
    """Note and buttons for a verdict on one alert or many."""
    if not access.may("analyst"):
        st.caption("Verdicts need the role analyst.")
        return
    st.text_area("Note", key=f"{key}-note", height=80, max_chars=4000, placeholder="Why? (optional)")
    with st.container(horizontal=True):
        for verdict, label, icon, effect in (
            ("anomaly", "Confirm", ":material/warning:", "The next training leaves these rows out."),
            ("normal", "False alarm", ":material/check:", "From the next run on rows and events like it score lower."),
            ("unsure", "Unsure", ":material/help:", "Changes nothing but the queue."),
        ):
            tone = "primary" if verdict == "anomaly" else "secondary"
            options: Any = {
                "key": f"{key}-{verdict}",
                "icon": icon,
                "type": tone,
                "disabled": not numbers,
                "help": effect,
            }
            st.button(label, on_click=judge, args=(tuple(numbers), verdict, key, leave), **options)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox("Snooze for", list(_SNOOZES), index=2, key=f"{key}-until", width=140)
        given = (tuple(numbers), "snooze", key, leave)
        st.button(
            "Snooze", icon=":material/snooze:", disabled=not numbers, key=f"{key}-snooze", on_click=judge, args=given
        )


def show(number: int) -> None:
    """Everything about one alert.

    Raises:
        StoreError: no such alert.
    """
    alert = triage.alert(number)
    about = alert["entity"] or alert["source"]
    st.subheader(f"Alert {number}: {plain(about)}, {plain(event.when_of(alert))}")
    with st.container(horizontal=True):
        st.badge(f"{SEVERITY[alert['severity']]} severity", color=_TONES[alert["severity"]])  # type: ignore[arg-type]
        st.badge(verdict_of(alert), color="gray" if verdict_of(alert) == "open" else "green")
    left, right = st.columns([5, 3], gap="large")
    with right:
        with st.container(border=True):
            st.markdown("**Verdict**")
            verdict_form([number], f"alert-{number}")
            event.accept_form(alert)
        _history(alert["history"])
        _facts(alert)
    with left:
        place = st.empty()
        if alert["kind"] == "row":
            with place.container():
                _stored(alert)
        try:
            found = triage.explained(number) if alert["kind"] == "row" else triage.inspected(number)
        except TabdiffError as error:
            st.warning(plain(f"A closer look is not possible: {error}", 1000))
            found = None
        if found is not None:
            with place.container():
                if alert["kind"] == "row":
                    _explained(found)
                else:
                    event.show(alert, found, verdict_of(alert))
    if found is not None and alert["kind"] == "row":
        _more(alert, found)
        return
    if found is not None:
        event.more(alert, found)
    st.markdown("**Similar past cases**")
    _cases(number)


def _sentence(value: Any, low: Any, high: Any, expected: Any) -> str:
    said = plain(value, 60)
    if low is not None and high is not None:
        # What carries a score is odd beside the others, not always by itself.
        if isinstance(value, int | float) and low <= value <= high:
            return f"is **{said}**, within the {plain(about(low), 60)} to {plain(about(high), 60)} that would be expected from the rest of the row"
        return f"is **{said}**; from the rest of the row {plain(about(low), 60)} to {plain(about(high), 60)} would be expected"
    return f"is **{said}**; from the rest of the row {plain(about(expected), 60)} would be expected"


def _stored(alert: dict[str, Any]) -> None:
    for reason in alert["reasons"]:
        value = alert["values"].get(reason["column"])
        st.markdown(f"**{plain(reason['column'])}** {_sentence(value, None, None, reason['expected'])}.")
    st.caption("Looking closer …")


def _explained(found: dict[str, Any]) -> None:
    reasons = found["reasons"]
    for reason in reasons[:3]:
        st.markdown(
            f"**{plain(reason['column'])}** {_sentence(reason['value'], reason['low'], reason['high'], reason['expected'])}."
        )
    chart = charts.interval(reasons)
    if chart is not None:
        st.markdown("**Actual against expected**")
        words = "; ".join(
            f"{r['column']} {literal(r['value'])}, expected {literal(r['low'])} to {literal(r['high'])}"
            for r in reasons
            if r["low"] is not None
        )
        st.altair_chart(chart, alt=f"Values beside their expected intervals: {words}")
    st.markdown("**What carries the score**")
    st.altair_chart(
        charts.contributions(found["contributions"]), alt=charts.describe_contributions(found["contributions"])
    )
    if not found["own"]:
        st.caption(f"Explained by version {found['version']}: the one that raised the alert is retired.")


def _more(alert: dict[str, Any], found: dict[str, Any]) -> None:
    repair, nearest, cases, whole = st.tabs(
        ["Smallest repair", "Nearest normal rows", "Similar past cases", "Whole row"]
    )
    values = alert["values"]
    with repair:
        if not found["repair"]:
            st.write("No change is needed: by its p-value the row counts as normal, though it was flagged.")
        else:
            lines = [
                {"Column": literal(name), "Is": literal(values.get(name)), "Would be": literal(value)}
                for name, value in found["repair"].items()
            ]
            st.dataframe(pl.DataFrame(lines), hide_index=True, alt="Table of the changes of the smallest repair")
            ending = (
                "With these values the row is normal"
                if found["normal"]
                else "Even with these values the row is not normal"
            )
            st.caption(f"{ending} (p = {found['repaired_p_value']:.3g}).")
    with nearest:
        if not found["nearest"]:
            st.write("The version keeps no normal rows to compare with.")
        else:
            rows = [("this row", values), *((f"normal {n + 1}", row) for n, row in enumerate(found["nearest"]))]
            order = [reason["column"] for reason in found["reasons"]]
            columns = [*order, *(name for name in values if name not in order)]
            table = [{"Column": literal(c), **{name: literal(row.get(c)) for name, row in rows}} for c in columns]
            st.dataframe(pl.DataFrame(table[:200]), hide_index=True, alt="The row beside the nearest normal rows")
            st.caption("Rows that no version was fitted on, normal by their p-value, nearest first.")
    with cases:
        _cases(alert["id"])
    with whole:
        expected = {reason["column"]: reason["expected"] for reason in found["reasons"]}
        table = [
            {
                "Column": literal(name),
                "Value": literal(value),
                "Expected": literal(expected[name]) if name in expected else "",
            }
            for name, value in values.items()
        ]
        st.dataframe(pl.DataFrame(table[:1000]), hide_index=True, alt="Every value of the row")


def _cases(number: int) -> None:
    found = triage.past_cases(number)
    if not found:
        st.write("No judged alert is like this one yet.")
    for like, other in found:
        last = [entry for entry in other["history"] if entry["verdict"] != "snooze"][-1]
        columns = ", ".join(plain(reason["column"], 40) for reason in other["reasons"][:2])
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(
                f"**{VERDICTS[last['verdict']]}** by {plain(last['author'], 60)}: {plain(other['entity'] or other['source'], 60)}, "
                f"{plain(state.local(other['when']))}, {columns} ({like:.0%} alike)"
                + (f"  \n“{plain(last['note'], 300)}”" if last["note"] else "")
            )
            st.button(
                "Open", key=f"case-{other['id']}", type="tertiary", on_click=lambda n=other["id"]: state.select(alert=n)
            )


def _history(history: list[dict[str, Any]]) -> None:
    if not history:
        return
    st.markdown("**History**")
    for entry in reversed(history[-20:]):
        until = f" until {plain(state.local(entry['until']))}" if entry["until"] else ""
        note = f"  \n“{plain(entry['note'], 1000)}”" if entry["note"] else ""
        st.markdown(
            f"{VERDICTS[entry['verdict']]}{until}, {plain(entry['author'], 60)}, {plain(state.local(entry['created']))}{note}"
        )


def _facts(alert: dict[str, Any]) -> None:
    beyond = (
        f"{alert['excess']:.1f} × the most abnormal {'row' if alert['kind'] == 'row' else 'stretch'} of calibration"
        if alert["excess"] is not None
        else "not rated"
    )
    facts = {
        "Score": f"{alert['score']:.4g}, {beyond}",
        "p-value": f"{alert['p_value']:.2g}: the share of normal {'rows' if alert['kind'] == 'row' else 'stretches'} that score as high",
        "Source": f"{plain(alert['source'])}, {plain(alert['unit'])}"
        + (f", row {alert['row']}" if alert["kind"] == "row" else ""),
        "Model": plain(alert["model"]),
        "Scored": plain(state.local(alert["created"])),
    }
    st.markdown("**Facts**")
    st.markdown("  \n".join(f"{name}: {value}" for name, value in facts.items()))
