"""The object that users hold: a bundle and the engine that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tabdiff.balance import balanced, generate_parts
from tabdiff.beliefs import Believer, expected_values
from tabdiff.bundle import Bundle
from tabdiff.calibration import Calibration
from tabdiff.codec import Codec, Encoded
from tabdiff.conditions import read_cells
from tabdiff.config import SampleConfig
from tabdiff.constraints import check, to_json
from tabdiff.errors import ConfigError
from tabdiff.explanation import Explainer, Explanation
from tabdiff.feedback import Feedback, Memory, next_table, read_verdicts
from tabdiff.flags import Rule
from tabdiff.generation import Generator, Request, SampleReport
from tabdiff.imputation import fill
from tabdiff.runtime import Runtime
from tabdiff.sampling import NoiseSchedule
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
        # The network's view of all rows costs a quarter of the encoding; most models look at it for flagged rows only.
        whole = "learned" in self.calibration.views
        score, p_value, contributions = self._judge(self.codec.encode(conformed, model_view=whole))
        flagged = rule.flag(score, p_value, self.calibration.ascending)
        rows = np.flatnonzero(flagged)
        expected = self._nothing
        if len(rows):
            encoded = self.codec.encode(conformed[rows])
            expected = expected_values(self.runtime, self.codec, encoded, np.arange(len(rows)), contributions[rows])
        return Scores(self.codec.columns, score, p_value, flagged, contributions, expected, self.runtime.provider)

    @cached_property
    def _nothing(self) -> pl.DataFrame:
        """No rows of the modelled columns; kept, because making it takes longer than to score a row."""
        return self.codec.decode(np.zeros((0, self.codec.layout.model_width), np.float32))

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
        believer = Believer(self.codec, self.runtime, NoiseSchedule.of(self.bundle.model, self.bundle.tensors))
        explainer = Explainer(self.codec, believer, self._judge, conformed[list(rows)], alpha)
        return explainer.explain(to_polars(frame)[list(rows)], list(rows), largest, top, level)

    @property
    def constraints(self) -> tuple[Any, ...]:
        """The rules that samples obey: found when the model was fitted, or set by `constrained`."""
        return self.bundle.constraints

    def constrained(self, rules: Sequence[Any]) -> Model:
        """The same model with these rules (`tabdiff.constraints`) in place of its own. An empty list takes all out.

        Raises:
            ConfigError: a rule is about a column that is not modelled, or of the wrong kind.
        """
        check(rules, self.schema)
        sampling = {**self.bundle.model.get("sampling", {}), "constraints": to_json(rules)}
        return Model(replace(self.bundle, model={**self.bundle.model, "sampling": sampling}), self.runtime)

    def sample(
        self,
        rows: int | None = None,
        *,
        given: Mapping[str, Any] | Any = None,
        balance: str | Sequence[str] | Mapping[Any, Any] | None = None,
        constraints: Sequence[Any] | None = None,
        where: Callable[[pl.DataFrame], Any] | None = None,
        seed: int = 0,
        config: SampleConfig | None = None,
        on_report: Callable[[SampleReport], None] | None = None,
        on_drawn: Callable[[int], None] = lambda rows: None,
    ) -> pl.DataFrame:
        """Draw synthetic rows of the modelled columns. They obey the model's constraints.

        Args:
            rows: how many; may be left out if `given` is a frame.
            given: a mapping from column to what every row shall have: a value (None means missing), a range `(low, high)` with
                None for no end, or a set `[a, b]`. Or a frame of partial rows to complete, in which null means "draw it".
            balance: a column or several, whose categories or combinations shall be equally frequent; or shares, as in
                ``{"class": {"a": 0.5, "b": 0.5}}`` or ``{("class", "sex"): {("a", "f"): 1}}``.
            constraints: rules to obey in place of the model's own; an empty list for none.
            where: the user's own rule: gets a table of drawn rows, says of each whether it is wanted.
            seed: the same seed gives the same rows, whatever else is asked for.
            config: sampler, number of steps, and what may be published.
            on_report: called once with what drawing took: acceptance, repairs, copies.
            on_drawn: called with the number of rows that are drawn, some hundreds at a time, accepted or not.

        Raises:
            ConfigError: the number of rows is missing, not positive, or not that of the frame; or a range, set, share or
                constraint is not valid.
            SchemaError: a given column is not modelled, or its value was never seen in training.
            SynthesisError: hardly any drawn row obeys, or there are more copies of training rows than chance explains.
        """
        generator = Generator(self.bundle, self.runtime, config or SampleConfig(), on_drawn)  # type: ignore[call-arg]
        if constraints is not None:
            check(constraints, self.schema)
        rules = self.constraints if constraints is None else tuple(constraints)
        if given is None or isinstance(given, Mapping):
            if rows is None or rows < 1:
                raise ConfigError(f"rows is how many rows to draw, at least 1; got {rows}.")
            if balance is not None:
                parts = balanced(generator, balance, rows, given or {}, seed)
            else:
                parts = [(given or {}, rows)]
            frame, report = generate_parts(generator, parts, rules, where, seed)
        else:
            if balance is not None:
                raise ConfigError(
                    "balance chooses the values of rows; got it with a frame of given rows. Leave one of them out."
                )
            partial = given if isinstance(given, pl.DataFrame) else pl.DataFrame(given)
            if rows is not None and rows != partial.height:
                raise ConfigError(
                    f"rows is that of the given frame or left out; got rows={rows} and {partial.height} given rows."
                )
            cells = read_cells(self.schema, self.codec, partial)
            gaps = np.stack([cells[name].is_null().to_numpy() for name in cells.columns], axis=1)
            request = Request(cells.height, cells, gaps, missing_if_open=False, rules=rules, judge=where, own=True)
            frame, report = generator.generate(request, seed)
        if on_report is not None:
            on_report(report)
        return frame

    def translate(
        self,
        frame: Any,
        changed: Mapping[str, Any],
        *,
        strength: float = 0.6,
        keep: Sequence[str] = (),
        seed: int = 0,
        config: SampleConfig | None = None,
    ) -> pl.DataFrame:
        """What these rows would look like with some columns changed, as in ``{"class": "b"}``, other structure kept.

        Every row is noised to a middle level and denoised under the changed columns (SDEdit, Meng et al. 2022). The modelled
        columns come back, those of `keep` as they were.

        Args:
            strength: noise level in (0, 1]: near 0 the other columns hardly move, at 1 nothing of them is left.

        Raises:
            SchemaError: as for `score`, or a changed value was never seen in training.
            ConfigError: strength is not in (0, 1], or a column is both changed and kept.
            SynthesisError: hardly any row obeys the constraints after the change.
        """
        if not 0 < strength <= 1:
            raise ConfigError(f"strength is above 0 and at most 1; got {strength}. Start with 0.6.")
        if both := sorted(set(changed) & set(keep)):
            raise ConfigError(f"a column is changed or kept; got {both[0]!r} in both. Leave one of them out.")
        conformed = self.schema.conform(frame).select(self.codec.columns)
        new = read_cells(self.schema, self.codec, pl.DataFrame({n: [v] for n, v in changed.items()}, strict=False))
        unknown = [name for name in keep if name not in self.codec.columns]
        if unknown:
            raise ConfigError(
                f"keep lists modelled columns; got {unknown[0]!r}. Modelled columns: {', '.join(self.codec.columns)}."
            )
        cells = conformed.with_columns(pl.lit(new[name][0], dtype=new[name].dtype).alias(name) for name in new.columns)
        known = np.array([name in changed or name in keep for name in self.codec.columns])
        open_cells = np.tile(~known, (cells.height, 1))
        generator = Generator(self.bundle, self.runtime, config or SampleConfig())  # type: ignore[call-arg]
        request = Request(cells.height, cells, open_cells, rules=self.constraints, strength=strength, own=True)
        return generator.generate(request, seed)[0]

    def impute(
        self,
        frame: Any,
        *,
        draws: int = 15,
        interval: float | None = None,
        seed: int = 0,
        config: SampleConfig | None = None,
    ) -> pl.DataFrame:
        """Fill the gaps of the modelled columns from the cells that are there.

        Each gap gets the median (numbers) or most frequent value (categories) of several draws. Other cells and columns
        come back as they were.

        Args:
            draws: how many; 1 gives single draws, as multiple imputation wants them (with several seeds).
            interval: a share such as 0.9 adds columns `NAME_low` and `NAME_high` for numbers and dates with gaps: between
                them lies this share of the draws. Both are null where the cell was there.

        Raises:
            SchemaError: as for `score`.
            ConfigError: fewer than one draw is asked for, too few for the interval, or a column has the name of an end.
        """
        generator = Generator(self.bundle, self.runtime, config or SampleConfig())  # type: ignore[call-arg]
        return fill(generator, frame, draws, interval, seed)
