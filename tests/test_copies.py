"""What a model remembers of its rows: digests, what chance explains, and how many copies may stay."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tabdiff.originals import Originals, _tail, row_digests


def test_digests_are_equal_if_and_only_if_rows_are():
    frame = pl.DataFrame({"a": [0.0, -0.0, 1.0, None], "b": ["x", "x", "x", None], "c": [1, 1, 1, 1]})
    digests = row_digests(frame, frame.columns, "salt")
    assert digests[0] == digests[1]
    assert len(set(digests.tolist())) == 3
    assert not set(digests) & set(row_digests(frame, frame.columns, "other salt"))
    swapped = pl.DataFrame({"a": [1, 2], "b": [2, 1]})
    assert len(set(row_digests(swapped, ["a", "b"], "").tolist())) == 2
    assert row_digests(pl.DataFrame({"a": [1.5], "b": ["é"]}), ["a", "b"], "s").tolist() == [237529533424025845]


def test_copies_are_counted_against_what_chance_explains():
    rng = np.random.default_rng(0)
    wide = pl.DataFrame({"x": rng.normal(size=2000), "y": rng.normal(size=2000)})
    memory = Originals.from_json(Originals.of(wide[:1500], wide[1500:], wide.columns, "s").to_json())
    assert memory.copies(wide).tolist() == [True] * 1500 + [False] * 500
    assert memory.beyond_chance(20, 1000)
    assert not memory.beyond_chance(0, 1000)
    assert not memory.beyond_chance(1, 10)  # one coincidence proves nothing
    few = pl.DataFrame({"x": rng.integers(0, 60, 2000), "y": rng.integers(0, 60, 2000)})
    chance = Originals.of(few[:1500], few[1500:], few.columns, "s")
    fresh = pl.DataFrame({"x": rng.integers(0, 60, 2000), "y": rng.integers(0, 60, 2000)})
    assert chance.copies(fresh).sum() > 0
    assert not chance.beyond_chance(int(chance.copies(fresh).sum()), 2000)
    assert chance.beyond_chance(1500, 2000)


@pytest.mark.parametrize(("count", "mean"), [(0, 0.3), (1, 0.1), (3, 2.5), (40, 25.0), (150, 120.0), (90, 120.0)])
def test_the_tail_of_chance_is_that_of_poisson(count: int, mean: float) -> None:
    assert _tail(count, mean) == pytest.approx(stats.poisson.sf(count - 1, mean), abs=2e-3)


def test_of_copies_by_chance_nearly_all_stay_and_never_more_than_real_rows_have():
    """Rows of a table with few possible ones, drawn by its own law: an honest generator without memory."""
    rng = np.random.default_rng(3)
    tables = [pl.DataFrame({"x": rng.integers(0, 90, 6000), "y": rng.integers(0, 90, 6000)}) for _ in range(2)]
    memory = Originals.of(tables[0][:5700], tables[0][5700:], ["x", "y"], "s")
    copies = memory.copies(tables[1])
    excess = memory.in_excess(copies)
    assert not (excess & ~copies).any()
    assert copies.mean() > 0.2
    assert excess.sum() < 0.15 * copies.sum()
    stay = np.cumsum(copies & ~excess)
    assert (stay <= memory.paired / memory.rows * np.arange(1, 6001)).all()
    np.testing.assert_array_equal(memory.in_excess(copies[:700]), excess[:700])
    np.testing.assert_array_equal(memory.in_excess(copies[700:], 700, int(stay[699])), excess[700:])
    assert memory.in_excess(np.ones(200, bool)).sum() == 200 - int(200 * memory.paired / memory.rows)
