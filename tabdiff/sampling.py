"""Draw rows: noise in, rows out, any cells given.

The samplers only choose numbers for `Runtime.step`: where to go next, how far to extrapolate, how much fresh noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from tabdiff.config import SampleConfig
from tabdiff.layout import Layout
from tabdiff.runtime import Runtime

# Every block of rows has its own generator, so a row does not depend on how many are asked for, nor on the chunk size.
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class NoiseSchedule:
    """sigma(t), the noise level of numbers at time t in [0, 1] (Karras et al. 2022, eq. 5), and the prior's shape.

    Attributes:
        root: (n, n) square root of the covariance of the noise over the n numbers of a row.
    """

    sigma_min: float
    sigma_max: float
    rho: float
    root: Float32[np.ndarray, "n n"]

    @classmethod
    def of(cls, model: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> NoiseSchedule:
        """That of a bundle."""
        root = tensors["score.denoiser.process.basis"] * tensors["score.denoiser.process.scale"]
        return cls(model["sigma_min"], model["sigma_max"], model["rho"], root)

    def sigma(self, t: float) -> float:
        """Noise level, in standard deviations of the encoded data; 0 at t = 0."""
        if t <= 0:
            return 0.0
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return float((low + t * (high - low)) ** self.rho)

    def time(self, sigma: float) -> float:
        """When the noise level is sigma: the inverse of `sigma`, at most 1."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return min(1.0, float((sigma ** (1 / self.rho) - low) / (high - low)))

    def prior(self, layout: Layout, noise: Float32[np.ndarray, "b t u"]) -> Float32[np.ndarray, "b t w"]:
        """x_1: numbers at sigma_max, every category masked."""
        x = np.zeros((*noise.shape[:-1], layout.model_width), dtype=np.float32)
        x[..., layout.number_slots] = self.sigma_max * noise[..., list(layout.number_units)] @ self.root.T
        return x


@dataclass(frozen=True)
class Condition:
    """What is known of the rows to draw, for N rows.

    Attributes:
        x: (N, T, W) encoded values, read where given.
        given: (N, T, U) units that are known.
        allowed: (N, T, W) 1 for category states that may be drawn.
    """

    x: Float32[np.ndarray, "n t w"]
    given: Bool[np.ndarray, "n t u"]
    allowed: Float32[np.ndarray, "n t w"]

    @classmethod
    def nothing(cls, layout: Layout, rows: int, length: int = 1) -> Condition:
        """No cell is known and every state allowed."""
        width, units = (1, length, layout.model_width), (1, length, len(layout.units))
        return cls(np.zeros(width, np.float32), np.zeros(units, bool), np.ones(width, np.float32)).repeated(rows)

    def repeated(self, rows: int) -> Condition:
        """One condition for many rows, without copies of it: memory does not grow with their number."""
        return Condition(*(np.broadcast_to(a, (rows, *a.shape[1:])) for a in (self.x, self.given, self.allowed)))

    def __getitem__(self, rows: slice) -> Condition:
        # Copies: torch does not take a read-only view, which a single row of a repeated condition is.
        return Condition(*(np.array(a[rows]) for a in (self.x, self.given, self.allowed)))


def draw(
    runtime: Runtime,
    layout: Layout,
    schedule: NoiseSchedule,
    condition: Condition,
    config: SampleConfig,
    seed: int,
    strength: float = 1.0,
) -> Iterator[Float32[np.ndarray, "b t w"]]:
    """Yield clean encoded windows, block after block, as many as the condition has rows.

    With `strength` below 1 cells that are not given start from `condition.x` noised to that time, not from pure noise
    (SDEdit, Meng et al. 2022): the rows come out like those they started from.
    """
    total, length = condition.x.shape[:2]
    for block, start in enumerate(range(0, total, BLOCK_ROWS)):
        rows = min(BLOCK_ROWS, total - start)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block,)))
        yield _denoise(runtime, layout, schedule, condition[start : start + rows], config, rng, length, strength)


def _denoise(
    runtime: Runtime,
    layout: Layout,
    schedule: NoiseSchedule,
    condition: Condition,
    config: SampleConfig,
    rng: np.random.Generator,
    length: int,
    strength: float,
) -> Float32[np.ndarray, "b t w"]:
    rows = len(condition.x)
    known = condition.given[..., layout.unit_of_slot]

    def noise() -> Any:
        # Drawn for a full block, so that the first rows of a block do not depend on how many follow.
        return layout.draw(rng, BLOCK_ROWS, length)[:rows]

    start = schedule.prior(layout, noise())
    reveal_at = _reveal_times(layout, rng, length)[:rows]
    if strength < 1:
        # A category is masked at time t with probability t: those that would be revealed before `strength` are not.
        masked = (reveal_at <= strength)[..., layout.unit_of_slot]
        start *= schedule.sigma(strength) / schedule.sigma_max
        start[..., layout.number_slots] += condition.x[..., layout.number_slots]
        start[..., layout.category_slots] = np.where(masked, start, condition.x)[..., layout.category_slots]
    x = np.where(known, condition.x, start)
    previous, previous_t = np.zeros_like(x), None
    steps = config.steps
    if not layout.number_units:  # a step that reveals nothing would do nothing
        steps = min(steps, max(1, len(layout.category_units) * length))
    times = np.linspace(strength, 0.0, steps + 1).tolist()
    for t, s in itertools.pairwise(times):
        extrapolate = 0.0
        if config.sampler == "dpmpp_2m" and previous_t is not None and s > 0:
            # DPM-Solver++(2M), Lu et al. 2022, algorithm 2, with lambda = -log sigma; the last step is first order.
            past = math.log(schedule.sigma(previous_t) / schedule.sigma(t))
            ahead = math.log(schedule.sigma(t) / schedule.sigma(s))
            extrapolate = 0.5 * ahead / past
        churn = 1.0 if config.sampler == "ddpm" else 0.0
        reveal = (reveal_at > s) & (reveal_at <= t)
        arguments = (noise(), reveal, condition.given, condition.allowed)
        x_s, x0 = runtime.step(x, t, s, *arguments, previous, extrapolate, churn)
        if config.sampler == "heun" and s > 0 and layout.number_units:
            x, x_s, x0 = np.asarray(x), np.asarray(x_s), np.asarray(x0)
            x_s = _heun(runtime, layout, schedule, x, x_s, x0, (t, s), arguments)
        x, previous, previous_t = x_s, x0, t
    return np.asarray(x)  # an engine may have kept it on its device until now


def _reveal_times(layout: Layout, rng: np.random.Generator, length: int) -> Any:
    """When each category of a row is revealed, shape (block, T, U): uniform for each, spread evenly within a row.

    Categories revealed in the same step are drawn independently of each other, which is wrong where they depend on each
    other. Spread times make that rare: with no more categories than steps, never.
    """
    times = np.zeros((BLOCK_ROWS, length, len(layout.units)))
    count = len(layout.category_units) * length
    if count:
        place = rng.permuted(np.tile(np.arange(count), (BLOCK_ROWS, 1)), axis=1)
        spread = 1.0 - (place + rng.random((BLOCK_ROWS, count))) / count
        times[..., list(layout.category_units)] = spread.reshape(BLOCK_ROWS, length, -1)
    return times


def _heun(
    runtime: Runtime,
    layout: Layout,
    schedule: NoiseSchedule,
    x: Float32[np.ndarray, "b t w"],
    x_s: Float32[np.ndarray, "b t w"],
    x0: Float32[np.ndarray, "b t w"],
    times: tuple[float, float],
    arguments: tuple[Any, Any, Any, Any],
) -> Float32[np.ndarray, "b t w"]:
    """Second-order correction of the numbers (Karras et al. 2022, algorithm 1, lines 6-8); categories keep the first step's."""
    t, s = times
    noise, reveal, given, allowed = arguments
    x0_s = np.asarray(runtime.step(x_s, s, 0.0, noise, reveal, given, allowed, x0, 0.0, 0.0)[1])
    sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
    slots = layout.number_slots
    slope_t = (x[..., slots] - x0[..., slots]) / sigma_t
    slope_s = (x_s[..., slots] - x0_s[..., slots]) / sigma_s
    corrected = x_s.copy()
    corrected[..., slots] = x[..., slots] + (sigma_s - sigma_t) * 0.5 * (slope_t + slope_s)
    known = given[..., layout.unit_of_slot]
    return np.where(known, x, corrected)
