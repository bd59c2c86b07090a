"""Volumes under the surface (Paparrizos et al. 2022), as the package tsb-ad computes them, for all thresholds at once.

    python benchmarks/vus.py

compares them with the package's own, which look at each threshold and each anomaly by itself: the same to rounding, some ninety times slower.
"""

from __future__ import annotations

import time

import numpy as np

THRESHOLDS = 250


def vus(score: np.ndarray, label: np.ndarray, window: int) -> tuple[float, float]:
    """VUS-PR and VUS-ROC of scores (N,) and labels (N,) of 0 and 1, over buffers of 0 to `window` places."""
    from TSB_AD.evaluation.basic_metrics import basic_metricor

    metric = basic_metricor()
    places, inside = len(label), label.astype(bool)
    stretches = metric.range_convers_new(label)
    thresholds = -np.sort(-score)[np.linspace(0, places - 1, THRESHOLDS).astype(int)]
    # The first threshold, from the highest down, at which a place is flagged: sums over what is flagged are running sums.
    first = np.searchsorted(-thresholds, -score, side="left")
    flagged = places - np.searchsorted(np.sort(score), thresholds, side="left")
    judged = covered(metric.new_sequence(label, stretches, window), places)

    def running(firsts: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(firsts, weights, THRESHOLDS + 1)[:THRESHOLDS].cumsum()

    under_pr, under_roc = [], []
    for width in range(window + 1):
        soft = metric.sequencing(label, stretches, width)
        near = metric.new_sequence(soft, stretches, width)
        weight = np.where(judged, np.where(inside, 1.0, soft), 0.0)
        # Of a buffer only what is flagged counts as anomalous.
        open_ended = covered(near, places) & ~inside
        positive = (label.sum() + weight[~open_ended].sum() + running(first, weight * open_ended)) / 2
        found = running(np.array([first[a : b + 1].min() for a, b in near])) / len(near)
        right = running(first, weight)
        recall = np.concatenate([[0.0], np.minimum(right / positive, 1) * found, [1.0]])
        false = np.concatenate([[0.0], (flagged - right) / (places - positive), [1.0]])
        under_pr.append(np.diff(recall[:-1]) @ (right / flagged))
        under_roc.append(np.diff(false) @ (recall[1:] + recall[:-1]) / 2)
    return float(np.mean(under_pr)), float(np.mean(under_roc))


def covered(stretches: list[tuple[int, int]], places: int) -> np.ndarray:
    mask = np.zeros(places, dtype=bool)
    for start, end in stretches:
        mask[start : end + 1] = True
    return mask


def main() -> None:
    from TSB_AD.evaluation.basic_metrics import generate_curve

    rng = np.random.default_rng(0)
    for places, anomalies, window in ((600, 3, 20), (1500, 40, 11), (900, 1, 0), (2000, 9, 60)):
        label = np.zeros(places, dtype=int)
        for start in rng.integers(0, places - 1, anomalies):
            label[start : start + int(rng.integers(1, 30))] = 1
        label[:5] = label[-4:] = anomalies == 3
        score = np.round(rng.random(places) + 0.5 * label, 2 if anomalies == 40 else 9)
        started = time.perf_counter()
        *_, roc, pr = generate_curve(label, score, window, "opt", THRESHOLDS)
        between = time.perf_counter()
        mine = vus(score, label, window)
        ours, theirs = time.perf_counter() - between, between - started
        assert np.allclose(mine, (pr, roc), rtol=0, atol=1e-12), (mine, pr, roc)
        print(
            f"{places} places, {anomalies} anomalies, window {window}: {pr:.4f}, {roc:.4f}; {theirs:.3f} and {ours:.3f} s"
        )


if __name__ == "__main__":
    main()
