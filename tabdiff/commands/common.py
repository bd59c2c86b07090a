"""What every command shares: its arguments, the report of errors, and the way to models and tables."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tabdiff.errors import RuntimeUnavailable, TabdiffError
from tabdiff.terminal import Outcome, console, notes, print_json, say

if TYPE_CHECKING:
    import polars as pl

    from tabdiff.model import Model

_OURS = ("tabdiff", "onnx_export", "flows", "dashboard")

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


def reported(command: Callable[..., Outcome]) -> Callable[..., None]:
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
        if outcome.failed:
            raise typer.Exit(1)

    return run


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Imports of what an extra brings: if something is missing, a word on what to install.

    Raises:
        RuntimeUnavailable: "WHAT need(s) MODULE, ..."; a module of this project that is missing stays what it is, a defect.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        raise RuntimeUnavailable(
            f"{what} {error.name}, which is not installed here. Run pip install 'tabdiff[{extra}]'."
        ) from error


def api() -> Any:
    """`tabdiff.api`, or a word on what to install for it."""
    with needs("this command needs", "train"):
        from tabdiff import api
    return api


def series_api() -> Any:
    """`tabdiff.series_fit`, or a word on what to install for it."""
    with needs("this command needs", "train"):
        from tabdiff import series_fit
    return series_fit


def load_model(model_dir: Path) -> Model:
    """The model of a folder, with whatever engine there is for it."""
    from tabdiff.loading import load

    return load(model_dir)


def read_table(data: str, query: str | None) -> pl.DataFrame:
    """The table that DATA and --query name."""
    from tabdiff.sources import load

    return load(data, query=query)


def files() -> ModuleType:
    """`tabdiff.files`, imported when it is needed."""
    from tabdiff import files  # brings polars

    return files
