"""Drawn windows, long series and filled gaps of sensor recordings, beside what is real and beside a linear model.

    OMP_NUM_THREADS=1 python benchmarks/sequences.py DATA [--parts windows long imputation] [--length 24] [--seeds 0] [--time t] [--entity NAME]

DATA is a table (.parquet or .csv) with a time column. The recording is cut into stretches of ten windows; every fifth is held out of the fit.

**windows**: as many as 2000 drawn windows beside 2000 real ones that were trained on. A *discriminator* tells them apart; its score is
|accuracy - 1/2|, 0 is best. Its real windows are split by stretches of time (of stride-1 windows a random split would put near copies on both
sides), 70 % to train. *GRU* is that of TimeGAN (Yoon et al. 2019): one layer of half as many units as channels, Adam 1e-3, min-max scaling, batch 128,
here 1000 iterations; *published* is the same with their own protocol, 2000 iterations and windows split at random; *GBT* is scikit-learn's on the window, its means, deviations, roughness and covariances (signed: below 0 it is worse than
chance). *corr* is the sum of absolute differences of correlations between channels over 10, as in Diffusion-TS. *FD* is the Fréchet distance of Gaussians
in the 64 principal directions of fixed random convolutions (ROCKET features, Dempster et al. 2020); *Context-FID* the same with a trained encoder
(ts2vec.py). *rough* is the mean |step| over that of real windows. Beside ours: the windows held out, a bootstrap of
those trained on, and the linear model: the same preconditioning with an untrained network.

**long**: one series of 20 times 1000 places: mean |step| where windows are cut over elsewhere, autocorrelation at lags within and beyond a window, and
the mean absolute difference of log spectra in octaves.

**imputation**: fit on the first 80 %; in the rest, 50 % of the cells are hidden, or in every window half of the channels for half a window. Mean absolute
errors in standard deviations of training. `tabdiff` is the median of the draws; `chosen` is what `impute` picks by itself, with its
calibrated interval.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy.linalg import sqrtm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import KNNImputer
from ts2vec import codes, frechet, train_encoder

import tabdiff
from tabdiff.fillings import linear_filling
from tabdiff.sources import load

STRETCH = 10  # windows
MOST = 2000
NOTHING_LEARNED = {"steps": 1, "learning_rate": 1e-7}


class Data:
    """The table, its channels, and stretches of it as entities of their own."""

    def __init__(self, options: argparse.Namespace) -> None:
        frame = load(str(options.data))[: options.rows]
        self.calendar = options.calendar
        self.length, self.time = options.length, options.time
        self.channels = [name for name in frame.columns if name not in (options.time, options.entity)]
        if options.entity is None:
            part = np.arange(frame.height) // (STRETCH * self.length)
        else:
            part = frame[options.entity].rank("dense").to_numpy() // STRETCH
        self.frame = frame.with_columns(pl.Series("part", part))
        self.entity = options.entity
        self.held = self.frame["part"].to_numpy() % 5 == 4

    def fit(self, seed: int, train: dict[str, object]) -> tabdiff.SeriesModel:
        key = self.entity or "part"
        rows = self.frame.filter(pl.Series(~self.held)).with_columns(pl.col(key).cast(pl.String))
        rows = rows.select(self.time, key, *self.channels)
        series = {"time": self.time, "entity": key, "window": self.length, "calendar": self.calendar}
        return tabdiff.fit_series(
            rows, tabdiff.FitConfig.model_validate({"series": series, "train": {"seed": seed, **train}})
        )

    def windows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Real windows at stride 1 inside stretches, gaps carried forward, and the stretch of each."""
        found, parts = [], []
        frame = self.frame.filter(pl.Series(rows))
        keys = ["part"] if self.entity is None else [self.entity]
        for group in frame.partition_by(keys, maintain_order=True):
            values = group.select(pl.col(self.channels).cast(pl.Float64).forward_fill().backward_fill().fill_null(0.0))
            if group.height >= self.length:
                cut = np.lib.stride_tricks.sliding_window_view(values.to_numpy(), self.length, axis=0)
                found.append(cut.transpose(0, 2, 1))
                parts.append(np.full(len(cut), group["part"][0]))
        return np.concatenate(found), np.concatenate(parts)


def features(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    covariance = np.einsum("btc,btd->bcd", centred, centred)
    some = np.triu_indices(min(x.shape[2], 12), 1)
    steps = np.diff(x, axis=1)
    flat = (len(x), -1)
    return np.concatenate(
        [x.reshape(flat), x.mean(1), x.std(1), steps.std(1), np.abs(np.diff(steps, axis=1)).mean(1), covariance[:, some[0], some[1]]],
        axis=1,
    )  # fmt: skip


def gbt(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, random_state=seed)
    return np.asarray(model.fit(features(train), labels).predict(features(test)))


def gru(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int, iterations: int = 1000) -> np.ndarray:
    torch.manual_seed(seed)
    low, high = train.min((0, 1)), train.max((0, 1))
    x, unseen = (torch.tensor((each - low) / (high - low + 1e-7), dtype=torch.float32) for each in (train, test))
    y = torch.tensor(labels, dtype=torch.float32)
    hidden = max(1, train.shape[2] // 2)
    net = torch.nn.GRU(train.shape[2], hidden, batch_first=True)
    last = torch.nn.Linear(hidden, 1)
    optimizer = torch.optim.Adam([*net.parameters(), *last.parameters()], lr=1e-3)
    for _ in range(iterations):
        rows = torch.randint(len(x), (128,))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(last(net(x[rows])[1][0])[:, 0], y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return np.asarray(last(net(unseen)[1][0])[:, 0].numpy() > 0)


def told_apart(real: np.ndarray, parts: np.ndarray, fake: np.ndarray, judge, seed: int) -> float:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    every = rng.permutation(np.unique(parts))
    first = np.isin(parts, every[: max(1, round(0.7 * len(every)))])
    pools = [np.flatnonzero(first), np.flatnonzero(~first)]
    share = np.split(rng.permutation(len(fake)), [round(0.7 * len(fake))])
    (train_real, train_fake), (test_real, test_fake) = (
        (real[rng.choice(pool, min(len(pool), len(mine)), replace=False)], fake[mine]) for pool, mine in zip(pools, share, strict=True)
    )  # fmt: skip
    count = min(len(train_real), len(train_fake))
    train = np.concatenate([train_real[:count], train_fake[:count]])
    said = judge(train, np.repeat([0, 1], count), np.concatenate([test_real, test_fake]), seed).astype(int)
    right = ((said[: len(test_real)] == 0).mean() + (said[len(test_real) :] == 1).mean()) / 2
    return float(right - 0.5)


def published(real: np.ndarray, fake: np.ndarray, seed: int) -> float:
    """The discriminative score as TimeGAN and Diffusion-TS compute it: 2000 iterations, 80 % of the windows, at random, to train."""
    rng = np.random.default_rng(seed)
    count = min(len(real), len(fake))
    sides = [x[rng.permutation(len(x))[:count]] for x in (real, fake)]
    cut = round(0.8 * count)
    said = gru(
        np.concatenate([x[:cut] for x in sides]),
        np.repeat([0, 1], cut),
        np.concatenate([x[cut:] for x in sides]),
        seed,
        2000,
    )
    return abs(float((said == np.repeat([0, 1], count - cut)).mean()) - 0.5)


def correlations(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(-1, x.shape[2])
    scale = flat.std(0)
    return np.nan_to_num(np.corrcoef(flat[:, scale > 1e-9], rowvar=False))


def random_convolutions(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    mean, scale = like.mean((0, 1)), like.std((0, 1)) + 1e-9
    z = np.nan_to_num((x - mean) / scale).transpose(0, 2, 1)
    found = []
    for _ in range(256):
        size, channels = int(rng.choice([3, 5, 7])), rng.choice(x.shape[2], min(3, x.shape[2]), replace=False)
        dilation = int(rng.integers(1, max(2, (x.shape[1] - 1) // (size - 1))))
        kernel = rng.normal(size=(len(channels), size))
        kernel -= kernel.mean(1, keepdims=True)
        out = sum(
            kernel[:, j] @ z[:, channels, j * dilation : x.shape[1] - (size - 1 - j) * dilation] for j in range(size)
        )
        found += [(out > rng.normal()).mean(1), out.max(1)]
    return np.stack(found, axis=1)


def random_frechet(real: np.ndarray, fake: np.ndarray) -> float:
    a, b = random_convolutions(real, real), random_convolutions(fake, real)
    scale = a.std(0) + 1e-9
    centre = a.mean(0)
    axes = np.linalg.svd((a - centre) / scale, full_matrices=False)[2][:64]
    a, b = ((each - centre) / scale @ axes.T for each in (a, b))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = sqrtm(first @ second).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * both)) / a.shape[1]


def as_windows(frame: pl.DataFrame, data: Data) -> np.ndarray:
    values = frame.select(pl.col(data.channels).cast(pl.Float64)).to_numpy()
    return values.reshape(-1, data.length, len(data.channels))


def judge_windows(data: Data, options: argparse.Namespace, train: dict[str, object]) -> None:
    seeds, steps, most = options.seeds, options.steps, options.count
    real, parts = data.windows(~data.held)
    unseen, _ = data.windows(data.held)
    rows: dict[str, list[list[float]]] = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        some = np.sort(rng.permutation(len(real))[:most])
        fakes = {
            "held-out windows": (unseen[rng.permutation(len(unseen))[:most]], 0.0, 0.0),
            "bootstrap of training windows": (real[rng.integers(0, len(real), most)], 0.0, 0.0),
        }
        for name, given in (("linear", NOTHING_LEARNED), ("tabdiff", train))[options.alone :]:
            started = time.process_time()
            model = data.fit(seed, given)
            fitted = time.process_time()
            drawn = as_windows(model.sample(windows=most, seed=seed, steps=steps), data)
            fakes[f"{name}, {steps} calls"] = (drawn, fitted - started, time.process_time() - fitted)
            print(f"# {name} seed {seed}: {model.bundle.model['report']}", flush=True)
        low, high = real.min((0, 1)), real.max((0, 1))
        unit = high - low + 1e-7
        encoder = train_encoder((real[some] - low) / unit, seed)
        context = codes(encoder, (real[some] - low) / unit)
        for name, (fake, fit_seconds, draw_seconds) in fakes.items():
            found = [
                abs(told_apart(real, parts, fake, gru, seed)),
                published(real[some], fake, seed),
                told_apart(real, parts, fake, gbt, seed),
                float(np.abs(correlations(real[some]) - correlations(fake)).sum() / 10) if correlations(real[some]).shape == correlations(fake).shape else np.nan,
                frechet(context, codes(encoder, (fake - low) / unit)),
                random_frechet(real[some], fake),
                float(np.abs(np.diff(fake, axis=1)).mean((0, 1)) @ (1 / (np.abs(np.diff(real, axis=1)).mean((0, 1)) + 1e-12)) / fake.shape[2]),
                fit_seconds,
                draw_seconds,
            ]  # fmt: skip
            rows.setdefault(name, []).append(found)
            print("#", name, np.round(found, 3), flush=True)
    print(
        "\n| windows | GRU | published | GBT | corr | Context-FID | FD | rough | fit CPU-s | draw CPU-s |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for name, found in rows.items():
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
        cells = [
            f"{m:.3f}" + (f" ± {s:.3f}" if len(seeds) > 1 else "") for m, s in zip(mean[:7], spread[:7], strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} | {mean[7]:.0f} | {mean[8]:.0f} |")


def judge_long(data: Data, seed: int, steps: int, train: dict[str, object], places: int = 20_000) -> None:
    model = data.fit(seed, train)
    started = time.process_time()
    drawn = model.sample(length=places, seed=seed, steps=steps).select(pl.col(data.channels).cast(pl.Float64))
    seconds = time.process_time() - started
    real = data.frame.select(pl.col(data.channels).cast(pl.Float64).forward_fill().backward_fill()).to_numpy()
    x, half = drawn.to_numpy(), model.drawn_window // 2
    step = np.abs(np.diff(x, axis=0)) / (real.std(0) + 1e-12)
    seam = np.zeros(len(step), bool)
    seam[half - 1 :: half] = True
    print(f"\none series of {places} places in {seconds:.0f} CPU-s, windows of {model.drawn_window}")
    print(f"|step| where windows are cut, over elsewhere: {step[seam].mean() / step[~seam].mean():.3f}")
    rough = np.abs(np.diff(x, axis=0)).mean(0) / (np.abs(np.diff(real, axis=0)).mean(0) + 1e-12)
    print(
        f"standard deviation over real: {np.median(x.std(0) / (real.std(0) + 1e-12)):.3f}, |step|: {np.median(rough):.3f}"
    )
    print("\n| lag | real | drawn |\n|---|---|---|")
    for lag in (1, half, 2 * half, 3 * half, 4 * half, 6 * half):
        means = [
            np.nanmedian([np.corrcoef(y[:-lag, c], y[lag:, c])[0, 1] for c in range(y.shape[1])]) for y in (real, x)
        ]
        print(f"| {lag} | {means[0]:.3f} | {means[1]:.3f} |")
    size = min(len(real), len(x)) // 8
    spectra = []
    for y in (real, x):
        z = (y - y.mean(0)) / (real.std(0) + 1e-12)
        pieces = np.stack([z[i : i + size] for i in range(0, len(z) - size + 1, size)]) * np.hanning(size)[:, None]
        spectra.append((np.abs(np.fft.rfft(pieces, axis=1)) ** 2).mean((0, 2)))
    edges = [size // 2 ** (k + 1) for k in range(int(np.log2(size)) - 2, -1, -1)]
    octaves = [np.log(s[a:b].mean() / r[a:b].mean()) for a, b in itertools.pairwise(edges) for r, s in [spectra]]
    print("log power over real, octaves from slow to fast:", " ".join(f"{o:+.2f}" for o in octaves))


def judge_imputation(data: Data, seed: int, steps: int, train: dict[str, object], draws: int = 15) -> None:
    rows = data.frame.select(data.time, *data.channels)
    cut = int(0.8 * rows.height)
    first, rest = rows[:cut], rows[cut:]
    started = time.process_time()
    series = {"time": data.time, "window": data.length, "calendar": data.calendar}
    config = {"series": series, "train": {"seed": seed, **train}}
    model = tabdiff.fit_series(first, tabdiff.FitConfig.model_validate(config))
    print(f"\nimputation, fitted in {time.process_time() - started:.0f} CPU-s, {draws} draws of {steps} steps")
    mean, scale = (np.array([getattr(first[c], f)() for c in data.channels]) for f in ("mean", "std"))
    truth = (rest.select(pl.col(data.channels).cast(pl.Float64)).to_numpy() - mean) / scale
    past = (first.select(pl.col(data.channels).cast(pl.Float64)).to_numpy() - mean) / scale
    rng, length = np.random.default_rng(seed), data.length
    random = rng.random(truth.shape) < 0.5
    blocks = np.zeros_like(random)
    for start in range(0, len(truth) - length + 1, length):
        some = rng.permutation(truth.shape[1])[: max(1, truth.shape[1] // 2)]
        offset = start + rng.integers(0, length // 2 + 1)
        blocks[offset : offset + length // 2, some] = True
    print("\n| hidden | method | MAE | CRPS | coverage of 90 % | CPU-s |\n|---|---|---|---|---|---|")
    for kind, mask in (("random cells", random & ~np.isnan(truth)), ("blocks", blocks & ~np.isnan(truth))):
        holed = rest.with_columns(
            pl.Series(c, np.where(mask[:, i], np.nan, rest[c].cast(pl.Float64).to_numpy())).fill_nan(None)
            for i, c in enumerate(data.channels)
        )
        z = np.where(mask, np.nan, truth)
        linear = linear_filling(z)
        whole = len(z) // length * length
        flat = z[:whole].reshape(-1, length * z.shape[1])
        donors = past[: len(past) // length * length].reshape(-1, length * z.shape[1])
        knn = linear.copy()
        knn[:whole] = KNNImputer(n_neighbors=10).fit(donors).transform(flat).reshape(whole, -1)
        for name, guess in (("linear interpolation", linear), ("10 nearest windows", knn)):
            error = np.abs(guess - truth)[mask].mean()
            print(f"| {kind} | {name} | {error:.3f} | {error:.3f} | | |", flush=True)
        started = time.process_time()
        drawn = model.sample(given=holed, series=draws, seed=seed, steps=steps)
        seconds = time.process_time() - started
        d = (
            drawn.select(pl.col(data.channels).cast(pl.Float64)).to_numpy().reshape(draws, *truth.shape) - mean
        ) / scale
        error = np.abs(np.median(d, axis=0) - truth)[mask].mean()
        s = np.sort(d, axis=0)
        weights = 2 * np.arange(1, draws + 1) - draws - 1
        crps = (np.abs(d - truth).mean(0) - (s * weights[:, None, None]).sum(0) / draws**2)[mask].mean()
        low, high = np.quantile(d, [0.05, 0.95], axis=0)
        inside = ((low <= truth) & (truth <= high))[mask].mean()
        print(f"| {kind} | tabdiff | {error:.3f} | {crps:.3f} | {inside:.3f} | {seconds:.0f} |", flush=True)
        started = time.process_time()
        reports: list[dict[str, tabdiff.series_imputation.SensorFill]] = []
        filled = model.impute(holed, draws=20, interval=0.9, seed=seed, steps=steps, on_report=reports.append)
        seconds = time.process_time() - started
        chosen = (filled.select(pl.col(data.channels).cast(pl.Float64)).to_numpy() - mean) / scale
        ends = [(filled.select(pl.col([f"{c}_{e}" for c in data.channels]).cast(pl.Float64)).to_numpy() - mean) / scale for e in ("low", "high")]  # fmt: skip
        inside = ((ends[0] <= truth) & (truth <= ends[1]))[mask].mean()
        error = np.abs(chosen - truth)[mask].mean()
        print(f"| {kind} | chosen | {error:.3f} | | {inside:.3f} | {seconds:.0f} |", flush=True)
        print("#", kind, {name: fill.method for name, fill in reports[0].items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--parts", nargs="+", default=["windows"], choices=["windows", "long", "imputation"])
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=20, help="denoiser calls")
    parser.add_argument("--train-steps", type=int, help="gradient steps; the default budget if not given")
    parser.add_argument("--linear", action="store_true", help="with the untrained network")
    parser.add_argument("--time", default="t")
    parser.add_argument("--entity")
    parser.add_argument("--calendar", default="auto", choices=["auto", "none"])
    parser.add_argument("--count", type=int, default=MOST, help="windows drawn")
    parser.add_argument("--alone", action="store_true", help="without the linear model beside it")
    parser.add_argument("--rows", type=int, help="the first so many only")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    data = Data(options)
    train: dict[str, object] = {"steps": options.train_steps} if options.train_steps else {}
    train = NOTHING_LEARNED if options.linear else train
    print(f"{options.data.stem}: {data.frame.height} rows, {len(data.channels)} channels, seeds {options.seeds}")
    if "windows" in options.parts:
        judge_windows(data, options, train)
    for seed in options.seeds:
        if "long" in options.parts:
            judge_long(data, seed, options.steps, train)
        if "imputation" in options.parts:
            judge_imputation(data, seed, options.steps, train)


if __name__ == "__main__":
    main()
