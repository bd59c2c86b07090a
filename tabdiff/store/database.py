"""The database of a workspace: how it is opened, upgraded, and spoken to in whole transactions.

SQLite: write-ahead log, so readers never wait for a writer; a writer takes its lock at BEGIN, so none is ever asked to give
way half through; whoever finds the lock taken waits up to a minute. PostgreSQL: read committed, connections checked before
use. A transaction is a function, so that one that was cut off (the server restarted, two of them locked each other out) can be
repeated whole; functions that write are therefore written to notice their own earlier success.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url

from tabdiff.errors import StoreError
from tabdiff.store.names import redact
from tabdiff.store.tables import metadata, workspace

HEAD = "0004"
_MIGRATIONS = Path(__file__).parent / "migrations"
_PATIENCE = 60.0  # seconds that a transaction is tried again after the connection broke
_WAIT_FOR_LOCK = 60_000  # milliseconds
_UPGRADE_LOCK = 7_254_117  # any number that nobody else takes
_TRANSIENT = ("40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300")  # states of PostgreSQL that pass
_Result = TypeVar("_Result")


class Database:
    """One engine. `read` and `write` run a function in a transaction."""

    def __init__(self, url: str, *, patience: float = _PATIENCE) -> None:
        self._url, self.patience = url, patience
        try:
            parsed = make_url(url)
        except sa.exc.ArgumentError:
            raise StoreError(
                "the workspace database must be a URL such as postgresql://user@host/name; got something else. "
                "Check TABDIFF_DATABASE_URL."
            ) from None
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if not self.is_sqlite and parsed.get_backend_name() not in ("postgresql", "postgres"):
            raise StoreError(
                f"a workspace lives in SQLite or PostgreSQL; got {parsed.get_backend_name()}. Check TABDIFF_DATABASE_URL."
            )
        self.engine = _sqlite(parsed) if self.is_sqlite else _postgres(parsed)

    def read(self, function: Callable[[Connection], _Result]) -> _Result:
        """Run a function that only reads, on one state of the data.

        Raises:
            StoreError: the database is out of reach, or refuses.
        """
        return self._run(function, write=False)

    def write(self, function: Callable[[Connection], _Result]) -> _Result:
        """Run a function and commit, or leave everything as it was. It may be run again if the connection breaks.

        Raises:
            StoreError: the database is out of reach, or refuses.
        """
        return self._run(function, write=True)

    def _run(self, function: Callable[[Connection], _Result], *, write: bool) -> _Result:
        started, delay = time.monotonic(), 0.05
        while True:
            try:
                with self.engine.connect() as connection:
                    if self.is_sqlite:
                        connection = connection.execution_options(tabdiff_write=write)
                    elif not write:
                        connection = connection.execution_options(isolation_level="REPEATABLE READ")
                    with connection.begin():
                        return function(connection)
            except sa.exc.IntegrityError:
                raise  # a unique key did its work; callers know what that means
            except sa.exc.DBAPIError as error:
                if not _passes(error) or time.monotonic() - started + delay > self.patience:
                    raise StoreError(self._explain(error)) from None
                time.sleep(delay * (1 + random.random()))
                delay = min(2 * delay, 5.0)

    def _explain(self, error: sa.exc.DBAPIError) -> str:
        reason = redact(str(error.orig), self._url)
        cure = (
            "Check that the server runs and takes this user."
            if not self.is_sqlite
            else "Check the disk and the rights."
        )
        return f"the workspace database does not answer as it should: {reason}. {cure}"

    def version(self) -> str | None:
        """Version of the tables, or None where there are none."""

        def find(connection: Connection) -> str | None:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
            return found

        return self.read(find)

    def upgrade(self, revision: str = HEAD) -> None:
        """Bring the tables to a version, in one transaction, while nobody else does. Nothing to do is fine.

        Raises:
            StoreError: the tables are of a newer version than this code.
        """
        from alembic import command
        from alembic.config import Config

        def migrate(connection: Connection) -> None:
            if not self.is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            if not connection.execute(sa.select(sa.func.count()).select_from(workspace)).scalar():
                connection.execute(workspace.insert().values(id=1, created=sa.func.current_timestamp()))

        self._refuse_newer()
        self.write(migrate)

    def check(self) -> None:
        """Refuse to work on tables of another version.

        Raises:
            StoreError: there are no tables yet, or they are older or newer than this code.
        """
        self._refuse_newer()
        found = self.version()
        if found != HEAD:
            state = (
                "has no tables yet"
                if found is None
                else f"has tables of version {found}, this tabdiff works with {HEAD}"
            )
            raise StoreError(f"the workspace database {state}. Run tabdiff workspace init; it keeps what is there.")

    def _refuse_newer(self) -> None:
        found = self.version()
        if found is not None and found > HEAD:
            raise StoreError(
                f"the workspace was upgraded to version {found} by a newer tabdiff; this one knows {HEAD}. Update tabdiff."
            )

    def hold(self, connection: Connection, *, alone: bool) -> None:
        """Until the transaction ends, keep files from being deleted; with `alone`, from being committed too."""
        statement = sa.select(workspace.c.id)
        connection.execute(statement if self.is_sqlite else statement.with_for_update(read=not alone))


def _passes(error: sa.exc.DBAPIError) -> bool:
    """Whether the same transaction may well succeed in a moment."""
    if error.connection_invalidated or "database is locked" in str(error.orig):
        return True
    state, text = getattr(error.orig, "sqlstate", None), str(error.orig)
    # Without a state the server was not reached, or it turned us away: for now, or for good?
    unreachable = (
        state is None and type(error.orig).__name__ == "OperationalError" and "psycopg" in type(error.orig).__module__
    )
    for_good = "FATAL" in text and not any(
        word in text for word in ("starting up", "shutting down", "recovery", "too many")
    )
    return state in _TRANSIENT or (unreachable and not for_good)


def _sqlite(url: URL) -> Engine:
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": _WAIT_FOR_LOCK / 1000})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own idea of when to begin is not ours
        for pragma in (f"busy_timeout={_WAIT_FOR_LOCK}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("tabdiff_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgres(url: URL) -> Engine:
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=2,
        max_overflow=8,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args={
            "connect_timeout": 10,
            "application_name": "tabdiff",
            "options": f"-c lock_timeout={_WAIT_FOR_LOCK}",
        },
    )


__all__ = ["HEAD", "Database", "metadata"]
