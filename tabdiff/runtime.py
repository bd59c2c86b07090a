"""The seam between what a model computes and the engine that computes it.

Everything above (encoding, sampling loops, calibration, decoding) is written once, in numpy, against this protocol.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32


class Runtime(Protocol):
    """An engine that runs the two programs of a model. Shapes: B rows, T time, W slots, U units, V views, C columns."""

    @property
    def provider(self) -> str:
        """Engine and device that really run, recorded in every result."""
        ...

    @property
    def chunk_rows(self) -> int:
        """Rows that are best scored in one call."""
        ...

    @property
    def on_device(self) -> bool:
        """Whether a sampler's state stays with the engine between steps, on a device of its own."""
        ...

    def score(
        self, x: Float32[np.ndarray, "b t w"], present: Bool[np.ndarray, "b t u"]
    ) -> Float32[np.ndarray, "b t v c"]:
        """Reconstruction error per view and column."""
        ...

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
        """One denoising step from time t to s: (x_s, x0_hat).

        An engine may leave both where it computed them, to be handed to the next step as they are: a caller who wants
        the numbers says `numpy.asarray`.
        """
        ...
