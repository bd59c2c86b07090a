"""A private PostgreSQL server for tests, and workspaces on both databases."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_USER = "postgres"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A cluster in a folder of its own, on loopback, with a password. It refuses to run as root, so root hands it over."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tabdiff-postgres-"))
        self.password, self.port = secrets.token_hex(12), free_port()
        self.owner = pwd.getpwnam(_USER) if os.geteuid() == 0 else None
        (self.folder / "password").write_text(self.password)
        if self.owner is not None:
            for path in (self.folder, self.folder / "password"):
                os.chown(path, self.owner.pw_uid, self.owner.pw_gid)
        self._run(
            "initdb",
            "-D",
            "data",
            "-U",
            "tabdiff",
            "--auth=scram-sha-256",
            "--pwfile=password",
            "-E",
            "UTF8",
            "--locale=C",
        )
        with (self.folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(
                f"port={self.port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{self.folder}'\nfsync=off\n"
            )
            settings.write("max_connections=80\nshared_buffers=32MB\n")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        identity = (
            {} if self.owner is None else {"user": self.owner.pw_uid, "group": self.owner.pw_gid, "extra_groups": []}
        )
        log = (self.folder / f"{program}.log").open("w")
        call = [str(BINARIES[-1] / program), *arguments]
        done = subprocess.run(
            call, cwd=self.folder, stdout=log, stderr=log, env={"LC_ALL": "C"}, check=False, **identity
        )  # type: ignore[call-overload]
        assert done.returncode == 0, (self.folder / f"{program}.log").read_text()

    def start(self) -> None:
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", "data", "-m", mode, "-w", "stop")

    def restart(self) -> None:
        self._run("pg_ctl", "-D", "data", "-l", "log", "-m", "immediate", "-w", "restart")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://tabdiff:{self.password}@127.0.0.1:{self.port}/{database}"

    def make_database(self) -> str:
        """URL of a new, empty database."""
        import psycopg

        name = f"d{secrets.token_hex(6)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return self.url(name)


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A running server. Without PostgreSQL installed: a failure under CI, skipped elsewhere."""
    if not BINARIES:
        message = "PostgreSQL is not installed (apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    server = Postgres()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)
