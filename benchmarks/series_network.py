"""Should a trained network vote on sensor series? Its denoising error as a further view of windows; see README.md here.

    python benchmarks/series_network.py DATA --names S-2 valve1_1 --training 0 1 3 --out network.csv

DATA as for series.py, prefix protocol. `--training` is in units of the default amount of training; 0 is the network before it, which
is the closed form of the Gaussian at its window length. `--sees model` is the network that `fit` trains, in the view that series are
drawn in (numbers by rank); `raw` the same network on standardised numbers, which the closed forms see. Its error is standardised by
the stretches that it was not trained on, and added to the others as a view is.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from series import NOT_SENSORS
from vus import vus

from tabdiff import fit_series
from tabdiff.calibration import Calibration
from tabdiff.config import FitConfig, TrainConfig
from tabdiff.layout import Layout, Unit
from tabdiff.nn.assemble import build_denoiser
from tabdiff.nn.train import planned_steps, train
from tabdiff.series_calibration import Fold, folds_of
from tabdiff.series_fit import network_length
from tabdiff.windows import runs_of

SIGMAS = (0.1, 0.2, 0.4, 0.8, 1.5)  # those of the closed forms
STRIDE = 2  # places between windows
TOGETHER = 256  # windows
MOST = 100_000  # training windows


class NetworkView:
    """A network of windows of a fitted model's history, and what it says of places.

    Args:
        model: fitted to `history`.
        sees: `model` or `raw`.
        training: in units of the default amount.
    """

    def __init__(self, model: Any, history: pl.DataFrame, sees: str, training: int) -> None:
        self.model, layout = model, model.codec.layout
        self.slots = layout.view("raw") if sees == "raw" else slice(0, layout.model_width)
        if sees == "raw":
            layout = Layout(layout.columns, tuple(Unit(i, "number", i, 1) for i in range(len(layout.columns))))
        self.length = network_length(model.codec, model.window)
        (track,) = model.plan.tracks(history, model.schema, model.codec)
        track = replace(track, x=self._seen(track.x))
        ((self.held_out,), *_) = folds_of(list(model.plan.recordings(history, model.schema)), model.window)
        fold = Fold([track], [self.held_out])
        parts = [fold.windows(self.length, MOST, 0), fold.windows(self.length, 2048, 0, held_out=True)]
        arrays = [torch.from_numpy(part) for x, seen in parts for part in (x, layout.cells(seen))]
        torch.manual_seed(0)
        self.denoiser = build_denoiser(layout, parts[0][0], FitConfig())
        self.steps = training * planned_steps(self.denoiser, TrainConfig(), len(arrays[0]))
        if training:
            for event in train(self.denoiser, *arrays, TrainConfig(steps=self.steps)):
                self.steps = event.step  # fewer, if the held-out loss no longer fell
        self.denoiser.eval()
        whole = [run for run in runs_of(self.held_out) if run[1] - run[0] >= self.length]
        errors = np.concatenate([self._errors(track.x[start:end]) for start, end in whole])
        self.calibration = Calibration.fit(["network"], [errors[:, None]], [1.0])

    def score(self, frame: pl.DataFrame) -> np.ndarray:
        """What the view adds to the score of each place."""
        (track,) = self.model.plan.tracks(frame, self.model.schema, self.model.codec)
        return self.calibration.combine(self._errors(self._seen(track.x))[:, None, None])[0]

    def _seen(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.clip(x[:, self.slots], -20, 20))

    @torch.inference_mode()
    def _errors(self, x: np.ndarray) -> np.ndarray:
        length, process = self.length, self.denoiser.process
        grid = torch.linspace(0, 1, 100_001)
        levels = [grid[torch.searchsorted(process.sigma(grid), sigma).clamp_max(100_000)] for sigma in SIGMAS]
        starts = np.unique(np.append(np.arange(0, len(x) - length + 1, STRIDE), len(x) - length))
        total, count = np.zeros(len(x)), np.zeros(len(x))
        for begin in range(0, len(starts), TOGETHER):
            part = starts[begin : begin + TOGETHER]
            windows = torch.from_numpy(x[part[:, None] + np.arange(length)])
            logs = np.zeros(len(part))
            for level in levels:
                off = (self.denoiser(windows, level.expand(len(part))) - windows).double()
                logs += np.log((off**2).sum((1, 2)).numpy() + 1e-9) / len(levels)
            for start, log in zip(part, logs, strict=True):
                total[start : start + length] += log
                count[start : start + length] += 1
        return np.exp(total / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--training", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--sees", nargs="+", choices=["model", "raw"], default=["model", "raw"])
    parser.add_argument("--out", type=Path, default=Path("network.csv"))
    options = parser.parse_args()
    if not hasattr(np, "Inf"):
        np.inf = np.inf  # tsb-ad 1.5 is older than numpy 2
    from TSB_AD.utils.slidingWindows import find_length_rank

    index = pl.read_csv(options.data / "index.csv", infer_schema_length=None)
    new = not options.out.exists()
    done = set() if new else {tuple(row[:4]) for row in csv.reader(options.out.open())}
    file = options.out.open("a", newline="")
    writer = csv.writer(file)
    if new:
        writer.writerow(
            [
                "family",
                "name",
                "sees",
                "training",
                "steps",
                "length",
                "fit_seconds",
                "score_seconds",
                "shipped",
                "network",
                "both",
            ]
        )
    for row in index.filter(pl.col("name").is_in(options.names)).iter_rows(named=True):
        table = pl.read_parquet(options.data / row["path"])
        x = table.select([name for name in table.columns if name not in NOT_SENSORS]).to_numpy().astype(np.float64)
        truth, train = table["label"].to_numpy().astype(int)[row["train"] :], int(row["train"])
        around = int(find_length_rank(np.ascontiguousarray(x[:, 0]).reshape(-1, 1), rank=1))
        names = [f"s{i}" for i in range(x.shape[1])]
        frame = pl.DataFrame(x, schema=names).with_columns(pl.int_range(len(x)).alias("step"))
        history, new_rows = frame[:train], frame[train:]
        jobs = [(sees, training) for training in options.training for sees in options.sees]
        jobs = [job for job in jobs if (row["family"], row["name"], job[0], str(job[1])) not in done]
        if not jobs:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = FitConfig.model_validate({"series": {"time": "step"}, "train": {"steps": 1}})
            model = fit_series(history, config, overrides={name: {"role": "feature"} for name in names})
            shipped = model.score(new_rows).places["score"]
        shipped = shipped.fill_null(shipped.min()).to_numpy()
        for sees, training in jobs:
            started = time.process_time()
            view = NetworkView(model, history, sees, training)
            fitted = time.process_time()
            network = view.score(new_rows)
            seconds = time.process_time() - fitted
            results = [vus(score, truth, around)[0] for score in (shipped, network, shipped + network)]
            writer.writerow(
                [row["family"], row["name"], sees, training, view.steps, view.length]
                + [f"{value:.4f}" for value in (fitted - started, seconds, *results)]
            )
            file.flush()
    file.close()
    found = pl.read_csv(options.out)
    means = found.group_by("sees", "training", "family").agg(
        pl.len(), pl.col("shipped", "network", "both").mean().round(3)
    )
    print(means.sort("sees", "training", "family"))


if __name__ == "__main__":
    main()
