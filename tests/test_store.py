"""The workspace store, on SQLite and PostgreSQL: migrations, names, secrets, aliases, verdicts, clean-up."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tabdiff.errors import ConfigError, StoreError, TabdiffError
from tabdiff.store import Workspace, cleaning
from tabdiff.store import tables as t
from tabdiff.store.database import HEAD, Database
from tabdiff.store.names import resolve
from tabdiff.store.registry import now
from tabdiff.store.scores import Alert, LostRace, Part, Stream
from tabdiff.store.triage import Filter
from tests.databases import Postgres
from tests.workspaces import files_without_a_row

MIGRATIONS = Path(__file__).parent.parent / "tabdiff" / "store" / "migrations"
VERSIONS = [script.revision for script in reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions()))]


@pytest.fixture
def workspace(tmp_path: Path, database_url: str) -> Workspace:
    return Workspace.create(tmp_path / "home", database_url)


def add_version(workspace: Workspace, name: str, mark: str) -> int:
    folder = workspace.home / "models" / name / mark
    folder.mkdir(parents=True)
    (folder / "weights").write_text(mark)
    return workspace.models.add(name, f"models/{name}/{mark}", mark, "options", {}).version


def commit(workspace: Workspace, unit: str = "a.parquet", part: int = 0, alerts: int = 0) -> int:
    """Score a part as a run does; the number of its partition."""
    number = workspace.sources.get("orders")[0]
    stream = workspace.scores.stream(number, "m")
    found = [Alert(i, 9.0 + i, 0.01, [{"column": "x", "part": 1.0, "expected": "2"}], {"x": i}) for i in range(alerts)]
    with workspace.runs.start("score", "orders:m") as run:
        model = workspace.models.get("m")
        table = pl.DataFrame({"order_id": [1, 2, 3]})
        workspace.scores.commit(
            stream,
            Part(unit, part, True, None, 3),
            table,
            found,
            flagged=alerts,
            model_id=model.id,
            run_id=run.id,
            watermark=None,
        )
    return int(workspace.scores.partitions()[0]["id"])


@pytest.fixture
def scored(workspace: Workspace, tmp_path: Path) -> Workspace:
    add_version(workspace, "m", "one")
    workspace.models.promote("m", 1)
    workspace.sources.add("orders", location=str(tmp_path / "orders"))
    return workspace


# ---------------------------------------------------------------------------------------------- migrations


def test_the_newest_version_is_that_of_the_code() -> None:
    assert VERSIONS[-1] == HEAD


@pytest.mark.parametrize("start", VERSIONS)
def test_every_version_upgrades_to_the_tables_of_the_code(start: str, database_url: str) -> None:
    database = Database(database_url)
    database.upgrade(start)
    moment = now()
    source = {"name": "kept", "spec": {"location": "/data", "new": "file"}, "created": moment}
    common = {
        t.sources: source,
        t.runs: {"kind": "score", "subject": "s", "status": "done", "lock": "l", "started": moment, "rows": 1},
        t.models: {"name": "m", "version": 1, "fingerprint": "f", "config_hash": "c", "metrics": {}, "created": moment},
        t.streams: {"source_id": 1, "model": "m", "revision": 1, "rows": 1, "created": moment},
        t.partitions: {
            "stream_id": 1,
            "unit": "u",
            "part": 0,
            "last": True,
            "token": "t",
            "rows": 1,
            "flagged": 1,
            "model_id": 1,
            "run_id": 1,
            "created": moment,
        },
        t.alerts: {
            "partition_id": 1,
            "row": 7,
            "score": 1.5,
            "p_value": 0.1,
            "reasons": [],
            "values": {"x": 1},
            "created": moment,
        },
    }
    for table, values in common.items():
        database.write(lambda connection, table=table, values=values: connection.execute(table.insert().values(values)))
    if start != HEAD:
        with pytest.raises(StoreError, match=r"version .* works with .*tabdiff workspace init"):
            database.check()
    database.upgrade()
    database.upgrade()  # a second time is nothing
    database.check()
    row = database.read(lambda connection: connection.execute(sa.select(t.sources)).one())
    assert (row.name, row.spec, row.created) == ("kept", source["spec"], moment)
    alert = database.read(lambda connection: connection.execute(sa.select(t.alerts)).one())
    assert (alert.row, alert.score, alert.kind, alert.open, alert.ended) == (7, 1.5, "row", False, None)
    stream = database.read(lambda connection: connection.execute(sa.select(t.streams)).one())
    assert (stream.state, stream.state_model_id) == (None, None)

    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, t.metadata))

    assert database.read(differences) == []


def test_a_workspace_of_a_newer_tabdiff_is_left_alone(workspace: Workspace) -> None:
    newer = sa.text("UPDATE alembic_version SET version_num = '9999'")
    workspace.database.write(lambda connection: connection.execute(newer))
    for attempt in (workspace.database.check, workspace.database.upgrade):
        with pytest.raises(StoreError, match="newer tabdiff"):
            attempt()


def test_many_may_make_the_workspace_at_once(tmp_path: Path, database_url: str) -> None:
    errors: list[Exception] = []

    def make() -> None:
        try:
            Workspace.create(tmp_path / "home", database_url)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    Workspace.open(tmp_path / "home", database_url)


def test_there_is_no_workspace_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no workspace here"):
        Workspace.open(tmp_path)


# ---------------------------------------------------------------------------------------------- names and secrets


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "-a", "a" * 64, "a\0", "a.b", "é", "x\n", "drop table;--"])
def test_names_that_could_lead_elsewhere_are_refused(name: str, workspace: Workspace) -> None:
    with pytest.raises(StoreError, match="name of a source"):
        workspace.sources.add(name, location="/data")
    with pytest.raises(StoreError, match="name of a model"):
        workspace.models.add(name, "models/x/y", "f", "c", {})
    assert workspace.sources.all() == {}


def test_passwords_are_not_stored(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for url in (
        "postgresql://ann:s3cret@host/shop",
        "postgresql://host/shop?password=s3cret",
        "postgresql://ann:s3/cret@host/x",
    ):
        with pytest.raises(StoreError, match="must hold no password") as caught:
            workspace.sources.add("shop", location=url, table="orders", new="column", column="id")
        assert "s3" not in str(caught.value)
    workspace.sources.add("shop", location="env:SHOP_URL", table="orders", new="column", column="id")
    with pytest.raises(StoreError, match="SHOP_URL must be set"):
        resolve("env:SHOP_URL")
    monkeypatch.setenv("SHOP_URL", "postgresql://ann:s3cret@host/shop")
    assert resolve("env:SHOP_URL").endswith("/shop")
    secret = tmp_path / "secret"
    for text in ("", " \n"):
        secret.write_text(text)
        with pytest.raises(StoreError, match="empty"):
            resolve(f"file:{secret}")
    secret.write_text("postgresql://x\n")
    assert resolve(f"file:{secret}") == "postgresql://x"


def test_sources_stay_inside_the_allowed_folders(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(tmp_path)
    monkeypatch.setenv("TABDIFF_DATA_ROOTS", str(allowed))
    workspace.sources.add("good", location=str(allowed / "*.parquet"))
    for path in (tmp_path, allowed / ".." / "x", allowed / "link" / "x.parquet", Path("/etc/*")):
        with pytest.raises(StoreError, match=r"TABDIFF_DATA_ROOTS|'\.\.'"):
            workspace.sources.add("bad", location=str(path))


def test_what_makes_rows_new_stays(workspace: Workspace) -> None:
    workspace.sources.add("orders", location="/data", keys=("order_id",))
    workspace.sources.add("orders", location="/data", keys=("order_id",))  # the same again is nothing
    with pytest.raises(StoreError, match="--replace"):
        workspace.sources.add("orders", location="/other")
    workspace.sources.add("orders", replace=True, location="/other")
    assert workspace.sources.get("orders")[1].location == "/other"
    with pytest.raises(StoreError, match="scored twice or never"):
        workspace.sources.add("orders", replace=True, location="/other", new="partition")
    with pytest.raises(ConfigError, match="cannot be registered"):
        workspace.sources.add("other", location="/x", new="column")
    with pytest.raises(StoreError, match="registered: orders"):
        workspace.sources.get("order")


# ---------------------------------------------------------------------------------------------- models


def test_versions_and_aliases(workspace: Workspace) -> None:
    assert [add_version(workspace, "m", mark) for mark in ("one", "two", "three")] == [1, 2, 3]
    (workspace.home / "models" / "m" / "copy").mkdir()
    assert workspace.models.add("m", "models/m/copy", "two", "options", {}).version == 2  # the same data and options
    with pytest.raises(StoreError, match="versions: 1, 2, 3"):
        workspace.models.get("m")
    workspace.models.promote("m", 1)
    with pytest.raises(StoreError, match="'previous'"):
        workspace.models.roll_back("m")
    workspace.models.promote("m", 3)
    assert workspace.models.get("m").version == 3
    assert workspace.models.get("m", "previous").version == 1
    assert workspace.models.roll_back("m").version == 1
    assert workspace.models.roll_back("m").version == 3
    with pytest.raises(StoreError, match="champion of 'm' changed"):
        workspace.models.promote("m", 2, unless_changed_from=workspace.models.get("m", 1).id)
    with pytest.raises(StoreError, match="gc took it"):
        workspace.models.add("m", "models/m/gone", "x", "y", {})


# ---------------------------------------------------------------------------------------------- scores and verdicts


def test_a_part_is_committed_once(scored: Workspace) -> None:
    number = scored.sources.get("orders")[0]
    stale = scored.scores.stream(number, "m")
    commit(scored)
    assert scored.scores.stream(number, "m").rows == 3
    assert scored.runs.latest(1)[0]["rows"] == 3
    model = scored.models.get("m")
    table = pl.DataFrame({"order_id": [1]})
    with scored.runs.start("score", "x") as run:

        def again(stream: Stream, unit: str) -> None:
            part = Part(unit, 0, True, None, 3)
            scored.scores.commit(stream, part, table, [], flagged=0, model_id=model.id, run_id=run.id, watermark=None)

        # The last time the watermark would allow it; the unique key does not.
        for stream, unit in (
            (stale, "a.parquet"),
            (stale, "b.parquet"),
            (scored.scores.stream(number, "m"), "a.parquet"),
        ):
            with pytest.raises(LostRace):
                again(stream, unit)
    assert scored.scores.stream(number, "m").rows == 3
    assert files_without_a_row(scored) == []
    assert "../" not in scored.scores.partitions()[0]["file"]


def test_a_commit_whose_answer_was_lost_counts_once(scored: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = scored.database.write, []

    def answer_lost(function):  # type: ignore[no-untyped-def]
        calls.append(1)
        write(function)
        return write(function)  # as if the connection broke after COMMIT, and the transaction was tried again

    monkeypatch.setattr(scored.database, "write", answer_lost)
    commit(scored)
    monkeypatch.undo()
    assert calls
    assert scored.scores.stream(scored.sources.get("orders")[0], "m").rows == 3
    assert len(scored.scores.partitions()) == 1
    assert len(scored.runs.latest()) == 1


def test_verdicts_are_appended_and_never_changed(scored: Workspace) -> None:
    commit(scored, alerts=2)
    first = scored.scores.alerts()[0]
    assert (first["score"], first["verdict"], first["source"]) == (10.0, None, "orders")
    scored.scores.judge(first["id"], "anomaly", author="ann")
    scored.scores.judge(first["id"], "normal", author="bob", note="known customer")
    assert scored.scores.alerts()[0]["verdict"] == "normal"
    assert scored.scores.judged("m") == [({"x": 1}, "normal")]
    for statement in (t.verdicts.delete(), t.verdicts.update().values(verdict="unsure")):
        with pytest.raises((StoreError, sa.exc.IntegrityError), match="append-only"):
            scored.database.write(lambda connection, statement=statement: connection.execute(statement))
    with pytest.raises(StoreError, match="no alert"):
        scored.scores.judge(999, "normal", author="ann")
    with pytest.raises(StoreError, match="judged"):
        scored.scores.forget(scored.scores.stream(scored.sources.get("orders")[0], "m"), "a.parquet")


def test_a_unit_can_be_taken_back(scored: Workspace) -> None:
    commit(scored, alerts=1)
    number = scored.sources.get("orders")[0]
    assert scored.scores.forget(scored.scores.stream(number, "m"), "a.parquet") == 3
    assert scored.scores.parts(scored.scores.stream(number, "m")) == []
    assert scored.scores.stream(number, "m").rows == 0
    assert len(files_without_a_row(scored)) == 1
    commit(scored)
    with pytest.raises(StoreError, match="nothing named"):
        scored.scores.forget(scored.scores.stream(number, "m"), "b.parquet")


def test_state_and_lasting_alerts_are_committed_with_their_part(scored: Workspace) -> None:
    number, model = scored.sources.get("orders")[0], scored.models.get("m")
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    told = Alert(0, 3.0, 0.1, [], {"x": 1}, begin, "pump-1", 1.2, "event", begin, True, 5, 5)
    longer = replace(told, score=9.0, ended=begin + timedelta(hours=1), last_place=9)

    def add(stream: Stream, unit: str, state: bytes | None, alerts: list[Alert], changed: dict[int, Alert]) -> None:
        with scored.runs.start("score", "x") as run:
            options = {"flagged": 1, "model_id": model.id, "run_id": run.id, "watermark": None}
            part, table = Part(unit, 0, True, None, 1), pl.DataFrame({"score": [1.0]}) if unit == "a" else None
            scored.scores.commit(stream, part, table, alerts, **options, state=state, changed=changed)

    stale = scored.scores.stream(number, "m")
    add(stale, "a", b"one", [told], {})
    stream = scored.scores.stream(number, "m")
    assert (stream.state, stream.state_model_id) == (b"one", model.id)
    (alert,) = scored.scores.open_alerts(stream)
    with pytest.raises(LostRace):
        add(stale, "b", b"two", [], {alert["id"]: longer})
    assert (scored.scores.stream(number, "m"), scored.scores.open_alerts(stream)) == (stream, [alert])
    add(stream, "b", b"two", [], {alert["id"]: longer})
    (found,) = scored.triage.queue(Filter(kind="event"))
    assert (found["score"], found["ended"], found["last_place"]) == (9.0, begin + timedelta(hours=1), 9)
    assert (found["partition_id"], found["row"], found["created"]) == (1, 0, alert["created"])
    assert scored.triage.queue(Filter(kind="row")) == []
    # What a stream stands on stays: no unit is taken back, its version and what may still change are kept.
    with pytest.raises(StoreError, match="part of a series"):
        scored.scores.forget(scored.scores.stream(number, "m"), "a")
    for mark in ("two", "three"):
        scored.models.promote("m", add_version(scored, "m", mark))
    age(scored, 100)
    options = {"keep_days": 30, "keep_versions": 1, "grace": 0}
    done = scored.clean(**options)
    assert (done.models, done.scores, done.alerts) == ([], [], 0)
    add(scored.scores.stream(number, "m"), "c", b"three", [], {alert["id"]: replace(longer, open=False)})
    assert scored.scores.open_alerts(stream) == []
    done = scored.clean(**options)
    assert (done.models, len(done.scores), done.alerts) == ([], 1, 1)
    add(scored.scores.stream(number, "m"), "d", None, [], {})
    stream = scored.scores.stream(number, "m")
    assert (stream.state, stream.state_model_id) == (None, None)
    assert scored.clean(**options).models == ["models/m/one"]


# ---------------------------------------------------------------------------------------------- runs and events


def test_runs_record_how_they_ended(workspace: Workspace) -> None:
    with workspace.runs.start("score", "a") as run:
        run.result = {"rows": 1}
    with pytest.raises(ConfigError), workspace.runs.start("train", "a"):
        raise ConfigError("no such option")
    handle = os.fork()
    if handle == 0:
        with workspace.runs.start("score", "killed"):
            os._exit(1)
    os.waitpid(handle, 0)
    with workspace.runs.start("score", "b"):
        inside = {run["subject"]: run["status"] for run in workspace.runs.latest()}
    assert (inside["killed"], inside["b"]) == ("crashed", "running")
    last = {(run["kind"], run["subject"]): (run["status"], run["error"]) for run in workspace.runs.latest()}
    assert last["train", "a"] == ("failed", "no such option")
    assert last["score", "b"] == ("done", None)
    assert list((workspace.home / "locks").iterdir()) == []


def test_a_finding_is_told_once(workspace: Workspace) -> None:
    assert workspace.events.tell("late_rows", "orders", "warning", {"rows": 3}, once="3")
    assert not workspace.events.tell("late_rows", "orders", "warning", {"rows": 3}, once="3")
    assert workspace.events.tell("late_rows", "orders", "warning", {"rows": 4}, once="4")
    assert [event["detail"]["rows"] for event in workspace.events.latest()] == [4, 3]


# ---------------------------------------------------------------------------------------------- clean-up


def age(workspace: Workspace, days: float) -> None:
    """Make everything recorded so far so much older."""
    then = now() - timedelta(days=days)
    for table in (t.partitions, t.models, t.synthetics):
        workspace.database.write(
            lambda connection, table=table: connection.execute(table.update().values(created=then))
        )


def test_gc_takes_left_overs_and_what_is_old_but_nothing_referenced(scored: Workspace) -> None:
    commit(scored, "judged.parquet", alerts=1)
    scored.scores.judge(scored.scores.alerts()[0]["id"], "anomaly", author="ann")
    commit(scored, "old.parquet", alerts=2)
    for mark in ("two", "three", "four"):
        add_version(scored, "m", mark)
    age(scored, 100)
    commit(scored, "new.parquet")
    stray = [scored.home / "scores" / "1" / ".x.parquet.ab.tmp", scored.home / "models" / "m" / "half"]
    stray[0].write_text("x")
    stray[1].mkdir()
    outside = scored.home.parent / "precious"
    outside.mkdir()
    (scored.home / "models" / "m" / "link").symlink_to(outside)

    dry = scored.clean(keep_days=30, keep_versions=2, grace=0, dry_run=True)
    assert (len(dry.left_over), len(dry.scores), len(dry.models), dry.alerts) == (2, 1, 1, 2)
    assert all(path.exists() for path in stray)
    assert len(scored.scores.alerts()) == 3
    young = scored.clean()
    assert young.left_over == []  # not an hour old
    done = scored.clean(keep_days=30, keep_versions=2, grace=0)
    assert (len(done.left_over), done.models, done.alerts) == (
        2,
        ["models/m/two"],
        2,
    )  # one: champion; three, four: newest
    assert not any(path.exists() for path in stray)
    assert outside.exists()
    kept = {row["unit"]: row["file"] for row in scored.scores.partitions()}
    assert kept["old.parquet"] is None
    assert all(Path(kept[name]).is_file() for name in ("judged.parquet", "new.parquet"))
    units = [part.unit for part in scored.scores.parts(scored.scores.stream(1, "m"))]
    assert units == ["judged.parquet", "old.parquet", "new.parquet"]  # that it was scored is remembered
    with pytest.raises(StoreError, match="retired by gc"):
        scored.models.promote("m", 2)
    assert scored.clean(grace=0).left_over == []


def test_gc_takes_checkpoints_that_nobody_works_on(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "home")
    work = workspace.home / "work"
    for name in ("dead", "alive", ".dead.12ab.old"):
        (work / name).mkdir()
        (work / name / "weights").write_text("x")
    (work / "dead.lock").touch()
    with (work / "alive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert workspace.clean().left_over == []  # a later training may go on from it for a week
        assert sorted(workspace.clean(grace=0).left_over) == ["work/.dead.12ab.old", "work/dead"]
    assert (work / "alive" / "weights").exists()
    assert not (work / "dead").exists()


def test_gc_does_not_believe_a_clock_that_jumped(scored: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(scored)
    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "now", lambda: now() + timedelta(days=400))
        with pytest.raises(StoreError, match="Check the clock"):
            scored.clean(keep_days=30)
        assert scored.scores.partitions()[0]["file"] is not None
        assert len(scored.clean(keep_days=30, force=True).scores) == 1


def test_a_file_that_gc_took_before_it_was_committed_is_not_recorded(
    scored: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = scored.database.hold

    def gc_first(connection: sa.Connection, *, alone: bool) -> None:
        for file in (scored.home / "scores").rglob("*.parquet"):
            file.unlink()
        hold(connection, alone=alone)

    monkeypatch.setattr(scored.database, "hold", gc_first)
    with pytest.raises(LostRace):
        commit(scored)
    monkeypatch.undo()
    assert scored.scores.partitions() == []


# ---------------------------------------------------------------------------------------------- databases


def test_errors_of_the_database_hold_no_password(tmp_path: Path, postgres: Postgres) -> None:
    wrong = postgres.url().replace(postgres.password, "wr0ng-s3cret")
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        Workspace.create(tmp_path / "home", wrong)
    assert "wr0ng" not in str(caught.value)
    for url in ("mysql://host/x", "not a url"):
        with pytest.raises(StoreError, match="TABDIFF_DATABASE_URL"):
            Database(url)


def test_a_restarted_server_is_waited_for(tmp_path: Path, postgres: Postgres) -> None:
    workspace = Workspace.create(tmp_path / "home", postgres.make_database())
    postgres.stop()
    back = threading.Timer(1.0, postgres.start)
    back.start()
    started = time.monotonic()
    workspace.sources.add("orders", location="/data")
    back.join()
    assert time.monotonic() - started > 0.5
    assert list(workspace.sources.all()) == ["orders"]
    impatient = Database(workspace.database._url, patience=0.2)
    postgres.stop()
    try:
        with pytest.raises(TabdiffError, match="does not answer"):
            impatient.version()
    finally:
        postgres.start()


def test_writers_wait_for_each_other(workspace: Workspace) -> None:
    """Eight at once: nobody is told that the database is locked, and no number is given twice."""
    errors: list[Exception] = []

    def work(name: int) -> None:
        try:
            for index in range(5):
                (workspace.home / "models" / "m" / f"{name}-{index}").mkdir(parents=True)
                workspace.models.add("m", f"models/m/{name}-{index}", f"{name}-{index}", "o", {})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [version.version for version in workspace.models.all("m")] == list(range(1, 41))
