"""One fit on several processes, as torchrun starts them: each takes its share of every batch, and all of them take the same step.

Everything random is drawn for the whole batch by every process, so a fit is the same on one process and on many, up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as group
from torch import Tensor, nn

from tabdiff.errors import RuntimeUnavailable


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Meet the other processes if torchrun started this one, unless the caller has done so: NCCL between GPUs, else gloo.

    Raises:
        RuntimeUnavailable: the processes cannot reach each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or group.is_initialized():
        yield
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        group.init_process_group("nccl" if on_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RuntimeUnavailable(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for several processes, which cannot meet ({error}). "
            "Start them with torchrun, or unset WORLD_SIZE."
        ) from error
    try:
        yield
    finally:
        group.destroy_process_group()


def place() -> tuple[int, int]:
    """(rank, how many processes); (0, 1) alone."""
    if group.is_available() and group.is_initialized():
        return group.get_rank(), group.get_world_size()
    return 0, 1


def share(rows: int) -> slice:
    """The rows of a batch that this process takes."""
    rank, world = place()
    return slice(rank * rows // world, (rank + 1) * rows // world)


def add_up(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Sum gradients and loss over all processes, in one message; returns the loss."""
    if place()[1] == 1:
        return loss
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    message = torch.cat([loss.detach().reshape(1), *(gradient.reshape(-1) for gradient in gradients)])
    group.all_reduce(message)
    start = 1
    for gradient in gradients:
        gradient.copy_(message[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return message[0]


def agreed(value: Any) -> Any:
    """What the first process says: clocks differ, and so may the last bits of a sum."""
    if place()[1] == 1:
        return value
    values = [value]
    group.broadcast_object_list(values)
    return values[0]


class Dropout(nn.Dropout):
    """Dropout of this process's rows as if the whole batch of `rows` were here, shape (B, width) -> (B, width)."""

    rows: int | None = None

    def forward(self, h: Tensor) -> Tensor:
        """Zero a share of the entries while training."""
        if not self.training or self.rows is None or place()[1] == 1:
            return super().forward(h)
        mask = nn.functional.dropout(h.new_ones((self.rows, *h.shape[1:])), self.p)
        return h * mask[share(self.rows)]
