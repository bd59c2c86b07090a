"""From the torch modules that a model runs to ONNX programs in its folder.

Nothing is written twice: the graphs are traced from the same `Score` and `Step` (torch.export, then torch.onnx), with any
number of rows. What `tabdiff.nn` changes in them, the next export has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import save as save_tensors

from tabdiff.bundle import COMPILED, Bundle
from tabdiff.errors import BundleError, RuntimeUnavailable
from tabdiff.layout import Layout

if TYPE_CHECKING:
    import torch

OPSET = 20
_SCORE_INPUTS, _SCORE_OUTPUTS = ("x", "present"), ("errors",)
_STEP_INPUTS = ("x", "t", "s", "noise", "reveal", "given", "allowed", "previous", "extrapolate", "churn")
_STEP_OUTPUTS = ("x_s", "x0")
_EXAMPLE_ROWS = 3  # any number but 0 and 1, which tracing takes for constants


def export(
    path: str | Path,
    *,
    fp16: bool = False,
    triton: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Compile the programs of a model folder, compare them with torch, and only then add them to the folder.

    Args:
        path: folder that `tabdiff fit` wrote; replaced at once, by itself with the programs.
        fp16: also compile programs whose network multiplies in half precision.
        triton: also write a model repository for Triton Inference Server to this folder.
        say: told what is being done.

    Returns:
        The model as written. `json.loads(bundle.compiled["onnx.json"])` has inputs, outputs and the comparison.

    Raises:
        BundleError: the folder is broken, or a compiled program does not compute what torch does; nothing is changed then.
        RuntimeUnavailable: torch, onnx, onnxscript or onnxruntime is missing.
        SourceError: the folder cannot be written.
    """
    path = Path(path)
    bundle = Bundle.read(path)
    _require("torch", "onnx", "onnxscript", "onnxruntime")
    from onnx_export.triton import write_repository
    from onnx_export.verify import make_probes, verify, window_of
    from tabdiff.nn.runtime import TorchRuntime, build_programs

    bundle = replace(bundle, compiled={})
    score, step = build_programs(bundle)
    torch_runtime = TorchRuntime(score, step, "cpu")
    say("compiling score.onnx and step.onnx")
    layout, digest = bundle.codec.layout, bundle.program_digest()
    traced = {
        "score": _trace(score, _score_example(layout, window_of(bundle)), _SCORE_INPUTS, _SCORE_OUTPUTS),
        "step": _trace(step, _step_example(bundle.drawn_layout, score.denoiser.length), _STEP_INPUTS, _STEP_OUTPUTS),
    }
    programs = {f"{name}.onnx": _finish(model, digest, "float32") for name, model in traced.items()}
    if fp16:
        from onnx_export.half import halve

        programs |= {f"{name}.fp16.onnx": _finish(halve(model), digest, "float16") for name, model in traced.items()}
    probes = make_probes(bundle, torch_runtime)
    described = {name: _describe(content, digest) for name, content in programs.items()}
    compiled = {**programs, "onnx.json": _json({"programs": described}), "probes.safetensors": save_tensors(probes)}
    say("comparing with torch")
    reports = verify(replace(bundle, compiled=compiled), torch_runtime, fp16=fp16)
    contract = {
        "programs": described,
        "views": list(bundle.calibration["views"]),
        "columns": list(bundle.codec.columns),
        "layout": layout.to_json(),
        "checked": reports,
    }
    compiled["onnx.json"] = _json(contract)
    assert set(compiled) <= set(COMPILED)
    done = replace(bundle, compiled=compiled)
    if triton is not None:
        write_repository(Path(triton), done)
    done.write(path)
    return done


def _require(*names: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise RuntimeUnavailable(
            f"exporting needs {' and '.join(missing)}, not installed here. Run pip install 'tabdiff[train,export,cpu]'."
        )


def _score_example(layout: Layout, length: int) -> tuple[torch.Tensor, ...]:
    import torch

    x = torch.zeros(_EXAMPLE_ROWS, length, layout.width)
    return x, torch.ones(_EXAMPLE_ROWS, length, len(layout.units), dtype=torch.bool)


def _step_example(layout: Layout, length: int) -> tuple[torch.Tensor, ...]:
    import torch

    x = torch.zeros(_EXAMPLE_ROWS, length, layout.model_width)
    units = torch.zeros(_EXAMPLE_ROWS, length, len(layout.units))
    row = torch.zeros(_EXAMPLE_ROWS)
    return x, row + 0.5, row + 0.4, units, units > 0, units > 0, x + 1, x.clone(), row.clone(), row.clone()


def _trace(
    module: torch.nn.Module, example: tuple[torch.Tensor, ...], inputs: Sequence[str], outputs: Sequence[str]
) -> Any:
    """An ONNX model with any number of rows."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=1 << 24)
    with _quiet(), torch.no_grad():
        try:
            # Two steps, as the exporter in one would turn to other ways of tracing, with a fixed number of rows.
            program = torch.export.export(
                module.eval(), example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False
            )
        except torch._dynamo.exc.UserError as error:
            raise BundleError(
                f"{type(module).__name__} cannot be compiled for any number of rows: {_line(error)}. Its code must take the number "
                "of rows from x.shape[0]; len(x) makes it a constant. This is an error in tabdiff; please report it."
            ) from error
        made = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs, verbose=False
        )
    assert made is not None
    return _with_shared_constants(_with_empty_shapes(made.model_proto))


def _with_shared_constants(model: Any) -> Any:
    """Each constant once. The exporter writes one for every place that picks rows of it."""
    known: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    for tensor in list(model.graph.initializer):
        content = type(tensor).FromString(tensor.SerializeToString())
        content.ClearField("name")
        first = known.setdefault(content.SerializeToString(deterministic=True), tensor.name)
        if first != tensor.name:
            instead[tensor.name] = first
            model.graph.initializer.remove(tensor)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
    return model


def _with_empty_shapes(model: Any) -> Any:
    """Reshapes of empty tensors with the number of rows written out.

    A table without numbers, or without categories, has tensors (B, 1, 0). The exporter gives B as -1, "whatever is left",
    which is not defined where another axis is 0.
    """
    from onnx import helper, numpy_helper

    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        shape = shapes.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and shape[0] == -1 and (shape == 0).any():
            rows, rest, whole = (f"{node.output[0]}.{part}" for part in ("rows", "rest", "shape"))
            model.graph.initializer.append(numpy_helper.from_array(shape[1:], rest))
            nodes.append(helper.make_node("Shape", [node.input[0]], [rows], start=0, end=1))
            nodes.append(helper.make_node("Concat", [rows, rest], [whole], axis=0))
            node.input[1] = whole
        nodes.append(node)
    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports packages that it could use but does not need, and deprecations between torch and Python."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _finish(model: Any, digest: str, precision: str) -> bytes:
    """Named batch axis, no traces of the machine that compiled, and what the program belongs to."""
    import onnx

    finished = onnx.ModelProto()
    finished.CopyFrom(model)
    graph = finished.graph
    graph.ClearField("value_info")
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        value.ClearField("metadata_props")
        dimension = value.type.tensor_type.shape.dim[0]
        if not dimension.dim_param:
            raise BundleError(
                f"the compiled {value.name} has {dimension.dim_value} rows, not any number. This is an error in tabdiff; please report it."
            )
        dimension.dim_param = "batch"
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
    del finished.metadata_props[:]
    onnx.helper.set_model_props(
        finished, {"tabdiff.model": digest, "tabdiff.precision": precision, "tabdiff.opset": str(OPSET)}
    )
    onnx.checker.check_model(finished)
    return bytes(finished.SerializeToString(deterministic=True))


def _describe(content: bytes, digest: str) -> dict[str, Any]:
    """What onnx.json says of a program: whoever calls it from elsewhere needs no more."""
    import onnx

    model = onnx.load_from_string(content)

    def signature(value: Any) -> dict[str, Any]:
        tensor = value.type.tensor_type
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        return {
            "name": value.name,
            "type": kind,
            "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim],
        }

    return {
        "model": digest,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "producer": f"{model.producer_name} {model.producer_version}",
        "opset": OPSET,
        "ir_version": model.ir_version,
        "nodes": len(model.graph.node),
        "inputs": [signature(value) for value in model.graph.input],
        "outputs": [signature(value) for value in model.graph.output],
    }


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _line(error: object) -> str:
    return " ".join(str(error).split())[:400]
