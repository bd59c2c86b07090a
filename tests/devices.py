"""Programs are run on a device that computes nothing, so that a tensor which would stay behind on another is found without a GPU."""

from __future__ import annotations

import torch

from tabdiff.bundle import Bundle
from tabdiff.nn.runtime import build_programs


def run_on_one_device(bundle: Bundle, length: int = 1) -> None:
    """`score` and `step` with all of their buffers on the device `meta`; torch refuses a tensor of another one."""
    layout, b = bundle.codec.layout, 3
    score, step = (program.to("meta") for program in build_programs(bundle))

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    units, slots = (b, length, len(layout.units)), (b, length, layout.model_width)
    errors = score(empty(b, length, layout.width), empty(*units, dtype=torch.bool))
    assert (errors.device.type, errors.shape[0], errors.shape[-1]) == ("meta", b, len(layout.columns))
    states = [empty(*slots), empty(b), empty(b), empty(*units)]
    known = [empty(*units, dtype=torch.bool), empty(*units, dtype=torch.bool), empty(*slots), empty(*slots)]
    drawn = step(*states, *known, empty(b), empty(b))
    assert [(x.device.type, x.shape) for x in drawn] == 2 * [("meta", slots)]
