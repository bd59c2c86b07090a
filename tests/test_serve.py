"""The endpoint: answers like the model, keeps its limits, and loses nothing when it is told to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from polars.testing import assert_frame_equal
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from typer.testing import CliRunner

import tabdiff
from tabdiff import Model
from tabdiff.cli import app as command
from tabdiff.errors import ConfigError
from tabdiff.serve.app import create_app
from tabdiff.serve.bodies import ARROW, arrow_of, cells_of, frame_of
from tabdiff.serve.options import ServeOptions, is_loopback, key_from_environment
from tests.conftest import make_mixed_table

KEY = "0123456789abcdef0123456789abcdef"
FRESH = make_mixed_table(40, seed=11)
ARROW_IN = {"Content-Type": ARROW}


@pytest.fixture(scope="module")
def model(compiled_bundle: Path) -> Model:
    return tabdiff.load(compiled_bundle)


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[TestClient]:
    with TestClient(create_app(model, ServeOptions(max_rows=50, max_bytes=50_000))) as made:
        yield made


def rows_of(frame: pl.DataFrame) -> dict[str, Any]:
    return {"rows": cells_of(frame)}


# ------------------------------------------------------------------------------------------------ answers


def test_scores_are_those_of_the_model(client: TestClient, model: Model) -> None:
    expected = model.score(FRESH, contamination=0.1)
    found = client.post("/v1/score?contamination=0.1&explain=true", json=rows_of(FRESH))
    assert found.status_code == 200, found.text
    answer = found.json()
    assert answer["provider"] == expected.provider
    np.testing.assert_allclose([row["score"] for row in answer["scores"]], expected.score, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([row["p_value"] for row in answer["scores"]], expected.p_value)
    assert [row["flagged"] for row in answer["scores"]] == expected.flagged.tolist()
    for row, shown in zip(answer["scores"], expected.to_frame().iter_rows(named=True), strict=True):
        assert [part["name"] for part in row["columns"]] == [shown[f"column_{i}"] for i in (1, 2, 3)]
        assert [part["expected"] for part in row["columns"]] == [shown[f"expected_{i}"] for i in (1, 2, 3)]
    plain = client.post("/v1/score", json=rows_of(FRESH)).json()
    assert [row["flagged"] for row in plain["scores"]] == model.score(FRESH).flagged.tolist()


def test_arrow_goes_in_and_comes_out(client: TestClient, model: Model) -> None:
    found = client.post(
        "/v1/score?contamination=0.1&explain=true", content=arrow_of(FRESH), headers={**ARROW_IN, "Accept": ARROW}
    )
    assert found.headers["content-type"] == ARROW
    assert_frame_equal(
        pl.read_ipc_stream(found.content), model.score(FRESH, contamination=0.1).to_frame(), abs_tol=1e-4
    )
    filled = client.post("/v1/impute?draws=3", content=arrow_of(FRESH), headers={**ARROW_IN, "Accept": ARROW})
    assert_frame_equal(pl.read_ipc_stream(filled.content), model.impute(FRESH, draws=3))
    file = FRESH.to_arrow()
    assert client.post("/v1/score", content=_arrow_file(file), headers=ARROW_IN).status_code == 200


def _arrow_file(table: Any) -> bytes:
    import io

    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_samples_and_filled_gaps_are_those_of_the_model(client: TestClient, model: Model) -> None:
    asked = {"rows": 5, "given": {"channel": "web", "discount": 0}, "seed": 3, "steps": 8}
    found = client.post("/v1/sample", json=asked).json()["rows"]
    expected = model.sample(5, given=asked["given"], seed=3, config=tabdiff.SampleConfig(steps=8))
    assert found == cells_of(expected)
    filled = client.post("/v1/impute?draws=3&seed=1", json=rows_of(FRESH)).json()["rows"]
    assert [row["rating"] for row in filled] == model.impute(FRESH, draws=3, seed=1)["rating"].to_list()
    assert all(row["rating"] is not None for row in filled)


def test_what_is_served_is_told(client: TestClient, model: Model) -> None:
    told = client.get("/v1/model").json()
    assert told["provider"] == model.runtime.provider
    assert [c["name"] for c in told["columns"] if c["modelled"]] == list(model.codec.columns)
    assert told["max_rows"] == 50
    assert client.get("/healthz").json() == {"status": "ok"}


def test_requests_that_wait_are_scored_together_and_none_pays_for_another(model: Model) -> None:
    options = ServeOptions(batch_wait=0.3)
    bad = FRESH.head(1).with_columns(price=pl.lit(float("inf")))
    with TestClient(create_app(model, options)) as client, ThreadPoolExecutor(12) as pool:
        bodies = [arrow_of(FRESH[i : i + 1]) for i in range(11)] + [arrow_of(bad)]
        answers = list(pool.map(lambda body: client.post("/v1/score", content=body, headers=ARROW_IN), bodies))
        text = client.get("/metrics").text
    assert [answer.status_code for answer in answers] == [200] * 11 + [422]
    expected = model.score(FRESH.head(11)).score
    np.testing.assert_allclose([a.json()["scores"][0]["score"] for a in answers[:11]], expected, rtol=1e-5, atol=1e-5)
    assert "'price'" in answers[11].json()["error"]["message"]
    calls = float(_metric(text, "tabdiff_batch_rows_count"))
    assert calls <= 14
    assert float(_metric(text, 'tabdiff_rows_total{path="/v1/score"}')) == 11


def _metric(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line.rpartition(" ")[2]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("path", "sent", "status", "message"),
    [
        ("/v1/score", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ("/v1/score", {"content": b"[" * 40_000, "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ("/v1/score", {"content": b"ARROW1", "headers": ARROW_IN}, 400, "not an Arrow stream"),
        ("/v1/score", {"content": b"a,b\n1,2", "headers": {"Content-Type": "text/csv"}}, 415, "text/csv"),
        ("/v1/score", {"json": {"rows": []}}, 422, "at least 1 item"),
        ("/v1/score", {"json": {"rows": [{"price": [1]}]}}, 422, "rows.0.price"),
        ("/v1/score", {"json": {"rows": [{}], "more": 1}}, 422, "more"),
        ("/v1/score", {"json": {"rows": [{"price": 1}, {"price": "x"}]}}, 422, "int and str"),
        ("/v1/score", {"json": {"rows": [{"price": 10**40}]}}, 422, "'price'"),
        ("/v1/score", {"json": {"rows": [{"price": 1.0}]}}, 422, "'weight'"),
        ("/v1/score", {"json": {"rows": [{}]}}, 422, "columns"),
        ("/v1/score?fdr=2", {"json": {"rows": [{}]}}, 422, "not allowed"),
        ("/v1/score?fdr=0.1&contamination=0.1", {"json": {"rows": [{}]}}, 422, "one rule sets the flags"),
        ("/v1/score", {"json": {"rows": [{}] * 51}}, 413, "50 rows; got 51"),
        ("/v1/score", {"content": b" " * 50_001, "headers": {"Content-Type": "application/json"}}, 413, "50000 bytes"),
        ("/v1/sample", {"json": {"rows": 51}}, 413, "50 rows"),
        ("/v1/sample", {"json": {"given": {"channel": "unheard of"}}}, 422, "unheard of"),
        ("/v1/sample", {"json": {"given": {"nope": 1}}}, 422, "'nope'"),
        ("/v1/nothing", {"json": {}}, 404, "Not Found"),
    ],
)
def test_bad_requests_are_told_why(client: TestClient, path: str, sent: Any, status: int, message: str) -> None:
    answer = client.post(path, **sent)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


def test_a_body_without_a_length_is_read_only_as_far_as_it_may_be_long(client: TestClient) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield b" " * 10_000

    answer = client.post("/v1/score", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_too_many_waiting_requests_are_told_to_come_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(model, "impute", lambda frame, **_: release.wait(20) and frame)
    with TestClient(create_app(model, ServeOptions(max_waiting=2))) as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/v1/impute", json=rows_of(FRESH)) for _ in range(2)]
        deadline = time.monotonic() + 10
        while _metric(client.get("/metrics").text, "tabdiff_waiting_requests") != "2.0":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        answer = client.post("/v1/score", json=rows_of(FRESH))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        release.set()
        assert [item.result().status_code for item in waiting] == [200, 200]


def test_json_never_becomes_null_silently() -> None:
    frame = frame_of([{"a": 1, "b": None}, {"a": 2.5, "b": "x"}, {"c": True}])
    assert frame.to_dicts() == [
        {"a": 1.0, "b": None, "c": None},
        {"a": 2.5, "b": "x", "c": None},
        {"a": None, "b": None, "c": True},
    ]
    with pytest.raises(tabdiff.SchemaError, match=r"'a'.*int and str.*\n.*'b'.*bool and int"):
        frame_of([{"a": 1, "b": True}, {"a": "1", "b": 1}])


# ------------------------------------------------------------------------------------------------ who may ask


@pytest.mark.parametrize(
    "shown", [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}]
)
def test_the_key_opens(model: Model, shown: dict[str, str]) -> None:
    with TestClient(create_app(model, ServeOptions(host="0.0.0.0", api_key=KEY))) as client:
        assert client.get("/v1/model", headers=shown).status_code == 200


def test_nothing_opens_without_the_key(model: Model) -> None:
    with TestClient(create_app(model, ServeOptions(host="0.0.0.0", api_key=KEY))) as client:
        wrong = [
            {},
            {"X-API-Key": KEY[:-1]},
            {"X-API-Key": KEY + "0"},
            {"X-API-Key": "é"},
            {"Authorization": f"Basic {KEY}"},
        ]
        for headers in wrong:
            raw = {name: value.encode() for name, value in headers.items()}
            for path in ("/v1/model", "/metrics", "/openapi.json", "/healthz/", "/v1/healthz", "//healthz", "/nothing"):
                assert client.get(path, headers=raw, follow_redirects=False).status_code == 401, path  # type: ignore[arg-type]
            assert client.post("/v1/score", json=rows_of(FRESH), headers=raw).status_code == 401  # type: ignore[arg-type]
        assert client.get("/healthz").status_code == 200


def test_a_public_address_needs_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled_bundle: Path) -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "example.org")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"others reach needs an API key"):
        ServeOptions(host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"at least 16 characters; got 5"):
        ServeOptions(api_key="short")
    refused = CliRunner().invoke(command, ["serve", str(compiled_bundle), "--host", "0.0.0.0"])
    assert refused.exit_code == 1
    assert "API key" in refused.stderr
    monkeypatch.setenv("TABDIFF_API_KEY", KEY)
    assert key_from_environment() == KEY
    monkeypatch.setenv("TABDIFF_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ConfigError, match=r"one place"):
        key_from_environment()
    monkeypatch.delenv("TABDIFF_API_KEY")
    with pytest.raises(ConfigError, match=r"cannot read"):
        key_from_environment()
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ConfigError, match=r"is empty"):
        key_from_environment()
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert key_from_environment() == KEY


def test_a_web_page_cannot_reach_an_open_endpoint_by_another_name(client: TestClient) -> None:
    assert client.get("/v1/model", headers={"Host": "evil.example"}).status_code == 400


# ------------------------------------------------------------------------------------------------ OpenAPI


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::tabdiff.errors.TabdiffWarning")
def test_openapi_says_what_happens(model: Model) -> None:
    """schemathesis makes requests from the description, valid ones and others, and checks the answers against it."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(model, ServeOptions(max_rows=20)))
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    seen = set()
    for operation in (result.ok() for result in schema.get_all_operations()):

        @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(operation.as_strategy())
        def check(case: Any) -> None:
            seen.add(case.path)
            case.call_and_validate(checks=checks)

        check()
    assert seen == {"/v1/score", "/v1/sample", "/v1/impute", "/v1/model", "/healthz", "/metrics"}


# ------------------------------------------------------------------------------------------------ the process


@contextmanager
def served(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call = [sys.executable, "-c", "from tabdiff.cli import main; main()", "serve", str(path), "--port", str(port)]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                if httpx.get(f"{url}/healthz", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, process.stdout and process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_nothing_is_lost_when_it_is_told_to_stop(compiled_bundle: Path) -> None:
    body = arrow_of(FRESH)
    answered, refused, lost = [], [], []
    with served(compiled_bundle) as (process, url):

        def ask(_: int) -> None:
            with httpx.Client(timeout=60) as client:
                while not refused:
                    try:
                        answer = client.post(f"{url}/v1/score", content=body, headers=ARROW_IN)
                        (answered if answer.status_code == 200 else refused).append(len(answer.content))
                    except httpx.ConnectError:  # the door is closed, nothing was sent
                        refused.append(0)
                    except httpx.TransportError as error:
                        lost.append(repr(error))
                        return

        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(ask, i) for i in range(8)]
            deadline = time.monotonic() + 60
            while len(answered) < 10 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            for item in waiting:
                item.result()
        assert process.wait(60) in (0, -signal.SIGTERM)
    assert len(answered) >= 10
    assert refused or lost  # the door was closed while they were asking
    # A connection that waits for its next request is closed; what was sent on it in that instant was never begun.
    assert all("Disconnected" in error or "disconnected" in error or "ReadError" in error for error in lost), lost
