"""Fill the gaps of recordings: draws, their middle, calibrated intervals, by the method that proves best for each sensor.

Before a gap is filled, gaps of the same shapes are cut into what was recorded, and all methods fill those. Each sensor gets the
method that was nearest to the truth there, and the interval the width that covers the truth as often as it promises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64

from tabdiff.codes import CategoryCode
from tabdiff.errors import ConfigError
from tabdiff.fillings import linear_filling, plain_fillings
from tabdiff.schema import to_polars
from tabdiff.series_generation import Canvas, SeriesGenerator
from tabdiff.tracks import prepared
from tabdiff.windows import runs_of

METHODS = ("model", "linear", "calendar", "seasonal", "neighbours", "last")
_PIECES = 60  # gaps that are cut into a recording to judge methods ...
_MOST_JUDGED = 0.1  # ... until this share of it is hidden
_LEAST_JUDGED = 20  # cells of a sensor; with fewer the model fills it, unjudged
_JUDGING_DRAWS = 7


@dataclass(frozen=True)
class SensorFill:
    """How the gaps of one sensor were filled.

    Attributes:
        cells: gaps filled.
        method: "model", "linear" (interpolation), "calendar" (the same of what the calendar leaves over), "seasonal" (mean of the same phase of neighbouring cycles), "neighbours"
            (mean of the places where other sensors read most alike) or "last" (the last category).
        judged: cells that were hidden to compare methods; 0 if there were too few, and the model fills.
        errors: mean absolute error of each method there, or share of wrong categories.
        stretch: what half-widths of the draws' interval were multiplied by so that it covers as promised.
    """

    cells: int
    method: str
    judged: int
    errors: Mapping[str, float]
    stretch: float = 1.0


@dataclass(frozen=True)
class _Filled:
    """Numbers are values, categories their index; K places, C sensors."""

    draws: Float64[np.ndarray, "d k c"]
    others: Mapping[str, Float64[np.ndarray, "k c"]]


def fill_series(
    generator: SeriesGenerator,
    frame: Any,
    *,
    draws: int,
    interval: float | None,
    steps: int,
    seed: int,
    every_place: bool,
) -> tuple[pl.DataFrame, dict[str, SensorFill]]:
    """The rows with gaps filled, and how; see `SeriesModel.impute`.

    Raises:
        SchemaError: as for `SeriesModel.score`.
        ConfigError: too few draws, an interval that is no share, or a column that has the name of an end.
    """
    _check(draws, interval)
    table = prepared(frame, generator.plan.config) if generator.plan.config.sensor else to_polars(frame)
    canvases = generator.canvases(frame)
    work = [_Work(generator, canvas, draws, interval, steps, seed) for canvas in canvases]
    names = generator.codec.columns
    wanted = [each.open if every_place else each.open[each.recording.recorded] for each in work]
    gaps = {name: sum(int(cells[:, c].sum()) for cells in wanted) for c, name in enumerate(names)}
    if not any(gaps.values()) and not every_place:
        return table, {}
    report, results = {}, [each.filled() for each in work]
    trials = [trial for each in work for trial in each.judged()] if any(gaps.values()) else []
    for c, name in enumerate(names):
        if gaps[name]:
            report[name] = _chosen(generator, c, gaps[name], trials, interval)
    ends = _ends(generator, report, interval, table)
    pieces = [_columns(generator, each, filled, report, interval) for each, filled in zip(work, results, strict=True)]
    if every_place:
        tables = [
            next(generator.table(each.canvas, iter([columns]))) for each, columns in zip(work, pieces, strict=True)
        ]
        whole = pl.concat([
            done.hstack([_restored(generator, columns[f"{name}_{end}"], name).alias(f"{name}_{end}")
                         for name, end in ends])
            for done, columns in zip(tables, pieces, strict=True)
        ])  # fmt: skip
        return whole, report
    return _on_rows(generator, table, work, pieces, report, ends), report


def _check(draws: int, interval: float | None) -> None:
    if draws < 1:
        raise ConfigError(f"draws is at least 1; got {draws}.")
    if interval is None:
        return
    if not 0 < interval < 1:
        raise ConfigError(f"interval is a share inside (0, 1); got {interval}. Example: 0.9")
    least = math.ceil(2 / (1 - interval) - 1e-9)
    if draws < least:
        raise ConfigError(f"an interval of {interval:g} needs at least {least} draws; got {draws}. Raise draws.")


class _Work:
    """One recording that is filled."""

    def __init__(
        self, generator: SeriesGenerator, canvas: Canvas, draws: int, interval: float | None, steps: int, seed: int
    ) -> None:
        assert canvas.recording is not None  # canvases of a frame have one
        self.generator, self.canvas, self.recording = generator, canvas, canvas.recording
        self.draws, self.judging = draws, draws if interval is not None else min(draws, _JUDGING_DRAWS)
        self.steps, self.seed = steps, seed
        codec = generator.codec
        self.values = np.stack([_plain(self.recording.frame[name], codec, name) for name in codec.columns], axis=1)
        self.open = np.isnan(self.values)

    def filled(self) -> _Filled:
        """Every gap, by every method."""
        return self._fill(self.open, self.draws, self.seed)

    def judged(self) -> list[tuple[Bool[np.ndarray, "k c"], Float64[np.ndarray, "k c"], _Filled]]:
        """Cells that were hidden, the truth, and what each method makes of them."""
        hidden = self._hidden()
        if not hidden.any():
            return []
        return [(hidden, self.values, self._fill(self.open | hidden, self.judging, self.seed + 1))]

    def _hidden(self) -> Bool[np.ndarray, "k c"]:
        """Recorded cells under gaps like those that there are, elsewhere."""
        rng = np.random.default_rng(self.seed)
        places, length = len(self.open), self.generator.sampler.length
        pieces = []
        for start, end in runs_of(self.open.any(axis=1)):
            pieces += [self.open[i : min(i + length, end)] for i in range(start, end, length)]
        hidden = np.zeros_like(self.open)
        if not pieces:
            return np.asarray(hidden)
        for _ in range(_PIECES):
            piece = pieces[rng.integers(len(pieces))]
            start = int(rng.integers(0, places - len(piece) + 1))
            part = slice(start, start + len(piece))
            if hidden[max(0, start - 1) : start + len(piece) + 1].any():
                continue  # two gaps side by side would be a longer one
            hidden[part] |= piece & ~self.open[part]
            if hidden.any(axis=1).mean() > _MOST_JUDGED:
                break
        return np.asarray(hidden)

    def _fill(self, open_cells: Bool[np.ndarray, "k c"], draws: int, seed: int) -> _Filled:
        generator, canvas = self.generator, self.canvas
        known = canvas.known
        closed = np.zeros((len(known.given), open_cells.shape[1]), bool)
        closed[: len(open_cells)] = ~open_cells
        part = replace(canvas, known=replace(known, given=known.given & generator.layout.cells(closed)))
        columns = generator.codec.columns
        drawn = []
        if open_cells.any():
            for frame in generator.draw(part, range(draws), steps=self.steps, seed=seed):
                drawn.append(np.stack([_plain(frame[name], generator.codec, name) for name in columns], axis=1))
        else:
            drawn = [self.values]
        others = plain_fillings(np.where(open_cells, np.nan, self.values))
        if generator.plan.rhythm.terms:
            others["calendar"] = self._by_calendar(np.where(open_cells, np.nan, self.values))
        return _Filled(np.stack(drawn), others)

    def _by_calendar(self, values: Float64[np.ndarray, "k c"]) -> Float64[np.ndarray, "k c"]:
        """What the calendar leaves over, interpolated, and the calendar put back."""
        plan, entity = self.generator.plan, self.canvas.entity
        places = self.canvas.first + np.arange(len(values))
        names = self.generator.codec.columns
        even = plan.timeless(pl.DataFrame(values, schema=list(names)), entity, places).to_numpy()
        return plan.timed(pl.DataFrame(linear_filling(even), schema=list(names)), entity, places).to_numpy()


def _plain(values: pl.Series, codec: Any, name: str) -> Float64[np.ndarray, " k"]:
    """Numbers, or the index of a category, with NaN for gaps."""
    read = codec.read(pl.DataFrame([values.alias(name)]), name)
    code = codec.codes[name]
    if isinstance(code, CategoryCode):
        order = {category: index for index, category in enumerate(code.categories)}
        indices = read.replace_strict(order, default=-1, return_dtype=pl.Float64)
        return np.asarray(indices.set(read.is_null(), None).fill_null(np.nan).to_numpy())
    return np.asarray(read)


def _middle(draws: Float64[np.ndarray, "d n"], category: bool) -> Float64[np.ndarray, " n"]:
    """The median of numbers, the most frequent category."""
    if not category:
        return np.asarray(np.median(draws, axis=0))
    if not draws.size:
        return np.asarray(draws[0])
    states = np.arange(draws.max(initial=0) + 1)
    return np.asarray((draws[None] == states[:, None, None]).sum(axis=1).argmax(axis=0), dtype=np.float64)


def _chosen(generator: SeriesGenerator, c: int, cells: int, trials: list[Any], interval: float | None) -> SensorFill:
    """The method that was nearest to what had been hidden, and how wide its interval must be."""
    category = isinstance(generator.codec.codes[generator.codec.columns[c]], CategoryCode)
    allowed = ("last",) if category else ("linear", "calendar", "seasonal", "neighbours")
    parts: dict[str, list[Any]] = {}
    truth, low, high = [], [], []
    shared = set(allowed).intersection(*(filled.others for _, _, filled in trials)) if trials else set()
    for hidden, values, filled in trials:
        rows = hidden[:, c]
        truth.append(values[rows, c])
        drawn = filled.draws[:, rows, c]
        parts.setdefault("model", []).append(_middle(drawn, category))
        for method in sorted(shared):
            parts.setdefault(method, []).append(filled.others[method][rows, c])
        if interval is not None and not category:
            ends = np.quantile(drawn, [(1 - interval) / 2, (1 + interval) / 2], axis=0)
            low.append(ends[0] - parts["model"][-1])
            high.append(ends[1] - parts["model"][-1])
    if not truth or sum(map(len, truth)) < _LEAST_JUDGED:
        return SensorFill(cells, "model", 0, {})
    real = np.concatenate(truth)
    guesses = {method: np.concatenate(each) for method, each in parts.items()}
    errors = {
        method: float(np.mean(guess != real) if category else np.mean(np.abs(guess - real)))
        for method, guess in guesses.items()
        if not np.isnan(guess).any()
    }
    method = min(errors, key=lambda name: (errors[name], METHODS.index(name)))
    stretch = 1.0
    if interval is not None and not category:
        off = real - guesses[method]
        width = np.where(off < 0, np.concatenate(low), np.concatenate(high))
        stretch = _stretch(np.abs(off), np.abs(width), interval)
    return SensorFill(cells, method, len(real), errors, stretch)


def _stretch(off: Float64[np.ndarray, " n"], width: Float64[np.ndarray, " n"], interval: float) -> float:
    """The split-conformal factor on half-widths (Lei et al. 2018, section 5.2)."""
    floor = 1e-3 * max(float(width.mean()), 1e-12)
    rank = math.ceil((len(off) + 1) * interval)
    ratios = np.sort(off / np.maximum(width, floor))
    return float(ratios[min(rank, len(off)) - 1])


def _columns(
    generator: SeriesGenerator, work: _Work, filled: _Filled, report: Mapping[str, SensorFill], interval: float | None
) -> pl.DataFrame:
    """All places of a recording, canonical; with ends of intervals where a number was filled."""
    columns = [work.recording.frame[name] for name in generator.codec.columns]
    for c, name in enumerate(generator.codec.columns):
        if name not in report:
            continue
        code, gap = generator.codec.codes[name], work.open[:, c]
        before = columns[c]
        category = isinstance(code, CategoryCode)
        middle = _middle(filled.draws[:, :, c], category)
        chosen = middle if report[name].method == "model" else filled.others[report[name].method][:, c]
        chosen = np.where(np.isnan(chosen), middle, chosen)
        columns[c] = _canonical(generator, name, chosen).zip_with(pl.Series(gap), before).alias(name)
        if interval is None or category:
            continue
        for end, share in (("low", (1 - interval) / 2), ("high", (1 + interval) / 2)):
            reach = (np.quantile(filled.draws[:, :, c], share, axis=0) - middle) * report[name].stretch
            values = _canonical(generator, name, chosen + reach)
            nothing = pl.Series([None] * len(values), dtype=values.dtype)
            columns.append(values.zip_with(pl.Series(gap), nothing).alias(f"{name}_{end}"))
    return pl.DataFrame(columns)


def _canonical(generator: SeriesGenerator, name: str, values: Float64[np.ndarray, " k"]) -> pl.Series:
    code = generator.codec.codes[name]
    if isinstance(code, CategoryCode):
        names = [*code.categories, None]
        texts = [names[int(value)] if value >= 0 else None for value in np.nan_to_num(values, nan=-1)]
        return generator.categories(name, texts)
    return generator.numbers(name, values)


def _ends(
    generator: SeriesGenerator, report: Mapping[str, SensorFill], interval: float | None, table: pl.DataFrame
) -> list[tuple[str, str]]:
    if interval is None:
        return []
    ends = []
    for name in report:
        if isinstance(generator.codec.codes[name], CategoryCode):
            continue
        for end in ("low", "high"):
            if f"{name}_{end}" in table.columns:
                raise ConfigError(
                    f"the interval needs the name {f'{name}_{end}'!r}; the table has such a column. Rename it."
                )
            ends.append((name, end))
    return ends


def _restored(generator: SeriesGenerator, values: pl.Series, name: str) -> pl.Series:
    return generator.schema.restore(pl.DataFrame([values.alias(name)]))[name]


def _on_rows(
    generator: SeriesGenerator,
    table: pl.DataFrame,
    work: list[_Work],
    pieces: list[pl.DataFrame],
    report: Mapping[str, SensorFill],
    ends: list[tuple[str, str]],
) -> pl.DataFrame:
    """The user's rows, with what was filled at their places."""
    if not report:
        return table
    row = np.concatenate([each.recording.rows for each in work])
    offsets = np.cumsum([0, *(each.canvas.places for each in work)])
    at = np.concatenate([each.recording.places + offset for each, offset in zip(work, offsets, strict=False)])
    place = np.full(table.height, -1)
    place[row] = at
    known, whole = pl.Series(place >= 0), pl.concat(pieces)
    for name in report:
        if name not in table.columns:
            continue
        before = table[name]
        values = _restored(generator, whole[name], name)[np.maximum(place, 0)].cast(before.dtype)
        table = table.with_columns(values.zip_with(known & before.is_null(), before).alias(name))
    columns = []
    for name, end in ends:
        values = _restored(generator, whole[f"{name}_{end}"], name)[np.maximum(place, 0)]
        nothing = pl.Series([None] * table.height, dtype=values.dtype)
        columns.append(values.zip_with(known, nothing).alias(f"{name}_{end}"))
    return table.with_columns(columns)
