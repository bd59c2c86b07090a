"""What the pages Overview and Anomalies ask of the workspace. Everything here is small: aggregates, and a page of alerts."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from dashboard.queries import MOST_ROWS, cached
from dashboard.stories import Story, similar, tell
from tabdiff.operations.inspection import inspect
from tabdiff.operations.tuning import Tuning, tuning
from tabdiff.store import Workspace
from tabdiff.store.triage import Filter

SEVERITIES = ("high", "medium", "low", "unrated")
_LONG = 3600.0  # seconds for which what never changes is kept


@cached(None)
def queue(workspace: Workspace, chosen: Filter, newest: bool, limit: int, offset: int) -> list[dict[str, Any]]:
    """A page of alerts."""
    return workspace.triage.queue(chosen, newest=newest, limit=min(limit, MOST_ROWS), offset=offset)


@cached(None)
def numbers(workspace: Workspace, chosen: Filter) -> list[int]:
    """The numbers of the first 1,000 alerts, in the order of the queue."""
    return workspace.triage.numbers(chosen, MOST_ROWS)


@cached(None)
def count(workspace: Workspace, chosen: Filter) -> int:
    """How many alerts there are."""
    return workspace.triage.count(chosen)


@cached(None)
def names(workspace: Workspace) -> dict[str, list[str]]:
    """Sources, models and entities to choose among."""
    return workspace.triage.names()


@cached(None)
def alert(workspace: Workspace, number: int) -> dict[str, Any]:
    """One alert with its history."""
    return workspace.triage.get(number)


@cached(_LONG, lasting=True)
def explained(workspace: Workspace, number: int) -> dict[str, Any]:
    """Everything that can be said of an alert; takes a second or two the first time."""
    return inspect(workspace, number)


@cached(None)
def inspected(workspace: Workspace, number: int) -> dict[str, Any]:
    """The same of an event of a series, from its score files; an open one changes."""
    return inspect(workspace, number)


@cached(None)
def past_cases(workspace: Workspace, number: int) -> list[tuple[float, dict[str, Any]]]:
    """Judged alerts of the same model that are like this one, with the note of the last verdict."""
    one = workspace.triage.get(number)
    found = similar(one, workspace.triage.judged(one["model"]))
    return [(like, workspace.triage.get(other["id"])) for like, other in found]


@cached(None)
def stories(workspace: Workspace, chosen: Filter) -> list[Story]:
    """The stories that the most severe 1,000 alerts tell."""
    return tell(workspace.triage.queue(chosen, limit=MOST_ROWS))


@cached(None)
def by_day(workspace: Workspace, chosen: Filter, zone: str, days: int) -> pl.DataFrame:
    """Alerts by day of the viewer (`day`, `severity`, `alerts`), days without any included, up to today or the last alert."""
    tally = workspace.triage.tally(chosen)
    counts: Counter[tuple[Any, str]] = Counter()
    for row in tally:
        begin = datetime.strptime(f"{row['slot']}0", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
        counts[begin.astimezone(ZoneInfo(zone)).date(), row["severity"]] += row["alerts"]
    last = max([datetime.now(ZoneInfo(zone)).date(), *(day for day, _ in counts)])
    shown = [last - timedelta(days=back) for back in range(days)][::-1]
    lines = [{"day": day, "severity": name, "alerts": counts[day, name]} for day in shown for name in SEVERITIES]
    return pl.DataFrame(lines, schema={"day": pl.Date, "severity": pl.String, "alerts": pl.Int64})


@cached(None)
def thresholds(workspace: Workspace, source: str, model: str) -> Tuning:
    """What a threshold of a stream is judged by."""
    return tuning(workspace, source, model)


@cached(None)
def rules(workspace: Workspace, stream_id: int) -> list[dict[str, Any]]:
    """Saved rules of a stream, newest first."""
    return workspace.triage.rules(stream_id)


@cached(None)
def streams(workspace: Workspace) -> list[dict[str, Any]]:
    """Every stream."""
    return workspace.triage.streams()


# ------------------------------------------------------------------------------------------------ health

# From the worst. A sign goes with each word, so that none is told by colour alone.
STATES = {
    "failing": "✖ failing",
    "not all scored": "◪ not all scored",
    "drifting": "▲ drifting",
    "stale": "◷ stale",
    "odd rows": "◆ odd rows",
    "never scored": "○ never scored",
    "fine": "● fine",
}
_VERDICTS = {
    "schema changed": "failing",
    "drifted": "drifting",
    "stale": "stale",
    "odd rows": "odd rows",
    "alerts up": "odd rows",
}


@cached()
def health(workspace: Workspace) -> list[dict[str, Any]]:
    """Each source as each model scores it: state, why, when it was last scored and watched; the worst first."""
    last = {(run["kind"], run["subject"]): run for run in workspace.runs.last_of_each()}
    reports: dict[tuple[str, str], dict[str, Any]] = {}
    for report in workspace.reports(500):
        reports.setdefault((report["source"], report["model"]), report)
    streams: dict[tuple[str, str], dict[str, Any]] = {}
    for stream in workspace.triage.streams():
        streams[stream["source"], stream["model"]] = stream
    known = {source for source, _ in streams}
    keys = [*streams, *((name, "") for name in workspace.sources.all() if name not in known)]
    found = []
    for source, model in keys:
        known_stream = streams.get((source, model), {"rows": 0, "scored": None})
        run, watched = last.get(("score", f"{source}:{model}")), reports.get((source, model))
        states = [("fine", "")]
        if run is not None and run["status"] in ("failed", "crashed"):
            states.append(("failing", str(run["error"] or "")))
        if left := _left_out(run):
            states.append(("not all scored", left))
        if known_stream["scored"] is None:
            states.append(("never scored", "no rows were scored yet"))
        if watched is not None and watched["verdict"] in _VERDICTS:
            states.append((_VERDICTS[watched["verdict"]], "; ".join(watched["detail"].get("findings", []))))
        state, why = min(states, key=lambda each: list(STATES).index(each[0]))
        line = {"source": source, "model": model, "state": state, "why": why, "rows": known_stream["rows"]}
        found.append(line | {"scored": known_stream["scored"], "watched": watched["created"] if watched else None})
    return sorted(found, key=lambda line: (list(STATES).index(line["state"]), line["source"], line["model"]))


def _left_out(run: dict[str, Any] | None) -> str:
    """What the last run of a source could not score and no later one will by itself; empty if that is nothing."""
    findings = ((run or {}).get("result") or {}).get("findings", [])
    lasting = [
        f"{each['subject']}: {each['reason']}" for each in findings if each["kind"] not in ("unfinished", "duplicate")
    ]
    more = f" (and {len(lasting) - 1} more)" if len(lasting) > 1 else ""
    return f"{lasting[0]}{more}" if lasting else ""


@cached()
def schedules(workspace: Workspace) -> tuple[list[dict[str, Any]], str]:
    """What is scheduled in flows.toml with the last run of each, and the zone of its times; nothing if there is no such file.

    Raises:
        ConfigError: the file is not what it should be.
    """
    from flows.deploy import read_plan

    path = workspace.home / "flows.toml"
    if not path.exists():
        return [], "UTC"
    plan = read_plan(path)
    last = {(run["kind"], run["subject"]): run for run in workspace.runs.last_of_each()}
    found = []
    for each in plan.schedules:
        subject = ":".join(str(each.job[name]) for name in ("source", "model") if name in each.job)
        last_run = last.get((each.flow, subject))
        when = each.cron or f"every {each.every:g} s"
        line = {"name": each.name, "flow": each.flow, "of": subject, "when": when}
        found.append(
            line
            | {
                "last": last_run["started"] if last_run else None,
                "status": last_run["status"] if last_run else "never ran",
            }
        )
    return found, plan.timezone


@cached()
def in_service(workspace: Workspace) -> list[dict[str, Any]]:
    """The champion of each model."""
    return [
        {"model": v.name, "version": v.version, "since": v.created, "versions": len(workspace.models.all(v.name))}
        for v in workspace.models.all()
        if "champion" in v.aliases
    ]


@cached()
def synthetic_sets(workspace: Workspace) -> list[dict[str, Any]]:
    """The last synthetic sets with the model that drew them."""
    return workspace.synthetics(10)


@cached()
def findings(workspace: Workspace) -> list[dict[str, Any]]:
    """What people should know, newest first."""
    return workspace.events.latest(20)
