"""Every error that tabdiff raises on purpose.

    TabdiffError
    ├── SourceError          data could not be read or a result could not be written
    ├── SchemaError          a table is not what the model was fitted on
    ├── ConfigError          an option is unknown or out of range
    ├── TrainingError        fitting cannot go on
    ├── BundleError          a model folder is incomplete, altered or from another version
    ├── RuntimeUnavailable   the requested device or engine is not there
    └── StoreError           the workspace refused an operation

A message states the rule, the evidence and the cure, and names the column or file. The command line
prints it without a traceback and exits with a status other than 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class TabdiffError(Exception):
    """Base of all errors that tabdiff raises on purpose."""


class SourceError(TabdiffError):
    """Data could not be read, or a result could not be written."""


@dataclass(frozen=True)
class Problem:
    """One offending column of a table: which rule it breaks, the value that shows it, and the cure."""

    column: str
    rule: str
    evidence: str
    cure: str

    def __str__(self) -> str:
        return f"column {self.column!r}: {self.rule}; found {self.evidence}. {self.cure}"


class SchemaError(TabdiffError):
    """A table is not what the schema says. Lists every problem, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__(f"the table does not fit the schema, {len(self.problems)} {noun}:\n{lines}")


class ConfigError(TabdiffError):
    """An option is unknown, of the wrong type or out of range."""


class TrainingError(TabdiffError):
    """Fitting cannot go on, for instance because the loss is no longer finite."""


class BundleError(TabdiffError):
    """A model folder is incomplete, altered, or written by an incompatible version."""


class RuntimeUnavailable(TabdiffError):  # noqa: N818 - the established name of the state, not of the exception
    """The requested device or inference engine is not available here."""


class StoreError(TabdiffError):
    """The workspace refused an operation."""


class TabdiffWarning(UserWarning):
    """Something was accepted that the user may want to know of."""
