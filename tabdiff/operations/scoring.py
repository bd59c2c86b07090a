"""Score what is new in a source, each row exactly once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

from tabdiff.errors import SchemaError
from tabdiff.operations.jobs import ScoreJob
from tabdiff.operations.judged_events import with_false_alarms
from tabdiff.operations.judges import NEW_COLUMN, Judge, RowJudge
from tabdiff.operations.late_rows import is_late, pieces
from tabdiff.operations.new_rows import Finding
from tabdiff.operations.reading import open_reader
from tabdiff.operations.verdicts import with_verdicts
from tabdiff.store import Workspace
from tabdiff.store.registry import Version
from tabdiff.store.scores import LostRace, Stream
from tabdiff.store.spec import SourceSpec

_RACES = 1000  # lost in a row before a run gives up; each means that another run got on
Progress = Callable[[int], None]


def score_new(workspace: Workspace, job: ScoreJob, *, on_part: Progress | None = None) -> dict[str, Any]:
    """Score the rows of a source that no run has scored yet, with the champion, and record alerts.

    Part by part, scores, watermark, run and (of a series) the state to go on from are committed together: killed at any moment and
    called again, or called twice at once, it ends with every row scored once. Files that cannot be read or understood yet are told of
    and left to later runs.

    Args:
        workspace: where sources, models and scores are.
        job: what to score.
        on_part: called after each part with the rows scored so far.

    Returns:
        run, model, version, rule, verdicts (of how many the champion was told), rows, flagged, parts, alerts (new ones), risen (open
        events of a higher severity than they were told of), late_scored (rows among them that came late), late (rows that came too late to be scored), findings, new_findings (how many no run told of before,
        late rows included), and whether there is more.

    Raises:
        StoreError: source or champion are missing, or the database is out of reach.
        SourceError: the source cannot be read.
        SchemaError: rows of a growing source do not fit the champion; nothing after them was scored.
        ConfigError: the rule, or the source's own for late rows, is for tables and the champion is of a series.
    """
    source_id, spec = workspace.sources.get(job.source)
    with workspace.runs.start("score", f"{job.source}:{job.model}") as run:
        version = workspace.models.get(job.model)
        judge = _judge(workspace, job, source_id, spec, version)
        total = dict.fromkeys(("rows", "flagged", "parts", "alerts", "risen", "late_scored", "new_findings"), 0)
        findings: list[Finding] = []
        more = False
        late = lost = 0
        while True:
            stream = workspace.scores.stream(source_id, job.model)
            judge.resume(stream)
            reader = open_reader(spec, stream, workspace.scores.parts(stream), job.rows_per_part, order=judge.order)
            mark, revision, rows = stream.watermark, stream.revision, stream.rows
            try:
                for piece in pieces(reader, lambda stream=stream: workspace.scores.files(stream)):
                    if total["parts"] >= job.max_parts:
                        more = True
                        break
                    try:
                        outcomes = judge.judge(piece)
                    except SchemaError as error:
                        if not reader.skip(piece):
                            where = f"source {job.source!r}, rows {piece.part.unit}, and nothing after them was scored"
                            raise SchemaError(error.problems, where) from error
                        kind = ("schema", piece.part.unit, str(error), str(piece.part.identity))
                        reader.findings.append(Finding(*kind))
                        continue
                    for outcome in outcomes:
                        mark = outcome.watermark or mark
                        workspace.scores.commit(
                            Stream(stream.id, revision, None, rows),
                            outcome.part,
                            outcome.table,
                            outcome.alerts,
                            flagged=outcome.flagged,
                            model_id=outcome.model_id,
                            run_id=run.id,
                            watermark=mark,
                            state=outcome.state,
                            changed=outcome.changed,
                        )
                        revision, rows, lost = revision + 1, rows + outcome.part.rows, 0
                        late += outcome.late
                        done = (outcome.part.rows, outcome.flagged, 1, len(outcome.alerts), outcome.risen)
                        for name, number in zip(("rows", "flagged", "parts", "alerts", "risen"), done, strict=True):
                            total[name] += number
                    reader.advance(piece)
                    total["late_scored"] += piece.part.rows if is_late(piece) else 0
                    if on_part is not None:
                        on_part(total["rows"])
            except LostRace:
                lost += 1
                if lost > _RACES:
                    raise
                continue  # look again at what is new
            finally:
                told = [*reader.findings, *judge.findings]
                findings += [each for each in told if each not in findings and each.kind != NEW_COLUMN]
                total["new_findings"] += _tell(workspace, job, told)
            late_below = reader.late(rows)
            break
        if late_below:
            detail = {"rows": late_below, "watermark": mark}
            new = workspace.events.tell("late_rows", job.source, "warning", detail, once=f"{late_below}")
            total["new_findings"] += new
        run.result = {
            "run": run.id,
            "model": job.model,
            "version": version.version,
            "rule": dict(judge.rule),
            **({} if judge.heard is None else {"verdicts": dict(judge.heard)}),
            **total,
            "late": late + late_below,
            "more": more,
            "findings": [vars(finding) for finding in findings],
        }
        return run.result


def _judge(workspace: Workspace, job: ScoreJob, source_id: int, spec: SourceSpec, version: Version) -> Judge:
    """The judge that the champion asks for."""
    from tabdiff.loading import load_any
    from tabdiff.operations.series_judge import SeriesJudge
    from tabdiff.series_model import SeriesModel

    assert version.folder is not None  # an alias keeps its folder
    model = load_any(version.folder / "bundle")
    rule, stream_id = job.rule, workspace.scores.stream(source_id, job.model).id
    if job.saved_rule:
        rule = workspace.triage.rule(stream_id) or rule
    if isinstance(model, SeriesModel):
        if rule != job.rule:  # a saved one may say how many rows come a day; a series knows that itself
            rule = {name: value for name, value in rule.items() if name != "rows_per_day"}
        told = functools.partial(with_false_alarms, workspace=workspace, name=job.model, stream_id=stream_id)
        return SeriesJudge(workspace, model, version, spec, rule, job.max_alerts, told if job.feedback else None)
    hear = functools.partial(with_verdicts, judged=functools.partial(workspace.scores.judged, job.model))
    return RowJudge(model, version, spec, rule, job.max_alerts, hear if job.feedback else None)


def _tell(workspace: Workspace, job: ScoreJob, findings: list[Finding]) -> int:
    """Record findings, each once; how many are new and will not pass by themselves."""
    new = 0
    for finding in findings:
        severity: Literal["info", "warning"] = "info" if finding.kind in ("unfinished", NEW_COLUMN) else "warning"
        told = workspace.events.tell(
            f"source_{finding.kind}",
            f"{job.source}/{finding.subject}",
            severity,
            {"reason": finding.reason[:2000]},
            once=finding.once or finding.reason,
        )
        new += told and severity == "warning"
    return new
