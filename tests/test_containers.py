"""The files in docker/: what they promise, as far as it shows without a container engine. CI has none, so no image is built."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prefect.utilities.importtools import import_object
from typer.testing import CliRunner

from flows.deploy import ON_DEMAND
from tabdiff.cli import app
from tabdiff.operations import MonitorJob, ScoreJob, SynthesizeJob, TrainJob
from tabdiff.store import Workspace

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = [ROOT / "docker" / "train.Dockerfile", ROOT / "docker" / "serve.Dockerfile"]


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_locked_down(name: str) -> None:
    service = SERVICES[name]
    user, _, group = service["user"].partition(":")
    assert user.isdecimal()
    assert group.isdecimal()
    assert int(user) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["init"] is True
    assert not service.get("privileged")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])


def test_secrets_are_files_and_never_values() -> None:
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search(r"PASSWORD|AUTH|URL", name) and name != "PREFECT_API_URL":
                assert str(value).startswith(("file:/run/secrets/", "/run/secrets/")), name
    assert "/docker/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_prefect_is_started_by_the_command_that_sets_a_password() -> None:
    prefect = SERVICES["prefect"]
    assert prefect["command"][:2] == ["flows", "server"]
    assert prefect["environment"]["TABDIFF_PREFECT_AUTH"].startswith("file:")
    assert prefect["environment"]["DO_NOT_TRACK"] == "1"
    assert {name: service.get("profiles") for name, service in SERVICES.items() if service.get("profiles")} == {
        "worker": ["cpu"],
        "worker-gpu": ["gpu"],
        "dashboard": ["dashboard"],
    }


def test_health_checks_need_no_curl() -> None:
    for service in SERVICES.values():
        check = service.get("healthcheck", {}).get("test", [])
        assert "curl" not in " ".join(check)
    for path in DOCKERFILES:
        assert "HEALTHCHECK" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_built_in_stages_from_files_that_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert copied
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in allowed, f"{name} is not in the build context"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = re.search(r"\.\[([^\]]+)\]", text)
    assert asked
    assert set(asked[1].replace("${RUNTIME}", "cpu").split(",")) <= set(extras)


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "tabdiff" in service["image"]])
def test_services_call_commands_that_are_there(name: str) -> None:
    command = SERVICES[name]["command"]
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0  # unknown options are found before
    assert CliRunner().invoke(app, [*command, "--absent", "--help"]).exit_code == 2


def test_the_dashboard_asks_people_to_sign_in() -> None:
    command, secret = SERVICES["dashboard"]["command"], "/run/secrets/dashboard"
    assert command[command.index("--secrets") + 1] == secret
    assert "--insecure" not in command


def lint(*call: str) -> subprocess.CompletedProcess[str]:
    program, *arguments = call
    return subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments], capture_output=True, text=True, check=False
    )


def test_linters_find_nothing(tmp_path: Path) -> None:
    compose = ROOT / "docker" / "compose.yaml"
    schema = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    for call in (("hadolint", *map(str, DOCKERFILES)), (*schema, str(compose))):
        done = lint(*call)
        assert done.returncode == 0, done.stdout + done.stderr
    # And they would have found something.
    (tmp_path / "bad.yaml").write_text(compose.read_text(encoding="utf-8").replace("read_only: true", "readonly: true"))
    assert lint(*schema, str(tmp_path / "bad.yaml")).returncode != 0
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && apt-get install curl\n")
    assert "DL3007" in lint("hadolint", str(tmp_path / "Dockerfile")).stdout


def load_health() -> ModuleType:
    spec = importlib.util.spec_from_file_location("health", ROOT / "docker" / "health.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_health_check_tells_well_from_ill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = load_health().main
    monkeypatch.setenv("TABDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TABDIFF_DATABASE_URL", raising=False)
    assert check("workspace") == 1
    Workspace.create()
    assert check("workspace") == 0
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert server.stdout is not None
        port = re.search(r"port (\d+)", server.stdout.readline())
        assert port
        assert check("http", port[1], "/") == 0
        assert check("http", port[1], "/absent") == 1
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def test_the_work_pool_file_names_flows_and_valid_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    jobs = {"train": TrainJob, "score": ScoreJob, "synthesize": SynthesizeJob, "monitor": MonitorJob}
    found = yaml.safe_load((ROOT / "flows" / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    flows = {import_object(d["entrypoint"]).name for d in found if d["name"] == ON_DEMAND}
    assert flows == {f"tabdiff-{kind}" for kind in jobs}
    scheduled = [deployment for deployment in found if deployment["name"] != ON_DEMAND]
    assert len(scheduled) == 3
    for deployment in scheduled:
        flow = import_object(deployment["entrypoint"])
        assert flow.name.startswith("tabdiff-")
        jobs[flow.name.removeprefix("tabdiff-")].model_validate(deployment["parameters"]["job"])
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert all(schedule["timezone"] for schedule in deployment["schedules"])
