"""Series: several sensors of a recording on one axis of time, what was expected of them, the score, and the events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import streamlit as st

from dashboard import alert, event, lanes, queries, recordings, state, triage, welcome
from dashboard.text import literal, plain
from tabdiff.operations.tracing import Trace
from tabdiff.store.triage import Filter

_LANES = 3  # sensors shown at first
_BEFORE = {"a day before": timedelta(days=1), "a week before": timedelta(days=7)}
_STRETCH_BEFORE = "the stretch before"


def _name(trace: Trace) -> str:
    return f"{trace.source} by {trace.model}"


def _choose(found: list[Trace]) -> tuple[Trace, str | None, list[str], str | None]:
    """What the person looks at: recording, entity, sensors, and what beside it."""
    names = {_name(trace): trace for trace in found}
    with st.container(horizontal=True):
        options: dict[str, Any] = {"format_func": literal, "bind": "query-params"}
        chosen = st.selectbox("Recording", list(names), key="recording", width=230, **options)
        trace = names[chosen]
        worst = triage.queue(Filter(source=trace.source, model=trace.model), False, 1, 0)
        entity = None
        if trace.entities:
            _first("about", worst[0]["entity"] if worst and worst[0]["entity"] in trace.entities else None)
            entity = st.selectbox(literal(trace.entity), trace.entities, key="about", width=190, **options)
        others = [name for name in trace.entities if name != entity][:500]
        before = [_STRETCH_BEFORE, *(_BEFORE if trace.interval_us else ())]
        beside = st.selectbox(
            "Compare with", [*before, *others], index=None, placeholder="nothing", key="beside", width=190, **options
        )
    of_this = [one for one in worst if one["entity"] == entity or entity is None]
    told = [reason["column"] for one in of_this for reason in one["reasons"]]
    usual = sorted(trace.sensors, key=lambda name: told.index(name) if name in told else len(told))[:_LANES]
    _first("sensors", usual)
    sensors = st.multiselect("Sensors", trace.sensors, key="sensors", **options)
    return trace, entity, [name for name in trace.sensors if name in sensors], beside


def _first(key: str, value: Any) -> None:
    """What a widget shows at first, said in the address: a link must not change its meaning when something worse happens."""
    if value and key not in st.session_state and key not in st.query_params:
        st.session_state[key] = value


def _place(text: str, like: recordings.Place) -> recordings.Place | None:
    """A time of the address; None if it is none."""
    try:
        if isinstance(like, datetime):
            found = datetime.fromisoformat(text)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        return type(like)(float(text))
    except (ValueError, OverflowError):
        return None


def _text(place: Any) -> str:
    return place.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(place, datetime) else f"{place}"


def _stretch(whole: tuple[Any, Any]) -> tuple[Any, Any]:
    """The stretch of the address, inside of what there is."""
    first = _place(state.selected("from"), whole[0])
    last = _place(state.selected("to"), whole[0])
    start = max(whole[0], first) if first is not None else whole[0]
    end = min(whole[1], last) if last is not None else whole[1]
    return (start, end) if start < end else whole


def _show(start: Any, end: Any, whole: tuple[Any, Any]) -> None:
    """Go to a stretch, as far as there is one."""
    length, all_of_it = end - start, whole[1] - whole[0]
    if length >= all_of_it:
        state.select(**{"from": None, "to": None})
        return
    start = min(max(start, whole[0]), whole[1] - length)
    state.select(**{"from": _text(start), "to": _text(start + length)})


def _marked(key: str, whole: tuple[Any, Any]) -> None:
    """Zoom to what was marked in the lanes."""
    areas = st.session_state[key]["selection"]["areas"]
    if areas:
        first, last = (lanes.from_moment(value, whole[0]) for value in areas[0]["coord_range"])
        if last > first:
            _show(first, last, whole)


def _slid(key: str, whole: tuple[Any, Any]) -> None:
    first, last = st.session_state[key]
    if isinstance(first, datetime):
        first, last = (moment.replace(tzinfo=state.zone()) for moment in (first, last))
    if last > first:
        _show(first, last, whole)


def _on_clock(place: Any) -> Any:
    """A time as the slider takes it: on the viewer's clock, without a zone."""
    return place.astimezone(state.zone()).replace(tzinfo=None) if isinstance(place, datetime) else place


def _steer(stretch: tuple[Any, Any], whole: tuple[Any, Any], key: str) -> None:
    """Buttons and a slider that move the stretch."""
    start, end = stretch
    length, half = end - start, (end - start) / 2
    if not isinstance(start, datetime):
        half = type(start)(half) or 1
    moves = {
        "Earlier": (":material/arrow_back:", start - half, end - half, start > whole[0]),
        "Later": (":material/arrow_forward:", start + half, end + half, end < whole[1]),
        "Zoom in": (":material/zoom_in:", start + half / 2, end - half / 2, True),
        "Zoom out": (":material/zoom_out:", start - half, end + half, length < whole[1] - whole[0]),
        "All": (":material/fit_width:", *whole, length < whole[1] - whole[0]),
    }
    with st.container(horizontal=True):
        for name, (icon, first, last, possible) in moves.items():
            st.button(
                name, icon=icon, disabled=not possible, on_click=_show, args=(first, last, whole), key=f"go-{name}"
            )
    slider = f"slide-{key}"
    ends = _on_clock(whole[0]), _on_clock(whole[1])
    st.session_state[slider] = (_on_clock(start), _on_clock(end))
    step: Any = max((whole[1] - whole[0]) / 500, timedelta(minutes=1)) if isinstance(start, datetime) else None
    st.slider(
        "Stretch of time", *ends, step=step, key=slider, on_change=_slid, args=(slider, whole),
        label_visibility="collapsed", format="D MMM YY, HH:mm" if isinstance(start, datetime) else None,
    )  # fmt: skip


def _beside(
    trace: Trace, entity: str | None, sensors: tuple[str, ...], stretch: tuple[Any, Any], name: str | None
) -> lanes.Beside | None:
    """What the lanes are compared with."""
    if name is None:
        return None
    start, end = stretch
    back: Any = _BEFORE.get(name, end - start if name == _STRETCH_BEFORE else None)
    if back is None:
        return lanes.Beside(recordings.stretch(trace.stream_id, name, start, end, sensors), name)
    frame = recordings.stretch(trace.stream_id, entity, start - back, end - back, sensors)
    if frame.is_empty():
        return lanes.Beside(frame, name)
    return lanes.Beside(frame.with_columns(start=frame["start"] + back, end=frame["end"] + back), name)


def _events(found: list[dict[str, Any]], states: dict[int, str]) -> None:
    st.subheader(f"{len(found)} event{'' if len(found) == 1 else 's'} in this stretch")
    if not found:
        st.write("Nothing was told of this stretch.")
    for one in found[:50]:
        columns = ", ".join(plain(reason["column"], 40) for reason in one["reasons"][:3])
        with st.container(horizontal=True, vertical_alignment="center"):
            said = f"**{alert.SEVERITY[one['severity']]}**, {states[one['id']]}: {plain(event.when_of(one))}"
            st.markdown(f"{said}, {columns or 'no sensor stands out'}")
            st.page_link("pages/anomalies.py", label=f"Open {one['id']}", query_params={"alert": str(one["id"])})
    if len(found) > 50:
        st.caption(f"and {len(found) - 50} more: zoom in")


def _draw(trace: Trace, entity: str | None, sensors: list[str], beside: str | None) -> None:
    known = recordings.span(trace.stream_id, entity)
    if known is None:
        st.info("Too little of this recording was scored to show. Look again when more has come.")
        return
    every = recordings.events(trace.source, trace.model, entity, *_far(known))
    last = max(
        [
            known[1],
            *(one["ended"] or one["at"] for one in every if one["at"] is not None and isinstance(known[1], datetime)),
        ]
    )
    whole = (known[0], last)
    start, end = stretch = _stretch(whole)
    states = {one["id"]: alert.verdict_of(one) for one in every}
    key = f"{trace.stream_id}-{entity}"
    strip = recordings.strip(trace.stream_id, entity)
    spans = [(one["at"], one["ended"] or one["at"]) for one in every if one["at"] is not None]
    st.echarts_chart(
        lanes.sketch(strip, trace, spans, stretch), height=84, key=f"strip-{key}",
        alt="The highest scores of all that was scored, with its events; the part that the lanes show is shaded.",
    )  # fmt: skip
    _steer(stretch, whole, key)
    frame = recordings.stretch(trace.stream_id, entity, start, end, tuple(sensors))
    if frame.is_empty():
        st.info("Nothing was recorded in this stretch.")
        return
    if not isinstance(start, datetime):
        here = [
            one
            for one in every
            if one["first_place"] is not None and one["last_place"] >= start and one["first_place"] <= end
        ]
    else:
        here = [
            one for one in every if one["at"] is not None and (one["ended"] or one["at"]) >= start and one["at"] <= end
        ]
    other = _beside(trace, entity, tuple(sensors), stretch, beside)
    if other is not None and other.frame.is_empty():
        st.caption(f"Nothing was recorded of {plain(other.name)} in the same stretch.")
    picture = lanes.draw(frame, trace, sensors, here, states, stretch, other)
    chart = f"lanes-{key}-{_text(start)}-{_text(end)}"
    st.echarts_chart(
        picture.option, height=picture.height, key=chart, on_select=lambda: _marked(chart, whole), alt=picture.words
    )
    places = int(frame["places"].sum())
    many = places > frame.height
    compared = f", the dotted line {plain(other.name)}" if other is not None else ""
    st.caption(
        f"Blue line: recorded. Grey band and dashes: what was expected of the sensor from everything else{compared}. Shaded: events, with number and state. "
        + (
            f"{places:,} places in {frame.height:,} steps, each drawn from its lowest to its highest value, so that no peak is hidden. "
            if many
            else f"{places:,} places, each as it was recorded. "
        )
        + "Mark a stretch with the tool at the top right to zoom in."
    )
    if since := event.provisional(frame):
        st.caption(f"What is drawn from {since} on is provisional: it is judged again when a whole window has passed.")
    _events(here, states)


def _far(known: tuple[Any, Any]) -> tuple[Any, Any]:
    """From the first place to after the last: an event may be told of rows that wait for others of their time."""
    if isinstance(known[1], datetime):
        return known[0], known[1] + timedelta(days=3650)
    return known[0], known[1] * 2 + 1_000_000


with state.page("Series"):
    if welcome.is_empty():
        welcome.greet(queries.workspace())
    else:
        found = recordings.traces()
        if not found:
            st.info(
                "No series was scored yet. Train a model of a source that has a column of time, and say so: "
                "`tabdiff run train --source NAME --model NAME --set fit.series.time=COLUMN`; then score it."
            )
        else:
            trace, entity, sensors, beside = _choose(found)
            if sensors:
                _draw(trace, entity, sensors, beside)
            else:
                st.info("Choose at least one sensor.")
