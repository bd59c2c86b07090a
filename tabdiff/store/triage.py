"""Alerts as people work through them: what is open, how severe, what was said of it, and the rule that decides on more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tabdiff.errors import StoreError
from tabdiff.store import tables as t
from tabdiff.store.database import Database
from tabdiff.store.ledger import as_dicts
from tabdiff.store.registry import now

# By how far a row lies beyond the most abnormal row of calibration. "unrated": scored before that was recorded.
SEVERITIES = {"high": 2.0, "medium": 1.0, "low": 0.0}
RULES = ("fdr", "contamination", "alerts_per_day")
State = Literal["open", "judged", "snoozed", "all"]

_when = sa.func.coalesce(t.alerts.c.at, t.alerts.c.created)
_excess = t.alerts.c.excess
_severity = sa.case(
    (_excess >= SEVERITIES["high"], "high"),
    (_excess >= SEVERITIES["medium"], "medium"),
    (_excess.is_not(None), "low"),
    else_="unrated",
)
_of = (t.verdicts.c.alert_id == t.alerts.c.id, t.verdicts.c.verdict != "snooze")
_verdict = (
    sa.select(t.verdicts.c.verdict).where(*_of).order_by(t.verdicts.c.id.desc()).limit(1).correlate(t.alerts)
).scalar_subquery()


@dataclass(frozen=True)
class Filter:
    """Which alerts: every field that is set narrows it. Times are of the row or of an event's start, or of the scoring if it has none.

    `kind` is "row", "event" or "silent".
    """

    source: str | None = None
    model: str | None = None
    entity: str | None = None
    severities: tuple[str, ...] = ()
    state: State = "open"
    since: datetime | None = None
    before: datetime | None = None
    kind: str | None = None


class Triage:
    """Questions about alerts, and saved rules."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def queue(self, chosen: Filter, *, newest: bool = False, limit: int = 50, offset: int = 0) -> list[dict[str, Any]]:
        """A page of alerts, most severe first (or newest), each with source, model, state and latest verdict."""
        order = (_when.desc(),) if newest else (sa.func.coalesce(_excess, 0.0).desc(),)
        query = self._joined(chosen).order_by(*order, t.alerts.c.score.desc(), t.alerts.c.id)
        return self._dicts(query.limit(limit).offset(offset))

    def count(self, chosen: Filter) -> int:
        """How many alerts there are."""
        query = sa.select(sa.func.count()).select_from(self._joined(chosen).subquery())
        return int(self.database.read(lambda connection: connection.execute(query).scalar_one()))

    def numbers(self, chosen: Filter, limit: int = 1000) -> list[int]:
        """The numbers of alerts in the order of `queue`, without anything else."""
        rows = self._joined(chosen).subquery()
        order = (sa.func.coalesce(rows.c.excess, 0.0).desc(), rows.c.score.desc(), rows.c.id)
        query = sa.select(rows.c.id).order_by(*order).limit(limit)
        return [
            int(number) for number in self.database.read(lambda connection: connection.execute(query).scalars().all())
        ]

    def mark(self) -> tuple[Any, ...]:
        """Values that are others as soon as what is asked here, or a list of versions, may have another answer; cheap to read."""
        v, r = t.verdicts.c, t.rules.c
        sleeping = sa.select(sa.func.count()).where(v.verdict == "snooze", v.until > now())
        parts = (
            *(
                sa.select(sa.func.coalesce(sa.func.sum(t.streams.c.revision), 0)),
                sa.select(sa.func.count(t.streams.c.id)),
            ),
            *(sa.select(sa.func.max(column)) for column in (v.id, r.id, t.partitions.c.id, t.models.c.id)),
            *(sa.select(sa.func.max(t.aliases.c.changed)), sleeping),
        )
        query = sa.select(*(part.scalar_subquery() for part in parts))
        return tuple(self.database.read(lambda connection: connection.execute(query).one()))

    def tally(self, chosen: Filter) -> list[dict[str, Any]]:
        """Alerts counted by ten minutes (`slot`, UTC, as in "2026-11-23 04:1"), severity, source and verdict."""
        text = (
            sa.cast(_when, sa.String)
            if self.database.is_sqlite
            else sa.func.to_char(sa.func.timezone("UTC", _when), "YYYY-MM-DD HH24:MI")
        )
        rows = self._joined(chosen, sa.func.substr(text, 1, 15).label("slot")).subquery()
        keys = (rows.c.slot, rows.c.severity, rows.c.source, rows.c.verdict)
        return self._dicts(sa.select(*keys, sa.func.count().label("alerts")).group_by(*keys).order_by(rows.c.slot))

    def names(self) -> dict[str, list[str]]:
        """Sources, models and entities that have alerts, for choosing among them; at most 500 of each."""

        def find(connection: Connection) -> dict[str, list[str]]:
            rows = self._joined(Filter(state="all")).subquery()
            found = {}
            for name in ("source", "model", "entity"):
                column = rows.c[name]
                query = sa.select(column).where(column.is_not(None)).distinct().order_by(column).limit(500)
                found[name] = [str(value) for value in connection.execute(query).scalars()]
            return found

        return self.database.read(find)

    def get(self, alert_id: int) -> dict[str, Any]:
        """One alert with everything that is kept of it, `history` (oldest first) included.

        Raises:
            StoreError: no such alert.
        """
        found = self._dicts(self._joined(Filter(state="all")).where(t.alerts.c.id == alert_id))
        if not found:
            raise StoreError(f"no alert has the number {alert_id}. It may have been removed by gc; look at the queue.")
        query = sa.select(t.verdicts).where(t.verdicts.c.alert_id == alert_id).order_by(t.verdicts.c.id)
        return {**found[0], "history": self._dicts(query)}

    def judged(
        self,
        model: str,
        limit: int = 1000,
        *,
        kind: str | None = None,
        verdicts: Sequence[str] = (),
        stream_id: int | None = None,
    ) -> list[dict[str, Any]]:
        """Alerts of a model (of a kind, with one of some verdicts, of one stream) that were judged, latest verdict first."""
        last = sa.select(sa.func.max(t.verdicts.c.id)).where(*_of).correlate(t.alerts).scalar_subquery()
        query = self._joined(Filter(model=model, state="judged", kind=kind)).order_by(last.desc()).limit(limit)
        where: list[Any] = [_verdict.in_(verdicts)] if verdicts else []
        where += [t.streams.c.id == stream_id] if stream_id is not None else []
        return self._dicts(query.where(*where))

    # ------------------------------------------------------------------------------------------- rules

    def save_rule(self, stream_id: int, rule: dict[str, float], *, author: str, note: str = "") -> None:
        """Keep the rule that scoring of a stream uses from now on; earlier ones stay in the history.

        Args:
            stream_id: whose.
            rule: one of fdr, contamination, alerts_per_day (with rows_per_day); empty: as the job says.
            author: who says so.
            note: why.

        Raises:
            StoreError: the rule is none of these, or no such stream.
        """
        names = [name for name in RULES if name in rule]
        if rule and (len(names) != 1 or set(rule) - {*names, "rows_per_day"}):
            raise StoreError(f"a rule is one of {', '.join(RULES)} (the last with rows_per_day); got {sorted(rule)}.")
        values = {"stream_id": stream_id, "rule": rule, "author": author[:128], "note": note[:4000], "created": now()}

        def insert(connection: Connection) -> None:
            if not connection.execute(sa.select(t.streams.c.id).where(t.streams.c.id == stream_id)).first():
                raise StoreError(f"no stream has the number {stream_id}. Score its source once, then save a rule.")
            connection.execute(t.rules.insert().values(values))

        self.database.write(insert)

    def rule(self, stream_id: int) -> dict[str, float]:
        """The rule that was saved last; empty if there is none."""
        found = self.rules(stream_id)
        return dict(found[0]["rule"]) if found else {}

    def rules(self, stream_id: int) -> list[dict[str, Any]]:
        """Every rule that was saved for a stream, newest first."""
        return self._dicts(sa.select(t.rules).where(t.rules.c.stream_id == stream_id).order_by(t.rules.c.id.desc()))

    def streams(self) -> list[dict[str, Any]]:
        """Every stream with its source, rows, and when it was last scored."""
        last = sa.func.max(t.partitions.c.created).label("scored")
        query = (
            sa.select(
                *(t.streams.c.id, t.sources.c.name.label("source"), t.streams.c.model, t.streams.c.rows),
                *(last, sa.func.count(t.partitions.c.id).label("parts")),
            )
            .join(t.sources, t.sources.c.id == t.streams.c.source_id)
            .outerjoin(t.partitions, t.partitions.c.stream_id == t.streams.c.id)
            .group_by(t.streams.c.id, t.sources.c.name, t.streams.c.model, t.streams.c.rows)
            .order_by(t.sources.c.name, t.streams.c.model)
        )
        return self._dicts(query)

    # ------------------------------------------------------------------------------------------- the query

    def _joined(self, chosen: Filter, *more: Any) -> sa.Select[Any]:
        snoozed = sa.exists().where(
            t.verdicts.c.alert_id == t.alerts.c.id, t.verdicts.c.verdict == "snooze", t.verdicts.c.until > now()
        )
        judged = sa.exists().where(*_of)
        where: list[Any] = []
        for column, value in ((t.sources.c.name, chosen.source), (t.streams.c.model, chosen.model)):
            where += [column == value] if value else []
        where += [t.alerts.c.entity == chosen.entity] if chosen.entity else []
        where += [t.alerts.c.kind == chosen.kind] if chosen.kind else []
        where += [_severity.in_(chosen.severities)] if chosen.severities else []
        where += [_when >= chosen.since] if chosen.since else []
        where += [_when < chosen.before] if chosen.before else []
        states = {"open": (~judged, ~snoozed), "judged": (judged,), "snoozed": (snoozed, ~judged), "all": ()}
        columns = [
            *(t.alerts, _when.label("when"), _severity.label("severity"), t.sources.c.name.label("source")),
            *(t.streams.c.model, t.streams.c.id.label("stream_id"), t.partitions.c.unit, t.partitions.c.model_id),
            *(_verdict.label("verdict"), snoozed.label("snoozed"), *more),
        ]
        return (
            sa.select(*columns)
            .join(t.partitions, t.partitions.c.id == t.alerts.c.partition_id)
            .join(t.streams, t.streams.c.id == t.partitions.c.stream_id)
            .join(t.sources, t.sources.c.id == t.streams.c.source_id)
            .where(*where, *states[chosen.state])
        )

    def _dicts(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        return as_dicts(self.database.read(lambda connection: connection.execute(query).all()))
