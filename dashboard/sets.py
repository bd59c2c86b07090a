"""Synthetic sets that were drawn: the quality report inline, and downloads for sets that passed the copy check."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

from dashboard import access, pictures, records, work
from dashboard.state import local, select, selected
from dashboard.text import csv_bytes, literal, plain
from tabdiff.errors import StoreError

_CSV_ROWS = 1_000_000


def show(name: str) -> None:
    """Sets that were drawn: one of them with its report and downloads."""
    found = [each for each in records.synthetic_sets(name) if each["folder"]]
    st.subheader("Full sets")
    if not found:
        st.caption("None was drawn from this model yet.")
        return
    numbers = [each["id"] for each in found]
    wanted = selected("set")
    by_number = {each["id"]: each for each in found}
    key = f"set-{name}-{wanted}-{len(numbers)}"
    number = st.selectbox(
        "Set",
        numbers,
        index=numbers.index(int(wanted)) if wanted.isdecimal() and int(wanted) in numbers else 0,
        format_func=lambda each: _set_words(by_number[each]),
        key=key,
        on_change=_chosen,
        args=(key,),
    )
    chosen = by_number[number]
    report = chosen["report"]
    copies = report.get("copies") or {
        "passed": True,
        "tested": False,
        "found": "not tested: an older version drew this set",
    }
    if not copies["passed"]:
        st.error(
            f"This set cannot be downloaded: {plain(copies['found'], 400)}. Draw it with copies that are not let out, or fit on more rows."
        )
    else:
        _downloads(chosen)
    _report(report, copies)


def _chosen(key: str) -> None:
    select(set=st.session_state[key])


def _set_words(each: dict[str, Any]) -> str:
    options = each["report"].get("options", {})
    given = ", ".join(literal(column, 30) for column in options.get("given", {}))
    return f"{each['rows']:,} rows · version {each['version']} · {local(each['created'])}{' · given ' + given if given else ''}"


def _downloads(chosen: dict[str, Any]) -> None:
    folder, base = chosen["folder"], f"{chosen['model']}-synthetic-{chosen['id']}"
    mayfully = access.may("analyst")
    with st.container(horizontal=True):
        st.download_button(
            "Parquet",
            functools.partial(take, folder, "parquet"),
            f"{base}.parquet",
            "application/vnd.apache.parquet",
            disabled=not mayfully,
            icon=":material/download:",
            on_click="ignore",
            key=f"parquet-{chosen['id']}",
            type="primary",
        )
        if chosen["rows"] <= _CSV_ROWS:
            st.download_button(
                "CSV for spreadsheets",
                functools.partial(take, folder, "csv"),
                f"{base}.csv",
                "text/csv",
                disabled=not mayfully,
                icon=":material/download:",
                on_click="ignore",
                key=f"csv-{chosen['id']}",
                help="Text that a spreadsheet would run as a formula is made harmless.",
            )
        for name, words, kind in (
            ("report.html", "Report", "text/html"),
            ("report.json", "Report as JSON", "application/json"),
        ):
            path = Path(folder, name)
            if path.is_file():
                st.download_button(
                    words,
                    path.read_bytes(),
                    f"{base}-{name}",
                    kind,
                    icon=":material/description:",
                    on_click="ignore",
                    key=f"{name}-{chosen['id']}",
                )
    if not mayfully:
        st.caption("Downloading rows needs the role analyst.")


def take(folder: str, kind: str) -> bytes:
    """The rows of a set as a file, for people who may have them, if they are fit to be given away.

    Raises:
        NotAllowedError: the person is no analyst.
        StoreError: the copy check failed, or the set is gone.
    """
    access.allow("analyst")
    copies = records.read_report(folder).get("copies") or {"passed": True}
    if not copies["passed"]:
        raise StoreError(f"this set cannot be downloaded: {copies['found']}.")
    path = Path(folder, "rows.parquet")
    return path.read_bytes() if kind == "parquet" else csv_bytes(pl.read_parquet(path))


def _report(report: dict[str, Any], copies: dict[str, Any]) -> None:
    """The quality report: what must hold first, then how alike the rows are."""
    checks = report.get("checks", [])
    failed = [check for check in checks if not check["passed"]]
    with st.container(horizontal=True):
        st.metric("Valid", f"{len(checks) - len(failed)} of {len(checks)} checks", border=True)
        st.metric(
            "Copies of training rows", f"{copies['copies']:,}" if copies.get("tested") else "not tested", border=True
        )
        st.metric("Compared with", f"{report.get('compared_with', 0):,} unseen rows", border=True)
    for check in failed[:10]:
        place = f"**{plain(check['column'])}** " if check["column"] != "(the table)" else ""
        st.markdown(f":material/error: {place}{plain(check['rule'], 300)}: {plain(check['found'], 300)}")
    st.caption(plain(copies["found"], 400))
    if report.get("not_compared"):
        st.caption(f"Not compared in full: {plain(report['not_compared'], 400)}.")
    figures = report.get("figures", [])
    if not figures and "shape_error" in report:
        st.caption(
            f"Shape error {report['shape_error']:.1f} %, trend error {report['trend_error']:.1f} %; lower is better."
        )
    if figures:
        rows = [
            {
                "Figure": literal(f["name"], 80),
                "This set": f["value"],
                "Real rows (floor)": f["floor"],
                "Independent columns (ceiling)": f["ceiling"],
            }
            for f in figures
        ]
        config = {name: st.column_config.NumberColumn(format="%.3f") for name in list(rows[0])[1:]}
        st.dataframe(pl.DataFrame(rows), hide_index=True, column_config=config, alt="Figures with floor and ceiling")
        columns, pairs = st.tabs(["Columns", "Pairs"])
        with columns:
            st.altair_chart(
                pictures.anchored(report["columns"][:20]),
                alt="Error of each column between floor and ceiling, worst first",
            )
        with pairs:
            st.altair_chart(
                pictures.anchored(report["pairs"][:20]),
                alt="Error of pairs of columns between floor and ceiling, worst first",
            )
        st.caption(
            "Orange: this set. Blue: what real rows have that nobody was fitted on. The grey line ends where independent columns are."
        )
    with st.expander("How it was drawn"):
        work.shown_json(report.get("options", {}))
