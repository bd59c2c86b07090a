"""Read tables from files and databases, and write files that are either whole or not there.

`read` takes Parquet, Arrow, CSV, folders and globs of them, and database URLs. CSV is surveyed in full before
it is parsed, because parsers fill short rows with nulls, rename repeated columns and read UTF-16 as noise
without a word.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import hashlib
import importlib.util
import io
import itertools
import os
import re
import secrets
import shutil
import sqlite3
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal
from urllib.parse import quote, unquote, urlsplit

import charset_normalizer
import polars as pl

from tabdiff.errors import Problem, SchemaError, SourceError, TabdiffWarning

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
PARQUET_SUFFIXES = (".parquet", ".pq")
READABLE = (*PARQUET_SUFFIXES, *CSV_SUFFIXES, *ARROW_SUFFIXES)
WRITABLE = (".parquet", ".csv", ".arrow", ".feather")

# Missing values in any CSV column, beside the empty cell. "?" stays as it is: among categories it is often a
# level of its own, and in a column of numbers `Schema` takes it for missing and writes it back.
NULL_TEXTS = ("NA", "N/A", "null", "NULL", "None", "nan", "NaN")
_FORMULA = r"^[=+\-@\t\r]"
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GUESSES = ["cp1252", "cp1250", "cp1251", "cp932", "gb18030", "big5", "euc_kr"]
_SLICE = 65_536  # rows hashed at once, so that the chunks of a frame do not matter


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
    text = str(source)
    if isinstance(source, str) and "://" in source:
        return _read_database(source, query)
    if query is not None:
        raise SourceError(
            f"{text}: a query needs a database URL, found a path. Write sqlite:///{text} for SQLite."
        )
    paths = _expand(Path(source))
    parts = [(path, _read_file(path)) for path in paths]
    return parts[0][1] if len(parts) == 1 else _stack(parts)


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
            raise SourceError(
                f"{path}: the pattern must match a file, found none. Check the folder and the suffix."
            )
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
        raise SourceError(
            f"{path}: {where} must hold one format, found {sorted(formats)}. Use a glob such as '*.csv'."
        )
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


def _read_file(path: Path) -> pl.LazyFrame:
    kind = _format(path)
    if kind == "unknown":
        found = _suffix(path) or "no suffix"
        raise SourceError(
            f"{path}: a file must end in {', '.join(READABLE)}; found {found}. Rename or convert it."
        )
    try:
        if path.stat().st_size == 0:
            raise SourceError(f"{path}: the file must not be empty, found 0 bytes. Write it again.")
        if kind == "csv":
            return _read_csv(path)
        frame = (
            _scan_arrow(path)
            if kind == "arrow"
            else pl.scan_parquet(path, glob=False, hive_partitioning=False)
        )
        if frame.collect_schema().len() == 0:
            raise SourceError(f"{path}: a table needs columns, found none. Write the file again.")
        return frame
    except (OSError, EOFError, pl.exceptions.PolarsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{path}: not a readable {kind} file ({reason}). Copy or write it again."
        ) from error


def _scan_arrow(path: Path) -> pl.LazyFrame:
    with path.open("rb") as file:
        is_file_format = file.read(6) == b"ARROW1"
    return pl.scan_ipc(path) if is_file_format else pl.read_ipc_stream(path).lazy()


def _stack(parts: Sequence[tuple[Path, pl.LazyFrame]]) -> pl.LazyFrame:
    """Rows of several files, one below the other; the first file says which columns there are."""
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
    return pl.concat([frame.select(casts) for _, frame in parts])


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
    for (_, frame, dtype), alternative in ((one, other[2]), (other, one[2])):
        if dtype == pl.String and frame.select(pl.col(name).is_null().all()).collect().item():
            return alternative
    return None


# ------------------------------------------------------------------------------------------------------- CSV


@dataclass(frozen=True)
class _Survey:
    """What a walk over a CSV file found."""

    delimiter: str
    decimal_comma: bool
    blank_end: bool


def _read_csv(path: Path) -> pl.LazyFrame:
    """Survey the file, then let polars parse it: in place if it is clean UTF-8, else from memory."""
    encoding = _encoding(path)
    try:
        with _open_text(path, encoding) as file:
            survey = _survey(path, file)
    except UnicodeError as error:
        raise SourceError(f"{path}: the text must be {encoding}, {error}. Save the file as UTF-8.") from error
    in_place = encoding in ("utf-8", "utf-8-sig") and path.suffix.lower() != ".gz" and not survey.blank_end
    data: Path | bytes = path
    if not in_place:
        with _open_text(path, encoding) as file:
            data = (file.read().rstrip("\r\n") + "\n").encode()

    def parse(**options: object) -> pl.LazyFrame:
        given = {
            "separator": survey.delimiter,
            "decimal_comma": survey.decimal_comma,
            "null_values": list(NULL_TEXTS),
        }
        # A buffer is parsed at once: scanned, it would be found empty the second time.
        if isinstance(data, bytes):
            return pl.read_csv(io.BytesIO(data), **given, **options).lazy()  # type: ignore[arg-type]
        return pl.scan_csv(data, glob=False, **given, **options)  # type: ignore[arg-type]

    schema = dict(parse(infer_schema_length=None).collect_schema())
    integers = [name for name, dtype in schema.items() if dtype.is_integer()]
    if integers:
        coded = (
            parse(infer_schema=False).select(pl.col(integers).str.contains(r"^0\d").any()).collect().row(0)
        )
        # 02138 is a code: read as a number it would lose its zero.
        schema |= {name: pl.String() for name, found in zip(integers, coded, strict=True) if found}
    return parse(schema=schema)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


@contextmanager
def _open_text(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    with _open(path) as raw, io.TextIOWrapper(raw, encoding=encoding, newline="") as file:
        yield file


def _encoding(path: Path) -> str:
    """From the byte order mark, the pattern of NUL bytes, or a guess if the bytes are not UTF-8."""
    with _open(path) as file:
        head = file.read(1 << 18)
        for mark, name in _BOMS:
            if head.startswith(mark):
                return name
        # Latin letters in UTF-16 are every other byte NUL.
        for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            if head[start::2].count(0) > 0.35 * len(head) and head[1 - start :: 2].count(0) == 0:
                return name
        block = _not_utf8(itertools.chain([head], iter(lambda: file.read(1 << 20), b"")))
    if block is None:
        return "utf-8"
    best = charset_normalizer.from_bytes(block, cp_isolation=_GUESSES).best()
    guess = best.encoding if best else "cp1252"
    message = f"{path}: the text is not UTF-8 and was read as {guess}; save the file as UTF-8 to be sure"
    warnings.warn(message, TabdiffWarning, stacklevel=5)
    return guess


def _not_utf8(blocks: Iterable[bytes]) -> bytes | None:
    """The first block that is not UTF-8; None if all are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    block = b""
    try:
        for block in blocks:
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return block
    return None


def _survey(path: Path, file: Iterable[str]) -> _Survey:
    """Walk over every record, and refuse what a parser would silently accept."""
    lines = _without_nul(path, file)
    head = list(itertools.islice(lines, 200))
    delimiter = _delimiter(head, "\t" if ".tsv" in path.suffixes else ",")
    reader = csv.reader(itertools.chain(head, lines), delimiter=delimiter)
    try:
        header = next(reader, [])
        repeated = [name for name, count in Counter(header).items() if count > 1]
        if repeated:
            raise SourceError(
                f"{path}: column names must differ, found {repeated} more than once. Rename them."
            )
        width, rows, blank, sample = len(header), 0, 0, list[str]()
        for record in reader:
            if not record and width > 1:
                blank = blank or reader.line_num
                continue
            if blank or len(record) > width or (record and len(record) < width):
                fields, line = (0, blank) if blank else (len(record), reader.line_num)
                raise SourceError(
                    f"{path}: every line must have the {width} fields of the header, found {fields} in line "
                    f"{line} (delimiter {delimiter!r}). Correct it, or quote fields that hold delimiters."
                )
            rows += 1
            if rows <= 1000:
                sample += record
    except csv.Error as error:
        raise SourceError(
            f"{path}: not readable as CSV, {error} in line {reader.line_num}. Check the quotes."
        ) from error
    if rows == 0:
        raise SourceError(f"{path}: there must be rows below the header, found 0 rows. Write the file again.")
    commas = sum(bool(re.fullmatch(r"[+-]?\d+,\d+", value)) for value in sample)
    points = sum(bool(re.fullmatch(r"[+-]?\d+\.\d+", value)) for value in sample)
    return _Survey(delimiter, delimiter != "," and commas > points, bool(blank))


def _without_nul(path: Path, file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise SourceError(
                f"{path}: text must not hold NUL bytes, found one in line {number}. Export it again."
            )
        yield line


def _delimiter(head: Sequence[str], default: str) -> str:
    """The delimiter that cuts the most lines into as many fields as the header."""
    best, score = default, (0.0, 1)
    for candidate in (default, ",", ";", "\t", "|"):
        widths = [len(record) for record in csv.reader(head, delimiter=candidate) if record]
        if widths and widths[0] > 1:
            share = sum(width == widths[0] for width in widths) / len(widths)
            if (share, widths[0]) > score:
                best, score = candidate, (share, widths[0])
    return best


# -------------------------------------------------------------------------------------------------- databases


def _read_database(url: str, query: str | None) -> pl.LazyFrame:
    parts = urlsplit(url)
    shown = _without_password(url)
    scheme = parts.scheme.partition("+")[0]  # postgresql+psycopg is how SQLAlchemy writes it
    if scheme not in ("sqlite", "postgresql", "postgres", "mysql", "mssql"):
        raise SourceError(
            f"{shown}: {scheme}:// is not supported. Use a file, sqlite:///PATH or postgresql://HOST/NAME."
        )
    if not query or not query.strip():
        raise SourceError(
            f"{shown}: a database needs a query, found none. Give one such as 'SELECT * FROM orders'."
        )
    try:
        if scheme == "sqlite":
            frame = _query_sqlite(url, query)
        else:
            engine = _engine(scheme, shown)
            uri = parts._replace(scheme="postgresql" if scheme == "postgres" else scheme).geturl()
            frame = pl.read_database_uri(query, uri, engine=engine)
    except SourceError:
        raise
    except BaseException as error:  # a driver written in Rust panics with a BaseException
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
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
        raise SourceError(
            f"{url}: no such database file {name!r}. Check the path; an absolute one has four slashes."
        )
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
        return pl.read_database(query, connection, infer_schema_length=None)


def _engine(scheme: str, shown: str) -> Literal["adbc", "connectorx"]:
    if scheme.startswith("postgres") and importlib.util.find_spec("adbc_driver_postgresql"):
        return "adbc"
    if importlib.util.find_spec("connectorx"):
        return "connectorx"
    raise SourceError(f"{shown}: no database driver is installed. Run pip install 'tabdiff[db]'.")


def _without_password(url: str) -> str:
    """The URL without user, password and parameters."""
    scheme, _, rest = url.partition("://")
    place, _, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}/{path}"


def _redact(message: str, url: str) -> str:
    parts = urlsplit(url)
    credentials = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    for secret in {url, parts.password or "", unquote(parts.password or ""), credentials, parts.query}:
        if secret:
            message = message.replace(secret, "***")
    return re.sub(r"://[^@\s]+@", "://***@", message)


# ---------------------------------------------------------------------------------------------------- writing


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
                (_without_formulas(frame) if safe_csv else frame).write_csv(temporary)
            else:
                frame.write_ipc(temporary)
        except pl.exceptions.PolarsError as error:
            cure = "Write Parquet, or leave the column out."
            raise SourceError(f"{path}: cannot be written as {suffix} ({error}). {cure}") from error


def _without_formulas(frame: pl.DataFrame) -> pl.DataFrame:
    texts = [name for name, dtype in frame.schema.items() if dtype in (pl.String, pl.Categorical, pl.Enum)]
    values = [pl.col(name).cast(pl.String) for name in texts]
    safe = frame.with_columns(
        pl.when(value.str.contains(_FORMULA)).then("'" + value).otherwise(value).alias(name)
        for value, name in zip(values, texts, strict=True)
    )
    return safe.rename({name: f"'{name}" for name in frame.columns if re.match(_FORMULA, name)})


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
        raise SourceError(
            f"{path}: could not be written ({error}). Check the rights and the free space."
        ) from error
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
