"""Is a series still what its model was fitted on? Columns against rows of the fit, scores against those of held-out time, and who fell silent.

Neighbouring places are alike, so a difference is tested as if only one place of each window had been seen; how large it is takes all
of them. Scores are those that scoring has given: every final place was judged once, by windows that no rerun would see otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tabdiff.errors import TabdiffWarning
from tabdiff.operations import drift
from tabdiff.operations.jobs import MonitorJob
from tabdiff.operations.series_trials import canonical_times

if TYPE_CHECKING:
    from tabdiff.series_model import SeriesModel

_FEWEST = 4  # windows of either side without which nothing is tested


def conformed(model: SeriesModel, rows: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Rows with one column for each sensor, and columns that the model does not know.

    Raises:
        SchemaError: they do not fit the model.
    """
    from tabdiff.tracks import prepared

    wide = prepared(rows, model.plan.config)
    known = {column.name for column in model.schema.columns}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TabdiffWarning)  # new columns are reported
        return model.schema.conform(wide), [name for name in wide.columns if name not in known]


def compare_series(
    model: SeriesModel,
    old: pl.DataFrame,
    new: pl.DataFrame,
    files: Sequence[str],
    job: MonitorJob,
    found: dict[str, Any],
) -> list[tuple[str, str]]:
    """Verdicts on conformed rows and on score files, newest first; the figures go to `found`."""
    names, window = model.codec.columns, model.window
    found["columns"] = drift.columns(old, new, names, psi=job.psi, significance=job.significance, dependent=window)
    drifted = [c["column"] for c in found["columns"] if c["drifted"] or c["gaps_changed"]]
    scores = _scores(files, job.rows)
    found["scores"] = {"rows": len(scores), "moved": False, "far_out": False}
    if len(scores) >= _FEWEST * window:
        normal = np.asarray(model.calibration.normal)
        found["scores"] |= drift.scores(normal, scores, significance=job.significance, dependent=window)
    return drift.verdicts(drifted, found["scores"], one="place", fit="the time of the fit")


def newest_times(model: SeriesModel, rows: pl.DataFrame, known: Mapping[str, int]) -> tuple[Any, dict[str, Any]]:
    """The newest time, and of entities that stopped reporting the last time that is known of them.

    An entity has stopped if it lags behind the others by more than its sensors may be silent.

    Args:
        rows: of the source, newest ones.
        known: entities of the fit with the last place of each.

    Raises:
        SchemaError: the times cannot be used.
    """
    grid = model.plan.grid
    places = grid.places_of(canonical_times(rows, model.plan.config, model.schema))
    newest = int(places.max())
    stopped = {}
    if grid.entity is not None:
        last = pl.DataFrame({"who": rows[grid.entity].cast(pl.String), "place": places}).group_by("who").max()
        seen = {**known, **dict(last.iter_rows())}
        limit = max(model.results.silence_limit(name) for name in model.codec.columns)
        late = {who: place for who, place in sorted(seen.items()) if newest - place > limit}
        stopped = dict(zip(late, grid.stamp(np.array([*late.values()], np.int64)), strict=True))
    return grid.stamp(np.array([newest]))[0], stopped


def _scores(files: Sequence[str], most: int) -> np.ndarray:
    """Scores of the newest final places."""
    parts: list[np.ndarray] = []
    for file in files:
        if sum(map(len, parts)) >= most:
            break
        parts.append(pl.read_parquet(file, columns=["score"], glob=False)["score"].drop_nulls().to_numpy())
    return np.concatenate(parts)[:most] if parts else np.zeros(0)
