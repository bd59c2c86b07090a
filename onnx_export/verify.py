"""Whether a compiled program computes what torch computes: on rows like those of the table, and on rows like none.

The rows are stored with the model (`probes.safetensors`), drawn from the model itself, so that they give no training row
away. Whoever starts the programs elsewhere can compare with the stored errors, and `OnnxRuntime` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Float32

from tabdiff.bundle import Bundle
from tabdiff.calibration import Calibration
from tabdiff.config import SampleConfig
from tabdiff.errors import BundleError
from tabdiff.layout import Layout
from tabdiff.model import Model
from tabdiff.onnx_runtime import OnnxRuntime, Precision
from tabdiff.runtime import Runtime
from tabdiff.sampling import Condition, NoiseSchedule, draw

if TYPE_CHECKING:
    from tabdiff.nn.runtime import TorchRuntime

Report = dict[str, float]

PARITY = 1e-4  # largest difference of an error, relative to the row's total error in that view
RANKING = 1 - 5e-7  # Spearman's correlation of the scores: 1 to six digits
HALF_RANKING = 0.999
_PROBE_ROWS, _RANDOM_ROWS, _DRAWN_ROWS, _STEPS = 64, 256, 256, 8

_EDGE = np.float32(1e-5)
_EQUAL = 1e-6  # relative difference of scores that single precision does not tell apart


def make_probes(bundle: Bundle, runtime: TorchRuntime) -> dict[str, np.ndarray]:
    """Rows drawn from the model, half of them then disturbed, and the errors that torch gives them.

    `x` (N, T, W) float32, `present` (N, T, U) uint8, `errors` (N, T, V, C) float32. For windows they are random ones.
    """
    if "series" in bundle.model:
        x, present = random_rows(bundle.codec.layout, _PROBE_ROWS, np.random.default_rng(0), window_of(bundle))
        return {"x": x, "present": present.astype(np.uint8), "errors": runtime.score(x, present)}
    model = Model(bundle, runtime)
    drawn = model.sample(_PROBE_ROWS, seed=0, config=SampleConfig(steps=_STEPS))  # type: ignore[call-arg]
    encoded = model.codec.encode(model.schema.conform(drawn))
    x, present = encoded.x[:, None].copy(), encoded.present[:, None].copy()
    odd_x, odd_present = random_rows(bundle.codec.layout, _PROBE_ROWS // 2, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    swapped = rng.random(odd_x.shape) < 0.3
    x[::2] = np.where(swapped, odd_x, x[::2])
    present[::2] &= odd_present
    return {"x": x, "present": present.astype(np.uint8), "errors": runtime.score(x, present)}


def window_of(bundle: Bundle) -> int:
    """T: places in a window of the scoring program, 1 for the model of a table."""
    return int(bundle.model["series"]["window"]) if "series" in bundle.model else 1


def random_rows(
    layout: Layout, rows: int, rng: np.random.Generator, length: int = 1
) -> tuple[Float32[np.ndarray, "b t w"], Bool[np.ndarray, "b t u"]]:
    """Rows that no table holds: numbers of any size, any states, some cells never seen."""
    shape = (rows, length, layout.width)
    x = (rng.standard_normal(shape) * rng.choice([0.3, 1, 3], (rows, 1, 1))).astype(np.float32)
    present = rng.random((rows, length, len(layout.units))) < 0.95
    for index in layout.category_units:
        unit = layout.units[index]
        state = np.eye(unit.width, dtype=np.float32)[rng.integers(0, unit.width, (rows, length))]
        x[..., unit.slots] = state * present[..., index, None]
    return x, present


def verify(bundle: Bundle, torch_runtime: TorchRuntime, *, fp16: bool) -> dict[str, Report]:
    """Compare every compiled program with torch.

    Returns:
        For each precision: largest relative difference of an error, Spearman's correlation of the scores, largest
        difference of a drawn number, share of drawn categories that are the same (`_Both` has what counts).

    Raises:
        BundleError: a difference is larger than it may be.
    """
    # The warm-up compares with stored errors more loosely, and would say that the device is at fault.
    reports = {"float32": _compare(bundle, torch_runtime, "float32")}
    _require(reports["float32"], "float32", PARITY, RANKING)
    if fp16:
        reports["float16"] = _compare(bundle, torch_runtime, "float16")
        _require(reports["float16"], "float16", np.inf, HALF_RANKING)
    return reports


def _compare(bundle: Bundle, torch_runtime: TorchRuntime, precision: Precision) -> Report:
    compiled = OnnxRuntime(bundle, "cpu", precision=precision, warm_up=False)
    probes = make_probes(bundle, torch_runtime)
    rows = random_rows(bundle.codec.layout, _RANDOM_ROWS, np.random.default_rng(2), window_of(bundle))
    expected, found = [probes["errors"]], [compiled.score(probes["x"], probes["present"].astype(bool))]
    expected.append(torch_runtime.score(*rows))
    found.append(compiled.score(*rows))
    alone = [compiled.score(rows[0][i : i + 1], rows[1][i : i + 1]) for i in range(3)]  # one row is a size of its own
    expected.append(expected[1][:3])
    found.append(np.concatenate(alone))
    truth, other = np.concatenate(expected), np.concatenate(found)
    total = np.maximum(truth.sum((1, 3), keepdims=True), 1e-6)
    calibration = Calibration.from_json(bundle.calibration)
    scores = [calibration.combine(errors[:-3].sum(axis=1))[0] for errors in (truth, other)]
    numbers, categories = _compare_samples(bundle, torch_runtime, compiled)
    difference = np.abs(truth - other) / total
    return {
        "relative_difference": float(np.nan_to_num(difference, nan=np.inf).max()),
        "spearman": spearman(*_with_ties(*scores)),
        "drawn_difference": numbers,
        "same_categories": categories,
    }


def _compare_samples(bundle: Bundle, truth: Runtime, other: Runtime) -> tuple[float, float]:
    """Largest difference of a number and share of equal categories, at every step of whole chains, from the same state and noise."""
    layout, model = bundle.drawn_layout, bundle.model
    schedule = NoiseSchedule.of(model, bundle.tensors)
    condition = Condition.nothing(layout, _DRAWN_ROWS, model["length"])
    config = SampleConfig(steps=_STEPS, sampler="ddpm")  # type: ignore[call-arg] # ancestral steps use every input
    both = _Both(truth, other, layout)
    for _ in draw(both, layout, schedule, condition, config, seed=0):
        pass
    return both.difference, 1 - both.wrong / max(both.drawn, 1)


class _Both:
    """Two engines that take the same steps; the second one's results are only looked at.

    A category counts as different if the first engine would not draw it either with noise that is moved by `_EDGE`: a uniform number
    on the edge between two states falls to either, by rounding.
    """

    on_device = True  # its steps are what is asked for

    def __init__(self, truth: Runtime, other: Runtime, layout: Layout) -> None:
        self._truth, self._other, self._layout = truth, other, layout
        self.difference, self.wrong, self.drawn = 0.0, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._truth, name)

    def step(self, x: Any, t: float, s: float, noise: Any, reveal: Any, *more: Any) -> tuple[Any, Any]:
        """The first engine's step."""
        expected, x0 = (np.asarray(value) for value in self._truth.step(x, t, s, noise, reveal, *more))
        found = np.asarray(self._other.step(x, t, s, noise, reveal, *more)[0])
        slots, categories = self._layout.number_slots, list(self._layout.category_units)
        self.difference = max(self.difference, float(np.abs(expected - found)[..., slots].max(initial=0.0)))
        differs = self._differ(expected, found)
        for moved in (noise - _EDGE, noise + _EDGE) if differs.any() else ():
            noised = noise.copy()
            noised[..., categories] = np.clip(moved, 0, 1 - 2.0**-24)[..., categories]
            differs &= self._differ(np.asarray(self._truth.step(x, t, s, noised, reveal, *more)[0]), found)
        self.wrong += int(differs.sum())
        self.drawn += int(np.asarray(reveal)[..., categories].sum())
        return expected, x0

    def _differ(self, a: Float32[np.ndarray, "b t w"], b: Float32[np.ndarray, "b t w"]) -> Bool[np.ndarray, "k b t"]:
        blocks = [(a != b)[..., self._layout.units[i].slots].any(-1) for i in self._layout.category_units]
        return np.array(blocks, bool)


def _require(report: Report, precision: str, parity: float, ranking: float) -> None:
    half = precision == "float16"
    rules = [
        ("relative_difference", report["relative_difference"] <= parity, f"at most {parity:.0e}"),
        ("spearman", report["spearman"] >= ranking, f"at least {ranking}"),
        ("same_categories", half or report["same_categories"] == 1.0, "1"),
        ("drawn_difference", half or report["drawn_difference"] <= 1e-2, "at most 0.01"),
    ]
    broken = [f"{name} is {report[name]:.8g}, allowed {rule}" for name, holds, rule in rules if not holds]
    if broken:
        cure = "Leave --fp16 out." if half else "Nothing was written; please report this with the model's card."
        raise BundleError(f"the {precision} programs do not compute what torch does: {'; '.join(broken)}. {cure}")


def _with_ties(
    truth: Float[np.ndarray, " n"], found: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Both, with the mean over rows whose true scores are equal up to rounding: among equal rows there is no order."""
    if not (np.isfinite(truth).all() and np.isfinite(found).all()):
        return truth, found
    order = np.argsort(truth, kind="stable")
    ends = truth[order]
    group = np.empty(len(truth), np.int64)
    group[order] = np.cumsum(np.diff(ends, prepend=ends[:1]) > _EQUAL * (1 + np.abs(ends)))
    sizes = np.bincount(group)
    return (np.bincount(group, truth) / sizes)[group], (np.bincount(group, found) / sizes)[group]


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Correlation of ranks, equal values sharing theirs (Spearman 1904)."""
    ranks: list[Float[np.ndarray, " n"]] = []
    for values in (a, b):
        if not np.isfinite(values).all():
            return -1.0
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    return 1.0 if np.array_equal(ranks[0], ranks[1]) else float(np.corrcoef(ranks[0], ranks[1])[0, 1])
