"""Read tables of other people in a child process, which may use so much memory and so much time and no more.

A file that was made to harm its reader harms a process that has nothing else to do. It also keeps the memory of the pages small.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabdiff.errors import SourceError, TabdiffError

_MEMORY = 6 * 2**30  # bytes of address space, of which threads and libraries reserve a part without using it
_CPU, _WALL = 90, 120  # seconds
_LONGEST = 8_000_000  # characters of an answer
ROWS = 20_000  # newest rows of a source that are looked at

Overrides = Mapping[str, Mapping[str, str]]


def look_at_source(source: str, overrides: Overrides | None = None) -> dict[str, Any]:
    """What `tabdiff.operations.looking.look` finds in the newest rows of a registered source.

    Raises:
        SourceError: it cannot be read, or not within the limits.
    """
    return _ask({"source": source, "overrides": overrides})


def look_at_file(path: Path, overrides: Overrides | None = None) -> dict[str, Any]:
    """The same for a file that was uploaded.

    Raises:
        SourceError: it is too large or not readable, or not within the limits.
    """
    return _ask({"file": str(path), "overrides": overrides})


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dashboard.bounded"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=_WALL,
            check=False,
        )
        answer = json.loads(done.stdout) if len(done.stdout) <= _LONGEST else None
    except (subprocess.TimeoutExpired, ValueError):
        answer = None
    if not isinstance(answer, dict):
        raise SourceError(
            f"the table must be readable with {_MEMORY // 2**30} GiB of memory in {_WALL} seconds; it was not. Give a smaller one."
        )
    if "error" in answer:
        raise SourceError(str(answer["error"]))
    return answer


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU, _CPU))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Answer one question from standard input."""
    _limit()
    question = json.load(sys.stdin)
    from tabdiff.operations import looking
    from tabdiff.store import Workspace

    try:
        if "file" in question:
            found = looking.look(looking.load_upload(Path(question["file"])), question["overrides"])
        else:
            _, spec = Workspace.open().sources.get(question["source"])
            found = looking.look_at_source(spec, ROWS, question["overrides"])
    except TabdiffError as error:
        found = {"error": str(error)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
