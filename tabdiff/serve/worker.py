"""The one thread that owns the model, and the batches it works through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tabdiff.model import Model
from tabdiff.scoring import Scores
from tabdiff.serve.metrics import Metrics
from tabdiff.serve.options import ServeOptions

_NOTHING = 1e-12  # a false-discovery rate at which nothing is flagged: flags are a request's own affair


class BusyError(Exception):
    """Too many requests wait, or the endpoint is stopping."""


@dataclass
class _Waiting:
    frame: pl.DataFrame
    done: asyncio.Future[Scores]


class Worker:
    """Runs everything that is asked of the model, one after the other; rows to score are gathered into batches."""

    def __init__(self, model: Model, options: ServeOptions, metrics: Metrics) -> None:
        self.model, self.options, self.metrics = model, options, metrics
        self.stopping = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._queue: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._count = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take batches."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Finish what was taken on, refuse what comes."""
        self.stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=True)

    async def run(self, call: Callable[[], Any]) -> Any:
        """The result of a call, made in the model's thread.

        Raises:
            BusyError: too many requests wait.
        """
        self._enter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        finally:
            self._leave()

    async def score(self, frame: pl.DataFrame) -> Scores:
        """Scores of a request's rows, computed with those of others.

        Raises:
            BusyError: too many requests wait.
        """
        self._enter()
        try:
            waiting = _Waiting(frame, asyncio.get_running_loop().create_future())
            self._queue.append(waiting)
            self._wake.set()
            return await waiting.done
        finally:
            self._leave()

    def _enter(self) -> None:
        if self.stopping or self._count >= self.options.max_waiting:
            raise BusyError
        self._count += 1
        self.metrics.waiting.set(self._count)

    def _leave(self) -> None:
        self._count -= 1
        self.metrics.waiting.set(self._count)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                if self.stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            if self.options.batch_wait and not self.stopping:
                await asyncio.sleep(self.options.batch_wait)
            batch = self._take()
            results = await loop.run_in_executor(self._thread, self._score_batch, [item.frame for item in batch])
            for item, result in zip(batch, results, strict=True):
                if item.done.cancelled():  # the caller went away
                    continue
                if isinstance(result, BaseException):
                    item.done.set_exception(result)
                else:
                    item.done.set_result(result)

    def _take(self) -> list[_Waiting]:
        """The requests that came first, up to a batch of rows, of one kind of table."""
        batch, rows = [self._queue.pop(0)], 0
        rows = batch[0].frame.height
        while self._queue:
            frame = self._queue[0].frame
            if rows + frame.height > self.options.batch_rows or frame.schema != batch[0].frame.schema:
                break
            rows += frame.height
            batch.append(self._queue.pop(0))
        return batch

    def _score_batch(self, frames: list[pl.DataFrame]) -> list[Scores | BaseException]:
        """Scores of each frame; if they cannot be scored together, each by itself, so that none pays for another."""
        try:
            together = self.model.score(pl.concat(frames), fdr=_NOTHING)
        except Exception as error:  # whatever it is, it is the answer to the request that caused it
            if len(frames) > 1:
                return [self._score_batch([frame])[0] for frame in frames]
            return [error]
        self.metrics.batch.observe(len(together.score))
        ends = np.cumsum([frame.height for frame in frames])
        return [_slice(together, end - frame.height, end) for frame, end in zip(frames, ends.tolist(), strict=True)]


def _slice(scores: Scores, start: int, stop: int) -> Scores:
    rows = slice(start, stop)
    return Scores(
        scores.columns,
        scores.score[rows],
        scores.p_value[rows],
        np.zeros(stop - start, dtype=bool),
        scores.contributions[rows],
        scores.expected.clear(),
        scores.provider,
    )
