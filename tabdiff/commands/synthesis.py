"""Draw rows, translate them, fill gaps, and see or set the rules that rows obey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tabdiff.commands import drawing, streams
from tabdiff.commands.common import (
    DataArgument,
    JsonOption,
    ModelArgument,
    OutOption,
    QueryOption,
    SeedOption,
    files,
    load_model,
    read_table,
)
from tabdiff.commands.streams import RestartPartsOption, ResumePartsOption, StreamOption
from tabdiff.errors import ConfigError
from tabdiff.terminal import Outcome, count

if TYPE_CHECKING:
    import polars as pl

    from tabdiff.generation import SampleReport
    from tabdiff.schema import Schema

_SERIES_STEPS = 20
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", min=1, max=10_000, help="Denoising steps at most; 32, and of series 20, if not given."),
]


def sample(
    model_dir: ModelArgument,
    out: OutOption,
    rows: Annotated[
        int | None, typer.Option("--rows", "-n", help="How many rows of a table to draw.", show_default=False)
    ] = None,
    length: drawing.LengthOption = None,
    windows: drawing.WindowsOption = None,
    count_of_series: drawing.SeriesOption = 1,
    entity: drawing.EntityOption = None,
    given_rows: drawing.GivenRowsOption = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--given", metavar="CONDITION", help="a=value (empty: missing), a=1..5, 'a>=1', 'a in {x,y}'."),
    ] = None,
    balance: Annotated[
        list[str] | None,
        typer.Option("--balance", metavar="COLUMN[:SHARES]", help="Equal shares, or as in class:a=0.5,b=0.5."),
    ] = None,
    constraints: Annotated[
        Path | None, typer.Option("--constraints", help="Rules as TOML, in place of those of the model.")
    ] = None,
    copies: Annotated[
        Literal["refuse", "redraw", "keep"], typer.Option("--copies", help="What to do with copies of training rows.")
    ] = "refuse",
    rare: Annotated[
        Literal["redraw", "null", "keep"], typer.Option("--rare", help="What to do with rare categories.")
    ] = "redraw",
    missing: Annotated[
        Literal["keep", "fill"], typer.Option("--missing", help="Draw missing values as in training, or none.")
    ] = "keep",
    seed: SeedOption = 0,
    steps: StepsOption = None,
    sampler: Annotated[
        Literal["dpmpp_2m", "heun", "ddpm"], typer.Option("--sampler", help="How to step.")
    ] = "dpmpp_2m",
    stream: StreamOption = None,
    resume: ResumePartsOption = False,
    restart: RestartPartsOption = False,
    as_json: JsonOption = False,
) -> Outcome:
    """Draw synthetic rows: all of them, those with given values, or balanced ones. Of the model of a series: series."""
    from tabdiff.config import SampleConfig
    from tabdiff.constraints import read_constraints

    files().check_table_file(out)
    model = drawing.load_either(model_dir)
    asked_of_series = {"length": length, "windows": windows, "entity": entity, "given": given_rows}
    if drawing.is_series(model):
        for_tables = {
            "--rows": rows,
            "--given": given,
            "--balance": balance,
            "--constraints": constraints,
            "--stream": stream,
            "--resume": resume,
            "--restart": restart,
            "--copies": copies != "refuse",
            "--rare": rare != "redraw",
            "--missing": missing != "keep",
        }
        return drawing.sample(
            model,
            out,
            asked_of_series,
            count_of_series,
            seed=seed,
            steps=steps or _SERIES_STEPS,
            sampler=sampler,
            for_tables=for_tables,
        )
    rows = drawing.rows_of_table(rows, asked_of_series)
    conditions = _conditions(given or [], model.schema)
    rules = read_constraints(constraints, model.schema) if constraints else None
    options = SampleConfig(
        sampler=sampler, copies=copies, rare=rare, missing=missing, **({"steps": steps} if steps else {})
    )
    reports: list[SampleReport] = []
    shares = _shares(balance or [])
    asked = {"given": conditions, "balance": shares, "constraints": rules, "config": options}
    if streams.sample_in_parts(rows, out, stream=stream, resume=resume, restart=restart):
        return streams.sample(model, rows, out, seed=seed, resume=resume, **asked)
    drawn = model.sample(rows, seed=seed, on_report=reports.append, **asked)
    files().write(drawn, out)
    return _describe_sample(drawn, reports[0], conditions, seed, out)


def translate(
    model_dir: ModelArgument,
    data: DataArgument,
    out: OutOption,
    changed: Annotated[
        list[str],
        typer.Option("--set", metavar="COLUMN=VALUE", help="Value that every row shall have.", show_default=False),
    ],
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="COLUMN", help="Column that stays as it is.")
    ] = None,
    strength: Annotated[
        float, typer.Option("--strength", help="Above 0, at most 1: how much the other columns may change.")
    ] = 0.6,
    seed: SeedOption = 0,
    query: QueryOption = None,
    as_json: JsonOption = False,
) -> Outcome:
    """What rows would look like with a column changed, other structure kept."""
    files().check_table_file(out)
    model, frame = load_model(model_dir), read_table(data, query)
    new = _conditions(changed, model.schema)
    if ranged := [name for name, value in new.items() if value is not None and not isinstance(value, str)]:
        raise ConfigError(f"--set takes one value of a column; got a range or set for {ranged[0]!r}.")
    translated = model.translate(frame, new, strength=strength, keep=keep or (), seed=seed)
    files().write(translated, out)
    shown = [
        f"Translated {count(translated.height, 'row')} to {', '.join(changed)} (strength {strength:g}).",
        f"Rows: {out}",
    ]
    return Outcome({"out": str(out), "rows": translated.height, "set": new, "strength": strength, "seed": seed}, shown)


def impute(
    model_dir: ModelArgument,
    data: DataArgument,
    out: OutOption,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Draws whose middle fills a gap.")] = 15,
    interval: Annotated[
        float | None, typer.Option("--interval", help="Add columns NAME_low and NAME_high, as in 0.9; more draws help.")
    ] = None,
    every_place: drawing.EveryPlaceOption = False,
    seed: SeedOption = 0,
    query: QueryOption = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Fill the gaps of a table or of recordings from the cells that are there."""
    files().check_table_file(out)
    model, frame = drawing.load_either(model_dir), read_table(data, query)
    if drawing.is_series(model):
        return drawing.impute(model, frame, out, draws, interval, every_place, seed)
    if every_place:
        raise ConfigError("--every-place is for the model of a series; this one is of a table. Leave it out.")
    filled = model.impute(frame, draws=draws, interval=interval, seed=seed)
    files().write(filled, out)
    return _describe_filled(frame, filled, draws, out)


def constraints(
    model_dir: ModelArgument,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Write the rules as TOML, to edit.")
    ] = None,
    use: Annotated[
        Path | None, typer.Option("--use", metavar="FILE", help="Put the rules of this file in place of the model's.")
    ] = None,
    as_json: JsonOption = False,
) -> Outcome:
    """List the rules that samples obey, write them to a file, or replace them."""
    from tabdiff.bundle import Bundle
    from tabdiff.constraints import read_constraints, to_json, write_toml

    bundle = Bundle.read(model_dir)
    if use is not None:
        rules = read_constraints(use, bundle.schema)
        sampling = {**bundle.model.get("sampling", {}), "constraints": to_json(rules)}
        bundle = replace(bundle, model={**bundle.model, "sampling": sampling})
        bundle.write(model_dir)
    rules = bundle.constraints
    if write is not None:
        with files().atomic_write(write) as file:
            file.write_text(write_toml(rules), encoding="utf-8")
    shown = [f"{count(len(rules), 'rule')}{':' if rules else '. Samples are only kept inside the training range.'}"]
    shown += [f"  {rule}" for rule in rules]
    shown += [f"Rules: {write} (edit it, then tabdiff constraints {model_dir} --use {write})"] if write else []
    values = {"model": str(model_dir), "constraints": to_json(rules), "rules": [str(rule) for rule in rules]}
    return Outcome(values, shown)


def _conditions(given: Sequence[str], schema: Schema) -> dict[str, Any]:
    from tabdiff.restrictions import parse_given

    return parse_given(given, schema)


def _shares(texts: Sequence[str]) -> Any:
    """None, names of columns, or the shares of the values of one."""
    if not texts:
        return None
    if not any(":" in text for text in texts):
        return tuple(texts)
    if len(texts) > 1:
        raise ConfigError(f"--balance with shares is given once; got {list(texts)}. For shares of a joint use Python.")
    name, _, listed = texts[0].partition(":")
    shares = {}
    for part in listed.split(","):
        value, equals, share = part.rpartition("=")
        try:
            shares[value.strip()] = float(share)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(
                f"--balance reads COLUMN or COLUMN:VALUE=SHARE,...; got {texts[0]!r}. Example: class:a=0.5,b=0.5"
            )
    return {name.strip(): shares}


def _describe_sample(
    drawn: pl.DataFrame, report: SampleReport, given: Mapping[str, Any], seed: int, out: Path
) -> Outcome:
    """How many rows were drawn, under which conditions, and what that took."""
    exact = {name: value for name, value in given.items() if value is None or isinstance(value, str)}
    asked = [f"{name}={value or ''}" if name in exact else str(value) for name, value in given.items()]
    where = f" with {', '.join(asked)}" if asked else ""
    shown = [f"Drew {count(drawn.height, 'row')} of {count(drawn.width, 'column')}{where}."]
    if report.drawn > report.rows or report.repaired:
        worst = sorted(report.broken.items(), key=lambda item: -item[1])[:3]
        named = "; ".join(f"{name}: {number}" for name, number in worst)
        shown.append(
            f"{100 * report.acceptance:.1f} % of {report.drawn:,} drawn rows were accepted, {report.repaired:,} repaired"
            + (f". Rows that broke a rule: {named}." if named else ".")
        )
    if report.copies is None:
        shown.append("Not tested for copies of training rows: the model remembers none.")
    else:
        shown.append(
            f"{count(report.copies, 'row')} equal a training row that occurs once (no more than chance explains)."
        )
    shown += [f"Rows: {out}", f"Next: the same command with --seed {seed + 1} draws other rows."]
    values = {
        "out": str(out),
        "rows": drawn.height,
        "columns": drawn.columns,
        "given": {name: value if name in exact else str(value) for name, value in given.items()},
        "seed": seed,
        "drawn": report.drawn,
        "acceptance": report.acceptance,
        "repaired": report.repaired,
        "broken": report.broken,
        "copies": report.copies,
    }
    return Outcome(values, shown)


def _describe_filled(frame: pl.DataFrame, filled: pl.DataFrame, draws: int, out: Path) -> Outcome:
    """How many gaps were filled in which columns."""
    changed = {name: int(frame[name].ne_missing(filled[name]).sum()) for name in frame.columns}
    cells: Mapping[str, int] = {name: number for name, number in changed.items() if number}
    named = ", ".join(f"{name} {number}" for name, number in cells.items())
    ends = [name for name in filled.columns if name not in frame.columns]
    shown = [
        f"Filled {count(sum(cells.values()), 'gap')}{': ' + named if named else ''}.",
        f"Each got the median or most frequent of {count(draws, 'draw')}; other cells are as they were.",
        *([f"Intervals: {', '.join(ends)}."] if ends else []),
        f"Table: {out}",
    ]
    return Outcome({"out": str(out), "rows": filled.height, "filled": cells, "intervals": ends}, shown)
