"""Compiled inference on one CPU core: ONNX Runtime beside torch, k-NN and a long reconstruction; where the time goes.

    OMP_NUM_THREADS=1 python benchmarks/inference.py [--repeats 5] [--kernel-rows 4096] [--steps 200] [--profile]
    OMP_NUM_THREADS=1 python benchmarks/inference.py --memory 1000000 --kernel-rows 256

A table of 10 mixed columns (that of benchmarks/speed.py), 10,000 training rows. Times are CPU seconds of this process; the
two sides of a ratio are measured in turn, and the median of the ratios is shown, so that a machine whose speed drifts drifts for
both. `--memory N` streams N rows through a file and prints peak memory and the time per row of each quarter.

The long reconstruction is the published way to score with a diffusion model of a table: noise a row to the end of the chain and
denoise it in 250 ancestral steps; here with our own network, compiled, so that only the number of steps differs.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.neighbors import NearestNeighbors
from speed import table

import tabdiff
from onnx_export import export
from tabdiff.evaluate.detection import encode_for_controls
from tabdiff.streaming import score_file

TRAINING_ROWS = 10_000
BATCHES = (1, 256, 8192)


def seconds(work: Callable[[], object], at_least: float = 0.03) -> float:
    """CPU seconds of one call, repeated until the clock can tell."""
    calls, started = 0, time.process_time()
    while calls == 0 or time.process_time() - started < at_least:
        work()
        calls += 1
    return (time.process_time() - started) / calls


def side_by_side(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    taken = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, work in jobs.items():
            value = seconds(work)
            if turn:  # the first turn warms up
                taken[name].append(value)
    return {name: np.array(values) for name, values in taken.items()}


def fitted(folder: Path, steps: int, kernel_rows: int) -> Path:
    path = folder / "model"
    options = {"train": {"steps": steps}, "score": {"kernel_rows": kernel_rows}}
    tabdiff.fit(table(TRAINING_ROWS, 0), tabdiff.FitConfig.model_validate(options)).save(path)
    started = time.process_time()
    bundle = export(path)
    contract = json.loads(bundle.compiled["onnx.json"])
    print(f"export: {time.process_time() - started:.1f} CPU-s")
    for name, program in contract["programs"].items():
        print(f"  {name}: {program['nodes']} nodes, {program['bytes'] / 1e6:.2f} MB")
    print(f"  checked: {contract['checked']['float32']}")
    return path


def programs(path: Path, repeats: int) -> None:
    compiled, eager = (tabdiff.load(path, runtime=name) for name in ("onnx", "torch"))
    encoded = compiled.codec.encode(compiled.schema.conform(table(max(BATCHES), 1)))
    layout = compiled.codec.layout
    print(
        f"\n{'program, rows':18} {'torch ms':>10} {'onnx ms':>10} {'onnx rows/s':>12} {'faster':>8} {'min':>6} {'max':>6}"
    )
    for rows in BATCHES:
        x, present = encoded.x[:rows, None], encoded.present[:rows, None]
        state, units = x[..., : layout.model_width], np.zeros((rows, 1, len(layout.units)), np.float32)
        step = (state, 0.5, 0.45, units, units > 0, units > 0, np.ones_like(state), np.zeros_like(state), 0.2, 0.0)
        for name, call in (("score", lambda m: m.runtime.score(x, present)), ("step", lambda m: m.runtime.step(*step))):  # noqa: B023
            taken = side_by_side({"torch": lambda: call(eager), "onnx": lambda: call(compiled)}, repeats)  # noqa: B023
            ratio = taken["torch"] / taken["onnx"]
            middle = {engine: np.median(values) for engine, values in taken.items()}
            print(
                f"{name + ', ' + str(rows):18} {middle['torch'] * 1e3:10.2f} {middle['onnx'] * 1e3:10.2f} "
                f"{rows / middle['onnx']:12,.0f} {np.median(ratio):8.2f} {ratio.min():6.2f} {ratio.max():6.2f}"
            )


def peers(path: Path, repeats: int) -> None:
    model = tabdiff.load(path, runtime="onnx")
    fresh, one = table(2048, 1), table(1, 2)
    stored, queries = encode_for_controls(table(5000, 0), fresh)
    neighbours = NearestNeighbors(n_neighbors=5).fit(stored)
    layout, x = model.codec.layout, model.codec.encode(model.schema.conform(fresh))
    state = x.x[:, None, : layout.model_width]
    none = np.zeros((len(state), 1, len(layout.units)), bool)
    noise = np.zeros(none.shape, np.float32)

    def reconstruct() -> None:  # 10 of the 250 steps; every step costs the same
        current = state
        for step in range(10):
            current, _ = model.runtime.step(
                current, 1 - step / 250, 1 - (step + 1) / 250, noise, none, none, np.ones_like(state), state, 0.0, 1.0
            )

    taken = side_by_side(
        {
            "score, engine alone": lambda: model.runtime.score(x.x[:256, None], x.present[:256, None]),
            "score, table in, table out": lambda: model.score(fresh).to_frame(),
            "one row, engine alone": lambda: model.runtime.score(x.x[:1, None], x.present[:1, None]),
            "one row, table in": lambda: model.score(one),
            "k-NN, 5,000 rows": lambda: neighbours.kneighbors(queries),
            "250-step reconstruction": reconstruct,
        },
        repeats,
    )
    rows = {"score, engine alone": 256, "250-step reconstruction": len(state) / 25}
    print(f"\n{'job':28} {'rows/s':>12} {'ms a call':>10}")
    rates = {}
    for name, values in taken.items():
        count = 1 if name.startswith("one row") else rows.get(name, fresh.height)
        rates[name] = count / np.median(values)
        print(f"{name:28} {rates[name]:12,.0f} {np.median(values) * 1e3:10.2f}")
    ours = rates["score, table in, table out"]
    # Taken in turn, so that both sides of each ratio had the same machine.
    ratio = taken["k-NN, 5,000 rows"] / taken["score, table in, table out"]
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    print(f"tabdiff / k-NN: {middle:.2f} (quartiles {low:.2f} and {high:.2f}, {ratio.min():.2f} to {ratio.max():.2f})")
    print(f"tabdiff / 250-step reconstruction: {ours / rates['250-step reconstruction']:.1f}")


def operations(path: Path) -> None:
    """Time by operator of the scoring program, and what its matrix products alone would take."""
    import onnxruntime as ort

    model = tabdiff.load(path, runtime="onnx")
    encoded = model.codec.encode(model.schema.conform(table(256, 1)))
    feed = {"x": encoded.x[:, None], "present": encoded.present[:, None]}
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(model.bundle.compiled["score.onnx"], options, providers=["CPUExecutionProvider"])
        for _ in range(12):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    time_of: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            time_of[event["args"]["op_name"]] += event["dur"] / 12_000
    print(f"\nscore.onnx, 256 rows: {sum(time_of.values()):.1f} ms in operators")
    for name, taken in time_of.most_common(14):
        print(f"  {name:20} {taken:8.2f} ms  {taken / sum(time_of.values()):6.1%}")


def memory(path: Path, rows: int) -> None:
    """Stream `rows` rows, in a folder of its own, and watch."""
    model = tabdiff.load(path, runtime="onnx")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        for index, start in enumerate(range(0, rows, 100_000)):
            table(min(100_000, rows - start), 10 + index % 7).write_parquet(source / f"{index:04}.parquet")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        events, started = [], time.process_time()
        score_file(
            model,
            source,
            Path(folder) / "out.parquet",
            model.rule(contamination=0.01),
            on_event=lambda event: events.append((event.rows, time.process_time())),
        )
        total = time.process_time() - started
        assert pl.scan_parquet(Path(folder) / "out.parquet").select(pl.len()).collect().item() == rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{rows:,} rows: {rows / total:,.0f} rows per CPU-s, peak {peak:,.0f} MB ({before:,.0f} MB before)")
    marks = [(0, started), *events]
    quarter = max(1, len(events) // 4)
    for begin in range(0, len(events) - quarter + 1, quarter):
        (r0, t0), (r1, t1) = marks[begin], marks[begin + quarter]
        print(f"  rows {r0:,} to {r1:,}: {(t1 - t0) / (r1 - r0) * 1e6:.1f} CPU-us a row")
    print(f"  flags and result: {started + total - events[-1][1]:.1f} CPU-s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=200, help="gradient steps; the speed of inference does not depend on it"
    )
    parser.add_argument("--kernel-rows", type=int, default=4096)
    parser.add_argument("--memory", type=int, nargs="*", default=None, metavar="ROWS")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = fitted(Path(folder), given.steps, given.kernel_rows)
        if given.memory is not None:
            for rows in given.memory:
                memory(path, rows)
            return
        programs(path, given.repeats)
        peers(path, given.repeats)
        if given.profile:
            operations(path)


if __name__ == "__main__":
    main()
