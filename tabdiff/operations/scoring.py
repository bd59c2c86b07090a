"""Score what is new in a source, each row exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from tabdiff.errors import SchemaError
from tabdiff.operations.jobs import ScoreJob
from tabdiff.operations.late_rows import is_late, pieces
from tabdiff.operations.new_rows import Finding, Piece, Reader
from tabdiff.operations.reading import open_reader
from tabdiff.store import Workspace
from tabdiff.store.scores import Alert, LostRace
from tabdiff.store.spec import SourceSpec

if TYPE_CHECKING:
    from tabdiff.model import Model

_TEXT = 200  # characters of a value that an alert keeps
_RACES = 1000  # lost in a row before a run gives up; each means that another run got on
Progress = Callable[[int], None]


def score_new(workspace: Workspace, job: ScoreJob, *, on_part: Progress | None = None) -> dict[str, Any]:
    """Score the rows of a source that no run has scored yet, with the champion, and record alerts.

    Part by part, scores, watermark and run are committed together: killed at any moment and called again, or called twice at once,
    it ends with every row scored once. Files that cannot be read or understood yet are told of and left to later runs.

    Args:
        workspace: where sources, models and scores are.
        job: what to score.
        on_part: called after each part with the rows scored so far.

    Returns:
        run, rows, flagged, parts, late_scored (rows among them that came late), late (rows that came too late to be scored), findings, and whether there is more.

    Raises:
        StoreError: source or champion are missing, or the database is out of reach.
        SourceError: the source cannot be read.
        SchemaError: rows of a growing source do not fit the champion; nothing after them was scored.
    """
    from tabdiff.loading import load

    source_id, spec = workspace.sources.get(job.source)
    with workspace.runs.start("score", f"{job.source}:{job.model}") as run:
        version = workspace.models.get(job.model)
        assert version.folder is not None  # an alias keeps its folder
        model = load(version.folder / "bundle")
        rule = job.rule
        if job.saved_rule:
            rule = workspace.triage.rule(workspace.scores.stream(source_id, job.model).id) or rule
        total = {"rows": 0, "flagged": 0, "parts": 0, "late_scored": 0}
        findings: list[Finding] = []
        more = False
        late = lost = 0
        while True:
            stream = workspace.scores.stream(source_id, job.model)
            reader = open_reader(spec, stream, workspace.scores.parts(stream), job.rows_per_part)
            mark, revision, rows = stream.watermark, stream.revision, stream.rows
            try:
                for piece in pieces(reader, lambda stream=stream: workspace.scores.files(stream)):
                    if total["parts"] >= job.max_parts:
                        more = True
                        break
                    scored = _score_piece(model, piece, spec, job, rule, reader)
                    if scored is None:
                        continue
                    table, alerts, flagged = scored
                    mark = piece.watermark or mark
                    workspace.scores.commit(
                        type(stream)(stream.id, revision, None, rows),
                        piece.part,
                        table,
                        alerts,
                        flagged=flagged,
                        model_id=version.id,
                        run_id=run.id,
                        watermark=mark,
                    )
                    reader.advance(piece)
                    revision, rows, lost = revision + 1, rows + piece.part.rows, 0
                    came_late = piece.part.rows if is_late(piece) else 0
                    for name, number in zip(total, (piece.part.rows, flagged, 1, came_late), strict=True):
                        total[name] += number
                    if on_part is not None:
                        on_part(total["rows"])
            except LostRace:
                lost += 1
                if lost > _RACES:
                    raise
                continue  # look again at what is new
            finally:
                findings += [finding for finding in reader.findings if finding not in findings]
                _tell(workspace, job, reader.findings)
            late = reader.late(rows)
            break
        if late:
            workspace.events.tell("late_rows", job.source, "warning", {"rows": late, "watermark": mark}, once=f"{late}")
        run.result = {
            "run": run.id,
            "model": version.version,
            "rule": rule,
            **total,
            "late": late,
            "more": more,
            "findings": [vars(finding) for finding in findings],
        }
        return run.result


def _score_piece(
    model: Model, piece: Piece, spec: SourceSpec, job: ScoreJob, rule: dict[str, float], reader: Reader
) -> tuple[pl.DataFrame | None, list[Alert], int] | None:
    """Scores, alerts and number of flags; None if the rows cannot be scored and those after them can."""
    if not piece.frame.height:
        return None, [], 0
    try:
        scores = model.score(piece.frame, **rule)
    except SchemaError as error:
        if not reader.skip(piece):
            raise
        reader.findings.append(Finding("schema", piece.part.unit, str(error), str(piece.part.identity)))
        return None
    table = scores.to_frame()
    keys = _keys(model, piece.frame, spec)
    renamed = {name: f"input_{name}" if name in table.columns else name for name in keys}
    table = piece.frame.select(pl.col(name).alias(alias) for name, alias in renamed.items()).hstack(table)
    flagged = table.filter("flagged").sort("score", descending=True, maintain_order=True)
    alerts = [_alert(row, piece.frame, model, spec) for row in flagged.head(job.max_alerts).iter_rows(named=True)]
    return table, alerts, flagged.height


def _keys(model: Model, frame: pl.DataFrame, spec: SourceSpec) -> list[str]:
    """Columns that say which row is which: those registered, and those that the schema knows as such."""
    roles = [c.name for c in model.schema.columns if c.role.value in ("id", "time", "entity")]
    wanted = [*spec.keys, *([spec.column] if spec.column else []), *roles]
    return [name for name in dict.fromkeys(wanted) if name in frame.columns]


def _alert(row: dict[str, Any], frame: pl.DataFrame, model: Model, spec: SourceSpec) -> Alert:
    reasons = [
        {"column": row[f"column_{k}"], "part": row[f"contribution_{k}"], "expected": row[f"expected_{k}"]}
        for k in range(1, 4)
        if f"column_{k}" in row
    ]
    held = frame.row(row["row"], named=True)
    values = {name: plain(value) for name, value in held.items()}
    highest = model.calibration.normal[-1] if model.calibration.normal else 0.0
    excess = row["score"] / highest if highest > 0 else None
    entities = [str(held[c.name]) for c in model.schema.columns if c.role.value == "entity" and c.name in held]
    at = _time_of(held, [*(c.name for c in model.schema.columns if c.role.value == "time"), spec.column])
    entity = " / ".join(entities)[:_TEXT] or None
    return Alert(row["row"], row["score"], row["p_value"], reasons, values, at, entity, excess)


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
    return str(value)[:_TEXT]


def _tell(workspace: Workspace, job: ScoreJob, findings: list[Finding]) -> None:
    for finding in findings:
        severity: Literal["info", "warning"] = "info" if finding.kind == "unfinished" else "warning"
        subject = f"{job.source}/{finding.subject}"
        workspace.events.tell(
            f"source_{finding.kind}",
            subject,
            severity,
            {"reason": finding.reason[:2000]},
            once=finding.once or finding.reason,
        )
