"""What normal rows score, measured on rows that took no part in the score.

A row that is among the stored ones has shaped the metric, the noise levels and the quantiles that it is measured with, and
leaving it out as a neighbour does not undo that: with 50 rows and 30 columns seven in ten new rows would then have p <= 0.2.
So calibration builds the score once more from the training rows alone, and small tables do it in turns (cross-conformal,
Vovk 2015): every row is held out once, and all of them count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32

from tabdiff.calibration import Calibration
from tabdiff.codec import Codec, Encoded
from tabdiff.config import FitConfig
from tabdiff.nn.assemble import build_score
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.programs import Score
from tabdiff.scoring import CHUNK_ROWS

_LEARNED_WEIGHT = 0.5  # of the learned view; the others weigh 1
_TURNS_BELOW = 20_000  # rows: from here on the 15 % that are held out are enough to count
_TURNS = 7


@dataclass(frozen=True)
class Part:
    """What one split of the table led to.

    Attributes:
        denoiser: learned from `encoded`, stopped by `held_out`.
        codec: fitted on the training rows.
        encoded, held_out: training rows, and those that calibrate.
    """

    denoiser: Denoiser
    codec: Codec
    encoded: Encoded
    held_out: Encoded


def turns(rows: int, config: FitConfig) -> int:
    """In how many turns to calibrate a table: 1 is one split."""
    if config.score.turns is not None:
        return config.score.turns
    return _TURNS if rows < _TURNS_BELOW else 1


def calibrate(parts: Sequence[Part], config: FitConfig, device: torch.device) -> Calibration:
    """Standardise views by the errors of the rows that each part held out, and count p-values on them."""
    found = [_errors_of_held_out(part, config, device) for part in parts]
    views = found[0][0]
    if any(names != views for names, _ in found):
        raise AssertionError(f"every turn must have the same views; got {[names for names, _ in found]}")
    errors = np.concatenate([array for _, array in found])
    samples = [errors[:, index] for index in range(len(views))]
    weight = [_LEARNED_WEIGHT if name == "learned" else 1.0 for name in views]
    return Calibration.fit(views, samples, weight).with_normal(errors)


@torch.inference_mode()
def _errors_of_held_out(
    part: Part, config: FitConfig, device: torch.device
) -> tuple[list[str], Float32[np.ndarray, "n v c"]]:
    nothing = Encoded(part.held_out.x[:0], part.held_out.present[:0])
    score = build_score(part.denoiser.cpu().eval(), part.codec, part.encoded, nothing, config)
    return score.views, _errors(score.to(device).eval(), part.held_out, device)


def _errors(score: Score, rows: Encoded, device: torch.device) -> Float32[np.ndarray, "n v c"]:
    chunks = []
    for start in range(0, len(rows.x), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        arrays = (rows.x[part, None, :], rows.present[part, None, :])
        chunks.append(score(*(torch.from_numpy(array).to(device) for array in arrays))[:, 0].cpu().numpy())
    return np.concatenate(chunks)
