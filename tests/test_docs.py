"""The documentation is run: Python blocks, commands, help texts, links, and the reference."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import re
import shlex
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
import typer.main
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import tabdiff
from tabdiff import errors
from tabdiff.config import TrainConfig
from tabdiff.nn import train
from tabdiff.schema import read_overrides

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_STEPS = 30  # instead of the default amount of training


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, int, str]]:
    """(language, line, text) of every fenced block."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    fences = [token for token in tokens if token.type == "fence"]
    return [(token.info, token.map[0] + 1, token.content) for token in fences if token.map]


def commands(text: str) -> list[str]:
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed_table: Callable[..., pl.DataFrame]) -> Path:
    """A folder with the data that the pages speak of, and a short training."""
    mixed_table(400, seed=0).write_parquet(tmp_path / "orders.parquet")
    new = mixed_table(100, seed=1)
    wrong = new.with_row_index().select(
        pl.when(pl.col("index") == 7).then(4000.0).otherwise(pl.col("price")).alias("price")
    )
    new.with_columns(wrong).write_parquet(tmp_path / "new_orders.parquet")
    monkeypatch.chdir(tmp_path)

    def planned_steps(_: object, config: TrainConfig, rows: int) -> int:
        return config.steps or _STEPS

    monkeypatch.setattr(train, "planned_steps", planned_steps)
    return tmp_path


def run_command(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert arguments[0] in targets, command
    elif program == "tabdiff":
        from tabdiff.cli import app

        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"
    else:
        assert program == "pip", f"a page shows {command!r}, which nobody runs"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=page_name)
def test_code_blocks_run_in_order(page: Path, folder: Path) -> None:
    namespace: dict[str, object] = {}
    for language, line, text in blocks(page):
        if language == "python":
            exec(compile("\n" * line + text, str(page), "exec"), namespace)
        elif language == "console":
            for command in commands(text):
                run_command(command)
        elif language == "toml":
            (folder / "columns.toml").write_text(text, encoding="utf-8")
            read_overrides(folder / "columns.toml")
        else:
            assert language == "text", f"{page}:{line}: say what language the block is"


def test_readme_shows_python_and_the_command_line() -> None:
    shown = [text for language, _, text in blocks(ROOT / "README.md") if language == "python"]
    assert len(shown) == 1
    assert len(shown[0].strip().splitlines()) <= 12
    lines = [line for _, _, text in blocks(ROOT / "README.md") for line in commands(text)]
    used = {line.split()[1] for line in lines if line.startswith("tabdiff")}
    assert {"fit", "score", "sample"} <= used


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@functools.cache
def build_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_documented_with_its_help_text() -> None:
    from tabdiff.cli import app

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    documented = re.findall(r"<!-- help: ([\w-]*) -->", text)
    assert sorted(documented) == sorted(["", *typer.main.get_command(app).commands])  # type: ignore[attr-defined]
    assert build_module().with_help_texts(text) == text, "run `make docs` and commit docs/cli.md"


def test_the_reference_builds_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # those of packages that pdoc looks into
        build_module().build_reference(tmp_path)
    for name in ("api", "model", "schema", "config", "errors"):
        assert (tmp_path / "tabdiff" / f"{name}.html").is_file(), name


def public_functions() -> list[tuple[str, Callable[..., object]]]:
    """What a user can call: public functions, and public methods of public classes that tabdiff defines."""
    found: list[tuple[str, Callable[..., object]]] = []
    for name in tabdiff.__all__:
        thing = getattr(tabdiff, name)
        if not inspect.isclass(thing):
            found.append((name, thing))
        elif not issubclass(thing, Warning | Exception) and not hasattr(thing, "model_fields"):
            members = inspect.getmembers(thing, inspect.isroutine)
            own = [(name, member) for name, member in members if not name.startswith("_")]
            found += [(f"{thing.__name__}.{name}", member) for name, member in own]
    return found


def test_every_public_name_has_a_docstring() -> None:
    nameless = [name for name in tabdiff.__all__ if not inspect.getdoc(getattr(tabdiff, name))]
    nameless += [name for name, function in public_functions() if not inspect.getdoc(function)]
    assert not nameless


@pytest.mark.parametrize(("name", "function"), [pytest.param(*pair, id=pair[0]) for pair in public_functions()])
def test_docstrings_name_the_errors_that_are_raised(name: str, function: Callable[..., object]) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    raised = {
        part.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None
        for part in ast.walk(node.exc)
        if isinstance(part, ast.Name) and isinstance(getattr(errors, part.id, None), type)
    } - {"Problem"}
    described = (inspect.getdoc(function) or "").partition("Raises:")[2]
    assert raised <= set(re.findall(r"\w+", described)), f"{name} raises {raised}"


def test_the_error_page_lists_every_error() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for name in tabdiff.__all__:
        thing = getattr(tabdiff, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert f"`{name}`" in text, name
