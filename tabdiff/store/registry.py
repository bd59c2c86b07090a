"""Sources and model versions by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from tabdiff.errors import ConfigError, StoreError, UnknownNameError
from tabdiff.store import tables as t
from tabdiff.store.database import Database
from tabdiff.store.names import check_name, is_reference, refuse_inline_password
from tabdiff.store.spec import SourceSpec

ALIASES = ("champion", "previous")


def now() -> datetime:
    """The time that records carry. Nothing that decides what is scored depends on it."""
    return datetime.now(UTC)


class Sources:
    """Where rows come from, by name."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, name: str, /, *, replace: bool = False, **options: Any) -> SourceSpec:
        """Register a source. What makes rows new cannot be changed later, as rows would be scored twice or never.

        Raises:
            StoreError: the name is taken or not a name, a path is outside TABDIFF_DATA_ROOTS, or a URL holds a password.
            ConfigError: the options contradict each other.
        """
        check_name(name, "source")
        try:
            spec = SourceSpec.model_validate(options)
        except ValidationError as error:
            lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'options'}: {e['msg']}" for e in error.errors())
            raise ConfigError(
                f"source {name!r} cannot be registered: {lines}. See tabdiff sources add --help."
            ) from None
        if not spec.is_database:
            spec = spec.model_copy(update={"location": str(inside_roots(Path(spec.location).absolute()))})
        elif not is_reference(spec.location):
            refuse_inline_password(spec.location)

        def insert(connection: Connection) -> None:
            old = connection.execute(sa.select(t.sources.c.spec).where(t.sources.c.name == name)).scalar()
            if old is None:
                values = {"name": name, "spec": spec.model_dump(mode="json"), "created": now()}
                connection.execute(t.sources.insert().values(values))
                return
            before = SourceSpec.model_validate(old)
            if before == spec:
                return
            if not replace:
                raise StoreError(
                    f"source {name!r} is registered already, with other options. Add --replace to change them."
                )
            fixed = ("new", "column", "table")
            if any(getattr(before, field) != getattr(spec, field) for field in fixed):
                raise StoreError(
                    f"source {name!r} has new={before.new} column={before.column} table={before.table}, which stay as they are: "
                    "otherwise rows would be scored twice or never. Register another name."
                )
            connection.execute(
                t.sources.update().where(t.sources.c.name == name).values(spec=spec.model_dump(mode="json"))
            )

        try:
            self.database.write(insert)
        except sa.exc.IntegrityError:  # somebody else registered it just now
            return self.add(name, replace=replace, **options)
        return spec

    def get(self, name: str) -> tuple[int, SourceSpec]:
        """Number and options of a source.

        Raises:
            StoreError: no such source.
        """
        query = sa.select(t.sources.c.id, t.sources.c.spec).where(t.sources.c.name == check_name(name, "source"))
        row = self.database.read(lambda connection: connection.execute(query).first())
        if row is None:
            known = ", ".join(self.all()) or "none"
            raise UnknownNameError(f"no source is named {name!r}; registered: {known}. Run tabdiff sources add.")
        return row.id, SourceSpec.model_validate(row.spec)

    def all(self) -> dict[str, SourceSpec]:
        """Every source by name."""
        query = sa.select(t.sources.c.name, t.sources.c.spec).order_by(t.sources.c.name)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return {row.name: SourceSpec.model_validate(row.spec) for row in rows}


def inside_roots(path: Path) -> Path:
    """The path itself if TABDIFF_DATA_ROOTS allows it, links followed.

    Raises:
        StoreError: it leads outside all of the folders named there.
    """
    roots = [Path(root).resolve() for root in os.environ.get("TABDIFF_DATA_ROOTS", "").split(os.pathsep) if root]
    fixed = Path(*(part for part in _before_glob(path)))
    if roots and not any(fixed.resolve().is_relative_to(root) for root in roots):
        raise StoreError(
            f"{path}: sources lie inside TABDIFF_DATA_ROOTS; this path leads elsewhere. Choose one inside."
        )
    if ".." in path.parts or "\0" in str(path):
        raise StoreError(f"{str(path)!r}: a registered path has no '..'. Write the path as it is.")
    return path


def _before_glob(path: Path) -> list[str]:
    parts = []
    for part in path.parts:
        if any(sign in part for sign in "*?["):
            break
        parts.append(part)
    return parts


@dataclass(frozen=True)
class Version:
    """A fitted model in the workspace."""

    id: int
    name: str
    version: int
    folder: Path | None
    fingerprint: str
    config_hash: str
    metrics: dict[str, Any]
    created: datetime
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


class Models:
    """Model versions and the aliases `champion` and `previous`."""

    def __init__(self, home: Path, database: Database) -> None:
        self.home, self.database = home, database

    def find(self, name: str, fingerprint: str, config_hash: str) -> Version | None:
        """The version of this data and these options, if there is one."""
        c = t.models.c
        return self._one(c.name == name, c.fingerprint == fingerprint, c.config_hash == config_hash)

    def get(self, name: str, which: int | str = "champion") -> Version:
        """A version by number or alias.

        Raises:
            StoreError: there is none.
        """
        check_name(name, "model")
        if isinstance(which, int) or which.isdecimal():
            found = self._one(t.models.c.name == name, t.models.c.version == int(which))
        else:
            query = sa.select(t.aliases.c.model_id).where(t.aliases.c.name == name, t.aliases.c.alias == which)
            found = self._one(t.models.c.id.in_(query))
        if found is None:
            known = ", ".join(f"{v.version}{''.join(f' ({a})' for a in v.aliases)}" for v in self.all(name)) or "none"
            raise UnknownNameError(
                f"model {name!r} has no {which!r}; versions: {known}. Run tabdiff run train, or promote one."
            )
        return found

    def by_id(self, number: int) -> Version:
        """A version by its row."""
        found = self._one(t.models.c.id == number)
        assert found is not None  # foreign keys keep it
        return found

    def all(self, name: str | None = None) -> list[Version]:
        """Versions of one model or of all, oldest first."""
        return self._many(*([t.models.c.name == name] if name else []))

    def add(
        self,
        name: str,
        folder: str,
        fingerprint: str,
        config_hash: str,
        metrics: dict[str, Any],
        *,
        source_id: int | None = None,
        run_id: int | None = None,
    ) -> Version:
        """Register a folder that was written under `home` as the next version; an equal one wins if it came first."""
        check_name(name, "model")

        def insert(connection: Connection) -> None:
            self.database.hold(connection, alone=False)
            if not (self.home / folder).is_dir():
                raise StoreError(
                    f"the model folder {folder} is gone; gc took it for a left-over. Run the training again."
                )
            same = sa.select(t.models.c.id).where(
                t.models.c.name == name, t.models.c.fingerprint == fingerprint, t.models.c.config_hash == config_hash
            )
            if connection.execute(same).first():
                return
            highest = sa.select(sa.func.coalesce(sa.func.max(t.models.c.version), 0)).where(t.models.c.name == name)
            connection.execute(
                t.models.insert().values(
                    name=name,
                    version=connection.execute(highest).scalar_one() + 1,
                    folder=folder,
                    fingerprint=fingerprint,
                    config_hash=config_hash,
                    metrics=metrics,
                    source_id=source_id,
                    run_id=run_id,
                    created=now(),
                )
            )

        while (found := self.find(name, fingerprint, config_hash)) is None:
            try:
                self.database.write(insert)
            except sa.exc.IntegrityError:
                continue  # another training took this number or was the same; look again
        return found

    def promote(self, name: str, version: int, *, unless_changed_from: int | None = -1) -> Version:
        """Make a version the champion; the champion of before becomes `previous`.

        Args:
            name: the model.
            version: the number of the new champion.
            unless_changed_from: id of the champion that the decision was made against (None: there was none); if it is another
                by now, nothing changes. -1: whichever it is.

        Raises:
            StoreError: no such version, its folder is gone, or the champion changed meanwhile.
        """
        chosen = self.get(name, version)
        if chosen.folder is None:
            raise StoreError(f"{chosen} was retired by gc, its folder is gone. Promote another one, or train.")

        def switch(connection: Connection) -> None:
            self.database.hold(connection, alone=False)
            of = sa.select(t.aliases.c.alias, t.aliases.c.model_id).where(t.aliases.c.name == name)
            before = {row.alias: row.model_id for row in connection.execute(of.with_for_update())}
            champion = before.get("champion")
            if unless_changed_from != -1 and champion != unless_changed_from:
                raise StoreError(
                    f"the champion of {name!r} changed while {chosen} was compared with it. Compare again."
                )
            if champion == chosen.id:
                return
            for alias, number in (("champion", chosen.id), ("previous", champion)):
                where = sa.and_(t.aliases.c.name == name, t.aliases.c.alias == alias)
                if number is not None and alias in before:
                    connection.execute(t.aliases.update().where(where).values(model_id=number, changed=now()))
                elif number is not None:
                    connection.execute(
                        t.aliases.insert().values(name=name, alias=alias, model_id=number, changed=now())
                    )

        try:
            self.database.write(switch)
        except sa.exc.IntegrityError:
            raise StoreError(
                f"the champion of {name!r} was set by somebody else just now. Look, and try again."
            ) from None
        return self.get(name, version)

    def roll_back(self, name: str) -> Version:
        """Make the previous champion the champion again; a second call undoes the first.

        Raises:
            StoreError: there is no previous one.
        """
        return self.promote(name, self.get(name, "previous").version)

    def _one(self, *where: sa.ColumnElement[bool]) -> Version | None:
        found = self._many(*where)
        return found[0] if found else None

    def _many(self, *where: sa.ColumnElement[bool]) -> list[Version]:
        def find(connection: Connection) -> list[Version]:
            rows = connection.execute(
                sa.select(t.models).where(*where).order_by(t.models.c.name, t.models.c.version)
            ).all()
            aliases: dict[int, list[str]] = {}
            for row in connection.execute(sa.select(t.aliases).order_by(t.aliases.c.alias)):
                aliases.setdefault(row.model_id, []).append(row.alias)
            return [
                Version(
                    row.id,
                    row.name,
                    row.version,
                    self.home / row.folder if row.folder else None,
                    row.fingerprint,
                    row.config_hash,
                    row.metrics,
                    row.created,
                    tuple(aliases.get(row.id, ())),
                )
                for row in rows
            ]

        return self.database.read(find)
