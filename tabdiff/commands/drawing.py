"""Draw and fill series: what `tabdiff sample` and `tabdiff impute` do with the model of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tabdiff.commands.common import files, read_table
from tabdiff.errors import ConfigError
from tabdiff.terminal import Outcome, count

if TYPE_CHECKING:
    import polars as pl

    from tabdiff.series_imputation import SensorFill
    from tabdiff.series_model import SeriesModel

LengthOption = Annotated[
    int | None,
    typer.Option(
        "--length", help="Series: places to draw; with --given-rows, after the last of them.", show_default=False
    ),
]
WindowsOption = Annotated[
    int | None, typer.Option("--windows", help="Series: instead, so many short windows.", show_default=False)
]
SeriesOption = Annotated[int, typer.Option("--series", help="Series: how many.")]
EntityOption = Annotated[
    str | None,
    typer.Option("--entity", help="Series: whose units they have; by turns if not given.", show_default=False),
]
GivenRowsOption = Annotated[
    str | None,
    typer.Option("--given-rows", metavar="DATA", help="Series: rows that are known, to go on from or to complete."),
]
EveryPlaceOption = Annotated[
    bool, typer.Option("--every-place", help="Series: a row for each time, also where there was none.")
]


def load_either(model_dir: Path) -> Any:
    """The model of a folder, of a table or of a series."""
    from tabdiff.loading import load_any

    return load_any(model_dir)


def is_series(model: Any) -> bool:
    """Whether a model is of a series."""
    from tabdiff.series_model import SeriesModel

    return isinstance(model, SeriesModel)


def rows_of_table(rows: int | None, asked: Mapping[str, Any]) -> int:
    """How many rows of a table to draw.

    Raises:
        ConfigError: not said, or said as for a series.
    """
    if wrong := [name for name, value in asked.items() if value is not None]:
        raise ConfigError(
            f"--{wrong[0] if wrong[0] != 'given' else 'given-rows'} is for the model of a series; this one is of a table. Use --rows."
        )
    if rows is None:
        raise ConfigError("--rows says how many rows to draw; it is missing. Example: --rows 1000")
    return rows


def sample(
    model: SeriesModel,
    out: Path,
    asked: Mapping[str, Any],
    series: int,
    *,
    seed: int,
    steps: int,
    sampler: str,
    for_tables: Mapping[str, Any],
) -> Outcome:
    """Draw series to `out`."""
    if wrong := [name for name, value in for_tables.items() if value]:
        raise ConfigError(
            f"{wrong[0]} is for the model of a table; this one is of a series. Use --length or --windows."
        )
    if sampler != "dpmpp_2m":
        raise ConfigError(f"series are drawn with dpmpp_2m; got --sampler {sampler}. Leave it out.")
    given = None if asked["given"] is None else read_table(asked["given"], None)
    drawn = model.sample(**{**asked, "given": given}, series=series, seed=seed, steps=steps)
    files().write(drawn, out)
    shown = [
        f"Drew {count(drawn.height, 'place')} of {count(len(model.codec.columns), 'sensor')} ({model.plan.grid.describe()}).",
        f"Rows: {out}",
        f"Next: the same command with --seed {seed + 1} draws others.",
    ]
    return Outcome({"out": str(out), "rows": drawn.height, "columns": drawn.columns, "seed": seed}, shown)


def impute(
    model: SeriesModel,
    frame: pl.DataFrame,
    out: Path,
    draws: int,
    interval: float | None,
    every_place: bool,
    seed: int,
) -> Outcome:
    """Fill the gaps of recordings to `out`."""
    reports: list[dict[str, SensorFill]] = []
    filled = model.impute(
        frame, draws=draws, interval=interval, every_place=every_place, seed=seed, on_report=reports.append
    )
    files().write(filled, out)
    (report,) = reports
    shown = [f"Filled {count(sum(fill.cells for fill in report.values()), 'gap')}."]
    for name, fill in report.items():
        others = ", ".join(f"{method} {error:.4g}" for method, error in sorted(fill.errors.items(), key=lambda e: e[1]))
        how = (
            f"error on {count(fill.judged, 'hidden cell')}: {others}"
            if fill.judged
            else "too few cells to compare methods"
        )
        shown.append(f"  {name}: {count(fill.cells, 'gap')} by {fill.method} ({how})")
    shown.append(f"Table: {out}")
    values = {
        name: {"cells": f.cells, "method": f.method, "judged": f.judged, "errors": dict(f.errors)}
        for name, f in report.items()
    }
    return Outcome({"out": str(out), "rows": filled.height, "filled": values}, shown)
