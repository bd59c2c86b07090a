"""The workspace: make it, register sources, run jobs without a scheduler, look at what came of them, clean up."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tabdiff.commands.common import JsonOption, api, needs, reported
from tabdiff.errors import ConfigError
from tabdiff.terminal import Outcome, count, progress, table

if TYPE_CHECKING:
    from tabdiff.store import Workspace

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="a-z 0-9 - _", show_default=False)]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, newest first.")]
SettingOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the job, as in fdr=0.01.")
]


StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict", help="Exit 1 if there is a finding, such as a file that does not fit; the work is done and kept."
    ),
]
SourceOption = Annotated[str, typer.Option("--source", help="Registered source.", show_default=False)]
ModelOption = Annotated[str, typer.Option("--model", help="Name of the model.", show_default=False)]


def _store() -> type[Workspace]:
    with needs("a workspace needs", "store"):
        from tabdiff.store import Workspace
    return Workspace


def _open() -> Workspace:
    return _store().open()


def init(as_json: JsonOption = False) -> Outcome:
    """Make the workspace of TABDIFF_HOME, or upgrade the one that is there."""
    made = _store().create()
    kind = "SQLite" if made.database.is_sqlite else "PostgreSQL"
    values = {"home": str(made.home), "database": kind, "version": made.database.version()}
    return Outcome(values, [f"Workspace: {made.home} ({kind}, tables of version {values['version']})."])


def demo(
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of each of three fits.")] = 150,
    as_json: JsonOption = False,
) -> Outcome:
    """Fill the workspace with real results to look at: pumps of which one failed last night, tumours, penguins."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small gain nothing from threads
    api()
    from tabdiff.demo_workspace import Step, make

    def tell(step: Step) -> None:
        print(f"{step.number}/{step.of} {step.what}", file=sys.stderr, flush=True)

    found = make(_store().create(), steps=steps, on_step=tell)
    lines = [
        f"{name}: version {of['version']}, {of['flagged']} of {of['rows']} rows flagged" for name, of in found.items()
    ]
    return Outcome(found, [*lines, "Next: tabdiff dashboard"])


def runs(limit: LimitOption = 20, as_json: JsonOption = False) -> Outcome:
    """What ran, and how it ended."""
    found = _open().runs.latest(limit)
    return _listed("runs", found, ("id", "kind", "subject", "status", "started", "rows", "error"))


def events(limit: LimitOption = 20, as_json: JsonOption = False) -> Outcome:
    """What somebody should know: files that cannot be read, late rows, drift, promotions."""
    found = _open().events.latest(limit)
    from tabdiff.store.ledger import in_words

    shown = [
        {**event, "created": f"{event['created']:%Y-%m-%d %H:%M}", "detail": in_words(event["detail"])}
        for event in found
    ]
    outcome = _listed("events", shown, ("created", "severity", "kind", "subject", "detail"))
    return Outcome({"events": found}, outcome.shown)


def scores(limit: LimitOption = 20, as_json: JsonOption = False) -> Outcome:
    """Scored parts of sources, and their files."""
    return _listed(
        "scores", _open().scores.partitions(limit=limit), ("id", "source", "unit", "part", "rows", "flagged", "file")
    )


def gc(
    keep_days: Annotated[
        float | None, typer.Option("--keep-days", min=0, help="Older scores, alerts and sets go.")
    ] = None,
    keep_versions: Annotated[
        int | None, typer.Option("--keep-versions", min=1, help="Newest versions of a model.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Believe the clock, whatever it says.")] = False,
    as_json: JsonOption = False,
) -> Outcome:
    """Delete left-overs of killed runs and what is past its retention; never what is referenced."""
    done = _open().clean(keep_days=keep_days, keep_versions=keep_versions, dry_run=dry_run, force=force)
    would = "Would remove" if dry_run else "Removed"
    kinds = {
        "left-over": done.left_over,
        "score file": done.scores,
        "model": done.models,
        "synthetic set": done.synthetic,
    }
    what = ", ".join(count(len(names), name) for name, names in kinds.items())
    return Outcome(vars(done), [f"{would} {what} and {count(done.alerts, 'alert')}; {done.bytes:,} bytes."])


def add(
    name: NameArgument,
    location: Annotated[
        str, typer.Argument(help="Path, glob, or env:NAME or file:PATH of a database URL.", show_default=False)
    ],
    new: Annotated[Literal["file", "column", "partition"], typer.Option("--new", help="What makes rows new.")] = "file",
    column: Annotated[str | None, typer.Option("--column", help="Column that only grows, with --new column.")] = None,
    table_name: Annotated[str | None, typer.Option("--table", help="Table or view of the database.")] = None,
    lateness: Annotated[
        float, typer.Option("--lateness", min=0, help="How far below the largest value rows may arrive.")
    ] = 0.0,
    late_within: Annotated[
        float | None,
        typer.Option("--late-within", help="Score rows that come later still, so far below the watermark."),
    ] = None,
    settle: Annotated[float, typer.Option("--settle", min=0, help="Seconds that a CSV file must not change.")] = 2.0,
    marker: Annotated[str | None, typer.Option("--marker", help="File that says that a subfolder is complete.")] = None,
    keys: Annotated[list[str] | None, typer.Option("--key", help="Column copied beside the scores.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change the options of a registered source.")] = False,
    as_json: JsonOption = False,
) -> Outcome:
    """Register a source. Passwords are never stored: say env:NAME or file:PATH."""
    options = {"location": location, "new": new, "column": column, "table": table_name, "marker": marker}
    spec = _open().sources.add(
        name,
        replace=replace,
        **options,
        lateness=lateness,
        late_within=late_within,
        settle=settle,
        keys=tuple(keys or ()),
    )
    return Outcome(
        {"name": name, **spec.model_dump(mode="json")}, [f"Source {name}: {spec.location}, new rows by {spec.new}."]
    )


def sources_list(as_json: JsonOption = False) -> Outcome:
    """Every registered source."""
    found = [{"name": name, **spec.model_dump(mode="json")} for name, spec in _open().sources.all().items()]
    return _listed("sources", found, ("name", "location", "new", "column", "table"))


def rescore(
    name: NameArgument,
    unit: Annotated[
        str, typer.Argument(help="File or subfolder, as tabdiff workspace scores names it.", show_default=False)
    ],
    model: Annotated[str, typer.Option("--model", help="Whose scores are taken back.", show_default=False)],
    as_json: JsonOption = False,
) -> Outcome:
    """Take back the scores of a replaced file, so that the next run scores it again."""
    workspace = _open()
    source_id, spec = workspace.sources.get(name)
    if spec.new == "column":
        raise ConfigError(
            f"source {name!r} tells rows by column {spec.column!r}; only files and subfolders can be scored again."
        )
    rows = workspace.scores.forget(workspace.scores.stream(source_id, model), unit)
    return Outcome(
        {"unit": unit, "rows": rows}, [f"Took back {count(rows, 'row')} of {unit}; the next run scores it again."]
    )


def models_list(as_json: JsonOption = False) -> Outcome:
    """Every version of every model."""
    found = [
        {
            "name": v.name,
            "version": v.version,
            "alias": ", ".join(v.aliases),
            "created": v.created,
            "folder": str(v.folder or ""),
        }
        for v in _open().models.all()
    ]
    return _listed("models", found, ("name", "version", "alias", "created", "folder"))


def promote(
    name: NameArgument,
    version: Annotated[int, typer.Argument(min=1, help="Number of the version.", show_default=False)],
    as_json: JsonOption = False,
) -> Outcome:
    """Make a version the champion."""
    return _champion(_open().models.promote(name, version))


def rollback(name: NameArgument, as_json: JsonOption = False) -> Outcome:
    """Make the champion of before the champion again; a second call undoes the first."""
    return _champion(_open().models.roll_back(name))


def _champion(version: Any) -> Outcome:
    return Outcome({"name": version.name, "champion": version.version}, [f"Champion: {version}."])


def alerts_list(
    source: Annotated[str | None, typer.Option("--source", help="Only of this source.")] = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> Outcome:
    """Flagged rows, or events of a series, with the columns that say so, and what people said of them."""
    found = _open().scores.alerts(limit, source)
    shown = [
        {**row, "what": _what(row), "reasons": ", ".join(f"{r['column']} {r['part']:.2f}" for r in row["reasons"])}
        for row in found
    ]
    outcome = _listed("alerts", shown, ("id", "source", "what", "score", "reasons", "verdict"))
    return Outcome({"alerts": found}, outcome.shown)


def _what(alert: dict[str, Any]) -> str:
    """A row of a unit, or an event of a machine with its times."""
    if alert["kind"] == "row":
        return f"{alert['unit']} row {alert['row']}"
    begin, end = (alert["at"], alert["ended"]) if alert["at"] else (alert["first_place"], alert["last_place"])
    times = [f"{each:%Y-%m-%d %H:%M}" if alert["at"] else str(each) for each in (begin, end)]
    who = f"{alert['entity']} " if alert["entity"] else ""
    return f"{who}{'silent ' if alert['kind'] == 'silent' else ''}{times[0]} to {times[1]}{' ...' if alert['open'] else ''}"


def accept(
    number: Annotated[int, typer.Argument(metavar="ALERT", help="Its number.", show_default=False)],
    author: Annotated[str, typer.Option("--author", help="Who says so.", show_default=False)],
    note: Annotated[str, typer.Option("--note", help="Why.")] = "",
    as_json: JsonOption = False,
) -> Outcome:
    """Of a series: the level that an event left behind is normal from now on. Makes and promotes a version."""
    from tabdiff.operations import accept_level

    done = accept_level(_open(), number, author, note)
    moved = ", ".join(f"{name} {shift:+.4g}" for name, shift in done["levels"].items())
    who = f" of {done['entity']}" if done["entity"] else ""
    return Outcome(done, [f"Accepted{who}: {moved}. Champion: {done['model']} version {done['version']}."])


def judge(
    number: Annotated[int, typer.Argument(metavar="ALERT", help="Its number.", show_default=False)],
    verdict: Annotated[Literal["anomaly", "normal", "unsure"], typer.Argument(help="What it is.", show_default=False)],
    author: Annotated[str, typer.Option("--author", help="Who says so.", show_default=False)],
    note: Annotated[str, typer.Option("--note", help="Why.")] = "",
    as_json: JsonOption = False,
) -> Outcome:
    """Say what a flagged row is. Earlier verdicts stay; the latest counts."""
    _open().scores.judge(number, verdict, author=author, note=note)
    return Outcome({"alert": number, "verdict": verdict}, [f"Alert {number}: {verdict}."])


def alerts_rule(
    source: SourceOption,
    model: ModelOption,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The new rule, as in alerts_per_day=5.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="From now on as the job says.")] = False,
    author: Annotated[str, typer.Option("--author", help="Who says so.")] = "",
    note: Annotated[str, typer.Option("--note", help="Why.")] = "",
    as_json: JsonOption = False,
) -> Outcome:
    """The rule that scoring uses instead of its job's, and every one before; or save another."""
    from tabdiff.config import parse_settings
    from tabdiff.operations import ScoreJob

    workspace = _open()
    stream = workspace.scores.stream(workspace.sources.get(source)[0], model)
    if settings or clear:
        rule = {} if clear else ScoreJob.of(source=source, model=model, **parse_settings(settings or ())).rule
        workspace.triage.save_rule(stream.id, rule, author=author or getpass.getuser(), note=note)
    return _listed("rules", workspace.triage.rules(stream.id), ("created", "rule", "author", "note"))


def _job(kind: str, settings: list[str] | None, *, strict: bool = False, **fixed: Any) -> Outcome:
    from tabdiff import operations
    from tabdiff.config import parse_settings

    kinds: dict[str, tuple[Any, Callable[..., dict[str, Any]]]] = {
        "train": (operations.TrainJob, operations.train),
        "score": (operations.ScoreJob, operations.score_new),
        "synthesize": (operations.SynthesizeJob, operations.synthesize),
        "monitor": (operations.MonitorJob, operations.monitor),
    }
    job, work = kinds[kind]
    workspace, asked = _open(), job.of(**{**parse_settings(settings or ()), **fixed})
    with progress("fitting") if kind == "train" else nullcontext() as on_event:
        result = work(workspace, asked, **({} if on_event is None else {"on_event": on_event}))
    plain = {name: value for name, value in result.items() if isinstance(value, str | int | float | bool)}
    lines = [f"{name}: {value}" for name, value in plain.items()]
    lines += [
        f"{f['kind']} {f['subject']}: {f['reason']}" if isinstance(f, dict) else str(f)
        for f in result.get("findings", [])
    ]
    return Outcome(result, [*lines, *result.get("reasons", [])], failed=strict and bool(result.get("findings")))


def run_train(
    source: SourceOption, model: ModelOption, settings: SettingOption = None, as_json: JsonOption = False
) -> Outcome:
    """Fit a challenger, compare it with the champion, promote it by rule (--set fit.train.steps=2000)."""
    return _job("train", settings, source=source, model=model)


def run_score(
    source: SourceOption,
    model: ModelOption,
    settings: SettingOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> Outcome:
    """Score what is new in a source, each row exactly once (--set contamination=0.01)."""
    return _job("score", settings, strict=strict, source=source, model=model)


def run_synthesize(model: ModelOption, settings: SettingOption = None, as_json: JsonOption = False) -> Outcome:
    """Draw a synthetic table and report how good it is (--set rows=5000)."""
    return _job("synthesize", settings, model=model)


def run_monitor(
    source: SourceOption,
    model: ModelOption,
    settings: SettingOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> Outcome:
    """Compare new rows with those of the fit: drift, odd rows, freshness (--set every=86400)."""
    return _job("monitor", settings, strict=strict, source=source, model=model)


def _listed(name: str, found: list[dict[str, Any]], headings: tuple[str, ...]) -> Outcome:
    shown = table(*headings)
    for row in found:
        shown.add_row(
            *("" if row[h] is None else f"{row[h]:.2f}" if isinstance(row[h], float) else str(row[h]) for h in headings)
        )
    return Outcome({name: found}, [shown] if found else [f"No {name} yet."])


_GROUPS: dict[str, tuple[str, dict[str, Callable[..., Outcome]]]] = {
    "workspace": (
        "Make and look after the workspace of TABDIFF_HOME.",
        {"init": init, "demo": demo, "runs": runs, "events": events, "scores": scores, "gc": gc},
    ),
    "sources": ("Where rows come from, by name.", {"add": add, "list": sources_list, "rescore": rescore}),
    "models": ("Versions of models in the workspace.", {"list": models_list, "promote": promote, "rollback": rollback}),
    "alerts": (
        "Flagged rows and events, and what people say of them.",
        {"list": alerts_list, "judge": judge, "accept": accept, "rule": alerts_rule},
    ),
    "run": (
        "Run a job of the workspace now, without a scheduler.",
        {"train": run_train, "score": run_score, "synthesize": run_synthesize, "monitor": run_monitor},
    ),
}


def register(app: typer.Typer) -> None:
    """Add the groups of commands to the command line."""
    for name, (text, commands) in _GROUPS.items():
        group = typer.Typer(help=text, no_args_is_help=True)
        for command, function in commands.items():
            group.command(command)(reported(function))
        app.add_typer(group, name=name)
