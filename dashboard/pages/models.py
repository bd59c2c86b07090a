"""Model versions: what they are, how well calibrated, and which one is in service."""

from __future__ import annotations

import secrets
from typing import Any

import polars as pl
import streamlit as st

from dashboard import access, pictures, queries, records
from dashboard.state import action, ago, local, page, select, selected
from dashboard.text import literal, plain

_NAMES = {"champion": "in service", "previous": "in service before"}


@action("admin")
def promote(name: str, version: int, champion: int | None) -> str:
    """Make a version the champion, unless another one became it since the page was drawn."""
    workspace = queries.workspace()
    workspace.models.promote(name, version, unless_changed_from=champion)
    _tell("promoted", name, version)
    return f"{name} version {version} is in service now."


@action("admin")
def roll_back(name: str) -> str:
    """Bring the champion of before back."""
    version = queries.workspace().models.roll_back(name)
    _tell("rolled_back", name, version.version)
    return f"{name} version {version.version} is in service again."


def _tell(kind: str, name: str, version: int) -> None:
    """Leave a record of who did it."""
    detail = {"version": version, "by": access.who()}
    queries.workspace().events.tell(kind, name, "info", detail, once=f"{version}-{secrets.token_hex(4)}")


def choose() -> tuple[str, list[dict[str, Any]], dict[str, Any]] | None:
    """The model, its versions, and the version that is looked at; None if there is no model."""
    every = records.versions()
    if not every:
        st.info("There is no model yet. Register a source and start training on the page Data.")
        return None
    names = sorted({version["model"] for version in every})
    wanted = selected("model", names[0])
    name = st.selectbox(
        "Model", names, index=names.index(wanted) if wanted in names else 0, key="models_name", width=320
    )
    mine = [version for version in every if version["model"] == name]
    numbers = [version["version"] for version in mine]
    if wanted != name:
        select(version=None)
    chosen = selected("version")
    champion = next((v["version"] for v in mine if "champion" in v["aliases"]), numbers[0])
    shown = int(chosen) if chosen.isdecimal() and int(chosen) in numbers else champion
    shown = _pick(mine, shown)
    select(model=name, version=shown)
    return name, mine, next(version for version in mine if version["version"] == shown)


def _pick(mine: list[dict[str, Any]], shown: int) -> int:
    """The table of versions; the one that is chosen in it."""
    rows = [
        {
            "Version": version["version"],
            "Use": ", ".join(_NAMES.get(alias, alias) for alias in version["aliases"]),
            "Fitted": local(version["created"]),
            "Training rows": version["rows"],
            "Held-out loss": version["loss"],
            "Folder": "there" if version["folder"] else "removed",
        }
        for version in mine
    ]
    picked = st.dataframe(
        pl.DataFrame(rows, schema_overrides={"Training rows": pl.Int64, "Held-out loss": pl.Float64}),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"versions-{mine[0]['model']}",
        height=min(33 * len(rows) + 37, 260),
        column_config={"Held-out loss": st.column_config.NumberColumn(format="%.4f")},
        alt="Versions of the model, newest first",
    )
    places = picked["selection"]["rows"]
    memory = f"picked-{mine[0]['model']}"
    if places and places[0] < len(mine) and st.session_state.get(memory) != places:
        st.session_state[memory] = places
        return int(mine[places[0]]["version"])
    return shown


def service(name: str, mine: list[dict[str, Any]], shown: dict[str, Any]) -> None:
    """Put a version into service, or the one of before."""
    champion = next((version for version in mine if "champion" in version["aliases"]), None)
    previous = next((version for version in mine if "previous" in version["aliases"]), None)
    mayfully = access.may("admin")
    with st.container(horizontal=True, vertical_alignment="center"):
        if "champion" in shown["aliases"]:
            st.badge("in service", icon=":material/verified:", color="green")
        elif shown["folder"]:
            with st.popover(f"Promote version {shown['version']}", disabled=not mayfully, icon=":material/upgrade:"):
                instead = f"instead of version {champion['version']}" if champion else "as the first one"
                st.write(f"Version {shown['version']} will score and draw from now on, {instead}.")
                identity = champion["id"] if champion else None
                st.button(
                    "Promote", type="primary", key="promote", on_click=promote, args=(name, shown["version"], identity)
                )
        if previous:
            with st.popover(
                f"Roll back to version {previous['version']}", disabled=not mayfully, icon=":material/undo:"
            ):
                st.write(f"Version {previous['version']} will be in service again. Rolling back once more undoes this.")
                st.button("Roll back", type="primary", key="roll_back", on_click=roll_back, args=(name,))
    if not mayfully:
        st.caption("Promoting and rolling back needs the role admin.")


def side_by_side(name: str, shown: dict[str, Any]) -> None:
    """How the version did beside the champion of its time."""
    st.subheader("Challenger and champion")
    found = records.comparison(name, shown["version"])
    if found is None:
        st.caption("No comparison of this version is recorded: they are made when a version is trained in a workspace.")
        return
    decision = {"promoted": "was promoted", "asked": "waits for a person to decide", "kept": "was not promoted"}
    st.markdown(
        f"Version {shown['version']} **{plain(decision.get(found['decision'], found['decision']))}** "
        f"({plain(ago(found['when']))}, run {found['run']}). Measured on rows that no version was fitted on."
    )
    for reason in found["reasons"]:
        if found["champion"] and not reason.endswith("worse"):
            continue  # the table says the same
        st.caption(plain(reason, 400))
    mine, theirs = f"Version {shown['version']}", "Champion then"
    rows = []
    for key, (words, better) in records.FIGURES.items():
        if key in found["challenger"]:
            beside = {theirs: found["champion"].get(key)} if found["champion"] else {}
            rows.append({"Figure": words, mine: found["challenger"][key], **beside, "Better": better})
    config = {column: st.column_config.NumberColumn(format="%.4f") for column in (mine, theirs)}
    st.dataframe(pl.DataFrame(rows), hide_index=True, column_config=config, alt="Figures of both models")


def card(name: str, shown: dict[str, Any]) -> None:
    """What the model folder says."""
    if not shown["folder"]:
        st.info("The folder of this version was removed by clean-up; its record stays.")
        return
    found = records.passport(name, shown["version"])
    report = found["report"]
    tiles = {
        "Training rows": f"{report['train_rows']:,}",
        "Held-out loss": f"{report['held_out']:.4f}",
        "Steps": f"{report['steps']:,} of {report['planned_steps']:,}",
        "Calibration rows": f"{found['calibration_rows']:,}",
    }
    with st.container(horizontal=True):
        for label, value in tiles.items():
            st.metric(label, value, border=True)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Calibration")
        st.caption(
            f"The score of {found['calibration_rows']:,} normal rows that took no part in their own score. A new row's p-value is the share "
            "of them that score at least as high."
        )
        st.altair_chart(
            pictures.calibration(found["curve"]), alt="p-value against score; lines at 1 in 20 and 1 in 100"
        )
    with right:
        st.subheader("Card")
        _facts(found)
    _lists(found)
    st.download_button(
        "Card as Markdown",
        found["card"],
        file_name=f"{name}-{shown['version']}-card.md",
        mime="text/markdown",
        icon=":material/download:",
        on_click="ignore",
    )


def _facts(found: dict[str, Any]) -> None:
    report = found["report"]
    rule = ", ".join(f"{key} {value:g}" for key, value in found["rule"].items())
    compiled = found["compiled"]
    export = (
        f"compiled: {', '.join(compiled)}. It is scored and drawn from without torch."
        if compiled
        else "not compiled. tabdiff export makes it faster on a CPU, and free of torch."
    )
    privacy = (
        f"contains {found['kernel_rows']:,} standardised training rows"
        if found["kernel_rows"]
        else "contains no training rows"
    )
    copies = "samples are tested for copies" if found["remembers"] else "samples cannot be tested for copies"
    facts = {
        "Network": f"{found['width']} wide, {found['blocks']} blocks, {report['parameters']:,} parameters, {found['process']} noise",
        "Fitting": f"{report['seconds']:.0f} s, ended by: {report['finished']}, seed {found['seed']}",
        "Flags": rule,
        "Export": export,
        "Privacy": f"{privacy}; {copies}",
        "Written": f"{found['written']['created']} by tabdiff {found['written']['tabdiff']}",
        "Data": f"fingerprint {found['fingerprint'][:16]}",
        "Folder": found["folder"],
    }
    for label, value in facts.items():
        st.markdown(f"**{label}** {plain(value, 400)}")
    if not compiled:
        st.code(f"tabdiff export {literal(found['folder'], 400)}", language=None)


def _lists(found: dict[str, Any]) -> None:
    with st.expander(f"Columns: {len(found['columns'])}"):
        st.dataframe(pl.DataFrame(found["columns"]), hide_index=True, alt="Columns of the model with kind and role")
    with st.expander(f"Rules that samples obey: {len(found['rules'])}"):
        if found["rules"]:
            st.dataframe(
                pl.DataFrame({"rule": [literal(rule, 400) for rule in found["rules"]]}),
                hide_index=True,
                alt="Rules that samples obey",
            )
        else:
            st.caption("None. Samples are only kept inside the training range.")


with page("Models", "Versions, how well they are calibrated, and which one is in service."):
    picked = choose()
    if picked is not None:
        service(*picked)
        side_by_side(picked[0], picked[2])
        card(picked[0], picked[2])
