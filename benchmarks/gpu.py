"""Score and sample rows per second on a CUDA GPU, engine by engine, and the share of the GPU's own limit.

    python benchmarks/gpu.py [--batches 256 2048 16384 131072] [--kernel-rows 4096] [--repeats 20]
    python benchmarks/gpu.py --self-check      # everything but the GPU: runs anywhere

Engines: torch eager, torch.compile, ONNX Runtime with CUDA (arrays sent to and fro each call; state kept on the device; CUDA
graphs), each in float32 and, where there is one, float16. The limit is what large matrix products of the same precision reach in
the same run; a program's share is its multiplications, counted by torch, over its time, over that limit. Each call waits for
the GPU. With --self-check the same code runs on the CPU with small batches, and the table says so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from speed import table
from torch.utils.flop_counter import FlopCounterMode

import tabdiff
from onnx_export import export
from tabdiff.bundle import Bundle
from tabdiff.model import Model
from tabdiff.nn.runtime import build_programs
from tabdiff.onnx_runtime import OnnxRuntime
from tabdiff.sampling import Condition

Calls = tuple[Callable[[], object], Callable[[], object]]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of one call, after three to warm up."""
    taken = []
    for turn in range(repeats + 3):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if turn >= 3:
            taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def limit(device: str, dtype: torch.dtype, repeats: int) -> float:
    """Multiply-adds a second, times two, of a large matrix product."""
    n = 8192 if device == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, repeats)


def arrays(model: Model, rows: int) -> tuple[np.ndarray, ...]:
    encoded = model.codec.encode(model.schema.conform(table(min(rows, 16_384), 1)))
    places = np.resize(np.arange(len(encoded.x)), rows)
    return encoded.x[places, None], encoded.present[places, None]


def step_arrays(model: Model, rows: int) -> tuple[np.ndarray, ...]:
    layout = model.codec.layout
    rng = np.random.default_rng(0)
    condition = Condition.nothing(layout, rows)
    noise = layout.draw(rng, rows, 1)
    x = rng.standard_normal((rows, 1, layout.model_width)).astype(np.float32)
    given, allowed = (np.ascontiguousarray(a) for a in (condition.given, condition.allowed))
    return x, noise, noise > 0, given, allowed, np.zeros_like(x)


def torch_calls(bundle: Bundle, model: Model, rows: int, device: str, how: str) -> Calls:
    """Calls on tensors that are on the device already, as torch users would keep them."""
    score, step = (program.to(device) for program in build_programs(bundle))
    if how == "compile":
        score, step = (torch.compile(program, dynamic=False) for program in (score, step))
    x, present = (torch.from_numpy(a).to(device) for a in arrays(model, rows))
    state, noise, reveal, given, allowed, previous = (torch.from_numpy(a).to(device) for a in step_arrays(model, rows))
    t, s, zero = (torch.full((rows,), v, device=device) for v in (0.5, 0.45, 0.0))
    half = torch.autocast(device, torch.float16, enabled=how == "eager, float16")

    def run_score() -> object:
        with torch.inference_mode(), half:
            return score(x, present)

    def run_step() -> object:
        with torch.inference_mode(), half:
            return step(state, t, s, noise, reveal, given, allowed, previous, zero, zero)

    return run_score, run_step


def onnx_calls(runtime: OnnxRuntime, model: Model, rows: int) -> Calls:
    x, present = arrays(model, rows)
    state, noise, reveal, given, allowed, previous = step_arrays(model, rows)
    held: list[object] = [state, previous]

    def run_step() -> object:
        held[:] = runtime.step(held[0], 0.5, 0.45, noise, reveal, given, allowed, held[1], 0.0, 0.0)
        return held

    return lambda: runtime.score(x, present), run_step


def engines(bundle: Bundle, model: Model, rows: int, device: str) -> Iterator[tuple[str, str, Callable[[], Calls]]]:
    for how in ("eager", "eager, float16", "compile") if device == "cuda" else ("eager",):
        precision = "float16" if "16" in how else "float32"
        yield f"torch {how}", precision, lambda how=how: torch_calls(bundle, model, rows, device, how)  # type: ignore[misc]
    for precision in ("float32", "float16"):
        for name, options in (
            ("arrays to and fro", {"on_device": False}),
            ("state on the device", {"on_device": True}),
            ("CUDA graphs", {"on_device": True, "cuda_graphs": True}),
        ):

            def make(precision: str = precision, options: dict[str, bool] = options) -> Calls:
                runtime = OnnxRuntime(bundle, device, precision=precision, **options)  # type: ignore[arg-type]
                if options.get("cuda_graphs"):
                    runtime.fixed_rows = rows
                return onnx_calls(runtime, model, rows)

            yield f"ONNX Runtime, {name}", precision, make


def work(bundle: Bundle, model: Model, rows: int) -> tuple[float, float]:
    """Floating-point operations of the matrix products of one call of each program, as torch counts them."""
    counts = []
    for call in torch_calls(bundle, model, rows, "cpu", "eager"):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 2048, 16_384, 131_072])
    parser.add_argument("--kernel-rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--self-check", action="store_true")
    given = parser.parse_args()
    if not given.self_check and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here; --self-check runs the same code on the CPU")
    device = "cpu" if given.self_check else "cuda"
    batches, repeats = ([64], 2) if given.self_check else (given.batches, given.repeats)
    options = {
        "train": {"steps": 20 if given.self_check else 200, "device": device},
        "score": {"kernel_rows": given.kernel_rows},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        tabdiff.fit(table(2000 if given.self_check else 10_000, 0), tabdiff.FitConfig.model_validate(options)).save(
            path
        )
        bundle = export(path, fp16=True)
        model = tabdiff.load(path, device=device, runtime="onnx")
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU (self-check: these are no figures of a GPU)"
        limits = {"float32": limit(device, torch.float32, repeats)}
        limits["float16"] = limit(device, torch.float16, repeats) if device == "cuda" else limits["float32"]
        print(f"{name}; torch {torch.__version__}; {model.runtime.provider}")
        print(f"large matrix products: {', '.join(f'{k} {v / 1e12:.2f} TFLOP/s' for k, v in limits.items())}")
        print(f"\n| rows | engine | precision | score rows/s | of limit | step rows/s | of limit |\n|{'---|' * 7}")
        small = work(bundle, model, 64)
        for rows in batches:
            for engine, precision, make in engines(bundle, model, rows, device):
                try:
                    taken = [seconds(call, repeats) for call in make()]
                except Exception as error:  # one engine that fails shall not end the table
                    print(f"| {rows} | {engine} | {precision} | {type(error).__name__}: {str(error)[:80]} | | | |")
                    if given.self_check:
                        raise
                    continue
                cells = []
                for time_taken, flops in zip(taken, small, strict=True):
                    share = flops * rows / 64 / time_taken / limits[precision]
                    cells.append(f"{rows / time_taken:,.0f} | {share:.1%}")
                print(f"| {rows} | {engine} | {precision} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
