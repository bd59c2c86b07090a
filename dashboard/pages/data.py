"""Sources: register or upload one, see what its columns were taken for, and start a training."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

import polars as pl
import streamlit as st

from dashboard import access, bounded, intake, queries, records, work
from dashboard.state import action, ago, page, select, selected
from dashboard.text import literal, plain
from tabdiff.columns import Kind, Role
from tabdiff.operations.jobs import MonitorJob, ScoreJob, TrainJob
from tabdiff.operations.looking import UPLOADED
from tabdiff.store.ledger import in_words

_NEW = {
    "file": "files not seen before",
    "column": "a larger value in a column",
    "partition": "subfolders not seen before",
}
_ICONS = {"error": ":material/error:", "warning": ":material/warning:", "info": ":material/info:"}
_PROMOTE = {
    "auto": "if it is not worse than the one in service",
    "ask": "only when a person says so",
    "never": "never",
}


@action("admin")
def keep_upload(name: str, content: bytes) -> str:
    """Keep the uploaded file as a source."""
    source = str(st.session_state["upload_source"]).strip()
    intake.keep(queries.workspace(), source, name, content)
    select(source=source, run=None)
    return f"The file is kept as new rows of the source {source}."


@action("admin")
def register() -> str:
    """Register where rows are."""
    given = st.session_state
    source = str(given["register_name"]).strip()
    options = {
        "location": str(given["register_location"]).strip(),
        "table": str(given["register_table"]).strip() or None,
        "new": given["register_new"],
        "column": str(given["register_column"]).strip() or None,
        "keys": tuple(key.strip() for key in str(given["register_keys"]).split(",") if key.strip()),
    }
    queries.workspace().sources.add(source, **options)
    select(source=source, run=None)
    return f"The source {source} is registered."


@action("admin")
def start_training(source: str, overrides: dict[str, dict[str, str]]) -> str:
    """Start a training as a flow."""
    given = st.session_state
    steps = given.get("train_steps")
    fit: dict[str, Any] = {"train": {"seed": int(given.get("train_seed") or 0)}}
    if steps:
        fit["train"]["steps"] = int(steps)
    if given.get("train_dirty"):
        fit["score"] = {"contaminated": True}
    job = TrainJob.of(
        source=source,
        model=str(given["train_model"]).strip(),
        columns=overrides,
        promote=given["train_promote"],
        max_rows=int(given["train_rows"]),
        fit=fit,
    )
    return work.begin("train", job, "data")


@action("analyst")
def start_use(kind: Literal["score", "monitor"], source: str) -> str:
    """Score what is new in a source, or look for drift, as a flow."""
    options = {"source": source, "model": st.session_state["use_model"]}
    return work.begin(kind, ScoreJob.of(**options) if kind == "score" else MonitorJob.of(**options), "data")


def add_source() -> None:
    """Two ways to a new source."""
    with st.expander("Add a source", icon=":material/add:", expanded=not records.sources()):
        upload, elsewhere = st.tabs(["Upload a file", "Register a path or database"])
        with upload:
            _upload()
        with elsewhere:
            _register()


def _upload() -> None:
    size = intake.MOST_BYTES // 2**20
    file = st.file_uploader(
        f"A table as {', '.join(UPLOADED)}, at most {size} MB",
        type=[suffix.removeprefix(".") for suffix in UPLOADED],
        max_upload_size=size,
        disabled=not access.may("admin"),
        key="upload_file",
    )
    if file is None:
        return
    content = file.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    with st.spinner("Looking at the file"):
        found = _look_at_upload(digest, file.name, content)
    st.markdown(f"**{plain(file.name)}** · {found['rows']:,} rows, {len(found['columns'])} columns")
    show_findings(found["findings"])
    with st.expander("First rows"):
        show_sample(found)
    suggested = re.sub(r"[^a-z0-9]+", "-", file.name.rpartition(".")[0].lower()).strip("-")[:40] or "table"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input("Name of the source", suggested, key="upload_source", max_chars=63, width=260)
        st.button(
            "Keep as a source", type="primary", on_click=keep_upload, args=(file.name, content), key="upload_keep"
        )


@st.cache_data(ttl=600, max_entries=8, show_spinner=False)
def _look_at_upload(digest: str, name: str, _content: bytes) -> dict[str, Any]:
    return intake.look(name, _content)


def _register() -> None:
    with st.form("register", border=False):
        st.text_input("Name", key="register_name", max_chars=63, placeholder="orders")
        st.text_input(
            "Where the rows are",
            key="register_location",
            placeholder="/data/orders, /data/orders-*.parquet, env:SHOP_DATABASE_URL",
            help="The absolute path of a file or folder, a pattern, or env:NAME or file:PATH that holds the URL of a database.",
        )
        st.selectbox("What makes rows new", list(_NEW), format_func=_NEW.__getitem__, key="register_new")
        left, right = st.columns(2)
        left.text_input(
            "Column that only grows", key="register_column", help="Exactly with 'a larger value in a column'."
        )
        right.text_input("Table or view", key="register_table", help="For databases only.")
        st.text_input("Columns that say which row is which", key="register_keys", placeholder="order_id, day")
        st.form_submit_button("Register", on_click=register, disabled=not access.may("admin"))


def choose() -> str:
    """The source that is looked at; empty if there is none."""
    found = records.sources()
    if not found:
        st.info("There is no source yet. Upload a file, or register where rows are.")
        return ""
    names = list(found)
    wanted = selected("source", names[0])
    name = st.selectbox(
        "Source", names, index=names.index(wanted) if wanted in names else 0, key=f"data_source-{wanted}", width=320
    )
    if name != wanted:
        select(source=name, run=None)
    elif selected("source") != name:
        select(source=name)
    spec = found[name]
    about = f"{spec['location']}{' · table ' + spec['table'] if spec['table'] else ''} · new: {_NEW[spec['new']]}"
    keys = f" · keys: {', '.join(spec['keys'])}" if spec["keys"] else ""
    st.caption(plain(about + keys, 400))
    return name


@st.cache_data(ttl=300, max_entries=16, show_spinner=False)
def _look_at_source(home: str, source: str, again: int) -> dict[str, Any]:
    return bounded.look_at_source(source)


def columns_of(source: str, found: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The table of columns, in which kinds and roles can be set; what was set."""
    rows = [
        {
            "Column": literal(column["name"]),
            "Kind": column["kind"],
            "Role": column["role"],
            "Modelled": column["modelled"],
            "Type": literal(column["dtype"], 40),
            "Missing": column["missing"],
            "Distinct": column["distinct"],
            "Range": literal(column["range"], 60) if column["range"] else "",
            "Examples": literal(", ".join(column["examples"]), 120) if column["examples"] else "",
        }
        for column in found["columns"]
    ]
    digest = hashlib.sha256(repr([column["name"] for column in found["columns"]]).encode()).hexdigest()[:8]
    edited = st.data_editor(
        pl.DataFrame(rows, infer_schema_length=None),
        hide_index=True,
        disabled=[name for name in rows[0] if name not in ("Kind", "Role")],
        key=f"columns-{source}-{digest}",
        height=min(33 * len(rows) + 37, 460),
        column_config={
            "Column": st.column_config.TextColumn(width="medium"),
            "Kind": st.column_config.SelectboxColumn(options=[str(kind) for kind in Kind], help="What the values are."),
            "Role": st.column_config.SelectboxColumn(
                options=[str(role) for role in Role], help="What the column is for."
            ),
            "Missing": st.column_config.NumberColumn(format="percent"),
        },
    )
    set_by_hand: dict[str, dict[str, str]] = {}
    for column, row in zip(found["columns"], edited.to_dicts(), strict=True):
        changed = {
            key: row[key.title()] for key in ("kind", "role") if row[key.title()] and row[key.title()] != column[key]
        }
        if changed:
            set_by_hand[column["name"]] = changed
    return set_by_hand


def show_findings(findings: list[dict[str, str]]) -> None:
    """What may be wrong with the data, worst first."""
    if not findings:
        st.success("Nothing odd was found.", icon=":material/check:")
    for finding in findings[:30]:
        place = f"**{plain(finding['column'])}** " if finding["column"] else ""
        st.markdown(f"{_ICONS[finding['severity']]} {finding['severity']}: {place}{plain(finding['what'], 500)}")
    if len(findings) > 30:
        st.caption(f"and {len(findings) - 30} more")


def show_sample(found: dict[str, Any]) -> None:
    """The first rows, as text."""
    names = [literal(column["name"], 60) for column in found["columns"]]
    unique = [name if names.index(name) == place else f"{name} ({place})" for place, name in enumerate(names)]
    st.dataframe(pl.DataFrame(found["sample"], schema=unique, orient="row"), hide_index=True, alt="First rows")


def train(source: str, overrides: dict[str, dict[str, str]], found: dict[str, Any]) -> None:
    """The form that starts a training, and the training that was started."""
    st.subheader("Train")
    if overrides:
        st.caption(
            f"With {len(overrides)} column{'s' if len(overrides) > 1 else ''} set by hand: {plain(', '.join(overrides), 400)}"
        )
    blocked = any(finding["severity"] == "error" for finding in found["findings"]) and not overrides
    if blocked:
        st.error("This table cannot be modelled as it is. Set kinds or roles above, or mend the data.")
    with st.form(f"train-{source}"):
        left, right = st.columns(2)
        left.text_input("Name of the model", source, key="train_model", max_chars=63)
        right.selectbox("Put into service", list(_PROMOTE), format_func=_PROMOTE.__getitem__, key="train_promote")
        with st.expander("More options"):
            one, two, three = st.columns(3)
            one.number_input("Newest rows used", 20, 10_000_000, 200_000, step=10_000, key="train_rows")
            two.number_input("Steps at most", 1, 1_000_000, None, key="train_steps", placeholder="chosen from the rows")
            three.number_input("Seed", 0, 2**31 - 1, 0, key="train_seed")
            st.checkbox("The rows contain anomalies already", key="train_dirty")
        st.form_submit_button(
            "Start training",
            type="primary",
            on_click=start_training,
            args=(source, overrides),
            disabled=blocked or not access.may("admin"),
        )
    if not access.may("admin"):
        st.caption("Registering, uploading and training need the role admin.")
    use(source)
    if work.followed():
        with st.container(border=True):
            run = work.follow(work.followed(), log=True)
            if run is not None and run.kind_of_state == "COMPLETED" and run.job.get("model"):
                st.page_link(
                    "pages/models.py",
                    label="Look at the model",
                    icon=":material/deployed_code:",
                    query_params={"model": run.job["model"]},
                )
    else:
        work.say_trouble()


def use(source: str) -> None:
    """Score new rows with a model in service, or look for drift."""
    names = sorted({version["model"] for version in records.versions() if "champion" in version["aliases"]})
    if not names:
        return
    st.subheader("Score")
    blocked = not access.may("analyst")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox(
            "With the model", names, index=names.index(source) if source in names else 0, key="use_model", width=260
        )
        st.button("Score new rows", key="use_score", on_click=start_use, args=("score", source), disabled=blocked)
        st.button("Look for drift", key="use_monitor", on_click=start_use, args=("monitor", source), disabled=blocked)


def overview(source: str) -> None:
    """What the source looks like."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("What the columns were taken for")
        if st.button("Look again", icon=":material/refresh:", type="tertiary"):
            st.session_state["look_again"] = st.session_state.get("look_again", 0) + 1
    with st.spinner("Looking at the newest rows"):
        found = _look_at_source(str(queries.workspace().home), source, st.session_state.get("look_again", 0))
    st.caption(
        f"Of the newest {found['rows']:,} rows. Set a kind or role in the table to override it in the next training."
    )
    overrides = columns_of(source, found)
    if overrides and st.session_state.get("overrides_checked") != (source, repr(overrides)):
        bounded.look_at_source(source, overrides)  # says what is impossible before a flow does
        st.session_state["overrides_checked"] = (source, repr(overrides))
    st.subheader("Data quality")
    show_findings(found["findings"])
    for event in records.findings_of(source):
        st.markdown(
            f"{_ICONS[event['severity']]} {plain(event['kind'].replace('_', ' '))} {plain(event['subject'])} ({plain(ago(event['created']))}): {plain(in_words(event['detail']), 300)}"
        )
    with st.expander("First rows"):
        show_sample(found)
    train(source, overrides, found)


with page("Data", "Where rows come from, what their columns were taken for, and what may be wrong with them."):
    add_source()
    name = choose()
    if name:
        overview(name)
