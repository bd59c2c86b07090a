"""What people said of alerts, as later jobs use it.

Scoring is told of judged rows, so rows like a false alarm score lower and rows like a confirmed anomaly higher (`tabdiff.feedback`).
Training leaves out what was confirmed: a model that has seen an anomaly takes the next one like it for normal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tabdiff.config import SeriesConfig
from tabdiff.errors import BundleError, ConfigError, RuntimeUnavailable, SchemaError
from tabdiff.operations.judges import CUT, plain
from tabdiff.operations.levels import rows_of
from tabdiff.operations.series_alerts import places_of
from tabdiff.operations.series_trials import canonical_times
from tabdiff.schema import Kind, Schema
from tabdiff.series import Grid
from tabdiff.store import Workspace
from tabdiff.store.registry import Version
from tabdiff.store.triage import Filter

if TYPE_CHECKING:
    from tabdiff.model import Model

Judged = tuple[Mapping[str, Any], str]  # values that an alert keeps, and what people said
_MOST = 5000  # judged last; each costs a little of every scoring
_PLACE = "tabdiff place"


def with_verdicts(model: Model, judged: Callable[[], Sequence[Judged]]) -> tuple[Model, dict[str, Any]]:
    """A model that was told of judged rows, and what became of the verdicts.

    Args:
        model: of a table.
        judged: gives verdicts as of `Scores.judged`, judged last at the end.

    Returns:
        The model, and `false_alarms` and `confirmed` (rows it was told of), `not_used` (verdicts on rows that it cannot read, and those
        before the last 5,000), `reason` if it takes none at all.
    """
    said = [each for each in judged() if each[1] in ("anomaly", "normal")]
    rows, verdicts = readable(model.schema, said[-_MOST:])
    if not verdicts:
        return model, {"false_alarms": 0, "confirmed": 0, "not_used": len(said)}
    try:
        model = model.with_feedback(rows, verdicts)
    except ConfigError as error:  # it keeps no rows to compare with
        return model, {"false_alarms": 0, "confirmed": 0, "not_used": len(said), "reason": str(error)}
    confirmed = verdicts.count("anomaly")
    return model, {
        "false_alarms": len(verdicts) - confirmed,
        "confirmed": confirmed,
        "not_used": len(said) - len(verdicts),
    }


def readable(schema: Schema, judged: Sequence[Judged]) -> tuple[pl.DataFrame, list[str]]:
    """Judged rows that a model can read, in its modelled columns, each with its verdict.

    The others lack a column, hold a text that was too long to be kept, or values of another type than the model's.
    """
    names = [column.name for column in schema.modelled]
    whole = [
        (values, verdict)
        for values, verdict in judged
        if all(name in values and not _cut(values[name]) for name in names)
    ]
    parts = _readable(Schema(schema.modelled), whole)
    rows = pl.concat(rows for rows, _ in parts) if parts else pl.DataFrame()
    return rows, [verdict for _, verdicts in parts for verdict in verdicts]


def _readable(schema: Schema, judged: Sequence[Judged]) -> list[tuple[pl.DataFrame, list[str]]]:
    """All at once if that works; else in halves, so that one odd row does not cost a look at each."""
    if not judged:
        return []
    columns = [
        pl.Series(column.name, [values[column.name] for values, _ in judged], strict=False) for column in schema.columns
    ]
    try:
        rows = schema.conform(pl.DataFrame(columns))
        times = Schema(tuple(column for column in schema.columns if column.kind is Kind.DATETIME))
        return [(rows.with_columns(times.restore(rows)), [verdict for _, verdict in judged])]
    except SchemaError:
        middle = len(judged) // 2
        return [] if not middle else _readable(schema, judged[:middle]) + _readable(schema, judged[middle:])


def _text(value: Any) -> str | None:
    """A value of a column that holds text now, and may have held numbers."""
    return None if value is None else str(value)


def _cut(value: Any) -> bool:
    """Whether a text may have been longer than what was kept of it."""
    return isinstance(value, str) and len(value) >= CUT


def without_confirmed(
    workspace: Workspace, source: str, frame: pl.DataFrame, config: SeriesConfig, champion: Version | None
) -> pl.DataFrame:
    """Rows of a source without those that people confirmed as anomalies.

    Of a table, rows that equal a confirmed one in all columns; of a series, those of its entity from begin to end of a confirmed event.

    Args:
        workspace: where verdicts are.
        source: whose alerts count.
        frame: N of its rows.
        config: which columns hold times and entities, if it is a series.
        champion: knows the places of times; without one nothing is left out of a series.

    Raises:
        SchemaError: the columns of times or entities are missing or cannot be used.
        ConfigError: there is no such time zone.
    """
    alerts = workspace.triage.queue(Filter(source=source, state="judged"), newest=True, limit=_MOST)
    confirmed = [alert for alert in alerts if alert["verdict"] == "anomaly"]
    if config.time is None:
        return _without_rows(frame, [alert["values"] for alert in confirmed if alert["kind"] == "row"])
    events = [alert for alert in confirmed if alert["kind"] == "event"]
    if not events:
        return frame
    times, grid = canonical_times(frame, config), _grid(champion)
    counted = isinstance(times.dtype, pl.Datetime)
    if grid is None or counted != (grid.unit == "datetime"):
        return frame  # time is counted in another way than it was, or nobody knows how
    places, inside = pl.Series(grid.places_of(times)), np.zeros(frame.height, dtype=bool)
    for alert in events:
        if (alert["entity"] is None) != (config.entity is None):
            continue  # the rows are told apart in another way than they were
        among = rows_of(frame, config, alert["entity"]) & places.is_between(*places_of(alert, grid))
        inside |= among.fill_null(False).to_numpy()
    return frame.filter(pl.Series(~inside))


def _grid(champion: Version | None) -> Grid | None:
    """How the champion counts time; None if it is not of a series or cannot be read."""
    from tabdiff.loading import load_series

    if champion is None or champion.folder is None or "series" not in champion.metrics:
        return None
    with contextlib.suppress(BundleError, RuntimeUnavailable):
        return load_series(champion.folder / "bundle").plan.grid
    return None


def _without_rows(frame: pl.DataFrame, confirmed: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows that equal none of these. Columns that only one side has are not looked at, if the other side lacks none."""
    here = set(frame.columns)
    alike = [values for values in confirmed if here <= set(values) or set(values) <= here]
    out: set[int] = set()
    for names in {tuple(name for name in frame.columns if name in values) for values in alike}:
        texts = [frame[name].dtype == pl.String for name in names]
        wanted = {
            tuple(_text(values[name]) if text else values[name] for name, text in zip(names, texts, strict=True))
            for values in alike
            if here & set(values) == set(names) and not any(_cut(values[name]) for name in names)
        }
        # By their texts, so that few rows of most tables are left to look at one by one.
        close = frame.with_row_index(_PLACE).filter(
            pl.lit(True),
            *(
                pl.col(name).is_in(
                    pl.Series([row[place] for row in wanted], dtype=pl.String).implode(), nulls_equal=True
                )
                for place, (name, text) in enumerate(zip(names, texts, strict=True))
                if text
            ),
        )
        rows = zip(close[_PLACE], close.select(names).iter_rows(), strict=True)
        out |= {place for place, row in rows if tuple(map(plain, row)) in wanted}
    return frame.filter(~pl.int_range(pl.len()).is_in(sorted(out)))
