"""Other people's detectors, for comparison: scikit-learn's, and short re-implementations of published methods.

Each is `fit(x, seed) -> score`, where x is (N, D) standardised training rows and `score(rows)` is higher for more abnormal
rows. Networks train until the number of epochs that their authors use, or TRAINING_CPU_S, whatever comes first; nothing
is chosen per table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import skew
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.svm import OneClassSVM
from torch import Tensor, nn

TRAINING_CPU_S = 4.0
Fitted = Callable[[np.ndarray], np.ndarray]


def neighbours(how: str) -> Callable[[np.ndarray, int], Fitted]:
    """Mean or largest distance to the 5 nearest training rows (Ramaswamy et al. 2000)."""

    def fit(x: np.ndarray, seed: int) -> Fitted:
        index = NearestNeighbors(n_neighbors=min(5, len(x))).fit(x)
        reduce = np.mean if how == "mean" else np.max
        return lambda rows: reduce(index.kneighbors(rows)[0], axis=1)

    return fit


def scikit(make: Callable[[int, int], object]) -> Callable[[np.ndarray, int], Fitted]:
    def fit(x: np.ndarray, seed: int) -> Fitted:
        detector = make(len(x), seed).fit(x)  # type: ignore[attr-defined]
        return lambda rows: -detector.score_samples(rows)

    return fit


def hbos(x: np.ndarray, seed: int, bins: int = 10, alpha: float = 0.1, tolerance: float = 0.5) -> Fitted:
    """Histogram-based outlier score (Goldstein & Dengel 2012): -sum over columns of log2(density of the bin + alpha).

    As in PyOD: a value less than half a bin outside the range counts as inside, others get the rarest bin's density.
    """
    histograms = [np.histogram(column, bins=bins, density=True) for column in x.T]

    def score(rows: np.ndarray) -> np.ndarray:
        total = np.zeros(len(rows))
        for column, (density, edges) in zip(rows.T, histograms, strict=True):
            log = np.log2(density + alpha)
            place = np.digitize(column, edges, right=True) - 1
            slack = tolerance * (edges[1] - edges[0])
            far = (column < edges[0] - slack) | (column > edges[-1] + slack)
            total -= np.where(far, log.min(), log[np.clip(place, 0, bins - 1)])
        return total

    return score


def tails(combine: str) -> Callable[[np.ndarray, int], Fitted]:
    """Tail probabilities of each column by itself, added up as -log: COPOD (Li et al. 2020), ECOD (Li et al. 2022).

    With u = -log P(X <= x), v = -log P(X >= x) and s = u or v, whichever tail the sign of the skewness points to:
    COPOD sums max(s, (u + v) / 2), ECOD sums max(s, u, v). As in PyOD, the probabilities are those among training and
    scored rows together.
    """

    def fit(x: np.ndarray, seed: int) -> Fitted:
        def score(rows: np.ndarray) -> np.ndarray:
            both = np.concatenate([x, rows])
            left = -np.log([_share_below(column) for column in both.T]).T[len(x) :]
            right = -np.log([_share_below(-column) for column in both.T]).T[len(x) :]
            sign = np.sign(np.nan_to_num(skew(both, axis=0)))
            by_skew = np.where(sign < 0, left, np.where(sign > 0, right, left + right))
            other = (left + right) / 2 if combine == "copod" else np.maximum(left, right)
            return np.maximum(by_skew, other).sum(axis=1)

        return score

    return fit


def _share_below(values: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(values), values, side="right") / len(values)


# ------------------------------------------------------------------------------------------- diffusion and flows


def noise_variance(steps: int, first: float, last: float) -> Tensor:
    """1 - cumulative product of (1 - beta_t), beta linear (Ho et al. 2020, eq. 4)."""
    return 1 - torch.cumprod(1 - torch.linspace(first, last, steps), dim=0)


def dte_non_parametric(x: np.ndarray, seed: int, steps: int = 300) -> Fitted:
    """DTE-NP (Livernoche et al. 2024, section 4.1): the diffusion time at which a training row would look like this one.

    The posterior of the noise variance given the mean squared distance m to the 5 nearest rows is inverse Gamma with shape
    D/2 - 1 and scale m/2 (eq. 6); the score is its mode on the grid of 300 times, so far rows tie at the last one.
    """
    index = NearestNeighbors(n_neighbors=min(5, len(x))).fit(x)
    variance = noise_variance(steps, 1e-4, 0.01).numpy()

    def score(rows: np.ndarray) -> np.ndarray:
        m = (index.kneighbors(rows)[0] ** 2).mean(axis=1)
        log_density = -0.5 * x.shape[1] * np.log(variance) - m[:, None] / (2 * variance)
        return np.argmax(log_density, axis=1)

    return score


def dte_categorical(x: np.ndarray, seed: int, steps: int = 400, bins: int = 7) -> Fitted:
    """DTE-C (Livernoche et al. 2024, section 4.2): a network says how much noise a row carries, in 7 bins of time.

    Trained on x + sigma_t n with cross-entropy; the score is the expected bin. Network 256-512-256 with dropout 0.5,
    Adam at 1e-4 with weight decay 5e-4, 400 epochs of batches of 64.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    hidden = [nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Dropout(0.5)]
    network = nn.Sequential(*hidden, nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, bins))
    deviation = noise_variance(steps, 1e-4, 0.01).sqrt()

    def loss(batch: Tensor) -> Tensor:
        t = torch.randint(steps, (len(batch),), generator=generator)
        noisy = batch + deviation[t, None] * torch.randn(batch.shape, generator=generator)
        return nn.functional.cross_entropy(network(noisy), t * bins // steps)

    train(network, x, loss, generator, epochs=400, rate=1e-4, decay=5e-4)
    return scored(lambda rows: network(rows).softmax(dim=1) @ torch.arange(float(bins)))


def ddae(x: np.ndarray, seed: int, steps: int = 50) -> Fitted:
    """DDAE (Sattarov et al. 2025): a denoising autoencoder whose noise follows a diffusion schedule.

    Trained to give back x from sqrt(a_t) x + sqrt(1 - a_t) n, with the time embedded in 4 numbers; the score is the sum over
    all t of |x - x_hat(x_t, t)|. Network 512-512 with leaky ReLU, Adam at 1e-3, 100 epochs of batches of 64.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    width = x.shape[1]
    network = nn.Sequential(
        nn.Linear(width + 4, 512), nn.LeakyReLU(), nn.Linear(512, 512), nn.LeakyReLU(), nn.Linear(512, width)
    )
    variance = noise_variance(steps, 1e-4, 0.02)

    def denoise(rows: Tensor, t: Tensor) -> Tensor:
        v = variance[t, None]
        noisy = (1 - v).sqrt() * rows + v.sqrt() * torch.randn(rows.shape, generator=generator)
        estimate: Tensor = network(torch.cat([noisy, embedding(t.float(), 4)], dim=1))
        return estimate

    def loss(batch: Tensor) -> Tensor:
        t = torch.randint(1, steps, (len(batch),), generator=generator)
        return nn.functional.mse_loss(denoise(batch, t), batch)

    train(network, x, loss, generator, epochs=100, rate=1e-3)
    return scored(
        lambda rows: torch.stack(
            [(rows - denoise(rows, torch.full((len(rows),), t))).norm(dim=1) for t in range(1, steps)]
        ).sum(dim=0)
    )


def tccm(x: np.ndarray, seed: int) -> Fitted:
    """TCCM (Li et al. 2025): a velocity field f(x, t) that contracts normal rows to the origin in one step.

    Trained to give -x at a random time in [0, 1] (eq. 4); the score is |f(x, 1) + x| (eq. 5). Network 256-256 with the time in
    128 sines, Adam at 1e-3, 100 epochs of batches of 64: the authors' defaults. (Their results use settings per table.)
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    width = x.shape[1]
    network = nn.Sequential(nn.Linear(width + 128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    network.append(nn.Linear(256, width))

    def field(rows: Tensor, t: Tensor) -> Tensor:
        velocity: Tensor = network(torch.cat([rows, embedding(t, 128)], dim=1))
        return velocity

    def loss(batch: Tensor) -> Tensor:
        return nn.functional.mse_loss(field(batch, torch.rand(len(batch), generator=generator)), -batch)

    train(network, x, loss, generator, epochs=100, rate=1e-3)
    return scored(lambda rows: (field(rows, torch.ones(len(rows))) + rows).norm(dim=1))


def embedding(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of t at geometric frequencies down to 1/10,000 (Vaswani et al. 2017)."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angle = t[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def train(
    network: nn.Module,
    x: np.ndarray,
    loss: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    *,
    epochs: int,
    rate: float,
    decay: float = 0.0,
    batch: int = 64,
) -> None:
    """Adam over shuffled batches, for so many epochs or TRAINING_CPU_S."""
    rows = torch.from_numpy(x).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=decay)
    started = time.process_time()
    network.train()
    for _ in range(epochs):
        for part in torch.randperm(len(rows), generator=generator).split(batch):
            optimizer.zero_grad()
            loss(rows[part]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if time.process_time() - started > TRAINING_CPU_S:
                network.eval()
                return
    network.eval()


def scored(score: Callable[[Tensor], Tensor]) -> Fitted:
    @torch.no_grad()
    def of(rows: np.ndarray) -> np.ndarray:
        return torch.cat([score(part) for part in torch.from_numpy(rows).float().split(4096)]).numpy()

    return of


PEERS: dict[str, Callable[[np.ndarray, int], Fitted]] = {
    "KNN-mean": neighbours("mean"),
    "KNN": neighbours("max"),
    "LOF": scikit(lambda n, s: LocalOutlierFactor(novelty=True)),
    "GMM8": scikit(lambda n, s: GaussianMixture(min(8, n // 10 + 1), reg_covar=1e-3, random_state=s)),
    "GMM": scikit(lambda n, s: GaussianMixture(1, reg_covar=1e-3, random_state=s)),
    "IForest": scikit(lambda n, s: IsolationForest(random_state=s)),
    "OCSVM": scikit(lambda n, s: OneClassSVM()),
    "HBOS": hbos,
    "COPOD": tails("copod"),
    "ECOD": tails("ecod"),
    "DTE-NP": dte_non_parametric,
    "DTE-C": dte_categorical,
    "DDAE": ddae,
    "TCCM": tccm,
    "random": lambda x, seed: lambda rows: np.random.default_rng(seed).random(len(rows)),
}
