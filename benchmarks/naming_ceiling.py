"""How often can the broken sensor be named at all? A judge that knows more than any user names the planted faults of series_faults.py.

    python benchmarks/naming_ceiling.py DATA --families skab tep

The judge knows where each fault begins and ends and which sensors can break, and has learned from hundreds of labelled faults of the same kinds in
other stretches of the same recordings (gradient-boosted trees). With --kind it is told the kind of each fault, too; with --blur it is wrong
about when by up to so many places. Of each sensor it sees likelihood ratios of each kind of fault in two autoregressive Gaussians of
all sensors, what it held at times when the other sensors were most alike, level, scatter, jumps and unchanged readings, and the evidence and weight
of `tabdiff.attribution`; each as it is, beside what is usual for the sensor, beside the time before and after, and beside the other sensors.
Readings that occur twice are not looked for: a copy is how a lost correlation is planted, not what one is. Where one sensor alone can break there is nothing to name.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
from series_faults import NOT_SENSORS, recordings
from sklearn.ensemble import HistGradientBoostingClassifier

from tabdiff import fit_series, series_calibration
from tabdiff.attribution import Habits
from tabdiff.config import validate_fit_config
from tabdiff.planting import KINDS, SIZES, Plant
from tabdiff.series_check import movable

LAGS = [lag for far in range(8, 17) for lag in (-far, far)]
ORDERS = ((15, 0.5), (3, 0.1))  # steps and ridge of the Gaussians
NULLS = 24  # stretches of normal time of each length that say what is usual
ALIKE = 12  # times at which the other sensors were most alike
TREES = 3  # fits that are averaged


class Gaussian:
    """An autoregressive Gaussian of C sensors: of any stretch, what each sensor should hold given all that lies around it."""

    def __init__(self, parts: list[Any], order: int, ridge: float) -> None:
        self.order = order
        width = parts[0].shape[1]
        rows = [np.lib.stride_tricks.sliding_window_view(x, order + 1, axis=0) for x in parts if len(x) > order]
        windows = np.concatenate([each.transpose(0, 2, 1).reshape(len(each), -1) for each in rows])
        self.mean = windows[:, -width:].mean(0)
        covariance = np.cov(windows.T) + ridge**2 * np.eye(windows.shape[1])
        past = order * width
        lead = np.linalg.solve(covariance[:past, :past], covariance[:past, past:]).T
        self.inverse = np.linalg.inv(covariance[past:, past:] - lead @ covariance[:past, past:])
        self.taps = np.concatenate([-lead, np.eye(width)], axis=1).reshape(width, order + 1, width).transpose(1, 0, 2)
        self.gram = np.einsum("kic,lic->klc", self.taps, np.einsum("ij,ljc->lic", self.inverse, self.taps))
        self.auto, self.ridge = np.zeros((64, width)), ridge
        for lag in range(64):
            pairs = [(x[lag:] - self.mean) * (x[: len(x) - lag] - self.mean) for x in parts if len(x) > lag]
            self.auto[lag] = np.concatenate(pairs).mean(0) if pairs else 0.0
        self.own = cache(self._own)
        self.precision = cache(self._precision)
        self.inside = cache(self._inside)

    def pull(self, x: Any) -> Any:
        """Precision times the deviation, of N places; the first `order` places are given."""
        r, p, n = x - self.mean, self.order, len(x)
        innovation = sum(r[k : n - p + k] @ self.taps[k].T for k in range(p + 1)) @ self.inverse
        found = np.zeros_like(r)
        for k in range(p + 1):
            found[k : n - p + k] += innovation @ self.taps[k]
        return found

    def _precision(self, n: int) -> tuple[Any, Any]:
        """(C, N, N) precision of each sensor given the others, and its inverse."""
        found, steps = np.zeros((self.gram.shape[2], n, n)), np.arange(n - self.order)
        for k in range(self.order + 1):
            for m in range(self.order + 1):
                found[:, steps + k, steps + m] += self.gram[k, m][:, None]
        return found, np.linalg.inv(found + 1e-6 * np.eye(n))

    def _inside(self, n: int, begin: int, length: int) -> tuple[Any, Any, Any]:
        part = self.precision(n)[0][:, begin : begin + length, begin : begin + length]
        return (part, *np.linalg.eigh(part))

    def _own(self, length: int) -> tuple[Any, Any]:
        """Of a sensor by itself: inverse covariance of a stretch, and its log determinant."""
        lags = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
        taper = np.clip(1 - lags / 64, 0, 1)
        covariance = self.auto[lags].transpose(2, 0, 1) * taper + (self.ridge**2 + 1e-3) * np.eye(length)
        return np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1]

    def ratios(self, x: Any, start: int, length: int) -> list[Any]:
        """What speaks for each kind of fault in each sensor (C,), in nats a place where it is likelihood."""
        first = max(0, start - 2 * self.order - 2)
        part = x[first : start + length + 2 * self.order + 2]
        begin, n = start - first, len(part)
        u, here = self.pull(part), slice(begin, begin + length)
        inside, values, axes = self.inside(n, begin, length)
        values = np.maximum(values, 1e-6)
        mine = u[here].T
        turned = np.einsum("cts,ct->cs", axes, mine)
        distance = (turned**2 / values).sum(1)
        usual = 0.5 * np.log(values).sum(1) - 0.5 * distance
        found = [distance / length]
        for shape in (np.full(length, SIZES["spike"]), SIZES["drift"] * np.linspace(0, 1, length)):
            size = np.einsum("t,cts,s->c", shape, inside, shape)
            along = mine @ shape
            found += [np.abs(along) - 0.5 * size, along**2 / size, -np.abs(np.log(np.abs(along) / size + 1e-3))]
        noise, off = SIZES["noise"] ** 2, turned**2 / values**2
        found.append((0.5 * off * (values - 1 / (1 / values + noise)) - 0.5 * np.log(1 + noise * values)).sum(1))
        inverse, size = self.own(length)
        r = (part - self.mean)[here].T
        own = -0.5 * np.einsum("ct,cts,cs->c", r, inverse, r) - 0.5 * size
        found += [(own - usual) / length, own / length]
        spread = self.precision(n)[1]
        left = np.einsum("cts,sc->tc", spread, u)  # of each sensor, given the others only
        scale = np.einsum("ctt->tc", spread)
        squares = left**2 / scale
        outside = np.r_[squares[:begin], squares[begin + length :]]
        found += [squares[here].mean(0), outside.mean(0), np.log(squares[here].mean(0) + 1e-3)]
        found.append(found[-1] - np.log(outside.mean(0) + 1e-3))
        expected, best = part - left, np.full(part.shape[1], np.inf)
        for lag in LAGS:
            to = np.arange(max(begin, begin + lag), min(begin + length, begin + length + lag))
            if len(to) >= length // 2:
                now = ((part[to] - expected[to]) ** 2 / scale[to]).mean(0)
                moved = ((part[to - lag] - expected[to]) ** 2 / scale[to]).mean(0)
                best = np.minimum(best, np.log(moved + 0.05) - np.log(now + 0.05))
        found.append(np.where(np.isfinite(best), best, 0.0))
        return found


class Judge:
    """What is known of one stretch that was left out: models of all other time."""

    def __init__(self, x: Any, begin: int, end: int) -> None:
        parts = [part for part in (x[:begin], x[end:]) if len(part) > 16]
        self.gaussians = [Gaussian(parts, *order) for order in ORDERS]
        self.normal = np.concatenate([part[8:-8] for part in parts])
        self.around = np.concatenate([np.stack([p[:-16], p[8:-8], p[16:]], 1) for p in parts])
        steps = np.concatenate([np.abs(np.diff(part, axis=0)) for part in parts])
        self.steps = np.sort(steps, axis=0)

    def neighbours(self, x: Any, places: Any) -> list[Any]:
        """Of each sensor, beside the times at which all other sensors were most alike."""
        windows = np.stack([x[np.clip(places + lag, 0, len(x) - 1)] for lag in (-8, 0, 8)], 1)
        far = ((windows[:, None] - self.around[None]) ** 2).sum(2)
        every = far.sum(2)
        found = np.zeros((2, x.shape[1]))
        for c in range(x.shape[1]):
            near = np.argpartition(every - far[:, :, c], ALIKE, axis=1)[:, :ALIKE]
            held = self.normal[near, c]
            off = x[places, c] - held.mean(1)
            found[:, c] = np.abs(off.mean()), (np.abs(off) / (held.std(1) + 0.1)).mean()
        return list(found)

    def simple(self, x: Any, start: int, length: int) -> list[Any]:
        """Level, scatter, jumps, unchanged readings."""
        here, before = x[start : start + length], x[max(0, start - 32) : start]
        after = x[start + length : start + length + 32]
        beside = np.concatenate([before, after])
        diff = np.diff(x[max(0, start - 32) : start + length + 32], axis=0)
        inner = np.diff(here, axis=0) if length > 1 else np.zeros_like(here)
        jumps = [
            np.abs(x[at] - x[at - 1]) if 0 < at < len(x) else np.zeros(x.shape[1]) for at in (start, start + length)
        ]
        below = [[np.searchsorted(s, j) for s, j in zip(self.steps.T, jump, strict=True)] for jump in jumps]
        rare = [-np.log(1 - np.array(each) / (len(self.steps) + 1)) for each in below]
        local = np.abs(diff).mean(0) + 1e-3
        return [
            *rare,
            np.log(jumps[0] / local + 1e-2),
            np.log(jumps[1] / local + 1e-2),
            np.abs(here.mean(0) - beside.mean(0)) / (beside.std(0) + 0.1),
            np.log((here.std(0) + 0.02) / (beside.std(0) + 0.02)),
            np.log((np.abs(inner).mean(0) + 0.01) / (local + 0.01)),
            (inner == 0).mean(0),
            np.abs(before[-8:].mean(0) - after[:8].mean(0)),
        ]

    def features(self, x: Any, start: int, length: int) -> Any:
        """(C, F) of a stretch of a recording."""
        places = np.arange(start, start + length)[:: max(1, length // 8)]
        rows = [*self.simple(x, start, length), *self.neighbours(x, places)]
        for gaussian in self.gaussians:
            rows += gaussian.ratios(x, start, length)
        return np.nan_to_num(np.stack(rows, 1), posinf=1e6, neginf=-1e6)


@dataclass
class Fault:
    """A planted fault: of which recording, features of each sensor that can break, and which one is broken."""

    family: str
    kind: str
    features: Any
    broken: int
    found: bool = True
    findable: bool = True
    first: bool = False


class Recording:
    """One recording, the stretches that a fit held out in turn, and what the fit found of the faults that it plants."""

    def __init__(self, family: str, frame: pl.DataFrame, seeds: list[int], blur: int = 0) -> None:
        self.family, self.frame, self.seeds, self.blur = family, frame, seeds, blur
        self.rng = np.random.default_rng(11)
        self.stretches: list[Any] = []
        self.planted: list[tuple[tuple[Plant, str, Any], dict[str, bool]]] = []
        config = validate_fit_config({"series": {"time": "step"}, "train": {"steps": 1}})
        roles = {name: {"role": "feature"} for name in frame.columns if name != "step"}
        habits = series_calibration._habits

        def watched(found: Any, window: int) -> Habits:
            self.stretches = self.stretches or list(found)
            return habits(found, window)

        with (
            mock.patch.object(series_calibration, "_habits", watched),
            mock.patch.object(series_calibration, "plant_and_look", self.look),
        ):
            fit_series(frame, config, overrides=roles)

    def look(self, recording: Any, schema: Any, judge: Any, control: Any, findable: Any, **how: Any) -> list[Any]:
        """As `tabdiff.series_check.plant_and_look`, but what was planted is kept."""
        frame = recording.frame.with_columns(pl.all().forward_fill().backward_fill())
        sensors, self.window, self.deviation = movable(frame, schema), how["window"], how["deviation"]
        self.columns = [column.name for column in schema.modelled]
        self.sensors = sensors
        if not sensors or frame.height < 2 * self.window:
            return []
        self.own = recording.first  # where the stretch begins
        usual = float(np.nanmax(judge(frame, 0)[0]))
        for seed in self.seeds:
            rng = np.random.default_rng(seed)
            for kind in [kind for kind in KINDS for _ in range(how["each"])]:
                sensor = str(rng.choice(sensors))
                values = frame[sensor].cast(pl.Float64).to_numpy()
                plant = Plant.draw(kind, len(values), self.window, rng)
                held = plant.apply(values, self.deviation[sensor], rng)
                broken = frame.with_columns(pl.Series(sensor, held))
                begin, end = max(0, plant.start - 2 * self.window), plant.start + plant.length + 2 * self.window
                score, contributions = judge(broken[begin:end], begin)
                reach = self.window // 2
                touched = slice(max(0, plant.start - begin - reach), plant.start - begin + plant.length + reach)
                near = np.nan_to_num(score[touched], nan=-np.inf)
                peak = int(near.argmax()) + touched.start
                named = self.columns[int((contributions[peak] * np.sign(score[peak])).argmax())]
                facts = {
                    "found": bool(near.max() > usual),
                    "findable": findable(broken, frame),
                    "first": named == sensor,
                }
                self.planted.append(((plant, sensor, held - values), facts))
        return []

    def faults(self, each: int) -> tuple[list[Fault], list[Fault]]:
        """Those that are reported, and `each` of every kind in other stretches, to learn from."""
        whole = self.frame.select(self.columns).with_columns(pl.all().forward_fill().backward_fill())
        self.values = whole.to_numpy().astype(np.float64)
        self.spread = np.where(self.values.std(0) > 0, self.values.std(0), 1.0)
        self.x = (self.values - self.values.mean(0)) / self.spread
        self.known = {each.begin[1]: each for each in self.stretches}
        self.judges = {begin: Judge(self.x, begin, begin + len(s.x)) for begin, s in self.known.items()}
        self.steps = self.stretches[0].expectation.evidence_steps
        shown = {begin: self.shown(s, s.expectation.raw(s.x)) for begin, s in self.known.items()}
        self.habits = {
            begin: Habits.fit([e for b, e in shown.items() if b != begin] or [*shown.values()], self.window, self.steps)
            for begin in self.known
        }
        rng = np.random.default_rng([0, 77])
        others = [begin for begin in self.known if begin != self.own] or [*self.known]
        self.nulls = {}
        for length in sorted({Plant.draw(k, len(self.known[self.own].x), self.window, rng).length for k in KINDS}):
            rows = []
            for number in range(NULLS):
                begin = others[number % len(others)]
                room = len(self.known[begin].x) - length - 8
                if room > 8:
                    rows.append(self.seen(begin, int(rng.integers(8, room)), length, None, None)[0])
            self.nulls[length] = np.mean(rows, 0), np.std(rows, 0)
        reported = [self.fault(self.own, *planted, **facts) for planted, facts in self.planted]
        learned = []
        for kind in KINDS:
            for number in range(each):
                begin = others[number % len(others)]
                name = str(rng.choice(self.sensors))
                sensor = self.columns.index(name)
                own = self.values[begin : begin + len(self.known[begin].x), sensor]
                if own.std() == 0 or len(own) < 32:
                    continue
                plant = Plant.draw(kind, len(own), self.window, rng)
                change = plant.apply(own, self.deviation[name], rng) - own
                if np.abs(change).max() > 0:
                    learned.append(self.fault(begin, plant, name, change))
        return reported, learned

    @staticmethod
    def shown(stretch: Any, raw: Any) -> tuple[Any, Any]:
        return stretch.expectation.evidence(raw, np.arange(len(raw))), stretch.expectation.unchanged(raw)

    def seen(self, begin: int, start: int, length: int, sensor: int | None, change: Any) -> tuple[Any, Any]:
        """Features (C, F) of a part of the stretch that begins there, and of most of them, what they have more than the time before and after."""
        held, stretch, judge = self.x.copy(), self.known[begin], self.judges[begin]
        raw = stretch.expectation.raw(stretch.x)
        if sensor is not None:
            held[begin : begin + len(stretch.x), sensor] += change / self.spread[sensor]
            name = self.columns[sensor]
            code = stretch.expectation.codec.codes[name]
            raw[:, stretch.expectation._slots[name]] += change / (code.view_moments[0][1] * code.scale)
        here = judge.features(held, begin + start, length)
        beside = [
            judge.features(held, at, length)
            for at in (begin + start - length - 20, begin + start + length + 20)
            if 40 <= at <= len(held) - length - 40
        ]
        evidence, same = self.shown(stretch, raw)
        places = np.clip(np.array([start, start + length // 2, start + length]), 0, len(raw) - 1)
        ours = self.habits[begin].weigh(evidence, same, places, self.window, self.steps)
        excess = self.habits[begin].excess(evidence)[max(0, start - 4) : start + length + 4]
        rise = here - np.max(beside, axis=0) if beside else here * np.nan
        return np.concatenate([here, np.stack([*ours, excess.max(0), excess.mean(0)], 1)], 1), rise

    def fault(self, begin: int, plant: Plant, name: str, change: Any, **facts: bool) -> Fault:
        sensor = self.columns.index(name)
        off = int(self.rng.integers(-self.blur, self.blur + 1))
        start = int(np.clip(plant.start + off, 0, len(self.known[begin].x) - plant.length))
        f, rise = self.seen(begin, start, plant.length, sensor, change)
        mean, std = self.nulls[min(self.nulls, key=lambda known: abs(known - plant.length))]
        can = [self.columns.index(each) for each in self.sensors]
        z = ((f - mean) / (std + 0.1 * std.mean(0) + 1e-6))[can]
        most = np.sort(z, 0)
        beside = z - np.where(z == most[-1], most[-2 if len(z) > 1 else -1], most[-1])
        ranks = np.minimum((-z).argsort(0).argsort(0), 5)
        kind = np.full((len(can), 1), KINDS.index(plant.kind))
        features = np.concatenate([f[can], z, rise[can], beside, ranks, kind], 1).astype(np.float32)
        return Fault(self.family, plant.kind, features, can.index(sensor), **facts)


def ranked(learned: list[Fault], asked: list[Fault], kind: bool) -> list[bool]:
    """Whether trees that learned from some faults name the broken sensor of others."""
    width = learned[0].features.shape[1] - (not kind)
    rows = np.concatenate([each.features[:, :width] for each in learned])
    labels = np.concatenate([np.arange(len(each.features)) == each.broken for each in learned])
    how: dict[str, Any] = {"max_iter": 150, "learning_rate": 0.08, "max_leaf_nodes": 12, "l2_regularization": 1.0}
    models = [
        HistGradientBoostingClassifier(**how, max_features=0.3, random_state=seed).fit(rows, labels)
        for seed in range(TREES)
    ]
    likely = [np.mean([m.predict_proba(each.features[:, :width])[:, 1] for m in models], 0) for each in asked]
    return [int(one.argmax()) == each.broken for one, each in zip(likely, asked, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--families", nargs="+", default=["skab", "tep"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--most", type=int, default=None, help="places of a recording")
    parser.add_argument("--each", type=int, default=60, help="faults of each kind to learn from, a recording")
    parser.add_argument("--kind", action="store_true", help="tell the kind of each fault")
    parser.add_argument("--blur", type=int, default=0, help="places by which the judge may be wrong about when")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    reported: list[Fault] = []
    learned: list[Fault] = []
    for family, whole in recordings(options.data, options.families):
        sensors = whole[: options.most].select([n for n in whole.columns if n.lower() not in NOT_SENSORS])
        step = pl.int_range(sensors.height).alias("step")
        recording = Recording(family, sensors.cast(pl.Float64).with_columns(step), options.seeds, options.blur)
        if recording.planted:
            mine = recording.faults(options.each)
            reported += mine[0]
            learned += mine[1]
    rows = []
    for family in dict.fromkeys(each.family for each in reported):
        asked = [each for each in reported if each.family == family and each.found]
        named = ranked([each for each in learned if each.family == family], asked, options.kind)
        for each, right in zip(asked, named, strict=True):
            facts = {"findable": each.findable, "chance": 1 / len(each.features), "first": each.first, "judge": right}
            rows += [{"family": family, "kind": kind, **facts} for kind in ("all", each.kind)]
    pl.Config.set_tbl_rows(100)
    pl.Config.set_tbl_cols(20)
    pl.Config.set_tbl_width_chars(200)
    table = pl.DataFrame(rows).with_columns(pl.col("first", "judge").cast(pl.Float64))
    shares = [pl.col(name).mean().round(2) for name in ("chance", "first", "judge")]
    error = (pl.col("judge").std(ddof=0) / pl.len().sqrt()).round(3).alias("standard error")
    findable = [
        pl.col(name).filter(pl.col("findable")).mean().round(2).name.suffix(" of findable")
        for name in ("first", "judge")
    ]
    print(table.group_by("family", "kind", maintain_order=True).agg(pl.len().alias("found"), *shares, error, *findable))


if __name__ == "__main__":
    main()
