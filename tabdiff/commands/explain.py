"""Explain: why rows are abnormal, what they should have held, and what would repair them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tabdiff.commands.common import (
    DataArgument,
    JsonOption,
    ModelArgument,
    QueryOption,
    files,
    load_model,
    read_table,
)
from tabdiff.errors import ConfigError
from tabdiff.terminal import Outcome, count, table

if TYPE_CHECKING:
    import polars as pl

    from tabdiff.explanation import Explanation, Reason
    from tabdiff.model import Model


def explain(
    model_dir: ModelArgument,
    data: DataArgument,
    rows: Annotated[
        list[int] | None, typer.Option("--row", help="Row to explain, counted from 0; may be given again.")
    ] = None,
    highest: Annotated[int | None, typer.Option("--top", min=1, help="Explain so many rows of highest score.")] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="A row is normal if its p-value is above this.")] = 0.05,
    level: Annotated[float, typer.Option("--level", help="Probability of the intervals, at most 0.95.")] = 0.8,
    reasons: Annotated[int, typer.Option("--reasons", min=1, help="Columns to name, beside repaired ones.")] = 3,
    largest: Annotated[int, typer.Option("--largest", min=1, help="Columns that a repair may change.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a line for each reason: .parquet, .csv, .arrow, .feather.")
    ] = None,
    query: QueryOption = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Explain rows: which columns, what they should have held, the smallest repair. Without --row or --top: flagged rows."""
    if rows and highest:
        raise ConfigError("rows are chosen by number or by score; got --row and --top. Leave one of them out.")
    if out is not None:
        files().check_table_file(out)
    model, frame = load_model(model_dir), read_table(data, query)
    chosen = _highest(model, frame, highest) if highest else rows
    found = model.explain(frame, chosen, alpha=alpha, level=level, top=reasons, largest=largest)
    if out is not None:
        from tabdiff.explanation import to_frame

        files().write(to_frame(found), out)
    values = {"rows": [_plain(asdict(one)) for one in found], "alpha": alpha, "level": level}
    shown: list[Any] = []
    for one in found:
        shown += _describe(one, _keys(model, frame, one.row), level)
    if not found:
        shown.append("No row is flagged. --top 5 explains the five rows of highest score, --row N any row.")
    if out is not None:
        values["out"] = str(out)
        shown.append(f"Reasons of {count(len(found), 'row')}: {out} (a line for each)")
    return Outcome(values, shown)


def _highest(model: Model, frame: pl.DataFrame, highest: int) -> list[int]:
    order: list[int] = (-model.score(frame).score).argsort(kind="stable").tolist()
    return order[:highest]


def _keys(model: Model, frame: pl.DataFrame, row: int) -> str:
    """What says which row it is, in the user's own columns."""
    from tabdiff.schema import Role

    roles = (Role.ID, Role.TIME, Role.ENTITY)
    names = [c.name for c in model.schema.columns if c.role in roles and c.name in frame.columns]
    return ", ".join(f"{name} {frame[name][row]}" for name in names)


def _describe(found: Explanation, keys: str, level: float) -> list[Any]:
    shown = table(
        "column", "holds", "expected", f"{level:.0%} interval, or likely values", "part of the score", "repair"
    )
    for reason in found.reasons:
        repaired = "" if reason.column not in found.repair else _text(reason.repaired)
        cells = (_text(reason.value), _text(reason.expected), _range(reason), f"{reason.contribution:.2f}", repaired)
        shown.add_row(reason.column, *cells)
    which = f"Row {found.row} ({keys})" if keys else f"Row {found.row}"
    after = f"score {found.repaired_score:.2f}, p-value {found.repaired_p_value:.3g}"
    if not found.repair:
        end = "The row is normal as it is."
    elif found.normal:
        end = f"With {count(len(found.repair), 'cell')} repaired: {after}, which is normal."
    else:
        end = (
            f"No repair of up to {count(len(found.repair), 'cell')} was found that makes it normal; the best: {after}."
        )
    return [f"{which}: score {found.score:.2f}, p-value {found.p_value:.3g}", shown, end, ""]


def _range(reason: Reason) -> str:
    if reason.likely:
        return ", ".join(f"{_text(value)} ({share:.0%})" for value, share in reason.likely)
    return f"{_text(reason.low)} to {_text(reason.high)}"


def _text(value: Any) -> str:
    if value is None:
        return "missing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(values: Any) -> Any:
    """The same without NaN, which JSON does not have."""
    if isinstance(values, dict):
        return {key: _plain(value) for key, value in values.items()}
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and values != values else values
