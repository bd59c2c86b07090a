"""Anomalies: a ranked queue, the stories behind it, one alert, and the threshold that decides on more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import streamlit as st

from dashboard import access, alert, charts, event, queries, state, triage, welcome
from dashboard.stories import Story
from dashboard.text import csv_bytes, literal, plain
from tabdiff.errors import StoreError, TabdiffError
from tabdiff.store.triage import Filter

_ROWS = 50  # of a page of the queue
_TIMES = {"any time": 0, "last 24 hours": 1, "last 7 days": 7, "last 30 days": 30}
_KINDS = {"rows": "row", "events": "event", "silent sensors": "silent"}
_STATES = {"open": "open", "judged": "judged", "snoozed": "snoozed", "all": "all"}


def _filters() -> Filter:
    names = triage.names()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.segmented_control(
            "State",
            list(_STATES),
            default="open",
            key="state",
            required=True,
            bind="query-params",
            persist_state="page",
        )
        st.pills(
            "Severity",
            triage.SEVERITIES[:3],
            selection_mode="multi",
            key="severity",
            bind="query-params",
            persist_state="page",
        )
    with st.container(horizontal=True):
        for label, key in (("Source", "source"), ("Model", "model"), ("About", "entity")):
            if len(names[key]) > 1 or key != "model":
                options: Any = {
                    "format_func": literal,
                    "placeholder": "any",
                    "index": None,
                    "key": key,
                    "bind": "query-params",
                }
                st.selectbox(label, names[key], width=170, **options)
        st.selectbox("Time", list(_TIMES), key="time", width=150, bind="query-params", persist_state="page")
        st.selectbox(
            "Kind",
            list(_KINDS),
            index=None,
            placeholder="any",
            key="kind",
            width=150,
            bind="query-params",
            persist_state="page",
        )
    hour = datetime.now(UTC).replace(
        minute=0, second=0, microsecond=0
    )  # the same question for an hour, so that it is kept
    days = _TIMES[st.session_state["time"]]
    st.session_state["_filter"] = Filter(
        source=st.session_state.get("source"),
        model=st.session_state.get("model"),
        entity=st.session_state.get("entity"),
        severities=tuple(sorted(st.session_state["severity"] or ())),
        state=st.session_state["state"],
        since=hour - timedelta(days=days) if days else None,
        kind=_KINDS.get(st.session_state.get("kind") or ""),
    )
    chosen: Filter = st.session_state["_filter"]
    return chosen


def _lines(alerts: list[dict[str, Any]]) -> pl.DataFrame:
    zone = state.zone()
    lines = pl.DataFrame(
        [
            {
                "Severity": alert.SEVERITY[one["severity"]],
                "When": one["when"].astimezone(zone).replace(tzinfo=None),
                "Lasted": event.lasted(one),
                "About": literal(one["entity"] or one["source"]),
                "Because": literal(event.because(one)),
                "p-value": one["p_value"],
                "Score": one["score"],
                "Source": literal(one["source"]),
                "State": alert.verdict_of(one),
                "Alert": one["id"],
            }
            for one in alerts
        ]
    )
    return lines if any(one["kind"] != "row" for one in alerts) else lines.drop("Lasted")


def _opened() -> None:
    """A cell was chosen: open its alert."""
    cells = st.session_state["queue"]["selection"]["cells"]
    if cells:
        state.select(alert=st.session_state["_numbers"][cells[0][0]])


def _queue(chosen: Filter) -> None:
    total = triage.count(chosen)
    if not total:
        st.info("No alert fits. Widen the filters, or enjoy the quiet.")
        return
    pages = -(-total // _ROWS)
    page = min(int(st.session_state.get("p", 1)), pages)
    alerts = triage.queue(chosen, False, _ROWS, (page - 1) * _ROWS)
    st.session_state["_numbers"] = [one["id"] for one in alerts]
    columns = {
        "When": st.column_config.DatetimeColumn(format="D MMM YYYY, HH:mm"),
        "Lasted": st.column_config.TextColumn(width=120),
        "Because": st.column_config.TextColumn(width=300),
        "p-value": st.column_config.NumberColumn(format="%.2g"),
        "Score": st.column_config.NumberColumn(format="%.1f"),
    }
    st.caption(
        f"{total:,} alerts, most severe first. Choose a cell to open an alert, or tick rows to judge them together."
    )
    chosen_rows = st.dataframe(
        _lines(alerts),
        key="queue",
        hide_index=True,
        height=min(38 + 35 * len(alerts), 600),
        column_config=columns,
        on_select=_opened,
        selection_mode=["multi-row", "single-cell"],
        alt="Table of alerts, most severe first",
    )
    ticked = [alerts[row]["id"] for row in chosen_rows["selection"]["rows"] if row < len(alerts)]
    with st.container(horizontal=True, vertical_alignment="center"):
        if pages > 1:
            st.pagination(pages, key="p", bind="query-params")
        with st.popover(
            f"Judge {len(ticked)} ticked" if ticked else "Judge ticked", disabled=not ticked, icon=":material/gavel:"
        ):
            alert.verdict_form(ticked, "bulk")
        st.button(
            "Open the first", icon=":material/arrow_forward:", on_click=lambda: state.select(alert=alerts[0]["id"])
        )
        st.download_button(
            "CSV of this page",
            data=lambda: csv_bytes(_lines(alerts)),
            file_name="alerts.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )


def _one(number: int, chosen: Filter) -> None:
    numbers = triage.numbers(chosen)
    place = numbers.index(number) if number in numbers else None
    before = numbers[place - 1] if place else None
    after = numbers[place + 1] if place is not None and place + 1 < len(numbers) else None
    if place is None and numbers:
        after = numbers[0]
    with st.container(horizontal=True):
        st.button("Back to the queue", icon=":material/arrow_back:", on_click=lambda: state.select(alert=None))
        st.button("Previous", disabled=before is None, on_click=lambda: state.select(alert=before))
        st.button("Next", disabled=after is None, on_click=lambda: state.select(alert=after))
    alert.show(number)


def _title(story: Story) -> str:
    return (
        " · ".join(f"{plain(name, 60)} {plain(how, 40)}" for name, how in story.carried_by[:4])
        or "no column stands out"
    )


def _stories(chosen: Filter) -> None:
    found, total = triage.stories(chosen), triage.count(chosen)
    if not found:
        st.info("No alert fits. Widen the filters, or enjoy the quiet.")
        return
    st.caption(
        f"{min(total, queries.MOST_ROWS):,} alerts tell {len(found)} stories: the same columns, in the same direction."
    )
    for number, story in enumerate(found[:20]):
        first, last = story.span
        with st.container(border=True):
            left, right = st.columns([4, 1], vertical_alignment="center")
            who = ", ".join(f"{plain(name, 60)} ({times})" for name, times in story.entities[:4])
            left.markdown(f"**{_title(story)}**")
            left.caption(
                f"{len(story.alerts)} alert{'s' if len(story.alerts) > 1 else ''} · {plain(state.local_span(first, last))}"
                + f" · {who or plain(story.alerts[0]['source'], 60)}"
            )
            with right.popover(f"Judge {len(story.alerts)}", width="stretch"):
                alert.verdict_form(story.numbers, f"story-{number}")
            with st.expander("Show the most severe"):
                for one in story.alerts[:5]:
                    said = f"{alert.SEVERITY[one['severity']]} · {plain(one['entity'] or one['source'], 60)} · {plain(event.when_of(dict(one)))} · {plain(event.because(dict(one)))}"
                    st.button(
                        said,
                        key=f"story-{one['id']}",
                        type="tertiary",
                        on_click=lambda n=one["id"]: state.select(alert=n),
                    )


@state.action("admin")
def _save(stream: int, rule: dict[str, float]) -> str:
    note = str(st.session_state.get("rule-note", ""))
    queries.workspace().triage.save_rule(stream, rule, author=access.who(), note=note)
    st.session_state["rule-note"] = ""
    return "Saved. Scoring uses it from now on." if rule else "Back to the rule of the job."


def _number(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _threshold() -> None:
    streams = [line for line in triage.streams() if line["rows"]]
    if not streams:
        st.info("Nothing was scored yet; a threshold needs scores to be judged by.")
        return
    labels = {f"{line['source']} by {line['model']}": line for line in streams}
    name = st.selectbox("Source and model", list(labels), key="stream", bind="query-params", width=360)
    line = labels[name]
    try:
        found = triage.thresholds(line["source"], line["model"])
    except StoreError as error:
        st.info(plain(error, 500))
        return
    series = found.stretches_per_day is not None
    what = "stretches" if series else "rows"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        rows = found.rows_per_day
        if not series:
            rows = st.number_input(
                "Rows a day",
                min_value=1.0,
                value=float(round(rows)),
                key=f"rows-{found.stream_id}",
                width=160,
                format="%.0f",
                help="Measured from the times of the rows, if they have any.",
            )
        choices = found.choices(rows)
        if not choices:
            st.warning("Calibration has too few rows to tell of alerts a day at this rate.")
            return
        usual = found.saved.get("alerts_per_day")
        start = min(choices, key=lambda choice: abs(choice - (usual or 5)))
        asked = st.select_slider(
            "Alerts a day that normal stretches of one recording may raise"
            if series
            else "Alerts a day that normal rows may raise",
            choices,
            value=start,
            format_func=_number,
            key=f"alerts-{found.stream_id}",
        )
    try:
        would = found.at(asked, rows)
    except TabdiffError as error:
        st.error(plain(error, 500))
        return
    lines = {f"{_number(asked)} a day": would["threshold"]}
    if usual:
        saved_rate = found.saved.get("rows_per_day", rows)
        lines[f"saved: {_number(usual)} a day"] = found.at(usual, saved_rate)["threshold"]
    with st.container(horizontal=True):
        per_day = "unknown" if would["per_day"] is None else _number(would["per_day"])
        st.metric(
            "Alerts a day so far",
            per_day,
            border=True,
            help=f"How many of the {what} that were scored lie above, by day.",
        )
        st.metric(f"{what.capitalize()} above", f"{would['flagged']:,} of {found.rows:,}", border=True)
        precision = "no verdicts" if would["precision"] is None else f"{would['precision']:.0%}"
        judged = would["confirmed"] + would["false_alarms"]
        st.metric(
            "Precision", precision, border=True, help=f"Confirmed among {judged} judged alerts above the threshold."
        )
        st.metric("Confirmed below", would["missed"], border=True, help="Confirmed anomalies that would not be alerts.")
    chart = charts.histogram(found.edges, found.counts, lines, found.judged, what)
    st.altair_chart(
        chart,
        alt=f"Histogram of {found.rows:,} scores with the threshold {would['threshold']:.3g}; {would['flagged']} lie above",
    )
    if access.may("admin"):
        st.text_input("Note", key="rule-note", max_chars=1000, placeholder="Why? (optional)")
        rule = found.as_rule(asked, rows)
        with st.container(horizontal=True):
            st.button(
                "Save this threshold",
                type="primary",
                icon=":material/save:",
                on_click=_save,
                args=(found.stream_id, rule),
            )
            st.button("Back to the job's rule", disabled=not found.saved, on_click=_save, args=(found.stream_id, {}))
    else:
        st.caption("Saving needs the role admin.")
    history = triage.rules(found.stream_id)
    if history:
        st.markdown("**History**")
        for entry in history[:10]:
            rule = entry["rule"]
            said = (
                ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in rule.items())
                or "the rule of the job"
            )
            note = f": “{plain(entry['note'], 500)}”" if entry["note"] else ""
            st.markdown(f"{plain(said)}, {plain(entry['author'], 60)}, {plain(state.local(entry['created']))}{note}")


with state.page("Anomalies"):
    if welcome.is_empty():
        welcome.greet(queries.workspace())
    else:
        opened = state.selected("alert")
        views = ["Queue", "Stories", "Threshold"]
        if not opened.isdecimal():
            view = st.segmented_control(
                "View",
                views,
                default="Queue",
                key="view",
                required=True,
                bind="query-params",
                label_visibility="collapsed",
            )
            if view == "Threshold":
                _threshold()
            elif view == "Stories":
                _stories(_filters())
            else:
                _queue(_filters())
        else:
            _one(int(opened), st.session_state.get("_filter", Filter()))
