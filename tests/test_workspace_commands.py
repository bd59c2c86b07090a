"""The commands of the workspace, from making it to cleaning up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tabdiff.cli import app
from tabdiff.store import Workspace
from tests.workspaces import orders, with_champion


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TABDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TABDIFF_DATABASE_URL", raising=False)
    return tmp_path / "home"


def tabdiff(*arguments: object) -> dict[str, Any]:
    """What a command says with --json; it says something without, too."""
    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--json")])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def shown(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.stderr


def test_a_day_at_the_workspace(home: Path, tmp_path: Path, small_bundle: Path) -> None:
    assert "tabdiff workspace init" in refused("sources", "list")
    assert tabdiff("workspace", "init")["database"] == "SQLite"
    assert "SQLite" in shown("workspace", "init")  # a second time is nothing
    with_champion(home, None, small_bundle)
    data = tmp_path / "data"
    data.mkdir()
    orders(40, 0).write_parquet(data / "a.parquet")
    tabdiff("sources", "add", "orders", data, "--key", "order_id")
    assert "orders" in shown("sources", "list")
    assert "--replace" in refused("sources", "add", "orders", tmp_path)

    scored = tabdiff("run", "score", "--source", "orders", "--model", "orders", "--set", "contamination=0.1")
    assert (scored["rows"], scored["flagged"]) == (40, 4)
    assert "rows: 0" in shown("run", "score", "--source", "orders", "--model", "orders")
    assert "fdrr" in refused("run", "score", "--source", "orders", "--model", "orders", "--set", "fdrr=1")
    assert "no source" in refused("run", "monitor", "--source", "absent", "--model", "orders")
    assert "Say fit.train." in refused(
        "run", "train", "--source", "orders", "--model", "orders", "--set", "train.steps=1"
    )
    assert "No events yet" in shown("workspace", "events")
    orders(9, 40).rename({"price": "cost"}).write_parquet(data / "z.parquet")
    call = ["run", "score", "--source", "orders", "--model", "orders"]
    assert "'price'" in shown(*call)  # told of, and the other files are scored
    strict = CliRunner().invoke(app, [*call, "--strict"])
    assert (strict.exit_code, "'price'" in strict.stdout) == (1, True)
    monitored = CliRunner().invoke(app, ["run", "monitor", "--source", "orders", "--model", "orders", "--strict"])
    assert (monitored.exit_code, "cannot read 'price'" in monitored.stdout) == (1, True)
    (data / "z.parquet").unlink()

    alert = tabdiff("alerts", "list", "--source", "orders")["alerts"][0]
    tabdiff("alerts", "judge", alert["id"], "normal", "--author", "ann")
    assert "normal" in shown("alerts", "list")
    assert tabdiff("workspace", "scores")["scores"][0]["rows"] == 40
    kinds = [run["kind"] for run in tabdiff("workspace", "runs")["runs"]]
    assert kinds == ["monitor", "score", "score", "score", "score"]
    assert {event["kind"] for event in tabdiff("workspace", "events")["events"]} == {"source_schema", "monitor"}

    assert "judged" in refused("sources", "rescore", "orders", "a.parquet", "--model", "orders")
    orders(5, 40).write_parquet(data / "b.parquet")
    tabdiff("run", "score", "--source", "orders", "--model", "orders", "--set", "contamination=0.1")
    assert tabdiff("sources", "rescore", "orders", "b.parquet", "--model", "orders")["rows"] == 5

    assert tabdiff("models", "list")["models"][0]["alias"] == "champion"
    assert tabdiff("models", "promote", "orders", 1)["champion"] == 1
    assert "'previous'" in refused("models", "rollback", "orders")
    assert "Would remove" in shown("workspace", "gc", "--keep-days", 30, "--dry-run")
    assert "Removed" in shown("workspace", "gc")
    drawn = tabdiff("run", "synthesize", "--model", "orders", "--set", "rows=10", "--set", "sample.steps=2")
    assert drawn["rows"] == 10
    assert Workspace.open().runs.latest()[0]["kind"] == "synthesize"


def test_flows_say_what_they_need(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DO_NOT_TRACK", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    assert "no workspace here" in refused("flows", "serve")
    tabdiff("workspace", "init")
    with monkeypatch.context() as patch:
        patch.setattr("os.environ", {**__import__("os").environ})  # what is set for Prefect stays in here
        assert "flows init writes an example" in refused("flows", "serve", "--plan", str(tmp_path / "none.toml"))


def test_what_is_tried_again() -> None:
    from flows.common import _passes, escape, key
    from tabdiff.errors import ConfigError, SourceError

    class Failed:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self, *, raise_on_failure: bool) -> Exception:
            assert not raise_on_failure
            return self.error

    tried: Callable[[Exception], bool] = lambda error: _passes(None, None, Failed(error))  # type: ignore[arg-type]  # noqa: E731
    assert tried(SourceError("the disk is away"))
    assert tried(OSError("no space left"))
    assert not tried(ConfigError("no such option"))
    assert key("anomalies", "My_Source!") == "tabdiff-anomalies-my-source"
    assert escape("a|b\n<script>*") == r"a\|b \<script\>\*"


def test_training_shows_that_it_goes_on(home: Path, tmp_path: Path) -> None:
    shown("workspace", "init")
    orders(120, 0).write_parquet(tmp_path / "a.parquet")
    shown("sources", "add", "orders", tmp_path / "a.parquet")
    options = ("train.steps=20", "network.width=8", "network.blocks=1")
    settings = [each for option in options for each in ("--set", f"fit.{option}")]
    call = ["run", "train", "--source", "orders", "--model", "orders", "--set", "compiled=false", *settings]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "fitting: step 20/20" in done.stderr
    assert "fitting" not in done.stdout
