"""Is a challenger good enough to take the champion's place? Measured on rows that neither was fitted on.

- `false_alarms`: share of those rows with a p-value of at most 0.05; a calibrated model has about 0.05.
- `fill_error`: one cell of each row is taken out and filled in again. A number costs its distance in interquartile ranges, at most 1;
  a category costs 1 if it is another one. This is the held-out loss in units that two models share; the loss of training is not, as
  each model has its own scales.
- `separation`: ROC AUC of telling the rows from rows whose columns were shuffled apart. Needs no labels.
- `agreement`: average precision on rows that people judged, if there are at least 5 anomalies and 5 normal ones.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tabdiff.errors import SchemaError
from tabdiff.operations.judged_events import JudgedEvent, agreement
from tabdiff.operations.judges import rows_of
from tabdiff.operations.series_trials import measure_series, spread_of, unseen, worse_figures
from tabdiff.store.registry import Version

if TYPE_CHECKING:
    from tabdiff.model import Model
    from tabdiff.series_model import SeriesModel

NOMINAL = 0.05
_FILLED_ROWS = 300
_FEWEST_JUDGED = 5
_SEED = 20_240_501  # which cells and which shuffle: the same for every model


@dataclass(frozen=True)
class Judgement:
    """Whether the challenger may take over, why, and the figures of both."""

    better: bool
    reasons: list[str]
    metrics: dict[str, dict[str, float]]


def compare(
    challenger: Version,
    champion: Version | None,
    verdicts: list[tuple[dict[str, Any], str]],
    events: Callable[[SeriesModel], Sequence[JudgedEvent]],
    *,
    tolerance: float,
) -> Judgement:
    """Judge a version beside the champion; without a champion it may take over as it is.

    Verdicts are those on rows of a table; `events` gives those on events of a series, at the places of the champion that it is asked with.

    The rule: it takes over if none of its figures is worse than the champion's by more than `tolerance` (of the fill error: by more
    than that share of it), where false alarms that are within three standard errors of 0.05 are never worse.
    """
    from tabdiff.loading import load

    assert challenger.folder is not None
    if "series" in challenger.metrics or (champion is not None and "series" in champion.metrics):
        return _compare_series(challenger, champion, events, tolerance)
    judges = pl.read_parquet(challenger.folder / "reference.parquet")
    new = measure(load(challenger.folder / "bundle"), judges, verdicts)
    if champion is None:
        return Judgement(True, ["there was no champion"], {"challenger": new})
    try:
        assert champion.folder is not None
        old = measure(load(champion.folder / "bundle"), judges, verdicts)
    except SchemaError as error:
        reason = f"the champion cannot read these rows any more: {str(error).splitlines()[0]}"
        return Judgement(True, [reason], {"challenger": new})
    worse = []
    noise = 3 * math.sqrt(NOMINAL * (1 - NOMINAL) / max(judges.height, 1))
    off = {
        name: abs(found["false_alarms"] - NOMINAL)
        for name, found in (("new", new), ("old", old))
        if "false_alarms" in found
    }
    if off and off["new"] > max(noise, off["old"]) + tolerance:
        worse.append("false_alarms")
    if "fill_error" in new and new["fill_error"] > old["fill_error"] * (1 + tolerance):
        worse.append("fill_error")
    worse += [
        name for name in ("separation", "agreement") if name in new and new[name] < old.get(name, 0.0) - tolerance
    ]
    reasons = [f"{name} {new[name]:.4f}, champion {old[name]:.4f}: worse" for name in worse]
    if not worse:
        reasons = [f"{name} {new[name]:.4f}, champion {old[name]:.4f}" for name in new if name in old]
    return Judgement(not worse, reasons, {"challenger": new, "champion": old})


def _compare_series(
    challenger: Version,
    champion: Version | None,
    events: Callable[[SeriesModel], Sequence[JudgedEvent]],
    tolerance: float,
) -> Judgement:
    """By the figures of `series_trials`, on time that neither version was fitted on, and by verdicts."""
    from tabdiff.loading import load_series

    if "series" not in challenger.metrics or (champion is not None and "series" not in champion.metrics):
        return Judgement(True, ["one of the two is the model of a series and the other of a table"], {})
    assert challenger.folder is not None
    judges = pl.read_parquet(challenger.folder / "reference.parquet")
    model = load_series(challenger.folder / "bundle")
    if champion is None:
        return Judgement(True, ["there was no champion"], {"challenger": measure_series(model, judges)})
    try:
        assert champion.folder is not None
        other = load_series(champion.folder / "bundle")
        fresh = unseen(judges, other, champion.metrics["series"]["until"])
        old = measure_series(other, fresh)
    except SchemaError as error:
        reason = f"the champion cannot read these rows any more: {str(error).splitlines()[0]}"
        return Judgement(True, [reason], {"challenger": measure_series(model, judges)})
    new = measure_series(model, fresh)
    if not new or not old:
        reason = f"of the judging time {fresh.height} rows are new to the champion, too few to compare the two"
        return Judgement(False, [reason], {"challenger": new, "champion": old})
    agreed = agreement(model, other, events(other))
    new, old = new | agreed[0], old | agreed[1]
    worse = worse_figures(new, old, tolerance)
    reasons = [f"{name} {new[name]:.4f}, champion {old[name]:.4f}: worse" for name in worse]
    if not worse:
        shared = [
            name
            for name in ("alarms", "expectation_error", "planted", "named", "agreement")
            if name in new and name in old
        ]
        reasons = [f"{name} {new[name]:.4f}, champion {old[name]:.4f}" for name in shared]
    return Judgement(not worse, reasons, {"challenger": new, "champion": old})


def measure(model: Model, judges: pl.DataFrame, verdicts: list[tuple[dict[str, Any], str]]) -> dict[str, float]:
    """The figures of one model; those that there are too few rows for are left out.

    Raises:
        SchemaError: the model cannot read the rows.
    """
    from tabdiff.evaluate.detection import average_precision, roc_auc  # brings scikit-learn

    found: dict[str, float] = {}
    if judges.height >= 20:
        scores = model.score(judges)
        found["false_alarms"] = float((scores.p_value <= NOMINAL).mean())
        shuffled = model.score(_shuffled(judges, model.codec.columns)).score
        labels = np.repeat([0, 1], judges.height)
        found["separation"] = float(roc_auc(labels, np.concatenate([scores.score, shuffled])))
        found["fill_error"] = _fill_error(model, judges.head(_FILLED_ROWS))
    needed = {column.name for column in model.schema.modelled}  # rows from before a column was added say nothing of it
    judged = [(row, verdict == "anomaly") for row, verdict in verdicts if verdict != "unsure" and needed <= row.keys()]
    anomalies = sum(label for _, label in judged)
    if min(anomalies, len(judged) - anomalies) >= _FEWEST_JUDGED:
        with contextlib.suppress(SchemaError):  # nor do those from before a column became another one
            scored = model.score(rows_of([row for row, _ in judged], model.schema)).score
            found["agreement"] = float(average_precision(np.array([int(label) for _, label in judged]), scored))
    return found


def _shuffled(frame: pl.DataFrame, columns: tuple[str, ...]) -> pl.DataFrame:
    rng = np.random.default_rng(_SEED)
    return frame.with_columns(frame[name][rng.permutation(frame.height)].alias(name) for name in columns)


def _fill_error(model: Model, frame: pl.DataFrame) -> float:
    """Mean cost of filling one cell of each row from the others."""
    columns = model.codec.columns
    taken = np.random.default_rng(_SEED).integers(len(columns), size=frame.height)
    holes = frame.with_columns(
        pl.when(pl.Series(taken != index)).then(pl.col(name)).alias(name) for index, name in enumerate(columns)
    )
    filled = model.impute(holes, draws=3)
    costs = []
    for index, name in enumerate(columns):
        mask = pl.Series(taken == index) & frame[name].is_not_null()
        truth, guess = frame[name].filter(mask), filled[name].filter(mask)
        if truth.dtype.is_numeric() or truth.dtype.is_temporal():
            numbers = frame[name].to_physical().cast(pl.Float64)
            spread = spread_of(numbers)
            distance = (truth.to_physical().cast(pl.Float64) - guess.to_physical().cast(pl.Float64)).abs() / spread
            costs += distance.clip(0, 1).fill_null(1.0).to_list()
        else:
            costs += truth.ne_missing(guess).cast(pl.Float64).to_list()
    return float(np.mean(costs)) if costs else 0.0
