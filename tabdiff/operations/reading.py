"""The rows of a source: those that are new, or the newest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import polars as pl

from tabdiff.bundle import Bundle
from tabdiff.errors import BundleError, SchemaError, SourceError, TabdiffError, TabdiffWarning
from tabdiff.operations.databases import TableReader, newest_of_table
from tabdiff.operations.new_rows import ColumnReader, FileReader, Finding, Reader, collect, load_files, units_of
from tabdiff.sources import read
from tabdiff.store.registry import Version, inside_roots
from tabdiff.store.scores import Part, Stream
from tabdiff.store.spec import SourceSpec
from tabdiff.tracks import prepared

_NEWEST = 3  # files by which a source shows that it has changed for good


def open_reader(
    spec: SourceSpec, stream: Stream, parts: Sequence[Part], rows: int, *, order: str | None = None
) -> Reader:
    """The reader that the source's kind asks for; with `order`, the rows of a file come in order of that column.

    Raises:
        SourceError: the source is not there.
    """
    if spec.is_database:
        return TableReader(spec, stream, rows)
    return ColumnReader(spec, stream, rows) if spec.new == "column" else FileReader(spec, parts, rows, order)


def newest_rows(
    spec: SourceSpec, limit: int, fits: Callable[[pl.DataFrame], bool] | None = None
) -> tuple[pl.DataFrame, list[Finding]]:
    """The last rows of a source, for training and monitoring: by the column that grows, or in order of file names.

    Args:
        spec: the source.
        limit: how many rows.
        fits: whether the rows of a file are what is known of the source. Files of others are left out, unless the newest three are all
            of another kind: then the source has changed. One odd export is no reason to learn its columns anew.

    Raises:
        SourceError: there are no rows to read.
    """
    if spec.is_database:
        return newest_of_table(spec, limit), []
    if spec.column is not None:
        frame = read(inside_roots(spec.root))
        if spec.column not in frame.collect_schema():
            raise SourceError(f"{spec.location}: there is no column {spec.column!r}. Check the source.")
        return collect(frame.top_k(limit, by=spec.column).sort(spec.column), spec.location), []
    frames: list[pl.DataFrame] = []
    names: list[str] = []
    known: list[bool] = []
    findings: list[Finding] = []
    for name, files in reversed(units_of(spec)):
        settled = any(known[:_NEWEST])
        counted = [frame.height for frame, fine in zip(frames, known, strict=True) if fine or not settled]
        if sum(counted) >= limit and (settled or len(frames) >= _NEWEST):
            break
        try:
            read_now = load_files(files)
            if read_now.height:
                frames.append(read_now)
                names.append(name)
                known.append(fits is None or fits(read_now))
        except (TabdiffError, OSError) as error:
            findings.append(Finding("unreadable", name, str(error)))
    if not frames:
        raise SourceError(f"{spec.location}: no file with rows can be read yet. Check the path of the source.")
    if any(known[:_NEWEST]) and not all(known):
        reason = "it does not fit the champion, as newer or older files do; left out"
        findings += [Finding("schema", name, reason) for name, fine in zip(names, known, strict=True) if not fine]
        frames = [frame for frame, fine in zip(frames, known, strict=True) if fine]
    same = _alike(frames)
    if len(same) < len(frames):
        other = f"{len(frames) - len(same)} older files have other columns, or other types in them; left out"
        findings.append(Finding("schema", spec.location, other))
    return pl.concat(list(reversed(same)), how="vertical_relaxed").tail(limit), findings


def reads_as(version: Version | None) -> Callable[[pl.DataFrame], bool] | None:
    """Whether a version can read rows; None if there is no version, or it cannot be read itself."""
    if version is None or version.folder is None:
        return None
    try:
        bundle = Bundle.read(version.folder / "bundle")
    except BundleError:
        return None

    def fits(frame: pl.DataFrame) -> bool:
        series = bundle.config.series
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TabdiffWarning)  # of new columns
                bundle.schema.conform(prepared(frame, series) if series.time is not None else frame)
        except SchemaError:
            return False
        return True

    return fits


def _alike(frames: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """The frames that have the columns of the first one, in its order; types may differ where there is one for both."""
    names, types, same = frames[0].columns, frames[0].head(0), []
    for frame in frames:
        if set(frame.columns) == set(names):
            try:
                types = pl.concat([types, frame.head(0).select(names)], how="vertical_relaxed")
            except pl.exceptions.PolarsError:
                continue
            same.append(frame.select(names))
    return same
