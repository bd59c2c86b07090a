"""The same file delivered twice under two names."""

from __future__ import annotations

import contextlib
import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabdiff.store.scores import Part


class Scored:
    """Files of which something was scored, by size: only those of the same size are read."""

    def __init__(self, listed: Sequence[tuple[str, Sequence[Path]]], done: Mapping[str, Sequence[Part]]) -> None:
        # A unit of several files has no twin.
        self._files = {name: files[0] for name, files in listed if len(files) == 1}
        self._by_size: dict[int, dict[str, Path]] = {}
        for name in self._files:
            if parts := done.get(name):
                self.add(parts[-1])

    def add(self, part: Part) -> None:
        """What was scored of a unit; without rows it is no twin either."""
        path = self._files.get(part.unit)
        if path is not None and part.rows:
            size = (part.identity or {}).get(path.name, [None])[0]
            self._by_size.setdefault(size, {})[part.unit] = path

    def twin(self, name: str, files: Sequence[Path]) -> str | None:
        """Another unit that holds the same bytes as this one and is still there."""
        if len(files) != 1:
            return None
        for other, path in self._by_size.get(files[0].stat().st_size, {}).items():
            with contextlib.suppress(OSError):  # gone since it was listed
                if other != name and filecmp.cmp(files[0], path, shallow=False):
                    return other
        return None


def said(other: str, keys: Sequence[str], columns: Sequence[str]) -> tuple[bool, str]:
    """Whether keys say that the rows are those of the other file, and what people are told."""
    found = f"it holds the same bytes as {other}, which was scored. "
    if keys and set(keys) <= set(columns):
        return True, f"{found}The keys of its rows say that they are the same: not scored again. Remove it"
    cure = "If they are, remove it and take its scores back: tabdiff sources rescore"
    return False, f"{found}Scored once more, as the source has no --key that says which rows are the same. {cure}"
