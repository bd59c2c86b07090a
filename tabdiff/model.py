"""The object that users hold: a bundle and the engine that runs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tabdiff.beliefs import Believer, expected_values
from tabdiff.bundle import Bundle
from tabdiff.calibration import Calibration
from tabdiff.codec import Codec, Encoded
from tabdiff.conditions import complete, condition_on
from tabdiff.config import SampleConfig
from tabdiff.errors import ConfigError
from tabdiff.explanation import Explainer, Explanation
from tabdiff.feedback import Feedback, Memory, next_table, read_verdicts
from tabdiff.flags import Rule
from tabdiff.runtime import Runtime
from tabdiff.sampling import BLOCK_ROWS, Condition, NoiseSchedule, draw
from tabdiff.schema import Schema, to_polars
from tabdiff.scoring import Scores, errors_of


class Model:
    """A fitted diffusion model of one table: scores rows, draws rows, fills gaps.

    Made by `tabdiff.fit` or `tabdiff.load`. Frames may be polars, pandas or Arrow; results are polars.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.calibration = Calibration.from_json(bundle.calibration)
        view = len(bundle.codec.layout.view_columns)
        self.feedback = Feedback.from_json(bundle.calibration.get("feedback"), view)

    @property
    def schema(self) -> Schema:
        """Columns of the training table."""
        return self.bundle.schema

    @property
    def codec(self) -> Codec:
        """The fitted transformation between rows and arrays."""
        return self.bundle.codec

    def save(self, path: str | Path) -> None:
        """Write the model as one folder, replacing an older one at once.

        Raises:
            SourceError: the folder cannot be written; nothing half-written stays.
        """
        self.bundle.write(Path(path))

    def rule(
        self,
        *,
        fdr: float | None = None,
        contamination: float | None = None,
        alerts_per_day: float | None = None,
        rows_per_day: float | None = None,
    ) -> Rule:
        """The rule for flags that `score` applies with the same arguments; without any, the one stored with the model.

        Raises:
            ConfigError: as for `score`.
        """
        return Rule.choose(
            self.bundle.config.score,
            fdr=fdr,
            contamination=contamination,
            alerts_per_day=alerts_per_day,
            rows_per_day=rows_per_day,
            measured=self.bundle.model["report"].get("rows_per_day"),
        )

    def score(
        self,
        frame: Any,
        *,
        fdr: float | None = None,
        contamination: float | None = None,
        alerts_per_day: float | None = None,
        rows_per_day: float | None = None,
    ) -> Scores:
        """Score every row of a table with the training table's columns.

        The score and p-value of a row depend on the row alone; the flag also on the rule. Give one of the rules or none, which
        means that stored with the model.

        Args:
            frame: the rows.
            fdr: flag so that about this share of the flags is false (Benjamini & Hochberg), among the rows of `frame`.
            contamination: flag this share of the rows of `frame`.
            alerts_per_day: flag above the score that normal rows pass so often a day, whatever else is in `frame`.
            rows_per_day: rows scored a day, for alerts; if not given, as stored with the model or as in the training table.

        Raises:
            SchemaError: a column is missing or holds what the schema does not allow. Lists every problem.
            ConfigError: more than one rule is given, a value is out of range, or calibration had too few rows for so few alerts.
        """
        rule = self.rule(fdr=fdr, contamination=contamination, alerts_per_day=alerts_per_day, rows_per_day=rows_per_day)
        conformed = self.schema.conform(frame)
        encoded = self.codec.encode(conformed)
        score, p_value, contributions = self._judge(encoded)
        flagged = rule.flag(score, p_value, np.asarray(self.calibration.normal))
        expected = expected_values(self.runtime, self.codec, encoded, np.flatnonzero(flagged), contributions)
        return Scores(self.codec.columns, score, p_value, flagged, contributions, expected, self.runtime.provider)

    def _judge(self, encoded: Encoded) -> tuple[Any, Any, Any]:
        """Score (N,), p-value (N,) and contributions (N, C) of encoded rows, as feedback has changed them."""
        score, contributions = self.calibration.combine(errors_of(self.runtime, encoded))
        promised = score
        if len(self.feedback):
            excused, raised = self.feedback.factors(encoded.x, Memory.of(self.codec, self.bundle.tensors))
            positive = score > 0
            promised = np.where(positive, score * excused, score)
            factor = np.where(positive, excused * raised, 1.0)
            score, contributions = score * factor, contributions * factor[:, None]
        return score, self.calibration.p_value(promised), contributions

    def with_feedback(self, frame: Any, verdicts: Iterable[Any]) -> Model:
        """The same model, told of rows that turned out to be false alarms or confirmed anomalies.

        Rows like a false alarm score lower, rows like a confirmed anomaly higher, and no others change: `tabdiff.feedback` has
        the rule. Judged rows are stored with the model. This one is not changed; `save` the result.

        Args:
            frame: rows that were judged, with the training table's columns.
            verdicts: for each row "confirmed" or True, "false alarm" or False, None if it was not judged.

        Raises:
            SchemaError: as for `score`.
            ConfigError: a verdict is none of these or missing, or the model keeps no rows to compare with.
        """
        conformed = self.schema.conform(frame)
        judged, confirmed = read_verdicts(verdicts, conformed.height)
        memory = Memory.of(self.codec, self.bundle.tensors)
        feedback = self.feedback
        if judged.any():
            encoded = self.codec.encode(conformed.filter(pl.Series(judged)))
            feedback = feedback.judged(encoded.x, confirmed[judged], memory)
        stored = {**self.bundle.calibration, "feedback": feedback.to_json()}
        return Model(replace(self.bundle, calibration=stored), self.runtime)

    def next_table(self, frame: Any, reviewed: Any, verdicts: Iterable[Any]) -> pl.DataFrame:
        """The table for the next fit: without confirmed anomalies, and with the false alarms that it lacks.

        Args:
            frame: the training table.
            reviewed, verdicts: as for `with_feedback`. Rows are the same if they are in all modelled columns.

        Raises:
            SchemaError, ConfigError: as for `with_feedback`.
        """
        return next_table(frame, reviewed, verdicts, self.schema)

    def explain(
        self,
        frame: Any,
        rows: Sequence[int] | None = None,
        *,
        alpha: float = 0.05,
        level: float = 0.8,
        top: int = 3,
        largest: int = 5,
    ) -> list[Explanation]:
        """Say of rows why they are abnormal, what they should have held, and which smallest repair makes them normal.

        An explanation depends on the row alone. It takes tens of scores for each column and row, so explain the rows that
        matter: in `score`, contributions are a cheaper estimate for every row.

        Args:
            frame: a table as for `score`.
            rows: places in the table, counted from 0; None means the rows that `score` flags, highest score first.
            alpha: a row is normal if its p-value is above this; the aim of repairs.
            level: probability of the intervals, at most 0.95.
            top: columns to give reasons for, beside those that are repaired.
            largest: columns that a repair may change.

        Raises:
            SchemaError: as for `score`.
            ConfigError: a row is not in the table, or an option is out of range.
        """
        ranges = {"alpha": (0 < alpha < 1, "inside (0, 1)"), "level": (0 < level <= 0.95, "inside (0, 0.95]")}
        ranges |= {"top": (top >= 1, "at least 1"), "largest": (largest >= 1, "at least 1")}
        wrong = [f"{name} is {rule}" for name, (fine, rule) in ranges.items() if not fine]
        if wrong:
            raise ConfigError(f"{'; '.join(wrong)}; got {alpha=}, {level=}, {top=}, {largest=}.")
        conformed = self.schema.conform(frame)
        if rows is None:
            scores = self.score(frame)
            rows = [row for row in np.argsort(-scores.score, kind="stable").tolist() if scores.flagged[row]]
        outside = [row for row in rows if not 0 <= row < conformed.height]
        if outside:
            raise ConfigError(
                f"rows are counted from 0 to {conformed.height - 1} in this table; got {outside[0]}. Check the numbers."
            )
        believer = Believer(self.codec, self.runtime, self._schedule())
        explainer = Explainer(self.codec, believer, self._judge, conformed[list(rows)], alpha)
        return explainer.explain(to_polars(frame)[list(rows)], list(rows), largest, top, level)

    def sample(
        self,
        rows: int | None = None,
        *,
        given: Mapping[str, Any] | Any = None,
        seed: int = 0,
        config: SampleConfig | None = None,
    ) -> pl.DataFrame:
        """Draw synthetic rows of the modelled columns.

        Args:
            rows: how many; may be left out if `given` is a frame.
            given: a mapping from column to value that every row shall have (None means missing), or a frame of partial rows
                to complete, in which null means "draw it".
            seed: the same seed gives the same rows, whatever else is asked for.
            config: sampler and number of steps.

        Raises:
            ConfigError: the number of rows is missing, not positive, or not that of the frame.
            SchemaError: a given column is not modelled, or its value was never seen in training.
        """
        if given is None or isinstance(given, Mapping):
            if rows is None or rows < 1:
                raise ConfigError(f"rows is how many rows to draw, at least 1; got {rows}.")
            condition = Condition.nothing(self.codec.layout, rows)
            if given:
                partial = pl.DataFrame({name: [value] for name, value in given.items()}, strict=False)
                condition = condition_on(self.schema, self.codec, partial, drawn_if_null=False).repeated(rows)
        else:
            partial = given if isinstance(given, pl.DataFrame) else pl.DataFrame(given)
            if rows is not None and rows != partial.height:
                raise ConfigError(
                    f"rows is that of the given frame or left out; got rows={rows} and {partial.height} given rows."
                )
            condition = condition_on(self.schema, self.codec, partial, drawn_if_null=True)
        return pl.concat([self.codec.decode(x) for x in self._draw(condition, seed, config)])

    def impute(self, frame: Any, *, draws: int = 15, seed: int = 0, config: SampleConfig | None = None) -> pl.DataFrame:
        """Fill the gaps of the modelled columns from the cells that are there.

        Each gap gets the median (numbers) or most frequent value (categories) of several draws. Other cells and columns
        come back as they were.

        Raises:
            SchemaError: as for `score`.
            ConfigError: fewer than one draw is asked for.
        """
        if draws < 1:
            raise ConfigError(f"draws is at least 1; got {draws}.")
        conformed = self.schema.conform(frame)
        original = frame if isinstance(frame, pl.DataFrame) else pl.DataFrame(frame)
        gaps = np.stack([conformed[name].is_null().to_numpy() for name in self.codec.columns], axis=1)
        rows = np.flatnonzero(gaps.any(axis=1))
        if not len(rows):
            return original
        encoded = self.codec.encode(conformed[rows])
        condition = complete(self.codec, encoded, gaps[rows])
        drawn = [
            pl.concat([self.codec.decode_canonical(x) for x in self._draw(condition, seed + index, config)])
            for index in range(draws)
        ]
        filled = self.schema.restore(pl.DataFrame([_middle([f[name] for f in drawn]) for name in self.codec.columns]))
        position = np.zeros(original.height, dtype=np.int64)
        position[rows] = np.arange(len(rows))
        columns = []
        for index, name in enumerate(self.codec.columns):
            if gaps[:, index].any():
                values = filled[name][position].cast(original[name].dtype)
                columns.append(values.zip_with(pl.Series(gaps[:, index]), original[name]).alias(name))
        return original.with_columns(columns)

    def _draw(self, condition: Condition, seed: int, config: SampleConfig | None) -> Any:
        """Yield (B, W) blocks of clean encoded rows."""
        layout, config = self.codec.layout, config or SampleConfig()  # type: ignore[call-arg]
        for block, windows in enumerate(draw(self.runtime, layout, self._schedule(), condition, config, seed)):
            x = windows[:, 0]
            if layout.detail_units:
                rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block, 1)))
                uniform = rng.random((BLOCK_ROWS, len(layout.units)), dtype=np.float32)[: len(x)]
                given = condition.given[block * BLOCK_ROWS :][: len(x), 0][:, layout.unit_of_slot]
                x = np.where(given, x, self.codec.draw_details(x, uniform))
            yield np.clip(x, *self.codec.bounds)  # no value beyond what training showed

    def _schedule(self) -> NoiseSchedule:
        model, tensors = self.bundle.model, self.bundle.tensors
        root = tensors["score.denoiser.process.basis"] * tensors["score.denoiser.process.scale"]
        return NoiseSchedule(model["sigma_min"], model["sigma_max"], model["rho"], root)


def _middle(draws: list[pl.Series]) -> pl.Series:
    """Median of numbers, most frequent category, row by row; always one of the values drawn, so it is on the grid."""
    name = draws[0].name
    long = pl.DataFrame({"row": np.tile(np.arange(len(draws[0])), len(draws)), name: pl.concat(draws)})
    if draws[0].dtype in (pl.String, pl.Boolean):
        counts = long.group_by("row", name).len().sort(["row", "len", name], descending=[False, True, False])
        return counts.group_by("row", maintain_order=True).first()[name]
    return long.group_by("row").agg(pl.col(name).quantile(0.5, "nearest").cast(draws[0].dtype)).sort("row")[name]
