"""What normal rows score, measured on rows that the score has not seen."""

from __future__ import annotations

import numpy as np
import torch

from tabdiff.calibration import Calibration
from tabdiff.codec import Encoded
from tabdiff.nn.programs import Score
from tabdiff.scoring import CHUNK_ROWS

_LEARNED_WEIGHT = 0.5  # of the learned view; the others weigh 1


@torch.inference_mode()
def calibrate(
    score: Score, device: torch.device, encoded: Encoded, held_out: Encoded, stored: np.ndarray
) -> Calibration:
    """Standardise kernel views on all stored rows, each left out, and the rest on held-out rows; count p-values there."""

    def errors(part: Encoded, places: np.ndarray) -> np.ndarray:
        chunks = []
        for start in range(0, len(part.x), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            arrays = (part.x[rows, None, :], part.present[rows, None, :])
            left_out = torch.from_numpy(places[rows]).to(device) if score.kernels else None
            chunks.append(
                score(*(torch.from_numpy(array).to(device) for array in arrays), left_out)[:, 0].cpu().numpy()
            )
        return np.concatenate(chunks)

    count = len(encoded.x)
    on_held_out = errors(held_out, stored[count:])
    in_memory = np.flatnonzero(stored[:count] >= 0)
    on_stored = (
        errors(Encoded(encoded.x[in_memory], encoded.present[in_memory]), stored[in_memory])
        if len(in_memory)
        else on_held_out[:0]
    )
    both = np.concatenate([on_held_out, on_stored])
    samples = [
        (on_held_out if name in score.fitted_views else both)[:, index] for index, name in enumerate(score.views)
    ]
    weight = [_LEARNED_WEIGHT if name == "learned" else 1.0 for name in score.views]
    return Calibration.fit(score.views, samples, weight).with_normal(on_held_out)
