"""Rows that come after the watermark has passed them: which of them are scored, each once.

The rule, for a source with `late_within` and `keys`: a row is scored late if its value lies at most `late_within` below the watermark,
no score file of the stream has its keys, and every score file from its value on is still there. The watermark stays where it is. That
nobody scores it at the same time is what the compare-and-swap of the stream's revision sees to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from tabdiff.operations.new_rows import GrowingReader, Piece, Reader
from tabdiff.store.scores import Part

_LATE = "late at revision "  # no value of a column starts like that


def pieces(reader: Reader, committed: Any) -> Iterator[Piece]:
    """What there is to score: new rows, then late ones where the source says so. Each must be committed before the next is asked for.

    Args:
        reader: of the source.
        committed: gives (revision, [(unit, file or None), ...]) of the stream as it is now.
    """
    while (piece := reader.next()) is not None:
        yield piece
    if isinstance(reader, GrowingReader) and reader.spec.late_within is not None:
        while (late := _late_piece(reader, *committed())) is not None:
            yield late


def is_late(piece: Piece) -> bool:
    """Whether the rows of a piece came late."""
    return piece.part.unit.startswith(_LATE)


def _late_piece(reader: GrowingReader, revision: int, parts: Sequence[tuple[str, str | None]]) -> Piece | None:
    keys, column = list(reader.spec.keys), str(reader.spec.column)
    scored, gone = [], []
    for unit, file in parts:
        known = _keys_of(file, keys) if file is not None else None
        if known is not None:
            scored.append(known)
        else:
            gone.append(_end(unit))  # of these rows nobody can tell any more which were scored
    if not parts:
        return None
    frame = reader.recent(gone)
    if scored and frame.height:
        known = pl.concat(scored).unique()  # text already
        frame = frame.join(known, left_on=_plain(frame, keys), right_on=keys, how="anti", nulls_equal=True)
    if not frame.height:
        return None
    frame = frame.head(reader.rows)
    highest = reader.encoded(frame[column].max())
    part = Part(f"{_LATE}{revision} (,{highest}]", 0, True, None, frame.height)
    return Piece(part, frame, None)


def _keys_of(file: str, keys: Sequence[str]) -> pl.DataFrame | None:
    """The keys of the rows of a score file, as text; None if it has none. One named like a column of scores has another name there."""
    there = pl.read_parquet_schema(file)
    names = {key: f"input_{key}" if f"input_{key}" in there else key for key in keys}
    if not set(names.values()) <= set(there):
        return None
    found = pl.read_parquet(file, columns=list(names.values())).select(
        pl.col(name).alias(key) for key, name in names.items()
    )
    return found.select(_plain(found, keys))


def _end(unit: str) -> int | str:
    """The highest value of a part, as its name has it."""
    text = unit.rpartition(",")[2].removesuffix("]")
    return int(text) if text.lstrip("-").isdecimal() else text


def _plain(frame: pl.DataFrame, keys: Sequence[str]) -> list[pl.Expr]:
    """Keys as text: a type that the source changes is no reason to score a row again."""
    return [
        (pl.col(key).cast(pl.Datetime("us")) if isinstance(frame[key].dtype, pl.Datetime) else pl.col(key)).cast(
            pl.String
        )
        for key in keys
    ]
