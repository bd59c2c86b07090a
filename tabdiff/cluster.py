"""Score parts of a streamed run on Ray workers, on this host or on a cluster: the same function of the same rows as the loop.

What travels are places of parts, never rows: a worker reads its rows from the shared input and writes its part beside the result, by
rename. So a part is the same wherever and how often it is scored, and a worker that dies costs the part that it was at.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabdiff.errors import ConfigError, RuntimeUnavailable, TabdiffError
from tabdiff.files import write
from tabdiff.loading import load
from tabdiff.sources import read
from tabdiff.streaming import PartEvent, Task, score_part

_STORE_BYTES = 100_000_000  # Ray's shared memory; only places of parts go through it
_MOST_BLOCKS = 1000


class _Scorer:
    """One worker: a model, loaded once."""

    def __init__(self, model_dir: str, source: str, provider: str) -> None:
        self.model, self.source = load(model_dir), read(source)
        if self.model.runtime.provider != provider:
            raise RuntimeUnavailable(
                f"workers must score with the same engine as this process, {provider}; one has {self.model.runtime.provider}."
            )

    def __call__(self, places: dict[str, Any]) -> dict[str, Any]:
        for first, rows, file in zip(places["first"], places["rows"], places["file"], strict=True):
            frame = self.source.slice(int(first), int(rows)).collect()
            write(score_part(self.model, frame, int(first)), Path(str(file)))
        return {"rows": places["rows"]}


@dataclass(frozen=True)
class RayWorkers:
    """Workers for `tabdiff.streaming.score_file`.

    Attributes:
        model_dir: folder of the model; all hosts must see it, the input and the folder of the result under the same path.
        count: how many work at once, a CPU each.
        address: of a running cluster, as RAY_ADDRESS; None starts one on loopback that ends with the run.
        patience: seconds without a finished part after which the run is given up; its parts are kept.
    """

    model_dir: Path
    provider: str
    count: int = 1
    address: str | None = None
    patience: float = 600.0

    def __post_init__(self) -> None:
        """Refuse what would hang, before anything is begun.

        Raises:
            ConfigError: there is no worker, or no CPU left beside them.
        """
        if self.count < 1:
            raise ConfigError(f"workers must be at least 1; got {self.count}.")
        if self.address is None:
            _spare(self.count, os.cpu_count() or 2)

    def __call__(self, tasks: Sequence[Task], source: str | Path, on_event: Callable[[PartEvent], None]) -> None:
        """Make the parts of some tasks.

        Raises:
            ConfigError: there are not more CPUs than workers.
            RuntimeUnavailable: Ray is not installed, the cluster does not answer, or the workers make no progress.
            SchemaError: rows do not fit the model; names the rows.
        """
        if not tasks:
            return
        started, total = time.monotonic(), tasks[0].total
        fresh = 0
        before = total - sum(task.rows for task in tasks)
        with _cluster(self.address, self.count) as ray:
            found = ray.data.from_items(
                [asdict(task) for task in tasks], override_num_blocks=min(len(tasks), _MOST_BLOCKS)
            ).map_batches(
                _Scorer,
                fn_constructor_args=(str(self.model_dir.absolute()), str(Path(source).absolute()), self.provider),
                batch_size=1,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(size=self.count),
                max_restarts=-1,
                max_task_retries=-1,
            )
            try:
                for batch in _patiently(found.iter_batches(batch_size=None), self.patience):
                    fresh += int(sum(batch["rows"]))
                    on_event(PartEvent(before + fresh, total, fresh, time.monotonic() - started))
            except ray.exceptions.RayError as error:
                raise _ours(error) or RuntimeUnavailable(
                    f"the Ray workers failed ({str(error).strip().splitlines()[-1]}). Parts that are done are kept: use --resume."
                ) from error


def _spare(count: int, cpus: int) -> None:
    if count > max(1, cpus - 1):
        raise ConfigError(
            f"workers must leave a CPU to those that read, or all of them wait for ever; got {count} of {cpus}. "
            f"Use at most {max(1, cpus - 1)}."
        )


@contextmanager
def _cluster(address: str | None, count: int) -> Iterator[Any]:
    """Ray with a token, without its dashboard, on loopback if it is ours."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # Ray's only way to stay on loopback; it would take 127.0.0.1 as an address for the one that others see.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise RuntimeUnavailable(
            f"workers need Ray, which is not installed here ({error}). Run pip install 'tabdiff[ray]'."
        ) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_level": "ERROR"}
    if address is None:
        # One CPU more than there are workers, whatever the machine has.
        own = {"num_cpus": count + 1, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        ray.init(address="local", **own, **quiet)  # never another that happens to run here
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RuntimeUnavailable(
                f"the Ray cluster at {address!r} does not answer ({error}). Check the address and RAY_AUTH_TOKEN_PATH."
            ) from error
    try:
        _spare(count, int(ray.cluster_resources().get("CPU", 0)))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context.actor_task_retry_on_errors = False  # what is wrong with rows is wrong each time
        yield ray
    finally:
        ray.shutdown()


def _patiently(results: Any, patience: float) -> Iterator[Any]:
    """The results as they come; dead workers can leave Ray waiting for ever."""
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue()

    def collect() -> None:
        try:
            for batch in results:
                waiting.put(("batch", batch))
        except BaseException as error:
            waiting.put(("error", error))
        else:
            waiting.put(("end", None))

    threading.Thread(target=collect, daemon=True).start()
    while True:
        try:
            kind, value = waiting.get(timeout=patience)
        except queue.Empty:
            raise RuntimeUnavailable(
                f"no Ray worker has finished a part in {patience:g} s. Parts that are done are kept: use --resume."
            ) from None
        if kind == "end":
            return
        if kind == "error":
            raise value
        yield value


def _ours(error: BaseException) -> TabdiffError | None:
    """The error that a worker raised on purpose, if that is what went wrong."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, TabdiffError):
            return found
        cause = getattr(found, "cause", None)
        found = cause if isinstance(cause, BaseException) else found.__cause__
    return None
