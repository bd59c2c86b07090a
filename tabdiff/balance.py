"""How many rows of which kind: shares of the values of a column, or of the combinations of several."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from tabdiff.codes import CategoryCode
from tabdiff.conditions import read_cells
from tabdiff.errors import ConfigError
from tabdiff.generation import Generator, Request, SampleReport
from tabdiff.restrictions import split_given
from tabdiff.schema import Kind

Part = tuple[Mapping[str, Any], int]
_LOOKED_AT = 2000  # rows drawn to see which combinations of several columns occur


def balanced(generator: Generator, balance: Any, rows: int, given: Mapping[str, Any], seed: int) -> list[Part]:
    """What is given and how many rows, for each part of a balanced sample; the counts add up to `rows`.

    Raises:
        ConfigError: a column is not a modelled category, is given as well, or shares are not positive numbers.
    """
    if isinstance(balance, Mapping):
        if len(balance) != 1:
            raise ConfigError(
                f"balance has one key, a column or a tuple of columns; got {len(balance)}. For a joint write "
                "{('class', 'sex'): {('a', 'f'): 0.5, ('a', 'm'): 0.5}}."
            )
        ((key, shares),) = balance.items()
        names = (key,) if isinstance(key, str) else tuple(key)
    else:
        names, shares = (balance,) if isinstance(balance, str) else tuple(balance), None
    for name in names:
        if name not in generator.codec.columns:
            raise ConfigError(
                f"balance is about modelled columns; got {name!r}. Modelled columns: {', '.join(generator.codec.columns)}."
            )
        if name in given:
            raise ConfigError(f"a column is given or balanced; got {name!r} in both. Leave one of them out.")
    shares = _even(generator, names, seed) if shares is None else _checked(names, shares)
    total = sum(shares.values())
    exact = {values: rows * share / total for values, share in shares.items()}
    counts = {values: math.floor(share) for values, share in exact.items()}
    left = sorted(exact, key=lambda values: counts[values] - exact[values])  # largest remainders first
    for values in left[: rows - sum(counts.values())]:
        counts[values] += 1
    return [({**given, **dict(zip(names, values, strict=True))}, count) for values, count in counts.items() if count]


def _checked(names: tuple[str, ...], shares: Any) -> dict[tuple[Any, ...], float]:
    """Shares by tuples of values."""
    if not isinstance(shares, Mapping) or not shares:
        raise ConfigError(
            f"balance gives a share to each value of {names}; got {shares!r}. Example: {{'a': 0.5, 'b': 0.5}}"
        )
    found = {}
    for values, share in shares.items():
        key = (values,) if len(names) == 1 else values
        if not isinstance(key, tuple) or len(key) != len(names):
            raise ConfigError(f"balance of {names} takes a value of each, as a tuple; got {values!r}.")
        if not isinstance(share, int | float) or not math.isfinite(share) or share < 0:
            raise ConfigError(f"a share is a number of at least 0; got {share!r} for {values!r}.")
        found[key] = float(share)
    if not sum(found.values()) > 0:
        raise ConfigError("balance needs a share above 0; got none.")
    return found


def _even(generator: Generator, names: tuple[str, ...], seed: int) -> dict[tuple[Any, ...], float]:
    """Equal shares of the categories of a column, or of the combinations of several that the model draws."""
    for name in names:
        kind = generator.schema[name].kind
        if kind not in (Kind.CATEGORICAL, Kind.BOOLEAN):
            raise ConfigError(
                f"balance makes categories equally frequent; column {name!r} is {kind}. Give shares of values or ranges: "
                f"{{{name!r}: {{(low, high): 0.5, ...}}}}."
            )
    if len(names) == 1:
        code = generator.codec.codes[names[0]]
        assert isinstance(code, CategoryCode)  # categories and booleans have one
        suppressed = generator.rare.get(names[0], ()) if generator.config.rare != "keep" else ()
        return {(value,): 1.0 for value in code.categories if value not in suppressed}
    looked = generator.generate(Request.nothing(_LOOKED_AT), seed)[0].select(names)
    seen = looked.drop_nulls().unique().sort(names)
    return dict.fromkeys(seen.rows(), 1.0)


def generate_parts(
    generator: Generator,
    parts: Sequence[Part],
    rules: tuple[Any, ...],
    where: Callable[[pl.DataFrame], Any] | None,
    seed: int,
) -> tuple[pl.DataFrame, SampleReport]:
    """Draw each part and mix the rows, the same way for the same seed.

    Raises:
        ConfigError, SchemaError, SynthesisError: as for `Model.sample`.
    """
    frames, reports = [], []
    for index, (given, rows) in enumerate(parts):
        exact, restrictions = split_given(given, generator.schema)
        request = Request.nothing(rows, restrictions=tuple(restrictions), rules=rules, judge=where)
        if exact:
            partial = pl.DataFrame({name: [value] for name, value in exact.items()}, strict=False)
            cells = read_cells(generator.schema, generator.codec, partial)
            open_cells = np.zeros((1, cells.width), bool)
            request = Request(rows, cells, open_cells, True, tuple(restrictions), rules, where)
        part_seed = (
            seed if not index else int(np.random.SeedSequence(seed, spawn_key=(2**22, index)).generate_state(1)[0])
        )
        frame, report = generator.generate(request, part_seed)
        frames.append(frame)
        reports.append(report)
    if len(frames) == 1:
        return frames[0], reports[0]
    whole = pl.concat(frames)
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2**23,))).permutation(whole.height)
    broken: dict[str, int] = {}
    for name, count in itertools.chain.from_iterable(report.broken.items() for report in reports):
        broken[name] = broken.get(name, 0) + count
    copies = [report.copies for report in reports if report.copies is not None]
    drawn, repaired = (sum(getattr(report, name) for report in reports) for name in ("drawn", "repaired"))
    return whole[order], SampleReport(whole.height, drawn, repaired, broken, sum(copies) if copies else None)
