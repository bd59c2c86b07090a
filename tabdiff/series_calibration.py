"""What normal time scores: whole stretches held out in turn, and faults planted into them.

Neighbouring places are alike, so what is held out is several windows long, and no training window reaches into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64

from tabdiff.calibration import Calibration
from tabdiff.codec import Codec
from tabdiff.columns import Kind
from tabdiff.config import DataConfig, FitConfig
from tabdiff.errors import TABLE, Problem, SchemaError
from tabdiff.expectation import Expectation
from tabdiff.nn.assemble import build_denoiser, build_window_score
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.programs import Step
from tabdiff.nn.runtime import TorchRuntime
from tabdiff.rhythm import Readings, refit_rhythm
from tabdiff.schema import Schema
from tabdiff.series import Recording
from tabdiff.series_check import WindowedPca, plant_and_look, summary
from tabdiff.series_scoring import TrackScorer, judge_places
from tabdiff.tracks import Plan, Track
from tabdiff.windows import Span, cut, runs_of, window_starts

_STRETCH = 4  # windows in a stretch that is held out
_TURNS = 5  # parts of time that are held out in turn ...
_TURNS_BELOW = 50_000  # ... below so many places; above, one part is enough
_THINNED = 4  # of so many neighbouring places one says what evidence is usual
_LEAST_SCATTER = 0.1  # of logarithms: of few held-out windows some are alike by chance
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
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of held-out time, fold by fold, with everything fitted on the rest; and what was found of planted faults.

    p-values count places. The threshold counts peaks of stretches of one window, which are more nearly independent.
    """
    found: list[Any] = []
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
        usual: list[Any] = []
        tensors = {f"score.{name}": value.numpy() for name, value in score.state_dict().items()}
        expectation = Expectation(codec, tensors, spans)
        trial = trial or (plan, codec, runtime, expectation, windows, held)
        for track, mine in zip(tracks, held, strict=True):
            for start, end in runs_of(mine):
                if end - start < window:
                    continue
                scorer = TrackScorer(runtime, spans, window, len(codec.columns), 0)
                part = slice(start, end)
                parts = [scorer.push(track.x[part], track.present[part], track.recorded[part]), scorer.finish()]
                if any(each.judged.any() for each in parts):
                    found.append((parts, track.x[part], expectation))
                    raw = expectation.raw(track.x[part])
                    evidence = expectation.evidence(raw, np.arange(0, len(raw), _THINNED))
                    usual.append(np.log(_over_windows(evidence, window // _THINNED) + 1e-9))
        if usual:
            logs = np.concatenate(usual)
            expectation.usual = np.exp(logs.mean(axis=0))
            expectation.scatter = logs.std(axis=0) + _LEAST_SCATTER
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
    errors = np.concatenate([each.errors[each.judged] for parts, _, _ in found for each in parts])
    views = [span.name for span in spans]
    samples = [errors[~np.isnan(errors[:, view, 0]), view] for view in range(len(views))]
    calibration = Calibration.fit(views, samples, [1.0] * len(views))
    plain = replace(calibration, normal=(np.inf,))  # nothing is unusual yet
    scores = [judge_places(plain, expectation, parts, x, window)[0] for parts, x, expectation in found]
    scores = [each[~np.isnan(each)] for each in scores]
    normal = np.sort(np.concatenate(scores))
    blocks = np.sort([each[i : i + window].max() for each in scores for i in range(0, len(each), window)])
    calibration = replace(calibration, normal=tuple(normal.tolist()))
    every = list({id(each): each for _, _, each in found}.values())
    stored = {**calibration.to_json(), "blocks": blocks.tolist()}
    stored["usual"] = np.exp(np.mean([np.log(each.usual) for each in every], axis=0)).tolist()
    stored["scatter"] = np.mean([each.scatter for each in every], axis=0).tolist()
    planted = _plant(recordings, schema, calibration, trial, spans, window, seed)
    return stored, planted


def _over_windows(evidence: Float64[np.ndarray, "k c"], length: int) -> Float64[np.ndarray, "k c"]:
    """Means over the places around each."""
    total = np.pad(np.cumsum(evidence, axis=0), ((1, 0), (0, 0)))
    places = np.arange(len(evidence))
    begin, end = np.maximum(places - length // 2, 0), np.minimum(places + length // 2 + 1, len(evidence))
    return np.asarray((total[end] - total[begin]) / (end - begin)[:, None])


def _plant(
    recordings: Sequence[Recording],
    schema: Schema,
    calibration: Calibration,
    trial: Any,
    spans: tuple[Span, ...],
    window: int,
    seed: int,
) -> dict[str, Any]:
    """Faults planted into the longest stretch that the first fold held out, for the model of the rest and for the control."""
    plan, codec, runtime, expectation, windows, held = trial
    raw = codec.layout.view("raw")
    control = WindowedPca(windows[..., raw])
    runs = [(end - start, index, start, end) for index, mine in enumerate(held) for start, end in runs_of(mine)]
    _, index, start, end = max(runs)
    recording = _part(recordings[index], start, end)

    def encoded(frame: pl.DataFrame, begin: int) -> Track:
        places = np.ones(frame.height, dtype=bool)
        part = Recording(recording.entity, recording.first + begin, frame, places, recording.rows, recording.places)
        track: Track = plan.encode(part, codec)
        return track

    def judge(frame: pl.DataFrame, begin: int) -> tuple[Any, Any]:
        track = encoded(frame, begin)
        scorer = TrackScorer(runtime, spans, window, len(codec.columns), 0)
        parts = [scorer.push(track.x, track.present, track.recorded), scorer.finish()]
        return judge_places(calibration, expectation, parts, track.x, window, unusual_below=1.0)

    def findable(broken: pl.DataFrame, frame: pl.DataFrame) -> bool:
        normal = expectation.raw(encoded(frame, 0).x)
        change = expectation.raw(encoded(broken, 0).x) - normal
        rows = np.flatnonzero(np.abs(change).max(axis=1) > 0)
        if not len(rows) or len(normal) < expectation.steps:
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
