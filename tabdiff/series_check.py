"""How good is a model of a series, with no label at hand? Faults are planted into held-out time, and those found are counted.

Windowed principal components, which are hard to beat on sensors, look at the same time and the same faults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Float32, Float64
from sklearn.decomposition import PCA

from tabdiff.columns import Kind
from tabdiff.planting import KINDS, Plant
from tabdiff.schema import Schema
from tabdiff.series import Recording

_STEPS = 16  # places in a window of the control
_EXPLAINED = 0.9  # share of the variance that its components keep
_FEWEST_VALUES = 10  # a sensor with fewer different values is a switch; there is no drift or noise in it
_FARTHEST = 20.0
_ALIKE = 0.5  # correlation

Judge = Callable[[pl.DataFrame, int], tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k c"]]]


class WindowedPca:
    """The control: what principal components of windows of 16 places leave over, at the window's middle."""

    def __init__(self, windows: Float32[np.ndarray, "n t r"]) -> None:
        self.steps = min(_STEPS, windows.shape[1])
        rows = np.clip(windows[:, -self.steps :].astype(np.float64), -_FARTHEST, _FARTHEST).reshape(len(windows), -1)
        self._pca = PCA(n_components=_EXPLAINED, svd_solver="full").fit(rows)

    def score(self, raw: Float[np.ndarray, "k r"]) -> Float64[np.ndarray, " k"]:
        """Mean squared residual of the window around each place."""
        inside = np.clip(raw.astype(np.float64), -_FARTHEST, _FARTHEST)
        view = np.lib.stride_tricks.sliding_window_view(inside, self.steps, axis=0)
        rows = view.transpose(0, 2, 1).reshape(len(view), -1)
        left = rows - self._pca.inverse_transform(self._pca.transform(rows))
        before = (self.steps - 1) // 2
        residual = (left**2).mean(1, dtype=np.float64)
        return np.pad(residual, (before, self.steps - 1 - before), mode="edge")


@dataclass(frozen=True)
class Found:
    """One planted fault.

    Attributes:
        kind, sensor: what was planted.
        found: it scores above everything in the same time without it.
        first: the sensor is the first that the peak of its score names.
        control: windowed principal components find it, by the same rule.
        findable: so does a matched filter that knows the fault; what it does not find nobody can be asked to.
        anyway: the sensor that is named is the one that the place names without the fault.
        alike: it is another one, which goes with the broken one (correlation above 0.5).
    """

    kind: str
    sensor: str
    found: bool
    first: bool
    control: bool
    findable: bool
    anyway: bool
    alike: bool


def plant_and_look(
    recording: Recording,
    schema: Schema,
    judge: Judge,
    control: Callable[[pl.DataFrame, int], Float64[np.ndarray, " k"]],
    findable: Callable[[pl.DataFrame, pl.DataFrame], bool],
    *,
    deviation: Mapping[str, float],
    window: int,
    each: int,
    rng: np.random.Generator,
) -> list[Found]:
    """Plant `each` faults of each kind, one at a time, in sensors drawn at random.

    Args:
        recording: held-out normal time.
        judge: scores and contributions of a frame of sensors that begins at that place of the recording.
        control: scores of the control.
        findable: whether the fault can be found in the first of two frames by who knows the second, which has none.
        deviation: of each number in all of normal time.
        window: places that a fault may touch on either side.
    """
    frame = recording.frame.with_columns(pl.all().forward_fill().backward_fill())
    sensors = movable(frame, schema)
    if not sensors or frame.height < 2 * window:
        return []
    normal, carried = judge(frame, 0)
    usual, usual_control = float(np.nanmax(normal)), float(control(frame, 0).max())
    columns = [column.name for column in schema.modelled]
    found = []
    for kind in KINDS:
        for _ in range(each):
            sensor = str(rng.choice(sensors))
            values = frame[sensor].cast(pl.Float64).to_numpy()
            plant = Plant.draw(kind, len(values), window, rng)
            broken = frame.with_columns(pl.Series(sensor, plant.apply(values, deviation[sensor], rng)))
            begin, end = max(0, plant.start - 2 * window), plant.start + plant.length + 2 * window
            part = broken[begin:end]
            score, contributions = judge(part, begin)
            touched = slice(max(0, plant.start - begin - window // 2), plant.start - begin + plant.length + window // 2)
            near = np.nan_to_num(score[touched], nan=-np.inf)
            peak = int(near.argmax()) + touched.start
            named = columns[int((contributions[peak] * np.sign(score[peak])).argmax())]
            place = min(begin + peak, len(normal) - 1)
            found.append(
                Found(
                    kind,
                    sensor,
                    bool(near.max() > usual),
                    named == sensor,
                    bool(control(part, begin)[touched].max() > usual_control),
                    findable(broken, frame),
                    named == columns[int((carried[place] * np.sign(normal[place])).argmax())],
                    named != sensor and _go_together(frame, named, sensor),
                )
            )
    return found


def _go_together(frame: pl.DataFrame, one: str, other: str) -> bool:
    if not (frame.schema[one].is_numeric() and frame[one].n_unique() > 1):
        return False
    return bool(
        abs(np.corrcoef(frame[one].cast(pl.Float64).to_numpy(), frame[other].cast(pl.Float64).to_numpy())[0, 1])
        > _ALIKE
    )


def movable(frame: pl.DataFrame, schema: Schema) -> list[str]:
    """Sensors that move: numbers with more than a few values."""
    numbers = [column.name for column in schema.modelled if column.kind in (Kind.CONTINUOUS, Kind.INTEGER)]
    return [name for name in numbers if frame[name].n_unique() > _FEWEST_VALUES]


def summary(found: Sequence[Found]) -> dict[str, Any]:
    """Shares of the planted faults: found, found by the control, and of those found the right sensor first, or one that is named anyway, or one alike; by kind, too."""
    if not found:
        return {}
    kinds = {}
    for kind in KINDS:
        mine = [each for each in found if each.kind == kind]
        kinds[kind] = {
            "found": float(np.mean([each.found for each in mine])),
            "control": float(np.mean([each.control for each in mine])),
            "findable": float(np.mean([each.findable for each in mine])),
            "sensor_first": _share([each.first for each in mine if each.found]),
            "sensor_first_of_findable": _share([each.first for each in mine if each.found and each.findable]),
        }
    return {
        "planted": len(found),
        "found": float(np.mean([each.found for each in found])),
        "control": float(np.mean([each.control for each in found])),
        "findable": float(np.mean([each.findable for each in found])),
        "found_of_findable": _share([each.found for each in found if each.findable]),
        "sensor_first": _share([each.first for each in found if each.found]),
        "sensor_first_of_findable": _share([each.first for each in found if each.found and each.findable]),
        "anyway": _share([each.anyway and not each.first for each in found if each.found]),
        "alike": _share([each.alike and not each.anyway for each in found if each.found]),
        "kinds": kinds,
    }


def _share(facts: Sequence[bool]) -> float | None:
    return float(np.mean(facts)) if facts else None
