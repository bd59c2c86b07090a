"""What a model keeps of its training table for the sake of sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from tabdiff.codec import Codec
from tabdiff.config import FitConfig
from tabdiff.constraints import to_json
from tabdiff.discovery import infer_constraints
from tabdiff.originals import Originals
from tabdiff.schema import Schema


def remember(
    schema: Schema,
    codec: Codec,
    frame: pl.DataFrame,
    train: pl.DataFrame,
    held_out: pl.DataFrame,
    salt: str,
    config: FitConfig,
) -> dict[str, Any]:
    """What sampling needs to know of a canonical training table, beside the fitted programs; plain values.

    The rules that all rows obey, how many training rows are in each state of a column, and digests of the training rows,
    unless the model shall hold nothing of single rows (`score.kernel_rows=0`).
    """
    encoded = codec.encode(train).x
    counts = {}
    for index, name in enumerate(codec.layout.columns):
        unit = codec.layout.units[codec.layout.units_of(index)[0]]
        if unit.kind == "category":
            counts[name] = encoded[:, unit.slots].sum(axis=0, dtype=np.int64).tolist()
    found: dict[str, Any] = {"counts": counts, "constraints": to_json(infer_constraints(frame, schema))}
    if config.score.kernel_rows:
        found["originals"] = Originals.of(train, held_out, codec.columns, salt, config.train.seed).to_json()
    return found
