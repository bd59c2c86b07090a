"""A level shift that was looked at and is there to stay: from now on it is normal."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import TYPE_CHECKING, Any

import polars as pl

from tabdiff.errors import StoreError
from tabdiff.files import atomic_folder
from tabdiff.operations.levels import ACCEPTED, record, rows_of, shifted
from tabdiff.operations.reading import newest_rows
from tabdiff.operations.series_trials import canonical_times
from tabdiff.operations.training import FITTED, REFERENCE
from tabdiff.store import Workspace

if TYPE_CHECKING:
    from tabdiff.series_model import SeriesModel

_ROWS = 200_000  # newest rows of the source that are looked at
_LEAST = 2  # of so many parts of a window one must have passed since the shift


def accept_level(workspace: Workspace, alert_id: int, author: str, note: str = "") -> dict[str, Any]:
    """Make a version for which the levels of an event's sensors are normal, and promote it.

    The levels are told by the rows of the event's entity from its start on, up to its end or, while it goes on, the newest row: by how far its
    sensors lie off what the others lead to expect, half of the time. The network, programs and calibration stay. The alert is judged normal.

    Args:
        workspace: where alert and model are.
        alert_id: number of an alert of kind "event".
        author, note: who says so, and why.

    Returns:
        run, model, version, alert, author, entity, and for each sensor by how much its level moved.

    Raises:
        StoreError: no such alert, it is not an event, the champion is not of a series any more, or too few rows have come since.
        SourceError: the source cannot be read.
        SchemaError: its rows do not fit the model any more.
    """
    from tabdiff.loading import load_any
    from tabdiff.series_model import SeriesModel

    alert = workspace.triage.get(alert_id)
    if alert["kind"] != "event":
        raise StoreError(f"a level is accepted of an event of a series; alert {alert_id} is of kind {alert['kind']!r}.")
    champion = workspace.models.get(alert["model"])
    assert champion.folder is not None  # an alias keeps its folder
    with workspace.runs.start("accept", f"{alert['source']}:{alert['model']}") as run:
        model = load_any(champion.folder / "bundle")
        if not isinstance(model, SeriesModel):
            raise StoreError(f"{champion} is of a table now, which has no levels. Judge the alert instead.")
        rows, _ = newest_rows(workspace.sources.get(alert["source"])[1], _ROWS)
        accepted = model.accept(_since(rows, model, alert), [reason["column"] for reason in alert["reasons"]])
        moved = _moved(model, accepted, alert["entity"])
        if not moved:
            named = ", ".join(reason["column"] for reason in alert["reasons"])
            raise StoreError(
                f"no level of {named} has left its band since the event began, so there is none to accept. Judge alert {alert_id} instead."
            )
        detail = {"alert": alert_id, "author": author[:128], "entity": alert["entity"], "levels": moved}
        digest = json.dumps([champion.config_hash, champion.version, detail], sort_keys=True)
        options = hashlib.sha256(digest.encode()).hexdigest()
        folder = workspace.home / "models" / alert["model"] / f"{champion.fingerprint[:12]}-{secrets.token_hex(6)}"
        with atomic_folder(folder) as temporary:
            accepted.save(temporary / "bundle")
            pl.read_parquet(champion.folder / REFERENCE).write_parquet(temporary / REFERENCE)
            # Rows of the fit at the new level, so that monitoring does not call it a drift.
            fitted, config = pl.read_parquet(champion.folder / FITTED), model.plan.config
            mine = rows_of(fitted, config, alert["entity"])
            shifted(fitted, mine, config, moved).write_parquet(temporary / FITTED)
        known = champion.metrics.get(ACCEPTED, [])
        metrics = {**champion.metrics, ACCEPTED: [*known, {**detail, **record(model, alert, moved)}]}
        source_id = workspace.sources.get(alert["source"])[0]
        name = str(folder.relative_to(workspace.home))
        version = workspace.models.add(
            alert["model"], name, champion.fingerprint, options, metrics, source_id=source_id, run_id=run.id
        )
        workspace.models.promote(alert["model"], version.version, unless_changed_from=champion.id)
        told = f"level accepted: version {version.version}"
        workspace.scores.judge(alert_id, "normal", author=author, note=f"{told}. {note}".strip())
        workspace.events.tell("level_accepted", alert["model"], "info", detail, once=f"{version.version}")
        run.result = {"run": run.id, "model": alert["model"], "version": version.version, **detail}
        return run.result


def _since(rows: pl.DataFrame, model: SeriesModel, alert: dict[str, Any]) -> pl.DataFrame:
    """Rows of the event's entity since it began."""
    grid, config = model.plan.grid, model.plan.config
    places = pl.Series(grid.places_of(canonical_times(rows, config, model.schema)))
    inside = places >= alert["first_place"]
    if not alert["open"]:
        inside &= places <= alert["last_place"]
    inside &= rows_of(rows, config, alert["entity"])
    mine = rows.filter(inside.fill_null(False))
    passed = places.filter(inside.fill_null(False)).n_unique()
    if passed * _LEAST < model.window:
        raise StoreError(
            f"a level is the median of at least {-(-model.window // _LEAST)} places; {passed} have come since the event began. Wait a while."
        )
    return mine


def _moved(model: SeriesModel, accepted: SeriesModel, entity: str | None) -> dict[str, float]:
    """By how much each level moved."""
    before, after = (each.plan.units.get(str(entity), {}) for each in (model, accepted))
    moved = {name: after[name][0] - before.get(name, (0.0, 1.0))[0] for name in after}
    return {name: shift for name, shift in moved.items() if shift}
