"""Why a row is abnormal: what it should have been."""

from __future__ import annotations

import numpy as np
import polars as pl

from tabdiff.codec import Codec, Encoded
from tabdiff.conditions import complete
from tabdiff.runtime import Runtime
from tabdiff.scoring import CHUNK_ROWS

_EXPLAINED_COLUMNS = 3


def expected_values(
    runtime: Runtime, codec: Codec, encoded: Encoded, rows: np.ndarray, contributions: np.ndarray
) -> pl.DataFrame:
    """What the top columns of the given rows should have been, each given all other columns of its row.

    One denoising step from pure noise in that column: its conditional mean, or most probable category. Columns that
    are not among a row's top ones stay null.
    """
    layout, columns = codec.layout, codec.columns
    top = np.argsort(-contributions[rows], axis=1, kind="stable")[:, :_EXPLAINED_COLUMNS]
    items = np.stack([np.repeat(np.arange(len(rows)), top.shape[1]), top.ravel()], axis=1)
    frames = []
    for start in range(0, len(items), CHUNK_ROWS):
        part = items[start : start + CHUNK_ROWS]
        source = Encoded(encoded.x[rows[part[:, 0]]], encoded.present[rows[part[:, 0]]])
        condition = complete(codec, source, np.arange(len(columns)) == part[:, 1:2])
        given = condition.given & source.present[:, None, :]
        x = np.where(given[..., layout.unit_of_slot], condition.x, np.float32(0))
        noise = np.zeros(given.shape, np.float32)
        _, x0 = runtime.step(x, 1.0, 0.0, noise, ~given, given, condition.allowed, np.zeros_like(x), 0.0, 0.0)
        frames.append(codec.decode(np.clip(np.asarray(x0)[:, 0], *codec.bounds)))
    if not frames:
        return codec.decode(np.zeros((0, layout.model_width), np.float32))
    decoded = pl.concat(frames)
    place = np.full((len(rows), len(columns)), -1)
    place[items[:, 0], items[:, 1]] = np.arange(len(items))
    return pl.DataFrame(
        [
            decoded[name][np.maximum(place[:, index], 0)]
            .zip_with(pl.Series(place[:, index] >= 0), pl.Series([None] * len(rows), dtype=decoded[name].dtype))
            .alias(name)
            for index, name in enumerate(columns)
        ]
    )
