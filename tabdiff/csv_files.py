"""Read CSV as it is meant, or say what is wrong with it.

The file is surveyed in full before it is parsed, because parsers fill short rows with nulls, rename repeated
columns and read UTF-16 as noise without a word.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import charset_normalizer
import polars as pl

from tabdiff.errors import SourceError, warn

# Missing values in any CSV column, beside the empty cell. "?" stays as it is: among categories it is often a
# level of its own, and in a column of numbers `Schema` takes it for missing and writes it back.
NULL_TEXTS = ("NA", "N/A", "null", "NULL", "None", "nan", "NaN")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What text that is not UTF-8 may be in; of two that fit equally well, the one more in use comes first.
_GUESSES = ["cp1252", "cp1250", "cp1251", "cp932", "gb18030", "big5", "euc_kr"]


@dataclass(frozen=True)
class _Survey:
    """What a walk over a CSV file found."""

    delimiter: str
    decimal_comma: bool
    blank_end: bool  # blank lines below the last row
    lone_returns: bool  # lines end in a carriage return only, as on old Macs


def read_csv(path: Path, *, empty: bool = False) -> pl.LazyFrame:
    """Survey the file, then let polars parse it: in place if it is clean UTF-8, else from memory. With `empty`, a header alone will do."""
    encoding = _encoding(path)
    try:
        with _open_text(path, encoding) as file:
            survey = _survey(path, file, empty=empty)
    except UnicodeError as error:
        raise SourceError(f"{path}: the text must be {encoding}, {error}. Save the file as UTF-8.") from error
    plain = encoding in ("utf-8", "utf-8-sig") and path.suffix.lower() != ".gz"
    data: Path | bytes = path
    if not plain or survey.blank_end or survey.lone_returns:
        with _open_text(path, encoding) as file:
            text = file.read()
        if survey.lone_returns:
            text = text.replace("\r", "\n")
        data = (text.rstrip("\r\n") + "\n" if survey.blank_end else text).encode()

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
        # 02138 is a code: read as a number it would lose its zero.
        leading_zero = pl.col(integers).str.contains(r"^0\d").any()
        coded = parse(infer_schema=False).select(leading_zero).collect().row(0)
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
    found = list(
        charset_normalizer.from_bytes(block, cp_isolation=_GUESSES)
    )  # the best first, and among equals the alphabet
    equal = [one.encoding for one in found if (one.chaos, one.coherence) == (found[0].chaos, found[0].coherence)]
    guess = min(equal, key=_GUESSES.index, default="cp1252")
    warn(f"{path}: the text is not UTF-8 and was read as {guess}; save the file as UTF-8 to be sure")
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


def _survey(path: Path, file: Iterable[str], *, empty: bool) -> _Survey:
    """Walk over every record, and refuse what a parser would silently accept."""
    lines = _without_nul(path, file)
    head = list(itertools.islice(lines, 200))
    delimiter = _delimiter(head, "\t" if ".tsv" in path.suffixes else ",")
    reader = csv.reader(itertools.chain(head, lines), delimiter=delimiter)
    try:
        header = next(reader, [])
        repeated = [name for name, count in Counter(header).items() if count > 1]
        if repeated:
            raise SourceError(f"{path}: column names must differ, found {repeated} more than once. Rename them.")
        width, rows, blank, sample = len(header), 0, 0, list[str]()
        for record in reader:
            if not record and width > 1:
                blank = blank or reader.line_num
                continue
            if blank or len(record) not in (width, 0):
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
    if rows == 0 and not (empty and header):
        raise SourceError(f"{path}: there must be rows below the header, found 0 rows. Write the file again.")
    commas = sum(bool(re.fullmatch(r"[+-]?\d+,\d+", value)) for value in sample)
    points = sum(bool(re.fullmatch(r"[+-]?\d+\.\d+", value)) for value in sample)
    decimal_comma = delimiter != "," and commas > points
    return _Survey(delimiter, decimal_comma, bool(blank), lone_returns=head[0].endswith("\r"))


def _without_nul(path: Path, file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise SourceError(f"{path}: text must not hold NUL bytes, found one in line {number}. Export it again.")
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
