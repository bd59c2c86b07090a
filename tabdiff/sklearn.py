"""The model behind the interfaces of scikit-learn and PyOD. Needs the extra `train`; PyOD itself is not needed.

Both detectors put training rows and new rows on one scale: a row that equals a stored training row is scored with that
row left out, as the calibration of `tabdiff.fit` does. Without this a training row would be its own nearest neighbour
and never look abnormal, and a threshold taken from training rows would flag far too many new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Self, cast

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float32, Float64, Int
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from tabdiff.api import MINIMUM_ROWS, fit
from tabdiff.codec import Encoded
from tabdiff.config import FitConfig
from tabdiff.errors import ConfigError, warn
from tabdiff.model import Model
from tabdiff.nn.kernel import KernelView, log_kernel
from tabdiff.nn.programs import Score
from tabdiff.nn.runtime import build_programs, resolve_device
from tabdiff.schema import to_polars
from tabdiff.scoring import CHUNK_ROWS

__all__ = ["DiffusionDetector", "PyODDetector"]

_FEWEST_ROWS = 2
_LARGEST_SEED = 2**31
_BLOCK_ROWS = 64


class _Detector(BaseEstimator):  # type: ignore[misc]
    """Parameters, input checks and scores, which both interfaces share."""

    _parameter_constraints = {  # noqa: RUF012 - the name and form are scikit-learn's
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "contaminated": ["boolean"],
        "steps": [Interval(Integral, 1, None, closed="left"), None],
        "kernel_rows": [Interval(Integral, 0, 100_000, closed="both")],
        "random_state": ["random_state"],
        "config": [FitConfig, Mapping, None],
    }

    model_: Model
    n_features_in_: int

    def __init__(
        self,
        contamination: float = 0.1,
        *,
        contaminated: bool = False,
        steps: int | None = None,
        kernel_rows: int = 4096,
        random_state: int | np.random.RandomState | None = None,
        config: FitConfig | Mapping[str, Any] | None = None,
    ) -> None:
        self.contamination = contamination
        self.contaminated = contaminated
        self.steps = steps
        self.kernel_rows = kernel_rows
        self.random_state = random_state
        self.config = config

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags

    def _fit(self, X: Any) -> Float64[np.ndarray, " n"]:
        """Fit `model_`; returns the scores of the N training rows, higher = more abnormal."""
        self._validate_params()
        options = self._options()
        self._from_frame = _is_frame(X)
        table = self._table(X, reset=True)
        self._names = table.columns
        overrides = None if self._from_frame else {name: {"kind": "continuous"} for name in table.columns}
        repeats = 1
        if table.height < MINIMUM_ROWS:
            repeats = -(-MINIMUM_ROWS // table.height)
            warn(
                f"{table.height} rows are fewer than the {MINIMUM_ROWS} that a model needs, so each counts {repeats} times; "
                "scores fitted on so few rows say little"
            )
        self.model_ = fit(pl.concat([table] * repeats), options, overrides=overrides)
        self._program = build_programs(self.model_.bundle)[0].to(resolve_device(options.train.device))
        return self._abnormality(table)

    def _options(self) -> FitConfig:
        """`config` with the plain parameters put in."""
        options = self.config if isinstance(self.config, FitConfig) else FitConfig.model_validate(self.config or {})
        own = {"contaminated": bool(self.contaminated), "kernel_rows": int(self.kernel_rows)}
        for name, value in own.items():
            if name in options.score.model_fields_set and getattr(options.score, name) != value:
                raise ConfigError(
                    f"{name} is a parameter of {type(self).__name__}; got {value} there and "
                    f"{getattr(options.score, name)} in config. Leave it out of config."
                )
        train: dict[str, Any] = {}
        if self.steps is not None:
            train["steps"] = int(self.steps)
        if self.random_state is not None:
            seed = self.random_state
            drawn = seed if isinstance(seed, Integral) else check_random_state(seed).randint(_LARGEST_SEED)
            train["seed"] = int(drawn) % _LARGEST_SEED
        return options.model_copy(
            update={
                "score": options.score.model_copy(update=own),
                "train": options.train.model_copy(update=train),
            }
        )

    def _table(self, X: Any, *, reset: bool = False) -> pl.DataFrame:
        """Check X as scikit-learn does, and give its columns the names of the fit."""
        if isinstance(X, pl.LazyFrame):
            X = X.collect()
        fewest = _FEWEST_ROWS if reset else 1
        if self._from_frame and _is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if len(X) < fewest:  # in the words that scikit-learn has for arrays
                raise ValueError(
                    f"Found array with {len(X)} sample(s) (shape={X.shape}) while a minimum of {fewest} is required "
                    f"by {type(self).__name__}."
                )
            return to_polars(X)
        values = validate_data(
            self,
            X,
            reset=reset,
            dtype=None if self._from_frame else np.float64,
            ensure_all_finite="allow-nan",
            ensure_min_samples=fewest,
        )
        names = [f"x{index}" for index in range(values.shape[1])] if reset else self._names
        return pl.DataFrame(
            [pl.Series(name, values[:, i].tolist(), strict=False) for i, name in enumerate(names)]
            if values.dtype == object
            else [pl.Series(name, np.ascontiguousarray(values[:, i])) for i, name in enumerate(names)]
        )

    def _checked(self, X: Any) -> pl.DataFrame:
        check_is_fitted(self)
        return self._table(X)

    def _abnormality(self, table: pl.DataFrame) -> Float64[np.ndarray, " n"]:
        """Scores of N rows, higher = more abnormal, each with its own copy among the stored rows left out."""
        encoded = self.model_.codec.encode(self.model_.schema.conform(table))
        errors = _left_out_errors(self._program, encoded)
        return self.model_.calibration.combine(errors)[0]


class DiffusionDetector(OutlierMixin, _Detector):  # type: ignore[misc]
    """A diffusion model of a table as an outlier detector of scikit-learn.

    X is an array of numbers (all columns continuous, NaN is a gap) or a pandas, polars or Arrow table (kinds of columns
    inferred as in `tabdiff.fit`: text, dates, missing values, ids left out). Fitting takes at least two rows; below ten
    they are repeated, with a `TabdiffWarning`.

    A row that equals one of the stored training rows is scored with that row left out. So training and new rows are on
    one scale, and for training rows `score_samples` differs from ``-model_.score(X).score``, which counts the copy.

    Args:
        contamination: share of the training rows that `predict` calls outliers, in (0, 0.5].
        contaminated: the training table holds anomalies; score by many small subsets of its better half.
        steps: gradient steps at most; None is a fixed amount of computation.
        kernel_rows: training rows kept for the kernel denoiser; 0 keeps none.
        random_state: seed of the fit. None takes that of `config`, so that fits repeat.
        config: all other options, a `FitConfig` or a mapping such as ``{"train": {"time_limit": 60}}``.

    Attributes:
        model_: the `tabdiff.Model`, which also explains rows, draws new ones and fills gaps.
        offset_: the `contamination` quantile of `score_samples` of the training rows. With ``contamination=0.1`` about
            one in ten new rows of the same kind is flagged too, or slightly more, as the network has not seen them.
        n_features_in_: columns of X in `fit`.
        feature_names_in_: (n_features_in_,) their names, if X was a table with text as column names.
    """

    offset_: float

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the model and the threshold on X of shape (N, F); y is ignored.

        Raises:
            ValueError: a parameter or `config` is out of range; X is sparse, complex, infinite, not 2-D or has one row.
            ConfigError: `config` contradicts a parameter.
            SchemaError: the table cannot be modelled. Lists every problem.
            TrainingError, RuntimeUnavailable: as in `tabdiff.fit`.
        """
        self.offset_ = float(np.percentile(-self._fit(X), 100.0 * self.contamination))
        return self

    def score_samples(self, X: Any) -> Float64[np.ndarray, " n"]:
        """Normality of N rows, higher = more normal: the negative of tabdiff's score. 0 is a typical normal row.

        Raises:
            NotFittedError: `fit` comes first.
            ValueError: other features than in `fit`, or what `fit` refuses.
            SchemaError: a column holds what the schema does not allow.
        """
        return -self._abnormality(self._checked(X))

    def decision_function(self, X: Any) -> Float64[np.ndarray, " n"]:
        """``score_samples(X) - offset_``: negative for outliers. Raises what `score_samples` does."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Int[np.ndarray, " n"]:
        """-1 for outliers, +1 for the rest. Raises what `score_samples` does."""
        return np.where(self.decision_function(X) < 0, -1, 1)


class PyODDetector(_Detector):
    """The same with the attributes and signs of PyOD (higher = more abnormal), which need not be installed.

    Parameters, accepted tables and errors are those of `DiffusionDetector`.

    Attributes:
        model_: the `tabdiff.Model`.
        decision_scores_: (N,) scores of the training rows, each with its own copy left out; higher = more abnormal.
        threshold_: the ``1 - contamination`` quantile of `decision_scores_`.
        labels_: (N,) 1 for training rows above the threshold, 0 for the rest.
    """

    decision_scores_: Float64[np.ndarray, " n"]
    threshold_: float
    labels_: Int[np.ndarray, " n"]

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the model and the threshold on X of shape (N, F); y is ignored. Raises what `DiffusionDetector.fit` does."""
        self.decision_scores_ = self._fit(X)
        self.threshold_ = float(np.percentile(self.decision_scores_, 100.0 * (1 - self.contamination)))
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> Int[np.ndarray, " n"]:
        """Fit and return `labels_`."""
        return self.fit(X).labels_

    def decision_function(self, X: Any) -> Float64[np.ndarray, " n"]:
        """Scores of N rows, higher = more abnormal. Raises what `DiffusionDetector.score_samples` does."""
        return self._abnormality(self._checked(X))

    def predict(self, X: Any) -> Int[np.ndarray, " n"]:
        """1 for rows that score above `threshold_`, 0 for the rest."""
        return (self.decision_function(X) > self.threshold_).astype(int)

    def predict_proba(self, X: Any) -> Float64[np.ndarray, "n 2"]:
        """Columns [p, 1 - p] with p the conformal p-value: the share of held-out rows that score at least as high.

        So column 1 is how far up the scores of held-out rows a row lies, in [0, 1), not the probability that it is an
        anomaly: among normal rows it is spread evenly. It does not depend on `contamination`. With ``contaminated=True``
        held-out rows may be anomalies too, and it is their rank among all rows.
        """
        p_value = self.model_.calibration.p_value(self.decision_function(X))
        return np.stack([p_value, 1 - p_value], axis=1)


def _is_frame(X: Any) -> bool:
    return isinstance(X, pl.LazyFrame) or hasattr(X, "columns") or hasattr(X, "column_names")


@torch.inference_mode()
def _left_out_errors(score: Score, encoded: Encoded) -> Float32[np.ndarray, "n v c"]:
    """Errors of N rows in every view, each without the stored row that it equals, if it does."""
    count, device = len(encoded.x), score.surprise.device
    # Matrix products of a few rows round differently: with full blocks a score depends on its row alone, to the last bit.
    filled = np.minimum(np.arange(-(-count // _BLOCK_ROWS) * _BLOCK_ROWS), count - 1)
    chunks = []
    for start in range(0, count, CHUNK_ROWS):
        rows = filled[start : start + CHUNK_ROWS]
        x = torch.from_numpy(encoded.x[rows, None, :]).to(device)
        present = torch.from_numpy(encoded.present[rows, None, :]).to(device)
        chunks.append(score(x, present, _own_rows(score, x))[:, 0].cpu().numpy())
    return np.concatenate(chunks)[:count]


def _own_rows(score: Score, x: Float[torch.Tensor, "b t w"]) -> torch.Tensor | None:
    """(B,) the stored row that each row equals up to rounding, -1 for none; None if no rows are stored."""
    if "raw" not in score.kernels:
        return None
    kernel = cast(KernelView, score.kernels["raw"])
    moved = x[..., score.denoiser.process.layout.view("raw")].flatten(1) @ kernel.transform
    nearest = log_kernel(moved, kernel.rows).argmax(-1)
    squared = (moved - kernel.rows[nearest]).square().sum(-1)
    rounding = 1e-6 * kernel.levels[0] ** 2 + 1e-10 * moved.square().sum(-1)
    return torch.where(squared <= rounding, nearest, -1)
