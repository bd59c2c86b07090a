"""What is said of one event of a series: its sensors, what was recorded beside what was expected, other events like it, and its level accepted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import streamlit as st

from dashboard import access, charts, lanes, queries, recordings, state
from dashboard.text import about, literal, plain
from tabdiff.operations.accepting import accept_level
from tabdiff.operations.tracing import Trace

VERDICTS = {"anomaly": "confirmed", "normal": "false alarm", "unsure": "unsure", "snooze": "snoozed"}
_LANES = 4  # small multiples
_AROUND = 2.0  # lengths of the event on each side, in the page of series


def when_of(alert: dict[str, Any]) -> str:
    """When it was: a moment, or from when to when and how long; places, where times are steps."""
    if alert["kind"] == "row":
        return state.local(alert["when"])
    if alert["at"] is None:
        return f"places {alert['first_place']} to {alert['last_place']}" if alert["first_place"] is not None else ""
    first, last = alert["at"], alert["ended"] or alert["at"]
    same = state.local(first, "%d %b %Y") == state.local(last, "%d %b %Y")
    until = state.local(last, "%H:%M" if same else "%d %b %Y, %H:%M")
    return f"{state.local(first)} to {until} ({lasted(alert)})"


def lasted(alert: dict[str, Any]) -> str:
    """How long it lasted, and whether it goes on; empty for a row."""
    if alert["kind"] == "row":
        return ""
    going = ", still open" if alert["open"] else ""
    if alert["at"] is None:
        places = (alert["last_place"] or 0) - (alert["first_place"] or 0) + 1
        return f"{places:,} place{'s' if places > 1 else ''}{going}"
    length = (alert["ended"] or alert["at"]) - alert["at"]
    return (
        f"{state.lasting(length) if length else '1 place'}{going}"  # nobody calls the one reading that it is 0 s long
    )


def because(alert: dict[str, Any]) -> str:
    """Its sensors in a line."""
    if alert["kind"] == "silent":
        return "no readings of " + ", ".join(str(reason["column"]) for reason in alert["reasons"][:3])
    said = []
    for reason in alert["reasons"][:2]:
        value = literal(reason.get("value", alert["values"].get(reason["column"])), 40)
        said.append(f"{reason['column']} {value} (expected {literal(about(reason['expected']), 40)})")
    return ", ".join(said)


def link(alert: dict[str, Any]) -> None:
    """To the page of series, at the time of the event."""
    query: dict[str, Any] = {"recording": f"{alert['source']} by {alert['model']}"}
    if alert["entity"] is not None:
        query["about"] = alert["entity"]
    sensors = [str(reason["column"]) for reason in alert["reasons"][:3]]
    if sensors:
        query["sensors"] = sensors
    if alert["at"] is not None:
        last = alert["ended"] or alert["at"]
        margin = max(_AROUND * (last - alert["at"]), timedelta(minutes=30))
        for name, moment in (("from", alert["at"] - margin), ("to", last + margin)):
            query[name] = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    st.page_link("pages/series.py", label="Look at it in the series", icon=":material/timeline:", query_params=query)


def _around(found: dict[str, Any]) -> pl.DataFrame:
    frame: pl.DataFrame = found["trace"]
    times = [name for name in ("start", "end") if name in frame.columns and frame.schema[name] == pl.Datetime]
    return frame.with_columns(pl.col(name).dt.replace_time_zone("UTC") for name in times)


def show(alert: dict[str, Any], found: dict[str, Any], verdict: str) -> None:
    """Sentences, small multiples around the event, and shares of the sensors."""
    reasons = found["reasons"]
    for reason in reasons[:3]:
        st.markdown(f"**{plain(reason['column'])}** {_sentence(alert, reason)}.")
    trace = next((one for one in recordings.traces() if one.stream_id == alert["stream_id"]), None)
    if trace is not None:
        _lanes(alert, _around(found), trace, verdict)
    link(alert)
    if found["contributions"] and len(found["contributions"]) > 1:
        st.markdown("**What carries the score**")
        shares = found["contributions"]
        st.altair_chart(charts.contributions(shares), alt=charts.describe_contributions(shares))


def _sentence(alert: dict[str, Any], reason: dict[str, Any]) -> str:
    if alert["kind"] == "silent":
        return "sent nothing although others did"
    value = reason.get("value", alert["values"].get(reason["column"]))
    said = f"was **{plain(value, 60)}** at the peak"
    low, high = reason.get("low"), reason.get("high")
    if low is not None and high is not None:
        band = f"{plain(about(low), 60)} to {plain(about(high), 60)}"
        if isinstance(value, int | float) and low <= value <= high:  # what carries an event may be in order at its peak
            return f"{said}, within the {band} that would be expected there: look at all of the event"
        return f"{said}; from the other sensors and the time before and after, {band} would be expected"
    return f"{said}; from the other sensors and the time before and after, {plain(about(reason['expected']), 60)} would be expected"


def provisional(frame: pl.DataFrame) -> str:
    """From when on the places of a stretch are not final, as Markdown; empty if all are."""
    newest = frame.filter("provisional")["start"].first()
    return plain(state.local(newest) if isinstance(newest, datetime) else newest) if newest is not None else ""


def _lanes(alert: dict[str, Any], frame: pl.DataFrame, trace: Trace, verdict: str) -> None:
    sensors = [reason["column"] for reason in alert["reasons"] if reason["column"] in trace.sensors][:_LANES]
    if frame.is_empty() or not sensors:
        st.caption("The places of this event are gone: their score files are past their retention.")
        return
    st.markdown("**Recorded against expected**")
    ends = [frame["start"][0], frame["end"][-1]]
    if alert["at"] is not None and isinstance(ends[0], datetime):
        ends = [min(ends[0], alert["at"]), max(ends[1], alert["ended"] or alert["at"])]
    picture = lanes.draw(frame, trace, sensors, [alert], {alert["id"]: verdict}, (ends[0], ends[1]), zoom=False)
    st.echarts_chart(picture.option, height=picture.height, key=f"around-{alert['id']}", alt=picture.words)
    since = provisional(frame)
    after = f" From {since} on it is provisional, and judged again when a whole window has passed." if since else ""
    st.caption(f"Blue line: recorded. Grey band: what was expected. Shaded: the event.{after}")


def more(alert: dict[str, Any], found: dict[str, Any]) -> None:
    """Other events that the same sensor carries, and what was recorded at the peak."""
    others, whole = st.tabs(["Other events of this sensor", "At the peak"])
    with others:
        if not found["similar"]:
            st.write("None so far.")
        for other in found["similar"]:
            with st.container(horizontal=True, vertical_alignment="center"):
                when = state.local(other["at"]) if other["at"] is not None else ""
                st.markdown(
                    f"{plain(other['entity'] or alert['source'], 60)}, {plain(when)}, {VERDICTS.get(other['verdict'] or '', 'not judged')}"
                )
                number = other["id"]
                st.button(
                    "Open", key=f"other-{number}", type="tertiary", on_click=lambda n=number: state.select(alert=n)
                )
    with whole:
        expected = {reason["column"]: reason for reason in found["reasons"]}
        rows = [
            {
                "Column": literal(name),
                "Value": literal(value),
                "Expected": literal(expected[name]["expected"]) if name in expected else "",
            }
            for name, value in alert["values"].items()
        ]
        st.dataframe(pl.DataFrame(rows[:1000]), hide_index=True, alt="Every value at the peak of the event")


@state.action("admin")
def _accept(number: int) -> str:
    key = f"accept-{number}"
    done = accept_level(queries.workspace(), number, access.who(), str(st.session_state.get(key, "")))
    return f"From now on this level is normal: version {done['version']} of {done['model']} is in service."


def accept_form(alert: dict[str, Any]) -> None:
    """Say that the level of this event is there to stay."""
    if alert["kind"] != "event" or not access.may("admin"):
        return
    with st.popover("This level is the new normal", icon=":material/vertical_align_center:", width="stretch"):
        st.caption(
            "A repaired or re-calibrated sensor stays at another level. Accepting makes a version of the model for which it is normal, and "
            "puts it into service; the alert counts as a false alarm. It takes some seconds; Models can roll it back."
        )
        st.text_input("Why?", key=f"accept-{alert['id']}", max_chars=1000)
        st.button(
            "Accept the level", type="primary", on_click=_accept, args=(alert["id"],), key=f"accepted-{alert['id']}"
        )
