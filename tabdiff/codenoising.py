"""Draw series of any length with a denoiser of short windows, any cells given.

At every noise level the series is cut into overlapping windows, each is denoised, and the estimates are averaged where windows
overlap, the middle of a window counting most (as MultiDiffusion does for pictures, Bar-Tal et al. 2023). Where windows begin
moves from level to level, so that there is no place at which they always meet. By itself this forgets what is more than half a
window away. So a long stretch of which nothing is known is first filled by the Gaussian of the windows, place after place, each going
on from those before: a skeleton, which is then noised to a middle level and denoised as a whole.

Numbers that are given enter in closed form. At noise level sigma the denoiser says that a window is D(x) on average; with
the covariance of the training windows, what is still open about it is Gaussian of covariance C = S sigma^2 / (S + sigma^2).
Given some cells y, the others are then expected at D + C_ho C_oo^-1 (y - D_o), exact where the data are Gaussian (Tweedie
moment projection, Boys et al. 2023). The network needs no training for it, and all noise levels agree on what is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from tabdiff.layout import Layout
from tabdiff.runtime import Runtime
from tabdiff.sampling import NoiseSchedule
from tabdiff.windows import runs_of

_GOLDEN = (5**0.5 - 1) / 2  # its multiples fall evenly
_NUMBERS = 4_000_000  # in the windows that are denoised together: memory does not grow with the series
_REDRAWN = 0.1  # variance of noise on a skeleton, in that of the widest direction of a window
_CACHED = 64  # masks
_LEAST_WEIGHT = 1e-3  # of the ends of a window, so that the ends of a series have one


@dataclass(frozen=True)
class Known:
    """What is known of a series of K places.

    Attributes:
        x: (K, W) model view; read where given, and where drawing starts from it.
        given: (K, U) units that are known.
        allowed: (W,) 1 for states of categories that may be drawn.
    """

    x: Float32[np.ndarray, "k w"]
    given: Bool[np.ndarray, "k u"]
    allowed: Float32[np.ndarray, " w"]

    @classmethod
    def nothing(cls, layout: Layout, places: int) -> Known:
        """No cell is known and every state allowed."""
        width = layout.model_width
        return cls(
            np.zeros((places, width), np.float32), np.zeros((places, len(layout.units)), bool), np.ones(width, "f4")
        )


@dataclass(frozen=True)
class _Noise:
    """Randomness of S series: of each cell its noise, and when a category is revealed."""

    cells: Float32[np.ndarray, "s k u"]
    reveal: Float32[np.ndarray, "s k u"]


class Posterior:
    """What windows hold, given the denoiser's estimate and some of their numbers; M numbers a window, flattened.

    Args:
        basis, variance: of the covariance of training windows.
    """

    def __init__(self, basis: Float[np.ndarray, "m m"], variance: Float[np.ndarray, " m"]) -> None:
        self._basis, self._variance = basis.astype(np.float64), variance.astype(np.float64)
        self._draws: dict[bytes, tuple[Any, Any]] = {}

    def given(
        self,
        estimate: Float64[np.ndarray, "b m"],
        known: Bool[np.ndarray, "b m"],
        values: Float64[np.ndarray, "b m"],
        sigma: float,
    ) -> Float64[np.ndarray, "b m"]:
        """Estimates of the clean windows at noise level sigma, moved to agree with the known numbers."""
        result = np.where(known, values, estimate)
        count = known.sum(axis=1)
        mixed = np.flatnonzero((count > 0) & (count < known.shape[1]))
        if not len(mixed):
            return result
        left = self._variance * sigma**2 / (self._variance + sigma**2)
        covariance = (self._basis * left) @ self._basis.T
        precision = (self._basis / left) @ self._basis.T if 2 * count[mixed].max() > known.shape[1] else covariance
        _, group = np.unique(np.packbits(known[mixed], axis=1), axis=0, return_inverse=True)
        order = np.argsort(group.ravel(), kind="stable")
        for rows in np.split(mixed[order], np.flatnonzero(np.diff(group.ravel()[order])) + 1):
            see, hide = np.flatnonzero(known[rows[0]]), np.flatnonzero(~known[rows[0]])
            off = (values - estimate)[np.ix_(rows, see)]
            if len(see) <= len(hide):  # whichever system is smaller; both say the same
                change = off @ np.linalg.solve(covariance[np.ix_(see, see)], covariance[np.ix_(see, hide)])
            else:
                change = -np.linalg.solve(precision[np.ix_(hide, hide)], precision[np.ix_(hide, see)] @ off.T).T
            result[np.ix_(rows, hide)] += change
        return result

    def draw(
        self,
        known: Bool[np.ndarray, " m"],
        values: Float64[np.ndarray, "b m"],
        noise: Float32[np.ndarray, "b m"],
    ) -> Float64[np.ndarray, "b m"]:
        """Windows less their mean from the Gaussian of this covariance, given the known numbers."""
        key = known.tobytes()
        if key not in self._draws:
            if len(self._draws) >= _CACHED:
                self._draws.clear()
            covariance = (self._basis * self._variance) @ self._basis.T
            see, hide = np.flatnonzero(known), np.flatnonzero(~known)
            gain = np.linalg.solve(covariance[np.ix_(see, see)], covariance[np.ix_(see, hide)])
            left = covariance[np.ix_(hide, hide)] - covariance[np.ix_(hide, see)] @ gain
            spread, axes = np.linalg.eigh(left)
            self._draws[key] = (gain, axes * np.sqrt(spread.clip(0)))
        gain, root = self._draws[key]
        result = values.copy()
        result[:, ~known] = values[:, known] @ gain + noise[:, ~known] @ root.T
        return result


class SeriesSampler:
    """Draws series with the denoising program.

    Args:
        runtime: runs it.
        layout: slots and units of a place, without what the network is shown of the calendar.
        model, tensors: of the bundle.
    """

    def __init__(
        self, runtime: Runtime, layout: Layout, model: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
    ) -> None:
        self._own, self.layout = layout, layout.beside([(name, states) for name, states in model.get("dials", ())])
        self.runtime, self.length = runtime, int(model["length"])
        self.schedule = NoiseSchedule.of(model, tensors)
        self._mean = tensors["score.denoiser.mean"].astype(np.float64)
        self._posterior = Posterior(tensors["score.denoiser.basis"], tensors["score.denoiser.variance"])
        self._numbers = list(layout.number_units)
        # The widest directions of a window, which reach beyond it, keep nine tenths of what the skeleton says of them.
        largest = float(tensors["score.denoiser.variance"].max(initial=0.0))
        self._blend = self.schedule.time(max(self.schedule.sigma_min, (_REDRAWN * largest) ** 0.5))
        weight = np.sin(np.pi * (np.arange(self.length) + 0.5) / self.length) ** 2
        self._weight = (weight + _LEAST_WEIGHT).astype(np.float32)

    def draw(
        self,
        known: Known,
        numbers: Sequence[int],
        calendar: Callable[[int], Float32[np.ndarray, "k s"]] | None = None,
        *,
        steps: int,
        seed: int,
        strength: float = 1.0,
    ) -> Iterator[Float32[np.ndarray, "s k w"]]:
        """Yield the series of these numbers, several at a time, in order; each depends on the seed and its number only.

        Args:
            known: of all of them; K places, at least as many as a window has.
            calendar: what the network is shown of it, for the series of a number; if it is shown any.
            steps: noise levels.
            strength: below 1, cells that are not given start from `known.x` noised to that time (SDEdit, Meng et al. 2022).
        """
        places = len(known.x)
        most = max(1, _NUMBERS // (places * self.layout.model_width * 4))
        for start in range(0, len(numbers), most):
            noise = np.stack([self._noise(places, seed, number) for number in numbers[start : start + most]], axis=1)
            x, given, allowed = np.repeat(known.x[None], noise.shape[1], axis=0), known.given, known.allowed
            if calendar is not None:
                shown = np.stack([calendar(number) for number in numbers[start : start + most]])
                x = np.concatenate([x, shown], axis=2)
                given = np.pad(given, ((0, 0), (0, len(self.layout.units) - given.shape[1])), constant_values=True)
                allowed = np.pad(allowed, (0, shown.shape[2]), constant_values=1)
            if strength < 1:
                done = self._denoise(x, given, allowed, _Noise(*noise[:2]), steps, strength)
                yield done[..., : self._own.model_width]
                continue
            drawn = self._skeleton(x, given, noise[2]) if places > self.length else np.zeros_like(given)
            x = self._denoise(x, given | drawn, allowed, _Noise(*noise[:2]), steps, 1.0)
            if drawn.any():
                # Categories are no part of the skeleton: all of them are drawn now.
                blend = _Noise(noise[3], noise[4] * np.float32(self._blend))
                x = self._denoise(x, given | ~drawn, allowed, blend, steps, self._blend)
            yield x[..., : self._own.model_width]

    def _noise(self, places: int, seed: int, number: int) -> Float32[np.ndarray, "5 k u"]:
        """All randomness of one series, place by place: noise, and times to reveal categories; noise of the skeleton; and noise and
        times for what is drawn around it."""
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        turn = rng.random((2, len(self.layout.units)))
        drawn = self.layout.draw(rng, places, 3)
        # Categories revealed in one step do not know of each other: in one step come places far apart in time.
        reveal = 1.0 - (_radical_inverse(places)[:, None, None] + turn) % 1.0
        parts = (drawn[:, 0], reveal[:, 0], drawn[:, 1], drawn[:, 2], reveal[:, 1])
        return np.stack(parts, dtype=np.float32)

    def _skeleton(
        self, x: Float32[np.ndarray, "s k w"], given: Bool[np.ndarray, "k u"], noise: Float32[np.ndarray, "s k u"]
    ) -> Bool[np.ndarray, "k u"]:
        """Fill long stretches of which nothing is known with the Gaussian of the windows; returns what was filled.

        One window, then place after place given those of a window before it: moving windows alone forget what is more than half a
        window away.
        """
        drawn = np.zeros_like(given)
        slots, most = self.layout.number_slots, len(given) - self.length
        for start, end in runs_of(np.asarray(~given[:, : len(self._own.units)].any(axis=1))):
            first = start if end - start > self.length // 2 else end
            while first < end:
                begin = min(max(first + 1 - self.length, 0), most)
                last = min(begin + self.length, end)
                window = slice(begin, begin + self.length)
                known = (given | drawn)[window][:, self._numbers].ravel()
                flat = (len(x), -1)
                values = x[:, window][..., slots].reshape(flat) - self._mean
                filled = self._posterior.draw(known, values, noise[:, window][..., self._numbers].reshape(flat))
                filled = (filled + self._mean).reshape(len(x), self.length, -1)
                x[:, first:last, slots] = filled[:, first - begin : last - begin]
                drawn[first:last] = True
                first = last
        return drawn

    def _denoise(
        self,
        x: Float32[np.ndarray, "s k w"],
        given: Bool[np.ndarray, "k u"],
        allowed: Float32[np.ndarray, " w"],
        noise: _Noise,
        steps: int,
        strength: float,
    ) -> Float32[np.ndarray, "s k w"]:
        """Draw what is not given, from noise, or from `x` noised to the time `strength`."""
        if given.all():
            return x
        layout, schedule = self.layout, self.schedule
        slots, units = layout.number_slots, self._numbers
        known, given_slot = x, given[:, layout.unit_of_slot]
        middle = self._mean.reshape(self.length, -1).mean(axis=0).astype(np.float32)
        start = known[..., slots] if strength < 1 else np.where(given_slot[:, slots], known[..., slots], middle)
        x = known.copy()
        x[..., slots] = start + schedule.sigma(strength) * noise.cells[..., units]
        hidden = ~given & (noise.reveal <= strength)
        for index in layout.category_units:
            x[..., layout.units[index].slots] *= ~hidden[..., index, None]
        previous, previous_t = None, 0.0
        open_places = np.asarray(~given.all(axis=1))
        for step, (t, s) in enumerate(pairwise(np.linspace(strength, 0.0, steps + 1).tolist())):
            starts = self._starts(known.shape[1], step, open_places)
            x0 = self._estimate(x, known, given, allowed, starts, t, s)
            sigma, ahead = schedule.sigma(t), schedule.sigma(s)
            target = x0[..., slots]
            if previous is not None and s > 0:
                # DPM-Solver++(2M), as in tabdiff.sampling; the last step is first order.
                past = math.log(schedule.sigma(previous_t) / sigma)
                target = target + 0.5 * math.log(sigma / ahead) / past * (target - previous)
            share = ahead / sigma
            previous, previous_t = x0[..., slots], t
            x[..., slots] = share * x[..., slots] + (1 - share) * target
            for index in layout.category_units:
                now = hidden[..., index] & (noise.reveal[..., index] > s) & (noise.reveal[..., index] <= t)
                block = layout.units[index].slots
                x[..., block] = np.where(now[..., None], _pick(x0[..., block], noise.cells[..., index]), x[..., block])
        return np.where(given_slot, known, x)

    def _starts(self, places: int, step: int, open_places: Bool[np.ndarray, " k"]) -> Int[np.ndarray, " b"]:
        """Where windows begin in this step: half a window apart, shifted, and only where something is open."""
        stride = max(1, self.length // 2)
        shift = int(stride * (step * _GOLDEN % 1.0))
        starts = np.unique(np.clip(np.arange(shift - stride, places, stride), 0, places - self.length))
        before = np.concatenate([[0], np.cumsum(open_places)])
        return starts[before[starts + self.length] > before[starts]]

    def _estimate(
        self,
        x: Float32[np.ndarray, "s k w"],
        known: Float32[np.ndarray, "s k w"],
        given: Bool[np.ndarray, "k u"],
        allowed: Float32[np.ndarray, " w"],
        starts: Int[np.ndarray, " b"],
        t: float,
        s: float,
    ) -> Float32[np.ndarray, "s k w"]:
        """The clean series, from windows at these places; what no window covers is known."""
        layout, length = self.layout, self.length
        slots = layout.number_slots
        total = np.zeros_like(x)
        weight = np.zeros(x.shape[1], np.float32)
        for begin in starts:
            weight[begin : begin + length] += self._weight
        jobs = np.stack(np.meshgrid(np.arange(len(x)), starts, indexing="ij"), axis=-1).reshape(-1, 2)
        for part in range(0, len(jobs), self.runtime.chunk_rows):
            series, begin = jobs[part : part + self.runtime.chunk_rows].T
            at = begin[:, None] + np.arange(length)
            windows, mine = x[series[:, None], at], given[at]
            shown = mine.copy()
            shown[..., self._numbers] = False  # the network sees all numbers with noise; what is given comes in below
            x0 = self._run(windows, shown, allowed, t, s)
            if len(slots):
                mask, values = mine[..., self._numbers], known[series[:, None], at][..., slots]
                flat = (len(at), -1)
                moved = self._posterior.given(
                    x0[..., slots].reshape(flat).astype(np.float64),
                    mask.reshape(flat),
                    values.reshape(flat).astype(np.float64),
                    self.schedule.sigma(t),
                )
                x0[..., slots] = moved.reshape(len(at), length, -1)
            for row in range(len(at)):
                total[series[row], at[row]] += self._weight[:, None] * x0[row]
        covered = weight > 0
        total[:, covered] /= weight[covered, None]
        total[:, ~covered] = known[:, ~covered]
        return total

    def _run(
        self,
        windows: Float32[np.ndarray, "b t w"],
        given: Bool[np.ndarray, "b t u"],
        allowed: Float32[np.ndarray, " w"],
        t: float,
        s: float,
    ) -> Float32[np.ndarray, "b t w"]:
        nothing = np.zeros(given.shape, np.float32)
        states = np.ascontiguousarray(np.broadcast_to(allowed, windows.shape))
        arguments = (nothing, np.zeros(given.shape, bool), given, states, np.zeros_like(windows), 0.0, 0.0)
        return np.array(self.runtime.step(windows, t, s, *arguments)[1], np.float32)


def _pick(weights: Float[np.ndarray, "s k c"], u: Float32[np.ndarray, "s k"]) -> Float32[np.ndarray, "s k c"]:
    """One-hot states, drawn by inverse CDF."""
    cumulated = np.cumsum(weights, axis=-1, dtype=np.float64)
    state = (cumulated <= u[..., None] * cumulated[..., -1:] * (1 - 2.0**-23)).sum(axis=-1)
    return np.asarray(state[..., None] == np.arange(weights.shape[-1]), np.float32)


def _radical_inverse(count: int) -> Float64[np.ndarray, " k"]:
    """The van der Corput sequence in base 2: neighbours lie far apart."""
    number, result, part = np.arange(count), np.zeros(count), 0.5
    while number.any():
        result += part * (number & 1)
        number >>= 1
        part /= 2
    return result
