"""Series as pages show them: what was recorded, what was expected and what was scored, from the partitions and the state of a stream.

Nothing is loaded but the database and Parquet files: no model, no engine. Score files of a series have a row for each recorded place
whose score is final, and the state has them for the newest places, whose score is provisional, in order of entity and time: the entity and time columns, `score`, `p_value`, `flagged`, and for each number
NAME `value:NAME`, `expected:NAME`, `low:NAME`, `high:NAME`, for each category `value:NAME`, for every sensor `part:NAME`, what it adds
to the score. Times are UTC without a zone, seconds, or steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from tabdiff.errors import StoreError
from tabdiff.operations.stream_state import tail_of
from tabdiff.store import Workspace
from tabdiff.store.scores import Stream

_ABOUT = ("time", "entity", "interval", "interval_us", "steps", "window", "threshold")  # as training wrote them


@dataclass(frozen=True)
class Trace:
    """A stream whose champion is the model of a series.

    Attributes:
        stream_id, source, model: which stream.
        time, entity: columns; no entity for one recording.
        interval: between places, in words.
        interval_us: in microseconds; None where times are steps.
        steps: between places, where times are steps.
        window: places that are judged together; the newest window - 1 places are provisional.
        numbers, categories: sensors.
        threshold: score above which a place is flagged by the model's own rule.
        entities: whose places were scored, sorted.
    """

    stream_id: int
    source: str
    model: str
    time: str
    entity: str | None
    interval: str
    interval_us: int | None
    steps: int | None
    window: int
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    threshold: float | None
    entities: tuple[str, ...]

    @property
    def sensors(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.numbers, *self.categories)


def traces(workspace: Workspace, model: str | None = None) -> list[Trace]:
    """Every stream (or those of one model) whose champion is the model of a series, by source and model."""
    champions = {v.name: v.metrics.get("series") for v in workspace.models.all() if "champion" in v.aliases}
    return [
        _trace(workspace, stream, about)
        for stream in workspace.triage.streams()
        if model in (None, stream["model"]) and (about := champions.get(stream["model"])) is not None
    ]


def _trace(workspace: Workspace, stream: dict[str, Any], about: dict[str, Any]) -> Trace:
    entities = {
        name for file in _files(workspace, stream["id"]) for name in _held(file, about["time"], about["entity"])[2]
    }
    tail = tail_of(workspace.scores.state(stream["id"]))
    if tail.width and about["entity"] is not None:
        entities |= set(tail[about["entity"]].to_list())
    return Trace(
        stream_id=stream["id"],
        source=stream["source"],
        model=stream["model"],
        numbers=tuple(about["numbers"]),
        categories=tuple(about["categories"]),
        entities=tuple(sorted(entities)),
        **{name: about[name] for name in _ABOUT},
    )


def span(workspace: Workspace, stream_id: int, entity: str | None = None) -> tuple[Any, Any]:
    """First and last time that was scored, of one entity if it is named; (None, None) where nothing was.

    Raises:
        StoreError: no such stream of a series.
    """
    about = trace_of(workspace, stream_id)
    places = _places(workspace, about, entity)
    if places is None:
        return None, None
    first, last = places.select(pl.col(about.time).min(), pl.col(about.time).max().alias("last")).collect().row(0)
    return first, last


def trace(
    workspace: Workspace,
    stream: int | Trace,
    entity: str | None = None,
    start: Any = None,
    end: Any = None,
    sensors: Sequence[str] | None = None,
    buckets: int = 1500,
) -> pl.DataFrame:
    """Places of one entity, or where there are more than `buckets` of them, buckets of equal time that hide no peak.

    Args:
        workspace: where the stream is.
        stream: its number, or what is known of it.
        entity: whose places; of all, where the series has none.
        start, end: first and last time, ends included; None for all there is. Times with a zone are taken as they are, others for UTC.
        sensors: which; all if not given.
        buckets: rows of the result, at most.

    Returns:
        One row for each place or bucket that holds something, in order of time: `start`, `end` (first and last place), `places`,
        `score` (highest), `flagged` (any), `provisional` (any is not final), `gap` (nothing was recorded between the row before and this one); for each
        number NAME: `value:NAME` (mean), `min:NAME`, `max:NAME`, `expected:NAME` (mean), `low:NAME` (lowest), `high:NAME` (highest); for
        each category `value:NAME` (the last); for every sensor `part:NAME` (largest part of a score).

    Raises:
        StoreError: no such stream of a series.
    """
    about = stream if isinstance(stream, Trace) else trace_of(workspace, stream)
    chosen = [name for name in about.sensors if sensors is None or name in sensors]
    numbers = [name for name in chosen if name in about.numbers]
    places = _places(workspace, about, entity, _plain(start), _plain(end))
    if places is None:
        return pl.DataFrame()
    time = pl.col(about.time)
    first, last, count = places.select(time.min(), time.max().alias("last"), pl.len().alias("count")).collect().row(0)
    bucket = time
    if count > buckets:
        share = (time - first) / (last - first)
        bucket = (share * buckets).floor().clip(0, buckets - 1)
    aggregated = [
        *(time.min().alias("start"), time.max().alias("end"), pl.len().alias("places")),
        *(pl.col("score").max(), pl.col("flagged").any(), pl.col("provisional").any()),
        *(pl.col(f"value:{name}").mean() for name in numbers),
        *(pl.col(f"value:{name}").min().alias(f"min:{name}") for name in numbers),
        *(pl.col(f"value:{name}").max().alias(f"max:{name}") for name in numbers),
        *(pl.col(f"expected:{name}").mean() for name in numbers),
        *(pl.col(f"low:{name}").min() for name in numbers),
        *(pl.col(f"high:{name}").max() for name in numbers),
        *(pl.col(f"value:{name}").drop_nulls().last() for name in chosen if name not in numbers),
        *(pl.col(f"part:{name}").max() for name in chosen),
    ]
    found = places.group_by(bucket.alias("bucket")).agg(aggregated).sort("bucket").drop("bucket").collect()
    passed = found["start"] - found["end"].shift(1)
    if about.interval_us is None:
        gap = passed > 1.5 * (about.steps or 1)
    elif passed.dtype == pl.Duration:
        gap = passed.dt.total_microseconds() > 1.5 * about.interval_us
    else:
        gap = passed > 1.5e-6 * about.interval_us
    return found.with_columns(gap.fill_null(False).alias("gap"))


# ------------------------------------------------------------------------------------------------------- files


def trace_of(workspace: Workspace, stream_id: int) -> Trace:
    """What is known of a stream.

    Raises:
        StoreError: no such stream of a series.
    """
    for stream in workspace.triage.streams():
        if stream["id"] == stream_id:
            champions = [v for v in workspace.models.all(stream["model"]) if "champion" in v.aliases]
            about = champions[0].metrics.get("series") if champions else None
            if about is not None:
                return _trace(workspace, stream, about)
    raise StoreError(f"no stream of a series has the number {stream_id}. Score its source once.")


def _files(workspace: Workspace, stream_id: int) -> list[str]:
    """Score files of a stream that are still there, oldest first."""
    _, files = workspace.scores.files(Stream(stream_id, 0, None, 0))
    return [file for _, file in files if file is not None]


@functools.lru_cache(maxsize=20_000)
def _held(file: str, time: str, entity: str | None) -> tuple[Any, Any, tuple[str, ...]]:
    """First and last time in a score file, None if it has none, and its entities; a file never changes."""
    scan = pl.scan_parquet(file, glob=False)
    if not {time, *([entity] if entity else [])} <= set(scan.collect_schema()):
        return None, None, ()  # of a version that had other names for them
    ends = scan.select(pl.col(time).min(), pl.col(time).max().alias("last")).collect().row(0)
    names = () if entity is None else tuple(scan.select(pl.col(entity).unique()).collect().to_series().to_list())
    return ends[0], ends[1], names


def _places(
    workspace: Workspace, about: Trace, entity: str | None, start: Any = None, end: Any = None
) -> pl.LazyFrame | None:
    """Final and provisional places between two times; None if there are none."""
    files = []
    for file in _files(workspace, about.stream_id):
        first, last, names = _held(file, about.time, about.entity)
        if first is None:
            continue
        outside = (start is not None and last < start) or (end is not None and first > end)
        if not outside and (entity is None or entity in names):
            files.append(file)
    parts = [pl.scan_parquet(file, glob=False).with_columns(provisional=False) for file in files]
    tail = tail_of(workspace.scores.state(about.stream_id))
    if tail.width:
        parts.append(tail.lazy().with_columns(provisional=True))
    if not parts:
        return None
    # A sensor may be new since some of them were written.
    kinds: dict[str, Any] = {f"part:{name}": pl.Float32 for name in about.sensors}
    kinds |= {f"{word}:{name}": pl.Float32 for name in about.numbers for word in ("value", "expected", "low", "high")}
    kinds |= {f"value:{name}": pl.String for name in about.categories}
    places = pl.concat([*parts, pl.LazyFrame(schema=kinds)], how="diagonal_relaxed")
    if entity is not None and about.entity is not None:
        places = places.filter(pl.col(about.entity) == entity)
    if start is not None:
        places = places.filter(pl.col(about.time) >= start)
    return places if end is None else places.filter(pl.col(about.time) <= end)


def _plain(moment: Any) -> Any:
    """A time as score files have it."""
    if isinstance(moment, datetime) and moment.tzinfo is not None:
        return moment.astimezone(UTC).replace(tzinfo=None)
    return moment
