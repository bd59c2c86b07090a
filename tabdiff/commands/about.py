"""What there is to know of models, options and this installation; and the demo."""

from __future__ import annotations

import functools
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tabdiff.commands.common import JsonOption, ModelArgument, SeedOption, api
from tabdiff.terminal import Outcome, console, describe_model, progress, say


def show(model_dir: ModelArgument, as_json: JsonOption = False) -> Outcome:
    """Print what a model knows: columns, how the fit went, what normal rows score."""
    from tabdiff.bundle import Bundle

    return describe_model(Bundle.read(model_dir), model_dir)


def config(as_json: JsonOption = False) -> Outcome:
    """Print every option of `fit` with its default as TOML; with --json, the JSON schema."""
    from tabdiff.config import FitConfig, to_toml

    return Outcome(FitConfig.model_json_schema(), [to_toml(FitConfig())])


def doctor(as_json: JsonOption = False) -> Outcome:
    """Check this installation; say what is wrong and how to cure it."""
    from tabdiff.doctor import examine

    checks = examine()
    shown = [f"{'ok     ' if check.ok else 'warning'}  {check.name}: {check.found}" for check in checks]
    cures = [f"To cure {check.name}: {check.cure}" for check in checks if not check.ok]
    values = {"ok": not cures, "checks": [asdict(check) for check in checks]}
    return Outcome(values, [*shown, "", *(cures or ["Everything that was checked is in order."])])


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for models, tables and report.html.")] = Path("demo"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> Outcome:
    """Find tumours and draw penguins: all of tabdiff on two real tables, in about a minute."""
    # Networks this small gain nothing from threads that wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    api()
    from tabdiff.demo import run

    on = console(stderr=as_json)
    values = run(out, seed=seed, say=functools.partial(say, on), progress=progress)
    return Outcome(values, [])
