"""Which rows of a source are new, in pieces that are committed one by one.

A piece is a function of the source and of what was committed before, never of the clock. Three ways to tell new rows:

- file, partition: a file (or subfolder) is scored once, under its name. Half a Parquet file has no footer and cannot be read;
  a file without an end mark must not change for a while. One that changes after it was scored is told of, not scored again.
- column: rows with watermark < value <= largest value - lateness, in pieces that end between two values. A row that arrives with a
  value at or below the watermark is late: it is counted and told of, and scored only by the rule of `late_rows`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from tabdiff.errors import SchemaError, SourceError
from tabdiff.operations.twins import Scored, said
from tabdiff.sources import READABLE, load, read
from tabdiff.store.registry import inside_roots
from tabdiff.store.scores import Part, Stream
from tabdiff.store.spec import SourceSpec

_SEALED = (".parquet", ".pq", ".csv.gz", ".tsv.gz", ".txt.gz")  # half a file cannot be read
_LONGEST_NAME = 400
_CHANGED = "it has changed since it was scored; its new rows are not. To score it again: tabdiff sources rescore"


@dataclass(frozen=True)
class Piece:
    """Rows to score and commit together, and the watermark after them."""

    part: Part
    frame: pl.DataFrame
    watermark: dict[str, Any] | None


@dataclass(frozen=True)
class Finding:
    """Something about a source that people should know: what, of which unit, and why."""

    kind: str
    subject: str
    reason: str
    once: str = ""


class Reader(Protocol):
    """Gives the new rows of a source piece by piece."""

    findings: list[Finding]

    def next(self) -> Piece | None:
        """The next piece, or None if there is nothing more."""
        ...

    def advance(self, piece: Piece) -> None:
        """The piece was committed."""
        ...

    def skip(self, piece: Piece) -> bool:
        """The piece cannot be scored; False if those after it cannot be reached then."""
        ...

    def late(self, scored: int) -> int:
        """How many rows arrived too late, given how many were scored."""
        ...


# ------------------------------------------------------------------------------------------------ files


@dataclass
class FileReader:
    """A file or a subfolder is a unit, cut into parts of so many rows, in order of a column if one is named."""

    spec: SourceSpec
    parts: Sequence[Part]
    rows: int
    order: str | None = None
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done: dict[str, list[Part]] = {}
        for part in self.parts:
            self._done.setdefault(part.unit, []).append(part)
        self._listed = units_of(self.spec)
        self._units = iter(self._listed)
        self._scored = Scored(self._listed, self._done)
        self._quiet: dict[Path, list[int]] | None = None
        self._current: tuple[str, pl.DataFrame, dict[str, Any]] | None = None

    def next(self) -> Piece | None:
        """The next part of the current file, or the first of the next new one."""
        while self._current is None:
            unit = next(self._units, None)
            if unit is None:
                return None
            self._current = self._open(*unit)
        name, frame, identity = self._current
        done = self._done.get(name, [])
        offset = sum(part.rows for part in done)
        piece = frame.slice(offset, self.rows)
        last = offset + piece.height >= frame.height
        return Piece(Part(name, len(done), last, identity, piece.height), piece, None)

    def advance(self, piece: Piece) -> None:
        """On to the next part."""
        self._done.setdefault(piece.part.unit, []).append(piece.part)
        self._scored.add(piece.part)
        if piece.part.last:
            self._current = None

    def skip(self, piece: Piece) -> bool:
        """On to the next file."""
        self._current = None
        return True

    def late(self, scored: int) -> int:
        """A file is never too late."""
        return 0

    def _open(self, name: str, files: list[Path]) -> tuple[str, pl.DataFrame, dict[str, Any]] | None:
        """A unit that has rows left to score."""
        done = self._done.get(name, [])
        try:
            identity = identity_of(files)
            if done and done[-1].identity != identity:
                self._find("changed", name, _CHANGED, str(identity))
                return None
            if done and done[-1].last:
                return None
            if len(name) > _LONGEST_NAME:
                self._find("unreadable", name, f"a name has at most {_LONGEST_NAME} characters")
                return None
            if not self._settled(files, identity):
                self._find(
                    "unfinished", name, f"it changed within {self.spec.settle:g} s; left to the next run", str(identity)
                )
                return None
            frame = load_files(files)
            if identity_of(files) != identity:
                self._find("unfinished", name, "it changed while it was read; left to the next run", str(identity))
                return None
        except FileNotFoundError:
            return None  # gone since it was listed
        except (SourceError, SchemaError) as error:
            self._find("unreadable", name, str(error), str(identity))
            return None
        if not done and frame.height and (other := self._scored.twin(name, files)):
            keyed, told = said(other, self.spec.keys, frame.columns)
            self._find("duplicate", name, told, other)
            if keyed:
                return None
        if self.order in frame.columns:
            frame = frame.sort(self.order, maintain_order=True)
        return name, frame, identity

    def _settled(self, files: Sequence[Path], identity: dict[str, Any]) -> bool:
        """Whether none of the files is still being written. Waited for once, for all files that are to be scored together."""
        if self._quiet is None and any(map(_loose, files)) and self.spec.settle:
            left = [files for name, files in self._listed if not any(part.last for part in self._done.get(name, ()))]
            self._quiet = quiet([path for files in left for path in files], self.spec.settle)
        still = self._quiet or {}
        return not self.spec.settle or all(still.get(path) == identity[path.name] for path in files if _loose(path))

    def _find(self, kind: str, name: str, reason: str, once: str = "") -> None:
        self.findings.append(Finding(kind, name, reason, once))


def units_of(spec: SourceSpec) -> list[tuple[str, list[Path]]]:
    """Every unit of a source of files, by name, with its files, complete ones only.

    Raises:
        SourceError: the folder is not there.
    """
    root = inside_roots(spec.root)
    if spec.new == "partition":
        folders = [part for part in _list(root) if part.is_dir()]
        complete = [part for part in folders if (part / spec.marker).exists()] if spec.marker else folders[:-1]
        found = [(part.name, [file for file in _list(part) if _is_table(file)]) for part in complete]
        return [(name, files) for name, files in found if files]
    if root.is_file():
        return [(root.name, [root])]
    if not root.is_dir() and any(sign in str(root) for sign in "*?["):
        base = Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), root.parts))
        files = sorted(base.glob(str(root.relative_to(base)))) if base.is_dir() else []
    else:
        base, files = root, _list(root)
    if not base.is_dir():
        raise SourceError(f"{base}: no such folder. Check the path of the source, and whether a disk is missing.")
    return [(path.relative_to(base).as_posix(), [path]) for path in files if _is_table(path)]


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] not in "._")
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed ({error.strerror}). Check the path and the rights.") from error


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name[0] not in "._" and path.name.lower().endswith(READABLE)


def identity_of(files: Sequence[Path]) -> dict[str, Any]:
    """Size and time of change of each file of a unit; compared, never read as a time."""
    return {path.name: _state(path) for path in files}


def states_of(files: Iterable[Path]) -> dict[Path, list[int]]:
    """The same of any files, without those that are gone since they were listed."""
    found = {}
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            found[path] = _state(path)
    return found


def _state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def quiet(files: Sequence[Path], seconds: float) -> dict[Path, list[int]]:
    """Files without an end mark that stay as they are for so long. Waits; does not trust the clock on the wall."""
    before = states_of(filter(_loose, files))
    if before:
        time.sleep(seconds)
    after = states_of(before)
    return {path: state for path, state in before.items() if after.get(path) == state}


def _loose(path: Path) -> bool:
    return not path.name.lower().endswith(_SEALED)


def load_files(files: Sequence[Path]) -> pl.DataFrame:
    """All rows of a unit, in order of file names; there may be none. CSV without rows has no types that others could have."""
    found = [load(path, empty=True) for path in files]
    try:
        return pl.concat([frame for frame in found if frame.height] or found[:1], how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise SourceError(
            f"{files[0].parent}: its files must have the same columns ({error}). Write them again."
        ) from error


# ------------------------------------------------------------------------------------------------ a column that grows


@dataclass
class GrowingReader:
    """Rows that are told apart by a column that only grows, wherever they are kept: what a watermark means.

    Attributes:
        kind: of the column, as the watermark records it; set by `_growing`.
    """

    spec: SourceSpec
    stream: Stream
    rows: int
    findings: list[Finding] = field(default_factory=list)

    def _growing(self, where: str, column: str, kind: str, cure: str) -> None:
        """Begin at the stream's watermark.

        Raises:
            SourceError: the column is of another kind than the watermark.
        """
        self._mark, self.kind = self.stream.watermark, kind
        if self._mark is not None and self._mark["kind"] != kind:
            raise SourceError(
                f"{where}: column {column!r} was {self._mark['kind']} and is {kind} now, so the watermark means nothing. {cure}"
            )

    def _tell_unplaced(self, where: str, rows: int) -> None:
        """Rows without a value in the growing column are above no watermark and below none."""
        if rows:
            why = f"{rows} rows have no {self.spec.column}, which tells new rows, and are not scored; fill it in"
            self.findings.append(Finding("unplaced", where, why))

    def _piece(self, frame: pl.DataFrame, end: Any) -> Piece:
        """The rows from the watermark to `end`, which becomes the next one."""
        start = "start" if self._mark is None else self._mark["value"]
        part = Part(f"({start},{end}]", 0, True, None, frame.height)
        return Piece(part, frame, {"kind": self.kind, "value": end})

    def advance(self, piece: Piece) -> None:
        """The watermark moved, unless the rows were late ones."""
        self._mark = piece.watermark or self._mark

    def recent(self, after: Sequence[Any]) -> pl.DataFrame:
        """Rows at most `late_within` below the watermark, and above all values of `after`, as `encoded` gives them."""
        raise NotImplementedError

    def encoded(self, value: Any) -> Any:
        """A value of the column as a watermark has it."""
        raise NotImplementedError

    def skip(self, piece: Piece) -> bool:
        """What lies above cannot be reached: rows must not be left out silently."""
        return False

    def late(self, scored: int) -> int:
        """Rows at or below the watermark that were never scored, as far as counting tells."""
        return 0 if self._mark is None else max(0, self._count_below(self._mark["value"]) - scored)

    def _count_below(self, value: Any) -> int:
        """How many rows lie at or below a watermark."""
        raise NotImplementedError


@dataclass
class ColumnReader(GrowingReader):
    """Files whose rows are told apart by a column that only grows."""

    def __post_init__(self) -> None:
        assert self.spec.column is not None
        self.column = self.spec.column
        root = inside_roots(self.spec.root)
        files = [path for _, paths in units_of(self.spec) for path in paths]
        if self.spec.settle and len(quiet(files, self.spec.settle)) < sum(map(_loose, files)):
            raise SourceError(f"{root}: a file changed within {self.spec.settle:g} s. Nothing was scored; run again.")
        self._before = states_of(files)
        self._files = files
        frame = read(root)
        schema = frame.collect_schema()
        if self.column not in schema:
            raise SourceError(f"{root}: the source tells new rows by column {self.column!r}, which is not there.")
        dtype = schema[self.column]
        if not (dtype.is_integer() or dtype == pl.Date or isinstance(dtype, pl.Datetime)):
            raise SourceError(
                f"{root}: column {self.column!r} must be integer, date or datetime to tell new rows; found {dtype}. "
                "Write Parquet, or choose another column."
            )
        kind = "int" if dtype.is_integer() else str(dtype)
        self._growing(str(root), self.column, kind, "Write the type of before.")
        key = pl.col(self.column) if dtype.is_integer() else pl.col(self.column).to_physical()
        self.key = key.cast(pl.Int64)
        self.frame = frame
        self._upto = self._limit(dtype)

    def _limit(self, dtype: pl.DataType) -> int | None:
        self._units = 1.0
        if isinstance(dtype, pl.Datetime):
            self._units = {"ms": 1e3, "us": 1e6, "ns": 1e9}[dtype.time_unit]
        self._tell_unplaced(self.spec.root.name, self._collect(self.frame.select(self.key.null_count())))
        highest = self._collect(self.frame.select(self.key.max()))
        return None if highest is None else int(highest) - int(self.spec.lateness * self._units)

    def recent(self, after: Sequence[Any]) -> pl.DataFrame:
        """Rows not far below the watermark."""
        mark = None if self._mark is None else self._mark["value"]
        if mark is None:
            return self.frame.head(0).collect()
        low = max([mark - int((self.spec.late_within or 0.0) * self._units), *after])
        rows = self.frame.filter(self.key > low, self.key <= mark)
        return collect(rows, self.spec.location).sort(self.key, maintain_order=True)

    def encoded(self, value: Any) -> int:
        """Physical units."""
        return int(pl.select(pl.lit(value, self.frame.collect_schema()[self.column]).to_physical()).item())

    def _collect(self, query: pl.LazyFrame) -> Any:
        return collect(query, self.spec.location).item()

    def next(self) -> Piece | None:
        """The next rows above the watermark, up to a whole value."""
        if self._upto is None:
            return None
        new = self.frame.filter(self.key <= self._upto)
        if self._mark is not None:
            new = new.filter(self.key > self._mark["value"])
        end = self._collect(new.select(self.key.bottom_k(self.rows).max()))
        if end is None:
            return None
        frame = collect(new.filter(self.key <= end), self.spec.location).sort(self.key, maintain_order=True)
        if states_of(self._files) != self._before:
            raise SourceError(f"{self.spec.location}: a file changed while it was read. Nothing was scored; run again.")
        return self._piece(frame, int(end))

    def _count_below(self, value: Any) -> int:
        return int(self._collect(self.frame.filter(self.key <= value).select(pl.len())))


def collect(query: pl.LazyFrame, location: str) -> pl.DataFrame:
    """Run a query on files; what is wrong with them is a SourceError."""
    try:
        return query.collect()
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SourceError(f"{location}: cannot be read ({reason}). Copy or write the file again.") from error
