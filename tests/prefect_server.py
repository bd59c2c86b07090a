"""A real Prefect server as `tabdiff flows server` starts it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tabdiff.store import Workspace
from tests.databases import free_port

ROOT = Path(__file__).parent.parent
TABDIFF = [sys.executable, "-c", "from tabdiff.cli import main; main()"]
_PATIENCE = 300  # seconds; a busy machine takes a minute to start a server


@dataclass
class Server:
    """Where the server is, who may talk to it, and the environment of its clients."""

    workspace: Workspace
    address: str
    auth: tuple[str, str]
    environment: dict[str, str]
    logs: Path

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """A client with the password and, as CSRF protection asks for it, a token."""
        # On loopback; certificates take long to load.
        with httpx.Client(base_url=self.address, auth=self.auth, timeout=60, verify=False) as client:
            token = client.get("/csrf-token", params={"client": "tests"}).json()["token"]
            client.headers.update({"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"})
            yield client

    def ask(self, path: str, **body: Any) -> Any:
        """The answer to a POST. A server whose database is locked says 503, has done nothing, and is asked again."""
        with self.client() as client:
            answer = wait_for(lambda: None if (found := client.post(path, json=body)).status_code == 503 else found)
            return answer.raise_for_status().json()

    @contextmanager
    def process(self, *arguments: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A `tabdiff` command in the background; its output goes to a log."""
        with (self.logs / f"{name}.log").open("wb") as log:
            started = subprocess.Popen(
                [*TABDIFF, *arguments], env=self.environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
            try:
                yield started
            finally:
                started.terminate()
                try:
                    started.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(started.pid, 9)
                    started.wait()


def wait_for(what: Any, seconds: float = _PATIENCE) -> Any:
    """What a function returns as soon as that is true."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found = what()
        if found:
            return found
        time.sleep(0.25)
    raise AssertionError(f"waited {seconds} s in vain")


@contextmanager
def prefect_server(workspace: Workspace, folder: Path, database: str | None = None) -> Iterator[Server]:
    """A server that is ready, on SQLite in the workspace or on the given PostgreSQL database."""
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "TABDIFF"))},
        "PYTHONPATH": str(ROOT),
        "TABDIFF_HOME": str(workspace.home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(folder / "prefect-home"),
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONWARNINGS": "ignore",
    }
    if not workspace.database.is_sqlite:
        environment["TABDIFF_DATABASE_URL"] = workspace.database._url
    if database:
        environment["TABDIFF_PREFECT_DATABASE_URL"] = database
    address = environment["PREFECT_API_URL"]
    server = Server(workspace, address, ("", ""), environment, folder)

    def ready() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with server.process("flows", "server", "--port", str(port), name="server") as process:
        wait_for(ready)
        user, _, password = (workspace.home / "prefect-auth").read_text().partition(":")
        server.auth = (user, password)
        yield server
