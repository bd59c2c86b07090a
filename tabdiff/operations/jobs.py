"""What a job is told: options that are validated, stored beside its run, and hold no secrets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tabdiff.config import FitConfig, SampleConfig
from tabdiff.errors import ConfigError

_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class _Job(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, **options: Any) -> Any:
        """Build one; every problem in one message.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            lines = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'options'}: {cls._what_is_wrong(e)}" for e in error.errors()
            )
            raise ConfigError(f"these options cannot be used: {lines}.") from None

    @classmethod
    def _what_is_wrong(cls, error: Mapping[str, Any]) -> str:
        """The message of one problem; for an option that the job has not got, where it is or what there is."""
        if error["type"] != "extra_forbidden" or len(error["loc"]) != 1:
            return str(error["msg"])
        (name,) = error["loc"]
        for part, field in cls.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel) and name in inner.model_fields:
                return f"the job has no such option. Say {part}.{name}"
        return f"the job has no such option; it has {', '.join(cls.model_fields)}"

    def digest(self, *leave_out: str) -> str:
        """SHA-256 of the options."""
        values = self.model_dump(mode="json", exclude=set(leave_out))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class ScoreJob(_Job):
    """Score what is new in a source."""

    source: str = Field(pattern=_NAME, description="registered source")
    model: str = Field(pattern=_NAME, description="model whose champion scores")
    fdr: float | None = Field(None, gt=0, lt=1, description="flag so that about this share of flags is false")
    contamination: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="flag this share of the rows of each part; none where that is less than half a row, so for small parts use alerts_per_day",
    )
    alerts_per_day: float | None = Field(
        None,
        gt=0,
        description="flag above the score that normal rows (of a series: normal time of an entity) pass so often a day",
    )
    rows_per_day: float | None = Field(
        None, gt=0, description="rows that come in a day, for alerts_per_day; as in the fit if not given"
    )
    saved_rule: bool = Field(
        True, description="a rule saved for this source and model (tabdiff alerts rule) counts instead of those above"
    )
    feedback: bool = Field(
        True,
        description="what is like a false alarm scores lower; of a table, rows like confirmed anomalies higher",
    )
    rows_per_part: int = Field(100_000, ge=1, le=10_000_000, description="rows scored, flagged and committed together")
    max_parts: int = Field(1000, ge=1, description="parts of one run; the rest is left to the next")
    max_alerts: int = Field(1000, ge=0, le=100_000, description="alerts kept of one part, highest scores first")

    @model_validator(mode="after")
    def _one_rule(self) -> ScoreJob:
        if len(set(self.rule) - {"rows_per_day"}) > 1:
            raise ValueError(f"one rule sets the flags: leave one of {', '.join(self.rule)} out")
        if "rows_per_day" in self.rule and "alerts_per_day" not in self.rule:
            raise ValueError("rows_per_day goes with alerts_per_day")
        return self

    @property
    def rule(self) -> dict[str, float]:
        """The rule that is asked for, as options of `Model.score`; empty if none is."""
        names = ("fdr", "contamination", "alerts_per_day", "rows_per_day")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class TrainJob(_Job):
    """Fit a challenger and compare it with the champion."""

    source: str = Field(pattern=_NAME, description="registered source")
    model: str = Field(pattern=_NAME, description="name of the model")
    fit: FitConfig = Field(FitConfig(), description="options of the fit")
    columns: dict[str, dict[str, str]] = Field(
        {}, description="kinds and roles of columns, as in `tabdiff fit --columns`"
    )
    max_rows: int = Field(200_000, ge=20, description="newest rows of the source that are used")
    evaluation_share: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="rows that no version trains on, chosen by a hash of the row (of a series: the last stretch of time); some of them judge",
    )
    leave_out_confirmed: bool = Field(
        True, description="leave out rows, and time of a series, that people confirmed as anomalies"
    )
    warm_start: bool = Field(
        True,
        description="begin with the champion's weights if columns and network are the same; half of the steps are planned then; not of a series",
    )
    compiled: bool = Field(
        True,
        description="also compile for ONNX Runtime, which scores faster and without torch; takes about ten seconds",
    )
    promote: Literal["auto", "ask", "never"] = Field(
        "auto", description="auto: by the rule of docs/workspace.md; ask: leave an event; never: only train and compare"
    )
    tolerance: float = Field(
        0.02, ge=0, le=1, description="by how much the challenger may be worse and still be promoted"
    )


class Between(BaseModel):
    """A range of numbers or dates, ends included; null for no end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float | str | None = Field(None, description="smallest value; a date as text")
    high: float | str | None = Field(None, description="largest value")


Cell = str | int | float | bool


class SynthesizeJob(_Job):
    """Draw a synthetic table and report how good it is."""

    model: str = Field(pattern=_NAME, description="model that draws")
    version: int | None = Field(None, ge=1, description="which version; the champion if not given")
    rows: int = Field(1000, ge=1, le=10_000_000, description="rows to draw")
    given: dict[str, Cell | Between | list[Cell] | None] = Field(
        {}, description="what every row has: a value (null: missing), {low, high}, or a list to choose from"
    )
    balance: list[str] | dict[str, dict[str, float]] = Field(
        [], description="columns whose values shall be equally frequent; or a column with the share of each value"
    )
    constraints: list[dict[str, Any]] | None = Field(
        None, description="rules to obey (docs/synthesis.md) in place of those of the model"
    )
    seed: int = Field(0, ge=0, description="the same seed gives the same rows")
    sample: SampleConfig = Field(SampleConfig(), description="sampler and steps")  # type: ignore[call-arg]

    @property
    def conditions(self) -> dict[str, Any]:
        """What is given as `Model.sample` takes it."""
        return {
            name: (value.low, value.high) if isinstance(value, Between) else value for name, value in self.given.items()
        }


class MonitorJob(_Job):
    """Compare new rows with those that the champion was fitted on."""

    source: str = Field(pattern=_NAME, description="registered source")
    model: str = Field(pattern=_NAME, description="model whose champion judges")
    rows: int = Field(
        20_000,
        ge=50,
        le=1_000_000,
        description="newest rows looked at; scores only of those that no version was fitted on",
    )
    every: float | None = Field(None, gt=0, description="seconds within which new rows are expected; later is stale")
    psi: float = Field(0.2, gt=0, description="population stability index above which a column has drifted")
    significance: float = Field(0.001, gt=0, lt=0.5, description="p-value below which a difference counts")
