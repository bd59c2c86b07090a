"""What pages read from the workspace. Functions take a workspace; pages call them without, and get what somebody asked a moment ago.

Answers are kept for all sessions together: whoever asks first reads, whoever asks the same meanwhile waits for that answer (ten people
who open a page at once cost one query). They are the very objects, never copies, so pages do not change them. Nothing in them depends on who asks:
roles are checked in actions. Only aggregates and at most 1,000 rows are kept.

Answers about alerts and versions are kept under the mark of the workspace (`Triage.mark`), which changes with every commit, verdict, rule,
version and promotion whoever made it; others for some seconds. An action calls `refresh`, so that people see what they did.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from tabdiff.store import Workspace

MOST_ROWS = 1000
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_MOST_ANSWERS = 300
_MARKED = 600.0  # seconds for which an answer is kept while nothing changes
_MARK = 1.0  # seconds for which the mark itself is
_changes = {"count": 0}  # of this process; part of keys


def workspace() -> Workspace:
    """The workspace of TABDIFF_HOME and TABDIFF_DATABASE_URL, opened once.

    Raises:
        StoreError: there is none yet, or it is out of reach.
    """
    return _open(os.environ.get("TABDIFF_HOME"), os.environ.get("TABDIFF_DATABASE_URL"))


@functools.lru_cache(maxsize=8)
def _open(home: str | None, url: str | None) -> Workspace:
    return Workspace.open()


class Answers:
    """Answers by question, each asked once however many want it. An error goes to all who wait, and is not kept."""

    def __init__(self, most: int = _MOST_ANSWERS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock, self._lock = most, clock, threading.Lock()
        self._kept: dict[Hashable, tuple[float, Future[Any]]] = {}  # until when; oldest first

    def get(self, question: Hashable, seconds: float, ask: Callable[[], _Result]) -> _Result:
        """The answer that is kept, or what `ask` returns."""
        now = self._clock()
        with self._lock:
            until, answer = self._kept.get(question, (now, None))
            mine = answer is None or (until <= now and answer.done())
            if answer is None or mine:
                answer = Future()
                self._kept.pop(question, None)
                self._kept[question] = (now + seconds, answer)
                self._forget(now)
        if mine:
            try:
                answer.set_result(ask())
            except BaseException as error:
                with self._lock:
                    if self._kept.get(question, (0.0, None))[1] is answer:
                        del self._kept[question]
                answer.set_exception(error)
                raise
        result: _Result = answer.result()
        return result

    def _forget(self, now: float) -> None:
        """What is too old, then the oldest, until there is room."""
        old = [question for question, (until, answer) in self._kept.items() if until <= now and answer.done()]
        for question in old:
            del self._kept[question]
        while len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]


_answers = Answers()


class Cached(Generic[_Arguments, _Result]):
    """A question to the workspace whose answer is kept. `of` asks a workspace directly.

    Attributes:
        seconds: how long; None: as long as the workspace's mark is the same (but not for ever, so that memory is given back).
        lasting: what it asks for never changes, so not even an action makes it old.
    """

    def __init__(
        self,
        function: Callable[Concatenate[Workspace, _Arguments], _Result],
        seconds: float | None,
        lasting: bool = False,
    ) -> None:
        self.of, self.seconds, self.lasting = function, seconds, lasting
        functools.update_wrapper(self, function)

    def __call__(self, *args: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        """The answer of the workspace of the environment."""
        where = workspace()
        whose = f"{where.home} {where.database.engine.url}"
        state: tuple[Any, ...] = () if self.lasting else (_changes["count"],)
        if self.seconds is None:
            state += (_answers.get(("mark", whose, *state), _MARK, where.triage.mark),)
        question = (self.of.__module__, self.of.__qualname__, whose, state, args, tuple(sorted(options.items())))
        seconds = _MARKED if self.seconds is None else self.seconds
        return _answers.get(question, seconds, lambda: self.of(where, *args, **options))


def cached(
    seconds: float | None = 15.0, *, lasting: bool = False
) -> Callable[[Callable[Concatenate[Workspace, _Arguments], _Result]], Cached[_Arguments, _Result]]:
    """Make a function of a workspace a `Cached` question; its arguments are hashable."""
    return lambda function: Cached(function, seconds, lasting)


def refresh() -> None:
    """Ask everything anew from now on."""
    _changes["count"] += 1
