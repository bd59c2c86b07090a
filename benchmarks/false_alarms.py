"""A false alarm of a sensor series said once: what is silent afterwards, and what is still told; see README.md here.

    python benchmarks/false_alarms.py DATA --families tep skab --trials 40

DATA as for series_faults.py. A deviation of one sensor (a step, a ramp or a swing) is planted into time after that of the fit and called a false
alarm. Then deviations are planted elsewhere: the same again (.8 to 1.2 times as high and as long), half and twice as high, with the other sign,
in another shape, in another sensor, and together with one in another sensor. Counted are those that raise an alarm before, where none was without them (told), and of these the
ones that still do (after). *mute*: what would still be told if alarms that name the same sensor first were dropped instead.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
from series_faults import NOT_SENSORS, recordings

from tabdiff import fit_series
from tabdiff.config import validate_fit_config
from tabdiff.series_model import SeriesModel

SHAPES = ("step", "ramp", "swing")
VARIANTS = ("again", "half", "twice", "other sign", "other shape", "other sensor", "with another")
_HEIGHT = (2.0, 4.0)  # standard deviations of the sensor
_LENGTH = (0.2, 0.6)  # windows


def deviation(shape: str, length: int) -> np.ndarray:
    forms = {
        "step": np.ones(length),
        "ramp": np.linspace(0, 1.5, length),
        "swing": 1.4 * np.sin(np.arange(length) * 1.1),
    }
    return forms[shape]


class Recording:
    """Time after that of a fit, into which deviations are planted a stretch at a time."""

    def __init__(self, table: pl.DataFrame, seed: int) -> None:
        names = [n for n in table.columns if n.lower() not in NOT_SENSORS]
        sensors = table.select(names).cast(pl.Float64).with_columns(pl.int_range(table.height).alias("step"))
        fitted = round(0.6 * table.height)
        config = validate_fit_config({"series": {"time": "step"}, "train": {"steps": 1, "seed": seed}})
        self.model = fit_series(sensors[:fitted], config, overrides={name: {"role": "feature"} for name in names})
        self.rest = sensors[fitted:]
        spread = sensors[:fitted].select(names).std().row(0, named=True)
        self.spread = {name: value for name, value in spread.items() if value and value > 1e-9}
        self.threshold = self.model.rule().threshold(self.model.blocks)

    def planted(self, place: int, *plants: tuple[str, np.ndarray]) -> tuple[pl.DataFrame, slice]:
        """Rows around a place with deviations from there on, and which of them have deviations."""
        window, length = self.model.window, max(len(values) for _, values in plants)
        low, high = max(0, place - 2 * window), min(self.rest.height, place + length + 2 * window)
        frame = self.rest[low:high]
        for name, values in plants:
            changed = frame[name].to_numpy().copy()
            changed[place - low : place - low + len(values)] += values * self.spread[name]
            frame = frame.with_columns(pl.Series(name, changed))
        return frame, slice(place - low, place - low + length)

    def alarm(self, model: SeriesModel, frame: pl.DataFrame, here: slice) -> tuple[bool, str]:
        """Whether the deviation is flagged, and the sensor that is named first at its highest place."""
        places = model.score(frame).places
        score = places["score"].to_numpy()[here]
        return bool(score.max() > self.threshold), str(places["sensor_1"][here][int(score.argmax())])


def trial(recording: Recording, rng: np.random.Generator) -> dict[str, tuple[bool, bool]] | None:
    """For each variant that is told before: whether it is after, and whether it is if the sensor is mute; None if nothing was to be judged."""
    window, model = recording.model.window, recording.model
    names = list(recording.spread)
    if len(names) < 2:
        return None
    name, other = (str(each) for each in rng.choice(names, 2, replace=False))
    shape = str(rng.choice(SHAPES))
    height = rng.uniform(*_HEIGHT) * rng.choice([-1, 1])
    length = max(4, round(rng.uniform(*_LENGTH) * window))
    room = recording.rest.height - 3 * window
    places = rng.integers(window, room, size=1 + len(VARIANTS))
    frame, here = recording.planted(int(places[0]), (name, height * deviation(shape, length)))
    events = model.score(frame).events.filter(pl.col("kind") == "abnormal")
    begin, end = frame["step"][here.start], frame["step"][here.stop - 1]
    mine = events.filter((pl.col("start") <= end) & (pl.col("end") >= begin))
    quiet = not recording.alarm(model, *recording.planted(int(places[0]), (name, np.zeros(length))))[0]
    if not mine.height or not quiet or not recording.alarm(model, frame, here)[0]:
        return None
    event = mine.row(0, named=True)
    told = model.with_false_alarms([model.false_alarm(frame, event["start"], event["end"])])
    muted = event["sensors"][0]
    more = deviation(str(rng.choice([each for each in SHAPES if each != shape])), length)
    second = (other, rng.uniform(*_HEIGHT) * deviation(str(rng.choice(SHAPES)), length))
    again = rng.uniform(0.8, 1.2) * height * deviation(shape, max(4, round(rng.uniform(0.8, 1.2) * length)))
    usual = height * deviation(shape, length)
    plants = {
        "again": [(name, again)],
        "half": [(name, usual / 2)],
        "twice": [(name, usual * 2)],
        "other sign": [(name, -usual)],
        "other shape": [(name, height * more)],
        "other sensor": [second],
        "with another": [(name, usual), second],
    }
    found = {}
    for variant, place in zip(VARIANTS, places[1:], strict=True):
        frame, here = recording.planted(int(place), *plants[variant])
        before, first = recording.alarm(model, frame, here)
        if before and not recording.alarm(model, *recording.planted(int(place), (name, 0 * usual)))[0]:
            found[variant] = (recording.alarm(told, frame, here)[0], first != muted)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--families", nargs="+", default=["tep", "skab"])
    parser.add_argument("--files", type=int, default=4, help="of each family")
    parser.add_argument("--trials", type=int, default=40, help="for each file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seen: Counter[str] = Counter()
    counts: Counter[tuple[str, str, str]] = Counter()
    for family, table in recordings(options.data, options.families):
        if seen[family] >= options.files:
            continue
        seen[family] += 1
        rng = np.random.default_rng([options.seed, seen[family]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recording = Recording(table, options.seed)
            if recording.rest.height < 8 * recording.model.window:
                continue
            for _ in range(options.trials):
                result = trial(recording, rng)
                counts[family, "", "trials"] += 1
                counts[family, "", "judged"] += result is not None
                for variant, (after, mute) in (result or {}).items():
                    counts[family, variant, "told"] += 1
                    counts[family, variant, "after"] += after
                    counts[family, variant, "mute"] += mute
        print(family, seen[family], recording.model.describe(), flush=True)
    for family in seen:
        print(
            f"\n{family}: {counts[family, '', 'judged']} of {counts[family, '', 'trials']} deviations were alarms and were judged"
        )
        print(f"{'':14}{'told':>6}{'after':>8}{'mute':>8}")
        for variant in VARIANTS:
            told = counts[family, variant, "told"]
            if told:
                shares = (counts[family, variant, each] / told for each in ("after", "mute"))
                print(f"{variant:14}{told:6}{''.join(f'{share:8.2f}' for share in shares)}")


if __name__ == "__main__":
    main()
