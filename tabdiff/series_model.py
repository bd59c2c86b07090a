"""A fitted model of a series: scores places, tells events, goes on where it stopped.

The same bundle, programs and calibration as a table's model; a window is a row with T > 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool

from tabdiff.attribution import Habits
from tabdiff.bundle import Bundle
from tabdiff.calibration import Calibration
from tabdiff.codec import Codec
from tabdiff.errors import ConfigError, Problem, SchemaError, warn
from tabdiff.events import Event, EventRules, EventTracker, Evidence
from tabdiff.excuses import Excuses, FalseAlarm
from tabdiff.expectation import Expectation, Reach
from tabdiff.flags import Rule, benjamini_hochberg
from tabdiff.runtime import Runtime
from tabdiff.schema import Schema
from tabdiff.series import Recording
from tabdiff.series_drawing import SeriesDrawing
from tabdiff.series_feedback import SeriesFeedback
from tabdiff.series_results import Part, Results, SeriesScores, joined
from tabdiff.series_scoring import PlaceErrors, TrackScorer, excess, expect_places, judge_places, track_errors
from tabdiff.tracks import Plan, Track
from tabdiff.windows import Span

_DAY = 86_400_000_000  # microseconds


@dataclass
class SeriesState:
    """What a model needs to go on: for each entity the last places, their sums, its sensors' last readings, flags and events."""

    entities: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `SeriesState(**values)` reads them."""
        return {"entities": self.entities}


class SeriesModel(SeriesFeedback, SeriesDrawing):
    """A fitted diffusion model of sensor series. Made by `tabdiff.fit_series` or `tabdiff.load_series`.

    Attributes:
        plan: how rows are laid on a grid of times.
        window, spans: places that are judged together, and the parts of a window that the views look at.
        calibration, blocks: what places and stretches of held-out time score.
        expectation, habits: what places should have held, and what normal time shows of sensors.
        false_alarms: what it was told of with `with_false_alarms`.
        results: makes the tables of scores.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        super().__init__(bundle, runtime)
        self.calibration = Calibration.from_json(bundle.calibration)
        described = bundle.model["series"]
        self.plan = Plan.from_json(described["plan"], bundle.config.series)
        self.window = int(described["window"])
        self.spans = tuple(Span(**span) for span in described["spans"])
        self.blocks = np.asarray(bundle.calibration["blocks"])
        reach = Reach(**described.get("reach", {}))
        self.expectation = Expectation(bundle.codec, bundle.tensors, self.spans, reach)
        self.habits = Habits.from_json(bundle.calibration)
        self.false_alarms = tuple(FalseAlarm.from_json(each) for each in bundle.calibration.get("false_alarms", ()))
        self._excuses: dict[str | None, Excuses] = {}
        self.results = Results(self.plan, self.calibration, self.blocks, self.expectation, described, runtime.provider)

    @property
    def schema(self) -> Schema:
        """Columns of the training table, sensors in columns."""
        return self.bundle.schema

    @property
    def codec(self) -> Codec:
        """The fitted transformation between places and arrays."""
        return self.bundle.codec

    def save(self, path: str | Path) -> None:
        """Write the model as one folder, replacing an older one at once.

        Raises:
            SourceError: the folder cannot be written; nothing half-written stays.
        """
        self.bundle.write(Path(path))

    def describe(self) -> str:
        """Interval and window in words."""
        text = f"{self.plan.grid.describe()}, windows of {self.window} places, {len(self.codec.columns)} sensors"
        rhythm = self.plan.rhythm
        if not rhythm.terms:
            return text
        return f"{text}, {len(rhythm.profiles)} of them by {' and '.join(rhythm.terms)}"

    # ---------------------------------------------------------------------------------------------------- rule

    @property
    def stretches_per_day(self) -> float | None:
        """How many windows follow each other in a day; None if times are steps."""
        grid = self.plan.grid
        return None if grid.unit == "steps" else _DAY / (grid.interval * self.window)

    def rule(self, alerts_per_day: float | None = None) -> Rule:
        """The threshold: above it lies the peak of a normal stretch of one window so often a day.

        Without a wish it is one a day, or as few as held-out time can tell of: none of its stretches passes.

        Raises:
            ConfigError: fewer are asked for than held-out time can tell of, or times are steps and have no days.
        """
        stored = self.bundle.config.score
        wanted = alerts_per_day if alerts_per_day is not None else stored.alerts_per_day
        count, per_day = len(self.blocks), self.stretches_per_day
        if per_day is None:
            if wanted is not None:
                raise ConfigError(
                    f"alerts_per_day={wanted:g} needs times; {self.plan.grid.time!r} counts steps. Leave it out."
                )
            return Rule("alerts_per_day", 1.0, float(count))
        if wanted is None:
            least = per_day / count * (1 + 1e-9)  # as if one more stretch of held-out time had passed
            return Rule("alerts_per_day", min(max(1.0, least), 0.5 * per_day), per_day)
        if not 0 < wanted < per_day:
            raise ConfigError(f"alerts_per_day lies between 0 and {per_day:g}, the windows in a day; got {wanted:g}.")
        return Rule("alerts_per_day", wanted, per_day)

    # --------------------------------------------------------------------------------------------------- score

    def score(
        self,
        frame: Any,
        *,
        alerts_per_day: float | None = None,
        fdr: float | None = None,
        contamination: float | None = None,
    ) -> SeriesScores:
        """Score every place of a series with the training table's columns.

        Args:
            frame: rows in any order, as in training.
            alerts_per_day: flag above the score that normal time passes so often a day; see `rule`.
            fdr, contamination: or by the places of `frame` together, as for a table.

        Raises:
            SchemaError: a column is missing or holds what the schema does not allow, or the times cannot be used.
            ConfigError: more than one rule is given, or one is out of range.
        """
        asked = {"alerts_per_day": alerts_per_day, "fdr": fdr, "contamination": contamination}
        given = {name: value for name, value in asked.items() if value is not None}
        if not given and self.bundle.config.score.contamination is not None:
            contamination = self.bundle.config.score.contamination
        if len(given) > 1:
            raise ConfigError(f"one rule sets the flags; got {given}. Leave one of them in.")
        for name in given.keys() - {"alerts_per_day"}:
            if not 0 < given[name] < 1:
                raise ConfigError(f"{name} is a share inside (0, 1); got {given[name]}. Example: {name}=0.05")
        rule = self.rule(alerts_per_day)
        tracks = list(self.plan.tracks(frame, self.schema, self.codec))
        parts = [self._whole(track) for track in tracks]
        if fdr is not None or contamination is not None:
            flags = self._flag_together(parts, fdr, contamination)
        else:
            threshold = rule.threshold(self.blocks)
            flags = [np.nan_to_num(part.score, nan=-np.inf) > threshold for part in parts]
        tables, events = [], []
        for track in tracks:
            events += self.results.silent(track.entity, track.first, track.observed, [0] * len(self.codec.columns))
        for part, flagged in zip(parts, flags, strict=True):
            tracker = EventTracker(self._event_rules())
            found = self._found(tracker, part, flagged) + tracker.finish()
            tables.append(self.results.table(part, flagged))
            events += [self.results.event(event, part) for event in found]
        unjudged = sum(int(np.isnan(part.score[part.recorded]).sum()) for part in parts)
        if unjudged:
            warn(
                f"{self.plan.grid.time}: {unjudged} places have no score, as their windows of {self.window} places hold too little; "
                "score longer stretches together"
            )
        return self.results.scores(tables, events)

    def start(self) -> SeriesState:
        """The state before the first row; for `score_next`."""
        return SeriesState()

    def score_next(
        self, state: SeriesState, frame: Any, *, alerts_per_day: float | None = None, last: bool = False
    ) -> SeriesScores:
        """Score the next rows of a stream; `state` moves on.

        A place is scored once, when all windows that hold it are known: T - 1 places after it. The scores are those of the
        whole series scored at once.

        Args:
            state: of this stream; changed.
            frame: rows later than all before, of any entities; None for no rows.
            last: nothing follows: score what is left, of all entities.

        Raises:
            SchemaError: as for `score`, or rows are not later than those before.
            ConfigError: as for `score`.
        """
        threshold = self.rule(alerts_per_day).threshold(self.blocks)
        tables, events = [], []
        seen = set()
        if frame is not None:
            for recording in self.plan.recordings(frame, self.schema):
                key = str(recording.entity)
                seen.add(key)
                part, tracker, silent = self._next(state, key, recording, last)
                flagged = np.nan_to_num(part.score, nan=-np.inf) > threshold
                found = self._found(tracker, part, flagged)
                found += tracker.finish() if last else []
                state.entities[key]["events"] = tracker.to_json()
                tables.append(self.results.table(part, flagged))
                events += [self.results.event(event, part) for event in found] + silent
        if last:
            for key in state.entities.keys() - seen:
                part, tracker = self._rest(state.entities[key], None if self.plan.grid.entity is None else key)
                flagged = np.nan_to_num(part.score, nan=-np.inf) > threshold
                found = self._found(tracker, part, flagged)
                tables.append(self.results.table(part, flagged))
                events += [self.results.event(event, part) for event in found + tracker.finish()]
        return self.results.scores(tables, events)

    # -------------------------------------------------------------------------------------------------- inside

    def _scorer(self, first: int, entity: Any) -> TrackScorer:
        excuses = self._excuses_of(None if entity is None else str(entity))
        return TrackScorer(self.runtime, self.spans, self.window, len(self.codec.columns), first, excuses)

    def _excuses_of(self, entity: str | None) -> Excuses | None:
        """What takes the false alarms of an entity out of the errors of its windows; None if there are none."""
        alarms = [alarm for alarm in self.false_alarms if alarm.entity == entity and len(alarm.x) >= self.window]
        if not alarms:
            return None
        if entity not in self._excuses:
            usual, slots = np.exp(np.asarray(self.calibration.center)), self.codec.layout.view("raw")
            self._excuses[entity] = Excuses(self.bundle.tensors, self.spans, slots, usual, self.window, alarms)
        return self._excuses[entity]

    def _whole(self, track: Track) -> Part:
        """Scores of a recording."""
        parts, done = [], 0
        for errors in track_errors(self._scorer(track.first, track.entity), track.x, track.present, track.recorded):
            low, high = max(0, done - self.window), done + len(errors.errors) + self.window
            recorded = track.recorded[done : done + len(errors.errors)]
            parts.append(self._part(track.entity, [errors], recorded, track.x[low:high], done - low))
            done += len(errors.errors)
        return joined(parts, track.x)

    def _rest(self, known: dict[str, Any], entity: Any) -> tuple[Part, EventTracker]:
        """The places of an entity that wait for windows which will not come."""
        scorer = self._scorer(0, entity)
        scorer.resume(known["scorer"])
        width = self.codec.layout.width
        past = np.asarray(known["past"], np.float32).reshape(-1, width)
        waiting = np.asarray(known["scorer"]["x"], np.float32).reshape(-1, width)
        recorded = np.asarray(known["scorer"]["recorded"], bool)
        part = self._part(entity, [scorer.finish()], recorded, np.concatenate([past, waiting]), len(past))
        return part, EventTracker.from_json(known["events"])

    def _next(
        self, state: SeriesState, key: str, recording: Recording, last: bool
    ) -> tuple[Part, EventTracker, list[dict[str, Any]]]:
        known = state.entities.get(key)
        scorer = self._scorer(recording.first, recording.entity)
        tracker = EventTracker(self._event_rules())
        skipped = 0
        before: Mapping[str, Any] = self.plan.start
        if known is not None:
            scorer.resume(known["scorer"])
            tracker = EventTracker.from_json(known["events"])
            before = known["readings"]
            due = scorer.first + len(known["scorer"]["recorded"])
            skipped = recording.first - due
            if skipped < 0:
                raise SchemaError(
                    [
                        Problem(
                            self.plan.grid.time,
                            "rows of a stream come later than those before",
                            f"{self.plan.grid.stamp(np.array([recording.first]))[0]}, where "
                            f"{self.plan.grid.stamp(np.array([due]))[0]} or later is due"
                            + ("" if recording.entity is None else f", of {recording.entity!r}"),
                            "Sort the rows, or score them as a whole.",
                        )
                    ]
                )
        filled = recording
        if skipped:
            nothing = pl.DataFrame(
                {name: [None] * skipped for name in recording.frame.columns}, schema=recording.frame.schema
            )
            filled = replace(
                recording,
                first=recording.first - skipped,
                frame=pl.concat([nothing, recording.frame]),
                recorded=np.concatenate([np.zeros(skipped, bool), recording.recorded]),
                places=recording.places + skipped,
            )
        track = self.plan.encode(filled, self.codec, before)
        held = [] if known is None else known["scorer"]["recorded"]
        past = np.zeros((0, track.x.shape[1]), np.float32) if known is None else np.asarray(known["past"], np.float32)
        waiting = np.zeros((0, track.x.shape[1]), np.float32)
        if known is not None and len(held):
            waiting = np.asarray(known["scorer"]["x"], np.float32)
        parts = [scorer.push(track.x, track.present, track.recorded)]
        parts += [scorer.finish()] if last else []
        around = np.concatenate([past.reshape(-1, track.x.shape[1]), waiting, track.x])
        part = self._part(
            recording.entity, parts, np.concatenate([np.asarray(held, bool), track.recorded]), around, len(past)
        )
        final = len(past) + len(part.score)
        readings = (
            self.plan.filled(self._even(recording), before).tail(1).select(pl.all().to_physical()).row(0, named=True)
        )
        unheard = [0] * len(self.codec.columns) if known is None else list(known["silent"])
        silent = self.results.silent(recording.entity, track.first, track.observed, unheard)
        state.entities[key] = {
            "scorer": scorer.to_json(),
            "silent": unheard,
            "events": tracker.to_json(),
            "readings": readings,
            "past": around[max(0, final - self.window) : final].tolist(),
        }
        return part, tracker, silent

    def _part(
        self, entity: Any, errors: list[PlaceErrors], recorded: Bool[np.ndarray, " k"], x: np.ndarray, past: int = 0
    ) -> Part:
        """Scores of final places; `x` has `past` places before the first of them, and may go on after the last."""
        raw = self.expectation.raw(x)
        judged = judge_places(self.calibration, self.expectation, self.habits, errors, raw, self.window, past)
        expected, ratio = expect_places(self.expectation, self.habits, judged, raw, past)
        recorded = recorded[: len(judged.score)]
        return Part(entity, errors[0].first, judged.score, judged.contributions, recorded, expected, ratio, x, past)

    def _found(self, tracker: EventTracker, part: Part, flagged: Bool[np.ndarray, " k"]) -> list[Event]:
        """Events that end in a part; those that go on stay in the tracker."""
        first, steps = part.first - part.past, self.expectation.evidence_steps

        def between(begin: int, end: int) -> np.ndarray | None:
            return excess(self.expectation, self.habits, part.x, begin - first, end - first)

        evidence = Evidence(
            between, first, self.window - steps // 2, self.window // 2, steps // 2, steps - 1 - steps // 2
        )
        return tracker.push(part.first, part.score, flagged, part.contributions, evidence)

    def _flag_together(
        self, parts: list[Part], fdr: float | None, contamination: float | None
    ) -> list[Bool[np.ndarray, " _"]]:
        score = np.concatenate([part.score for part in parts])
        known = np.flatnonzero(~np.isnan(score))
        flags = np.zeros(len(score), dtype=bool)
        if fdr is not None:
            flags[known] = benjamini_hochberg(self.calibration.p_value(score[known]), fdr)
        elif contamination is not None:
            flags[known[np.argsort(-score[known], kind="stable")[: round(contamination * len(known))]]] = True
        return np.split(flags, np.cumsum([len(part.score) for part in parts])[:-1])

    def _event_rules(self) -> EventRules:
        series = self.bundle.config.series
        return EventRules(series.count, series.within, series.cool_down)
