"""Which scored rows to call anomalies: three rules, one of them at a time.

- *false-discovery rate*: Benjamini & Hochberg (1995) on the p-values of the rows that are scored together.
- *contamination*: a share of the rows that are scored together, highest scores first.
- *alerts per day*: a threshold on the score, the same for every row whatever it is scored with. It lies where normal rows
  would pass it so often a day: at a quantile of the scores of calibration rows, or beyond the last ten of them on a tail that
  is fitted above their 90 % quantile (peaks over threshold: Pickands 1975).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from tabdiff.config import ScoreConfig
from tabdiff.errors import ConfigError, warn

_COUNTED = 10  # calibration rows above a threshold that is taken from them alone
_FARTHEST = 3  # how many times beyond 1 / rows the fitted tail is believed
_TAIL = 0.1  # share of the calibration rows that the tail is fitted to
_FEWEST = 100  # calibration rows for a fitted tail: ten exceedances


@dataclass(frozen=True)
class Rule:
    """A way to choose, with its value.

    Attributes:
        name: "fdr", "contamination" or "alerts_per_day".
        value: a share inside (0, 1), or alerts a day.
        rows_per_day: rows scored a day; for alerts only.
    """

    name: str
    value: float
    rows_per_day: float | None = None

    @classmethod
    def choose(
        cls,
        stored: ScoreConfig,
        *,
        fdr: float | None = None,
        contamination: float | None = None,
        alerts_per_day: float | None = None,
        rows_per_day: float | None = None,
        measured: float | None = None,
    ) -> Rule:
        """The rule that is asked for, else the stored one.

        Args:
            stored: options of the fit.
            rows_per_day: for alerts; if None the stored number, else the `measured` one.
            measured: rows a day in the training table, None if it has no times.

        Raises:
            ConfigError: more than one rule is given, a value is out of range, or rows a day are asked for and unknown.
        """
        asked = {"fdr": fdr, "contamination": contamination, "alerts_per_day": alerts_per_day}
        chosen = {name: value for name, value in asked.items() if value is not None}
        if len(chosen) > 1:
            raise ConfigError(f"one rule sets the flags; got {chosen}. Leave one of them in.")
        if rows_per_day is not None and (chosen or stored.rule).keys() != {"alerts_per_day"}:
            raise ConfigError(f"rows_per_day goes with alerts_per_day; got rows_per_day={rows_per_day} without it.")
        ((name, value),) = (chosen or stored.rule).items()
        if name != "alerts_per_day":
            if not 0 < value < 1:
                raise ConfigError(f"{name} is a share inside (0, 1); got {value}. Example: {name}=0.05")
            return cls(name, value)
        rows = rows_per_day or stored.rows_per_day or measured
        if rows is None:
            raise ConfigError(
                f"alerts_per_day={value:g} needs the number of rows scored a day, and the training table has no column of "
                "times to take it from. Give rows_per_day, too."
            )
        if not 0 < value < rows:
            raise ConfigError(f"alerts_per_day is above 0 and below rows_per_day; got {value:g} of {rows:g} rows.")
        return cls(name, value, rows)

    @property
    def label(self) -> str:
        """For instance "false-discovery rate 0.05"."""
        if self.name == "alerts_per_day":
            return f"{self.value:g} alerts a day among {self.rows_per_day:,.6g} normal rows"
        return f"{'false-discovery rate' if self.name == 'fdr' else self.name} {self.value:g}"

    def flag(
        self,
        scores: Float64[np.ndarray, " n"],
        p_values: Float64[np.ndarray, " n"],
        normal: Float64[np.ndarray, " m"],
    ) -> Bool[np.ndarray, " n"]:
        """Which rows to call anomalies.

        Args:
            scores, p_values: of the rows.
            normal: scores of the calibration rows, ascending.

        Raises:
            ConfigError: fewer alerts a day are asked for than `normal` can tell of.
        """
        if self.name == "fdr":
            return benjamini_hochberg(p_values, self.value)
        if self.name == "contamination":
            flagged = np.zeros(len(scores), dtype=bool)
            flagged[np.argsort(-scores, kind="stable")[: round(self.value * len(scores))]] = True
            return flagged
        assert self.rows_per_day is not None
        return np.asarray(scores > self.threshold(normal))

    def threshold(self, normal: Float64[np.ndarray, " m"]) -> float:
        """The score above which a row is an alert; see `flag`."""
        assert self.rows_per_day is not None
        share, count = self.value / self.rows_per_day, len(normal)
        if share < 1 / (_FARTHEST * count) or (share * count < 1 and count < _FEWEST):
            least = self.rows_per_day / (count * (_FARTHEST if count >= _FEWEST else 1))
            raise ConfigError(
                f"{count} calibration rows cannot tell a score that one normal row in {1 / share:,.0f} passes. "
                f"Ask for {least:.2g} alerts a day or more, or fit on more rows."
            )
        if share * count < 1:
            warn(
                f"{self.label}: a normal row in {1 / share:,.0f}, beyond the {count:,} calibration rows; the threshold is "
                "extrapolated from their highest tenth and may be off by a factor of three or so in alerts"
            )
        if share * (count + 1) >= _COUNTED or count < _FEWEST:
            return float(normal[count - int(share * (count + 1) + 1e-9)]) if share * (count + 1) >= 1 else np.inf
        return tail_quantile(normal, share)


def benjamini_hochberg(p_values: Float64[np.ndarray, " n"], fdr: float) -> Bool[np.ndarray, " n"]:
    """Among the rows so flagged at most the share `fdr` is expected to be normal."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    passes = np.flatnonzero(p_values[order] <= fdr * np.arange(1, count + 1) / count)
    limit = p_values[order[passes[-1]]] if len(passes) else -1.0
    return np.asarray(p_values <= limit)


def tail_quantile(normal: Float64[np.ndarray, " m"], share: float) -> float:
    """The score that a `share` of normal rows passes, on a generalised Pareto tail above their 90 % quantile.

    Scores are sums of squares, so the tail is fitted to their roots, which fall off faster and more regularly. Shape and scale by
    probability-weighted moments (Hosking & Wallis 1987); a tail that ends is not believed in, so the shape is at least that of
    an exponential.
    """
    roots = np.sqrt(np.maximum(normal, 0.0))
    high = float(np.quantile(roots, 1 - _TAIL))
    excess = roots[roots > high] - high
    if len(excess) < 2:
        return high**2
    mean = float(excess.mean())
    weighted = float((excess * np.arange(len(excess) - 1, -1, -1)).mean() / (len(excess) - 1))
    shape = max(0.0, 2 - mean / (mean - 2 * weighted)) if mean > 2 * weighted else 0.0
    shape = min(shape, 0.5)
    scale = mean * (1 - shape)
    ratio = len(excess) / len(roots) / share
    beyond = scale * np.log(ratio) if shape < 1e-9 else scale * (ratio**shape - 1) / shape
    return float((high + beyond) ** 2)
