"""Everything that can be said of one alert: parts of the score, what was expected, the smallest repair, the nearest normal rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tabdiff.columns import Kind, parse_dtype
from tabdiff.conversion import read_ticks
from tabdiff.errors import ConfigError, StoreError
from tabdiff.feedback import Memory
from tabdiff.files import as_text
from tabdiff.operations.tracing import trace, traces
from tabdiff.operations.training import REFERENCE
from tabdiff.schema import Schema
from tabdiff.store import Workspace
from tabdiff.store.triage import Filter

if TYPE_CHECKING:
    from tabdiff.model import Model

_NEAREST, _NORMAL = 3, 0.05  # rows shown, and the p-value above which a row is normal
_MOST_COMPARED = 2000
_MOST_ALIKE = 500  # events of the stream that similar ones are looked for among


def inspect(workspace: Workspace, alert_id: int) -> dict[str, Any]:
    """Explain an alert with the version that raised it, or the champion if that one is retired. An event is told by its score files.

    Args:
        workspace: where alert and model are.
        alert_id: number of the alert.

    Returns:
        version and whether it is the one that scored; contributions by column; reasons with value, expected, low, high, likely and
        repaired; repair, repaired_p_value and whether that is normal; nearest: rows that no version was fitted on and that are
        normal, nearest first. `kind` is "row".

        Of an event: kind ("event" or "silent"), version, own, contributions (share of each sensor that is named), reasons, trace (places around
        it, as `tracing.trace` gives them), similar (other events of the stream that the same sensor carries, newest first).

    Raises:
        StoreError: no such alert, or no version is left to explain it.
        SchemaError: the champion cannot read the row any more.
        RuntimeUnavailable: nothing is installed that runs the model.
    """
    alert = workspace.triage.get(alert_id)
    if alert["kind"] != "row":
        return _event(workspace, alert)
    version = workspace.models.by_id(alert["model_id"])
    own = version.folder is not None
    if not own:
        version = workspace.models.get(alert["model"])
    if version.folder is None:
        raise StoreError(f"no version of {alert['model']!r} is left to explain alert {alert_id}. Train one.")
    model = _load(version.folder / "bundle")
    frame = as_rows([alert["values"]], model.schema)
    (found,) = model.explain(frame, [0])
    return {
        "kind": "row",
        "version": version.version,
        "own": own,
        "contributions": found.contributions,
        "reasons": [vars(reason) for reason in found.reasons],
        "repair": found.repair,
        "repaired_p_value": found.repaired_p_value,
        "normal": found.normal,
        "nearest": _nearest(model, frame, version.folder / REFERENCE),
    }


def _event(workspace: Workspace, alert: dict[str, Any]) -> dict[str, Any]:
    """What score files and other alerts say of an event; no model is asked."""
    about = next((each for each in traces(workspace) if each.stream_id == alert["stream_id"]), None)
    if about is None:
        raise StoreError(
            f"the champion of {alert['model']!r} is not of a series any more, so alert {alert['id']} has no trace."
        )
    first, last = alert["at"], alert["ended"]
    if first is None and about.steps is not None:  # steps have no date
        peak = int(next(iter(alert["values"].values())))
        reach = about.steps * (about.window + alert["last_place"] - alert["first_place"])
        first, last = peak - reach, peak + reach
    elif first is not None and about.interval_us is not None:
        reach = timedelta(microseconds=about.interval_us * about.window)
        first, last = first - reach, last + reach
    named = [reason["column"] for reason in alert["reasons"]]
    total = sum(reason["part"] for reason in alert["reasons"]) or 1.0
    alike = [
        {name: other[name] for name in ("id", "at", "ended", "entity", "score", "excess", "verdict")}
        for other in workspace.triage.queue(
            Filter(source=alert["source"], model=alert["model"], kind=alert["kind"], state="all"),
            newest=True,
            limit=_MOST_ALIKE,
        )
        if other["id"] != alert["id"] and named and other["reasons"] and other["reasons"][0]["column"] == named[0]
    ]
    return {
        "kind": alert["kind"],
        "version": workspace.models.by_id(alert["model_id"]).version,
        "own": True,
        "contributions": {reason["column"]: reason["part"] / total for reason in alert["reasons"]},
        "reasons": alert["reasons"],
        "trace": trace(workspace, about, alert["entity"], first, last, named),
        "similar": alike[:_NEAREST],
    }


@functools.lru_cache(maxsize=4)
def _load(folder: Path) -> Model:
    from tabdiff.loading import load

    return load(folder)  # a version never changes


def as_rows(values: Sequence[Mapping[str, Any]], schema: Schema) -> pl.DataFrame:
    """Rows as alerts keep them, as a table that the schema takes: times, times of day and durations, kept as text, have their type again."""
    frame = pl.DataFrame(list(values), infer_schema_length=None, strict=False)
    read: list[pl.Series] = []
    for column in schema.columns:
        if frame.schema.get(column.name) != pl.String:
            continue
        text, dtype = frame[column.name], parse_dtype(column.dtype)
        if (ticks := read_ticks(text, column)) is not None:
            read.append((ticks * 1000).cast(pl.Time) if dtype == pl.Time else ticks.cast(pl.Duration("us")))
        elif column.kind is Kind.DATETIME and not column.time_format:
            read.append(text.str.to_datetime(strict=False))
    return frame.with_columns(read)


def _nearest(model: Model, frame: pl.DataFrame, reference: Path) -> list[dict[str, Any]]:
    """The nearest of the rows put aside that are normal, in the metric of the view that compares rows."""
    if not reference.is_file():
        return []
    rows = pl.read_parquet(reference, n_rows=_MOST_COMPARED)
    if not rows.height:
        return []
    try:
        memory = Memory.of(model.codec, model.bundle.tensors)
        slots, transform = memory.slots, memory.transform
    except ConfigError:  # it keeps no rows; these are not its own
        slots = model.codec.layout.view("raw")
        transform = np.eye(slots.stop - slots.start)
    one, others = (model.codec.encode(model.schema.conform(f)).x[:, slots] @ transform for f in (frame, rows))
    distance = np.sqrt(((others - one) ** 2).sum(axis=1))
    order = np.argsort(distance, kind="stable")[: 10 * _NEAREST]
    normal = model.score(rows[order.tolist()]).p_value > _NORMAL
    chosen = [int(place) for place, fine in zip(order, normal, strict=True) if fine][:_NEAREST]
    shown = rows.select(map(as_text, rows))
    return [shown.row(place, named=True) for place in chosen]
