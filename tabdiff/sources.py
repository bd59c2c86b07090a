"""Read tables: Parquet, Arrow, CSV, folders and globs of them, and database queries."""

from __future__ import annotations

import glob
import importlib.util
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

import polars as pl

from tabdiff.csv_files import read_csv
from tabdiff.errors import Problem, SchemaError, SourceError

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
PARQUET_SUFFIXES = (".parquet", ".pq")
READABLE = (*PARQUET_SUFFIXES, *CSV_SUFFIXES, *ARROW_SUFFIXES)


def read(source: str | Path, *, query: str | None = None) -> pl.LazyFrame:
    """Read a file, a folder or glob of files with the same columns, or the rows of a database query.

    Args:
        source: a path, a glob such as ``data/*.parquet``, or a URL such as ``sqlite:///shop.db`` or
            ``postgresql://user@host/shop``.
        query: the SELECT statement, for URLs only.

    Returns:
        The rows in file order. Dates in CSV stay text: `Schema` reads them and keeps their form.

    Raises:
        SourceError: the source is missing, unreadable, broken or without rows.
        SchemaError: the files of a folder or glob differ in their columns.
    """
    return pl.concat([frame for _, frame in _parts(source, query)])


def load(source: str | Path, *, query: str | None = None, empty: bool = False) -> pl.DataFrame:
    """Read all rows now. Damage that shows only in the rows is a `SourceError` naming the file, too; so is CSV without rows, unless `empty`."""
    frames = []
    for path, part in _parts(source, query, empty=empty):
        with _reading(path):
            frames.append(part.collect())
    return pl.concat(frames, rechunk=False)


def files_of(source: str | Path) -> list[Path]:
    """The files that a path, folder or glob stands for, in the order in which `read` takes them.

    Raises:
        SourceError: there are none, or the source is a database.
    """
    if isinstance(source, str) and "://" in source:
        raise SourceError("a database is read at once, not part by part. Write the rows to a Parquet file first.")
    return _expand(Path(source))


def is_csv(source: str | Path) -> bool:
    """Whether the rows are text, whose types are guesses.

    Raises:
        SourceError: there are no such files.
    """
    if isinstance(source, str) and "://" in source:
        return False
    return any(_format(path) == "csv" for path in _expand(Path(source)))


def _parts(source: str | Path, query: str | None, *, empty: bool = False) -> list[tuple[Path, pl.LazyFrame]]:
    """The rows of each file, all with the same columns; a query is one part."""
    if isinstance(source, str) and "://" in source:
        return [(Path("query"), _read_database(source, query))]  # the URL may hold a password
    if query is not None:
        raise SourceError(f"{source}: a query needs a database URL, found a path. Write sqlite:///{source} for SQLite.")
    return _aligned([(path, _read_file(path, empty=empty)) for path in _expand(Path(source))])


def _expand(path: Path) -> list[Path]:
    """The files that a path, folder or glob stands for, in order of their names."""
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [part for part in sorted(path.iterdir()) if part.is_file() and part.name[0] not in "._"]
        where = "the folder"
    elif glob.has_magic(str(path)):
        root = Path(path.anchor)
        matches = root.glob(str(path.relative_to(root)))
        found = sorted(part for part in matches if part.is_file() and part.name[0] not in "._")
        where = "the pattern"
        if not found:
            raise SourceError(f"{path}: the pattern must match a file, found none. Check the folder and the suffix.")
    else:
        hint = "" if path.parent.is_dir() else f" (nor is its folder {path.parent})"
        raise SourceError(f"{path}: no such file or folder{hint}. Check the path.")
    parts = [part for part in found if _suffix(part) in READABLE]
    if not parts:
        raise SourceError(
            f"{path}: {where} must hold files that end in {', '.join(READABLE)}; "
            f"found {[part.name for part in found[:5]]}. For subfolders use a glob such as '**/*.parquet'."
        )
    formats = {_format(part) for part in parts}
    if len(formats) > 1:
        raise SourceError(f"{path}: {where} must hold one format, found {sorted(formats)}. Use a glob such as '*.csv'.")
    return parts


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _format(path: Path) -> Literal["csv", "arrow", "parquet", "unknown"]:
    suffix = _suffix(path)
    if suffix in CSV_SUFFIXES:
        return "csv"
    if suffix in ARROW_SUFFIXES:
        return "arrow"
    return "parquet" if suffix in PARQUET_SUFFIXES else "unknown"


def _read_file(path: Path, *, empty: bool) -> pl.LazyFrame:
    kind = _format(path)
    if kind == "unknown":
        found = _suffix(path) or "no suffix"
        raise SourceError(f"{path}: a file must end in {', '.join(READABLE)}; found {found}. Rename or convert it.")
    with _reading(path):
        if path.stat().st_size == 0:
            raise SourceError(f"{path}: the file must not be empty, found 0 bytes. Write it again.")
        if kind == "csv":
            return read_csv(path, empty=empty)
        frame = _scan_arrow(path) if kind == "arrow" else pl.scan_parquet(path, glob=False, hive_partitioning=False)
        if frame.collect_schema().len() == 0:
            raise SourceError(f"{path}: a table needs columns, found none. Write the file again.")
        return frame


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of the system and of the parser become a `SourceError` that names the file."""
    try:
        yield
    except (OSError, EOFError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SourceError(f"{path}: not a readable {_format(path)} file ({reason}). Copy or write it again.") from error


def _scan_arrow(path: Path) -> pl.LazyFrame:
    with path.open("rb") as file:
        is_file_format = file.read(6) == b"ARROW1"
    return pl.scan_ipc(path) if is_file_format else pl.read_ipc_stream(path).lazy()


def _aligned(parts: Sequence[tuple[Path, pl.LazyFrame]]) -> list[tuple[Path, pl.LazyFrame]]:
    """The parts with columns of the same order and type; the first part says which columns there are."""
    first_path, first = parts[0]
    schemas = [frame.collect_schema() for _, frame in parts]
    types = dict(schemas[0])
    problems = []
    for (path, frame), schema in zip(parts[1:], schemas[1:], strict=True):
        cure = "Give all files the same columns, or read fewer of them."
        for name in [*types, *(name for name in schema if name not in types)]:
            if (name in schema) != (name in types):
                here, there = (first_path, path) if name in types else (path, first_path)
                problems.append(Problem(name, "files must agree", f"it in {here} but not in {there}", cure))
                continue
            common = _common_type(name, (first_path, first, types[name]), (path, frame, schema[name]))
            if common is None:
                found = f"{types[name]} in {first_path} and {schema[name]} in {path}"
                problems.append(Problem(name, "files must agree", found, cure))
            else:
                types[name] = common
    if problems:
        raise SchemaError(problems)
    casts = [pl.col(name).cast(dtype) for name, dtype in types.items()]
    return [(path, frame.select(casts)) for path, frame in parts] if len(parts) > 1 else list(parts)


def _common_type(
    name: str, one: tuple[Path, pl.LazyFrame, pl.DataType], other: tuple[Path, pl.LazyFrame, pl.DataType]
) -> pl.DataType | None:
    """The type that fits both parts; None if there is none. Only types guessed from CSV text are widened."""
    if one[2] == other[2]:
        return one[2]
    if _format(one[0]) != "csv":
        return None
    if one[2].is_numeric() and other[2].is_numeric():
        return pl.Float64() if one[2].is_float() or other[2].is_float() else pl.Int128()
    for (path, frame, dtype), alternative in ((one, other[2]), (other, one[2])):
        if dtype == pl.String:
            with _reading(path):
                if frame.select(pl.col(name).is_null().all()).collect().item():
                    return alternative
    return None


# -------------------------------------------------------------------------------------------------- databases


def _read_database(url: str, query: str | None) -> pl.LazyFrame:
    shown = _without_password(url)
    if shown is None:
        raise SourceError(
            f"{url.partition(':')[0]}://***: a database URL must say where its password ends, found signs "
            "that leave it open. Write each of / ? # @ [ in the password as %XX."
        )
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]  # postgresql+psycopg is how SQLAlchemy writes it
    if scheme not in ("sqlite", "postgresql", "postgres", "mysql", "mssql"):
        raise SourceError(
            f"{shown}: {scheme}:// is not supported. Use a file, sqlite:///PATH or postgresql://HOST/NAME."
        )
    if not query or not query.strip():
        raise SourceError(f"{shown}: a database needs a query, found none. Give one such as 'SELECT * FROM orders'.")
    try:
        if scheme == "sqlite":
            frame = _query_sqlite(url, query)
        else:
            engine = _engine(scheme, shown)
            uri = parts._replace(scheme="postgresql" if scheme == "postgres" else scheme).geturl()
            frame = pl.read_database_uri(query, uri, engine=engine)
    except (SourceError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a driver written in Rust panics with a BaseException
        # Drivers quote the URL, so neither their message nor the exception itself may be passed on.
        reason = _redact(" ".join(str(error).split()), url)
        raise SourceError(
            f"{shown}: the query failed: {reason}. Check the address, the rights and the query."
        ) from None
    if frame.height == 0:
        raise SourceError(f"{shown}: the query must give rows, found 0 rows. Check its conditions.")
    return frame.lazy()


def _query_sqlite(url: str, query: str) -> pl.DataFrame:
    """SQLite comes with Python; the file is opened for reading only."""
    name = unquote(url.partition("://")[2].partition("?")[0]).removeprefix("/")
    # sqlite:///a.db is relative and sqlite:////tmp/a.db absolute, but many write three for both.
    path = Path(name)
    if not path.is_file() and Path(f"/{name}").is_file():
        path = Path(f"/{name}")
    if not path.is_file():
        raise SourceError(f"{url}: no such database file {name!r}. Check the path; an absolute one has four slashes.")
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
        return pl.read_database(query, connection, infer_schema_length=None)


def _engine(scheme: str, shown: str) -> Literal["adbc", "connectorx"]:
    if scheme.startswith("postgres") and importlib.util.find_spec("adbc_driver_postgresql"):
        return "adbc"
    if importlib.util.find_spec("connectorx"):
        return "connectorx"
    raise SourceError(f"{shown}: no database driver is installed. Run pip install 'tabdiff[db]'.")


def _without_password(url: str) -> str | None:
    """The URL without user, password and parameters; None if it does not say where the password ends."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its message may quote the password
        return None
    if parts.netloc and "@" in parts.path + parts.query + parts.fragment:
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _redact(message: str, url: str) -> str:
    parts = urlsplit(url)
    credentials = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    for secret in {url, parts.password or "", unquote(parts.password or ""), credentials, parts.query}:
        if secret:
            message = message.replace(secret, "***")
    return re.sub(r"://[^@\s]+@", "://***@", message)
