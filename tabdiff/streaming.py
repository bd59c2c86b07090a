"""Score and draw tables that do not fit into memory, part by part, so that a killed run goes on where it was.

Beside the result grows a folder `RESULT.parts`: one Parquet file for each part of the rows, whole or not there, and what
the work is about. Only when all parts are there is the result written, in one go. Flags need the scores of all rows, so they are
set then: a first pass over the parts finds the limit, a second one writes, and for flagged rows alone reads the input again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tabdiff.config import SampleConfig
from tabdiff.constraints import Unique
from tabdiff.errors import ConfigError, SchemaError, SourceError, TrainingError
from tabdiff.files import atomic_write, part_writer, write
from tabdiff.flags import Rule
from tabdiff.generation import SampleReport
from tabdiff.limits import Limit, find_limit
from tabdiff.model import Model
from tabdiff.schema import Role
from tabdiff.sources import files_of, read

PART_ROWS = 65_536
_NOTHING = 1e-12  # a false-discovery rate at which nothing is flagged
_EVERYTHING = 1 - 1e-12


@dataclass(frozen=True)
class PartEvent:
    """How far a streamed run is: `rows` of `total` done, `fresh` of them in this run, after `seconds`."""

    rows: int
    total: int
    fresh: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Of this run."""
        return self.fresh / max(self.seconds, 1e-9)

    @property
    def left(self) -> float:
        """Seconds until the end at this rate."""
        return (self.total - self.rows) / max(self.rows_per_second, 1e-9)


@dataclass(frozen=True)
class Task:
    """One part of a result: the rows of the input that it is about, and the file that it goes to."""

    first: int
    rows: int
    total: int
    file: str


Workers = Callable[[Sequence[Task], "str | Path", Callable[[PartEvent], None]], None]


def score_file(
    model: Model,
    source: str | Path,
    out: str | Path,
    rule: Rule | None = None,
    *,
    part_rows: int = PART_ROWS,
    resume: bool = False,
    on_event: Callable[[PartEvent], None] = lambda event: None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Score the rows of files and write what `Scores.to_frame` gives, in their order, in bounded memory.

    Args:
        model: with the engine that scores.
        source: a file, folder or glob; not a database.
        out: .parquet, .csv, .arrow or .feather.
        rule: for flags, from `Model.rule`; None means that stored with the model.
        part_rows: rows in memory at a time, and lost at most by a kill.
        resume: go on with the parts that a killed run left.
        on_event: told after each part.
        workers: score the parts instead of this process, as `tabdiff.cluster.RayWorkers` does; the result is the same.

    Returns:
        Plain values: rows, flagged, rule, provider, seconds.

    Raises:
        SourceError: the source cannot be read, or the result not written.
        SchemaError: rows do not fit the model; names the rows.
        ConfigError: as for `Model.score`, or part_rows is below 1.
        TrainingError: parts are there and `resume` is not given, or they belong to other work.
    """
    rule = rule or model.rule()
    files = files_of(source)
    rows = int(read(source).select(pl.len()).collect().item())
    if rows == 0:
        raise SourceError(f"{source}: there must be rows to score, found 0.")
    identity = {
        "work": "score",
        "model": _model_identity(model),
        "source": [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files],
        "rows": rows,
    }
    parts = _Parts(Path(out), identity, part_rows, resume=resume)

    def make(start: int) -> Iterator[pl.DataFrame]:
        for first, frame in _batches(source, start, part_rows):
            yield score_part(model, frame, first)

    started = time.monotonic()
    if workers is not None:
        workers(parts.missing(), source, on_event)
        parts.count_done()
    parts.fill(make, on_event)
    seconds = time.monotonic() - started
    limit = find_limit(parts.columns("score", "p_value"), rule, np.asarray(model.calibration.normal))
    flagged = _write_scores(model, source, Path(out), parts, limit, part_rows)
    parts.remove()
    return {
        "rows": rows,
        "flagged": flagged,
        "rule": rule.label,
        "provider": model.runtime.provider,
        "seconds": seconds,
    }


def score_part(model: Model, frame: pl.DataFrame, first: int) -> pl.DataFrame:
    """Scores of the rows from `first` on, before flags are set: a function of these rows alone.

    Raises:
        SchemaError: rows do not fit the model; names the rows.
    """
    with _in_rows(first, frame.height):
        scored = model.score(frame, fdr=_NOTHING).to_frame()
    keys = _keys(model, frame, scored)
    return scored.with_columns(row=pl.col("row") + first, flagged=pl.lit(False)).select(*keys, *scored.columns)


def sample_file(
    model: Model,
    rows: int,
    out: str | Path,
    *,
    given: Mapping[str, Any] | None = None,
    balance: Mapping[str, Any] | None = None,
    constraints: Sequence[Any] | None = None,
    seed: int = 0,
    config: SampleConfig | None = None,
    part_rows: int = PART_ROWS,
    resume: bool = False,
    on_event: Callable[[PartEvent], None] = lambda event: None,
) -> dict[str, Any]:
    """Draw any number of rows into a file, each part with a seed of its own.

    The first part is what `Model.sample` gives for the same seed. The rows are a function of `seed` and `part_rows`.

    Args:
        given, balance, constraints, config: as for `Model.sample`; shares hold in each part.

    Returns:
        Plain values: rows, columns, acceptance (share of the drawn rows that came out), provider, seconds.

    Raises:
        SourceError: the result cannot be written.
        SchemaError, SynthesisError: as for `Model.sample`.
        ConfigError: rows or part_rows is below 1, or a constraint compares all rows.
        TrainingError: parts are there and `resume` is not given, or they belong to other work.
    """
    if rows < 1:
        raise ConfigError(f"rows is how many rows to draw, at least 1; got {rows}.")
    options = config or SampleConfig()  # type: ignore[call-arg]
    rules = model.constraints if constraints is None else tuple(constraints)
    if rows > part_rows and (unique := [rule for rule in rules if isinstance(rule, Unique)]):
        raise ConfigError(f"{unique[0]}: compares all rows, which are not in memory together. Draw without --stream.")
    identity = {
        "work": "sample",
        "model": _model_identity(model),
        "given": {name: str(value) for name, value in (given or {}).items()},
        "balance": str(balance),
        "constraints": [str(rule) for rule in rules],
        "seed": seed,
        "config": options.model_dump(),
        "rows": rows,
    }
    parts = _Parts(Path(out), identity, part_rows, resume=resume)

    def make(start: int) -> Iterator[pl.DataFrame]:
        for first in range(start, rows, part_rows):
            own = seed if first == 0 else _seed_of(seed, first // part_rows)
            wanted = min(part_rows, rows - first)
            yield model.sample(
                wanted,
                given=given,
                balance=balance,
                constraints=constraints,
                seed=own,
                config=options,
                on_report=reports.append,
            )

    reports: list[SampleReport] = []

    seconds = parts.fill(make, on_event)
    with atomic_write(out) as temporary, part_writer(temporary, Path(out)) as add:
        for _, part in parts:
            add(part)
    columns = parts.read(0).columns
    parts.remove()
    drawn = sum(report.drawn for report in reports)  # of this run
    acceptance = sum(report.rows for report in reports) / drawn if drawn else 1.0
    named = {"rows": rows, "columns": columns, "acceptance": acceptance}
    return {**named, "provider": model.runtime.provider, "seconds": seconds}


def _seed_of(seed: int, part: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(part,)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Parts:
    """The parts that are done, each in a file of its own, and what they are parts of."""

    def __init__(self, out: Path, identity: dict[str, Any], part_rows: int, *, resume: bool) -> None:
        if part_rows < 1:
            raise ConfigError(f"part_rows is how many rows to hold at a time, at least 1; got {part_rows}.")
        self.folder, self.total, self.part_rows = out.with_name(f"{out.name}.parts"), identity["rows"], part_rows
        self.count = -(-self.total // part_rows)
        identity = {**identity, "part_rows": part_rows}
        state = self.folder / "work.json"
        if not state.is_file():
            if self.folder.exists() and any(p.name == "work.json" or p.suffix != ".tmp" for p in self.folder.iterdir()):
                raise TrainingError(f"{self.folder}: holds something else than parts of a result. Move it away.")
            self.folder.mkdir(exist_ok=True)
            with atomic_write(state) as temporary:
                temporary.write_text(json.dumps(identity), encoding="utf-8")
        elif not resume:
            cure = "Add --resume to go on with it, or --restart to throw it away."
            raise TrainingError(f"{self.folder}: found a run that was cut off. {cure}")
        else:
            found = _read_json(state)
            changed = sorted(k for k in {*found, *identity} if found.get(k) != json.loads(json.dumps(identity.get(k))))
            if changed:
                raise TrainingError(
                    f"{self.folder}: belongs to other work ({', '.join(changed)} differ). Use --restart to throw it away."
                )
        self.count_done()
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    def count_done(self) -> None:
        """How many parts are there from the first one on."""
        self.done = 0
        while self.done < self.count and self._file(self.done).is_file():
            self.done += 1

    def missing(self) -> list[Task]:
        """The parts that are not there, in whatever order they were made."""
        return [
            Task(first, min(self.part_rows, self.total - first), self.total, str(self._file(index).absolute()))
            for index, first in enumerate(range(0, self.total, self.part_rows))
            if not self._file(index).is_file()
        ]

    def fill(self, make: Callable[[int], Iterator[pl.DataFrame]], on_event: Callable[[PartEvent], None]) -> float:
        """Write the parts that are missing; returns the seconds it took."""
        started, before = time.monotonic(), min(self.done * self.part_rows, self.total)
        rows = before
        for part in make(before) if rows < self.total else ():
            expected = min(self.part_rows, self.total - rows)
            if part.height != expected:
                raise SourceError(
                    f"part {self.done} must have {expected} rows, found {part.height}. Did the input change?"
                )
            write(part, self._file(self.done))
            self.done, rows = self.done + 1, rows + part.height
            on_event(PartEvent(rows, self.total, rows - before, time.monotonic() - started))
        if rows != self.total:
            raise SourceError(f"the input must have {self.total} rows, found {rows}. Did it change?")
        return time.monotonic() - started

    def read(self, index: int) -> pl.DataFrame:
        """One part."""
        try:
            return pl.read_parquet(self._file(index), glob=False)
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.ComputeError) as error:
            raise SourceError(f"{self._file(index)}: cannot be read ({error}). Use --restart.") from error

    def __iter__(self) -> Iterator[tuple[int, pl.DataFrame]]:
        """First row and content of each part."""
        for index in range(self.count):
            yield index * self.part_rows, self.read(index)

    def columns(self, *names: str) -> Callable[[], Iterator[tuple[np.ndarray, ...]]]:
        """A way to go over some columns as often as needed, part by part."""

        def go() -> Iterator[tuple[np.ndarray, ...]]:
            for index in range(self.count):
                part = pl.read_parquet(self._file(index), columns=list(names), glob=False)
                yield tuple(part[name].to_numpy() for name in names)

        return go

    def remove(self) -> None:
        """The result is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, index: int) -> Path:
        return self.folder / f"part-{index:07d}.parquet"


def _write_scores(model: Model, source: str | Path, out: Path, parts: _Parts, limit: Limit, part_rows: int) -> int:
    """Set the flags and what flagged rows have, and write the result; returns how many are flagged."""
    count = 0
    inputs = _batches(source, 0, part_rows)
    with atomic_write(out) as temporary, part_writer(temporary, out) as add:
        for first, part in parts:
            flagged = limit(part["score"].to_numpy(), part["p_value"].to_numpy())
            rows = np.flatnonzero(flagged)
            frame = next(inputs)[1] if limit.reads_input else None
            if len(rows) and frame is not None:
                full = model.score(frame[rows], contamination=_EVERYTHING).to_frame()
                full = full.with_columns(row=pl.Series(rows + first, dtype=part["row"].dtype))
                joined = part.join(full, on="row", how="left", maintain_order="left", suffix=" of flagged")
                filled = [pl.coalesce(name, f"{name} of flagged") for name in full.columns if name != "row"]
                part = joined.with_columns(filled).select(part.columns)
            add(part.with_columns(flagged=pl.Series(flagged)))
            count += len(rows)
    return count


def _batches(source: str | Path, start: int, rows: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """First row and content of parts of equal size, in file order, from row `start`."""
    waiting: list[pl.DataFrame] = []
    held, first = 0, start
    try:
        for batch in read(source).slice(start).collect_batches(chunk_size=rows, maintain_order=True, lazy=True):
            waiting.append(batch)
            held += batch.height
            while held >= rows:
                frame = pl.concat(waiting)
                yield first, frame[:rows]
                first, held = first + rows, held - rows
                waiting = [frame[rows:]]
    except pl.exceptions.PolarsError as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{source}: cannot be read after row {first} ({reason}). Copy or write it again.") from error
    if held:
        yield first, pl.concat(waiting)


class _in_rows:  # noqa: N801 - reads like the statement it is
    """Problems of a part name the rows of the part."""

    def __init__(self, first: int, rows: int) -> None:
        self.where = f"in rows {first + 1:,} to {first + rows:,}"

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SchemaError):
            raise SchemaError([replace(p, evidence=f"{p.evidence} ({self.where})") for p in error.problems]) from error


def _keys(model: Model, frame: pl.DataFrame, scored: pl.DataFrame) -> list[pl.Series]:
    """The columns that say which row is which, as `tabdiff score` puts them beside the scores."""
    names = [c.name for c in model.schema.columns if c.role in (Role.ID, Role.TIME, Role.ENTITY)]
    return [
        frame[name].alias(f"input_{name}" if name in scored.columns else name)
        for name in names
        if name in frame.columns
    ]


def _model_identity(model: Model) -> str:
    """Model and engine: parts made by another engine would differ in the last digits."""
    digest = str(model.bundle.manifest.get("digest") or model.bundle.program_digest())
    return f"{digest} {model.runtime.provider}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"work.json": "not readable"}
