"""Runs, and events that somebody should see."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from tabdiff.errors import StoreError, TabdiffError
from tabdiff.store import tables as t
from tabdiff.store.database import Database
from tabdiff.store.registry import now

Severity = Literal["info", "warning", "error"]


class Run:
    """One run of one job. `result` is what the job wants to be remembered of it, as JSON."""

    def __init__(self, number: int) -> None:
        self.id, self.result = number, dict[str, Any]()


class Runs:
    """What ran, how it ended. A run that is alive holds a lock on a file, which the system takes back when it dies."""

    def __init__(self, home: Path, database: Database) -> None:
        self.locks, self.database = home / "locks", database

    @contextmanager
    def start(self, kind: str, subject: str) -> Iterator[Run]:
        """Record a run around a block: done, or failed with its error. One that was killed is found by the next run."""
        self.settle()
        lock = secrets.token_hex(16)
        handle = os.open(self.locks / lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            values = {"kind": kind, "subject": subject, "status": "running", "lock": lock, "started": now(), "rows": 0}
            run = Run(self._insert(lock, values))
            try:
                yield run
            except BaseException as error:
                message = str(error) if isinstance(error, TabdiffError) else f"{type(error).__name__}: {error}"
                self._end(run, "failed", f"{message or type(error).__name__}"[:4000])
                raise
            self._end(run, "done", None)
        finally:
            (self.locks / lock).unlink(missing_ok=True)
            os.close(handle)

    def _insert(self, lock: str, values: dict[str, Any]) -> int:
        def insert(connection: Connection) -> int:
            already: int | None = connection.execute(sa.select(t.runs.c.id).where(t.runs.c.lock == lock)).scalar()
            if already is not None:  # committed, but the answer was lost
                return already
            return int(connection.execute(t.runs.insert().values(values).returning(t.runs.c.id)).scalar_one())

        return self.database.write(insert)

    def _end(self, run: Run, status: str, error: str | None) -> None:
        change = t.runs.update().where(t.runs.c.id == run.id)
        values = {"status": status, "ended": now(), "error": error, "result": run.result}
        try:
            self.database.write(lambda connection: connection.execute(change.values(values)))
        except StoreError:
            if error is None:
                raise  # otherwise the first error matters more; `settle` finds the run

    def settle(self) -> int:
        """Mark runs whose process is gone as crashed; how many there were."""
        query = sa.select(t.runs.c.id, t.runs.c.lock).where(t.runs.c.status == "running")
        dead = [
            row
            for row in self.database.read(lambda connection: connection.execute(query).all())
            if self._dead(row.lock)
        ]
        for row in dead:
            change = t.runs.update().where(t.runs.c.id == row.id, t.runs.c.status == "running")
            crashed = change.values(status="crashed", ended=now(), error="the process ended without a word")
            self.database.write(lambda connection, crashed=crashed: connection.execute(crashed))  # type: ignore[misc]
            (self.locks / row.lock).unlink(missing_ok=True)
        return len(dead)

    def _dead(self, lock: str) -> bool:
        try:
            handle = os.open(self.locks / lock, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(handle)
        return True

    def latest(self, limit: int = 20, kind: str | None = None) -> list[dict[str, Any]]:
        """The last runs, newest first."""
        query = (
            sa.select(t.runs)
            .where(*([t.runs.c.kind == kind] if kind else []))
            .order_by(t.runs.c.id.desc())
            .limit(limit)
        )
        return as_dicts(self.database.read(lambda connection: connection.execute(query).all()), "lock")

    def last_of_each(self) -> list[dict[str, Any]]:
        """The newest run of every kind and subject."""
        newest = sa.select(sa.func.max(t.runs.c.id)).group_by(t.runs.c.kind, t.runs.c.subject)
        query = sa.select(t.runs).where(t.runs.c.id.in_(newest)).order_by(t.runs.c.id.desc())
        return as_dicts(self.database.read(lambda connection: connection.execute(query).all()), "lock")


class Events:
    """Findings for people: each is told once."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def tell(self, kind: str, subject: str, severity: Severity, detail: dict[str, Any], *, once: str = "") -> bool:
        """Record a finding; False if the same kind, subject and `once` was recorded before."""
        key = hashlib.sha256(json.dumps([kind, subject, once]).encode()).hexdigest()
        values = {
            "kind": kind,
            "subject": subject[:400],
            "severity": severity,
            "key": key,
            "detail": detail,
            "created": now(),
        }

        def insert(connection: Connection) -> bool:
            if connection.execute(sa.select(t.events.c.id).where(t.events.c.key == key)).first():
                return False
            connection.execute(t.events.insert().values(values))
            return True

        try:
            return self.database.write(insert)
        except sa.exc.IntegrityError:
            return False

    def latest(self, limit: int = 50) -> list[dict[str, Any]]:
        """The last findings, newest first."""
        query = sa.select(t.events).order_by(t.events.c.id.desc()).limit(limit)
        return as_dicts(self.database.read(lambda connection: connection.execute(query).all()), "key")


def in_words(detail: Mapping[str, Any]) -> str:
    """What an event has to say, on one line: its reason, its reasons or findings, else its values by name."""
    if reason := detail.get("reason"):
        return " ".join(str(reason).split())
    version = [f"version {detail['version']}"] if "version" in detail else []
    if said := detail.get("findings") or detail.get("reasons"):
        return "; ".join([*version, *map(str, said)])
    if "rows" in detail and isinstance(mark := detail.get("watermark"), Mapping):  # what events of late rows hold
        return f"{detail['rows']:,} rows came at or below {mark.get('value')} after it was passed; they are not scored"
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in detail.items())


def as_dicts(rows: Sequence[Row[Any]], *without: str) -> list[dict[str, Any]]:
    """Rows as plain dicts."""
    return [{name: value for name, value in row._mapping.items() if name not in without} for row in rows]
