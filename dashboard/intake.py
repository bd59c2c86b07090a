"""Files that people send: where they are kept, under which names, and how they become a source."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

from dashboard import bounded
from tabdiff.errors import SourceError
from tabdiff.files import atomic_write
from tabdiff.operations.looking import UPLOADED
from tabdiff.store import Workspace

MOST_BYTES = 50 * 2**20
_FOLDER = "uploads"


def look(name: str, content: bytes, overrides: bounded.Overrides | None = None) -> dict[str, Any]:
    """What a file that somebody sent seems to be; nothing is kept of it.

    Raises:
        SourceError: it is too large, of another format, or not readable.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / safe_name(name, content)
        path.write_bytes(content)
        try:
            return bounded.look_at_file(path, overrides)
        except SourceError as error:
            raise SourceError(str(error).replace(f"{folder}/", "")) from None


def keep(workspace: Workspace, source: str, name: str, content: bytes) -> str:
    """Keep a file in the workspace and register its folder as a source; a further file of a known source is new rows of it.

    Returns:
        The name under which the file is kept.

    Raises:
        StoreError: the name of the source is not one, is another source's, or TABDIFF_DATA_ROOTS forbids it.
        SourceError: the file is too large, of another format, or cannot be written.
    """
    made = safe_name(name, content)
    folder = workspace.home / _FOLDER / source
    known = workspace.sources.all().get(source)
    if known is None or known.location != str(folder):
        workspace.sources.add(source, location=str(folder))  # refuses bad names, and sources that are elsewhere
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic_write(folder / made) as temporary:
        temporary.write_bytes(content)
    return made


def safe_name(name: str, content: bytes) -> str:
    """A file name of plain letters, with the digest of what is in the file, so that the same file sent twice is one.

    Raises:
        SourceError: the file is too large, empty or of another format.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in UPLOADED:
        raise SourceError(
            f"an uploaded file ends in {', '.join(UPLOADED)}; got {suffix[:20] or 'no suffix'}. Convert it."
        )
    if not content or len(content) > MOST_BYTES:
        raise SourceError(
            f"an uploaded file has 1 byte to {MOST_BYTES // 2**20} MiB; got {len(content):,} bytes. "
            "Put a larger one where tabdiff runs, and register its path."
        )
    stem = re.sub(r"[^A-Za-z0-9-]+", "-", Path(name).stem).strip("-").lower()[:40] or "table"
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
