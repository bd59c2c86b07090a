"""How new rows are judged, whatever the champion is of: one piece in, what is to be committed out.

A judge of a table looks at rows one by one and keeps nothing. The judge of a series goes on where the last piece ended; what it keeps is
committed with the piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from tabdiff.columns import Column, Kind
from tabdiff.conversion import to_canonical
from tabdiff.operations.new_rows import Finding, Piece
from tabdiff.store.registry import Version
from tabdiff.store.scores import Alert, Part, Stream
from tabdiff.store.spec import SourceSpec

if TYPE_CHECKING:
    from tabdiff.model import Model

NEW_COLUMN = "new_column"  # a kind of finding that is told of once and stops nobody
_MOST_UNKNOWN = 20
CUT = 200  # characters of a value that an alert keeps


@dataclass(frozen=True)
class Outcome:
    """What one commit makes of a piece.

    Attributes:
        part, watermark: as of `Piece`; the watermark stays where it was if there is none.
        table: the scores, or None if there are none.
        alerts: new ones.
        flagged: rows or places that are flagged.
        model_id: the version that scored.
        state: of the stream from now on.
        changed: what open alerts of the stream are from now on.
        risen: how many of these are of a higher severity than they were told of.
        late: rows that came too late to be scored.
    """

    part: Part
    watermark: dict[str, Any] | None
    table: pl.DataFrame | None
    alerts: Sequence[Alert]
    flagged: int
    model_id: int
    state: bytes | None = None
    changed: Mapping[int, Alert] = field(default_factory=dict)
    risen: int = 0
    late: int = 0


class Judge(Protocol):
    """Judges the pieces of one stream, one after the other.

    Attributes:
        findings: what people should know of the pieces.
        order: column that the rows of a piece are to be in order of, if that matters.
        rule: that sets the flags.
        heard: what became of people's verdicts; None before there was anything to judge.
    """

    findings: list[Finding]
    order: str | None
    rule: Mapping[str, float]
    heard: Mapping[str, Any] | None

    def resume(self, stream: Stream) -> None:
        """Go on from what was committed to the stream."""
        ...

    def judge(self, piece: Piece) -> list[Outcome]:
        """What is to be committed, in this order, before the next piece.

        Raises:
            SchemaError: the rows do not fit the champion; nothing of the piece was taken in.
        """
        ...


class RowJudge:
    """Rows of a table; `hear` tells the model of people's verdicts."""

    order: str | None = None

    def __init__(
        self,
        model: Model,
        version: Version,
        spec: SourceSpec,
        rule: Mapping[str, float],
        max_alerts: int,
        hear: Callable[[Model], tuple[Model, Mapping[str, Any]]] | None = None,
    ) -> None:
        self.findings: list[Finding] = []
        self.hear = hear
        self.heard: Mapping[str, Any] | None = None
        self.model, self.version, self.spec, self.rule, self.max_alerts = model, version, spec, rule, max_alerts

    def resume(self, stream: Stream) -> None:
        """Rows stand for themselves."""

    def judge(self, piece: Piece) -> list[Outcome]:
        """Scores with the keys of the rows, and alerts of the highest."""
        if not piece.frame.height:
            return [Outcome(piece.part, piece.watermark, None, [], 0, self.version.id)]
        if self.hear is not None and self.heard is None:  # not before there are rows, as it takes a while
            self.model, self.heard = self.hear(self.model)
        table = self.model.score(piece.frame, **self.rule).to_frame()
        self._tell_unknown(piece)
        renamed = {name: f"input_{name}" if name in table.columns else name for name in self._keys(piece.frame)}
        keys = [piece.frame[name].alias(alias) for name, alias in renamed.items()]  # there may be none
        table = table.select(*keys, *table.columns)
        flagged = table.filter("flagged").sort("score", descending=True, maintain_order=True)
        alerts = [self._alert(row, piece.frame) for row in flagged.head(self.max_alerts).iter_rows(named=True)]
        return [Outcome(piece.part, piece.watermark, table, alerts, flagged.height, self.version.id)]

    def _tell_unknown(self, piece: Piece) -> None:
        """Columns that the champion was not fitted with: each is told of once, with the unit that brought it."""
        known = {column.name for column in self.model.schema.columns}
        for name in [name for name in piece.frame.columns if name not in known][:_MOST_UNKNOWN]:
            why = f"{piece.part.unit} has it; {self.version} was fitted without it and leaves it out. Train again to learn it"
            self.findings.append(Finding(NEW_COLUMN, name, why, str(self.version)))

    def _keys(self, frame: pl.DataFrame) -> list[str]:
        """Columns that say which row is which: those registered, and those that the schema knows as such."""
        roles = [c.name for c in self.model.schema.columns if c.role.value in ("id", "time", "entity")]
        wanted = [*self.spec.keys, *([self.spec.column] if self.spec.column else []), *roles]
        return [name for name in dict.fromkeys(wanted) if name in frame.columns]

    def _alert(self, row: dict[str, Any], frame: pl.DataFrame) -> Alert:
        reasons = [
            {"column": row[f"column_{k}"], "part": row[f"contribution_{k}"], "expected": row[f"expected_{k}"]}
            for k in range(1, 4)
            if f"column_{k}" in row
        ]
        held = frame.row(row["row"], named=True)
        values = {name: plain(value) for name, value in held.items()}
        highest = self.model.calibration.normal[-1] if self.model.calibration.normal else 0.0
        excess = row["score"] / highest if highest > 0 else None
        columns = self.model.schema.columns
        entities = [str(held[c.name]) for c in columns if c.role.value == "entity" and c.name in held]
        times = {c.name: _read_time(held[c.name], c) for c in columns if c.role.value == "time" and c.name in held}
        at = _time_of({**held, **times}, [*times, self.spec.column])
        entity = " / ".join(entities)[:CUT] or None
        return Alert(row["row"], row["score"], row["p_value"], reasons, values, at, entity, excess)


def _read_time(value: Any, column: Column) -> Any:
    """A time as the schema has it; CSV holds it as text."""
    if not isinstance(value, str) or column.kind is not Kind.DATETIME:
        return value
    return to_canonical(pl.Series(column.name, [value]), column)[0][0]


def _time_of(held: dict[str, Any], names: list[str | None]) -> datetime | None:
    """When the row was: the first of the columns that holds a time. One without a zone is taken for UTC."""
    for name in names:
        value = held.get(name) if name else None
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return None


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)[:CUT]
