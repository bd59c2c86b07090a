"""How the command line speaks: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabdiff.errors import TabdiffWarning

if TYPE_CHECKING:
    from rich.console import Console

    from tabdiff.bundle import Bundle
    from tabdiff.model import Model
    from tabdiff.nn.train import TrainEvent
    from tabdiff.schema import Column
    from tabdiff.scoring import Scores
    from tabdiff.streaming import PartEvent

_LINE_EVERY = 5.0  # seconds between lines of progress where there is no terminal
_LISTED = 12  # categories named by `show`
_WIDTH = 110  # characters, where there is no terminal to ask
ENDED = {
    "steps": "all steps done",
    "patience": "held-out loss stopped falling",
    "time": "time limit reached",
}


@dataclass(frozen=True)
class Outcome:
    """What a command has to say: `values` to programs, `shown` (lines and rich tables) to people; it did its work, and may still end with 1."""

    values: dict[str, Any]
    shown: Sequence[Any]
    failed: bool = False


def console(*, stderr: bool = False) -> Console:
    """A rich console that takes every text literally. It follows NO_COLOR and the width of the terminal."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _WIDTH
    return made


def say(on: Console, item: Any) -> None:
    """Print a line, which is never wrapped so that paths and commands stay whole, or a rich table or text."""
    on.print(item, soft_wrap=isinstance(item, str))


def table(*headings: str) -> Any:
    """An empty rich table; columns of numbers are aligned right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        numeric = heading in ("row", "score", "p-value")
        made.add_column(heading, overflow="fold", justify="right" if numeric else "left")
    return made


def table_of(rows: Sequence[Mapping[str, Any]], headings: Mapping[str, str | None], decimals: int) -> Any:
    """A rich table of dicts: key -> heading (None: the key itself); numbers are aligned right."""
    made = table()
    for key, heading in headings.items():
        numeric = isinstance(rows[0][key], int | float)
        made.add_column(heading or key, overflow="fold", justify="right" if numeric else "left")
    for row in rows:
        cells = ["" if row[key] is None else row[key] for key in headings]
        made.add_row(*(f"{cell:.{decimals}f}" if isinstance(cell, float) else str(cell) for cell in cells))
    return made


def print_json(values: dict[str, Any]) -> None:
    """The one object that --json promises."""
    print(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False, default=str))


@contextmanager
def notes() -> Iterator[None]:
    """Print what tabdiff warns of as notes on stderr, each once; leave other warnings to Python."""
    said: set[str] = set()

    def note(message: Warning | str, category: type[Warning], *details: Any, **more: Any) -> None:
        if not issubclass(category, TabdiffWarning):
            usual(message, category, *details, **more)
        elif str(message) not in said:
            said.add(str(message))
            print(f"note: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", TabdiffWarning)
        usual, warnings.showwarning = warnings.showwarning, note
        yield


@contextmanager
def progress(what: str) -> Iterator[Callable[[TrainEvent], None]]:
    """A consumer of training events: a bar on a terminal, else a line every few seconds. On stderr."""
    on = console(stderr=True)
    if not on.is_terminal:
        yield _LinePrinter(on, what)
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=on, transient=True) as bar:
        task = bar.add_task(what, total=None, detail="preparing")
        yield lambda event: bar.update(task, completed=event.step, total=event.steps, detail=_progress_line(event))


class _LinePrinter:
    def __init__(self, on: Console, what: str) -> None:
        self.on, self.what, self.next = on, what, 0.0

    def __call__(self, event: TrainEvent) -> None:
        if event.elapsed >= self.next or event.finished:
            self.next = event.elapsed + _LINE_EVERY
            say(self.on, f"{self.what}: {_progress_line(event)}")


def _progress_line(event: TrainEvent) -> str:
    left = event.elapsed / event.step * (event.steps - event.step)
    end = ENDED[event.finished] if event.finished else f"≤ {seconds(left)} left"
    rate = f", {event.rows_per_second:,.0f} rows/s" if event.rows_per_second else ""
    return f"step {event.step}/{event.steps}, held-out loss {event.held_out:.4g}{rate}, {end}"


def rows_progress(what: str) -> Callable[[PartEvent], None]:
    """A consumer of streaming events: a line every few seconds on stderr, and one at the end."""
    on, due = console(stderr=True), 0.0

    def tell(event: PartEvent) -> None:
        nonlocal due
        if event.seconds >= due or event.rows == event.total:
            due = event.seconds + _LINE_EVERY
            rate = f"{event.rows_per_second:,.0f} rows/s, {seconds(event.left)} left"
            say(on, f"{what}: {event.rows:,} of {count(event.total, 'row')}, {rate}")

    return tell


def count(number: int, noun: str) -> str:
    """For instance "1 row" and "1,200 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def seconds(value: float) -> str:
    """A duration with as many digits as matter."""
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


def describe_fit(model: Model, data: str, out: Path) -> Outcome:
    """What was fitted, how it went and what to do with it."""
    report = model.bundle.model["report"]
    left_out = {column.name: column.role.value for column in model.schema.columns if not column.modelled}
    values = {"model": str(out), "columns": model.codec.columns, "not_modelled": left_out, "report": report}
    named = ", ".join(f"{name} ({role})" for name, role in left_out.items())
    shown = [
        f"Fitted a model of {count(len(model.codec.columns), 'column')} in {seconds(report['seconds'])}.",
        _how_it_went(report),
        *([f"Carried along but not modelled: {named}."] if named else []),
        f"Model: {out} ({out / 'card.md'} describes it)",
        f"Next: tabdiff score {shlex.quote(str(out))} {shlex.quote(data)} --out scores.parquet",
    ]
    return Outcome(values, shown)


def describe_scores(model: Model, scores: Scores, rule: str, out: Path) -> Outcome:
    """How many rows are flagged, and the five highest scores."""
    flagged, rows, normal = int(scores.flagged.sum()), len(scores.score), len(model.calibration.normal)
    smallest = 1 / (normal + 1)
    values = {"out": str(out), "rows": rows, "flagged": flagged, "rule": rule, "provider": scores.provider}
    highest = table("row", "score", "p-value", "columns that say so (their part of the score)")
    for row in (-scores.score).argsort(kind="stable")[:5].tolist():
        reasons = ", ".join(f"{name} {part:.2f}" for name, part in scores.top_columns(row))
        highest.add_row(str(row), f"{scores.score[row]:.2f}", f"{scores.p_value[row]:.3g}", reasons)
    shown = [
        f"Scored {count(rows, 'row')}, flagged {flagged} ({rule}). The highest scores, rows counted from 0:",
        highest,
        f"Scores: {out} (a line for each row, in the order of DATA)",
    ]
    if not flagged and rule.startswith("false"):
        shown.append(
            f"Nothing is flagged. Calibrated on {count(normal, 'row')}, no p-value is below "
            f"{smallest:.2g}, which may be too much for few anomalies among many. The order of the scores "
            "does not suffer from that: --contamination 0.01 flags the highest 1 %."
        )
    return Outcome({**values, "smallest_p_value": smallest}, shown)


def describe_model(bundle: Bundle, path: Path) -> Outcome:
    """All that a model folder says of itself."""
    report, calibration, card = bundle.model["report"], bundle.calibration, path / "card.md"
    values: dict[str, Any] = {
        "path": str(path),
        "card": str(card),
        "manifest": bundle.manifest,
        "config": bundle.config.model_dump(),
        "schema": bundle.schema.to_json(),
        "report": report,
        "views": calibration["views"],
        "calibration": calibration,
    }
    made = f"Model {path}, written {bundle.manifest['created']} by tabdiff {bundle.manifest['tabdiff']}."
    listed = table("column", "kind", "role", "in training")
    for column in bundle.schema.columns:
        listed.add_row(column.name, column.kind.value, column.role.value, _describe_values(column))
    shown = [made, listed, _how_it_went(report), *_what_is_normal(bundle), f"Model card: {card}"]
    return Outcome(values, shown)


def _how_it_went(report: dict[str, Any]) -> str:
    return (
        f"{count(report['train_rows'], 'training row')} and {report['held_out_rows']} held out; "
        f"step {report['steps']:,} of {report['planned_steps']:,} ({ENDED[report['finished']]}); "
        f"held-out loss {report['held_out']:.4g}."
    )


def _what_is_normal(bundle: Bundle) -> list[Any]:
    import numpy as np

    from tabdiff.errors import ConfigError
    from tabdiff.flags import Rule

    if "series" in bundle.model:
        described = bundle.model["series"]
        blocks = bundle.calibration["blocks"]
        return [
            f"Windows of {described['window']} places; views: {', '.join(bundle.calibration['views'])}.",
            f"{count(len(blocks), 'window')} of held-out time peak at {np.median(blocks):.2f} in the median, {max(blocks):.2f} at most.",
        ]
    calibration, judged = bundle.calibration, bundle.calibration.get("feedback") or {"confirmed": []}
    try:
        rule = Rule.choose(bundle.config.score, measured=bundle.model["report"].get("rows_per_day")).label
    except ConfigError as error:
        rule = str(error)
    confirmed, all_judged = sum(judged["confirmed"]), len(judged["confirmed"])
    normal = np.asarray(calibration["normal"])
    middle, high, highest = np.quantile(normal, [0.5, 0.95, 1.0])
    return [
        f"Views that the score is made of: {', '.join(calibration['views'])}.",
        f"{count(len(normal), 'calibration row')} score {middle:.2f} in the median, {high:.2f} at 95 %, "
        f"{highest:.2f} at most. No p-value is below {1 / (len(normal) + 1):.2g}.",
        f"Flags, if nothing else is asked for: {rule}.",
        *([f"Feedback: {all_judged - confirmed} false alarms, {confirmed} confirmed."] if all_judged else []),
    ]


def _describe_values(column: Column) -> str:
    """The values of a column in training, in a few words."""
    gaps = "; gaps" if column.nullable and not column.empty else ""
    if column.empty:
        return "no values"
    if column.kind.value == "datetime" and column.minimum is not None and column.maximum is not None:
        import numpy as np

        ends = (str(np.datetime64(int(end), "us").astype("datetime64[s]")) for end in (column.minimum, column.maximum))
        return " to ".join(ends) + gaps
    if column.minimum is not None and column.maximum is not None:
        return f"{column.minimum:.6g} to {column.maximum:.6g}{gaps}"
    if column.categories:
        more = len(column.categories) - _LISTED
        rest = f" and {more} more (--json lists them)" if more > 0 else ""
        return ", ".join(column.categories[:_LISTED]) + rest + gaps
    return "true, false" + gaps if column.kind.value == "boolean" else "carried along"
