"""From scores of places to the tables that users get: places, expected values, events, silent sensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64

from tabdiff.calibration import Calibration
from tabdiff.events import Event
from tabdiff.expectation import Expectation
from tabdiff.tracks import Plan

_NAMED = 3  # sensors that an event and a score table name


@dataclass(frozen=True)
class SeriesScores:
    """Scores of the places of a series.

    Attributes:
        places: one row for each recorded place, in order of entity and time: the entity and time columns, `score` (higher is
            more abnormal; null where too little was recorded), `p_value`, `flagged`, and the sensors that carry the score.
        contributions: one row for each of these, one column for each sensor.
        expected: the same rows: for each number `NAME`, `NAME_low` and `NAME_high`, what the other readings led to expect, those that are out of order left out.
        events: one row each: entity, kind ("abnormal", or "silent" for sensors that stopped reporting; then severity is for how many
            places), start and end of what was out of the ordinary, peak, severity, p_value, sensors, and whether it may go on.
        provider: engine and device that computed the errors.
    """

    places: pl.DataFrame
    contributions: pl.DataFrame
    expected: pl.DataFrame
    events: pl.DataFrame
    provider: str


@dataclass(frozen=True)
class Part:
    """Final places of one recording.

    Attributes:
        expected: what the other readings lead to expect at each place.
        ratio: how uncertain that is beside the usual, as some readings are not believed.
        x: encoded places, of which `past` lie before the first final one; some may follow the last.
    """

    entity: Any
    first: int
    score: Float64[np.ndarray, " k"]
    contributions: Float64[np.ndarray, "k c"]
    recorded: Bool[np.ndarray, " k"]
    expected: Float64[np.ndarray, "k r"]
    ratio: Float64[np.ndarray, "k r"]
    x: Float32[np.ndarray, "m w"]
    past: int = 0


def joined(parts: Sequence[Part], x: Float32[np.ndarray, "k w"]) -> Part:
    """Parts of one recording that follow each other, as one; `x` are its places."""
    names = ("score", "contributions", "recorded", "expected", "ratio")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **arrays, x=x, past=0)


@dataclass(frozen=True)
class Results:
    """Makes the tables.

    Attributes:
        plan: names and times.
        calibration: p-values of places.
        blocks: sorted peaks of stretches of held-out time, for the p-values of events.
        expectation: what numbers should have been.
        described: what the model says of its series: the window, bands, and how long sensors were silent in training.
        provider: engine and device.
    """

    plan: Plan
    calibration: Calibration
    blocks: Float64[np.ndarray, " b"]
    expectation: Expectation
    described: Mapping[str, Any]
    provider: str

    @property
    def sensors(self) -> tuple[str, ...]:
        """Names of the C modelled columns."""
        return self.expectation.codec.columns

    def stamp(self, places: Any) -> pl.Series:
        """Times of places."""
        return self.plan.grid.stamp(np.asarray(places, dtype=np.int64))

    def table(self, part: Part, flagged: Bool[np.ndarray, " k"]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """Of the recorded places of a part: scores, contributions and expected values."""
        keep = np.flatnonzero(part.recorded)
        score = part.score[keep]
        p_value = np.where(np.isnan(score), np.nan, self.calibration.p_value(np.nan_to_num(score, nan=np.inf)))
        columns: dict[str, Any] = (
            {}
            if self.plan.grid.entity is None
            else {self.plan.grid.entity: pl.Series([part.entity] * len(keep), dtype=pl.String)}
        )
        columns[self.plan.grid.time] = self.stamp(part.first + keep)
        columns |= {"score": score, "p_value": p_value, "flagged": flagged[keep]}
        order = np.argsort(-part.contributions[keep], axis=1, kind="stable")[:, :_NAMED]
        for place in range(order.shape[1]):
            index = order[:, place]
            columns[f"sensor_{place + 1}"] = pl.Series([self.sensors[i] for i in index], dtype=pl.String)
            columns[f"contribution_{place + 1}"] = np.take_along_axis(part.contributions[keep], order, axis=1)[:, place]
        table = pl.DataFrame(columns).with_columns(pl.col("score", "p_value").fill_nan(None))
        contributions = pl.DataFrame(part.contributions[keep], schema=list(self.sensors), orient="row")
        return table, contributions, self.expected(part, keep)

    def expected(self, part: Part, keep: Any) -> pl.DataFrame:
        """Numbers with their bands, in the user's units."""
        band = self.described["band"]
        values, ratio = self.expectation.numbers(part.expected[keep]), self.expectation.of_numbers(part.ratio[keep])
        ends = []
        for end in range(3):
            frame = pl.DataFrame({name: x + ratio[name] * (0.0, *band[name])[end] for name, x in values.items()})
            places = part.first + np.asarray(keep, dtype=np.int64)
            ends.append(self.plan.timed(self.plan.restored(frame, part.entity), part.entity, places))
        return pl.DataFrame(
            [
                frame[name].alias(f"{name}{end}")
                for name in values
                for frame, end in zip(ends, ("", "_low", "_high"), strict=True)
            ]
        )

    def event(self, event: Event, part: Part) -> dict[str, Any]:
        """One row of the table of events."""
        named = event.sensors(self.sensors)[:_NAMED]
        start, end = event.span or (event.start, event.end)
        start, end, peak = self.stamp([start, end, event.peak])
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

    def silence_limit(self, name: str) -> int:
        """For how many places a sensor may be silent."""
        return int(2 * self.described["silence"][name] + self.described["window"] // 2)

    def silent(
        self, entity: Any, first: int, observed: Bool[np.ndarray, "k c"], unheard: list[int]
    ) -> list[dict[str, Any]]:
        """Sensors that stop reporting for much longer than training showed, each told once; `unheard` counts places and moves on."""
        found: dict[tuple[int, int], list[str]] = {}
        for column, name in enumerate(self.sensors):
            limit = self.silence_limit(name)
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
            begin, stop = self.stamp([start, end])
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

    def scores(self, tables: list[Any], events: list[dict[str, Any]]) -> SeriesScores:
        """All parts as one."""
        grid = self.plan.grid
        kind = self.stamp([0]).dtype
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
                pl.DataFrame(), pl.DataFrame(), pl.DataFrame(), pl.DataFrame([], schema=schema), self.provider
            )
        places, contributions, expected = (pl.concat(each) for each in zip(*tables, strict=True))
        found = pl.DataFrame(events, schema=schema).sort("severity", descending=True)
        return SeriesScores(places, contributions, expected, found, self.provider)
