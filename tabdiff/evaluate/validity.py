"""Could every synthetic cell have come from the real table? A list of rules, passed or failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tabdiff.errors import TABLE
from tabdiff.evaluate.frames import Report, kind_of, numbers, positions, require_rows, texts

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Check(Report):
    """One rule about one column (or about the table), and what was found.

    Attributes:
        tested: False if nothing could be said; such a check has not failed, but does not count as passed either.
    """

    column: str
    rule: str
    passed: bool
    found: str
    tested: bool = True


def counted(checks: Sequence[Check]) -> str:
    """How many checks passed, in words."""
    made = [check for check in checks if check.tested]
    passed = sum(check.passed for check in made)
    untested = f", {len(checks) - len(made)} could not be made" if len(made) < len(checks) else ""
    return f"{passed} of {len(made)} checks passed{untested}"


@dataclass(frozen=True)
class Validity(Report):
    """All checks, failed ones first, and the share of rows that break one, percent, lower is better."""

    checks: tuple[Check, ...]
    invalid_rows: float

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)


def validity(
    real: pl.DataFrame,
    synthetic: pl.DataFrame,
    constraints: Sequence[tuple[str, Mask]] = (),
    more: Sequence[Check] = (),
) -> Validity:
    """Check columns, dtypes, ranges, levels and missing values of a synthetic table against the real one.

    A row is invalid if it has a number outside the real range, a level that the real column lacks, or a
    missing value where the real column has none, or if it breaks one of the `constraints`: what each says, and the
    synthetic rows (n,) that break it. The order of the columns does not matter. Checks `more` are listed too.
    """
    require_rows(real, "real")
    lacking = [name for name in real.columns if name not in synthetic.columns]
    surplus = [name for name in synthetic.columns if name not in real.columns]
    found = f"lacks {lacking}, adds {surplus}" if lacking or surplus else f"{synthetic.width} columns"
    checks = [
        Check(TABLE, "same columns", not lacking and not surplus, found),
        Check(TABLE, "has rows", synthetic.height > 0, f"{synthetic.height} rows"),
    ]
    invalid = np.zeros(synthetic.height, dtype=bool)
    for name in real.columns:
        if name in synthetic.columns:
            found_here, bad = _check_column(real[name], synthetic[name])
            checks += found_here
            invalid |= bad
    for rule, bad in constraints:
        count = int(bad.sum())
        checks.append(Check(TABLE, rule, not count, f"{count} of {synthetic.height} rows break it"))
        invalid |= bad
    checks += more
    checks.sort(key=lambda check: check.passed)
    return Validity(tuple(checks), float(100 * invalid.mean()) if len(invalid) else 0.0)


def _check_column(real: pl.Series, synthetic: pl.Series) -> tuple[list[Check], Mask]:
    """The checks of one column and the rows (n,) that break one."""
    name, dtype = real.name, synthetic.dtype
    same = real.dtype == dtype
    checks = [Check(name, "same dtype", same, str(dtype) if same else f"{dtype} instead of {real.dtype}")]
    if pl.Null not in (real.dtype, dtype) and kind_of(real.dtype) != kind_of(dtype):
        return checks, np.ones(len(synthetic), dtype=bool)
    missing = _missing(synthetic)
    unexpected = missing & (not _missing(real).any())
    count = int(unexpected.sum())
    checks.append(Check(name, "missing only where the real column is", count == 0, f"{count} unexpected"))
    if kind_of(real.dtype) == "number":
        check, bad = _check_range(real, synthetic)
    else:
        check, bad = _check_levels(real, synthetic)
    return [*checks, check], bad | unexpected


def _missing(column: pl.Series) -> Mask:
    """Whether each cell (n,) is missing."""
    return np.isnan(numbers(column)) if kind_of(column.dtype) == "number" else column.is_null().to_numpy()


def _check_range(real: pl.Series, synthetic: pl.Series) -> tuple[Check, Mask]:
    """Numbers lie between the least and the greatest real one."""
    known, values = numbers(real), numbers(synthetic)
    known = known[~np.isnan(known)]
    low, high = (known.min(), known.max()) if known.size else (np.inf, -np.inf)
    bad = (values < low) | (values > high)
    found = f"{int(bad.sum())} outside {low:g} to {high:g}" if known.size else f"{int(bad.sum())} values"
    if real.dtype.is_temporal() and known.size:
        found = f"{int(bad.sum())} outside {real.min()!s} to {real.max()!s}"
    return Check(real.name, "within the real range", not bad.any(), found), bad


def _check_levels(real: pl.Series, synthetic: pl.Series) -> tuple[Check, Mask]:
    """Levels are ones that the real column has."""
    values = texts(synthetic)
    unknown = positions(texts(real).drop_nulls().unique().sort(), values) < 0
    bad: Mask = unknown & ~values.is_null().to_numpy()
    examples = values.filter(pl.Series(bad)).unique().sort().head(3).to_list()
    found = f"{int(bad.sum())} unknown" + (f", such as {examples}" if examples else "")
    return Check(real.name, "known levels", not bad.any(), found), bad
