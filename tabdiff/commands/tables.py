"""Fit, score, sample and impute: the commands that do the work on tables."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tabdiff.commands import streams
from tabdiff.commands.common import (
    DataArgument,
    JsonOption,
    ModelArgument,
    OutOption,
    QueryOption,
    SeedOption,
    api,
    files,
    load_model,
    read_table,
)
from tabdiff.commands.streams import RestartPartsOption, ResumePartsOption, StreamOption
from tabdiff.errors import ConfigError, TabdiffWarning, TrainingError
from tabdiff.terminal import Outcome, describe_filled, describe_fit, describe_sample, describe_scores, progress

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
    query: QueryOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fit that was cut off.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away a fit that was cut off.")] = False,
    as_json: JsonOption = False,
) -> Outcome:
    """Fit a model of a table and write it as a folder."""
    from tabdiff.config import parse_fit_config
    from tabdiff.schema import read_overrides

    options = parse_fit_config(config, settings or ())
    overrides = read_overrides(columns) if columns else None
    files().check_model_folder(out)
    frame = read_table(data, query)
    checkpoint = _checkpoint(out, resume=resume, restart=restart)
    with _resumable(checkpoint), progress("fitting") as on_event:
        model = api().fit(frame, options, overrides=overrides, checkpoint=checkpoint, on_event=on_event)
        model.save(out)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return describe_fit(model, data, out)


def score(
    model_dir: ModelArgument,
    data: DataArgument,
    out: OutOption,
    fdr: Annotated[float | None, typer.Option("--fdr", help="Flag so that about this share of flags is false.")] = None,
    contamination: Annotated[float | None, typer.Option("--contamination", help="Flag this share of the rows.")] = None,
    query: QueryOption = None,
    stream: StreamOption = None,
    resume: ResumePartsOption = False,
    restart: RestartPartsOption = False,
    as_json: JsonOption = False,
) -> Outcome:
    """Score every row: how abnormal, which columns say so, what they should have been."""
    if fdr is not None and contamination is not None:
        raise ConfigError("one rule sets the flags; got --fdr and --contamination. Leave one of them out.")
    files().check_table_file(out)
    if streams.score_in_parts(data, query, out, stream=stream, resume=resume, restart=restart):
        return streams.score(model_dir, data, out, fdr=fdr, contamination=contamination, resume=resume)
    model, frame = load_model(model_dir), read_table(data, query)
    scores = model.score(frame, fdr=fdr, contamination=contamination)
    files().write(_joinable(scores.to_frame(), model, frame), out)
    fdr = None if contamination else fdr or model.bundle.config.score.fdr
    rule = f"false-discovery rate {fdr}" if fdr else f"contamination {contamination}"
    return describe_scores(model, scores, rule, out)


def sample(
    model_dir: ModelArgument,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many rows to draw.", show_default=False)],
    out: OutOption,
    given: Annotated[
        list[str] | None,
        typer.Option("--given", metavar="COLUMN=VALUE", help="Value that every row has; empty: missing."),
    ] = None,
    seed: SeedOption = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, max=10_000, help="Denoising steps.")] = 20,
    sampler: Annotated[
        Literal["dpmpp_2m", "heun", "ddpm"], typer.Option("--sampler", help="How to step.")
    ] = "dpmpp_2m",
    stream: StreamOption = None,
    resume: ResumePartsOption = False,
    restart: RestartPartsOption = False,
    as_json: JsonOption = False,
) -> Outcome:
    """Draw synthetic rows, all of them or those with given values."""
    from tabdiff.config import SampleConfig

    files().check_table_file(out)
    conditions = _conditions(given or [])
    options = SampleConfig(steps=steps, sampler=sampler)
    if streams.sample_in_parts(rows, out, stream=stream, resume=resume, restart=restart):
        return streams.sample(model_dir, rows, out, given=conditions, seed=seed, config=options, resume=resume)
    drawn = load_model(model_dir).sample(rows, given=conditions, seed=seed, config=options)
    files().write(drawn, out)
    return describe_sample(drawn, given or [], conditions, seed, out)


def impute(
    model_dir: ModelArgument,
    data: DataArgument,
    out: OutOption,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Draws whose middle fills a gap.")] = 15,
    seed: SeedOption = 0,
    query: QueryOption = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Fill the gaps of a table from the cells that are there."""
    files().check_table_file(out)
    model, frame = load_model(model_dir), read_table(data, query)
    filled = model.impute(frame, draws=draws, seed=seed)
    files().write(filled, out)
    return describe_filled(frame, filled, draws, out)


def _checkpoint(out: Path, *, resume: bool, restart: bool) -> Path:
    """Where the state of the fit is kept; whatever is there already needs a decision."""
    folder = out.with_name(f"{out.name}.checkpoint")
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


def _conditions(given: Sequence[str]) -> dict[str, str | None]:
    conditions: dict[str, str | None] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--given reads COLUMN=VALUE; got {text!r}. Example: --given class=1")
        if name in conditions:
            raise ConfigError(f"--given takes a column once; got {name!r} twice. Leave one of them out.")
        conditions[name] = value or None
    return conditions


def _joinable(table: pl.DataFrame, model: Model, frame: pl.DataFrame) -> pl.DataFrame:
    """Scores beside the columns that say which row is which, so that they can be joined back."""
    from tabdiff.schema import Role

    roles = (Role.ID, Role.TIME, Role.ENTITY)
    names = [c.name for c in model.schema.columns if c.role in roles and c.name in frame.columns]
    keys = [frame[name].alias(f"input_{name}" if name in table.columns else name) for name in names]
    return table.select(*keys, *table.columns)
