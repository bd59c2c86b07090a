"""The object that users hold: a bundle and the engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tabdiff.bundle import Bundle
from tabdiff.calibration import Calibration, check_rule, flag
from tabdiff.codec import Codec
from tabdiff.conditions import complete, condition_on
from tabdiff.config import SampleConfig
from tabdiff.errors import ConfigError
from tabdiff.explanation import expected_values
from tabdiff.runtime import Runtime
from tabdiff.sampling import Condition, NoiseSchedule, draw
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
        model, tensors = self.bundle.model, self.bundle.tensors
        root = tensors["score.denoiser.process.basis"] * tensors["score.denoiser.process.scale"]
        schedule = NoiseSchedule(model["sigma_min"], model["sigma_max"], model["rho"], root)
        for x in draw(self.runtime, self.codec.layout, schedule, condition, config or SampleConfig(), seed):  # type: ignore[call-arg]
            yield np.clip(x[:, 0], *self.codec.bounds)  # no value beyond what training showed


def _middle(draws: list[pl.Series]) -> pl.Series:
    """Median of numbers, most frequent category, row by row; always one of the values drawn, so it is on the grid."""
    name = draws[0].name
    long = pl.DataFrame({"row": np.tile(np.arange(len(draws[0])), len(draws)), name: pl.concat(draws)})
    if draws[0].dtype in (pl.String, pl.Boolean):
        counts = long.group_by("row", name).len().sort(["row", "len", name], descending=[False, True, False])
        return counts.group_by("row", maintain_order=True).first()[name]
    return long.group_by("row").agg(pl.col(name).quantile(0.5, "nearest").cast(draws[0].dtype)).sort("row")[name]
