"""What an installation has, what it lacks, and the cure."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_BASE = ("numpy", "polars", "pyarrow", "safetensors", "pydantic")
_FREE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `cure` is empty if it is in order."""

    name: str
    found: str
    cure: str = ""

    @property
    def ok(self) -> bool:
        """Nothing to do."""
        return not self.cure


def examine() -> list[Check]:
    """Look at versions, devices, engines and the current folder."""
    return [
        _python(),
        _packages(),
        _torch(),
        _scikit_learn(),
        _onnxruntime(),
        _threads(),
        _folder(Path.cwd()),
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Check:
    return Check("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Check:
    versions = {name: _version(name) for name in ("tabdiff", *_BASE)}
    missing = [name for name, version in versions.items() if version is None]
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    return Check("packages", found, "Run pip install --force-reinstall tabdiff." if missing else "")


def _torch() -> Check:
    if _version("torch") is None:
        return Check("torch", "not installed; it fits and runs models", "Run pip install 'tabdiff[train]'.")
    import torch

    device = f"GPU {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "CPU only"
    return Check("torch", f"{torch.__version__}, {device}")


def _scikit_learn() -> Check:
    version = _version("scikit-learn")
    cure = "" if version else "Run pip install 'tabdiff[train]'."
    return Check("scikit-learn", version or "not installed; evaluation and the demo need it", cure)


def _onnxruntime() -> Check:
    builds = {name: version for name in ("onnxruntime", "onnxruntime-gpu") if (version := _version(name))}
    found = " and ".join(f"{name} {version}" for name, version in builds.items())
    if len(builds) == 2:
        cure = "Run pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'tabdiff[cpu]' or 'tabdiff[gpu]'."
        return Check("onnxruntime", f"{found}: two builds that overwrite each other's files", cure)
    return Check("onnxruntime", found or "not installed; only serving without torch needs it")


def _threads() -> Check:
    limit = os.environ.get("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("threads", f"{cores} cores usable, OMP_NUM_THREADS {limit or 'not set'}")


def _folder(folder: Path) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(
            "current folder",
            f"{folder} cannot be written ({error.strerror})",
            "Change to a folder of your own.",
        )
    cure = "" if free > _FREE_BYTES else "Make room on this disk."
    return Check("current folder", f"{folder} can be written, {free / 1e9:.1f} GB free", cure)
