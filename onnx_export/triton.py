"""A model repository for NVIDIA Triton Inference Server: one folder per program, with its configuration.

Layout and fields as in Triton's model configuration documentation. The texts are checked, no server was started here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tabdiff.bundle import Bundle
from tabdiff.files import atomic_folder

_TYPES = {"float": "TYPE_FP32", "bool": "TYPE_BOOL"}
_MAX_BATCH = {"score": 16_384, "step": 16_384}


def write_repository(path: Path, bundle: Bundle) -> None:
    """Write `path`/tabdiff_score and `path`/tabdiff_step.

    Raises:
        SourceError: the folder exists already or cannot be written.
    """
    programs = json.loads(bundle.compiled["onnx.json"])["programs"]
    with atomic_folder(path) as folder:
        for name in ("score", "step"):
            place = folder / f"tabdiff_{name}"
            (place / "1").mkdir(parents=True)
            (place / "1" / "model.onnx").write_bytes(bundle.compiled[f"{name}.onnx"])
            (place / "config.pbtxt").write_text(_configuration(name, programs[f"{name}.onnx"]), encoding="utf-8")


def _configuration(name: str, program: dict[str, Any]) -> str:
    def tensors(kind: str, values: list[dict[str, Any]]) -> str:
        # The batch axis is implied by max_batch_size. A value per row has no axis left: Triton calls that a reshape.
        entries = []
        for value in values:
            axes = value["shape"][1:]
            dims = f"dims: [ {', '.join(map(str, axes or [1]))} ]"
            reshape = "" if axes else ", reshape: { shape: [ ] }"
            entries.append(f'  {{ name: "{value["name"]}", data_type: {_TYPES[value["type"]]}, {dims}{reshape} }}')
        return f"{kind} [\n" + ",\n".join(entries) + "\n]"

    return "\n".join(
        [
            f'name: "tabdiff_{name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {_MAX_BATCH[name]}",
            tensors("input", program["inputs"]),
            tensors("output", program["outputs"]),
            "dynamic_batching { max_queue_delay_microseconds: 1000 }" if name == "score" else "",
            "",
        ]
    )
