"""What a threshold would do, before it is saved: alerts a day on the rows that were scored, and how many of them people confirmed."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from tabdiff.bundle import Bundle
from tabdiff.errors import StoreError
from tabdiff.flags import Rule
from tabdiff.store import Workspace

_BINS = 60
_KEPT = 50_000  # highest scores that are kept one by one


@dataclass(frozen=True)
class Tuning:
    """Scores of one version on one source, and what is known of them.

    Attributes:
        stream_id, source, model, version: of what.
        rows, days: rows scored by this version, and the time they span (None if they have no times).
        edges, counts: histogram of log10(1 + score); one more edge than counts.
        highest: scores, ascending, at most 50,000 of the highest.
        judged: (score, whether it was confirmed) of judged alerts, by rising score.
        normal: scores of calibration rows, ascending.
        saved: the rule that counts now; empty if it is the job's.
        stretches_per_day: of a series: how many windows of one recording follow each other in a day; then `rows` are such stretches, their
            scores those of their highest places, and a rule says how many normal ones a recording may raise. None for tables.
    """

    stream_id: int
    source: str
    model: str
    version: int
    rows: int
    days: float | None
    edges: list[float]
    counts: list[int]
    highest: list[float]
    judged: list[tuple[float, bool]]
    normal: list[float]
    saved: dict[str, float]
    stretches_per_day: float | None = None

    @property
    def rows_per_day(self) -> float:
        """Rows scored a day; all of them if they have no times. Of a series: stretches of one recording."""
        if self.stretches_per_day is not None:
            return self.stretches_per_day
        return self.rows / self.days if self.days else float(self.rows)

    def choices(self, rows_per_day: float) -> list[float]:
        """Alerts a day that calibration can tell of, from few to many: 1, 2, 5, 10, ..."""
        least, most = rows_per_day / (len(self.normal) * 3), 0.3 * rows_per_day
        steps = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
        return [step for step in steps if least <= step <= most]

    def as_rule(self, alerts_per_day: float, rows_per_day: float) -> dict[str, float]:
        """The rule to save; a series counts its stretches itself."""
        rule = {"alerts_per_day": float(alerts_per_day)}
        return rule if self.stretches_per_day is not None else rule | {"rows_per_day": float(rows_per_day)}

    def at(self, alerts_per_day: float, rows_per_day: float) -> dict[str, Any]:
        """What this rule would have done.

        Returns:
            threshold; flagged rows and flagged a day; `confirmed` and `false_alarms` among judged alerts above it, their
            `precision` (None without any), and `missed`: confirmed ones below it.

        Raises:
            ConfigError: calibration has too few rows for so few alerts.
        """
        rule = Rule("alerts_per_day", alerts_per_day, rows_per_day)
        threshold = rule.threshold(np.asarray(self.normal))
        above = len(self.highest) - bisect_left(self.highest, np.nextafter(threshold, np.inf))
        verdicts = [confirmed for score, confirmed in self.judged if score > threshold]
        confirmed = sum(verdicts)
        return {
            "threshold": threshold,
            "flagged": above,
            "per_day": above / self.days if self.days else None,
            "confirmed": confirmed,
            "false_alarms": len(verdicts) - confirmed,
            "precision": confirmed / len(verdicts) if verdicts else None,
            "missed": sum(fine for score, fine in self.judged if score <= threshold),
        }


def tuning(workspace: Workspace, source: str, model: str) -> Tuning:
    """Collect what a threshold is judged by: the scores that the champion gave to a source, and verdicts on its alerts.

    Raises:
        StoreError: no champion, or it has not scored this source.
    """
    source_id, spec = workspace.sources.get(source)
    version = workspace.models.get(model)
    assert version.folder is not None  # an alias keeps its folder
    stream = workspace.scores.stream(source_id, model)
    parts = [
        part
        for part in workspace.scores.partitions(source_id)
        if part["model_id"] == version.id and part["model"] == model and part["file"]
    ]
    if not parts:
        raise StoreError(f"{version} has not scored {source!r} yet. Run tabdiff run score, or wait for the next run.")
    bundle, about = Bundle.read(version.folder / "bundle"), version.metrics.get("series")
    if about is not None and about["interval_us"] is None:
        raise StoreError(
            f"{version} counts steps, which have no days; its threshold is its own, {about['threshold']:.3g}."
        )
    times = [about["time"]] if about is not None else []
    times += [column.name for column in bundle.schema.columns if column.role.value == "time"]
    times += [spec.column] if spec.column else []
    also = [about["entity"]] if about is not None and about["entity"] is not None else []
    scored = [_scores(part["file"], times, also) for part in parts]
    when = next((name for name in times if any(name in part.collect_schema() for part in scored)), None)
    frame = pl.concat(scored, how="diagonal")
    read = frame.collect() if about is None else _stretches(frame, about)
    scores = np.sort(read["score"].to_numpy())
    counts, edges = np.histogram(np.log10(1 + np.maximum(scores, 0)), bins=_BINS)
    judged = [
        (alert["score"], alert["verdict"] == "anomaly")
        for alert in workspace.triage.judged(model, limit=10_000)
        if alert["stream_id"] == stream.id and alert["model_id"] == version.id and alert["verdict"] != "unsure"
    ]
    return Tuning(
        *(stream.id, source, model, version.version, len(scores), _span(read[when]) if when else None),
        *(edges.tolist(), counts.tolist(), scores[-_KEPT:].tolist(), sorted(judged)),
        *(sorted(bundle.calibration["normal" if about is None else "blocks"]), workspace.triage.rule(stream.id)),
        None if about is None else 86_400e6 / (about["interval_us"] * about["window"]),
    )


def _scores(file: str, times: list[str], also: list[str]) -> pl.LazyFrame:
    """Scores of a file; its times as UTC in microseconds, whatever the type of the source was then."""
    scan = pl.scan_parquet(file, glob=False)
    known, columns = scan.collect_schema(), [pl.col("score"), *(pl.col(name).cast(pl.String) for name in also)]
    for name in dict.fromkeys(times):
        dtype, time = known.get(name), pl.col(name)
        if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
            time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        if isinstance(dtype, pl.Datetime | pl.Date):
            columns.append(time.cast(pl.Datetime("us")))
    return scan.select(columns)


def _stretches(frame: pl.LazyFrame, about: dict[str, Any]) -> pl.DataFrame:
    """The highest score of each stretch of a window, of each recording: what calibration calls a block."""
    passed = (pl.col(about["time"]) - pl.col(about["time"]).min()).dt.total_microseconds()
    begun = passed // (about["interval_us"] * about["window"])
    keys = [begun.alias("stretch"), *([pl.col(about["entity"])] if about["entity"] is not None else [])]
    scored = frame.filter(pl.col("score").is_not_null())
    return scored.group_by(keys).agg(pl.col("score").max(), pl.col(about["time"]).min()).collect()


def _span(times: pl.Series) -> float | None:
    """Days from the first to the last, None if that is less than an hour."""
    first, last = times.min(), times.max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return None
    days = (last - first).total_seconds() / 86_400
    return days if days > 1 / 24 else None
