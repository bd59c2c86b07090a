"""The form on the page Synthesize: its widgets, and the job that they make."""

from __future__ import annotations

from datetime import date
from typing import Any

import streamlit as st

from dashboard import drawing
from dashboard.state import selected
from dashboard.text import literal, plain
from tabdiff.columns import Kind
from tabdiff.operations.jobs import SynthesizeJob

_LARGEST_SEED, _LARGEST = 2**31 - 1, 2.0**53
_COPIES = {"refuse": "refuse the set if there are more copies than chance explains", "redraw": "let no copy out"}
_RARE = {"redraw": "never drawn", "null": "drawn as missing", "keep": "drawn as they are"}
_MISSING = {"keep": "as often as in training", "fill": "none"}
_STEPS = {"dpmpp_2m": "DPM-Solver++(2M)", "heun": "Heun", "ddpm": "DDPM"}


def form(name: str, version: int, found: dict[str, Any]) -> SynthesizeJob:
    """Everything that can be set; the job that it makes.

    Raises:
        ConfigError: the settings contradict each other.
    """
    before = drawing.from_address(selected("job"), name)
    tag = f"{name}-{version}"
    fields = {field["name"]: field for field in found["fields"]}
    left, right = st.columns(2)
    rows = left.number_input("Rows", 1, 10_000_000, before.rows, step=1000, key=f"rows-{tag}")
    seed = right.number_input(
        "Seed",
        0,
        _LARGEST_SEED,
        min(before.seed, _LARGEST_SEED),
        key=f"seed-{tag}",
        help="The same seed gives the same rows.",
    )
    names = st.multiselect(
        "Conditions on columns",
        list(fields),
        [column for column in before.given if column in fields],
        format_func=literal,
        key=f"given-{tag}",
        placeholder="none: rows like those of training",
    )
    given = {column: _condition(fields[column], before, tag) for column in names}
    balance = _balance(fields, names, before, tag)
    kept, own = _rules(found, tag)
    with st.expander("What may be published, and how it is drawn"):
        copies = st.selectbox(
            "Copies of training rows",
            list(_COPIES),
            format_func=_COPIES.__getitem__,
            key=f"copies-{tag}",
            index=int(before.sample.copies == "redraw"),
        )
        one, two = st.columns(2)
        rare = one.selectbox(
            "Rare categories",
            list(_RARE),
            format_func=_RARE.__getitem__,
            key=f"rare-{tag}",
            index=list(_RARE).index(before.sample.rare),
        )
        missing = two.selectbox(
            "Missing values",
            list(_MISSING),
            format_func=_MISSING.__getitem__,
            key=f"missing-{tag}",
            index=list(_MISSING).index(before.sample.missing),
        )
        sampler = one.selectbox(
            "Sampler",
            list(_STEPS),
            format_func=_STEPS.__getitem__,
            key=f"sampler-{tag}",
            index=list(_STEPS).index(before.sample.sampler),
        )
        steps = two.number_input("Steps", 1, 1000, min(before.sample.steps, 1000), key=f"steps-{tag}")
    sample = {"copies": copies, "rare": rare, "missing": missing, "sampler": sampler, "steps": steps}
    chosen = drawing.rules(found["rule_values"], kept, own)
    made: SynthesizeJob = SynthesizeJob.of(
        model=name,
        version=version,
        rows=rows,
        seed=seed,
        given=given,
        balance=balance,
        constraints=chosen,
        sample=sample,
    )
    return made


def _condition(field: dict[str, Any], before: SynthesizeJob, tag: str) -> Any:
    """The widgets of one column, and what they say."""
    name, key = field["name"], f"{tag}-{field['name']}"
    asked = before.model_dump(mode="json")["given"].get(name)
    with st.container(border=True):
        st.markdown(f"**{plain(name)}**")
        if field["kind"] in (Kind.CATEGORICAL, Kind.BOOLEAN):
            options = field["categories"] or ["false", "true"]
            start_with = [
                str(value).lower() if isinstance(value, bool) else str(value)
                for value in (asked if isinstance(asked, list) else [asked])
                if value is not None
            ]
            chosen = st.multiselect(
                "Values",
                options,
                [value for value in start_with if value in options],
                format_func=literal,
                key=f"among-{key}",
                label_visibility="collapsed",
                placeholder="choose one or several",
            )
            missing = _missing_box(field, before, key)
            return drawing.condition(field, chosen=chosen, missing=missing)
        ends = asked if isinstance(asked, dict) else {"low": asked, "high": asked}
        low: Any
        high: Any
        left, right = st.columns(2)
        if field["kind"] == Kind.DATETIME:
            first, last = drawing.moment(field["minimum"]), drawing.moment(field["maximum"])
            days = [_day(ends.get(end), first, last) for end in ("low", "high")]
            low = left.date_input("from", days[0], min_value=first, max_value=last, key=f"low-{key}")
            high = right.date_input("to", days[1], min_value=first, max_value=last, key=f"high-{key}")
        else:
            whole = field["kind"] == Kind.INTEGER
            number = int if whole else float
            values = [number(ends[end]) if _shown(ends.get(end)) else None for end in ("low", "high")]
            step = 1 if whole else None
            low = left.number_input(
                "from",
                value=values[0],
                step=step,
                format=None if whole else "%g",
                placeholder=f"{field['minimum']:g}" if field["minimum"] is not None else "",
                key=f"low-{key}",
            )
            high = right.number_input(
                "to",
                value=values[1],
                step=step,
                format=None if whole else "%g",
                placeholder=f"{field['maximum']:g}" if field["maximum"] is not None else "",
                key=f"high-{key}",
            )
        return drawing.condition(field, low=low, high=high, missing=_missing_box(field, before, key))


def _shown(value: Any) -> bool:
    """Whether a widget of numbers can show it: browsers have no larger ones."""
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _missing_box(field: dict[str, Any], before: SynthesizeJob, key: str) -> bool:
    if not field["nullable"]:
        return False
    asked = field["name"] in before.given and before.given[field["name"]] is None
    return st.checkbox("missing instead", asked, key=f"gap-{key}")


def _day(value: Any, first: date | None, last: date | None) -> date | None:
    """The day of text from the address, if the widget can show it."""
    try:
        day = date.fromisoformat(str(value)[:10])
    except ValueError:
        return None
    return day if (first or day) <= day <= (last or day) else None


def _balance(fields: dict[str, dict[str, Any]], given: list[str], before: SynthesizeJob, tag: str) -> Any:
    """Columns whose values shall be equally frequent, or one with shares."""
    able = [n for n, field in fields.items() if field["kind"] in (Kind.CATEGORICAL, Kind.BOOLEAN) and n not in given]
    if not able:
        return []
    asked = list(before.balance)
    columns = st.multiselect(
        "Balance",
        able,
        [name for name in asked if name in able],
        format_func=literal,
        key=f"balance-{tag}",
        placeholder="none: as often as in training",
        help="Values of these columns, or their combinations, come out equally often.",
    )
    levels = fields[columns[0]]["categories"] or ["false", "true"] if len(columns) == 1 else []
    if not 2 <= len(levels) <= 12:
        return columns
    shares = before.balance if isinstance(before.balance, dict) else {}
    if not st.toggle("Own shares", bool(shares), key=f"own-{tag}-{columns[0]}"):
        return columns
    known = {level: share for level, share in shares.get(columns[0], {}).items() if _shown(share) and share >= 0}
    boxes = st.columns(min(len(levels), 4))
    found = {
        level: boxes[place % len(boxes)].number_input(
            plain(level, 40),
            0.0,
            None,
            float(known.get(level, 1.0)),
            key=f"share-{tag}-{columns[0]}-{place}",
        )
        for place, level in enumerate(levels)
    }
    return {columns[0]: {level: share for level, share in found.items() if share > 0}}


def _rules(found: dict[str, Any], tag: str) -> tuple[list[int], str]:
    """Rules of the model that are kept, and own ones as text."""
    with st.expander(f"Rules that rows obey: {len(found['rules'])}"):
        kept = st.multiselect(
            "Rules of the model",
            range(len(found["rules"])),
            range(len(found["rules"])),
            format_func=lambda place: literal(found["rules"][place], 120),
            key=f"rules-{tag}",
            placeholder="none",
        )
        own = st.text_area(
            "Your own rules",
            key=f"own_rules-{tag}",
            max_chars=10_000,
            placeholder='[[constraint]]\nkind = "range"\ncolumn = "price"\nlow = 5',
            help="As TOML: kinds are range, among, order, sum, combinations, one_hot, unique.",
        )
    return list(kept), own or ""
