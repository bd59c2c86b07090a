"""Faults planted into held-out time of sensor recordings, and what a place costs; see README.md here.

    python benchmarks/series_faults.py DATA --families skab tep --seeds 0 1 2
    python benchmarks/series_faults.py DATA --families skab tep --events 48 --seeds 2 3
    python benchmarks/series_faults.py DATA --families skab tep --labels
    python benchmarks/series_faults.py DATA --families skab tep --expected 24
    python benchmarks/series_faults.py --cost 100000

DATA as for series.py, or one table. A fit plants 24 faults of single sensors, six kinds, into time that it held out, and counts those that
score above everything in the same time without them; windowed principal components look at the same faults by the same rule. A fault is findable if a matched filter
that knows it finds it. Where another sensor is named, it is one that the same place names without the fault (anyway), or one that goes with
the broken one (alike). --size makes spikes, drifts and noise larger or smaller by a factor.
--events asks when events begin and end: so many faults of 2 to 160 places are planted, one at a time, into a fifth of the time that the model
was not fitted to. --labels asks it of labelled stretches: of the first event within half a window of one, and the last.
--expected asks what sensors should have been, where so many such faults, of one sensor and of two in turn, are flagged: of a broken sensor, how far what was
expected lies from what it read before the fault was planted (miss, in standard deviations of the sensor), how often the band holds that (covers), and what was read
instead (inside); and the same of the sensors that are in order, whose readings should lie in their bands.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tabdiff import fit_series, planting
from tabdiff.config import validate_fit_config
from tabdiff.series_model import SeriesModel
from tabdiff.windows import runs_of

NOT_SENSORS = {"timestamp", "label", "unit", "cycle", "t"}
MEASURES = (
    "found",
    "control",
    "findable",
    "found_of_findable",
    "sensor_first",
    "sensor_first_of_findable",
    "anyway",
    "alike",
)


def recordings(data: Path, families: list[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Training rows of the files of the families, or the rows of a table by itself, sensors only."""
    if data.is_file():
        table = pl.read_parquet(data)
        yield data.stem, table
        return
    index = pl.read_csv(data / "index.csv", infer_schema_length=None)
    for row in index.filter(pl.col("family").is_in(families)).iter_rows(named=True):
        yield row["family"], pl.read_parquet(data / row["path"])[: int(row["train"])]


def faults(data: Path, families: list[str], seeds: list[int], out: Path | None) -> None:
    rows = []
    for family, table in recordings(data, families):
        sensors = table.select([name for name in table.columns if name.lower() not in NOT_SENSORS])
        frame = sensors.cast(pl.Float64).with_columns(pl.int_range(sensors.height).alias("step"))
        for seed in seeds:
            config = validate_fit_config({"series": {"time": "step"}, "train": {"steps": 1, "seed": seed}})
            overrides = {name: {"role": "feature"} for name in sensors.columns}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = fit_series(frame, config, overrides=overrides).bundle.model["report"]["planted"]
            if not found:
                continue
            every = {"all": found} | found["kinds"]
            for kind, shares in every.items():
                rows.append({"family": family, "seed": seed, "kind": kind, **{m: shares.get(m) for m in MEASURES}})
            if out:
                pl.DataFrame(rows, infer_schema_length=None).write_csv(out)
    pl.Config.set_tbl_rows(100)
    pl.Config.set_tbl_width_chars(200)
    weighed = {
        "found_of_findable": pl.col("findable"),
        "sensor_first": pl.col("found"),
        "sensor_first_of_findable": pl.col("found") * pl.col("findable"),
        "anyway": pl.col("found"),
        "alike": pl.col("found"),
    }
    print(
        pl.DataFrame(rows, infer_schema_length=None)
        .group_by("family", "kind", maintain_order=True)
        .agg(
            pl.len().alias("fits"),
            *[pl.col(name).mean().round(2) for name in MEASURES[:3]],
            # Shares among some of the faults weigh as many as there are.
            *[
                ((pl.col(name) * w).sum() / w.filter(pl.col(name).is_not_null()).sum()).round(2)
                for name, w in weighed.items()
            ],
        )
    )


def placed(found: pl.DataFrame, start: int, end: int, reach: int) -> tuple[int, int] | None:
    """How far the first and last event that touch a stretch lie from its beginning and end; None without one."""
    mine = found.filter(
        (pl.col("start") <= end + reach) & (pl.col("end") >= start - reach) & (pl.col("kind") == "abnormal")
    )
    return (int(mine["start"].min()) - start, int(mine["end"].max()) - end) if mine.height else None  # type: ignore[arg-type]


def told(rows: list[dict[str, object]], out: Path | None) -> None:
    if out:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(out)
    pl.Config.set_tbl_rows(100)
    pl.Config.set_tbl_width_chars(200)
    sizes = [
        measure
        for end in ("start", "end")
        for measure in (
            pl.col(end).abs().median().alias(f"{end}, half"),
            pl.col(end).abs().quantile(0.9).alias(f"{end}, 90 %"),
            pl.col(end).median().alias(f"{end}, signed"),
        )
    ]
    table = pl.DataFrame(rows, infer_schema_length=None)
    for keys in (["family"], ["kind"]):
        print(table.group_by(*keys, maintain_order=True).agg(pl.len(), pl.col("start").count().alias("found"), *sizes))


def fitted(table: pl.DataFrame, seed: int) -> SeriesModel:
    config = validate_fit_config({"series": {"time": "step"}, "train": {"steps": 1, "seed": seed}})
    return fit_series(table, config, overrides={name: {"role": "feature"} for name in table.columns if name != "step"})


def withheld(
    data: Path, families: list[str], most: int
) -> Iterator[tuple[str, pl.DataFrame, pl.DataFrame, list[str], SeriesModel]]:
    """Of each recording: its sensors that are numbers, without gaps; a fifth of the time in the middle; which sensors move there; and a model of the rest."""
    warnings.simplefilter("ignore")
    for family, whole in recordings(data, families):
        sensors = whole[:most].select([name for name in whole.columns if name.lower() not in NOT_SENSORS])
        frame = sensors.select(pl.selectors.numeric().cast(pl.Float64)).with_columns(
            pl.all().forward_fill().backward_fill(), pl.int_range(sensors.height).alias("step")
        )
        begin, end = frame.height // 2, 7 * frame.height // 10
        part = frame[begin:end]
        moving = [name for name in part.columns if name != "step" and part[name].n_unique() > 10]
        if moving:
            model = fitted(frame.filter(~pl.col("step").is_between(begin, end, closed="left")), 0)
            yield family, frame, part, moving, model


def events(data: Path, families: list[str], seeds: list[int], count: int, most: int, out: Path | None) -> None:
    rows: list[dict[str, object]] = []
    for family, frame, part, moving, model in withheld(data, families, most):
        begin, room = part["step"][0], model.window // 2
        if part.height < 3 * room:
            continue
        for seed in seeds:
            rng = np.random.default_rng(seed)
            for number in range(count):
                kind, sensor = planting.KINDS[number % len(planting.KINDS)], str(rng.choice(moving))
                length = min(int(np.exp(rng.uniform(np.log(2), np.log(160)))), part.height - 2 * room - 1)
                start = int(rng.integers(room, part.height - length - room))
                values = planting.Plant(kind, start, length).apply(
                    part[sensor].to_numpy(), float(frame[sensor].to_numpy().std()), rng
                )
                around = slice(max(0, start - 3 * model.window), start + length + 3 * model.window)
                found = model.score(part.with_columns(pl.Series(sensor, values))[around]).events
                off = placed(found, begin + start, begin + start + length - 1, model.window // 2) or (None, None)
                rows.append(
                    {"family": family, "seed": seed, "kind": kind, "length": length, "start": off[0], "end": off[1]}
                )
    told(rows, out)


def beside(truth: np.ndarray, read: np.ndarray, band: list[np.ndarray], spread: float) -> dict[str, float]:
    """How what was expected and its band (middle, low, high) lie to what should have been read and to what was read."""
    middle, low, high = band
    return {
        "miss": float(np.minimum(np.abs(truth - middle) / spread, 20).mean()),
        "covers": float(((low <= truth) & (truth <= high)).mean()),
        "inside": float(((low <= read) & (read <= high)).mean()),
        "width": float((high - low).mean() / spread),
    }


def expected(data: Path, families: list[str], seeds: list[int], count: int, most: int, out: Path | None) -> None:
    rows: list[dict[str, object]] = []
    room = 8
    for family, frame, part, moving, model in withheld(data, families, most):
        if len(moving) < 2 or part.height < 3 * room:
            continue
        spread = {name: float(frame[name].to_numpy().std()) for name in moving}
        truth = {name: part[name].to_numpy() for name in moving}
        quiet = model.score(part).expected
        for name, read in truth.items():
            band = [quiet[f"{name}{end}"].to_numpy() for end in ("", "_low", "_high")]
            rows.append({"family": family, "sensor": "no fault", **beside(read, read, band, spread[name])})
        for seed in seeds:
            rng = np.random.default_rng(seed)
            for number in range(count):
                broken = rng.choice(moving, size=min(1 + number % 2, len(moving) - 1), replace=False).tolist()
                kind = planting.KINDS[(number // 2) % len(planting.KINDS)]
                length = min(int(np.exp(rng.uniform(np.log(2), np.log(96)))), part.height - 2 * room - 1)
                plant = planting.Plant(kind, int(rng.integers(room, part.height - length - room)), length)
                values = {name: plant.apply(truth[name], spread[name], rng) for name in broken}
                scores = model.score(part.with_columns(pl.Series(name, column) for name, column in values.items()))
                flagged = scores.places["flagged"].to_numpy()
                anything = np.any([values[name] != truth[name] for name in broken], axis=0) & flagged
                for name in moving:
                    read = values.get(name, truth[name])
                    at = np.flatnonzero(flagged & (read != truth[name]) if name in broken else anything)
                    if len(at):
                        which = f"{'broken' if name in broken else 'in order'}, of {len(broken)}"
                        band = [scores.expected[f"{name}{end}"].to_numpy()[at] for end in ("", "_low", "_high")]
                        found = beside(truth[name][at], read[at], band, spread[name])
                        rows.append({"family": family, "sensor": which, "kind": kind, **found})
    table = pl.DataFrame(rows, infer_schema_length=None)
    if out:
        table.write_csv(out)
    pl.Config.set_tbl_rows(100)
    measures = [pl.len(), *[pl.col(name).mean().round(2) for name in ("miss", "covers", "inside", "width")]]
    for keys in (["family", "sensor"], ["sensor"]):
        print(table.group_by(keys).agg(measures).sort(keys))


def labelled(data: Path, families: list[str], out: Path | None) -> None:
    warnings.simplefilter("ignore")
    rows: list[dict[str, object]] = []
    index = pl.read_csv(data / "index.csv", infer_schema_length=None).filter(pl.col("family").is_in(families))
    for row in index.iter_rows(named=True):
        table, train = pl.read_parquet(data / row["path"]), int(row["train"])
        stretches = [(train + a, train + b - 1) for a, b in runs_of(table["label"].to_numpy()[train:].astype(bool))]
        sensors = table.select([name for name in table.columns if name.lower() not in NOT_SENSORS])
        frame = sensors.cast(pl.Float64).with_columns(pl.int_range(sensors.height).alias("step"))
        if not stretches:
            continue
        model = fitted(frame[:train], 0)
        found = model.score(frame[train:]).events
        for start, end in stretches:
            off = placed(found, start, end, model.window // 2) or (None, None)
            rows.append({"family": row["family"], "kind": row["name"], "start": off[0], "end": off[1]})
    told(rows, out)


def cost(places: int) -> None:
    rng = np.random.default_rng(0)
    step = np.arange(places + 5000)
    x = {f"s{i}": np.sin(2 * np.pi * (step + 3 * i) / 40) + 0.1 * rng.normal(size=len(step)) for i in range(8)}
    frame = pl.DataFrame({"at": [datetime(2024, 1, 1) + timedelta(seconds=int(i)) for i in step], **x})
    started = time.process_time()
    model = fit_series(frame[:5000], validate_fit_config({"series": {"time": "at"}, "train": {"steps": 1}}))
    print(
        f"fit on 5,000 places of 8 sensors, without the network: {time.process_time() - started:.1f} CPU-s; {model.describe()}"
    )
    for part in (places // 4, places):
        started = time.process_time()
        model.score(frame[5000 : 5000 + part])
        print(f"score {part:,} places: {time.process_time() - started:.1f} CPU-s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--families", nargs="+", default=["skab", "tep"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--size", type=float, default=1.0)
    parser.add_argument("--events", type=int, default=None)
    parser.add_argument("--expected", type=int, default=None)
    parser.add_argument(
        "--most", type=int, default=7000, help="places of a recording that --events and --expected look at"
    )
    parser.add_argument("--labels", action="store_true")
    parser.add_argument("--cost", type=int, default=None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.cost:
        cost(options.cost)
    for kind in planting.SIZES:
        planting.SIZES[kind] *= options.size
    if options.data and options.events:
        events(options.data, options.families, options.seeds, options.events, options.most, options.out)
    elif options.data and options.expected:
        expected(options.data, options.families, options.seeds, options.expected, options.most, options.out)
    elif options.data and options.labels:
        labelled(options.data, options.families, options.out)
    elif options.data:
        faults(options.data, options.families, options.seeds, options.out)


if __name__ == "__main__":
    main()
