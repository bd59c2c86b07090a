"""What normal time scores: whole stretches held out in turn, and faults planted into them.

Neighbouring places are alike, so what is held out is several windows long, and no training window reaches into it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64

from tabdiff.attribution import Habits
from tabdiff.calibration import Calibration
from tabdiff.codec import Codec
from tabdiff.columns import Kind
from tabdiff.config import DataConfig, FitConfig
from tabdiff.errors import TABLE, Problem, SchemaError
from tabdiff.expectation import Expectation, Reach
from tabdiff.nn.assemble import build_denoiser, build_window_score
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.programs import Step
from tabdiff.nn.runtime import TorchRuntime
from tabdiff.rhythm import Readings, refit_rhythm
from tabdiff.schema import Schema
from tabdiff.series import Recording
from tabdiff.series_check import WindowedPca, plant_and_look, summary
from tabdiff.series_scoring import PlaceErrors, TrackScorer, judge_places, track_errors
from tabdiff.tracks import Plan, Track
from tabdiff.windows import Span, cut, runs_of, window_starts

_STRETCH = 4  # windows in a stretch that is held out
_TURNS = 5  # parts of time that are held out in turn ...
_TURNS_BELOW = 50_000  # ... below so many places; above, one part is enough
_HABITS = 16_384  # places of held-out time, about, that say what evidence is usual
_TRIED = 512  # places of held-out time, about, that say how much to look at
_PLANTS = 4  # faults of each kind
MOST_WINDOWS = 8192  # that programs are fitted to; drawn at random


@dataclass(frozen=True)
class Fold:
    """Tracks, and which of their places are held out."""

    tracks: Sequence[Track]
    held_out: Sequence[Bool[np.ndarray, " _"]]

    def windows(self, length: int, count: int, seed: int, *, held_out: bool = False) -> tuple[Any, Any]:
        """At most `count` windows that lie wholly in (or out of) held-out time: encoded, and what was observed of them."""
        places = []
        for index, (track, held) in enumerate(zip(self.tracks, self.held_out, strict=True)):
            starts = window_starts(track.recorded, length)
            mine = held if held_out else ~held
            whole = np.convolve(mine.astype(np.int64), np.ones(length, dtype=np.int64), mode="valid") == length
            starts = starts[whole[starts]] if len(starts) else starts
            places.append(np.stack([np.full(len(starts), index), starts], axis=1))
        every = np.concatenate(places)
        if len(every) > count:
            every = every[np.sort(np.random.default_rng(seed).permutation(len(every))[:count])]
        parts = [(self.tracks[i], every[every[:, 0] == i, 1]) for i in np.unique(every[:, 0])]
        if not parts:
            return np.zeros((0, length, self.tracks[0].x.shape[1]), np.float32), np.zeros((0, length, 0), bool)
        x = np.concatenate([cut(track.x, starts, length) for track, starts in parts])
        seen = np.concatenate([track.observed[starts[:, None] + np.arange(length)] for track, starts in parts])
        return x, seen


def fit_codec(
    plan: Plan,
    recordings: Sequence[Recording],
    schema: Schema,
    data: DataConfig,
    keep: Sequence[Bool[np.ndarray, " _"]] | None = None,
) -> Codec:
    """The codec of recordings without gaps, in the units of their entities; of the places that are kept."""
    names = [column.name for column in schema.modelled]
    frames = []
    for index, each in enumerate(recordings):
        frame = plan.timeless(each.frame.select(names), each.entity, each.first + np.arange(each.frame.height))
        if keep is not None:
            frame = frame.filter(pl.Series(keep[index]))
        if frame.height:
            frames.append(plan.normalised(plan.filled(frame, plan.start), each.entity))
    return Codec.fit(pl.concat(frames, how="vertical_relaxed"), schema, data)


def readings_of(
    plan: Plan, recordings: Sequence[Recording], schema: Schema, keep: Sequence[Bool[np.ndarray, " _"]] | None = None
) -> list[Readings]:
    """Numbers in the units of their entities, as the search for a rhythm reads them."""
    names = [column.name for column in schema.modelled if column.kind in (Kind.CONTINUOUS, Kind.INTEGER)]
    found = []
    for index, each in enumerate(recordings):
        frame = plan.normalised(each.frame.select(names), each.entity)
        values = {name: frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy().copy() for name in names}
        if keep is not None:
            values = {name: np.where(keep[index], x, np.nan) for name, x in values.items()}
        found.append(Readings(each.first, values))
    return found


def folds_of(recordings: Sequence[Recording], window: int) -> list[list[Bool[np.ndarray, " _"]]]:
    """For each turn, which places of each recording are held out: every so many-th stretch of a few windows."""
    places = sum(len(recording.recorded) for recording in recordings)
    turns = _TURNS if places < _TURNS_BELOW else 1
    every = _TURNS if turns > 1 else 7
    stretch = max(2 * window, min(_STRETCH * window, places // (2 * every)))
    folds = []
    for turn in range(turns):
        before = 0
        held = []
        for recording in recordings:
            number = (before + np.arange(len(recording.recorded))) // stretch
            held.append(np.asarray(number % every == turn))
            before += len(recording.recorded)
        folds.append(held)
    return folds


def calibrate(
    plan: Plan,
    recordings: Sequence[Recording],
    schema: Schema,
    data: DataConfig,
    folds: Sequence[Sequence[Bool[np.ndarray, " _"]]],
    spans: tuple[Span, ...],
    window: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Scores of held-out time, fold by fold, with everything fitted on the rest; how well it is expected; and what was found of planted faults.

    p-values count places. The threshold counts peaks of stretches of one window, which are more nearly independent.
    """
    found: list[_Stretch] = []
    trial: Any = None
    whole = plan
    for held in folds:
        rest = [~mine for mine in held]
        if not any(mine.any() for mine in rest):
            continue
        plan = replace(whole, rhythm=refit_rhythm(whole.rhythm, readings_of(whole, recordings, schema, rest)))
        codec = fit_codec(plan, recordings, schema, data, rest)
        tracks = [plan.encode(recording, codec) for recording in recordings]
        fold = Fold(tracks, held)
        windows, _ = fold.windows(window, MOST_WINDOWS, seed)
        if not len(windows):
            continue
        score = build_window_score(_unlearned(codec), codec, windows, spans)
        runtime = TorchRuntime(score, Step(score.denoiser), "cpu")
        tensors = {f"score.{name}": value.numpy() for name, value in score.state_dict().items()}
        expectation = Expectation(codec, tensors, spans)
        trial = trial or (plan, codec, runtime, expectation, windows, held)
        for index, (track, mine) in enumerate(zip(tracks, held, strict=True)):
            for start, end in runs_of(mine):
                if end - start < window:
                    continue
                part = slice(start, end)
                scorer = TrackScorer(runtime, spans, window, len(codec.columns), 0)
                parts = list(track_errors(scorer, track.x[part], track.present[part], track.recorded[part]))
                if any(each.judged.any() for each in parts):
                    seen = track.observed[part]
                    found.append(_Stretch((index, start), parts, expectation.raw(track.x[part]), seen, expectation))
    if not found:
        raise SchemaError(
            [
                Problem(
                    TABLE,
                    "some time must be recorded without gaps",
                    "no window that is half full",
                    "Fill gaps, or give a longer interval.",
                )
            ]
        )
    errors = np.concatenate([each.errors[each.judged] for stretch in found for each in stretch.parts])
    views = [span.name for span in spans]
    samples = [errors[~np.isnan(errors[:, view, 0]), view] for view in range(len(views))]
    calibration = Calibration.fit(views, samples, [1.0] * len(views))
    scores = [judge_places(calibration, each.expectation, None, each.parts, each.raw, window).score for each in found]
    scores = [each[~np.isnan(each)] for each in scores]
    normal = np.sort(np.concatenate(scores))
    blocks = np.sort([each[i : i + window].max() for each in scores for i in range(0, len(each), window)])
    calibration = replace(calibration, normal=tuple(normal.tolist()))
    # Habits of the sensors in the very time that faults are planted into would tell them from it.
    stored = {**calibration.to_json(), "blocks": blocks.tolist(), **_habits(found, window).to_json()}
    _, index, start, _ = _longest(trial[-1])
    others = [each for each in found if each.begin != (index, start)] or found
    planted = _plant(recordings, schema, calibration, _habits(others, window), trial, spans, window, seed)
    return stored, _expected(found), planted


@dataclass(frozen=True)
class _Stretch:
    """Held-out time: where it begins (recording, place), errors of its places, what they hold, what of it was recorded, and what the rest of the time leads to expect."""

    begin: tuple[int, int]
    parts: Sequence[PlaceErrors]
    raw: Float64[np.ndarray, "k r"]
    seen: Bool[np.ndarray, "k c"]
    expectation: Expectation


def _some(found: Sequence[_Stretch]) -> Sequence[_Stretch]:
    """Some of the stretches, evenly spread, if there are many."""
    return found[:: math.ceil(sum(len(each.raw) for each in found) / _HABITS)]


def _habits(found: Sequence[_Stretch], window: int) -> Habits:
    seen = []
    for each in _some(found):
        every = np.arange(len(each.raw))
        seen.append((each.expectation.evidence(each.raw, every), each.expectation.unchanged(each.raw)))
    return Habits.fit(seen, window, found[0].expectation.evidence_steps)


def _expected(found: Sequence[_Stretch]) -> dict[str, Any]:
    """How much is looked at to say what is expected, so that it is least far off; and where 95 % of what was recorded lies around that, for each number."""
    found = _some(found)
    reaches = Reach.all(found[0].expectation.span)
    every = math.ceil(sum(len(each.raw) for each in found) / _TRIED)
    misses = np.zeros(len(reaches))
    for each in found:
        places = np.arange(every // 2, len(each.raw), every)
        for number, reach in enumerate(reaches):
            if len(places):
                misses[number] += len(places) * each.expectation.reaching(reach).miss(each.raw, each.seen, places)
    best = reaches[int(np.argmin(misses))]
    off: dict[str, list[Any]] = {name: [] for name in found[0].expectation.columns()}
    for each in found:
        expectation = each.expectation.reaching(best)
        recorded, expected = expectation.numbers(each.raw), expectation.numbers(expectation.given_others(each.raw))
        for name, parts in off.items():
            seen = each.seen[:, expectation.codec.columns.index(name)]
            parts.append((recorded[name] - expected[name])[seen])
    usual = found[0].expectation.reaching(best).deviations()
    band = {name: _middle(np.concatenate(parts), usual[name]) for name, parts in off.items()}
    return {"reach": best.to_json(), "band": band}


def _middle(values: Float64[np.ndarray, " n"], deviation: float) -> tuple[float, float]:
    """Where 95 % of them lie; of a sensor that sent nothing in held-out time, where a Gaussian would have them."""
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (-1.96 * deviation, 1.96 * deviation)
    return float(low), float(high)


def _longest(held: Sequence[Bool[np.ndarray, " _"]]) -> tuple[int, int, int, int]:
    """Length, recording, start and end of the longest stretch that is held out."""
    return max((end - start, index, start, end) for index, mine in enumerate(held) for start, end in runs_of(mine))


def _plant(
    recordings: Sequence[Recording],
    schema: Schema,
    calibration: Calibration,
    habits: Habits,
    trial: Any,
    spans: tuple[Span, ...],
    window: int,
    seed: int,
) -> dict[str, Any]:
    """Faults planted into the longest stretch that the first fold held out, for the model of the rest and for the control."""
    plan, codec, runtime, expectation, windows, held = trial
    raw = codec.layout.view("raw")
    control = WindowedPca(windows[..., raw])
    _, index, start, end = _longest(held)
    recording = _part(recordings[index], start, end)

    def encoded(frame: pl.DataFrame, begin: int) -> Track:
        places = np.ones(frame.height, dtype=bool)
        part = Recording(recording.entity, recording.first + begin, frame, places, recording.rows, recording.places)
        track: Track = plan.encode(part, codec)
        return track

    def judge(frame: pl.DataFrame, begin: int) -> tuple[Any, Any]:
        track = encoded(frame, begin)
        scorer = TrackScorer(runtime, spans, window, len(codec.columns), 0)
        parts = list(track_errors(scorer, track.x, track.present, track.recorded))
        raw = expectation.raw(track.x)
        judged = judge_places(calibration, expectation, habits, parts, raw, window, unusual_below=1.0)
        return judged.score, judged.contributions

    def findable(broken: pl.DataFrame, frame: pl.DataFrame) -> bool:
        normal = expectation.raw(encoded(frame, 0).x)
        change = expectation.raw(encoded(broken, 0).x) - normal
        rows = np.flatnonzero(np.abs(change).max(axis=1) > 0)
        if not len(rows) or len(normal) < expectation.span:
            return False
        with_it, without = expectation.surprise(change[rows[0] : rows[-1] + 1], normal, int(rows[0]))
        return bool(with_it > without)

    found = plant_and_look(
        recording,
        schema,
        judge,
        lambda frame, begin: control.score(encoded(frame, begin).x[:, raw]),
        findable,
        deviation=deviations(recordings, schema),
        window=window,
        each=_PLANTS,
        rng=np.random.default_rng(seed),
    )
    return summary(found)


def deviations(recordings: Sequence[Recording], schema: Schema) -> dict[str, float]:
    """Standard deviation of every number over all recordings."""
    frame = pl.concat([each.frame for each in recordings], how="vertical_relaxed")
    numbers = [c.name for c in schema.modelled if c.kind in (Kind.CONTINUOUS, Kind.INTEGER)]
    return {name: float(frame[name].drop_nulls().cast(pl.Float64).to_numpy().std()) for name in numbers}


def _part(recording: Recording, start: int, end: int) -> Recording:
    return Recording(
        recording.entity,
        recording.first + start,
        recording.frame[start:end],
        recording.recorded[start:end],
        recording.rows[:0],
        recording.places[:0],
    )


def _unlearned(codec: Codec) -> Denoiser:
    """A denoiser that is there because a scoring program has one; no view of windows asks it."""
    return build_denoiser(codec.layout, np.zeros((2, 1, codec.layout.width), np.float32), FitConfig())
