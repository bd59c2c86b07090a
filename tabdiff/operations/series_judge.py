"""Judge the pieces of a series: state in, outcome out. When the champion has changed, its predecessor first ends what it began."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tabdiff.errors import BundleError, ConfigError, RuntimeUnavailable
from tabdiff.operations.judges import Outcome
from tabdiff.operations.new_rows import Finding, Piece
from tabdiff.operations.series_alerts import closed, risen
from tabdiff.operations.series_passes import SeriesPass, Taken
from tabdiff.operations.stream_state import ENTITY, PLACE, Kept
from tabdiff.series_model import SeriesModel
from tabdiff.store import Workspace
from tabdiff.store.registry import Version
from tabdiff.store.scores import Part, Stream
from tabdiff.store.spec import SourceSpec


class SeriesJudge:
    """Places of a series; see `tabdiff.operations.judges.Judge`. `hear` tells the model of people's verdicts.

    Raises:
        ConfigError: the rule, or the source's own for late rows, is for tables.
    """

    def __init__(
        self,
        workspace: Workspace,
        model: SeriesModel,
        version: Version,
        spec: SourceSpec,
        rule: Mapping[str, float],
        max_alerts: int,
        hear: Callable[[SeriesModel], tuple[SeriesModel, Mapping[str, Any]]] | None = None,
    ) -> None:
        if wrong := sorted(set(rule) - {"alerts_per_day"}):
            raise ConfigError(
                f"a stream of a series is flagged by a threshold, which alerts_per_day sets; got {', '.join(wrong)}. "
                "Leave it out of the job, or save another rule (tabdiff alerts rule)."
            )
        if spec.late_within is not None:
            raise ConfigError(
                f"late_within scores late rows of a table one by one; {version} is of a series, in which a late row would change "
                "what was scored after it. Register the source with lateness, which waits for late rows."
            )
        self.workspace, self.version, self.rule, self.max_alerts = workspace, version, rule, max_alerts
        self.findings: list[Finding] = []
        self.order: str | None = model.plan.grid.time
        self._pass = SeriesPass(model, rule.get("alerts_per_day"))
        self.hear = hear
        self.heard: Mapping[str, Any] | None = None
        self.threshold = model.rule(rule.get("alerts_per_day")).threshold(model.blocks)

    def resume(self, stream: Stream) -> None:
        """Go on from the state of the stream."""
        self._stream, self._rows = stream, stream.rows
        self._state, self._made_by = stream.state, stream.state_model_id or self.version.id
        goes_on = self._state is not None and self._made_by == self.version.id
        self._kept = Kept.from_bytes(self._state) if self._state is not None and goes_on else Kept()

    def judge(self, piece: Piece) -> list[Outcome]:
        """Scores of final places, alerts of events, and the state; before it the end of another version, if there was one.

        Raises:
            SchemaError: rows do not fit the champion, or their times cannot be used; nothing of the piece was taken in.
        """
        if not piece.frame.height:
            return [Outcome(piece.part, piece.watermark, None, [], 0, self._made_by, state=self._state)]
        if self.hear is not None and self.heard is None:  # not before there are rows, as it reads score files
            model, self.heard = self.hear(self._pass.model)
            self._pass = SeriesPass(model, self._pass.alerts_per_day)
        opened = self.workspace.scores.open_alerts(self._stream)
        ending: list[Outcome] = []
        if self._state is not None and self._made_by != self.version.id:
            outcome, opened = self._end_of_version(opened)
            ending = [outcome]
        opened = [self._of_version(alert) for alert in opened]
        taken = self._pass.take(self._kept, piece.frame, opened)
        self._tell_late(piece, taken)
        self._kept, self._state, self._made_by = taken.kept, taken.kept.to_bytes(), self.version.id
        self._rows += piece.part.rows
        outcome = self._outcome(piece.part, piece.watermark, taken, self.version.id, self._state)
        return [*ending, replace(outcome, risen=risen(opened, taken.changed))]

    def _of_version(self, alert: dict[str, Any]) -> dict[str, Any]:
        return alert if alert["model_id"] == self.version.id else {**alert, "begun": alert["first_place"]}

    def _outcome(
        self, part: Part, watermark: dict[str, Any] | None, taken: Taken, model_id: int, state: bytes | None
    ) -> Outcome:
        flagged = 0 if taken.table is None else int(taken.table["flagged"].sum())
        highest = sorted(taken.alerts, key=lambda alert: -(alert.excess or 0.0))[: self.max_alerts]
        options = {"state": state, "changed": taken.changed, "late": taken.late.height}
        return Outcome(part, watermark, taken.table, highest, flagged, model_id, **options)  # type: ignore[arg-type]

    def _tell_late(self, piece: Piece, taken: Taken) -> None:
        if not taken.late.height:
            return
        first = taken.late.sort(PLACE).row(0, named=True)
        reason = (
            f"{taken.late.height} rows came after later ones had been scored, the earliest for {self._pass.stamp(first[PLACE])}"
            f"{self._pass.of(first[ENTITY])}; they are not scored. Let rows arrive in order of time, or register the source by its time "
            "column with a lateness"
        )
        self.findings.append(Finding("late", piece.part.unit, reason, f"{piece.part.unit} {piece.part.part}"))

    def _end_of_version(self, opened: list[dict[str, Any]]) -> tuple[Outcome, list[dict[str, Any]]]:
        """What the version of before knows of places that the new one never sees.

        Its alerts are closed. They are handed on as the new version would know them, so that a fault that goes on is told of in the alert
        that it has.
        """
        from tabdiff.loading import load_any

        assert self._state is not None
        kept, version = Kept.from_bytes(self._state), self.workspace.models.by_id(self._made_by)
        part = Part(f"end of version {version.version} after {self._rows} rows", 0, True, None, 0)
        model, reason = None, "its folder is gone"
        if version.folder is not None:
            try:
                model = load_any(version.folder / "bundle")
            except (BundleError, RuntimeUnavailable) as error:
                reason = str(error)
        if isinstance(model, SeriesModel):
            taken = SeriesPass(model, None).finish(kept, opened)
            ended = [{**alert, **vars(taken.changed.get(alert["id"], closed(alert)))} for alert in opened]
            return self._outcome(part, None, taken, version.id, None), self._pass.carried(ended, model.plan.grid)
        waiting = kept.values.height + kept.held.height
        reason = f"{version} cannot be run any more ({reason}): its newest {waiting} places stay without a final score"
        self.findings.append(Finding("state_lost", part.unit, reason))
        changed = {alert["id"]: closed(alert) for alert in opened}
        return Outcome(part, None, None, [], 0, self.version.id, changed=changed), []
