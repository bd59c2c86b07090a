"""Levels that were accepted, and what later trainings do with them.

A version keeps what was accepted since its champion's last fit and before. A training moves the rows of before to the level of after, and
leaves out the window in which the level changed: rows at two levels would make a model for which both are normal, and neither is sharp.
A record of which no row lies before the change any more is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from tabdiff.config import SeriesConfig
from tabdiff.operations.series_trials import canonical_times

if TYPE_CHECKING:
    from tabdiff.series_model import SeriesModel

ACCEPTED = "accepted"  # key of the records in the metrics of a version


def record(model: SeriesModel, alert: Mapping[str, Any], moved: Mapping[str, float]) -> dict[str, Any]:
    """What a version remembers of a level: entity, by how much each number moved, and between which times it did."""
    grid, first = model.plan.grid, alert["first_place"]
    # An event begins where the change shows, which is at most a window after the change.
    before, since = (grid.stamp(pl.Series([place]).to_numpy())[0] for place in (first - model.window, first))
    times = {"before": before, "since": since}
    return {
        "entity": alert["entity"],
        "levels": dict(moved),
        **{name: time.isoformat() if isinstance(time, datetime) else time for name, time in times.items()},
    }


def levelled(
    frame: pl.DataFrame, config: SeriesConfig, records: Sequence[Mapping[str, Any]]
) -> tuple[pl.DataFrame, list[Mapping[str, Any]]]:
    """Rows of a source at the levels that were accepted, and the records that still matter.

    Args:
        frame: N rows of a source.
        config: which columns hold times, entities and, in long tables, sensors.
        records: of `record`, in the order in which levels were accepted.

    Raises:
        SchemaError: the columns of times or entities are missing or cannot be used.
        ConfigError: there is no such time zone.
    """
    kept: list[Mapping[str, Any]] = []
    if not records:
        return frame, kept
    times = canonical_times(frame, config)
    for known in records:
        if (known["entity"] is None) != (config.entity is None):
            continue  # the rows are told apart in another way than they were
        before, since = (_time(known[name], times) for name in ("before", "since"))
        if before is None or since is None:
            continue  # time is counted in another way than it was
        mine = rows_of(frame, config, known["entity"])
        early = (mine & (times < before)).fill_null(False)
        changing = (mine & (times >= before) & (times < since)).fill_null(False)
        if not early.any():
            continue
        kept.append(known)
        frame = shifted(frame, early, config, known["levels"]).filter(~changing)
        times = times.filter(~changing)
    return frame, kept


def rows_of(rows: pl.DataFrame, config: SeriesConfig, entity: str | None) -> pl.Series:
    """Which rows are of an entity; all where there is one recording."""
    if config.entity is None:
        return pl.repeat(True, rows.height, eager=True)
    return (rows[config.entity].cast(pl.String) == entity).fill_null(False)


def shifted(rows: pl.DataFrame, mask: pl.Series, config: SeriesConfig, moved: Mapping[str, float]) -> pl.DataFrame:
    """The rows with the numbers of those in the mask moved. Columns keep their types; those that are not there are passed over."""
    if config.sensor is not None and config.value is not None:
        by = rows[config.sensor].cast(pl.String).replace_strict(moved, default=0.0, return_dtype=pl.Float64)
        return rows.with_columns(_moved(rows[config.value], mask, by))
    here = [name for name in moved if name in rows.columns]
    return rows.with_columns(
        _moved(rows[name], mask, pl.repeat(moved[name], rows.height, dtype=pl.Float64, eager=True)) for name in here
    )


def _moved(values: pl.Series, mask: pl.Series, by: pl.Series) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False) + by
    if values.dtype.is_integer():
        numbers = numbers.round()
    return numbers.cast(values.dtype).zip_with(mask & by.is_not_null(), values)


def _time(value: Any, times: pl.Series) -> Any:
    """A stored time as the series has them; None if they are of another kind."""
    if isinstance(value, str) != isinstance(times.dtype, pl.Datetime):
        return None
    return datetime.fromisoformat(value) if isinstance(value, str) else value
