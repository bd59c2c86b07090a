"""The frame of the project: public surface, architecture, files, versions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

import tabdiff
from tabdiff.config import FitConfig, SampleConfig

ROOT = Path(__file__).parent.parent
PACKAGE = sorted([*(ROOT / "tabdiff").rglob("*.py"), *(ROOT / "onnx_export").rglob("*.py")])
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
_LONGEST = 400


def file_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_public_names() -> None:
    assert tabdiff.__all__ == [
        "BundleError",
        "ConfigError",
        "FitConfig",
        "Model",
        "RuntimeUnavailable",
        "SampleConfig",
        "Schema",
        "SchemaError",
        "SourceError",
        "StoreError",
        "SynthesisError",
        "TabdiffError",
        "TabdiffWarning",
        "TrainingError",
        "fit",
        "fit_series",
        "load",
        "load_series",
    ]
    assert all(hasattr(tabdiff, name) for name in tabdiff.__all__)
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        _ = tabdiff.predict  # type: ignore[attr-defined]


def python(code: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.parametrize("module", ["tabdiff", "tabdiff.cli"])
def test_import_does_not_wait_for_heavy_packages(module: str) -> None:
    heavy = ["torch", "sklearn", "onnxruntime", "matplotlib", "pandas"]
    done = python(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    linter = "from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    code = f"import sys; sys.path.insert(0, '.'); {linter}"
    return python(code, folder)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in ("tabdiff", "onnx_export"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_architecture_holds(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("scoring.py", "def late():\n    import torch\n"),
        ("codec.py", "from tabdiff.model import Model\n"),
        ("nn/process.py", "from tabdiff.nn.train import train\n"),
        ("unplaced.py", "WORDS = 1\n"),
    ],
    ids=["lazy torch", "upwards", "upwards in nn", "a module without a layer"],
)
def test_a_breach_of_the_architecture_is_found(copy: Path, file: str, code: str) -> None:
    with (copy / "tabdiff" / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{code}")
    done = lint_imports(copy)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout


@pytest.mark.parametrize("path", PACKAGE, ids=file_name)
def test_nothing_is_unpickled(path: Path) -> None:
    """No import of a module that runs code on reading, and no call that does so."""
    text = path.read_text(encoding="utf-8")
    modules = r"(?:c?pickle|joblib|dill|cloudpickle|shelve|marshal)"
    assert not re.findall(rf"^\s*(?:from|import) {modules}\b", text, re.MULTILINE)
    calls = r"\b(?:torch|np|numpy)\.(?:load|save)\(|allow_pickle=True|(?<![.\w])(?:eval|exec)\("
    assert not re.findall(calls, text)


@pytest.mark.parametrize("path", PACKAGE, ids=file_name)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= _LONGEST


def test_docker_is_not_a_package() -> None:
    """With an __init__.py it would hide the package of that name from whoever runs in this folder."""
    assert not (ROOT / "docker" / "__init__.py").exists()
    assert (ROOT / "tabdiff" / "py.typed").exists()


def options_of(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str | None]]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += options_of(inner, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", field.description))
    return found


@pytest.mark.parametrize("model", [FitConfig, SampleConfig])
def test_every_option_is_described(model: type[BaseModel]) -> None:
    options = options_of(model)
    assert options
    assert not [name for name, description in options if not description]


def test_extras() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert list(extras) == [
        "train",
        "cpu",
        "gpu",
        "export",
        "serve",
        "store",
        "flows",
        "dashboard",
        "db",
        "ray",
        "demo",
        "dev",
        "all",
    ]
    assert not any("gpu" in requirement for requirement in extras["all"])
    others = [requirement for name in set(extras) - {"cpu", "gpu"} for requirement in extras[name]]
    assert not any("onnxruntime" in requirement for requirement in others)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_every_requirement_to_one_version() -> None:
    lines = [line for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = [normal(line.partition("==")[0]) for line in lines]
    assert len(pinned) == len(set(pinned))
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    names = {normal(re.split(r"[\s\[<>=!~;]", requirement)[0]) for requirement in wanted} - {"tabdiff"}
    assert names <= set(pinned)


def test_the_changelog_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog
    assert PYPROJECT["project"]["version"] in changelog
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    in_order = sorted(released, key=lambda version: [int(part) for part in version.split(".")], reverse=True)
    assert released == in_order


def test_the_licence_is_there() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    done = subprocess.run(["make", "-s", "help"], capture_output=True, text=True, cwd=ROOT, check=True)
    for target in set(phony[1].split()) - {"help"}:
        assert re.search(rf"^make (\S+=\S+ )?{target}\b", done.stdout, re.MULTILINE), target
    assert "python" not in done.stderr
