"""From what a person sets on the page to a job, and the first rows of it at once, drawn in this process."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

from dashboard.queries import MOST_ROWS
from tabdiff.constraints import parse_toml, to_json
from tabdiff.errors import ConfigError, StoreError
from tabdiff.loading import load
from tabdiff.model import Model
from tabdiff.operations.jobs import SynthesizeJob
from tabdiff.operations.judging import FEWEST, copy_check, meeting
from tabdiff.operations.synthesis import draw
from tabdiff.operations.training import REFERENCE

PREVIEW_ROWS = 300
_CATEGORIES = ("categorical", "boolean")
_one_at_a_time = threading.Lock()  # a preview takes a core while it lasts


def condition(
    field: dict[str, Any], *, low: Any = None, high: Any = None, chosen: Sequence[Any] = (), missing: bool = False
) -> Any:
    """What a job says of one column; None means missing.

    Args:
        field: the column, as in `records.passport`.
        low, high: ends of a range of numbers or dates, None for no end.
        chosen: categories.
        missing: the cell shall be missing.

    Raises:
        ConfigError: nothing is asked of the column, missing cells are mixed with values, or the range is empty.
    """
    name = field["name"]
    if missing:
        if chosen or low is not None or high is not None:
            raise ConfigError(f"column {name!r} is either missing or has a value; both were chosen. Take one out.")
        return None
    if field["kind"] in _CATEGORIES:
        if not chosen:
            raise ConfigError(f"column {name!r} is among the conditions; choose a value, or take the column out.")
        values = [
            value == "true" if field["kind"] == "boolean" and not field["categories"] else value for value in chosen
        ]
        return values[0] if len(values) == 1 else values
    if low is None and high is None:
        raise ConfigError(f"column {name!r} is among the conditions; give an end of its range, or take the column out.")
    if low is not None and high is not None and low > high:
        raise ConfigError(f"column {name!r}: nothing is between {low} and {high}. Give the smaller one first.")
    if isinstance(low, date) or isinstance(high, date):
        return {"low": low.isoformat() if low else None, "high": f"{high.isoformat()} 23:59:59" if high else None}
    return {"low": low, "high": high}


def moment(microseconds: float | None) -> date | None:
    """The day of an end of the training range."""
    return None if microseconds is None else datetime.fromtimestamp(microseconds / 1e6, UTC).date()


def rules(values: list[dict[str, Any]], kept: Sequence[int], own: str) -> list[dict[str, Any]] | None:
    """The rules of a job: those of the model that were kept and a person's own, as TOML; None if they are just the model's.

    Raises:
        ConfigError: the text is not TOML, or a rule is not valid.
    """
    more = to_json(parse_toml(own, name="your rules")) if own.strip() else []
    if not more and len(kept) == len(values):
        return None
    return [*(values[place] for place in sorted(kept)), *more]


def to_address(job: SynthesizeJob) -> str:
    """A job as short text for the address."""
    return json.dumps(
        job.model_dump(mode="json", exclude_defaults=True, exclude={"model", "version"}), ensure_ascii=False
    )


def from_address(text: str, model: str) -> SynthesizeJob:
    """The job that an address asks for; the default one if it cannot be read."""
    try:
        found = json.loads(text) if text else {}
        made: SynthesizeJob = SynthesizeJob.of(**{**found, "model": model})
    except (ValueError, TypeError, ConfigError):
        made = SynthesizeJob.of(model=model)
    return made


@functools.lru_cache(maxsize=2)
def _load(folder: str, stamp: int) -> Model:
    return load(folder)


def model_at(folder: str) -> Model:
    """The model of a folder, held in memory; loaded anew if the folder was written again (compiled, for instance).

    Raises:
        StoreError: the folder is gone.
        BundleError: it is damaged.
        RuntimeUnavailable: neither ONNX Runtime nor torch can run it here.
    """
    try:
        stamp = (Path(folder) / "manifest.json").stat().st_mtime_ns
    except OSError:
        raise StoreError(
            f"the model folder {folder} is gone; clean-up may have taken it. Choose another version."
        ) from None
    with _one_at_a_time:
        return _load(folder, stamp)


def preview(folder: str, job: SynthesizeJob) -> tuple[pl.DataFrame, dict[str, Any], str]:
    """The first rows of a job at once: rows, the copy check on them, and the engine that drew them.

    Raises:
        ConfigError, SchemaError, SynthesisError: as for `Model.sample`.
        StoreError, BundleError, RuntimeUnavailable: as for `model_at`.
    """
    model = model_at(folder)
    few = job.model_copy(update={"rows": min(job.rows, PREVIEW_ROWS)})
    return _preview(folder, few.model_dump_json(), model.bundle.manifest.get("created"))


@st.cache_data(ttl=900, max_entries=40, show_spinner=False)
def _preview(folder: str, job: str, created: str | None) -> tuple[pl.DataFrame, dict[str, Any], str]:
    model = model_at(folder)
    with _one_at_a_time:
        drawn = draw(model, SynthesizeJob.model_validate_json(job))
    return drawn, copy_check(model, drawn), model.runtime.provider


@st.cache_data(ttl=900, max_entries=40, show_spinner=False)
def real_values(folder: str, job: str, column: str) -> list[Any]:
    """Values of a column in rows that no version was fitted on and that meet a job's conditions, at most 1,000; none if they are few.

    Args:
        folder: of the model.
        job: the job as JSON.
        column: a modelled column.
    """
    path = Path(folder).parent / REFERENCE
    if not path.is_file():
        return []
    alike = meeting(model_at(folder).schema, pl.read_parquet(path), SynthesizeJob.model_validate_json(job).conditions)
    values = alike[column] if alike.height >= FEWEST else alike[column].clear()
    return (values if len(values) <= MOST_ROWS else values.sample(MOST_ROWS, seed=0)).to_list()
