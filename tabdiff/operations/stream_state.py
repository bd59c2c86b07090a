"""What is kept between two parts of a series, and how it is written: JSON, compressed, with arrays as bytes."""

from __future__ import annotations

import base64
import functools
import io
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from tabdiff.errors import StoreError
from tabdiff.series_model import SeriesState

ENTITY, PLACE = "__entity__", "__place__"  # columns of frames that are kept
_VERSION = 1
_ARRAYS = {
    "x": np.float32,
    "present": np.bool_,
    "recorded": np.bool_,
    "log": np.float64,
    "count": np.float64,
    "parts": np.float64,
}


@dataclass
class Kept:
    """Between two parts.

    Attributes:
        model: of all places that were taken in.
        held: rows of the newest place of each entity, as they came: another row of the same place may follow.
        values: entity, place and sensors of the places that were taken in and are not final.
        peaks: of the event that goes on, for each entity: place of the peak so far, and what was seen there.
        tail: provisional places as score files have final ones, for pages to show. Judging does not need it.
    """

    model: SeriesState = field(default_factory=SeriesState)
    held: pl.DataFrame = field(default_factory=pl.DataFrame)
    values: pl.DataFrame = field(default_factory=pl.DataFrame)
    peaks: dict[str, dict[str, Any]] = field(default_factory=dict)
    tail: pl.DataFrame = field(default_factory=pl.DataFrame)

    def to_bytes(self) -> bytes:
        """Compressed JSON that `from_bytes` reads."""
        entities = {name: _packed(known) for name, known in self.model.entities.items()}
        frames = {name: _frame_to_text(getattr(self, name)) for name in ("held", "values", "tail")}
        text = json.dumps({"version": _VERSION, "entities": entities, "peaks": self.peaks, **frames})
        return zlib.compress(text.encode(), 1)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Kept:
        """Rebuild from `to_bytes`.

        Raises:
            StoreError: it was written by a newer tabdiff.
        """
        values = _read(stored)
        model = SeriesState({name: _unpacked(known) for name, known in values["entities"].items()})
        held, recorded, tail = (_frame_of(values[name]) for name in ("held", "values", "tail"))
        return cls(model, held, recorded, values["peaks"], tail)


@functools.lru_cache(maxsize=8)
def tail_of(stored: bytes | None) -> pl.DataFrame:
    """`Kept.tail` of a stream's state; empty for that of a table, or before the first part. Pages ask for it several times each.

    Raises:
        StoreError: it was written by a newer tabdiff.
    """
    return pl.DataFrame() if stored is None else _frame_of(_read(stored)["tail"])


def _read(stored: bytes) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(zlib.decompress(stored))
    if values["version"] != _VERSION:
        raise StoreError(
            f"the state of the stream is of version {values['version']}, this tabdiff knows {_VERSION}. Update tabdiff."
        )
    return values


def _packed(known: dict[str, Any]) -> dict[str, Any]:
    scorer = {
        name: _array_to_text(value, _ARRAYS[name]) if name in _ARRAYS else value
        for name, value in known["scorer"].items()
    }
    return {**known, "scorer": scorer, "past": _array_to_text(known["past"], np.float32)}


def _unpacked(known: dict[str, Any]) -> dict[str, Any]:
    scorer = {
        name: _array_of(value, _ARRAYS[name]) if name in _ARRAYS else value for name, value in known["scorer"].items()
    }
    return {**known, "scorer": scorer, "past": _array_of(known["past"], np.float32)}


def _array_to_text(values: Any, kind: Any) -> dict[str, Any]:
    array = np.asarray(values, dtype=kind)
    return {"shape": array.shape, "bytes": base64.b64encode(array.tobytes()).decode()}


def _array_of(stored: dict[str, Any], kind: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(stored["bytes"]), dtype=kind).reshape(stored["shape"])


def _frame_to_text(frame: pl.DataFrame) -> str | None:
    if not frame.width:
        return None
    buffer = io.BytesIO()
    frame.rechunk().write_ipc(buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def _frame_of(stored: str | None) -> pl.DataFrame:
    return pl.DataFrame() if stored is None else pl.read_ipc(io.BytesIO(base64.b64decode(stored)))
