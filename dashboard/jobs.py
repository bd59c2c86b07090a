"""Start, watch, repeat and cancel flow runs over the API of the workspace's Prefect server.

Prefect itself is not imported: it takes seconds and 80 MB, and a page asks few questions. Credentials are those of `flows.deploy`; they go
into a header and nowhere else.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
from pydantic import BaseModel

from flows.deploy import ON_DEMAND, TAG, credentials
from tabdiff.errors import ConfigError, RuntimeUnavailable, StoreError, TabdiffError

Kind = Literal["train", "score", "synthesize", "monitor"]
KINDS: tuple[Kind, ...] = ("train", "score", "synthesize", "monitor")
_FLOW = "tabdiff-"  # before the kind, in the name of a flow
_AUTHOR = "tabdiff.author"
_SERVER, _SERVE = "tabdiff flows server", "tabdiff flows serve"
_PATIENCE = httpx.Timeout(10.0, connect=3.0)
_WAITING = ("SCHEDULED", "PENDING", "PAUSED")
_ALIVE = (*_WAITING, "RUNNING", "CANCELLING")
_BUSY = 503  # what Prefect answers while its own SQLite is locked
_PAUSES = (0.3, 0.7, 1.5, 3.0)  # seconds before asking a busy server again


@dataclass(frozen=True)
class FlowRun:
    """One run of one flow.

    Attributes:
        kind: which job; empty for flows that are not ours.
        job: its options.
        state: as Prefect names it: Scheduled, Late, Running, Completed, Failed, Crashed, Cancelled ...
        kind_of_state: SCHEDULED, PENDING, RUNNING, COMPLETED, FAILED, CRASHED, CANCELLING, CANCELLED or PAUSED.
        message: why it is in this state, if Prefect knows.
        due, started, ended: times in UTC.
        seconds: how long it ran or has been running.
        author: who started it from the dashboard; empty for schedules.
        url: its page in Prefect.
    """

    id: str
    name: str
    kind: str
    job: dict[str, Any]
    state: str
    kind_of_state: str
    message: str
    due: datetime | None
    started: datetime | None
    ended: datetime | None
    seconds: float
    author: str
    url: str

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self.kind_of_state in _ALIVE

    @property
    def waiting(self) -> bool:
        """It has not begun."""
        return self.kind_of_state in _WAITING

    @property
    def failed(self) -> bool:
        """It ended without a result."""
        return self.kind_of_state in ("FAILED", "CRASHED", "CANCELLED")

    @property
    def reason(self) -> str:
        """The message without what Prefect puts before it."""
        text = self.message
        for before in (
            "Flow run encountered an exception: ",
            "Task run encountered an exception ",
            "Task run encountered an exception: ",
        ):
            text = text.removeprefix(before)
        return text


class Jobs:
    """The flow runs of one workspace. Safe to share between threads."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.address = os.environ.get("PREFECT_API_URL") or "http://127.0.0.1:4200/api"
        shown = os.environ.get("PREFECT_UI_URL") or self.address.removesuffix("/").removesuffix("/api")
        parts = urlsplit(shown)
        self.ui = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        self._flows: dict[str, str] = {}
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections; the next question opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    # ------------------------------------------------------------------------------------------------ is it there?

    def trouble(self) -> str:
        """Why nothing would run now and what to do about it, in one sentence; empty if all is well."""
        try:
            deployments = self._deployments()
        except TabdiffError as error:
            return str(error)
        if not deployments:
            return f"The Prefect server knows no flow of tabdiff yet. Start the process that runs them: {_SERVE}"
        if not any(deployment.get("status") == "READY" for deployment in deployments):
            return f"No process runs flows now, so what is started waits. Start one: {_SERVE}"
        return ""

    def _deployments(self) -> list[dict[str, Any]]:
        wanted = {"deployments": {"name": {"any_": [ON_DEMAND]}, "tags": {"all_": [TAG]}}}
        return list(self._ask("POST", "/deployments/filter", wanted))

    # ----------------------------------------------------------------------------------------------------- doing

    def start(self, kind: Kind, job: BaseModel, *, author: str) -> FlowRun:
        """Ask for a run; a process of `tabdiff flows serve` takes it up within seconds.

        Args:
            kind: which flow.
            job: its options, a job of `tabdiff.operations`.
            author: who asks; kept with the run.

        Raises:
            RuntimeUnavailable: the server does not answer, or knows no flow of tabdiff.
            StoreError: the server refuses, or the password cannot be read.
        """
        return self._start(kind, job.model_dump(mode="json", exclude_defaults=True), author)

    def _start(self, kind: str, job: dict[str, Any], author: str) -> FlowRun:
        found = self._ask("GET", f"/deployments/name/{_FLOW}{kind}/{ON_DEMAND}", missing=True)
        if found is None:
            raise RuntimeUnavailable(
                f"a process that runs flows must have told the Prefect server of them; none has. Start one: {_SERVE}"
            )
        return self._run_of(found["id"], {"job": job}, author)

    def _run_of(self, deployment: str, parameters: dict[str, Any], author: str) -> FlowRun:
        wanted = {
            "parameters": parameters,
            "tags": [TAG],
            "labels": {_AUTHOR: author[:128]},
            "state": {"type": "SCHEDULED"},
            "idempotency_key": uuid4().hex,  # asking twice after an answer was lost makes one run
        }
        return self._read(self._ask("POST", f"/deployments/{deployment}/create_flow_run", wanted))

    def retry(self, run: FlowRun, *, author: str) -> FlowRun:
        """Run the same job again, as a run of its own: the record of the first one stays.

        Raises:
            ConfigError: it is no flow of tabdiff.
            RuntimeUnavailable, StoreError: as for `start`.
        """
        if run.kind not in KINDS:
            raise ConfigError(f"only flows of tabdiff are started from here; {run.name!r} is none. Use Prefect.")
        return self._start(run.kind, run.job, author)

    def cancel(self, run: FlowRun) -> None:
        """Ask for the end of a run. One that waits ends at once, one that runs when its process hears of it; the workspace stays whole.

        Raises:
            ConfigError: it has ended.
            RuntimeUnavailable, StoreError: as for `start`.
        """
        if not self.get(run.id).alive:
            raise ConfigError(f"only a run that has not ended can be cancelled; {run.name!r} has.")
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self._ask("POST", f"/flow_runs/{run.id}/set_state", {"state": state, "force": False})

    # --------------------------------------------------------------------------------------------------- looking

    def get(self, run_id: str) -> FlowRun:
        """One run.

        Raises:
            StoreError: there is none of that number.
            RuntimeUnavailable: the server does not answer.
        """
        try:
            number: UUID | None = UUID(run_id)  # from the address, so it could be the path of something else
        except ValueError:
            number = None
        found = None if number is None else self._ask("GET", f"/flow_runs/{number}", missing=True)
        if found is None:
            raise StoreError("Prefect knows no such run; it forgets old ones. Choose another one.")
        return self._read(found)

    def latest(self, limit: int = 50, *, kind: Kind | None = None) -> list[FlowRun]:
        """Runs of our flows that are or were due, newest first.

        Raises:
            RuntimeUnavailable, StoreError: as for `start`.
        """
        soon = datetime.now(UTC) + timedelta(minutes=1)
        return self._list("EXPECTED_START_TIME_DESC", {"before_": soon.isoformat()}, limit, kind)

    def upcoming(self, limit: int = 10) -> list[FlowRun]:
        """Scheduled runs that are not due yet, the next one first.

        Raises:
            RuntimeUnavailable, StoreError: as for `start`.
        """
        soon = datetime.now(UTC) + timedelta(minutes=1)
        runs = self._list("EXPECTED_START_TIME_ASC", {"after_": soon.isoformat()}, limit, None)
        return [run for run in runs if run.waiting]

    def _list(self, sort: str, when: dict[str, str], limit: int, kind: Kind | None) -> list[FlowRun]:
        names = [f"{_FLOW}{each}" for each in ([kind] if kind else KINDS)]
        wanted = {
            "flows": {"name": {"any_": names}},
            "flow_runs": {"expected_start_time": when},
            "sort": sort,
            "limit": min(limit, 200),
        }
        return [self._read(found) for found in self._ask("POST", "/flow_runs/filter", wanted)]

    def progress(self, runs: Sequence[FlowRun]) -> dict[str, float]:
        """Share in [0, 1] of the work that is done, by run; only of those that tell.

        Raises:
            RuntimeUnavailable, StoreError: as for `start`.
        """
        if not runs:
            return {}
        wanted = {
            "artifacts": {"type": {"any_": ["progress"]}, "flow_run_id": {"any_": [run.id for run in runs]}},
            "sort": "UPDATED_DESC",
        }
        found: dict[str, float] = {}
        for artifact in self._ask("POST", "/artifacts/filter", wanted):
            if isinstance(artifact.get("data"), int | float):
                found.setdefault(str(artifact["flow_run_id"]), min(max(artifact["data"] / 100, 0.0), 1.0))
        return found

    def log(self, run: FlowRun, lines: int = 40) -> list[tuple[datetime | None, str]]:
        """The last lines of a run's log, oldest first: time and text.

        Raises:
            RuntimeUnavailable, StoreError: as for `start`.
        """
        wanted = {
            "logs": {"flow_run_id": {"any_": [run.id]}},
            "sort": "TIMESTAMP_DESC",
            "limit": min(max(lines, 1), 200),
        }
        found = self._ask("POST", "/logs/filter", wanted)
        return [(_time(line.get("timestamp")), str(line.get("message", ""))[:2000]) for line in reversed(found)]

    def _read(self, found: dict[str, Any]) -> FlowRun:
        state = found.get("state") or {}
        job = (found.get("parameters") or {}).get("job")
        return FlowRun(
            id=str(found["id"]),
            name=str(found.get("name", "")),
            kind=self._kind(str(found.get("flow_id"))),
            job=job if isinstance(job, dict) else {},
            state=str(state.get("name") or "Unknown"),
            kind_of_state=str(state.get("type") or ""),
            message=str(state.get("message") or "")[:4000],
            due=_time(found.get("expected_start_time")),
            started=_time(found.get("start_time")),
            ended=_time(found.get("end_time")),
            seconds=float(found.get("estimated_run_time") or found.get("total_run_time") or 0.0),
            author=str((found.get("labels") or {}).get(_AUTHOR, "")),
            url=f"{self.ui}/runs/flow-run/{found['id']}",
        )

    def _kind(self, flow_id: str) -> str:
        if flow_id not in self._flows:
            wanted = {"flows": {"name": {"any_": [f"{_FLOW}{kind}" for kind in KINDS]}}}
            ours = {
                str(flow["id"]): str(flow["name"]).removeprefix(_FLOW)
                for flow in self._ask("POST", "/flows/filter", wanted)
            }
            self._flows = {flow_id: "", **ours}
        return self._flows[flow_id]

    # ---------------------------------------------------------------------------------------------------- asking

    def _open(self) -> httpx.Client:
        """The client, with the password in it."""
        with self._lock:
            if self._client is None:
                given = os.environ.get("PREFECT_API_AUTH_STRING") or credentials(self._home)
                user, _, password = given.partition(":")
                encrypted = self.address.startswith(
                    "https://"
                )  # certificates take long to load where they are not needed
                self._client = httpx.Client(auth=(user, password), timeout=_PATIENCE, verify=encrypted)
            return self._client

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, *, missing: bool = False) -> Any:
        """What the server answers, as JSON; None for what is not there if `missing` is allowed."""
        try:
            answer = self._send(method, path, body)
            for pause in _PAUSES:
                if answer.status_code != _BUSY:
                    break
                time.sleep(pause)
                answer = self._send(method, path, body)
        except httpx.HTTPError as error:
            raise RuntimeUnavailable(
                f"the Prefect server must answer at {self.ui}; it does not ({type(error).__name__}). Start it: {_SERVER}"
            ) from None
        if answer.status_code == 404 and missing:
            return None
        if answer.status_code == 401:
            raise StoreError(
                f"the Prefect server at {self.ui} refuses the password of this workspace. It belongs to another workspace, or "
                "TABDIFF_PREFECT_AUTH differs between the server and the dashboard."
            )
        if answer.status_code == _BUSY:
            raise RuntimeUnavailable("the Prefect server is busy. Try again in a moment.")
        if answer.status_code >= 400:
            raise ConfigError(f"the Prefect server refuses ({answer.status_code}): {_words(answer)}.")
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise RuntimeUnavailable(
                f"a Prefect server must answer at {self.ui}; something else does. Set PREFECT_API_URL."
            ) from None

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Ask once, with a fresh token against forged requests if there must be one."""
        answer = self._open().request(method, self.address + path, json=body)
        if answer.status_code == 403 and method == "POST":
            answer = self._get_token()
            if answer.status_code != 401:
                answer = self._open().request(method, self.address + path, json=body)
        return answer

    def _get_token(self) -> httpx.Response:
        """Get what the server asks for against forged requests, and send it from now on."""
        client = self._open()
        mine = f"tabdiff-dashboard-{os.getpid()}"
        answer = client.get(f"{self.address}/csrf-token", params={"client": mine})
        if answer.status_code == 200:
            client.headers.update({"Prefect-Csrf-Token": answer.json()["token"], "Prefect-Csrf-Client": mine})
        return answer


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def _words(answer: httpx.Response) -> str:
    """What went wrong, without the request."""
    try:
        detail = answer.json().get("detail", "")
    except (ValueError, AttributeError):
        return answer.reason_phrase
    return " ".join(str(detail).split())[:300] or answer.reason_phrase
