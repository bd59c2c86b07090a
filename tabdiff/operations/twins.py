"""The same file delivered twice under two names."""

from __future__ import annotations

import contextlib
import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabdiff.store.scores import Part


def twin(
    name: str,
    files: Sequence[Path],
    listed: Sequence[tuple[str, Sequence[Path]]],
    done: Mapping[str, Sequence[Part]],
) -> str | None:
    """A scored unit of one file that holds the same bytes as this one and is still there.

    Args:
        name: of the unit.
        files: of the unit; nothing is looked for if there are several.
        listed: units of the source with their files.
        done: what was scored of each. Only files whose size was the same are read.
    """
    if len(files) != 1:
        return None
    size = files[0].stat().st_size
    for other, paths in listed:
        parts = done.get(other)
        if other == name or not parts or not parts[-1].rows or len(paths) != 1:
            continue
        if (parts[-1].identity or {}).get(paths[0].name, [None])[0] != size:
            continue
        with contextlib.suppress(OSError):  # gone since it was listed
            if filecmp.cmp(files[0], paths[0], shallow=False):
                return other
    return None


def said(other: str, keys: Sequence[str], columns: Sequence[str]) -> tuple[bool, str]:
    """Whether keys say that the rows are those of the other file, and what people are told."""
    found = f"it holds the same bytes as {other}, which was scored. "
    if keys and set(keys) <= set(columns):
        return True, f"{found}The keys of its rows say that they are the same: not scored again. Remove it"
    cure = "If they are, remove it and take its scores back: tabdiff sources rescore"
    return False, f"{found}Scored once more, as the source has no --key that says which rows are the same. {cure}"
