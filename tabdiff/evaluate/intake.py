"""Bring the tables of an evaluation into one form, and say which columns cannot be compared."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import polars as pl

from tabdiff.errors import TABLE, Problem, SchemaError, TabdiffWarning
from tabdiff.evaluate.validity import Check
from tabdiff.schema import Column, Schema


@dataclass(frozen=True)
class Tables:
    """Comparable tables, in canonical types.

    Attributes:
        checks: what was found on the way: columns that are lacking, of another dtype, or not readable.
        left_out: columns that are not compared, and why.
    """

    real: pl.DataFrame
    synthetic: pl.DataFrame
    holdout: pl.DataFrame | None
    checks: tuple[Check, ...]
    left_out: dict[str, str]


def take_in(
    real: pl.DataFrame, synthetic: pl.DataFrame, holdout: pl.DataFrame | None, schema: Schema, *, typed: bool = True
) -> Tables:
    """Convert the modelled columns of all tables as the schema of the real one says.

    A synthetic column that is lacking or cannot be converted is a failed check and is not compared. So is one of another type, if
    the tables are `typed`.

    Raises:
        SchemaError: the real or the holdout table is not what the schema says, or nothing is left to compare.
    """
    left_out = {c.name: f"{c.kind}, {c.role}: not modelled" for c in schema.columns if not c.modelled}
    checks, kept, columns = [], [], []
    for column in schema.modelled:
        if column.name not in synthetic.columns:
            checks.append(Check(column.name, "is in the synthetic table", False, "no such column"))
            left_out[column.name] = "not in the synthetic table"
            continue
        dtype = synthetic[column.name].dtype
        same = real[column.name].dtype == dtype
        found = str(dtype) if same else f"{dtype} instead of {real[column.name].dtype}"
        if typed:
            checks.append(Check(column.name, "same dtype as the real column", same, found))
        try:
            values = _only(column).conform(synthetic.select(column.name))
        except SchemaError as error:
            problem = error.problems[0]
            checks.append(Check(column.name, problem.rule, False, problem.evidence))
            left_out[column.name] = "cannot be read as what the real column holds"
            continue
        columns.append(values[column.name])
        kept.append(column)
    known = {column.name for column in schema.columns}
    surplus = [name for name in synthetic.columns if name not in known]
    if surplus:
        checks.append(Check(TABLE, "has no column that the real table lacks", False, ", ".join(surplus)))
    if not kept:
        cure = "Give two tables with the same columns."
        raise SchemaError([Problem(TABLE, "the tables share a column that is modelled", "none", cure)])
    common = Schema(tuple(kept))
    with warnings.catch_warnings():  # that ids and texts are not compared is said on the page
        warnings.simplefilter("ignore", TabdiffWarning)
        frames = [common.conform(frame) if frame is not None else None for frame in (real, holdout)]
    assert frames[0] is not None  # real is never None
    return Tables(frames[0], pl.DataFrame(columns), frames[1], tuple(checks), left_out)


def _only(column: Column) -> Schema:
    return Schema((column,))
