"""Text that comes from data: shown as it is, never as Markdown or HTML, and harmless in a spreadsheet."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl

from tabdiff.files import write

_JOINER = "\u2060"  # takes no room; breaks what is found in text after Markdown has been read
_LONGEST = 200
_LONG_NUMBER = re.compile(r"-?\d+\.\d{5,}(e-?\d+)?")
_POOLED = {"__other__": "a rare value"}  # the state that a model pools rare categories in
# Streamlit finds icons, emoji and addresses in text whatever is escaped.
_FOUND_LATER = re.compile(r":(?=[\w+/-]+:)|:(?=//)|(?<=www)(?=\.)|@", re.IGNORECASE)
_SIGNS = re.compile(r"([!-/:-@\[-`{-~])")  # ASCII punctuation, all of which a backslash makes literal


def literal(value: Any, longest: int = _LONGEST) -> str:
    """A value as one line without control characters and marks of direction, cut if it is long; for tables and `st.text`."""
    found = (
        "missing"
        if value is None
        else f"{value:.6g}"
        if isinstance(value, float)
        else _POOLED.get(str(value), str(value))
    )
    seen = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in found[: 4 * longest])
    clean = " ".join("".join(c for c in seen if unicodedata.category(c) not in ("Cf", "Cs", "Co")).split())
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"


def about(value: Any) -> Any:
    """A number of which only the size matters, such as the end of a band: four digits, also if it is text with many. Else as it is."""
    if isinstance(value, str) and _LONG_NUMBER.fullmatch(value):
        value = float(value)
    return float(f"{value:.4g}") if isinstance(value, float) else value


def plain(value: Any, longest: int = _LONGEST) -> str:
    """The same for labels, captions and headings, which Streamlit reads as Markdown."""
    broken = _FOUND_LATER.sub(lambda found: found[0] + _JOINER, literal(value, longest))
    return _SIGNS.sub(r"\\\1", broken)


def csv_bytes(frame: pl.DataFrame) -> bytes:
    """A table as CSV in which no cell is a formula."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        write(frame, path)
        return path.read_bytes()
