"""One diffusion model of a table: anomaly scores with reasons, and synthetic rows.

>>> import tabdiff
>>> model = tabdiff.fit(frame)                # doctest: +SKIP
>>> model.score(frame).to_frame()             # doctest: +SKIP
>>> model.sample(1000, given={"class": 1})    # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tabdiff.config import FitConfig, SampleConfig
from tabdiff.errors import (
    BundleError,
    ConfigError,
    RuntimeUnavailable,
    SchemaError,
    SourceError,
    StoreError,
    TabdiffError,
    TabdiffWarning,
    TrainingError,
)
from tabdiff.model import Model
from tabdiff.schema import Schema

if TYPE_CHECKING:
    from tabdiff.api import fit, load

__all__ = [
    "BundleError",
    "ConfigError",
    "FitConfig",
    "Model",
    "RuntimeUnavailable",
    "SampleConfig",
    "Schema",
    "SchemaError",
    "SourceError",
    "StoreError",
    "TabdiffError",
    "TabdiffWarning",
    "TrainingError",
    "fit",
    "load",
]


def __getattr__(name: str) -> Any:
    # `fit` and `load` bring torch, which takes seconds to import; only those who use them wait.
    if name in ("fit", "load"):
        from tabdiff import api

        return getattr(api, name)
    raise AttributeError(f"module 'tabdiff' has no attribute {name!r}")
