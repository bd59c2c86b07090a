"""The benchmark's re-implementations, against numbers that the originals gave, and against what they must find."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

# Decision scores of PyOD 3.6.7 with default options on the rows of `rows_like_recorded`.
PYOD = {
    "HBOS": [4.589162381, 3.574550463, 5.02941869, 6.207029917, 4.88937804],
    "COPOD": [3.61771832, 2.798674885, 3.041487584, 6.429763172, 5.262075715],
    "ECOD": [3.793417263, 3.898128217, 5.079628166, 8.711937268, 6.003887067],
}


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "peers.py"
    spec = importlib.util.spec_from_file_location("peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_like_recorded() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, 1.0, (40, 3))
    return x, np.concatenate([rng.gamma(2.0, 1.0, (3, 3)), [[-0.2, 9.0, 1.0], [20.0, 1.0, 1.0]]])


@pytest.mark.parametrize("name", PYOD)
def test_scores_are_those_of_pyod(peers: ModuleType, name: str) -> None:
    x, rows = rows_like_recorded()
    np.testing.assert_allclose(peers.PEERS[name](x, 0)(rows), PYOD[name], rtol=1e-8)


def test_the_non_parametric_time_is_the_mode_of_the_inverse_gamma(peers: ModuleType) -> None:
    from scipy.stats import invgamma

    rng = np.random.default_rng(1)
    x, rows = rng.normal(size=(50, 4)), 0.6 * rng.normal(size=(8, 4))
    squared = ((rows[:, None] - x) ** 2).sum(-1)
    nearest = np.sort(squared, axis=1)[:, :5].mean(axis=1)
    variance = peers.noise_variance(300, 1e-4, 0.01).numpy().astype(float)
    expected = [np.argmax(invgamma.logpdf(variance, a=4 / 2 - 1, scale=m / 2)) for m in nearest]
    np.testing.assert_array_equal(peers.PEERS["DTE-NP"](x, 0)(rows), expected)


@pytest.mark.parametrize("name", ["DTE-C", "DDAE", "TCCM"])
def test_networks_learn_where_the_rows_are(peers: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points on a plane in five dimensions; anomalies are off the plane, but not far from the middle."""
    monkeypatch.setattr(peers, "TRAINING_CPU_S", 1.5)
    rng = np.random.default_rng(2)
    plane = rng.normal(size=(2, 5))
    x = rng.normal(size=(600, 2)) @ plane
    fresh, odd = rng.normal(size=(200, 2)) @ plane, rng.normal(size=(200, 5)) * x.std(axis=0)
    scores = peers.PEERS[name](x / x.std(axis=0), 0)(np.concatenate([fresh, odd]) / x.std(axis=0))
    assert roc_auc_score(np.repeat([0, 1], 200), scores) > 0.8
    assert np.isfinite(scores).all()
