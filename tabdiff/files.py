"""Write files and folders that are either whole or not there, and fingerprint tables."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from pyarrow import ipc, parquet

from tabdiff.errors import SourceError

WRITABLE = (".parquet", ".csv", ".arrow", ".feather")
_FORMULA = r"^[=+\-@\t\r]"
_SLICE = 65_536  # rows hashed at once, so that the chunks of a frame do not matter


def write(frame: pl.DataFrame, path: str | Path, *, safe_csv: bool = True) -> None:
    """Write a table as Parquet, CSV or Arrow, by suffix. The file is whole or not there.

    Args:
        frame: the rows to write.
        path: a file that ends in .parquet, .csv, .arrow or .feather; an existing one is replaced.
        safe_csv: in CSV, put ``'`` before text that starts with ``= + - @``, tab or carriage return. A
            spreadsheet would run such a cell as a formula. Numbers are left alone.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        found = suffix or "no suffix"
        raise SourceError(f"{path}: a result must end in {', '.join(WRITABLE)}; found {found}. Rename it.")
    with atomic_write(path) as temporary:
        try:
            if suffix == ".parquet":
                frame.write_parquet(temporary)
            elif suffix == ".csv":
                (_without_formulas(frame) if safe_csv else _for_csv(frame)).write_csv(temporary)
            else:
                frame.write_ipc(temporary)
        except pl.exceptions.PolarsError as error:
            cure = "Write Parquet, or leave the column out."
            raise SourceError(f"{path}: cannot be written as {suffix} ({error}). {cure}") from error


@contextmanager
def part_writer(temporary: Path, path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Write a table part by part to ``temporary``, in the format that the suffix of ``path`` names.

    Each part becomes a row group or record batch. Text in CSV is made safe as in `write`. Categorical columns are text in Arrow.
    """
    suffix = path.suffix.lower()
    writer: Any = None
    oldest = pl.CompatLevel.oldest()

    def add(part: pl.DataFrame) -> None:
        nonlocal writer
        if suffix == ".csv":
            _without_formulas(part).write_csv(handle, include_header=writer is None)
            writer = handle
            return
        if suffix != ".parquet":  # an Arrow file has one list of categories for all of its parts
            part = part.with_columns(pl.col(pl.Categorical).cast(pl.String))
        table = part.to_arrow(compat_level=oldest)
        if writer is None:
            writer = (
                parquet.ParquetWriter(handle, table.schema, compression="zstd")
                if suffix == ".parquet"
                else ipc.new_file(handle, table.schema)
            )
        writer.write_table(table)

    with temporary.open("wb") as handle:
        yield add
        if writer is not None and suffix != ".csv":
            writer.close()


def _for_csv(frame: pl.DataFrame) -> pl.DataFrame:
    """Durations as text, as CSV has no type for them."""
    return frame.with_columns(as_text(values) for values in frame if isinstance(values.dtype, pl.Duration))


def _without_formulas(frame: pl.DataFrame) -> pl.DataFrame:
    texts = [name for name, dtype in frame.schema.items() if dtype in (pl.String, pl.Categorical, pl.Enum)]
    values = [pl.col(name).cast(pl.String) for name in texts]
    safe = frame.with_columns(
        pl.when(value.str.contains(_FORMULA)).then("'" + value).otherwise(value).alias(name)
        for value, name in zip(values, texts, strict=True)
    )
    return _for_csv(safe).rename({name: f"'{name}" for name in frame.columns if re.match(_FORMULA, name)})


def as_text(values: pl.Series) -> pl.Series:
    """Any column as text, null as null. polars itself refuses to cast durations, lists and bytes."""
    if values.dtype.is_nested() or values.dtype in (pl.Duration, pl.Binary, pl.Object):
        texts = [None if value is None else str(value) for value in values.to_list()]
        return pl.Series(values.name, texts, dtype=pl.String)
    return values.cast(pl.String)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write to; it takes the name of ``path`` if all goes well."""
    path = Path(path)
    with _temporary(path) as temporary:
        temporary.touch(exist_ok=False)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill; it takes the name of ``path`` if all goes well.

    With ``replace`` an existing folder makes way. A folder cannot be exchanged in one step, so for a moment
    there is neither; if renaming fails then, the old folder is put back.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise SourceError(f"{path}: already exists. Remove it or choose another name.")
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old") if path.exists() else None
        if old is not None:
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old is not None:
                old.rename(path)
            raise
        _sync(path.parent)
        if old is not None:
            _remove(old)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A free name beside ``path``, where nothing stays behind; system errors become a `SourceError`."""
    if not path.parent.is_dir():
        raise SourceError(f"{path}: the folder {path.parent} does not exist. Create it first.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    except OSError as error:
        raise SourceError(f"{path}: could not be written ({error}). Check the rights and the free space.") from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the system put a file or folder on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------ fingerprint


def fingerprint(frame: pl.DataFrame) -> str:
    """SHA-256 of names, types and values in row order. Does not depend on chunks, library version or run."""
    digest = hashlib.sha256()
    for series in frame:
        digest.update(f"{series.name!r}:{series.dtype}:{len(series)};".encode())
        for start in range(0, len(series), _SLICE):
            _hash(digest, series.slice(start, _SLICE))
    return digest.hexdigest()


def _hash(digest: hashlib._Hash, series: pl.Series) -> None:
    digest.update(series.is_null().cast(pl.UInt8).to_numpy().tobytes())  # what lies under a null is undefined
    dtype = series.dtype
    if dtype.is_temporal():
        series = series.to_physical()
    elif dtype.is_float():
        series = series.fill_nan(float("nan"))  # NaN has many bit patterns
    elif dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        series = pl.Series([repr(value) for value in series.to_list()], dtype=pl.String)
    elif not (dtype.is_integer() or dtype == pl.Boolean) or dtype in (pl.Int128, pl.UInt128):
        series = series.cast(pl.String)
    if series.dtype == pl.String:
        filled = series.fill_null("")
        digest.update(filled.str.len_bytes().to_numpy().tobytes())
        digest.update("".join(filled.to_list()).encode())
    else:
        digest.update(series.fill_null(False if dtype == pl.Boolean else 0).to_numpy().tobytes())


def check_table_file(out: Path) -> None:
    """Refuse an output that could not be written, before any work is done for it."""
    if out.suffix.lower() not in WRITABLE:
        found = out.suffix or "no suffix"
        raise SourceError(f"{out}: a result must end in {', '.join(WRITABLE)}; found {found}. Rename it.")
    if out.is_dir():
        raise SourceError(f"{out}: a result is a file; found a folder of that name. Choose another name.")
    check_parent(out)


def check_model_folder(out: Path) -> None:
    """Refuse a model folder that could not be written, or that would replace something that is no model."""
    check_parent(out)
    if not out.name or (out.exists() and not (out / "manifest.json").is_file()):
        raise SourceError(
            f"{out}: only a model may be replaced; found something else there. Choose another name for --out."
        )


def check_parent(out: Path) -> None:
    """Refuse a path in a folder that cannot be written to."""
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise SourceError(
            f"{out}: nothing can be written to {out.parent} ({reason}). Create it, or choose another place."
        ) from error
