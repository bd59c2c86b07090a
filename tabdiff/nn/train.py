"""Fit the learned denoiser by denoising score matching.

The loop is a generator of typed events: progress bars, logs and early stopping by hand are its callers. All
randomness is a function of (seed, step), so a run that was killed and resumed equals one that was not.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tabdiff.config import TrainConfig
from tabdiff.errors import TrainingError
from tabdiff.files import atomic_folder
from tabdiff.nn.denoiser import Denoiser
from tabdiff.nn.objective import (
    Uncertainty,
    decouple_categories,
    denoising_loss,
    draw_given,
    draw_noise,
    fill_gated,
    show_in_order,
)
from tabdiff.nn.processes import Dropout, add_up, agreed, place, share

_EPOCHS = 30  # how often each row is seen; conditional distributions overfit after that
_LEAST_STEPS = 600
_SMALL_TABLE = 6000  # rows, about, below which some are drawn in any order: they show another puzzle each time, and need more passes
_SMALL_TABLE_STEPS = 2400
_LEARNED_STEPS = 0.5  # of the planned steps, for a network that begins with the weights of another
_LEARNED_RATE = 0.5  # of the learning rate; the full one throws away what a small table has taught it
_HELD_OUT_ROWS = 2048
_PROGRESS = ("step", "steps", "best", "worse", "elapsed", "finished", "identity")
_LEAST_WINDOW_STEPS = 200  # an untrained network is the best linear denoiser already
_WINDOW_COMPUTE = 4.8e12  # for windows, of which more is to be learned
_COMPUTE = 1.6e12  # floating-point operations of the default budget; about 40 s of one core of 2020


@dataclass(frozen=True)
class TrainEvent:
    """State of the loop after an evaluation.

    Attributes:
        step, steps: gradient steps done and planned.
        loss: mean training loss since the last event, in units of the preconditioned error (1 = best linear denoiser).
        held_out: the same of the averaged weights on held-out rows with fixed noise; lower is better.
        best: lowest held-out loss so far.
        learning_rate: now.
        rows_per_second: training rows since the last event.
        elapsed: seconds since the start, earlier runs of a resumed fit included.
        finished: why the loop ends here, or None: "steps", "patience" or "time".
    """

    step: int
    steps: int
    loss: float
    held_out: float
    best: float
    learning_rate: float
    rows_per_second: float
    elapsed: float
    finished: str | None = None


def train(
    denoiser: Denoiser,
    x: Float[Tensor, "n t w"],
    present: Bool[Tensor, "n t u"],
    held_out: Float[Tensor, "m t w"],
    held_out_present: Bool[Tensor, "m t u"],
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    identity: str = "",
    learned: bool = False,
) -> Iterator[TrainEvent]:
    """Fit `denoiser` in place; when the iterator ends it holds the averaged weights of the best held-out loss.

    Under torchrun every process calls this with the same arguments and ends with the same weights; the first writes the checkpoint.

    Args:
        denoiser: on the device to train on; `x` may be elsewhere.
        x, present: encoded training windows and which of their cells are there.
        held_out, held_out_present: windows for the early stop.
        checkpoint: folder that is replaced at every evaluation and read at the start if it exists.
        identity: names the table and options that made `x`; a checkpoint of another identity is refused.
        learned: the denoiser has weights worth keeping; it is trained at half the rate, for half the steps unless `config` says how many.

    Raises:
        TrainingError: the loss is not finite, the checkpoint is of another fit, or there are more processes than rows of a batch.
    """
    steps = planned_steps(denoiser, config, len(x))
    if learned and config.steps is None:
        steps = max(1, round(_LEARNED_STEPS * steps))
    batch = planned_batch(config, len(x), denoiser.length)
    if batch < place()[1]:
        raise TrainingError(
            f"each process needs a row of every batch; got {place()[1]} processes for batches of {batch}. "
            "Start fewer, or raise train.batch_size."
        )
    denoiser.unfold(keep=learned)
    state = _State.create(denoiser, config, steps, batch, identity, learned)
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)
        if state.finished:
            state.finish()
            yield state.event(loss=math.nan, held_out=state.best, rate=0.0)
            return
    device = denoiser.mean.device
    x, present = x.to(device), present.to(device)
    evaluate = _held_out_loss(
        held_out[:_HELD_OUT_ROWS].to(device), held_out_present[:_HELD_OUT_ROWS].to(device), state, config
    )
    started = time.monotonic() - state.elapsed
    total, counted, since = torch.zeros((), device=device), 0, time.monotonic()
    while not state.finished:
        total += state.advance(x, present)
        counted += 1
        now = time.monotonic()
        out_of_time = config.time_limit is not None and agreed(now - started > config.time_limit)
        if state.step % config.evaluate_every and state.step < state.steps and not out_of_time:
            continue
        state.elapsed = now - started
        loss, current = float(total) / counted, agreed(evaluate())
        if not math.isfinite(loss) or not math.isfinite(current):
            raise TrainingError(
                f"the loss must stay finite; at step {state.step} it is {loss} (held out {current}). "
                f"Lower train.learning_rate (now {config.learning_rate}) or use train.precision=float32."
            )
        finished = state.judge(current, out_of_time)
        if checkpoint is not None and place()[0] == 0:
            state.save(checkpoint)
        rate = counted * state.batch / max(now - since, 1e-9)
        if finished:
            state.finish()
        yield state.event(loss, current, rate)
        total, counted, since = torch.zeros((), device=device), 0, time.monotonic()


def planned_batch(config: TrainConfig, rows: int, length: int = 1) -> int:
    """`config.batch_size`, or a power of two from 32 to 256 (of windows 128) that leaves a small table enough gradient steps an epoch."""
    return config.batch_size or min(256 if length == 1 else 128, max(32, 2 ** int(math.log2(max(rows, 8) / 8))))


def planned_steps(denoiser: Denoiser, config: TrainConfig, rows: int) -> int:
    """`config.steps`, or `_EPOCHS` passes over the rows, of small tables more, as far as the default amount of computation allows."""
    if config.steps is not None:
        return config.steps
    batch = planned_batch(config, rows, denoiser.length)
    windows = denoiser.length > 1
    affordable = (_WINDOW_COMPUTE if windows else _COMPUTE) / (6 * denoiser.multiplications * batch)
    wanted = _EPOCHS * rows / batch
    if rows < _SMALL_TABLE and not denoiser.order and not windows:
        wanted = max(wanted, _SMALL_TABLE_STEPS)
    return int(max(_LEAST_WINDOW_STEPS if windows else _LEAST_STEPS, min(affordable, wanted)))


@dataclass
class _State:
    """Everything that a checkpoint holds."""

    denoiser: Denoiser
    uncertainty: Uncertainty
    optimizer: torch.optim.AdamW
    averaged: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    config: TrainConfig
    steps: int
    batch: int
    identity: str
    learned: bool = False
    step: int = 0
    best: float = math.inf
    worse: int = 0
    elapsed: float = 0.0
    finished: str | None = None

    @classmethod
    def create(
        cls, denoiser: Denoiser, config: TrainConfig, steps: int, batch: int, identity: str, learned: bool
    ) -> _State:
        uncertainty = Uncertainty(max(1, denoiser.mean.numel())).to(denoiser.mean.device)
        parameters = [*denoiser.parameters(), *uncertainty.parameters()]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
        weights = {name: value.detach().clone() for name, value in denoiser.state_dict().items()}
        return cls(
            denoiser, uncertainty, optimizer, weights, copy.deepcopy(weights), config, steps, batch, identity, learned
        )

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to 0 over the planned steps."""
        config = self.config
        warm = min(1.0, (self.step + 1) / (min(config.warmup, self.steps // 10) + 1))
        largest = config.learning_rate * (_LEARNED_RATE if self.learned else 1.0)
        return largest * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.steps)))

    def event(self, loss: float, held_out: float, rate: float) -> TrainEvent:
        """What the caller is told."""
        return TrainEvent(
            self.step,
            self.steps,
            loss,
            held_out,
            self.best,
            self.learning_rate(),
            rate,
            self.elapsed,
            self.finished,
        )

    def advance(self, x: Float[Tensor, "n t w"], present: Bool[Tensor, "n t u"]) -> Tensor:
        """One gradient step; returns its loss without waiting for the device."""
        config, device = self.config, x.device
        seed = config.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout knows no other source
        rows = torch.randint(len(x), (self.batch,), generator=generator).to(device)
        layout = self.denoiser.process.layout
        batch = fill_gated(x[rows], layout, generator)
        # One stratified draw of levels per batch: less variance than independent ones (Kingma et al. 2021, appendix I.1).
        offset = torch.rand((), generator=generator)
        t = ((torch.arange(self.batch) + offset) / self.batch).clamp_min(1e-4).to(device)
        noise = draw_noise(layout, (self.batch, x.shape[1]), generator).to(device)
        if self.denoiser.order:
            noise = show_in_order(noise.cpu(), layout, self.denoiser.order, config.in_order, generator).to(device)
        if layout.number_units:  # a category that is given looks like one that is not masked yet
            noise = decouple_categories(noise.cpu(), layout, generator).to(device)
        given = draw_given(layout, present[rows], config.condition_share, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.denoiser.train()
        own = share(self.batch)
        for module in self.denoiser.modules():
            if isinstance(module, Dropout):
                module.rows = self.batch
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = denoising_loss(
                self.denoiser,
                self.uncertainty,
                batch[own],
                present[rows[own]],
                t[own],
                noise[own],
                None if given is None else given[own],
            )
        self.optimizer.zero_grad(set_to_none=True)
        # The mean over the batch is the sum of the processes' parts.
        loss = loss * ((own.stop - own.start) / self.batch)
        loss.backward()
        loss = add_up(loss.detach(), [*self.denoiser.parameters(), *self.uncertainty.parameters()])
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 10.0)
        self.optimizer.step()
        self.step += 1
        # The average forgets the first steps quickly, however long its memory is later.
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            current: list[Tensor] = list(self.denoiser.parameters())
            torch._foreach_lerp_(
                [self.averaged[name] for name, _ in self.denoiser.named_parameters()], current, 1 - decay
            )
        return loss

    def judge(self, held_out: float, out_of_time: bool) -> bool:
        """Keep the best averaged weights and decide whether to stop."""
        if held_out < self.best:
            self.best, self.worse = held_out, 0
            self.best_weights = {name: value.clone() for name, value in self.averaged.items()}
        else:
            self.worse += 1
        if self.step >= self.steps:
            self.finished = "steps"
        elif self.worse >= self.config.patience:
            self.finished = "patience"
        elif out_of_time:
            self.finished = "time"
        return self.finished is not None

    def finish(self) -> None:
        """Leave the best averaged weights in the denoiser, as plain ones."""
        self.denoiser.load_state_dict(self.best_weights)
        self.denoiser.fold()

    def save(self, folder: Path) -> None:
        """Replace the checkpoint folder at once."""
        tensors: dict[str, Tensor] = {}
        groups = {"weights": self.denoiser.state_dict(), "averaged": self.averaged, "best": self.best_weights}
        groups["uncertainty"] = self.uncertainty.state_dict()
        for group, values in groups.items():
            tensors |= {f"{group}/{name}": value.contiguous() for name, value in values.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value.contiguous() for name, value in moments.items()}
        # safetensors refuses tensors that share memory; buffers of the weights and averages may.
        tensors = {name: value.detach().clone().cpu() for name, value in tensors.items()}
        progress = {name: getattr(self, name) for name in _PROGRESS}
        with atomic_folder(folder, replace=True) as temporary:
            save_file(tensors, temporary / "state.safetensors")
            (temporary / "progress.json").write_text(
                json.dumps({**progress, "config": self.config.model_dump()}), encoding="utf-8"
            )

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint of the same fit."""
        try:
            progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "state.safetensors", device=str(self.denoiser.mean.device))
        except (OSError, ValueError, SafetensorError) as error:
            raise TrainingError(
                f"the checkpoint {str(folder)!r} cannot be read: {error}. Delete it to start again."
            ) from error
        config = self.config.model_dump()
        # How long and where to train may change between runs; anything else would make another model.
        changed = [
            f"train.{name} was {progress['config'].get(name)!r}, is {value!r}"
            for name, value in config.items()
            if name not in ("time_limit", "device", "patience", "threads") and progress["config"].get(name) != value
        ]
        if progress.get("identity") != self.identity:
            changed.append("the table or the options of data, process or network differ")
        shapes = {name: value.shape for name, value in self.denoiser.state_dict().items()}
        stored = {
            name.removeprefix("weights/"): value.shape for name, value in tensors.items() if name.startswith("weights/")
        }
        if changed or shapes != stored:
            reason = "; ".join(changed) or "the table or the network has another shape"
            raise TrainingError(
                f"the checkpoint {str(folder)!r} is of another fit: {reason}. Use the same options, or delete it to start again."
            )
        group = {
            prefix: {
                name.removeprefix(f"{prefix}/"): value
                for name, value in tensors.items()
                if name.startswith(f"{prefix}/")
            }
            for prefix in ("weights", "averaged", "best", "uncertainty")
        }
        self.denoiser.load_state_dict(group["weights"])
        self.uncertainty.load_state_dict(group["uncertainty"])
        self.averaged, self.best_weights = group["averaged"], group["best"]
        optimizer = self.optimizer.state_dict()
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, index, moment = name.split("/")
                optimizer["state"].setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict(optimizer)
        for name in ("step", "steps", "best", "worse", "elapsed"):
            setattr(self, name, progress[name])
        # A run that ended for lack of time goes on when it is given more.
        self.finished = None if progress["finished"] == "time" else progress["finished"]


def _held_out_loss(x: Tensor, present: Tensor, state: _State, config: TrainConfig):  # type: ignore[no-untyped-def]
    """A function that gives the averaged weights' loss on held-out rows, always with the same noise."""
    generator = torch.Generator().manual_seed(config.seed)
    layout = state.denoiser.process.layout
    repeats = max(1, min(8, 1024 // max(1, len(x))))  # few rows are shown several times, at other levels
    x, present = x.repeat(repeats, 1, 1), present.repeat(repeats, 1, 1)
    x = fill_gated(x, layout, generator)
    order = torch.randperm(len(x), generator=generator)
    t = ((order + 0.5) / len(x)).to(x.device)
    noise = draw_noise(layout, tuple(x.shape[:2]), generator)
    if state.denoiser.order:
        noise = show_in_order(noise, layout, state.denoiser.order, config.in_order, generator)
    noise = noise.to(x.device)
    given = draw_given(layout, present, config.condition_share, generator)
    averaged_model = copy.deepcopy(state.denoiser).eval()
    plain = Uncertainty(state.uncertainty.linear.out_features).to(x.device)

    @torch.no_grad()
    def evaluate() -> float:
        averaged_model.load_state_dict(state.averaged)
        # With u = 0: a loss in fixed units can be compared between evaluations, runs and models.
        return float(denoising_loss(averaged_model, plain, x, present, t, noise, given))

    return evaluate
