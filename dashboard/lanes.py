"""Lanes of a recording on one axis of time: each sensor with what was expected of it, the score with its threshold, events as shaded spans.

Pure: frames in, an option of ECharts out. Each bucket is drawn from its lowest to its highest value, so the line reaches every peak however many places
it stands for. Colours are told apart by colour-blind readers, and states are said in words as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

from dashboard.text import literal
from tabdiff.operations.tracing import Trace

_CLOCK = {"year": "{yyyy}", "month": "{MMM} {yyyy}", "day": "{d} {MMM}", "hour": "{HH}:{mm}", "minute": "{HH}:{mm}"}
_LANE, _GAP, _TOP, _BOTTOM = 104, 34, 26, 34  # pixels
RECORDED, EXPECTED, OTHER, SCORE = "#2f86c9", "#8a97a5", "#CC79A7", "#8a97a5"
STATES = {  # how the span of an event is shaded: colour, opacity, edge
    "open": ("#D55E00", 0.22, "solid"),
    "confirmed": ("#D55E00", 0.42, "solid"),
    "false alarm": ("#8a97a5", 0.22, "dashed"),
    "unsure": ("#E69F00", 0.28, "dashed"),
    "snoozed": ("#56B4E9", 0.22, "dotted"),
}

_BRUSH: dict[str, Any] = {
    "brush": {
        "xAxisIndex": "all",
        "brushType": "lineX",
        "brushMode": "single",
        "throttleType": "debounce",
        "throttleDelay": 400,
    },
    "toolbox": {
        "right": 10,
        "top": -4,
        "feature": {
            "brush": {
                "type": ["lineX", "clear"],
                "title": {"lineX": "Zoom: mark a stretch", "clear": "Take the mark away"},
            }
        },
    },
}


@dataclass(frozen=True)
class Beside:
    """What is compared: another stretch, its times moved onto the first one's, and what it is called."""

    frame: pl.DataFrame
    name: str


@dataclass(frozen=True)
class Picture:
    """An option of ECharts, its height in pixels, and what it shows in words."""

    option: dict[str, Any]
    height: int
    words: str
    lanes: list[str] = field(default_factory=list)


def strokes(frame: pl.DataFrame, trace: Trace, sensors: Sequence[str]) -> pl.DataFrame:
    """Points of the lines: two for a bucket, its lowest and its highest value, one for a place, and one without values where there is a gap.

    Returns:
        x, score, and for the sensor number i: v<i> (recorded), and for numbers e<i> (expected), l<i> and h<i> (lower end and width of the band).
    """
    numbered = frame.with_row_index("bucket")
    shared = [pl.col("bucket"), pl.col("start").alias("x"), pl.col("score")]
    for number, name in enumerate(sensors):
        if name in trace.numbers:
            low, high = pl.col(f"low:{name}"), pl.col(f"high:{name}")
            shared += [
                pl.col(f"expected:{name}").alias(f"e{number}"),
                low.alias(f"l{number}"),
                (high - low).alias(f"h{number}"),
            ]

    def values(end: str) -> list[pl.Expr]:
        return [
            pl.col(f"{end if name in trace.numbers else 'value'}:{name}").alias(f"v{number}")
            for number, name in enumerate(sensors)
        ]

    lowest = numbered.select(*shared, *values("min"), order=pl.lit(1))
    highest = numbered.filter(pl.col("places") > 1).select(*shared, *values("max"), order=pl.lit(2))
    gaps = numbered.filter("gap").select("bucket", x=pl.col("start"), order=pl.lit(0))
    return pl.concat([lowest, highest, gaps], how="diagonal").sort("bucket", "order").drop("bucket", "order")


def draw(
    frame: pl.DataFrame,
    trace: Trace,
    sensors: Sequence[str],
    events: Sequence[Mapping[str, Any]],
    states: Mapping[int, str],
    stretch: tuple[Any, Any],
    beside: Beside | None = None,
    zoom: bool = True,
) -> Picture:
    """The lanes of some sensors and of the score.

    Args:
        frame: of `tabdiff.operations.tracing.trace`, times with their zone.
        trace: whose.
        sensors: shown, from the top.
        events: alerts that last, with `id`, `at`, `ended` or `first_place`, `last_place`.
        states: of events by number: a key of `STATES`.
        stretch: first and last time of the axis.
        beside: another stretch to compare with.
        zoom: whether a stretch can be marked.
    """
    sets = [{"source": strokes(frame, trace, sensors)}]
    if beside is not None and not beside.frame.is_empty():
        sets.append({"source": strokes(beside.frame, trace, sensors)})
    lanes = [*sensors, "score"]
    spans = [_span(event, states.get(event["id"], "open"), trace) for event in events]
    least = 0.06 * (moment(stretch[1]) - moment(stretch[0]))  # narrower ones have no room for a label
    series: list[dict[str, Any]] = []
    for lane, name in enumerate(lanes):
        here = {"xAxisIndex": lane, "yAxisIndex": lane, "type": "line", "symbol": "none", "animation": False}
        if lane < len(sensors):
            series += _sensor(here, lane, literal(name, 60), name in trace.numbers, len(sets) > 1, beside)
        else:
            series += _scores(here, trace, len(sets) > 1, beside)
        series[-1]["markArea"] = {
            "silent": True,
            "data": [_shade(span, lane == 0 and span[1] - span[0] > least) for span in spans],
        }
    top = max([trace.threshold or 0.0, *frame["score"].drop_nulls().to_list()]) * 1.08 or 1.0
    kind = "value" if trace.interval_us is None or not isinstance(stretch[0], datetime) else "time"
    option = {
        "dataset": sets,
        "grid": [
            {"left": 62, "right": 16, "top": _TOP + lane * (_LANE + _GAP), "height": _LANE}
            for lane in range(len(lanes))
        ],
        "xAxis": [_x(lane, lane == len(lanes) - 1, kind, stretch) for lane in range(len(lanes))],
        "yAxis": [
            _y(lane, name, name in trace.categories, top if lane == len(sensors) else None)
            for lane, name in enumerate(lanes)
        ],
        "series": series,
        "tooltip": {"trigger": "axis", "confine": True, "axisPointer": {"type": "line"}},
        "axisPointer": {"link": [{"xAxisIndex": "all"}]},
        "legend": {"show": False},
    } | (_BRUSH if zoom else {})
    return Picture(
        option,
        _TOP + len(lanes) * (_LANE + _GAP) - _GAP + _BOTTOM,
        describe(frame, trace, sensors, events, states),
        lanes,
    )


def _sensor(
    here: Mapping[str, Any], lane: int, name: str, number: bool, compared: bool, beside: Beside | None
) -> list[dict[str, Any]]:
    """Band, expectation, the other stretch and what was recorded, in this order, so that the last lies on top."""
    if not number:
        return [
            {
                **here,
                "name": name,
                "step": "end",
                "encode": _at(f"v{lane}"),
                "color": RECORDED,
                "lineStyle": {"width": 2},
            }
        ]
    band = {
        **here,
        "stack": f"band {lane}",
        "stackStrategy": "all",
        "lineStyle": {"opacity": 0},
        "silent": True,
        "tooltip": {"show": False},
    }
    found: list[dict[str, Any]] = [
        {**band, "name": f"{name}: lower end", "encode": _at(f"l{lane}"), "color": EXPECTED},
        {**band, "name": f"{name}: band", "encode": _at(f"h{lane}"), "color": EXPECTED, "areaStyle": {"opacity": 0.28}},
        {
            **here,
            "name": f"{name}, expected",
            "encode": _at(f"e{lane}"),
            "color": EXPECTED,
            "lineStyle": {"width": 1, "type": "dashed"},
        },
    ]
    if compared and beside is not None:
        other = {"datasetIndex": 1, "color": OTHER, "lineStyle": {"width": 1.2, "type": "dotted"}}
        found.append({**here, **other, "name": f"{name}, {literal(beside.name, 60)}", "encode": _at(f"v{lane}")})
    return [*found, {**here, "name": name, "encode": _at(f"v{lane}"), "color": RECORDED, "lineStyle": {"width": 1.4}}]


def _scores(here: Mapping[str, Any], trace: Trace, compared: bool, beside: Beside | None) -> list[dict[str, Any]]:
    line: dict[str, Any] = {
        **here,
        "name": "score",
        "encode": _at("score"),
        "color": SCORE,
        "areaStyle": {"opacity": 0.25},
    }
    line["lineStyle"] = {"width": 1.2}
    if trace.threshold is not None:
        mark = {"yAxis": trace.threshold, "label": {"formatter": "threshold", "position": "insideEndTop"}}
        line["markLine"] = {
            "silent": True,
            "symbol": "none",
            "data": [mark],
            "lineStyle": {"color": "#D55E00", "type": "dashed"},
        }
    if compared and beside is not None:
        other = {"datasetIndex": 1, "color": OTHER, "lineStyle": {"width": 1.2, "type": "dotted"}}
        return [{**here, **other, "name": f"score, {literal(beside.name, 60)}", "encode": _at("score")}, line]
    return [line]


def _at(column: str) -> dict[str, str]:
    return {"x": "x", "y": column}


def _x(lane: int, last: bool, kind: str, stretch: tuple[Any, Any]) -> dict[str, Any]:
    axis: dict[str, Any] = {"type": kind, "gridIndex": lane, "min": moment(stretch[0]), "max": moment(stretch[1])}
    return axis | {
        "axisLabel": {"show": last, "hideOverlap": True} | ({"formatter": _CLOCK} if kind == "time" else {}),
        "axisTick": {"show": last},
        "splitLine": {"show": False},
    }


def _y(lane: int, name: str, category: bool, top: float | None) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "type": "category" if category else "value",
        "gridIndex": lane,
        "name": literal(name, 60),
        "nameLocation": "end",
        "nameGap": 8,
        "nameTextStyle": {"align": "left", "fontWeight": "bold", "padding": [0, 0, 0, -52]},
        "axisLabel": {"width": 50, "overflow": "truncate", "hideOverlap": True},
    }
    if top is not None:  # the threshold is on the axis even where nothing comes near it
        half = 10 ** math.floor(math.log10(top)) / 2
        return axis | {"min": 0, "max": math.ceil(top / half) * half, "splitNumber": 3}
    return axis if category else axis | {"scale": True, "splitNumber": 3}


def _span(event: Mapping[str, Any], state: str, trace: Trace) -> tuple[Any, Any, str, str]:
    """From when to when (at least one interval), how it is shaded, and its label."""
    first, last = (
        (event["at"], event["ended"] or event["at"])
        if event["at"] is not None
        else (event["first_place"], event["last_place"])
    )
    first, last = moment(first), moment(last)
    if first == last:
        last += (trace.interval_us or 0) / 1000 if event["at"] is not None else trace.steps or 1
    return first, last, state, f"{event['id']}: {state}"


def _shade(span: tuple[Any, Any, str, str], named: bool) -> list[dict[str, Any]]:
    first, last, state, label = span
    colour, opacity, edge = STATES[state]
    style = {"color": colour, "opacity": opacity, "borderColor": colour, "borderWidth": 1, "borderType": edge}
    shown = {"show": named, "formatter": label, "position": "insideTopLeft", "fontSize": 10, "color": "inherit"}
    return [{"xAxis": first, "itemStyle": style, "label": shown}, {"xAxis": last}]


def moment(place: Any) -> Any:
    """A time as ECharts counts it: milliseconds since 1970 in UTC; steps as they are."""
    return place.timestamp() * 1000 if isinstance(place, datetime) else place


def from_moment(value: float, like: Any) -> Any:
    """The other way round, to a time like another one."""
    return datetime.fromtimestamp(value / 1000, UTC) if isinstance(like, datetime) else type(like)(value)


def describe(
    frame: pl.DataFrame,
    trace: Trace,
    sensors: Sequence[str],
    events: Sequence[Mapping[str, Any]],
    states: Mapping[int, str],
) -> str:
    """What the picture shows, in words."""
    names = ", ".join(literal(name, 40) for name in sensors)
    said = f"Lanes of {names} with what was expected, and the score, over {frame['places'].sum():,} places"
    peak = frame.filter(pl.col("score") == pl.col("score").max())
    if peak.height:
        said += (
            f". Highest score {peak['score'][0]:.3g} at {peak['start'][0]:%d %b %Y %H:%M}"
            if isinstance(peak["start"][0], datetime)
            else f". Highest score {peak['score'][0]:.3g} at {peak['start'][0]}"
        )
        said += f" (threshold {trace.threshold:.3g})" if trace.threshold is not None else ""
    gaps = int(frame["gap"].sum())
    said += f". {gaps} gaps" if gaps else ""
    return (
        f"{said}. {len(events)} events"
        + "".join(f"; {event['id']} {states.get(event['id'], 'open')}" for event in events[:10])
        + "."
    )


def sketch(
    frame: pl.DataFrame, trace: Trace, spans: Sequence[tuple[Any, Any]], window: tuple[Any, Any]
) -> dict[str, Any]:
    """The score of everything in a low strip, events as marks, the window that the lanes show shaded."""
    numeric = not isinstance(window[0], datetime)
    points = pl.concat([frame.filter("gap").select(x="start"), frame.select("score", x="start")], how="diagonal").sort(
        "x", "score"
    )
    shade = {"color": RECORDED, "opacity": 0.22}
    areas = [[{"xAxis": moment(window[0]), "itemStyle": shade}, {"xAxis": moment(window[1])}]]
    alarm = {"color": "#D55E00", "opacity": 0.5}
    areas += [[{"xAxis": moment(first), "itemStyle": alarm}, {"xAxis": moment(last)}] for first, last in spans]
    line = {
        "type": "line", "symbol": "none", "animation": False, "encode": {"x": "x", "y": "score"}, "color": SCORE,
        "lineStyle": {"width": 1}, "areaStyle": {"opacity": 0.3}, "name": "highest score", "markArea": {"silent": True, "data": areas},
    }  # fmt: skip
    return {
        "dataset": [{"source": points.select("x", "score")}],
        "grid": {"left": 62, "right": 16, "top": 6, "bottom": 22},
        "xAxis": {
            "type": "value" if numeric else "time",
            "axisLabel": {"hideOverlap": True} | ({} if numeric else {"formatter": _CLOCK}),
            "splitLine": {"show": False},
        },
        "yAxis": {"type": "value", "show": False},
        "series": [line],
    }
