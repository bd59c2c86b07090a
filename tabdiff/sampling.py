"""Draw rows: noise in, rows out, any cells given.

The samplers only choose numbers for `Runtime.step`: where to go next, how far to extrapolate, how much fresh noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int16

from tabdiff.config import SampleConfig
from tabdiff.layout import Layout
from tabdiff.revealing import Revealer
from tabdiff.runtime import Runtime
from tabdiff.turns import turns_of

# Every block of rows has its own generator, so a row does not depend on how many are asked for, nor on the chunk size.
BLOCK_ROWS = 1024
_BLOCKS_AT_ONCE = 4  # rows that show the same are computed once: the more rows, the more of them do


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
    *,
    order: Sequence[int] = (),
    ways: Sequence[Sequence[int]] = (),
    revealer: Revealer | None = None,
) -> Iterator[Float32[np.ndarray, "b t w"]]:
    """Yield clean encoded windows, block after block, as many as the condition has rows.

    With `strength` below 1 cells that are not given start from `condition.x` noised to that time, not from pure noise
    (SDEdit, Meng et al. 2022): the rows come out like those they started from.

    Args:
        order: the categories of a table without Gaussian numbers, first drawn first; a random order for each row if empty, or if there are too few steps
            for a step each.
        ways: how to cut that order into 1, 2, ... steps, as `tabdiff.turns` says; rows of which nothing is given are drawn so. The others take a step
            for each category, as what is independent may not be so given other columns.
        revealer: draws them in place of the engine, the same states up to rounding.
    """
    total, length = condition.x.shape[:2]
    blocks = [(start, min(BLOCK_ROWS, total - start)) for start in range(0, total, BLOCK_ROWS)]
    sources = [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block,))) for block in range(len(blocks))]
    if layout.number_units:
        for (start, rows), rng in zip(blocks, sources, strict=True):
            yield _denoise(runtime, layout, schedule, condition[start : start + rows], config, rng, length, strength)
        return
    turns = turns_of(order, ways[min(config.steps, len(ways)) - 1]) if len(ways) else []
    together = _BLOCKS_AT_ONCE if revealer is not None else 1
    for first in range(0, len(blocks), together):
        masked = [
            _masked(layout, condition, start, rows, config.steps, rng, strength, order, turns)
            for (start, rows), rng in zip(
                blocks[first : first + together], sources[first : first + together], strict=True
            )
        ]
        if revealer is None:
            yield _unmask(runtime, layout, condition[masked[0].rows], masked[0])
            continue
        x, when, uniform = (
            np.concatenate([getattr(part, name) for part in masked]) for name in ("x", "when", "uniform")
        )
        allowed = condition.allowed[masked[0].rows.start : masked[-1].rows.stop, 0]
        if not allowed.strides[0]:
            allowed = allowed[:1]
        done = revealer.reveal(x[:, 0], when[:, 0], uniform[:, 0], allowed)[:, None]
        yield from np.split(done, np.cumsum([part.rows.stop - part.rows.start for part in masked])[:-1])


def several(
    blocks: Iterator[Float32[np.ndarray, "b w"]], count: int = 2 * _BLOCKS_AT_ONCE
) -> Iterator[Float32[np.ndarray, "n w"]]:
    """Some blocks at a time: what is done column by column takes a thousand rows as long as several thousand."""
    while part := list(itertools.islice(blocks, count)):
        yield np.concatenate(part)


@dataclass(frozen=True)
class _Masked:
    """Rows whose open categories are to be drawn.

    Attributes:
        rows: where they are among all.
        x: (B, T, W) open blocks are zero.
        when: (B, T, K) in which step each category is drawn, -1 for never.
        uniform: (B, T, K) for the draws.
    """

    rows: slice
    x: Float32[np.ndarray, "b t w"]
    when: Int16[np.ndarray, "b t k"]
    uniform: Float32[np.ndarray, "b t k"]


def _masked(
    layout: Layout,
    condition: Condition,
    start: int,
    rows: int,
    steps: int,
    rng: np.random.Generator,
    strength: float,
    order: Sequence[int],
    turns: Sequence[int],
) -> _Masked:
    """What is open in these rows, and when each of it is drawn: in its turn where all is open.

    Otherwise one category of a row is drawn in a step while the steps suffice; more are shared out evenly. Categories drawn in the
    same step are independent of each other, which is wrong where they depend on each other.
    """
    place = slice(start, start + rows)
    one = strength == 1 and not condition.x.strides[0] and not condition.given.strides[0]
    part, categories = condition[:1] if one else condition[place], list(layout.category_units)
    length = part.x.shape[1]
    # Drawn for a full block, so that the first rows of a block do not depend on how many follow.
    times, ranks, uniform = rng.random((3, BLOCK_ROWS, length, len(categories)), dtype=np.float32)[:, :rows]
    x = np.where(part.given[..., layout.unit_of_slot], part.x, np.float32(0))
    if strength < 1:  # a category is masked at time t with probability t
        kept = np.zeros((rows, length, len(layout.units)), bool)
        kept[..., categories] = times > strength
        x = np.where(kept[..., layout.unit_of_slot], part.x, x)
    members = (layout.unit_of_slot[:, None] == categories).astype(np.float32)
    open_ = (x @ members == 0).reshape(len(x), -1)
    # In a fixed order the same columns would always share a step, which may be those that depend on each other most.
    if len(order) and len(order) * length <= steps:
        ranks = np.tile(np.argsort(order).astype(np.float32), length)[None]
    # Open categories by their rank, closed ones behind all of them.
    ranks = np.argsort(np.argsort(np.where(open_, ranks.reshape(len(ranks), -1), np.float32(np.inf)), axis=1), axis=1)
    count = np.maximum(open_.sum(axis=1, keepdims=True), 1)
    when = np.where(open_, np.where(count > steps, ranks * steps // count, ranks), -1).astype(np.int16)
    if turns:
        when = np.where(open_.all(axis=1, keepdims=True), np.tile(np.array(turns, np.int16), length), when)
    when = np.broadcast_to(when.reshape(-1, length, len(categories)), uniform.shape)
    return _Masked(place, np.broadcast_to(x, (rows, *x.shape[1:])), when, uniform)


def _unmask(runtime: Runtime, layout: Layout, condition: Condition, masked: _Masked) -> Float32[np.ndarray, "b t w"]:
    """Draw what is open by the engine's steps."""
    units, categories = (*masked.when.shape[:2], len(layout.units)), list(layout.category_units)
    when, noise = np.full(units, -1, np.int16), np.zeros(units, np.float32)
    when[..., categories], noise[..., categories] = masked.when, masked.uniform
    x: Any = np.array(masked.x)
    previous: Any = np.zeros_like(x)
    steps = int(masked.when.max(initial=-1)) + 1
    for step in range(steps):
        # A network without Gaussian numbers does not ask for the times.
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        x, previous = runtime.step(x, t, s, noise, when == step, condition.given, condition.allowed, previous, 0.0, 0.0)
    return np.asarray(x)


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
    times = np.linspace(strength, 0.0, config.steps + 1).tolist()
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
        if config.sampler == "heun" and s > 0:
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
