"""A fitted model of a series: scores places, tells events, goes on where it stopped.

The same bundle, programs and calibration as a table's model; a window is a row with T > 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64

from tabdiff.bundle import Bundle
from tabdiff.calibration import Calibration
from tabdiff.codec import Codec
from tabdiff.errors import ConfigError, Problem, SchemaError, warn
from tabdiff.events import Event, EventRules, EventTracker
from tabdiff.expectation import Expectation
from tabdiff.flags import Rule, benjamini_hochberg
from tabdiff.runtime import Runtime
from tabdiff.schema import Schema
from tabdiff.series import Recording
from tabdiff.series_drawing import SeriesDrawing
from tabdiff.series_scoring import PlaceErrors, TrackScorer, judge_places
from tabdiff.tracks import Plan, Track
from tabdiff.windows import Span

_DAY = 86_400_000_000  # microseconds
_FAR_OUTSIDE = 2.0  # times the band around what was expected
_NAMED = 3  # sensors that an event and a score table name


@dataclass(frozen=True)
class SeriesScores:
    """Scores of the places of a series.

    Attributes:
        places: one row for each recorded place, in order of entity and time: the entity and time columns, `score` (higher is
            more abnormal; null where too little was recorded), `p_value`, `flagged`, and the sensors that carry the score.
        contributions: one row for each of these, one column for each sensor.
        expected: the same rows: for each number `NAME`, `NAME_low` and `NAME_high`, what the neighbouring places led to expect.
        events: one row each: entity, kind ("abnormal", or "silent" for sensors that stopped reporting; then severity is for how many
            places), start, end, peak, severity, p_value, sensors, and whether it may go on.
        provider: engine and device that computed the errors.
    """

    places: pl.DataFrame
    contributions: pl.DataFrame
    expected: pl.DataFrame
    events: pl.DataFrame
    provider: str


@dataclass
class SeriesState:
    """What a model needs to go on: for each entity the last places, their sums, its sensors' last readings, flags and events."""

    entities: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `SeriesState(**values)` reads them."""
        return {"entities": self.entities}


class SeriesModel(SeriesDrawing):
    """A fitted diffusion model of sensor series. Made by `tabdiff.fit_series` or `tabdiff.load_series`."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.calibration = Calibration.from_json(bundle.calibration)
        described = bundle.model["series"]
        self.plan = Plan.from_json(described["plan"], bundle.config.series)
        self.window = int(described["window"])
        self.spans = tuple(Span(**span) for span in described["spans"])
        self.blocks = np.asarray(bundle.calibration["blocks"])

    @property
    def schema(self) -> Schema:
        """Columns of the training table, sensors in columns."""
        return self.bundle.schema

    @property
    def codec(self) -> Codec:
        """The fitted transformation between places and arrays."""
        return self.bundle.codec

    @cached_property
    def expectation(self) -> Expectation:
        """What places should have held."""
        return Expectation(self.codec, self.bundle.tensors, self.spans)

    def save(self, path: str | Path) -> None:
        """Write the model as one folder, replacing an older one at once.

        Raises:
            SourceError: the folder cannot be written; nothing half-written stays.
        """
        self.bundle.write(Path(path))

    def describe(self) -> str:
        """Interval and window in words."""
        return f"{self.plan.grid.describe()}, windows of {self.window} places, {len(self.codec.columns)} sensors"

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
            events += self._silent(track.entity, track.first, track.observed, [0] * len(self.codec.columns))
        for part, flagged in zip(parts, flags, strict=True):
            tracker = EventTracker(self._event_rules())
            found = (
                tracker.push(part.first, part.score, flagged, part.contributions, part.unexpected) + tracker.finish()
            )
            tables.append(self._table(part, flagged))
            events += [self._event(event, part) for event in found]
        unjudged = sum(int(np.isnan(part.score[part.recorded]).sum()) for part in parts)
        if unjudged:
            warn(
                f"{self.plan.grid.time}: {unjudged} places have no score, as their windows of {self.window} places hold too little; "
                "score longer stretches together"
            )
        return self._scores(tables, events)

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
            frame: rows later than all before, of any entities.
            last: nothing follows: score what is left.

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
                found = tracker.push(part.first, part.score, flagged, part.contributions, part.unexpected)
                found += tracker.finish() if last else []
                state.entities[key]["events"] = tracker.to_json()
                tables.append(self._table(part, flagged))
                events += [self._event(event, part) for event in found] + silent
        return self._scores(tables, events)

    # ------------------------------------------------------------------------------------------------ new normal

    def accept(self, frame: Any) -> SeriesModel:
        """The same model for which the levels in these rows are normal: a shift that was looked at and is there to stay.

        Each number of each entity whose median has left its band is moved by as much. This one is not changed; `save` the
        result.

        Raises:
            SchemaError: as for `score`.
        """
        units = {entity: dict(found) for entity, found in self.plan.units.items()}
        band = self.bundle.model["series"]["band"]
        for recording in self.plan.recordings(frame, self.schema):
            mine = units.setdefault(str(recording.entity), {})
            for name in self.expectation.columns():
                values = recording.frame[name].drop_nulls().cast(pl.Float64)
                if len(values):
                    shift, scale = mine.get(name, (0.0, 1.0))
                    middle: Any = values.median()
                    own = self.bundle.config.series.normalise == "entity" and str(recording.entity) in self.plan.units
                    usual = shift if own else float(self.plan.start[name]) + shift
                    moved = float(middle) - usual
                    if abs(moved) > scale * max(map(abs, band[name])):
                        mine[name] = (shift + moved, scale)
        described = self.bundle.model["series"]
        plan = replace(self.plan, units=units).to_json()
        model = {**self.bundle.model, "series": {**described, "plan": plan}}
        return SeriesModel(replace(self.bundle, model=model), self.runtime)

    # -------------------------------------------------------------------------------------------------- inside

    def _scorer(self, first: int) -> TrackScorer:
        return TrackScorer(self.runtime, self.spans, self.window, len(self.codec.columns), first)

    def _whole(self, track: Track) -> _Part:
        scorer = self._scorer(track.first)
        parts = [scorer.push(track.x, track.present, track.recorded), scorer.finish()]
        return self._part(track.entity, parts, track.recorded, track.x)

    def _next(
        self, state: SeriesState, key: str, recording: Recording, last: bool
    ) -> tuple[_Part, EventTracker, list[dict[str, Any]]]:
        known = state.entities.get(key)
        scorer = self._scorer(recording.first)
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
            self.plan.filled(recording.frame.select(self.codec.columns), before)
            .tail(1)
            .select(pl.all().to_physical())
            .row(0, named=True)
        )
        unheard = [0] * len(self.codec.columns) if known is None else list(known["silent"])
        silent = self._silent(recording.entity, track.first, track.observed, unheard)
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
    ) -> _Part:
        """Scores of final places; `x` has `past` places before the first of them, and may go on after the last."""
        score, contributions = judge_places(self.calibration, self.expectation, errors, x, past)
        places = slice(past, past + len(score))
        expected = np.full((len(score), self.expectation.width), np.nan)
        unexpected = np.zeros(len(score), dtype=bool)
        if len(x) >= self.expectation.steps and len(score):
            raw = self.expectation.raw(x)
            expected = self.expectation.given_neighbours(raw)[places]
            unexpected = self._unexpected(raw[places], expected)
        return _Part(entity, errors[0].first, score, contributions, recorded[: len(score)], expected, unexpected)

    def _unexpected(
        self, raw: Float64[np.ndarray, "k r"], expected: Float64[np.ndarray, "k r"]
    ) -> Bool[np.ndarray, " k"]:
        """Places at which a number lies far outside its band."""
        found, middle = self.expectation.numbers(raw), self.expectation.numbers(expected)
        outside = np.zeros(len(raw), dtype=bool)
        for name, (low, high) in self.bundle.model["series"]["band"].items():
            off = found[name] - middle[name]
            outside |= (off < _FAR_OUTSIDE * low - 1e-9) | (off > _FAR_OUTSIDE * high + 1e-9)
        return outside

    def _flag_together(
        self, parts: list[_Part], fdr: float | None, contamination: float | None
    ) -> list[Bool[np.ndarray, " k"]]:
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

    def _stamp(self, places: Any) -> pl.Series:
        return self.plan.grid.stamp(np.asarray(places, dtype=np.int64))

    def _table(self, part: _Part, flagged: Bool[np.ndarray, " k"]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        keep = np.flatnonzero(part.recorded)
        score = part.score[keep]
        p_value = np.where(np.isnan(score), np.nan, self.calibration.p_value(np.nan_to_num(score, nan=np.inf)))
        columns: dict[str, Any] = (
            {}
            if self.plan.grid.entity is None
            else {self.plan.grid.entity: pl.Series([part.entity] * len(keep), dtype=pl.String)}
        )
        columns[self.plan.grid.time] = self._stamp(part.first + keep)
        columns |= {"score": score, "p_value": p_value, "flagged": flagged[keep]}
        order = np.argsort(-part.contributions[keep], axis=1, kind="stable")[:, :_NAMED]
        for place in range(order.shape[1]):
            index = order[:, place]
            columns[f"sensor_{place + 1}"] = pl.Series([self.codec.columns[i] for i in index], dtype=pl.String)
            columns[f"contribution_{place + 1}"] = np.take_along_axis(part.contributions[keep], order, axis=1)[:, place]
        table = pl.DataFrame(columns).with_columns(pl.col("score", "p_value").fill_nan(None))
        contributions = pl.DataFrame(part.contributions[keep], schema=list(self.codec.columns), orient="row")
        return table, contributions, self._expected(part, keep)

    def _expected(self, part: _Part, keep: Any) -> pl.DataFrame:
        band = self.bundle.model["series"]["band"]
        values = self.expectation.numbers(part.expected[keep])
        columns = {}
        for name, middle in values.items():
            low, high = band[name]
            columns[name], columns[f"{name}_low"], columns[f"{name}_high"] = middle, middle + low, middle + high
        units = self.plan.units.get(str(part.entity), {})
        return pl.DataFrame(columns).with_columns(
            pl.col(f"{name}{end}") * units[name][1] + units[name][0]
            for name in values
            if name in units
            for end in ("", "_low", "_high")
        )

    def _event(self, event: Event, part: _Part) -> dict[str, Any]:
        named = event.sensors(self.codec.columns)[:_NAMED]
        start, end = event.core or (event.start, event.end)
        start, end, peak = self._stamp([start, end, event.peak])
        row: dict[str, Any] = {} if self.plan.grid.entity is None else {self.plan.grid.entity: part.entity}
        above = len(self.blocks) - int(np.searchsorted(self.blocks, event.severity, side="left"))
        return row | {
            "kind": "abnormal",
            "start": start,
            "end": end,
            "peak": peak,
            "severity": event.severity,
            "p_value": (1 + above) / (len(self.blocks) + 1),
            "flagged": event.flagged,
            "sensors": [name for name, _ in named],
            "shares": [share for _, share in named],
            "open": event.open,
        }

    def _silent(
        self, entity: Any, first: int, observed: Bool[np.ndarray, "k c"], unheard: list[int]
    ) -> list[dict[str, Any]]:
        """Sensors that stop reporting for much longer than training showed, each told once; `unheard` counts places and moves on."""
        longest = self.bundle.model["series"]["silence"]
        found: dict[tuple[int, int], list[str]] = {}
        for column, name in enumerate(self.codec.columns):
            limit = 2 * longest[name] + self.window // 2
            heard = np.flatnonzero(observed[:, column])
            ends = np.append(heard, len(observed))
            for start, end in zip(np.append(-1, heard) + 1, ends, strict=True):
                before = unheard[column] if start == 0 else 0
                if before <= limit < before + end - start:
                    found.setdefault((first + int(start) - before, first + int(end) - 1), []).append(name)
            before = 0 if len(heard) else unheard[column]
            unheard[column] = before + len(observed) - (int(heard[-1]) + 1 if len(heard) else 0)
        rows = []
        for (start, end), names in found.items():
            begin, stop = self._stamp([start, end])
            row: dict[str, Any] = {} if self.plan.grid.entity is None else {self.plan.grid.entity: entity}
            row |= {"kind": "silent", "start": begin, "end": stop, "peak": begin, "severity": float(end - start + 1)}
            row |= {
                "p_value": None,
                "flagged": 0,
                "sensors": names,
                "shares": [1 / len(names)] * len(names),
                "open": True,
            }
            rows.append(row)
        return rows

    def _scores(self, tables: list[Any], events: list[dict[str, Any]]) -> SeriesScores:
        grid = self.plan.grid
        kind = self._stamp([0]).dtype
        schema: dict[str, Any] = {} if grid.entity is None else {grid.entity: pl.String}
        schema |= {
            "kind": pl.String,
            "start": kind,
            "end": kind,
            "peak": kind,
            "severity": pl.Float64,
            "p_value": pl.Float64,
        }
        schema |= {
            "flagged": pl.Int64,
            "sensors": pl.List(pl.String),
            "shares": pl.List(pl.Float64),
            "open": pl.Boolean,
        }
        if not tables:
            return SeriesScores(
                pl.DataFrame(), pl.DataFrame(), pl.DataFrame(), pl.DataFrame([], schema=schema), self.runtime.provider
            )
        places, contributions, expected = (pl.concat(each) for each in zip(*tables, strict=True))
        found = pl.DataFrame(events, schema=schema).sort("severity", descending=True)
        return SeriesScores(places, contributions, expected, found, self.runtime.provider)


@dataclass(frozen=True)
class _Part:
    """Final places of one recording."""

    entity: Any
    first: int
    score: Float64[np.ndarray, " k"]
    contributions: Float64[np.ndarray, "k c"]
    recorded: Bool[np.ndarray, " k"]
    expected: Float64[np.ndarray, "k r"]
    unexpected: Bool[np.ndarray, " k"]
