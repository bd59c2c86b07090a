"""One folder is one model: weights, programs, schema, codec, calibration, and a card to read.

    manifest.json       format, versions, data fingerprint, sha256 and size of every other file
    config.json         the resolved options of the fit
    schema.json         columns of the table
    codec.json          fitted transformation
    calibration.json    what normal rows score
    model.json          shape of the network, the process, and how fitting went
    weights.safetensors tensors of the programs
    card.md             the same for people

and, once `tabdiff export` has compiled the programs, the files of `COMPILED`.

Written to a temporary folder and renamed, so there is an old model or a new one, never half of one. Read with every
hash checked before anything is parsed. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tabdiff.codec import Codec
from tabdiff.config import FitConfig, ScoreConfig
from tabdiff.constraints import parse
from tabdiff.errors import BundleError, TabdiffError
from tabdiff.files import atomic_folder
from tabdiff.layout import Layout
from tabdiff.schema import Schema

FORMAT = 2
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_REQUIRED = (
    "config.json",
    "schema.json",
    "codec.json",
    "calibration.json",
    "model.json",
    "weights.safetensors",
    "card.md",
)
# Programs for ONNX Runtime (with "fp16" in half precision), what goes in and out of them, and rows to check them with.
COMPILED = ("score.onnx", "step.onnx", "score.fp16.onnx", "step.fp16.onnx", "onnx.json", "probes.safetensors")
_VERSIONED = ("numpy", "polars", "torch", "scikit-learn", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Bundle:
    """A fitted model at rest.

    Attributes:
        config: resolved options of the fit.
        schema, codec: the table and how it becomes arrays.
        calibration: plain values of `calibration.Calibration`.
        model: plain values: network shape, process, report of the fit.
        tensors: named arrays of the programs.
        fingerprint: sha256 of the training table.
        manifest: as read from disk; empty for a model that was not stored yet.
        compiled: contents of the files in `COMPILED` that the model has.
        path: the folder that was read, for messages; None for a model that was not stored yet.
    """

    config: FitConfig
    schema: Schema
    codec: Codec
    calibration: dict[str, Any]
    model: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(repr=False)
    fingerprint: str
    manifest: dict[str, Any] = field(default_factory=dict)
    compiled: dict[str, bytes] = field(default_factory=dict, repr=False)
    path: Path | None = None

    def program_digest(self) -> str:
        """sha256 of all that the programs compute with; a compiled program carries that of the model it belongs to."""
        plain = {name: value for name, value in self.model.items() if name != "report"}
        if "series" in plain:  # rows are laid on their grid, and levels moved, before the programs see them
            plain["series"] = {name: value for name, value in plain["series"].items() if name != "plan"}
        digest = hashlib.sha256(_dump([plain, self.codec.layout.to_json()]))
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    @property
    def drawn_layout(self) -> Layout:
        """What the denoiser works on: the columns, and of a series what it is shown of the calendar."""
        return self.codec.layout.beside([(name, states) for name, states in self.model.get("dials", ())])

    @property
    def constraints(self) -> tuple[Any, ...]:
        """The rules that samples obey; none in a model that was fitted before there were any."""
        return parse(self.model.get("sampling", {}).get("constraints", ()))

    def write(self, path: Path) -> None:
        """Write the folder, replacing a model that is already there.

        Raises:
            SourceError: the folder cannot be written; nothing is left behind.
        """
        files = {
            "config.json": _dump(self.config.model_dump()),
            "schema.json": _dump(self.schema.to_json()),
            "codec.json": _dump(self.codec.to_json()),
            "calibration.json": _dump(self.calibration),
            "model.json": _dump(self.model),
            # safetensors writes the buffer as it lies; a transposed array would come back scrambled.
            "weights.safetensors": save_tensors({name: np.asarray(t, order="C") for name, t in self.tensors.items()}),
            "card.md": self.card().encode(),
            **self.compiled,
        }
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "tabdiff": metadata.version("tabdiff"),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "platform": sys.platform,
            "packages": _versions(),
            "fingerprint": self.fingerprint,
            "seed": self.config.train.seed,
            "files": {name: _describe(content) for name, content in files.items()},
        }
        manifest["digest"] = _digest(manifest)
        files["manifest.json"] = _dump(manifest)
        with atomic_folder(path, replace=True) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Read a folder that `write` made, checking every file against the manifest first.

        Raises:
            BundleError: a file is missing, altered or unreadable, or of a newer format. Names the file.
        """
        manifest = _read_manifest(path)
        content = {name: _read_checked(path, name, entry) for name, entry in manifest["files"].items()}
        try:
            config = FitConfig.model_validate(json.loads(content["config.json"]))
            schema = Schema.from_json(json.loads(content["schema.json"]))
            return cls(
                config,
                schema,
                Codec.from_json(json.loads(content["codec.json"]), schema),
                json.loads(content["calibration.json"]),
                json.loads(content["model.json"]),
                load_tensors(content["weights.safetensors"]),
                manifest["fingerprint"],
                manifest,
                {name: content[name] for name in COMPILED if name in content},
                path,
            )
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            ValidationError,
            SafetensorError,
            TabdiffError,
        ) as error:
            raise BundleError(
                f"the model {str(path)!r} passes its checksums but cannot be understood: {type(error).__name__}: {error}. "
                f"It was written by tabdiff {manifest.get('tabdiff')}; fit it again with this version."
            ) from error

    def card(self) -> str:
        """What a person should know before using the model."""
        report, score = self.model["report"], self.config.score
        rows = "\n".join(f"| {_cell(column.name)} | {column.kind} | {column.role} |" for column in self.schema.columns)
        kernels = [tensor for name, tensor in self.tensors.items() if name.endswith((".raw.rows", "subsets.rows"))]
        judged = len((self.calibration.get("feedback") or {"reach": []})["reach"])
        memory = sum(tensor.size // tensor.shape[-1] for tensor in kernels) + judged
        privacy = (
            f"**This folder contains {memory} standardised training rows** (the kernel denoiser compares rows with them). "
            "Fit with `score.kernel_rows=0` for a model that carries none."
            if memory
            else "This folder contains no training rows."
        )
        sampling = self.model.get("sampling", {})
        if "originals" in sampling:
            privacy += (
                " A salted 64-bit digest of every training row that occurs once lets samples be tested for copies."
            )
        rules = "\n".join(f"- {_cell(str(rule))}" for rule in self.constraints) or "None."
        return f"""# Model card

A diffusion model of a table with {len(self.codec.columns)} modelled columns. It scores how abnormal a row is, says which
columns carry the score and what they should have been, and draws synthetic rows.

| | |
|---|---|
| training rows | {report["train_rows"]} |
| held-out rows (early stop, calibration) | {report["held_out_rows"]} |
| gradient steps | {report["steps"]} of {report["planned_steps"]} (ended by: {report["finished"]}) |
| held-out loss | {report["held_out"]:.4f} (lower is better) |
| seconds of fitting | {report["seconds"]:.1f} |
| network | {self.model["width"]} wide, {self.model["blocks"]} blocks, {report["parameters"]:,} parameters |
| process | {self.config.process.kind}, sigma {self.model["sigma_min"]:.3g} to {self.model["sigma_max"]:.3g} |
| calibrated on | {report.get("calibration_rows", report["held_out_rows"])} rows that took no part in their score |
| default flags | {"above normal time" if "series" in self.model else _rule(score, report)} |
| judged rows (feedback) | {judged} |
| seed | {self.config.train.seed} |
| data fingerprint | `{self.fingerprint}` |

## Privacy

{privacy} Category names, atoms and quantiles of the training table are stored in `codec.json` and `schema.json`. Nothing
here is differential privacy.

## Rules that samples obey

{rules}

## Columns

| column | kind | role |
|---|---|---|
{rows}
"""


def _rule(score: ScoreConfig, report: dict[str, Any]) -> str:
    """The rule for flags in a few words."""
    ((name, value),) = score.rule.items()
    if name != "alerts_per_day":
        return f"{'false-discovery rate' if name == 'fdr' else name} {value:g}"
    rows = score.rows_per_day or report.get("rows_per_day")
    return f"{value:g} alerts a day among {rows:,.6g} normal rows" if rows else f"{value:g} alerts a day"


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise BundleError(f"a model is a folder with a manifest.json; {str(path)!r} is not a folder. Check the path.")
    file = path / "manifest.json"
    _refuse_link(file)
    try:
        manifest = json.loads(file.read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError("not a JSON object")
        digest, files = manifest["digest"], dict(manifest["files"])
    except FileNotFoundError:
        raise BundleError(f"a model folder holds a manifest.json; {str(file)!r} is missing. Is it a model?") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{str(file)!r} is not a readable manifest ({error}). Restore the folder from a copy."
        ) from error
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{str(file)!r} has format {manifest.get('format')!r}; this version reads format {FORMAT}. "
            f"Use tabdiff {manifest.get('tabdiff')}, or fit again."
        )
    if digest != _digest(manifest):
        raise BundleError(f"{str(file)!r} was altered after it was written. Restore the folder from a copy.")
    missing = [name for name in _REQUIRED if name not in files]
    unsafe = [name for name in files if not _NAME.fullmatch(name)]
    if missing or unsafe:
        raise BundleError(
            f"{str(file)!r} lists {'no ' + missing[0] if missing else 'the unsafe name ' + repr(unsafe[0])}."
        )
    return manifest


def _read_checked(path: Path, name: str, entry: dict[str, Any]) -> bytes:
    file = path / name
    _refuse_link(file)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{str(file)!r} is missing. Restore the folder from a copy.") from None
    except OSError as error:
        raise BundleError(f"{str(file)!r} cannot be read: {error.strerror or error}.") from error
    found = _describe(content)
    if found != entry:
        raise BundleError(
            f"{str(file)!r} is not the file that was written: sha256 {found['sha256'][:12]}, {found['bytes']} bytes; the manifest "
            f"says {str(entry.get('sha256'))[:12]}, {entry.get('bytes')} bytes. Restore the folder from a copy."
        )
    return content


def _refuse_link(file: Path) -> None:
    if file.is_symlink():
        raise BundleError(
            f"{str(file)!r} is a symbolic link; a model holds its own files. Restore the folder from a copy."
        )


def _describe(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(_dump({name: value for name, value in manifest.items() if name != "digest"})).hexdigest()


def _dump(values: Any) -> bytes:
    return json.dumps(values, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False).encode()


def _cell(name: str) -> str:
    """A column name as literal text inside a Markdown table."""
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", " ".join(name.split()))


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
