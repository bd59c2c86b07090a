"""One part of a series after the other: what is final, what is provisional, what is told of, and what is kept for the next part.

- Rows of the newest place of each entity wait for the next part, as more rows of that place may come; so a series that is cut anywhere
  falls on the same places as the whole. A row whose place was passed is late: it is handed back.
- A place is final when every window that holds it is known. The rest is judged by a copy of the state, with the windows there are, so
  that an event is told of when its rows arrive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tabdiff.errors import Problem, SchemaError
from tabdiff.operations.judges import plain
from tabdiff.operations.series_alerts import Seen, Told, entity_text, settle
from tabdiff.operations.series_trials import canonical_times
from tabdiff.operations.stream_state import ENTITY, PLACE, Kept
from tabdiff.series import Grid
from tabdiff.series_model import SeriesModel, SeriesState
from tabdiff.series_results import SeriesScores
from tabdiff.store.scores import Alert
from tabdiff.tracks import prepared

_LONGEST_GAP = 1_000_000  # places, as within one part
_ALONE = "None"  # how a model's state calls the one recording of a series without entities


@dataclass(frozen=True)
class Taken:
    """What a part comes to.

    Attributes:
        kept: for the next part.
        table: final places, as score files have them; None if there are none.
        alerts, changed: new ones, and what open ones become.
        late: rows whose place was passed, with entity and place; they were left out.
    """

    kept: Kept
    table: pl.DataFrame | None
    alerts: list[Alert]
    changed: dict[int, Alert]
    late: pl.DataFrame


class SeriesPass:
    """Takes in parts with one model. It holds nothing itself."""

    def __init__(self, model: SeriesModel, alerts_per_day: float | None) -> None:
        self.model, self.grid, self.alerts_per_day = model, model.plan.grid, alerts_per_day

    def take(self, kept: Kept, frame: pl.DataFrame, opened: Sequence[Mapping[str, Any]]) -> Taken:
        """Take in rows.

        Args:
            kept: after the rows before; not changed.
            frame: rows of the source.
            opened: open alerts of the stream.

        Raises:
            SchemaError: rows do not fit the model or those before, or their times cannot be used.
        """
        rows, late = self._placed(kept, frame)
        if not rows.height:
            return Taken(kept, None, [], {}, late)
        newest = rows[PLACE] == rows.select(pl.col(PLACE).max().over(ENTITY)).to_series()
        sources = rows.drop(ENTITY, PLACE)
        pushed, held = sources.filter(~newest), sources.filter(newest)
        touched = dict(rows.group_by(ENTITY).agg(pl.col(PLACE).max()).iter_rows())
        state = SeriesState(dict(kept.model.entities))
        final = self._score(state, pushed if pushed.height else None)
        # Entries are replaced and never changed in place, so that a shallow copy will do.
        copied = SeriesState({key: state.entities[key] for key in touched if key in state.entities})
        tail = self._score(copied, held, last=True)
        values = self._known(kept, sources)
        tables = [self._table(each, values) for each in (final, tail)]
        events = [
            *self._told(final, opened=False),
            *self._told(tail, opened=True),
            *self._silences(final, tail, copied, touched, opened),
        ]
        first = {key: int(known["scorer"]["first"]) for key, known in state.entities.items()}
        borders = {self._entity(key): first.get(key, place) for key, place in touched.items()}
        new, changed = self._settle(events, opened, borders, tables, kept.peaks)
        later = Kept(
            state,
            held,
            self._waiting(values, state, touched),
            self._peaks(state, tables[0], kept.peaks),
            self._tail(kept, tables[1], touched),
        )
        return Taken(later, _for_file(tables[0], self.model), new, changed, late)

    def finish(self, kept: Kept, opened: Sequence[Mapping[str, Any]]) -> Taken:
        """Nothing follows: what is left is judged with the windows there are, and every event ends."""
        held = kept.held if kept.held.width else None
        final = self._score(SeriesState(dict(kept.model.entities)), held, last=True)
        table = self._table(final, self._known(kept, held))
        everywhere = dict.fromkeys(alert["entity"] for alert in opened)
        new, changed = self._settle(self._told(final, opened=False), opened, everywhere, [table], kept.peaks)
        return Taken(Kept(), _for_file(table, self.model), new, changed, pl.DataFrame())

    def stamp(self, place: int) -> Any:
        """Time of a place."""
        return self.grid.stamp(np.array([place]))[0]

    def carried(self, alerts: Sequence[Mapping[str, Any]], grid: Grid) -> list[dict[str, Any]]:
        """Alerts of another version at the places that this one gives their times; none if it counts time in another way."""
        if (grid.unit, grid.entity is None) != (self.grid.unit, self.grid.entity is None):
            return []
        ends = ("first_place", "last_place")
        places = [self.grid.places_of(grid.stamp(np.array([alert[end] for end in ends]))).tolist() for alert in alerts]
        return [{**alert, **dict(zip(ends, mine, strict=True))} for alert, mine in zip(alerts, places, strict=True)]

    # ---------------------------------------------------------------------------------------------------- rows

    def _placed(self, kept: Kept, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows that were held back and new ones, with entity and place: those that go on, and those that are late."""
        config = self.model.plan.config
        readings = [config.sensor, config.value] if config.sensor and config.value else [*self.model.codec.columns]
        needed = [self.grid.time, *([self.grid.entity] if self.grid.entity else []), *readings]
        if any(name not in frame.columns for name in needed):
            self.model.schema.conform(prepared(frame, config))  # says what is missing
        rows = frame.select(name for name in needed if name in frame.columns)
        if kept.held.width:
            try:
                rows = pl.concat([kept.held, rows], how="vertical_relaxed")
            except pl.exceptions.PolarsError as error:
                found = str(error).strip().partition("\n")[0]
                cure = "Write the columns as before, or register the files as another source."
                rule = "rows of a stream have the columns of those before"
                raise SchemaError([Problem(self.grid.time, rule, found, cure)]) from error
        times = canonical_times(rows, config, self.model.schema)
        who = rows[self.grid.entity].cast(pl.String) if self.grid.entity else None
        for name, column in ((self.grid.time, times), (self.grid.entity, who)):
            if column is not None and column.null_count():
                found = f"{column.null_count()} missing"
                raise SchemaError([Problem(str(name), "every row needs one", found, "Leave these rows out.")])
        keys = pl.repeat(_ALONE, rows.height, eager=True) if who is None else who
        rows = rows.with_columns(keys.alias(ENTITY), pl.Series(PLACE, self.grid.places_of(times), dtype=pl.Int64))
        due = {key: _due(known) for key, known in kept.model.entities.items()}
        border = rows[ENTITY].replace_strict(due, default=None, return_dtype=pl.Int64)
        is_late = (rows[PLACE] < border).fill_null(False)
        rows, late = rows.filter(~is_late), rows.filter(is_late)
        self._refuse_gaps(rows, due)
        return rows, late

    def _refuse_gaps(self, rows: pl.DataFrame, due: Mapping[str, int]) -> None:
        for (key,), mine in rows.partition_by(ENTITY, as_dict=True).items():
            places = np.unique(mine[PLACE].to_numpy())
            before = np.append(due.get(str(key), int(places[0])) - 1, places[:-1])
            jump = places - before
            if jump.max(initial=0) > _LONGEST_GAP:
                at = int(jump.argmax())
                found = f"nothing between {self.stamp(before[at])} and {self.stamp(places[at])}{self.of(str(key))}"
                rule = f"a gap is at most {_LONGEST_GAP:,} intervals ({self.grid.describe()})"
                raise SchemaError([Problem(self.grid.time, rule, found, "Correct the stamp, or leave the row out.")])

    def of(self, key: str) -> str:
        """The entity in a message."""
        return f" of {self.grid.entity} {key!r}" if self.grid.entity else ""

    def _score(self, state: SeriesState, rows: pl.DataFrame | None, *, last: bool = False) -> SeriesScores:
        return self.model.score_next(state, rows, alerts_per_day=self.alerts_per_day, last=last)

    def _known(self, kept: Kept, rows: pl.DataFrame | None) -> pl.DataFrame:
        """What was recorded at places that are not final and at new ones, as entity, place and sensors."""
        parts = [kept.values] if kept.values.width else []
        for recording in self.model.plan.recordings(rows, self.model.schema) if rows is not None else ():
            places = recording.first + np.flatnonzero(recording.recorded)
            known = recording.frame.filter(pl.Series(recording.recorded)).select(
                pl.lit(str(recording.entity)).alias(ENTITY),
                pl.Series(PLACE, places, dtype=pl.Int64),
                *self.model.codec.columns,
            )
            parts.append(known)
        return pl.concat(parts, how="vertical_relaxed") if parts else pl.DataFrame()

    def _waiting(self, values: pl.DataFrame, state: SeriesState, touched: Mapping[str, int]) -> pl.DataFrame:
        """Values of places that were taken in and are not final. Those that were held back come again with their rows."""
        first = {key: int(known["scorer"]["first"]) for key, known in state.entities.items()}
        begin = pl.col(ENTITY).replace_strict(first, default=None, return_dtype=pl.Int64)
        held = pl.col(ENTITY).replace_strict(dict(touched), default=None, return_dtype=pl.Int64)
        return values.filter((pl.col(PLACE) >= begin) & (held.is_null() | (pl.col(PLACE) < held)))

    # ---------------------------------------------------------------------------------------------------- tables

    def _table(self, scores: SeriesScores, values: pl.DataFrame) -> pl.DataFrame | None:
        """Everything that is known of scored places, in full precision."""
        if not scores.places.height:
            return None
        keys = [*([self.grid.entity] if self.grid.entity else []), self.grid.time]
        places = scores.places.select(*keys, "score", "p_value", "flagged")
        numbers = self.model.expectation.columns()
        bands = [
            scores.expected[f"{name}{end}"].alias(f"{word}:{name}")
            for name in numbers
            for end, word in (("", "expected"), ("_low", "low"), ("_high", "high"))
        ]
        parts = [scores.contributions[name].alias(f"part:{name}") for name in self.model.codec.columns]
        who = places[self.grid.entity] if self.grid.entity else pl.repeat(_ALONE, places.height, eager=True)
        found = places.with_columns(
            who.alias(ENTITY),
            pl.Series(PLACE, self.grid.places_of(places[self.grid.time]), dtype=pl.Int64),
            *bands,
            *parts,
        )
        recorded = values.rename({name: f"value:{name}" for name in self.model.codec.columns})
        return found.join(recorded, on=[ENTITY, PLACE], how="left", maintain_order="left")

    def _tail(self, kept: Kept, tail: pl.DataFrame | None, touched: Mapping[str, int]) -> pl.DataFrame:
        """Provisional places: those of this part, and those of entities of which nothing came."""
        known = kept.tail
        if known.width:
            known = known.filter(~pl.col(self.grid.entity).is_in(list(touched))) if self.grid.entity else known.clear()
        mine = _for_file(tail, self.model)
        return known if mine is None else pl.concat([known, mine], how="diagonal_relaxed")

    def _seen(self, key: str, place: int, tables: Sequence[pl.DataFrame | None]) -> Seen | None:
        """What was recorded and expected at one of the places."""
        for table in tables:
            mine = None if table is None else table.filter((table[ENTITY] == key) & (table[PLACE] == place))
            if mine is not None and mine.height:
                row = mine.row(0, named=True)
                words = ("value", "expected", "low", "high")
                return Seen({name: [plain(row.get(f"{w}:{name}")) for w in words] for name in self.model.codec.columns})
        return None

    def _peaks(
        self, state: SeriesState, final: pl.DataFrame | None, before: Mapping[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """What was seen at the peaks of events that go on, as their places are in no part to come."""
        peaks = {}
        for key, known in state.entities.items():
            current = known["events"]["current"]
            if current is None:
                continue
            seen = self._seen(key, current["peak"], [final])
            if seen is not None:
                peaks[key] = {"place": current["peak"], "sensors": dict(seen.sensors)}
            elif key in before and before[key]["place"] == current["peak"]:
                peaks[key] = before[key]
        return peaks

    # ---------------------------------------------------------------------------------------------------- events

    def _settle(
        self,
        events: Sequence[Told],
        opened: Sequence[Mapping[str, Any]],
        borders: Mapping[str | None, int | None],
        tables: Sequence[pl.DataFrame | None],
        peaks: Mapping[str, dict[str, Any]],
    ) -> tuple[list[Alert], dict[int, Alert]]:
        def seen(event: Told) -> Seen | None:
            found = self._seen(event.key, event.peak, tables)
            kept = peaks.get(event.key)
            return Seen(kept["sensors"]) if found is None and kept and kept["place"] == event.peak else found

        reach = self.model.window
        return settle(events, opened, borders, reach=reach, seen=seen, stamp=self.stamp, time=self.grid.time)

    def _entity(self, key: str) -> str | None:
        return entity_text(key) if self.grid.entity else None

    def _told(self, scores: SeriesScores, *, opened: bool) -> list[Told]:
        """Abnormal stretches, in order of time."""
        highest = float(self.model.blocks[-1])
        found = []
        for row in scores.events.filter(pl.col("kind") == "abnormal").sort("start").iter_rows(named=True):
            key = str(row[self.grid.entity]) if self.grid.entity else _ALONE
            first, last, peak = self._places(row["start"], row["end"], row["peak"])
            excess = row["severity"] / highest if highest > 0 else None
            sensors = tuple(zip(row["sensors"], row["shares"], strict=True))
            told = (first, last, peak, row["severity"], row["p_value"], excess, sensors, opened)
            found.append(Told(key, self._entity(key), "event", *told))
        return found

    def _silences(
        self,
        final: SeriesScores,
        tail: SeriesScores,
        state: SeriesState,
        newest: Mapping[str, int],
        opened: Sequence[Mapping[str, Any]],
    ) -> list[Told]:
        """Sensors that stopped reporting: found in this part, or told of before and still silent; severity is for how many places."""
        found: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
        for alert in opened:
            key = _ALONE if alert["entity"] is None else str(alert["entity"])
            if alert["kind"] == "silent" and key in newest:
                names = tuple(reason["column"] for reason in alert["reasons"])
                found[key, names] = (alert["first_place"], alert["last_place"])
        lasting = set(found)
        for scores in (final, tail):
            for row in scores.events.filter(pl.col("kind") == "silent").iter_rows(named=True):
                key = str(row[self.grid.entity]) if self.grid.entity else _ALONE
                first, last = self._places(row["start"], row["end"])
                found[key, tuple(row["sensors"])] = (first, last)
                lasting.discard((key, tuple(row["sensors"])))
        silences = []
        for (key, names), (first, last) in found.items():
            unheard = dict(zip(self.model.codec.columns, state.entities[key]["silent"], strict=True))
            still = any(unheard[name] > 0 for name in names)
            if not still and (key, names) in lasting:
                continue  # heard again; the alert stays as it was told last
            last = newest[key] if still else last
            length = last - first + 1
            limit = self.model.results.silence_limit(names[0])
            shares = tuple((name, 1 / len(names)) for name in names)
            told = (first, last, last, float(length), 1.0, length / limit, shares, still)
            silences.append(Told(key, self._entity(key), "silent", *told))
        return silences

    def _places(self, *times: Any) -> list[int]:
        kind = self.grid.stamp(np.array([0])).dtype
        return [int(place) for place in self.grid.places_of(pl.Series(self.grid.time, times, dtype=kind))]


def _due(known: Mapping[str, Any]) -> int:
    """The first place of an entity that was not taken in."""
    return int(known["scorer"]["first"]) + len(known["scorer"]["recorded"])


def _for_file(table: pl.DataFrame | None, model: SeriesModel) -> pl.DataFrame | None:
    """Final places as score files have them: numbers of sensors in single precision, categories as text."""
    if table is None:
        return None
    numbers = set(model.expectation.columns())
    single = [
        pl.col(name).to_physical().cast(pl.Float32)
        if name.partition(":")[2] in numbers or name.startswith("part:")
        else pl.col(name).cast(pl.String)
        for name in table.columns
        if name.startswith(("value:", "expected:", "low:", "high:", "part:"))
    ]
    return table.with_columns(single).drop(ENTITY, PLACE)
