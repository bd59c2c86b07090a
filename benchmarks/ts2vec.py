"""Context-FID: the Fréchet distance between what an encoder of series makes of real and of drawn windows.

The encoder follows TS2Vec (Yue et al. 2022): a linear map, timestamps masked at random, ten residual blocks of dilated convolutions
(width 64, kernel 3), 320 outputs, the maximum over time as the code of a window; trained on the real windows by hierarchical
contrast, over time and over instances, between two overlapping crops; batches of 8, AdamW at 1e-3, 600 steps. Context-FID as in
Jeha et al. 2022, with these settings in the benchmarks of Diffusion-TS. Written anew from the papers: numbers are of the same
kind as published ones, not from the same code.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch.nn import functional

WIDTH, CODES, DEPTH, BATCH, STEPS = 64, 320, 10, 8, 600


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv1d(outputs, outputs, 3, padding=dilation, dilation=dilation)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(functional.gelu(self.first(functional.gelu(x))))
        return h + self.skip(x)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.read = nn.Linear(channels, WIDTH)
        blocks = [Block(WIDTH, WIDTH, 2**index) for index in range(DEPTH)]
        self.blocks = nn.Sequential(*blocks, Block(WIDTH, CODES, 2**DEPTH))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) -> (B, T, codes)."""
        h = self.read(x)
        if self.training:
            h = h * (torch.rand(h.shape[:2]) < 0.5)[..., None]
        return self.dropout(self.blocks(h.transpose(1, 2)).transpose(1, 2))  # type: ignore[no-any-return]


def contrast(a: Tensor, b: Tensor) -> Tensor:
    """Each row of (N, M, codes) finds its other crop among the 2 M of its group: N groups of M."""
    z = torch.cat([a, b], dim=1)
    count = a.shape[1]
    alike = z @ z.transpose(1, 2)
    alike.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    logs = -functional.log_softmax(alike, dim=-1)
    index = torch.arange(count)
    return (logs[:, index, count + index].mean() + logs[:, count + index, index].mean()) / 2


def hierarchical(a: Tensor, b: Tensor) -> Tensor:
    """Contrast over instances and over time, at halving resolutions."""
    total, levels = torch.zeros(()), 0
    while True:
        total = total + 0.5 * contrast(a.transpose(0, 1), b.transpose(0, 1))
        levels += 1
        if a.shape[1] == 1:
            return total / levels
        total = total + 0.5 * contrast(a, b)
        a, b = (functional.max_pool1d(each.transpose(1, 2), 2).transpose(1, 2) for each in (a, b))


def train_encoder(x: np.ndarray, seed: int, steps: int = STEPS) -> Encoder:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data, length = torch.tensor(x, dtype=torch.float32), x.shape[1]
    encoder = Encoder(x.shape[2])
    average = torch.optim.swa_utils.AveragedModel(encoder)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = data[rng.permutation(len(data))[:BATCH]]
        size = int(rng.integers(2, length + 1))
        left = int(rng.integers(0, length - size + 1))
        right = left + size
        before, after = int(rng.integers(0, left + 1)), int(rng.integers(right, length + 1))
        first = encoder(rows[:, before:right])[:, -size:]
        second = encoder(rows[:, left:after])[:, :size]
        loss = hierarchical(first, second)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update_parameters(encoder)
    return average.module.eval()  # type: ignore[return-value]


def codes(encoder: Encoder, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        parts = [encoder(torch.tensor(x[i : i + 500], dtype=torch.float32)).amax(1) for i in range(0, len(x), 500)]
    return torch.cat(parts).numpy().astype(np.float64)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = sqrtm(first @ second).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * both))
