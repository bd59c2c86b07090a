"""What p-values, flags, alerts and feedback promise, against what they keep, on a folder of labelled tables.

    python benchmarks/calibration.py DATA [--rows 50 200] [--splits 10] [--tables WDBC cardio] [--steps 100]

DATA holds NAME.npz files with X (rows, columns) and y (1 = anomaly). A split draws `--rows` normal rows to fit on, 50 other
normal ones to test, and 5 anomalies: real ones, and planted ones (each cell from another normal row, so that every value is
ordinary and their relations are not). Everything is fitted anew in every split, with a small network (width 32) to make that
affordable. Feedback is replayed on tables with at least 40 anomalies: half of the rows are scored and the highest are judged by
their labels, then precision is measured on the other half.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import kstest
from sklearn.metrics import average_precision_score, precision_recall_curve

import tabdiff
from tabdiff.flags import Rule, benjamini_hochberg

TEST, ODD = 50, 5
RATES = (0.05, 0.1, 0.2)
ALERTS = (0.05, 0.1)


def frame(x: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(x.astype(np.float64), schema=[f"x{index}" for index in range(x.shape[1])], orient="row")


def fit(x: np.ndarray, seed: int, steps: int) -> tabdiff.Model:
    options = {
        "train": {"steps": steps, "seed": seed, "batch_size": 128},
        "network": {"width": 32, "blocks": 1},
    }
    kinds = {name: {"kind": "continuous"} for name in frame(x).columns}
    return tabdiff.fit(frame(x), tabdiff.FitConfig.model_validate(options), overrides=kinds)


def split(x: np.ndarray, y: np.ndarray, rows: int, seed: int, steps: int) -> dict[str, np.ndarray]:
    """p-values of normal, real odd and planted odd rows; share of normal rows over thresholds for 5 % and 10 %."""
    rng = np.random.default_rng(seed)
    normal, odd = rng.permutation(np.flatnonzero(y == 0)), rng.permutation(np.flatnonzero(y == 1))
    model = fit(x[normal[:rows]], seed, steps)
    rest = normal[rows:]
    planted = np.stack([x[rng.choice(rest, x.shape[1]), np.arange(x.shape[1])] for _ in range(ODD)])
    scores = model.score(frame(np.concatenate([x[rest[:TEST]], x[odd[:ODD]], planted])))
    found = {
        "normal": scores.p_value[:TEST],
        "real": scores.p_value[TEST:-ODD],
        "planted": scores.p_value[-ODD:],
    }
    calibration = np.asarray(model.calibration.normal)
    for share in ALERTS:
        threshold = Rule("alerts_per_day", share, 1.0).threshold(calibration)
        found[f"alerts {share}"] = scores.score[:TEST] > threshold
    return found


def report(splits: list[dict[str, np.ndarray]], rows: int) -> None:
    normal = np.stack([one["normal"] for one in splits])
    ks = np.array([kstest(p, "uniform").pvalue for p in normal])
    alone = kstest(normal[:, 0], "uniform").pvalue  # one row a split: no calibration set is counted twice
    print(f"\nn = {rows}, {len(splits)} splits of {TEST} normal rows")
    print(f"  P(p <= a) of normal rows: {', '.join(f'{a}: {(normal <= a).mean():.3f}' for a in (0.02, *RATES, 0.5))}")
    print(f"  KS p < .05 in {np.mean(ks < 0.05):.0%} of splits; KS over one row a split: p = {alone:.2f}")
    for share in ALERTS:
        print(f"  alerts: {share:.0%} asked, {np.mean([one[f'alerts {share}'] for one in splits]):.2%} of normal rows")
    for kind in ("real", "planted"):
        for rate in RATES:
            wrong, power = [], []
            for one in splits:
                flagged = benjamini_hochberg(np.concatenate([one["normal"], one[kind]]), rate)
                wrong.append(flagged[:TEST].sum() / max(1, flagged.sum()))
                power.append(flagged[TEST:].mean())
            error = 1.96 * np.std(wrong) / np.sqrt(len(wrong))
            print(
                f"  {kind:8s} FDR {rate}: realised {np.mean(wrong):.3f} +- {error:.3f}, power {np.mean(power):.2f}",
                flush=True,
            )


def replay(x: np.ndarray, y: np.ndarray, seed: int, steps: int) -> tuple[list[float], list[float]]:
    """Average precision, and precision at recall .5 and .8, without and with feedback."""
    rng = np.random.default_rng(seed)
    normal, odd = rng.permutation(np.flatnonzero(y == 0))[:1500], rng.permutation(np.flatnonzero(y == 1))
    third, odd = len(normal) // 3, odd[: max(20, len(normal) // 8)]
    half = len(odd) // 2
    model = fit(x[normal[:third]], seed, steps)
    first = np.concatenate([normal[third : 2 * third], odd[:half]])
    second = np.concatenate([normal[2 * third :], odd[half:]])
    highest = first[np.argsort(-model.score(frame(x[first])).score)[: 2 * half]]
    told = model.with_feedback(frame(x[highest]), y[highest] == 1)

    def quality(model: tabdiff.Model) -> list[float]:
        score = model.score(frame(x[second])).score
        precision, recall, _ = precision_recall_curve(y[second], score)
        return [average_precision_score(y[second], score), *(precision[recall >= r].max() for r in (0.5, 0.8))]

    return quality(model), quality(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tables", nargs="*", default=[])
    parser.add_argument("--rows", nargs="*", type=int, default=[50, 200])
    parser.add_argument("--splits", type=int, default=10, help="per table")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--replays", type=int, default=1, help="seeds of the replay of feedback; 0 leaves it out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    tables = {}
    for path in sorted(options.data.glob("*.npz")):
        if path.stem in options.tables or not options.tables:
            with np.load(path) as stored:
                tables[path.stem] = stored["X"].astype(np.float64), stored["y"].astype(int)
    for rows in options.rows:
        usable = [(x, y) for x, y in tables.values() if (y == 0).sum() >= rows + TEST and (y == 1).sum() >= ODD]
        found = [split(x, y, rows, seed, options.steps) for x, y in usable for seed in range(options.splits)]
        report(found, rows)
    results = []
    for name, (x, y) in tables.items() if options.replays else ():
        if (y == 1).sum() >= 40:
            both = np.array([replay(x, y, seed, options.steps) for seed in range(options.replays)]).mean(axis=0)
            results.append(both)
            print(f"  {name:18s} without {np.round(both[0], 3)}, with feedback {np.round(both[1], 3)}", flush=True)
    if results:
        mean = np.mean(results, axis=0)
        print(
            f"feedback, average precision, precision at recall .5, .8: {np.round(mean[0], 3)} -> {np.round(mean[1], 3)}"
        )
        print(f"better in {np.mean([b[0] > a[0] for a, b in results]):.0%} of tables by average precision")


if __name__ == "__main__":
    main()
