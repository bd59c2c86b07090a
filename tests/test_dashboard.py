"""The shell of the dashboard: who may do what, who can reach it, and what text from data turns into."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import access, event, launch
from dashboard.text import about, csv_bytes, literal, plain
from tabdiff.errors import ConfigError
from tabdiff.store import Workspace

APP = Path(__file__).parent.parent / "dashboard" / "app.py"
PAGES = [path.stem for path in (APP.parent / "pages").glob("[a-z]*.py")]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TABDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "admin")
    Workspace.create()
    return tmp_path / "home"


@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens_on_an_empty_workspace(home: Path, name: str) -> None:
    app = AppTest.from_file(APP, default_timeout=30).run()
    app.switch_page(f"pages/{name}.py").run()
    assert not app.exception
    assert app.title[0].value


def test_nobody_looks_without_a_role(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "boss")
    app = AppTest.from_file(APP, default_timeout=30).run()
    assert "must be one of viewer, analyst, admin" in app.error[0].value
    assert not app.sidebar.caption


def test_roles_come_from_patterns_and_need_a_verified_address() -> None:
    roles = {"viewer": ["*@example.org"], "analyst": "ann@example.org", "admin": ["root@example.org"]}
    assert access.role_of({"email": "Ann@Example.org"}, roles) == "analyst"
    assert access.role_of({"email": "bob@example.org"}, roles) == "viewer"
    assert access.role_of({"email": "root@example.org", "email_verified": True}, roles) == "admin"
    assert access.role_of({"email": "root@example.org", "email_verified": False}, roles) is None
    assert access.role_of({"email": "root@example.com"}, roles) is None
    assert access.role_of({}, roles) is None


def test_an_action_needs_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TABDIFF_DASHBOARD_ROLE", "analyst")
    access.allow("viewer")
    access.allow("analyst")
    with pytest.raises(access.NotAllowedError, match=r"needs the role admin .*yours is analyst"):
        access.allow("admin")


def secrets(folder: Path, text: str) -> Path:
    path = folder / "secrets.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_wider_address_needs_sign_in_or_a_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody would have to sign in"):
        launch.call("0.0.0.0", 8501, False, (), None)
    with pytest.raises(ConfigError, match="--allow-host"):
        launch.call("0.0.0.0", 8501, True, (), None)
    command, environment = launch.call("0.0.0.0", 8501, True, ("dash.example.org",), None)
    assert "--server.allowedHosts=dash.example.org" in command
    assert environment["TABDIFF_DASHBOARD_ROLE"] == "viewer"
    with pytest.raises(ConfigError, match="missing: redirect_uri"):
        launch.call("127.0.0.1", 8501, False, (), secrets(tmp_path, "[auth]\nclient_id = 'x'"))
    auth = "".join(f"{name} = 'x'\n" for name in launch._OIDC)
    with pytest.raises(ConfigError, match="Nobody could look"):
        launch.call("127.0.0.1", 8501, False, (), secrets(tmp_path, f"[auth]\n{auth}"))
    whole = secrets(tmp_path, f"[auth]\n{auth}[roles]\nadmin = 'a@example.org'")
    command, environment = launch.call("0.0.0.0", 8501, False, ("dash.example.org",), whole)
    assert environment["TABDIFF_DASHBOARD_AUTH"] == "oidc"
    assert f"--secrets.files={whole}" in command
    whole.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        launch.call("127.0.0.1", 8501, False, (), whole)


def test_on_loopback_the_person_at_the_machine_is_admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TABDIFF_DASHBOARD_ROLE", raising=False)
    monkeypatch.setenv("TABDIFF_DASHBOARD_AUTH", "oidc")  # left over; there are no secrets
    command, environment = launch.call("127.0.0.1", 8501, False, (), None)
    assert environment["TABDIFF_DASHBOARD_ROLE"] == "admin"
    assert "TABDIFF_DASHBOARD_AUTH" not in environment
    assert "--server.address=127.0.0.1" in command


def test_text_from_data_is_literal() -> None:
    assert plain("<b>*x*</b>") == r"\<b\>\*x\*\<\/b\>"
    assert plain("a_b\n# c") == r"a\_b \# c"
    assert ":material/home:" not in plain(":material/home:").replace("\\", "")
    assert "https://" not in plain("https://evil.example").replace("\\", "")
    assert literal("a\u202eb\x00c\r\nd") == "ab c d"
    assert literal("x" * 300) == "x" * 199 + "…"
    assert literal(None) == "missing"
    assert [literal(about(value)) for value in (3.78347, 123456.0, "a", None)] == ["3.783", "123500", "a", "missing"]
    assert [literal(about(text)) for text in ("-1.5386891225706318", "0.31", "10.0.00001")] == [
        "-1.539",
        "0.31",
        "10.0.00001",
    ]
    assert literal("__other__") == "a rare value"  # what a model calls it is nobody's word for it


def test_csv_holds_no_formula() -> None:
    import polars as pl

    frame = pl.DataFrame({"=1+1": ["=cmd|' /C calc'!A0", "-2", "plain"], "n": [-1, 2, 3]})
    assert csv_bytes(frame).decode().splitlines() == ["'=1+1,n", "'=cmd|' /C calc'!A0,-1", "'-2,2", "plain,3"]


def test_an_event_of_one_reading_lasts_one_place() -> None:
    begun = datetime(2026, 3, 1, tzinfo=UTC)
    alert = {"kind": "event", "open": False, "at": begun, "ended": begun}
    assert event.lasted(alert) == "1 place"
    assert event.lasted({**alert, "ended": begun + timedelta(minutes=5), "open": True}) == "5 min, still open"
