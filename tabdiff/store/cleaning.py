"""What `gc` takes: left-overs of killed runs, and what is past its retention. Never what is referenced."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tabdiff.errors import StoreError
from tabdiff.store import tables as t
from tabdiff.store.database import Database
from tabdiff.store.registry import now


@dataclass
class Cleaned:
    """What was (or would be) removed."""

    left_over: list[str] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    synthetic: list[str] = field(default_factory=list)
    alerts: int = 0
    bytes: int = 0


_KEEP_CHECKPOINTS = 7 * 86_400.0  # seconds; the training of the next night may go on from one


class _NotReallyError(Exception):
    """Rolls a dry run back."""


def clean(
    home: Path,
    database: Database,
    *,
    keep_days: float | None = None,
    keep_versions: int | None = None,
    grace: float = 3600.0,
    dry_run: bool = False,
    force: bool = False,
) -> Cleaned:
    """Delete files that no row names, and rows and files past their retention.

    Holds the workspace alone meanwhile: a run that is about to commit waits, and finds out if its file was taken.

    Args:
        home, database: the workspace.
        keep_days: score files, alerts and synthetic sets older than this go, except partitions with judged alerts or such as may
            still change. That a unit was scored is remembered for ever, or it would be scored again. None: all stay.
        keep_versions: so many newest versions of each model stay, and those with an alias, and those that scores or synthetic
            sets which still exist came from, or the state of a stream. None: all stay.
        grace: seconds for which files without a row are left alone. 0 is safe, and makes runs write again what was taken.
        dry_run: delete nothing.
        force: believe the clock, even if nothing was recorded for longer than `keep_days`.

    Raises:
        StoreError: the clock is far ahead of everything recorded.
    """
    done = Cleaned()

    def sweep(connection: Connection) -> None:
        done.scores, done.models, done.synthetic, done.alerts = [], [], [], 0  # it may be run again
        database.hold(connection, alone=True)
        if keep_days is not None:
            cutoff = _cutoff(connection, keep_days, force)
            _expire_scores(connection, cutoff, done)
            _expire_synthetic(connection, cutoff, done)
        if keep_versions is not None:
            _retire_models(connection, keep_versions, done)
        if dry_run:
            raise _NotReallyError

    if keep_days is not None or keep_versions is not None:
        with contextlib.suppress(_NotReallyError):
            database.write(sweep)
    # Rows first, files after: what a crash between the two leaves is a left-over for the next time.
    database.write(lambda connection: _sweep_files(connection, home, database, grace, done, dry_run))
    _sweep_checkpoints(home, max(grace, _KEEP_CHECKPOINTS) if grace else 0.0, done, dry_run)
    return done


def _cutoff(connection: Connection, keep_days: float, force: bool) -> datetime:
    newest = connection.execute(sa.select(sa.func.max(t.runs.c.started))).scalar()
    cutoff = now() - timedelta(days=keep_days)
    if newest is not None and newest < cutoff and not force:
        raise StoreError(
            f"nothing was recorded since {newest:%Y-%m-%d %H:%M} UTC, so all that is older than {keep_days:g} days would go. "
            "Check the clock; add --force if it is right."
        )
    return cutoff


def _expire_scores(connection: Connection, cutoff: datetime, done: Cleaned) -> None:
    judged = sa.select(t.alerts.c.partition_id).join(t.verdicts, t.verdicts.c.alert_id == t.alerts.c.id)
    lasting = sa.select(t.alerts.c.partition_id).where(t.alerts.c.open)
    kept = t.partitions.c.id.in_(sa.union(judged, lasting))
    old = sa.and_(t.partitions.c.created < cutoff, t.partitions.c.file.is_not(None), ~kept)
    done.scores += connection.execute(sa.select(t.partitions.c.file).where(old)).scalars().all()
    of_old = t.alerts.c.partition_id.in_(sa.select(t.partitions.c.id).where(old))
    done.alerts += connection.execute(t.alerts.delete().where(of_old)).rowcount
    connection.execute(t.partitions.update().where(old).values(file=None))


def _expire_synthetic(connection: Connection, cutoff: datetime, done: Cleaned) -> None:
    old = sa.and_(t.synthetics.c.created < cutoff, t.synthetics.c.folder.is_not(None))
    done.synthetic += connection.execute(sa.select(t.synthetics.c.folder).where(old)).scalars().all()
    connection.execute(t.synthetics.delete().where(old))


def _retire_models(connection: Connection, keep_versions: int, done: Cleaned) -> None:
    used = [
        sa.select(t.aliases.c.model_id),
        sa.select(t.partitions.c.model_id).where(t.partitions.c.file.is_not(None)),
        sa.select(t.synthetics.c.model_id).where(t.synthetics.c.folder.is_not(None)),
        sa.select(t.streams.c.state_model_id).where(t.streams.c.state_model_id.is_not(None)),
    ]
    newer = t.models.alias()
    age = sa.select(sa.func.count()).where(newer.c.name == t.models.c.name, newer.c.version > t.models.c.version)
    gone = sa.and_(
        t.models.c.folder.is_not(None),
        age.scalar_subquery() >= max(keep_versions, 1),
        *(t.models.c.id.not_in(query) for query in used),
    )
    chosen = connection.execute(sa.select(t.models.c.id, t.models.c.folder).where(gone)).all()
    done.models += [row.folder for row in chosen]
    connection.execute(t.models.update().where(t.models.c.id.in_([row.id for row in chosen])).values(folder=None))


def _sweep_files(
    connection: Connection, home: Path, database: Database, grace: float, done: Cleaned, dry_run: bool
) -> None:
    database.hold(connection, alone=True)
    done.left_over, done.bytes = [], 0
    named = {
        home / name
        for column in (t.partitions.c.file, t.models.c.folder, t.synthetics.c.folder)
        for name in connection.execute(sa.select(column).where(column.is_not(None))).scalars()
    }
    expired = {home / name for name in (*done.scores, *done.models, *done.synthetic)}
    for path in _candidates(home):
        try:
            size, young = _size(path), abs(time.time() - path.stat().st_mtime) < grace
        except FileNotFoundError:
            continue  # its writer took it back
        if path in expired and not (path in named and not dry_run):
            done.bytes += size
        elif path in named or young:
            continue
        else:
            done.left_over.append(str(path.relative_to(home)))
            done.bytes += size
        if not dry_run:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _sweep_checkpoints(home: Path, grace: float, done: Cleaned, dry_run: bool) -> None:
    """Checkpoints that no later training went on with. One that is at work holds the lock beside its checkpoint."""
    for path in sorted((home / "work").iterdir()):
        if abs(time.time() - path.stat().st_mtime) < grace:
            continue
        with (home / "work" / f"{path.name.lstrip('.').partition('.')[0]}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if path.suffix != ".lock":
                done.left_over.append(str(path.relative_to(home)))
                done.bytes += _size(path)
            if not dry_run:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _candidates(home: Path) -> Iterator[Path]:
    """Everything that could be a file or folder of a row, temporary ones included; never through a link."""
    for kind in ("scores", "models", "synthetic"):
        for group in sorted((home / kind).iterdir()):
            if group.is_symlink() or not group.is_dir():
                continue
            yield from sorted(path for path in group.iterdir() if not path.is_symlink())


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    return path.stat().st_size
