"""One diffusion model of a table or of sensor series: anomaly scores with reasons, and synthetic rows.

>>> import tabdiff
>>> model = tabdiff.fit(frame)                # doctest: +SKIP
>>> model.score(frame).to_frame()             # doctest: +SKIP
>>> model.sample(1000, given={"class": 1})    # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tabdiff.errors import (
    BundleError,
    ConfigError,
    RuntimeUnavailable,
    SchemaError,
    SourceError,
    StoreError,
    SynthesisError,
    TabdiffError,
    TabdiffWarning,
    TrainingError,
)

if TYPE_CHECKING:
    from tabdiff.api import fit
    from tabdiff.config import FitConfig, SampleConfig
    from tabdiff.loading import load, load_series
    from tabdiff.model import Model
    from tabdiff.schema import Schema
    from tabdiff.series_fit import fit_series
    from tabdiff.series_model import SeriesModel

__all__ = [
    "BundleError",
    "ConfigError",
    "FitConfig",
    "Model",
    "RuntimeUnavailable",
    "SampleConfig",
    "Schema",
    "SchemaError",
    "SeriesModel",
    "SourceError",
    "StoreError",
    "SynthesisError",
    "TabdiffError",
    "TabdiffWarning",
    "TrainingError",
    "fit",
    "fit_series",
    "load",
    "load_series",
]

# torch takes seconds to import and polars half a second; only those who use them wait.
_LAZY = {
    "fit": "api",
    "fit_series": "series_fit",
    "load": "loading",
    "load_series": "loading",
    "FitConfig": "config",
    "SampleConfig": "config",
    "Model": "model",
    "SeriesModel": "series_model",
    "Schema": "schema",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"tabdiff.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tabdiff' has no attribute {name!r}")
