"""Fit and score."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tabdiff.commands import series as of_series
from tabdiff.commands import streams
from tabdiff.commands.common import (
    DataArgument,
    JsonOption,
    ModelArgument,
    OutOption,
    QueryOption,
    api,
    files,
    load_model,
    read_table,
    series_api,
)
from tabdiff.commands.streams import RayAddressOption, RayOption, RestartPartsOption, ResumePartsOption, StreamOption
from tabdiff.errors import ConfigError, TabdiffWarning, TrainingError
from tabdiff.terminal import Outcome, describe_fit, describe_scores, progress

if TYPE_CHECKING:
    import polars as pl

    from tabdiff.model import Model


def fit(
    data: DataArgument,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="MODEL_DIR", help="Model folder to write.", show_default=False),
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="Options as TOML; `tabdiff config` prints them all.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in train.steps=2000.")
    ] = None,
    columns: Annotated[Path | None, typer.Option("--columns", help="Kinds and roles of columns, as TOML.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="COLUMN", help="Column of times: the table is a sensor series.")
    ] = None,
    entity: Annotated[
        str | None, typer.Option("--entity", metavar="COLUMN", help="Column that tells machines of a series apart.")
    ] = None,
    query: QueryOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fit that was cut off.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away a fit that was cut off.")] = False,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", metavar="MODEL_DIR", help="Begin with the weights of this model.")
    ] = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Fit a model of a table, or of sensor series, and write it as a folder."""
    from tabdiff.config import parse_fit_config
    from tabdiff.schema import read_overrides

    series = [f"series.{name}={json.dumps(value)}" for name, value in (("time", time), ("entity", entity)) if value]
    options = parse_fit_config(config, [*(settings or ()), *series])
    overrides = read_overrides(columns) if columns else None
    files().check_model_folder(out)
    frame = read_table(data, query)
    first = os.environ.get("RANK", "0") == "0"  # under torchrun, one process tells and writes
    fit: Callable[..., Any] = api().fit
    if options.series.time is not None:
        if start_from is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("a model of a series begins at random, in one process; got --start-from or torchrun.")
        fit = series_api().fit_series
    elif start_from is not None:
        fit = partial(fit, start_from=load_model(start_from))
    checkpoint = _checkpoint(out, resume=resume, restart=restart) if first else _checkpoint_of(out)
    with _resumable(checkpoint), progress("fitting") if first else nullcontext() as on_event:
        model = fit(frame, options, overrides=overrides, checkpoint=checkpoint, on_event=on_event)
        if not first:
            raise typer.Exit
        model.save(out)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return describe_fit(model, data, out) if options.series.time is None else of_series.describe_fit(model, out)


def score(
    model_dir: ModelArgument,
    data: DataArgument,
    out: OutOption,
    fdr: Annotated[float | None, typer.Option("--fdr", help="Flag so that about this share of flags is false.")] = None,
    contamination: Annotated[float | None, typer.Option("--contamination", help="Flag this share of the rows.")] = None,
    alerts_per_day: Annotated[
        float | None,
        typer.Option("--alerts-per-day", help="Flag above the score that normal rows pass so often a day."),
    ] = None,
    rows_per_day: Annotated[
        float | None,
        typer.Option("--rows-per-day", help="Rows scored a day; if not given, as in the training table."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Of a series: draw sensors, scores and events as .png or .svg.")
    ] = None,
    query: QueryOption = None,
    stream: StreamOption = None,
    resume: ResumePartsOption = False,
    restart: RestartPartsOption = False,
    ray: RayOption = None,
    ray_address: RayAddressOption = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Score every row: how abnormal, which columns say so, what they should have been. Of a series: places and events."""
    options = {"--fdr": fdr, "--contamination": contamination, "--alerts-per-day": alerts_per_day}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"one rule sets the flags; got {' and '.join(given)}. Leave one of them in.")
    files().check_table_file(out)
    from tabdiff.loading import load_any
    from tabdiff.model import Model

    model = load_any(model_dir)
    asked = {"fdr": fdr, "contamination": contamination, "alerts_per_day": alerts_per_day, "rows_per_day": rows_per_day}
    if not isinstance(model, Model):
        parts = {
            "--stream": stream,
            "--resume": resume,
            "--restart": restart,
            "--ray": ray,
            "--ray-address": ray_address,
        }
        if wrong := [name for name, value in parts.items() if value]:
            raise ConfigError(f"{wrong[0]} is for the model of a table; this one is of a series. Leave it out.")
        return of_series.score(model, read_table(data, query), out, picture, asked)
    if picture is not None:
        raise ConfigError("--picture draws a series; this is the model of a table. Leave it out.")
    rule = model.rule(**asked)  # a rule that does not work is told of before the table is read
    workers = streams.workers(model_dir, model, ray, ray_address, stream)
    if streams.score_in_parts(
        data, query, out, stream=stream if workers is None else True, resume=resume, restart=restart
    ):
        return streams.score(model, data, out, rule, resume=resume, workers=workers)
    frame = read_table(data, query)
    scores = model.score(frame, **asked)
    files().write(_joinable(scores.to_frame(), model, frame), out)
    return describe_scores(model, scores, rule.label, out)


def _checkpoint_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoint")


def _checkpoint(out: Path, *, resume: bool, restart: bool) -> Path:
    """Where the state of the fit is kept; whatever is there already needs a decision."""
    folder = _checkpoint_of(out)
    if resume and restart:
        raise ConfigError("--resume goes on with a fit, --restart throws it away; got both. Leave one of them out.")
    if folder.exists() and restart:
        shutil.rmtree(folder)
    elif folder.exists() and not resume:
        cure = "Add --resume to go on with it, or --restart to throw it away."
        raise TrainingError(f"{folder}: found a fit that was cut off. {cure}")
    elif resume and not folder.exists():
        warnings.warn(f"nothing to resume in {folder}; the fit starts from the beginning", TabdiffWarning, stacklevel=2)
    return folder


@contextmanager
def _resumable(checkpoint: Path) -> Iterator[None]:
    """Ctrl-C tells what is left to go on with."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint.exists():
            raise KeyboardInterrupt("The same command with --resume goes on from the last checkpoint.") from None
        raise KeyboardInterrupt("There was no checkpoint yet, so nothing is left behind.") from None


def _joinable(table: pl.DataFrame, model: Model, frame: pl.DataFrame) -> pl.DataFrame:
    """Scores beside the columns that say which row is which, so that they can be joined back."""
    from tabdiff.schema import Role

    roles = (Role.ID, Role.TIME, Role.ENTITY)
    names = [c.name for c in model.schema.columns if c.role in roles and c.name in frame.columns]
    keys = [frame[name].alias(f"input_{name}" if name in table.columns else name) for name in names]
    return table.select(*keys, *table.columns)
