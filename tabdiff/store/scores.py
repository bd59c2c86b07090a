"""Watermarks, score partitions, alerts and verdicts: what makes every row scored exactly once."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tabdiff.errors import StoreError
from tabdiff.files import write
from tabdiff.store import tables as t
from tabdiff.store.database import Database
from tabdiff.store.ledger import as_dicts
from tabdiff.store.registry import now

Judgement = Literal["anomaly", "normal", "unsure", "snooze"]


@dataclass(frozen=True)
class Stream:
    """A source as one model scores it.

    Attributes:
        revision: grows by one with every committed part.
        watermark: largest value of the source's column that was taken, as `{"kind": ..., "value": ...}`; None at first.
        rows: rows scored so far.
        state: what the model of a series needs to go on after these rows; None for tables, and before the first row.
        state_model_id: the version that made it.
    """

    id: int
    revision: int
    watermark: dict[str, Any] | None
    rows: int
    state: bytes | None = None
    state_model_id: int | None = None


@dataclass(frozen=True)
class Part:
    """One committed piece of a source. `identity` is of the file that its rows came from."""

    unit: str
    part: int
    last: bool
    identity: dict[str, Any] | None
    rows: int


@dataclass(frozen=True)
class Alert:
    """A flagged row: where it is in its partition, its score, the columns that say so, and its values as text.

    Or an event of a series, which lasts; then `row` only numbers the alerts of its part, and score, p-value, reasons and values are
    those of its peak.

    Attributes:
        at, entity: when it was (or began) and what it is about, if the table has columns for that.
        excess: score / highest score of a calibration row.
        kind: "row", "event", or "silent" (sensors that stopped reporting).
        ended: last time of an event so far.
        open: later parts may change it.
        first_place, last_place: of an event, on the model's grid of times.
    """

    row: int
    score: float
    p_value: float
    reasons: list[dict[str, Any]]
    values: dict[str, Any]
    at: datetime | None = None
    entity: str | None = None
    excess: float | None = None
    kind: str = "row"
    ended: datetime | None = None
    open: bool = False
    first_place: int | None = None
    last_place: int | None = None


class LostRace(Exception):  # noqa: N818 - an outcome, which the caller handles
    """Another run committed to the stream first; nothing was written."""


class Scores:
    """The streams of a workspace."""

    def __init__(self, home: Path, database: Database) -> None:
        self.home, self.database = home, database

    def stream(self, source_id: int, model: str) -> Stream:
        """The stream of a source and a model; it begins here if it is new."""
        c = t.streams.c
        query = sa.select(t.streams).where(c.source_id == source_id, c.model == model)

        def insert(connection: Connection) -> None:
            if not connection.execute(query).first():
                values = {"source_id": source_id, "model": model, "revision": 0, "rows": 0, "created": now()}
                connection.execute(t.streams.insert().values(values))

        while (row := self.database.read(lambda connection: connection.execute(query).first())) is None:
            with contextlib.suppress(sa.exc.IntegrityError):  # another run made it
                self.database.write(insert)
        return Stream(row.id, row.revision, row.watermark, row.rows, row.state, row.state_model_id)

    def state(self, stream_id: int) -> bytes | None:
        """The state of a stream: `Stream.state`, for who only reads."""
        query = sa.select(t.streams.c.state).where(t.streams.c.id == stream_id)
        state: bytes | None = self.database.read(lambda connection: connection.execute(query).scalar_one_or_none())
        return state

    def open_alerts(self, stream: Stream) -> list[dict[str, Any]]:
        """Alerts of a stream that later parts may change, oldest first, each with the version (`model_id`) that raised it."""
        query = (
            sa.select(t.alerts, t.partitions.c.model_id)
            .join(t.partitions, t.partitions.c.id == t.alerts.c.partition_id)
            .where(t.partitions.c.stream_id == stream.id, t.alerts.c.open)
            .order_by(t.alerts.c.id)
        )
        return as_dicts(self.database.read(lambda connection: connection.execute(query).all()))

    def parts(self, stream: Stream) -> list[Part]:
        """Everything that was committed to a stream, in order."""
        c = t.partitions.c
        query = sa.select(c.unit, c.part, c.last, c.identity, c.rows).where(c.stream_id == stream.id).order_by(c.id)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return [Part(row.unit, row.part, row.last, row.identity, row.rows) for row in rows]

    def files(self, stream: Stream) -> tuple[int, list[tuple[str, str | None]]]:
        """The stream's revision, and the unit and score file of all its parts; None where retention has taken the file."""
        c = t.partitions.c
        query = sa.select(c.unit, c.file).where(c.stream_id == stream.id).order_by(c.id)
        revision = sa.select(t.streams.c.revision).where(t.streams.c.id == stream.id)

        def look(connection: Connection) -> tuple[int, list[tuple[str, str | None]]]:
            rows = connection.execute(query).all()
            found = [(row.unit, str(self.home / row.file) if row.file else None) for row in rows]
            return int(connection.execute(revision).scalar_one()), found

        return self.database.read(look)

    def commit(
        self,
        stream: Stream,
        part: Part,
        table: pl.DataFrame | None,
        alerts: Sequence[Alert],
        *,
        flagged: int,
        model_id: int,
        run_id: int,
        watermark: dict[str, Any] | None,
        state: bytes | None = None,
        changed: Mapping[int, Alert] | None = None,
    ) -> None:
        """Publish the scores of one part: file, watermark, state, partition, alerts and run, all of it or nothing.

        Args:
            stream: as it was read before the rows were; it must still be so.
            part: what was scored.
            table: the scores, or None if the part has no rows.
            alerts: of flagged rows.
            flagged: rows that are flagged; there may be more than alerts.
            model_id: which version scored.
            run_id: which run.
            watermark: of the stream from now on.
            state: of the stream from now on, made by `model_id`; None for tables, and where nothing goes on.
            changed: what open alerts of the stream are from now on, by their number; `row` is not looked at.

        Raises:
            LostRace: the stream has moved on; nothing is left behind.
            SourceError: the file could not be written; nothing is left behind.
            StoreError: the database is out of reach; the file may be left for `gc`.
        """
        token = secrets.token_hex(16)
        file = None if table is None else f"scores/{stream.id}/{_stem(part)}-{token}.parquet"

        def insert(connection: Connection) -> bool:
            self.database.hold(connection, alone=False)
            if file is not None and not (self.home / file).is_file():
                raise LostRace("gc took the new file for a left-over")
            moved = connection.execute(
                t.streams.update()
                .where(t.streams.c.id == stream.id, t.streams.c.revision == stream.revision)
                .values(
                    revision=stream.revision + 1,
                    watermark=watermark,
                    rows=t.streams.c.rows + part.rows,
                    state=state,
                    state_model_id=None if state is None else model_id,
                )
            )
            if moved.rowcount != 1:
                # Ours, if it was committed and the answer was lost on the way.
                ours = sa.select(t.partitions.c.id).where(
                    t.partitions.c.stream_id == stream.id, t.partitions.c.token == token
                )
                return connection.execute(ours).first() is not None
            made = connection.execute(
                t.partitions.insert()
                .values(
                    stream_id=stream.id,
                    unit=part.unit,
                    part=part.part,
                    last=part.last,
                    identity=part.identity,
                    file=file,
                    token=token,
                    rows=part.rows,
                    flagged=flagged,
                    model_id=model_id,
                    run_id=run_id,
                    created=now(),
                )
                .returning(t.partitions.c.id)
            ).scalar_one()
            if alerts:
                connection.execute(
                    t.alerts.insert(), [{"partition_id": made, "created": now(), **vars(alert)} for alert in alerts]
                )
            for number, alert in (changed or {}).items():
                values = {name: value for name, value in vars(alert).items() if name != "row"}
                connection.execute(t.alerts.update().where(t.alerts.c.id == number).values(values))
            connection.execute(t.runs.update().where(t.runs.c.id == run_id).values(rows=t.runs.c.rows + part.rows))
            return True

        if file is not None and table is not None:
            (self.home / file).parent.mkdir(exist_ok=True)
            write(table, self.home / file)
        try:
            if self.database.write(insert):
                return
        except sa.exc.IntegrityError:
            pass  # the unit is there already, from a stream that was read before it was
        except LostRace:
            raise
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(f"the scores could not be recorded: {error}. Nothing was counted; run again.") from error
        if file is not None:
            (self.home / file).unlink(missing_ok=True)
        raise LostRace(f"another run committed to the stream before part {part.part} of {part.unit}")

    def forget(self, stream: Stream, unit: str) -> int:
        """Take back everything of a unit, so that the next run scores it again; the rows that were taken back.

        Raises:
            StoreError: nothing of that name was scored, the stream is of a series or has moved on, or people have judged its alerts.
        """
        if stream.state is not None:
            raise StoreError(
                f"{unit!r} is part of a series, whose later scores stand on it; it cannot be taken back. "
                "Register the corrected files as a source of their own."
            )
        of_unit = sa.and_(t.partitions.c.stream_id == stream.id, t.partitions.c.unit == unit)

        def remove(connection: Connection) -> int:
            self.database.hold(connection, alone=False)
            rows = connection.execute(sa.select(t.partitions.c.rows).where(of_unit)).scalars().all()
            if not rows:
                raise StoreError(f"nothing named {unit!r} was scored. tabdiff workspace scores lists what was.")
            numbers = sa.select(t.partitions.c.id).where(of_unit)
            alerts = sa.select(t.alerts.c.id).where(t.alerts.c.partition_id.in_(numbers))
            if connection.execute(sa.select(t.verdicts.c.id).where(t.verdicts.c.alert_id.in_(alerts))).first():
                raise StoreError(f"alerts of {unit!r} were judged, and verdicts stay. Give the new file another name.")
            moved = connection.execute(
                t.streams.update()
                .where(t.streams.c.id == stream.id, t.streams.c.revision == stream.revision)
                .values(revision=stream.revision + 1, rows=t.streams.c.rows - sum(rows))
            )
            if moved.rowcount != 1:
                raise StoreError("a run is at work on this stream. Try again when it is done.")
            connection.execute(t.alerts.delete().where(t.alerts.c.partition_id.in_(numbers)))
            connection.execute(t.partitions.delete().where(of_unit))
            return int(sum(rows))

        return self.database.write(remove)

    def partitions(self, source_id: int | None = None, limit: int = 1000) -> list[dict[str, Any]]:
        """Committed parts, newest first, with the path of each file."""
        query = (
            sa.select(t.partitions, t.sources.c.name.label("source"), t.streams.c.model, t.models.c.version)
            .join(t.streams, t.streams.c.id == t.partitions.c.stream_id)
            .join(t.sources, t.sources.c.id == t.streams.c.source_id)
            .join(t.models, t.models.c.id == t.partitions.c.model_id)
            .where(*([t.streams.c.source_id == source_id] if source_id is not None else []))
            .order_by(t.partitions.c.id.desc())
            .limit(limit)
        )
        found = as_dicts(self.database.read(lambda connection: connection.execute(query).all()), "token")
        return [{**row, "file": str(self.home / row["file"]) if row["file"] else None} for row in found]

    def alerts(self, limit: int = 100, source: str | None = None, *, run_id: int | None = None) -> list[dict[str, Any]]:
        """Flagged rows, newest partition first and highest score first, each with its latest verdict."""
        latest = (
            sa.select(t.verdicts.c.verdict)
            .where(t.verdicts.c.alert_id == t.alerts.c.id, t.verdicts.c.verdict != "snooze")
            .order_by(t.verdicts.c.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        where = [t.sources.c.name == source] if source else []
        where += [t.partitions.c.run_id == run_id] if run_id is not None else []
        query = (
            sa.select(
                t.alerts,
                t.sources.c.name.label("source"),
                t.streams.c.model,
                t.partitions.c.unit,
                latest.label("verdict"),
            )
            .join(t.partitions, t.partitions.c.id == t.alerts.c.partition_id)
            .join(t.streams, t.streams.c.id == t.partitions.c.stream_id)
            .join(t.sources, t.sources.c.id == t.streams.c.source_id)
            .where(*where)
            .order_by(
                t.alerts.c.score.desc() if run_id is not None else t.partitions.c.id.desc(), t.alerts.c.score.desc()
            )
            .limit(limit)
        )
        return as_dicts(self.database.read(lambda connection: connection.execute(query).all()))

    def judge(
        self,
        alerts: int | Sequence[int],
        verdict: Judgement,
        *,
        author: str,
        note: str = "",
        until: datetime | None = None,
    ) -> None:
        """Add a verdict to an alert, or to several at once; earlier ones stay, the latest counts.

        Args:
            alerts: their numbers.
            verdict: anomaly, normal or unsure; snooze says only that nobody need look before `until`.
            author: who says so.
            note: why.
            until: of a snooze.

        Raises:
            StoreError: no such alert, or the verdict is none of these or lacks its time; nothing was added.
        """
        if verdict not in get_args(Judgement):
            raise StoreError(f"a verdict is {', '.join(get_args(Judgement))}; got {verdict!r}.")
        if (verdict == "snooze") != (until is not None):
            raise StoreError(f"a snooze says until when, and nothing else does; got {verdict!r} until {until}.")
        numbers = list(dict.fromkeys([alerts] if isinstance(alerts, int) else alerts))
        values = {"verdict": verdict, "author": author[:128], "note": note[:4000], "until": until, "created": now()}

        def insert(connection: Connection) -> None:
            known = set(connection.execute(sa.select(t.alerts.c.id).where(t.alerts.c.id.in_(numbers))).scalars())
            unknown = [number for number in numbers if number not in known]
            if unknown or not numbers:
                raise StoreError(
                    f"no alert has the number {unknown[0] if unknown else '(none given)'}. tabdiff alerts list shows them."
                )
            connection.execute(t.verdicts.insert(), [{"alert_id": number, **values} for number in numbers])

        self.database.write(insert)

    def judged(self, model: str) -> list[tuple[dict[str, Any], str]]:
        """Values of judged rows with their latest verdict, those of a model's streams, judged last at the end."""
        query = (
            sa.select(t.alerts.c["values"], t.verdicts.c.verdict, t.alerts.c.id)
            .join(t.verdicts, t.verdicts.c.alert_id == t.alerts.c.id)
            .join(t.partitions, t.partitions.c.id == t.alerts.c.partition_id)
            .join(t.streams, t.streams.c.id == t.partitions.c.stream_id)
            .where(t.streams.c.model == model, t.verdicts.c.verdict != "snooze")
            .order_by(t.verdicts.c.id)
        )
        rows = self.database.read(lambda connection: connection.execute(query).all())
        latest: dict[int, tuple[dict[str, Any], str]] = {}
        for values, verdict, number in rows:
            latest.pop(number, None)  # what is judged again is judged last
            latest[number] = (values, verdict)
        return list(latest.values())


def _stem(part: Part) -> str:
    """A file name that shows the order of parts; nothing of a user's string is in it."""
    return f"{hashlib.sha256(part.unit.encode()).hexdigest()[:16]}-{part.part:05d}"
