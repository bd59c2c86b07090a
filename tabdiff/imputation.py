"""Fill gaps: several draws of each, their middle, and the interval that most of them lie in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from tabdiff.conditions import complete
from tabdiff.errors import ConfigError
from tabdiff.generation import Generator
from tabdiff.schema import to_polars


def fill(generator: Generator, frame: Any, draws: int, interval: float | None, seed: int) -> pl.DataFrame:
    """The frame with gaps filled, and with an interval two more columns for each number with gaps; see `Model.impute`.

    Raises:
        SchemaError: as for `Model.score`.
        ConfigError: too few draws, an interval that is no share, or a column that has the name of an end.
    """
    if draws < 1:
        raise ConfigError(f"draws is at least 1; got {draws}.")
    if interval is not None:
        _check_interval(interval, draws)
    schema, codec = generator.schema, generator.codec
    conformed, original = schema.conform(frame), to_polars(frame)
    gaps = np.stack([conformed[name].is_null().to_numpy() for name in codec.columns], axis=1)
    rows = np.flatnonzero(gaps.any(axis=1))
    if not len(rows):
        return original
    encoded = codec.encode(conformed[rows])
    condition = generator.cleaned(complete(codec, encoded, gaps[rows]))
    drawn = [
        pl.concat([generator.decoded(x) for x in generator.encoded(condition, _seed(seed, index))])
        for index in range(draws)
    ]
    position = np.zeros(original.height, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    columns, ends = [], []
    for index, name in enumerate(codec.columns):
        if not gaps[:, index].any():
            continue
        gap, parts = pl.Series(gaps[:, index]), [each[name] for each in drawn]
        before, filled = original[name], schema.restore(pl.DataFrame([_middle(parts)]))[name][position]
        # A column that is empty as a whole may have come without a type; then it gets that of training.
        before, filled = _of_one_type(before, filled)
        columns.append(filled.zip_with(gap, before).alias(name))
        if interval is None or parts[0].dtype in (pl.String, pl.Boolean):
            continue
        for end, share in (("low", (1 - interval) / 2), ("high", (1 + interval) / 2)):
            if f"{name}_{end}" in original.columns:
                raise ConfigError(
                    f"the interval needs the name {name + '_' + end!r}; the table has such a column. Rename it."
                )
            values = schema.restore(pl.DataFrame([_quantile(parts, share)]))[name][position]
            values = _of_one_type(before, values)[1]
            nothing = pl.Series([None] * original.height, dtype=values.dtype)
            ends.append(values.zip_with(gap, nothing).alias(f"{name}_{end}"))
    return original.with_columns(columns).with_columns(ends)


def _seed(seed: int, draw: int) -> int:
    """A seed for each draw; those of one seed are not among those of the next."""
    own = np.random.SeedSequence(seed, spawn_key=(2**24, draw)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return int(own) if draw else seed


def _of_one_type(before: pl.Series, filled: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Both in the type of the table; in that of training if the table's is too narrow or, of a column without values, none."""
    if before.dtype != pl.Null:
        try:
            return before, filled.cast(before.dtype)
        except pl.exceptions.InvalidOperationError:
            pass
    return before.cast(filled.dtype), filled


def _check_interval(interval: float, draws: int) -> None:
    if not 0 < interval < 1:
        raise ConfigError(f"interval is a share inside (0, 1); got {interval}. Example: 0.9")
    least = math.ceil(2 / (1 - interval) - 1e-9)
    if draws < least:
        raise ConfigError(f"an interval of {interval:g} needs at least {least} draws; got {draws}. Raise draws.")


def _long(draws: list[pl.Series]) -> pl.DataFrame:
    name = draws[0].name
    return pl.DataFrame({"": np.tile(np.arange(len(draws[0])), len(draws)), name: pl.concat(draws)})


def _middle(draws: list[pl.Series]) -> pl.Series:
    """Median of numbers, most frequent category, row by row; always one of the values drawn, so it is on the grid."""
    name = draws[0].name
    if draws[0].dtype in (pl.String, pl.Boolean):
        counts = _long(draws).group_by("", name).len("#").sort(["", "#", name], descending=[False, True, False])
        return counts.group_by("", maintain_order=True).first()[name]
    return _quantile(draws, 0.5)


def _quantile(draws: list[pl.Series], share: float) -> pl.Series:
    """Quantile of numbers, row by row; always one of the values drawn."""
    name = draws[0].name
    cut = pl.col(name).quantile(share, "nearest").cast(draws[0].dtype)
    return _long(draws).group_by("").agg(cut).sort("")[name]
