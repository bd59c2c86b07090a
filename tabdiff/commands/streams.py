"""Score and sample what does not fit into memory; the same commands, chosen by size or --stream."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tabdiff.errors import ConfigError
from tabdiff.terminal import Outcome, count, rows_progress, seconds

if TYPE_CHECKING:
    from tabdiff.flags import Rule
    from tabdiff.model import Model
    from tabdiff.streaming import Workers

_ROWS = 250_000  # from here on work goes part by part

StreamOption = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Work part by part, in bounded memory, so that a killed run can go on.",
        show_default=f"from {_ROWS:,} rows on",
    ),
]
ResumePartsOption = Annotated[bool, typer.Option("--resume", help="Go on with a streamed run that was cut off.")]
RestartPartsOption = Annotated[bool, typer.Option("--restart", help="Throw away a streamed run that was cut off.")]
RayOption = Annotated[
    int | None,
    typer.Option("--ray", min=1, metavar="WORKERS", help="Score the parts on so many Ray workers.", show_default=False),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option("--ray-address", help="A running cluster, with --ray; else one on this host, while it runs."),
]


def workers(
    model_dir: Path, model: Model, count: int | None, address: str | None, stream: bool | None
) -> Workers | None:
    """Who scores the parts, if it is not this process."""
    if count is None:
        if address is not None:
            raise ConfigError(f"--ray-address goes with --ray; got {address!r} without it. Say --ray WORKERS, too.")
        return None
    if stream is False:
        raise ConfigError("Ray workers score part by part; got --ray with --no-stream. Leave one of them out.")
    from tabdiff.cluster import RayWorkers

    return RayWorkers(model_dir, model.runtime.provider, count, address)


def score_in_parts(
    data: str, query: str | None, out: Path, *, stream: bool | None, resume: bool, restart: bool
) -> bool:
    """Whether this run is streamed: as asked for, or by the number of rows; a database never is."""
    from tabdiff.sources import read

    if "://" in data or query is not None:
        if stream or resume or restart:
            raise ConfigError("--stream, --resume and --restart are for files; got a database URL. Leave them out.")
        return False

    def rows() -> int:
        import polars as pl

        return int(read(data).select(pl.len()).collect().item())

    return _chosen(rows, out, stream=stream, resume=resume, restart=restart)


def sample_in_parts(rows: int, out: Path, *, stream: bool | None, resume: bool, restart: bool) -> bool:
    """Whether this run is streamed: as asked for, or by the number of rows."""
    return _chosen(lambda: rows, out, stream=stream, resume=resume, restart=restart)


def _chosen(rows: Any, out: Path, *, stream: bool | None, resume: bool, restart: bool) -> bool:
    if resume and restart:
        raise ConfigError("--resume goes on with a run, --restart throws it away; got both. Leave one of them out.")
    if stream is False and (resume or restart):
        raise ConfigError("--resume and --restart are for streamed runs; got --no-stream. Leave it out.")
    folder = out.with_name(f"{out.name}.parts")
    if restart and folder.exists():
        shutil.rmtree(folder)
    if stream is not None:
        return stream
    return resume or restart or folder.exists() or rows() >= _ROWS


def score(model: Model, data: str, out: Path, rule: Rule, *, resume: bool, workers: Workers | None = None) -> Outcome:
    """Stream scores to `out`."""
    from tabdiff.streaming import score_file

    with _resumable(out):
        values = score_file(model, data, out, rule, resume=resume, on_event=rows_progress("scoring"), workers=workers)
    shown = [
        f"Scored {count(values['rows'], 'row')} in {seconds(values['seconds'])}, flagged {values['flagged']:,} ({values['rule']}).",
        f"Scores: {out} (a line for each row, in the order of DATA)",
    ]
    return Outcome({"out": str(out), **values}, shown)


def sample(model: Model, rows: int, out: Path, *, seed: int, resume: bool, **asked: Any) -> Outcome:
    """Stream drawn rows to `out`; `asked` is as for `Model.sample`."""
    from tabdiff.streaming import sample_file

    with _resumable(out):
        values = sample_file(model, rows, out, seed=seed, resume=resume, on_event=rows_progress("drawing"), **asked)
    shown = [
        f"Drew {count(rows, 'row')} in {seconds(values['seconds'])}; {values['acceptance']:.1%} of the rows drawn came out.",
        f"Rows: {out}",
    ]
    return Outcome({"out": str(out), **values, "seed": seed}, shown)


class _resumable:  # noqa: N801 - reads like the statement it is
    """Ctrl-C tells what is left to go on with."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f"{out.name}.parts")

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt) and self.folder.exists():
            raise KeyboardInterrupt("The same command with --resume goes on after the last whole part.") from None
