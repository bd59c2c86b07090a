"""The command line: each command parses, calls one verb of the library and says what came of it.

Results go to stdout, progress and notes to stderr. torch, scikit-learn and polars are imported inside the
commands, so that `tabdiff --help` does not wait for them.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tabdiff.errors import (
    ConfigError,
    RuntimeUnavailable,
    TabdiffError,
    TabdiffWarning,
    TrainingError,
)
from tabdiff.terminal import (
    Outcome,
    console,
    describe_filled,
    describe_fit,
    describe_model,
    describe_sample,
    describe_scores,
    notes,
    print_json,
    progress,
    say,
)

if TYPE_CHECKING:
    import polars as pl

    from tabdiff.model import Model

_HELP = """One diffusion model of a table: anomaly scores with reasons, and synthetic rows.

DATA is a Parquet, CSV or Arrow file, a folder or glob of them, or a database URL with --query.
"""
_EPILOG = (
    "Exit codes: 0 done; 1 an error, explained in one message; 2 wrong usage; 130 interrupted. "
    "With --json, stdout holds one JSON object, for an error too."
)

app = typer.Typer(
    help=_HELP,
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataArgument = Annotated[
    str, typer.Argument(metavar="DATA", help="File, folder, glob or database URL.", show_default=False)
]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL_DIR", help="Folder that `tabdiff fit` wrote.", show_default=False)
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Result: .parquet, .csv, .arrow or .feather.", show_default=False)
]
QueryOption = Annotated[str | None, typer.Option("--query", help="SELECT statement, if DATA is a database URL.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same rows.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Entry point of the `tabdiff` command."""
    app(prog_name="tabdiff")


def _reported(command: Callable[..., Outcome]) -> Callable[..., None]:
    """Print what a command returns; an error raised on purpose becomes a message and exit code 1."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        as_json = options["as_json"]
        try:
            with notes():
                outcome = command(**options)
        except TabdiffError as error:
            print(f"error: {error}", file=sys.stderr)
            if as_json:
                print_json({"error": {"type": type(error).__name__, "message": str(error)}})
            raise typer.Exit(1) from None
        except KeyboardInterrupt as interrupt:
            print(f"\ninterrupted. {interrupt}".rstrip(), file=sys.stderr)
            raise typer.Exit(130) from None
        if as_json:
            print_json(outcome.values)
        else:
            for item in outcome.shown:
                say(console(), item)

    return run


# ------------------------------------------------------------------------------------------------- commands


def _print_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        print(f"tabdiff {metadata.version('tabdiff')}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
]


@app.callback()
def _options(version: VersionOption = False) -> None:
    pass


@app.command()
@_reported
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
    _files().check_model_folder(out)
    frame = _read(data, query)
    checkpoint = _checkpoint(out, resume=resume, restart=restart)
    with _resumable(checkpoint), progress("fitting") as on_event:
        model = _api().fit(frame, options, overrides=overrides, checkpoint=checkpoint, on_event=on_event)
        model.save(out)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return describe_fit(model, data, out)


@app.command()
@_reported
def score(
    model_dir: ModelArgument,
    data: DataArgument,
    out: OutOption,
    fdr: Annotated[float | None, typer.Option("--fdr", help="Flag so that about this share of flags is false.")] = None,
    contamination: Annotated[float | None, typer.Option("--contamination", help="Flag this share of the rows.")] = None,
    query: QueryOption = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Score every row: how abnormal, which columns say so, what they should have been."""
    if fdr is not None and contamination is not None:
        raise ConfigError("one rule sets the flags; got --fdr and --contamination. Leave one of them out.")
    _files().check_table_file(out)
    model, frame = _load(model_dir), _read(data, query)
    scores = model.score(frame, fdr=fdr, contamination=contamination)
    _files().write(_joinable(scores.to_frame(), model, frame), out)
    fdr = None if contamination else fdr or model.bundle.config.score.fdr
    rule = f"false-discovery rate {fdr}" if fdr else f"contamination {contamination}"
    return describe_scores(model, scores, rule, out)


@app.command()
@_reported
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
    as_json: JsonOption = False,
) -> Outcome:
    """Draw synthetic rows, all of them or those with given values."""
    from tabdiff.config import SampleConfig

    _files().check_table_file(out)
    conditions = _conditions(given or [])
    options = SampleConfig(steps=steps, sampler=sampler)
    drawn = _load(model_dir).sample(rows, given=conditions, seed=seed, config=options)
    _files().write(drawn, out)
    return describe_sample(drawn, given or [], conditions, seed, out)


@app.command()
@_reported
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
    _files().check_table_file(out)
    model, frame = _load(model_dir), _read(data, query)
    filled = model.impute(frame, draws=draws, seed=seed)
    _files().write(filled, out)
    return describe_filled(frame, filled, draws, out)


@app.command()
@_reported
def show(model_dir: ModelArgument, as_json: JsonOption = False) -> Outcome:
    """Print what a model knows: columns, how the fit went, what normal rows score."""
    from tabdiff.bundle import Bundle

    return describe_model(Bundle.read(model_dir), model_dir)


@app.command()
@_reported
def config(as_json: JsonOption = False) -> Outcome:
    """Print every option of `fit` with its default as TOML; with --json, the JSON schema."""
    from tabdiff.config import FitConfig, to_toml

    return Outcome(FitConfig.model_json_schema(), [to_toml(FitConfig())])


@app.command()
@_reported
def doctor(as_json: JsonOption = False) -> Outcome:
    """Check this installation; say what is wrong and how to cure it."""
    from tabdiff.doctor import examine

    checks = examine()
    shown = [f"{'ok     ' if check.ok else 'warning'}  {check.name}: {check.found}" for check in checks]
    cures = [f"To cure {check.name}: {check.cure}" for check in checks if not check.ok]
    values = {"ok": not cures, "checks": [asdict(check) for check in checks]}
    return Outcome(values, [*shown, "", *(cures or ["Everything that was checked is in order."])])


@app.command()
@_reported
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for models, tables and report.html.")] = Path("demo"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> Outcome:
    """Find tumours and draw penguins: all of tabdiff on two real tables, in about a minute."""
    # Networks this small gain nothing from threads that wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _api()
    from tabdiff.demo import run

    on = console(stderr=as_json)
    values = run(out, seed=seed, say=functools.partial(say, on), progress=progress)
    return Outcome(values, [])


# ----------------------------------------------------------------------------------------- reading, writing


def _api() -> Any:
    """`tabdiff.api`, or a word on what to install for it."""
    try:
        from tabdiff import api
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tabdiff"):
            raise
        raise RuntimeUnavailable(
            f"this command needs {error.name}, which is not installed here. Run pip install 'tabdiff[train]'."
        ) from error
    return api


def _load(model_dir: Path) -> Model:
    from tabdiff.bundle import Bundle

    Bundle.read(model_dir)  # a broken folder is told of before torch is imported
    model: Model = _api().load(model_dir)
    return model


def _read(data: str, query: str | None) -> pl.DataFrame:
    from tabdiff.sources import load

    return load(data, query=query)


def _files() -> ModuleType:
    from tabdiff import files  # brings polars

    return files


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
