"""What the overview says at a glance, in words: for the page, and for the first view in the document. Nothing here is escaped yet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from dashboard import triage
from dashboard.state import ago
from tabdiff.store.triage import Filter

DAYS = 14
_STORIES, _LINES = 5, 50


def figures() -> list[tuple[str, str, str]]:
    """The numbers at the top: what is counted, how many, and what that means if the name does not say it."""
    health = triage.health()
    fine = sum(line["state"] == "fine" for line in health)
    events = triage.count(Filter(kind="event")) + triage.count(Filter(kind="silent"))
    told = "Stretches of a series, and sensors that fell silent."
    return [
        ("Open anomalies", f"{triage.count(Filter()):,}", ""),
        *([("of them events", f"{events:,}", told)] if events else []),
        ("of high severity", f"{triage.count(Filter(severities=('high',))):,}", ""),
        ("Sources fine", f"{fine} of {len(health)}", ""),
        ("Rows scored", f"{sum(line['rows'] for line in health):,}", ""),
        ("Models in service", str(len(triage.in_service())), ""),
    ]


def by_day(zone: str) -> pl.DataFrame:
    """Alerts by `day` and `severity`, of the last days on the clock of `zone`."""
    since = datetime.now(UTC) - timedelta(days=DAYS + 1)
    midnight = since.replace(minute=0, second=0, microsecond=0)  # the same question for an hour, so that it is kept
    return triage.by_day(Filter(state="all", since=midnight), zone, DAYS)


@dataclass(frozen=True)
class Told:
    """One story: how many alerts, what carries them, what they are about, from when to when."""

    alerts: int
    carried: list[str]
    about: list[str]
    span: tuple[datetime, datetime]


def stories() -> list[Told]:
    """What most of the open alerts tell."""
    return [
        Told(
            len(story.alerts),
            [f"{name} {how}" for name, how in story.carried_by[:3]],
            [name for name, _ in story.entities[:2]] or [str(story.alerts[0]["source"])],
            story.span,
        )
        for story in triage.stories(Filter())[:_STORIES]
    ]


@dataclass(frozen=True)
class Health:
    """One source as one model scores it: its state with a sign, which it is, why it is so, and the facts."""

    state: str
    name: str
    why: str
    facts: str


def sources() -> tuple[list[Health], int]:
    """The states of sources, the worst first, and how many more there are."""
    lines = triage.health()
    return [_health(line) for line in lines[:_LINES]], max(len(lines) - _LINES, 0)


def _health(line: dict[str, object]) -> Health:
    scored, watched = line["scored"], line["watched"]
    assert scored is None or isinstance(scored, datetime)
    assert watched is None or isinstance(watched, datetime)
    like = ", and like the rows of the fit" if watched else "; nobody looked for drift yet (tabdiff run monitor)"
    facts = [f"{line['rows']:,} rows", *([f"scored {ago(scored)}"] if scored else [])]
    facts.append(f"watched {ago(watched)}" if watched else "never watched")
    return Health(
        triage.STATES[str(line["state"])],
        f"{line['source']} by {line['model']}" if line["model"] else f"{line['source']}, no model",
        str(line["why"] or f"scored{like}"),
        ", ".join(facts) if scored or watched else "",
    )
