"""Load a model with the engine that is there for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from tabdiff import onnx_runtime
from tabdiff.bundle import Bundle
from tabdiff.errors import BundleError, ConfigError, RuntimeUnavailable
from tabdiff.model import Model
from tabdiff.onnx_runtime import OnnxRuntime
from tabdiff.runtime import Runtime
from tabdiff.series_model import SeriesModel


def load(
    path: str | Path,
    *,
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto",
    runtime: Literal["auto", "onnx", "torch"] = "auto",
    precision: Literal["float32", "float16"] = "float32",
    threads: int | None = 1,
) -> Model:
    """Load a model folder.

    Args:
        path: the folder.
        device: "cuda" is an error where there is none; "auto" takes what there is. "tensorrt" is for ONNX Runtime only.
        runtime: "auto" is ONNX Runtime if the folder holds compiled programs (`tabdiff export`) and ONNX Runtime is
            installed, because it starts without torch and is faster on a CPU; otherwise torch.
        precision: "float16" needs programs exported with fp16, and pays on a GPU only.
        threads: CPU threads of ONNX Runtime, None for as many as it likes. torch has `torch.set_num_threads`.

    Raises:
        BundleError: a file is missing, altered or from another version, or it is the model of a series.
        RuntimeUnavailable: the device or engine is not there, or the model was not exported for it.
        ConfigError: a value is not one of those above, or torch is asked for what only ONNX Runtime does.
    """
    model = load_any(path, device=device, runtime=runtime, precision=precision, threads=threads)
    if not isinstance(model, Model):
        raise BundleError(f"{str(path)!r} is the model of a series, not of a table. Use load_series.")
    return model


def load_series(path: str | Path, **options: Any) -> SeriesModel:
    """Load the model of a series; options as for `load`.

    Raises:
        BundleError: as for `load`, or it is the model of a table.
        RuntimeUnavailable, ConfigError: as for `load`.
    """
    model = load_any(path, **options)
    if not isinstance(model, SeriesModel):
        raise BundleError(f"{str(path)!r} is the model of a table, not of a series. Use load.")
    return model


def load_any(
    path: str | Path,
    *,
    device: str = "auto",
    runtime: str = "auto",
    precision: Literal["float32", "float16"] = "float32",
    threads: int | None = 1,
) -> Model | SeriesModel:
    """Load a model folder, whatever it is of; see `load`.

    Raises:
        BundleError, RuntimeUnavailable, ConfigError: as for `load`.
    """
    _check("device", device, ("auto", "cpu", "cuda", "tensorrt"))
    _check("runtime", runtime, ("auto", "onnx", "torch"))
    _check("precision", precision, ("float32", "float16"))
    bundle = Bundle.read(Path(path))
    compiled = "score.onnx" in bundle.compiled
    only_onnx = device == "tensorrt" or precision == "float16"
    if runtime == "torch" and only_onnx:
        raise ConfigError(
            "device=tensorrt and precision=float16 are for compiled programs; got runtime=torch. Use runtime=onnx."
        )
    if runtime == "onnx" or only_onnx or (runtime == "auto" and compiled and onnx_runtime.available()):
        engine: Runtime = OnnxRuntime(bundle, device, precision=precision, threads=threads)  # type: ignore[arg-type]
    else:
        engine = _torch_runtime(bundle, device, compiled)
    return SeriesModel(bundle, engine) if "series" in bundle.model else Model(bundle, engine)


def _torch_runtime(bundle: Bundle, device: str, compiled: bool) -> Runtime:
    if importlib.util.find_spec("torch") is None:
        cure = (
            "The folder holds compiled programs: pip install 'tabdiff[cpu]' or 'tabdiff[gpu]' runs them."
            if compiled
            else "Run pip install 'tabdiff[train]', or tabdiff export where torch is installed and pip install 'tabdiff[cpu]' here."
        )
        raise RuntimeUnavailable(
            f"running the model {str(bundle.path)!r} needs torch, which is not installed here. {cure}"
        )
    from tabdiff.nn.runtime import TorchRuntime

    try:
        return TorchRuntime.from_bundle(bundle, device)
    except (KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(
            f"{str(bundle.path)!r}: weights.safetensors, model.json and codec.json do not belong together "
            f"({type(error).__name__}: {reason}). Restore the folder from a copy."
        ) from error


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is one of {', '.join(allowed)}; got {value!r}.")
