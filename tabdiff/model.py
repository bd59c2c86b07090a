"""The object that users hold: a bundle and the engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool

from tabdiff.bundle import Bundle
from tabdiff.codec import Codec, Encoded
from tabdiff.codes import OTHER, CategoryCode
from tabdiff.config import SampleConfig
from tabdiff.errors import ConfigError, Problem, SchemaError
from tabdiff.runtime import Runtime
from tabdiff.sampling import Condition, NoiseSchedule, draw
from tabdiff.schema import Schema
from tabdiff.scoring import CHUNK_ROWS, Calibration, Scores, check_rule, errors_of, flag

_EXPLAINED_COLUMNS = 3


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
        expected = self._expected(encoded, np.flatnonzero(flagged), contributions)
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
                condition = self._condition(partial, drawn_if_null=False).repeated(rows)
        else:
            partial = given if isinstance(given, pl.DataFrame) else pl.DataFrame(given)
            if rows is not None and rows != partial.height:
                raise ConfigError(
                    f"rows is that of the given frame or left out; got rows={rows} and {partial.height} given rows."
                )
            condition = self._condition(partial, drawn_if_null=True)
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
        condition = self._complete(encoded, gaps[rows])
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

    def _condition(self, partial: pl.DataFrame, *, drawn_if_null: bool) -> Condition:
        """Encode partial rows; cells of absent columns, and null ones if so asked, are left open."""
        unknown = [name for name in partial.columns if name not in self.codec.columns]
        if unknown:
            cure = f"Modelled columns: {', '.join(self.codec.columns)}."
            raise SchemaError(
                [Problem(name, "a given column must be modelled", "a column that is not", cure) for name in unknown]
            )
        blank = [pl.Series(name, [None] * partial.height) for name in self.codec.columns if name not in partial.columns]
        conformed = self.schema.conform(partial.with_columns(blank))
        encoded = self.codec.encode(conformed)
        open_cells = np.stack(
            [
                conformed[name].is_null().to_numpy()
                if drawn_if_null
                else np.full(partial.height, name not in partial.columns)
                for name in self.codec.columns
            ],
            axis=1,
        )
        condition = self._complete(encoded, open_cells)
        unseen = condition.given & ~(encoded.present & ~self._pooled(encoded))[:, None, :]
        if unseen.any():
            raise SchemaError(self._unseen(partial, unseen[:, 0]))
        if not drawn_if_null:
            return Condition(condition.x, condition.given, np.ones_like(condition.allowed))
        return condition

    def _pooled(self, encoded: Encoded) -> Bool[np.ndarray, "n u"]:
        """Units that hold `__other__`: one state for all rare values, so none of them can be asked for by name."""
        pooled = np.zeros(encoded.present.shape, dtype=bool)
        for index, unit in enumerate(self.codec.layout.units):
            code = self.codec.codes.get(self.codec.layout.columns[unit.column])
            if isinstance(code, CategoryCode) and code.has_other:
                pooled[:, index] = encoded.x[:, unit.start + len(code.categories)] == 1
        return pooled

    def _unseen(self, partial: pl.DataFrame, unseen: Bool[np.ndarray, "n u"]) -> list[Problem]:
        problems = []
        for index in np.flatnonzero(unseen.any(axis=0)):
            name = self.codec.layout.columns[self.codec.layout.units[index].column]
            row = int(np.flatnonzero(unseen[:, index])[0])
            value = partial[name][row] if name in partial.columns else "its components"
            cure = f"Give a value that training kept by itself; rare ones are pooled as {OTHER!r}. `tabdiff show` lists them."
            problems.append(
                Problem(name, "a given value must have been seen in training", f"{value!r} in row {row + 1}", cure)
            )
        return problems

    def _complete(self, encoded: Encoded, open_cells: Bool[np.ndarray, "n c"]) -> Condition:
        """Everything is given but the open cells, and those must not come out missing."""
        layout = self.codec.layout
        # A layout column is open if any user column in it is: with a projection they are tied.
        open_columns = (open_cells.astype(np.float32) @ self.codec.attribution.T) > 0
        given = ~layout.cells(open_columns)
        for index, unit in enumerate(layout.units):
            if unit.gate is not None:  # the value beside an atom is not known, and not read either
                given[:, index] &= encoded.x[:, unit.gate] == 1
        allowed = np.ones((len(encoded.x), layout.model_width), np.float32)
        for index, name in enumerate(layout.columns):
            code = self.codec.codes.get(name)
            if code is not None and code.has_missing:
                last = layout.units[layout.units_of(index)[0]].slots.stop - 1
                allowed[:, last] = ~open_columns[:, index]
        return Condition(encoded.x[:, None, : layout.model_width], given[:, None, :], allowed[:, None, :])

    def _expected(self, encoded: Encoded, rows: np.ndarray, contributions: np.ndarray) -> pl.DataFrame:
        """What the top columns of the given rows should have been, each given all other columns of its row.

        One denoising step from pure noise in that column: its conditional mean, or most probable category. Columns that
        are not among a row's top ones stay null.
        """
        layout, columns = self.codec.layout, self.codec.columns
        top = np.argsort(-contributions[rows], axis=1, kind="stable")[:, :_EXPLAINED_COLUMNS]
        items = np.stack([np.repeat(np.arange(len(rows)), top.shape[1]), top.ravel()], axis=1)
        frames = []
        for start in range(0, len(items), CHUNK_ROWS):
            part = items[start : start + CHUNK_ROWS]
            source = Encoded(encoded.x[rows[part[:, 0]]], encoded.present[rows[part[:, 0]]])
            condition = self._complete(source, np.arange(len(columns)) == part[:, 1:2])
            given = condition.given & source.present[:, None, :]
            x = np.where(given[..., layout.unit_of_slot], condition.x, np.float32(0))
            noise = np.zeros(given.shape, np.float32)
            _, x0 = self.runtime.step(x, 1.0, 0.0, noise, ~given, given, condition.allowed, np.zeros_like(x), 0.0, 0.0)
            frames.append(self.codec.decode(np.clip(x0[:, 0], *self.codec.bounds)))
        if not frames:
            return self.codec.decode(np.zeros((0, layout.model_width), np.float32))
        decoded = pl.concat(frames)
        place = np.full((len(rows), len(columns)), -1)
        place[items[:, 0], items[:, 1]] = np.arange(len(items))
        return pl.DataFrame(
            [
                decoded[name][np.maximum(place[:, index], 0)]
                .zip_with(pl.Series(place[:, index] >= 0), pl.Series([None] * len(rows), dtype=decoded[name].dtype))
                .alias(name)
                for index, name in enumerate(columns)
            ]
        )


def _middle(draws: list[pl.Series]) -> pl.Series:
    """Median of numbers, most frequent category, row by row; always one of the values drawn, so it is on the grid."""
    name = draws[0].name
    long = pl.DataFrame({"row": np.tile(np.arange(len(draws[0])), len(draws)), name: pl.concat(draws)})
    if draws[0].dtype in (pl.String, pl.Boolean):
        counts = long.group_by("row", name).len().sort(["row", "len", name], descending=[False, True, False])
        return counts.group_by("row", maintain_order=True).first()[name]
    return long.group_by("row").agg(pl.col(name).quantile(0.5, "nearest").cast(draws[0].dtype)).sort("row")[name]
