"""The ONNX engine: runs the two compiled programs of a bundle, without torch.

What to watch with ONNX Runtime: a session that is asked for a GPU and cannot have it falls back to the CPU without an
error, and its list of available providers is what it was built with, not what is there. So every session is asked what it
really got, and every result carries the answer. A program may name files to read weights from; none is allowed to
(`tabdiff.onnx_guard`).
"""

from __future__ import annotations

import importlib.util
import json
import weakref
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from tabdiff import onnx_guard
from tabdiff.bundle import Bundle
from tabdiff.errors import BundleError, RuntimeUnavailable, warn

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
Precision = Literal["float32", "float16"]
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
# Rows in one call of a program. On a CPU what lies between operators should fit into its caches.
_CHUNK_ROWS = {"cpu": 256, "cuda": 16_384, "tensorrt": 16_384}
_WARM_UP_TOLERANCE = 1e-2  # relative; an engine that strays farther than this computes something else
_TURNS = {"x": "x_s", "previous": "x0"}  # what a step takes in, and what the next one takes in its place
_QUIET = 4  # ONNX Runtime prints errors in red before it raises them; level 4 leaves that to the exception


def available() -> bool:
    """Whether a build of ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


class DeviceArray:
    """An array that stays where the engine computed it. `numpy.asarray` copies it to the host."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array."""
        return tuple(self.value.shape())

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        # On a CPU the array would be a window on a buffer that a later step may write to.
        return np.array(self.value.numpy(), dtype)


class OnnxRuntime:
    """Runs the programs with ONNX Runtime; implements `tabdiff.runtime.Runtime`.

    Args:
        bundle: a model that `tabdiff export` compiled.
        device: "cuda" and "tensorrt" raise where they would fall back to the CPU; "auto" takes CUDA if it starts, else the
            CPU, and says so in `provider`.
        precision: "float16" runs the network's matrix products in half precision; worth it on a GPU only.
        threads: CPU threads of one call; None leaves the choice to ONNX Runtime. Threads do not spin while they wait, so that
            processes on one host do not take each other's cores.
        on_device: keep the state of a sampler on the device between steps. Default: on a GPU.
        cuda_graphs: record the launches of one call and replay them; for batches of one size only, others run as usual.
        warm_up: run stored rows once at the start, and compare with what they gave at the export.

    Raises:
        RuntimeUnavailable: ONNX Runtime or the device is not there, the model was not exported (in this precision), or the
            device computes something else than the model's stored rows say.
        BundleError: a program is unreadable, unsafe, or belongs to another model. Names the file.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device = "auto",
        *,
        precision: Precision = "float32",
        threads: int | None = 1,
        on_device: bool | None = None,
        cuda_graphs: bool = False,
        warm_up: bool = True,
    ) -> None:
        ort = _onnxruntime()
        infix = ".fp16" if precision == "float16" else ""
        names = (f"score{infix}.onnx", f"step{infix}.onnx")
        for name in names:
            if name not in bundle.compiled:
                flag = " --fp16" if infix else ""
                raise RuntimeUnavailable(
                    f"the model {_place(bundle)!r} holds no {name}. Run tabdiff export{flag} {_place(bundle)} where torch is installed."
                )
        self.precision = precision
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads, options.inter_op_num_threads = threads or 0, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        digest = bundle.program_digest()
        programs = [_checked(bundle, name, digest) for name in names]
        self._score, self.device = _start(ort, names[0], bundle, programs[0], options, device, cuda_graphs)
        self._step, _ = _start(ort, names[1], bundle, programs[1], options, self.device, cuda_graphs)
        self._check_shapes(bundle, names)
        self._version, self._options = ort.__version__, ort.RunOptions
        self._values = ort.OrtValue
        self.on_device = self.device != "cpu" if on_device is None else on_device
        self._place = ("cpu" if self.device == "cpu" else "cuda", 0)
        self._kept: dict[str, tuple[weakref.ref[np.ndarray], Any]] = {}
        self._fixed: dict[tuple[str, int], _Fixed] = {}
        self.cuda_graphs, self.fixed_rows = cuda_graphs, self.chunk_rows
        if warm_up:
            self._warm_up(bundle)

    @property
    def provider(self) -> str:
        """For instance "onnxruntime 1.31.1 cpu" or "onnxruntime 1.31.1 cuda float16"."""
        half = " float16" if self.precision == "float16" else ""
        return f"onnxruntime {self._version} {self.device}{half}"

    @property
    def chunk_rows(self) -> int:
        """Rows that are best scored in one call."""
        return _CHUNK_ROWS[self.device]

    def score(
        self, x: Float32[np.ndarray, "b t w"], present: Bool[np.ndarray, "b t u"]
    ) -> Float32[np.ndarray, "b t v c"]:
        """Reconstruction error per view and column."""
        feed = {"x": x, "present": present}
        if self.cuda_graphs and len(x) == self.fixed_rows:
            errors = np.asarray(self._replayed("score", self._score, feed)[0])
        else:
            (errors,) = self._score.run(None, {name: np.ascontiguousarray(value) for name, value in feed.items()})
        result: Float32[np.ndarray, "b t v c"] = errors
        return result

    def step(
        self,
        x: Any,
        t: float,
        s: float,
        noise: Float32[np.ndarray, "b t u"],
        reveal: Bool[np.ndarray, "b t u"],
        given: Bool[np.ndarray, "b t u"],
        allowed: Float32[np.ndarray, "b t w"],
        previous: Any,
        extrapolate: float,
        churn: float,
    ) -> tuple[Any, Any]:
        """One denoising step from time t to s: (x_s, x0_hat), arrays or, on a GPU, `DeviceArray`."""

        def everywhere(value: float) -> Float32[np.ndarray, " b"]:
            return np.full(len(x), value, np.float32)

        feed = {"x": x, "t": everywhere(t), "s": everywhere(s), "noise": noise, "reveal": reveal, "given": given}
        feed |= {"allowed": allowed, "previous": previous}
        feed |= {"extrapolate": everywhere(extrapolate), "churn": everywhere(churn)}
        if not self.on_device:
            x_s, x0 = self._step.run(["x_s", "x0"], {name: np.ascontiguousarray(value) for name, value in feed.items()})
            return x_s, x0
        if self.cuda_graphs:
            x_s, x0 = self._replayed("step", self._step, feed)
            return x_s, x0
        binding = self._step.io_binding()
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, self._there(name, value))
        for name in ("x_s", "x0"):
            binding.bind_output(name, *self._place)
        self._step.run_with_iobinding(binding)
        x_s, x0 = (DeviceArray(value) for value in binding.get_outputs())
        return x_s, x0

    def _there(self, name: str, value: Any) -> Any:
        """The value on the device. What stays the same from step to step is sent once."""
        if isinstance(value, DeviceArray):
            return value.value
        if name not in ("given", "allowed"):
            return self._values.ortvalue_from_numpy(np.ascontiguousarray(value), *self._place)
        kept = self._kept.get(name)
        if kept is None or kept[0]() is not value:
            sent = self._values.ortvalue_from_numpy(np.ascontiguousarray(value), *self._place)
            kept = self._kept[name] = (weakref.ref(value), sent)
        return kept[1]

    def _replayed(self, name: str, session: Any, feed: dict[str, Any]) -> list[DeviceArray]:
        key = (name, len(feed["x"]))
        if key not in self._fixed:
            self._fixed[key] = _Fixed(session, feed, self._values, self._options, self._place, len(self._fixed))
        return self._fixed[key](feed)

    def _check_shapes(self, bundle: Bundle, names: tuple[str, ...]) -> None:
        layout, drawn = bundle.codec.layout, bundle.drawn_layout
        expected = [
            {"x": layout.width, "present": len(layout.units)},
            {"x": drawn.model_width, "noise": len(drawn.units), "allowed": drawn.model_width},
        ]
        for name, session, widths in zip(names, (self._score, self._step), expected, strict=True):
            found = {value.name: value.shape[-1] for value in session.get_inputs()}
            if any(found.get(key) != width for key, width in widths.items()):
                raise BundleError(
                    f"{_file(bundle, name)} takes {found}, the model's rows need {widths}. Export the model again."
                )

    def _warm_up(self, bundle: Bundle) -> None:
        """The first call allocates, and on a GPU compiles; it shall not be a user's. Its result is known."""
        name = "probes.safetensors"
        try:
            probes = load_tensors(bundle.compiled[name])
            x, present, errors = probes["x"], probes["present"].astype(bool), probes["errors"]
        except (KeyError, SafetensorError, ValueError) as error:
            raise BundleError(f"{_file(bundle, name)} cannot be read ({error}). Export the model again.") from error
        if x.shape[-1] != bundle.codec.layout.width or len(x) != len(errors):
            raise BundleError(f"{_file(bundle, name)} belongs to another model. Export the model again.")
        found = self.score(x, present)
        total = errors.sum(-1)
        worst = float(np.abs(found.sum(-1) - total).max() / total.max()) if found.shape == errors.shape else np.inf
        if not worst < _WARM_UP_TOLERANCE:
            raise RuntimeUnavailable(
                f"{self.provider} computes errors that differ by {worst:.1e} of the largest from those stored in {name}; at most "
                f"{_WARM_UP_TOLERANCE:.0e} may be rounding. Use device=cpu, or another version of ONNX Runtime."
            )


class _Fixed:
    """One program on batches of one size, in buffers that stay: what recording a CUDA graph asks for.

    A sampler's state goes to and fro between two sets of buffers, each direction recorded by itself.
    """

    def __init__(
        self, session: Any, feed: dict[str, Any], values: Any, options: Any, place: tuple[str, int], index: int
    ) -> None:
        self.session = session
        # Copies: on a CPU the engine's buffers are the arrays that it is given, and these are written to.
        arrays = {name: np.array(value, order="C") for name, value in feed.items()}
        self.inputs = {name: values.ortvalue_from_numpy(array, *place) for name, array in arrays.items()}
        outputs = session.run(None, arrays)
        names = [output.name for output in session.get_outputs()]
        made = {n: values.ortvalue_from_numpy(a, *place) for n, a in zip(names, outputs, strict=True)}
        self.turning = set(names) == set(_TURNS.values())
        back = {name: made[there] for name, there in _TURNS.items()} if self.turning else {}
        ahead = {there: self.inputs[name] for name, there in _TURNS.items()} if self.turning else {}
        self.sets = [(self.inputs, made), ({**self.inputs, **back}, ahead)][: 1 + self.turning]
        self.bindings, self.run_options = [], []
        for number, (ins, outs) in enumerate(self.sets):
            binding, option = session.io_binding(), options()
            for name, value in ins.items():
                binding.bind_ortvalue_input(name, value)
            for name in names:
                binding.bind_ortvalue_output(name, outs[name])
            option.add_run_config_entry("gpu_graph_id", str(2 * index + number + 1))
            self.bindings.append(binding)
            self.run_options.append(option)
        self.names = names

    def __call__(self, feed: dict[str, Any]) -> list[DeviceArray]:
        state = [feed[name] for name in _TURNS] if self.turning else []
        where = 0
        if state and all(isinstance(value, DeviceArray) for value in state):
            held = [[ins[name] for name in _TURNS] for ins, _ in self.sets]
            matches = [all(v.value is h for v, h in zip(state, hs, strict=True)) for hs in held]
            where = matches.index(True) if True in matches else -1
        elif state:
            where = -1
        for name, value in feed.items():
            if name in _TURNS and self.turning and where >= 0:
                continue
            self.inputs[name].update_inplace(np.ascontiguousarray(value))
        where = max(where, 0)
        self.session.run_with_iobinding(self.bindings[where], self.run_options[where])
        return [DeviceArray(self.sets[where][1][name]) for name in self.names]


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(
            "compiled programs need ONNX Runtime, which is not installed here. Run pip install 'tabdiff[cpu]', or "
            "'tabdiff[gpu]' on a machine with a CUDA GPU; never both."
        ) from error
    return onnxruntime


def _checked(bundle: Bundle, name: str, digest: str) -> bytes:
    """A program that reaches nowhere and was compiled from this very model."""
    content = bundle.compiled[name]
    try:
        onnx_guard.check(content)
    except onnx_guard.UnsafeProgramError as error:
        raise BundleError(
            f"{_file(bundle, name)} is refused: {error}. Restore the folder, or export it again."
        ) from None
    try:
        described = json.loads(bundle.compiled["onnx.json"])
        recorded = described["programs"][name]["model"]
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(
            f"{_file(bundle, 'onnx.json')} does not describe {name} ({error!r}). Export the model again."
        ) from error
    if recorded != digest:
        raise BundleError(
            f"{_file(bundle, 'onnx.json')} says that {name} was compiled from another model than weights.safetensors holds. "
            "Export the model again."
        )
    return content


def _start(
    ort: Any, name: str, bundle: Bundle, content: bytes, options: Any, device: Device, cuda_graphs: bool
) -> tuple[Any, Literal["cpu", "cuda", "tensorrt"]]:
    """A session and the device that it really got."""
    built = ort.get_available_providers()
    wanted: Any = device if device != "auto" else "cuda" if "CUDAExecutionProvider" in built else "cpu"
    first = _PROVIDERS[wanted][0]
    providers: list[Any] = [provider for provider in _PROVIDERS[wanted] if provider in built]
    # Products choose and copy values, too (`tabdiff.nn.blocks`): those must come out to the last bit, not rounded to TF32.
    cuda = {"use_tf32": "0", **({"enable_cuda_graph": "1"} if cuda_graphs else {})}
    providers = [(p, cuda) if p == "CUDAExecutionProvider" else p for p in providers]
    try:
        session = ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # the classes that ONNX Runtime raises are its own, directly below Exception
        if wanted != "cpu" and device != "auto":
            raise _unavailable(device, first, str(error)) from error
        if wanted != "cpu":
            warn(f"device=auto: the GPU did not start ({_line(error)}), so the CPU is used")
            return _start(ort, name, bundle, content, options, "cpu", False)
        raise BundleError(
            f"{_file(bundle, name)} cannot be started ({_line(error)}). Restore the folder, or export it again."
        ) from error
    recorded = session.get_modelmeta().custom_metadata_map
    if recorded.get("tabdiff.model") != bundle.program_digest():
        raise BundleError(
            f"{_file(bundle, name)} was compiled from another model. Restore the folder, or export it again."
        )
    if first in session.get_providers():
        return session, wanted
    if device == "auto":
        warn("device=auto: this build of ONNX Runtime has CUDA, but it did not start, so the CPU is used")
        return session, "cpu"
    raise _unavailable(device, first, f"the session runs on {', '.join(session.get_providers())}")


def _unavailable(device: str, provider: str, reason: str) -> RuntimeUnavailable:
    return RuntimeUnavailable(
        f"device={device} needs {provider} of ONNX Runtime, which did not start: {_line(reason)}. Install 'tabdiff[gpu]' without "
        "'tabdiff[cpu]' on a machine with a GPU and its driver, or use device=auto or device=cpu."
    )


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _place(bundle: Bundle) -> str:
    return str(bundle.path or "MODEL_DIR")


def _file(bundle: Bundle, name: str) -> str:
    return repr(str(bundle.path / name)) if bundle.path else repr(name)
