"""The workspace as one object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tabdiff.errors import StoreError
from tabdiff.store import tables as t
from tabdiff.store.cleaning import Cleaned, clean
from tabdiff.store.database import Database
from tabdiff.store.ledger import Events, Runs, as_dicts
from tabdiff.store.names import resolve
from tabdiff.store.registry import Models, Sources, now
from tabdiff.store.scores import Scores, Stream
from tabdiff.store.triage import Triage

_FOLDERS = ("models", "scores", "synthetic", "locks", "work")


class Workspace:
    """Sources, model versions, scores, alerts, verdicts, runs and events of one team.

    Attributes:
        home: the folder with all files.
        sources, models, scores, triage, runs, events: the parts, each with its own verbs.
    """

    def __init__(self, home: Path, database: Database) -> None:
        self.home, self.database = home, database
        self.sources, self.models = Sources(database), Models(home, database)
        self.scores, self.runs, self.events = Scores(home, database), Runs(home, database), Events(database)
        self.triage = Triage(database)

    @classmethod
    def create(cls, home: Path | None = None, url: str | None = None) -> Workspace:
        """Make the workspace, or upgrade the one that is there; both can be repeated.

        Raises:
            StoreError: the folder or the database cannot be used, or is of a newer tabdiff.
        """
        home, url = _settings(home, url)
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _FOLDERS:
                (home / name).mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{home}: the workspace folder cannot be made ({error.strerror}). Set TABDIFF_HOME."
            ) from error
        database = Database(url)
        database.upgrade()
        return cls(home, database)

    @classmethod
    def open(cls, home: Path | None = None, url: str | None = None) -> Workspace:
        """The workspace of TABDIFF_HOME and TABDIFF_DATABASE_URL, or of the arguments.

        Raises:
            StoreError: it was not made yet, or has tables of another version.
        """
        home, url = _settings(home, url)
        if not all((home / name).is_dir() for name in _FOLDERS):
            raise StoreError(f"{home}: there is no workspace here. Set TABDIFF_HOME, or run tabdiff workspace init.")
        database = Database(url)
        database.check()
        return cls(home, database)

    def clean(self, **options: Any) -> Cleaned:
        """Remove left-overs and what is past its retention; see `tabdiff.store.cleaning.clean`.

        Raises:
            StoreError: as there.
        """
        self.runs.settle()
        return clean(self.home, self.database, **options)

    # --------------------------------------------------------------------- synthetic sets and reports of the monitor

    def find_synthetic(self, model_id: int, config_hash: str) -> dict[str, Any] | None:
        """The set that these options drew from this version, if it is there."""
        c = t.synthetics.c
        query = sa.select(t.synthetics).where(c.model_id == model_id, c.config_hash == config_hash)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return as_dicts(rows)[0] if rows else None

    def add_synthetic(self, **values: Any) -> dict[str, Any]:
        """Register a folder that was written under `home`; an equal set wins if it came first.

        Raises:
            StoreError: gc took the folder meanwhile.
        """

        def insert(connection: Connection) -> None:
            self.database.hold(connection, alone=False)
            if not (self.home / values["folder"]).is_dir():
                raise StoreError(f"{values['folder']} is gone; gc took it for a left-over. Draw again.")
            c = t.synthetics.c
            same = sa.select(c.id).where(c.model_id == values["model_id"], c.config_hash == values["config_hash"])
            if not connection.execute(same).first():
                connection.execute(t.synthetics.insert().values(created=now(), **values))

        while (found := self.find_synthetic(values["model_id"], values["config_hash"])) is None:
            try:
                self.database.write(insert)
            except sa.exc.IntegrityError:
                continue
        return found

    def synthetics(self, limit: int = 50, model: str | None = None) -> list[dict[str, Any]]:
        """Synthetic sets, newest first, each with its model's name and version and the path of its folder (None: removed by gc)."""
        query = (
            sa.select(t.synthetics, t.models.c.name.label("model"), t.models.c.version)
            .join(t.models, t.models.c.id == t.synthetics.c.model_id)
            .where(*([t.models.c.name == model] if model else []))
            .order_by(t.synthetics.c.id.desc())
            .limit(limit)
        )
        found = as_dicts(self.database.read(lambda connection: connection.execute(query).all()))
        return [{**row, "folder": str(self.home / row["folder"]) if row["folder"] else None} for row in found]

    def add_report(self, stream: Stream, verdict: str, detail: dict[str, Any], *, run_id: int | None = None) -> None:
        """Record what the monitor found."""
        values = {"stream_id": stream.id, "verdict": verdict, "detail": detail, "run_id": run_id, "created": now()}
        self.database.write(lambda connection: connection.execute(t.reports.insert().values(values)))

    def reports(self, limit: int = 20) -> list[dict[str, Any]]:
        """What the monitor found, newest first."""
        query = (
            sa.select(t.reports, t.sources.c.name.label("source"), t.streams.c.model)
            .join(t.streams, t.streams.c.id == t.reports.c.stream_id)
            .join(t.sources, t.sources.c.id == t.streams.c.source_id)
            .order_by(t.reports.c.id.desc())
            .limit(limit)
        )
        return as_dicts(self.database.read(lambda connection: connection.execute(query).all()))


def _settings(home: Path | None, url: str | None) -> tuple[Path, str]:
    home = (home or Path(os.environ.get("TABDIFF_HOME") or Path.home() / ".tabdiff")).absolute()
    found = url or os.environ.get("TABDIFF_DATABASE_URL") or ""
    return home, resolve(found) if found else f"sqlite:///{home / 'workspace.db'}"
