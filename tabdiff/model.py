"""The object that users hold: a bundle and the engine that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tabdiff.balance import balanced, generate_parts
from tabdiff.bundle import Bundle
from tabdiff.calibration import Calibration, check_rule, flag
from tabdiff.codec import Codec
from tabdiff.conditions import read_cells
from tabdiff.config import SampleConfig
from tabdiff.constraints import check, to_json
from tabdiff.errors import ConfigError
from tabdiff.explanation import expected_values
from tabdiff.generation import Generator, Request, SampleReport
from tabdiff.imputation import fill
from tabdiff.runtime import Runtime
from tabdiff.schema import Schema
from tabdiff.scoring import Scores, errors_of


class Model:
    """A fitted diffusion model of one table: scores rows, draws rows, fills gaps.

    Made by `tabdiff.fit` or `tabdiff.load`. Frames may be polars, pandas or Arrow; results are polars.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle, self.runtime = bundle, runtime
        self.calibration = Calibration.from_json(bundle.calibration)

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

    def score(self, frame: Any, *, fdr: float | None = None, contamination: float | None = None) -> Scores:
        """Score every row of a table with the training table's columns.

        The score and p-value of a row depend on the row alone; the flag also on the rule. Give `fdr` or `contamination`
        or neither, which means the false-discovery rate stored with the model.

        Raises:
            SchemaError: a column is missing or holds what the schema does not allow. Lists every problem.
            ConfigError: both rules are given, or a value is outside (0, 1).
        """
        if fdr is None and contamination is None:
            fdr = self.bundle.config.score.fdr
        check_rule(fdr, contamination)
        conformed = self.schema.conform(frame)
        encoded = self.codec.encode(conformed)
        score, contributions = self.calibration.combine(errors_of(self.runtime, encoded))
        p_value = self.calibration.p_value(score)
        flagged = flag(score, p_value, fdr=fdr, contamination=contamination)
        expected = expected_values(self.runtime, self.codec, encoded, np.flatnonzero(flagged), contributions)
        return Scores(self.codec.columns, score, p_value, flagged, contributions, expected, self.runtime.provider)

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

        Raises:
            ConfigError: the number of rows is missing, not positive, or not that of the frame; or a range, set, share or
                constraint is not valid.
            SchemaError: a given column is not modelled, or its value was never seen in training.
            SynthesisError: hardly any drawn row obeys, or there are more copies of training rows than chance explains.
        """
        generator = Generator(self.bundle, self.runtime, config or SampleConfig())  # type: ignore[call-arg]
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
