"""The torch engine: builds the two programs from a bundle and runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32

from tabdiff.bundle import Bundle
from tabdiff.errors import BundleError, RuntimeUnavailable
from tabdiff.layout import Layout
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.kernel import KernelView, SubsetKernels
from tabdiff.nn.mixture import MixtureView
from tabdiff.nn.process import MixedProcess
from tabdiff.nn.programs import Score, Step
from tabdiff.nn.wiener import WindowView
from tabdiff.scoring import CHUNK_ROWS
from tabdiff.windows import Span

_NEIGHBOURS_BEFORE = 16  # of models that do not say how many stored rows reconstruct a row


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU.

    Raises:
        RuntimeUnavailable: "cuda" is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise RuntimeUnavailable(
            "device=cuda needs a CUDA GPU and a CUDA build of torch; torch reports none here. Use device=auto or device=cpu."
        )
    return torch.device("cuda" if available and device != "cpu" else "cpu")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads, and give it back what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_denoiser(layout: Layout, model: dict[str, Any], tensors: dict[str, np.ndarray]) -> Denoiser:
    """The denoiser described by a bundle's plain values; weights are loaded with the programs."""

    def tensor(name: str) -> torch.Tensor:
        return torch.as_tensor(tensors[f"score.denoiser.{name}"])

    process = MixedProcess(
        layout,
        model["sigma_min"],
        model["sigma_max"],
        model["rho"],
        tensor("process.basis"),
        tensor("process.scale"),
    )
    return Denoiser(
        process,
        *(tensor(name) for name in ("mean", "basis", "variance", "noise_scale")),
        length=model["length"],
        width=model["width"],
        blocks=model["blocks"],
        dropout=model["dropout"],
    )


def build_programs(bundle: Bundle) -> tuple[Score, Step]:
    """Score and Step with the bundle's weights; they share one denoiser."""
    tensors = {name.removeprefix("score."): torch.as_tensor(value) for name, value in bundle.tensors.items()}
    denoiser = build_denoiser(bundle.drawn_layout, bundle.model, bundle.tensors)
    count = bundle.model.get("neighbours", _NEIGHBOURS_BEFORE)
    parts: tuple[str, ...] = ("rows", "transform", "inverse", "levels", "penalty")
    kernels = {
        view: KernelView(**{name: tensors[f"kernels.{view}.{name}"] for name in parts}, count=count)
        for view in bundle.codec.layout.views
        if f"kernels.{view}.rows" in tensors
    }
    parts = ("means", "axes", "variance", "log_share", "levels")
    mixture = MixtureView(*(tensors[f"mixture.{name}"] for name in parts)) if "mixture.means" in tensors else None
    subsets = SubsetKernels(tensors["subsets.rows"], tensors["subsets.levels"]) if "subsets.rows" in tensors else None
    windows = {
        span.name: WindowView(
            *(tensors[f"windows.{span.name}.{part}"] for part in ("mean", "axes", "keep")), **span.to_json()
        )
        for span in (Span(**values) for values in bundle.model.get("series", {}).get("spans", ()))
    }
    names = ("usual_log", "usual_level", "times", "noise", "bounds", "view_columns", "units_to_columns", "surprise")
    score = Score(
        denoiser,
        kernels,
        mixture,
        subsets,
        **{name: tensors[name] for name in names},
        windows=windows,
        layout=bundle.codec.layout,
    )
    score.load_state_dict(tensors)
    return score.eval(), Step(denoiser).eval()


class TorchRuntime:
    """Runs the programs with torch; implements `tabdiff.runtime.Runtime`."""

    def __init__(self, score: Score, step: Step, device: str = "auto") -> None:
        self.device = resolve_device(device)
        self._score, self._step = score.to(self.device).eval(), step.to(self.device).eval()

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: str = "auto") -> TorchRuntime:
        """Build the programs and move them to the device.

        Raises:
            BundleError: the programs are not those that the folder was calibrated for.
            RuntimeUnavailable: the device is not there.
        """
        score, step = build_programs(bundle)
        if score.views != list(bundle.calibration["views"]):
            raise BundleError(
                f"calibration.json must be about the views of the programs, {', '.join(score.views)}; it has "
                f"{', '.join(bundle.calibration['views'])}. Fit the model again."
            )
        return cls(score, step, device)

    @property
    def provider(self) -> str:
        """For instance "torch cpu"."""
        return f"torch {self.device.type}"

    @property
    def chunk_rows(self) -> int:
        """Rows that are best scored in one call."""
        return CHUNK_ROWS if self.device.type == "cpu" else 16 * CHUNK_ROWS

    @property
    def on_device(self) -> bool:
        """Whether it computes on a GPU."""
        return self.device.type != "cpu"

    @torch.inference_mode()
    def score(
        self, x: Float32[np.ndarray, "b t w"], present: Bool[np.ndarray, "b t u"]
    ) -> Float32[np.ndarray, "b t v c"]:
        """Reconstruction error per view and column."""
        result: Float32[np.ndarray, "b t v c"] = self._score(self._to(x), self._to(present)).cpu().numpy()
        return result

    @torch.inference_mode()
    def step(
        self,
        x: Float32[np.ndarray, "b t w"],
        t: float,
        s: float,
        noise: Float32[np.ndarray, "b t u"],
        reveal: Bool[np.ndarray, "b t u"],
        given: Bool[np.ndarray, "b t u"],
        allowed: Float32[np.ndarray, "b t w"],
        previous: Float32[np.ndarray, "b t w"],
        extrapolate: float,
        churn: float,
    ) -> tuple[Float32[np.ndarray, "b t w"], Float32[np.ndarray, "b t w"]]:
        """One denoising step from time t to s: (x_s, x0_hat)."""

        def everywhere(value: float) -> torch.Tensor:
            return torch.full((len(x),), value, device=self.device)

        arrays = (self._to(value) for value in (noise, reveal, given, allowed, previous))
        x_s, x0 = self._step(
            self._to(x), everywhere(t), everywhere(s), *arrays, everywhere(extrapolate), everywhere(churn)
        )
        return x_s.cpu().numpy(), x0.cpu().numpy()

    def _to(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
