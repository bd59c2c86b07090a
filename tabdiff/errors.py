"""Every error that tabdiff raises on purpose.

    TabdiffError
    ├── SourceError          data could not be read or a result could not be written
    ├── SchemaError          a table is not what the model was fitted on
    ├── ConfigError          an option is unknown or out of range
    ├── TrainingError        fitting cannot go on
    ├── SynthesisError       rows cannot be drawn as asked, or fail their checks
    ├── BundleError          a model folder is incomplete, altered or from another version
    ├── RuntimeUnavailable   the requested device or engine is not there
    └── StoreError           the workspace refused an operation

A message states the rule, the evidence and the cure, and names the column or file. The command line
prints it without a traceback and exits with a status other than 0.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

TABLE = "(the table)"  # stands for the column in problems that are of no single column


class TabdiffError(Exception):
    """Base of all errors that tabdiff raises on purpose."""


class SourceError(TabdiffError):
    """Data could not be read, or a result could not be written."""


@dataclass(frozen=True)
class Problem:
    """One offending column, or the `TABLE`: which rule it breaks, the value that shows it, and the cure."""

    column: str
    rule: str
    evidence: str
    cure: str

    def __str__(self) -> str:
        place = "the table" if self.column == TABLE else f"column {self.column!r}"
        return f"{place}: {self.rule}; found {self.evidence}. {self.cure}"


class SchemaError(TabdiffError):
    """A table is not what the schema says. Lists every problem, not only the first; `where` says which rows it is of."""

    def __init__(self, problems: Sequence[Problem], where: str = "") -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__(
            f"{where and where + ': '}the table does not fit the schema, {len(self.problems)} {noun}:\n{lines}"
        )


class ConfigError(TabdiffError):
    """An option is unknown, of the wrong type or out of range."""


class TrainingError(TabdiffError):
    """Fitting cannot go on, for instance because the loss is no longer finite."""


class SynthesisError(TabdiffError):
    """Synthetic rows cannot be drawn as asked, would be copies of training rows, or fail their checks."""


class BundleError(TabdiffError):
    """A model folder is incomplete, altered, or written by an incompatible version."""


class RuntimeUnavailable(TabdiffError):  # noqa: N818 - the established name of the state, not of the exception
    """The requested device or inference engine is not available here."""


class StoreError(TabdiffError):
    """The workspace refused an operation."""


class UnknownNameError(StoreError):
    """No source, model or version has this name; trying again cannot help."""


class TabdiffWarning(UserWarning):
    """Something was accepted that the user may want to know of."""


_NOT_THE_CALLER = ("tabdiff", "jaxtyping")  # where shapes are checked, jaxtyping wraps each function


def warn(message: str) -> None:
    """Issue a `TabdiffWarning` that points at the line outside this package which led here."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_CALLER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, TabdiffWarning, stacklevel=level)
