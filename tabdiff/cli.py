"""The command line: its commands and how they are called. `tabdiff.commands` has what they do."""

from __future__ import annotations

from typing import Annotated

import typer

from tabdiff.commands import (
    about,
    dashboard,
    evaluation,
    explain,
    export,
    feedback,
    flows,
    serve,
    synthesis,
    tables,
    workspace,
)
from tabdiff.commands.common import reported

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


# In the order of `tabdiff --help`.
for _command in (
    tables.fit,
    tables.score,
    explain.explain,
    feedback.feedback,
    synthesis.sample,
    synthesis.translate,
    synthesis.impute,
    synthesis.constraints,
    evaluation.evaluate,
    evaluation.augment_check,
    export.export,
    serve.serve,
    about.show,
    about.config,
    about.doctor,
    about.demo,
    dashboard.dashboard,
):
    app.command()(reported(_command))
workspace.register(app)
flows.register(app)


def main() -> None:
    """Entry point of the `tabdiff` command."""
    app(prog_name="tabdiff")
