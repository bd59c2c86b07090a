"""Faults of single sensors, planted into normal time: what a detector finds can be counted without labels.

Six kinds that sensors really have (after Sharma, Golubchik & Govindan 2010, and the taxonomy of TSB-UAD, Paparrizos et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

KINDS = ("spike", "drift", "stuck", "noise", "decorrelation", "shift")
_LENGTH = {"spike": 2, "drift": 48, "stuck": 48, "noise": 24, "decorrelation": 48, "shift": 48}
SIZES = {"spike": 6.0, "drift": 3.0, "noise": 1.5}  # in standard deviations of the sensor


@dataclass(frozen=True)
class Plant:
    """A fault in one sensor.

    Attributes:
        kind: one of KINDS.
        start, length: places.
    """

    kind: str
    start: int
    length: int

    @classmethod
    def draw(cls, kind: str, places: int, margin: int, rng: np.random.Generator) -> Plant:
        """Somewhere in a recording of K places, `margin` away from its ends if there is room; shorter where there is little."""
        length = max(1, min(_LENGTH[kind], places // 4))
        margin = max(0, min(margin, (places - length) // 2))
        return cls(kind, int(rng.integers(margin, places - length - margin + 1)), length)

    def apply(
        self, values: Float64[np.ndarray, " k"], deviation: float, rng: np.random.Generator
    ) -> Float64[np.ndarray, " k"]:
        """The recording of the sensor with the fault.

        Args:
            values: of the sensor, without gaps.
            deviation: standard deviation of the sensor in normal time.
        """
        broken = values.copy()
        here = slice(self.start, self.start + self.length)
        sign = rng.choice([-1.0, 1.0])
        if self.kind == "spike":
            broken[here] += sign * SIZES["spike"] * deviation
        elif self.kind == "drift":
            broken[here] += sign * SIZES["drift"] * deviation * np.linspace(0, 1, self.length)
        elif self.kind == "stuck":
            broken[here] = values[self.start]
        elif self.kind == "noise":
            broken[here] += rng.normal(0, SIZES["noise"] * deviation, self.length)
        else:
            # Another stretch of the same sensor: anywhere for a lost correlation, a few places away for a lost clock.
            far = len(values) - self.length
            near = int(rng.integers(8, 17)) * int(sign)
            start = int(rng.integers(0, far + 1)) if self.kind == "decorrelation" else self.start + near
            start = int(np.clip(start, 0, far))
            broken[here] = values[start : start + self.length]
        return broken
