"""Every option, in one place: the command line, the flows and the bundle all use these models.

Options come from a TOML file and ``key=value`` pairs and are validated here. Unknown keys are errors.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tabdiff.errors import ConfigError


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Options):
    """How a table becomes numbers."""

    max_categories: int = Field(
        256, ge=2, le=4096, description="categories kept per column; rarer ones become `__other__`"
    )
    min_category_rows: int = Field(2, ge=1, description="a category seen in fewer training rows becomes `__other__`")
    max_levels: int = Field(
        20, ge=0, le=256, description="a number with at most this many distinct values is all atoms"
    )
    atom_share: float = Field(
        0.015,
        gt=0,
        le=1,
        description="a value held by at least this share of rows is an atom, and so is one that is far more frequent than those around it",
    )
    max_atoms: int = Field(128, ge=0, le=256, description="atoms kept per column beside its continuous part")
    bins: int = Field(
        64,
        ge=0,
        le=1024,
        description="quantile bins of a number; the network models bins as states. 0 keeps numbers continuous",
    )
    max_values: int = Field(
        256, ge=0, le=4096, description="a number with at most this many distinct values has one bin for each"
    )
    knots: int = Field(512, ge=8, le=65536, description="quantile knots of the rank-to-normal transform")
    holdout: float = Field(0.15, gt=0, lt=0.9, description="share of rows kept for early stop and calibration")
    trim: float = Field(0.0, ge=0, lt=0.5, description="share of the outermost rows dropped before fitting")
    pca_components: int | None = Field(None, ge=1, description="fit numbers in this many principal components instead")


class ProcessConfig(_Options):
    """The diffusion process."""

    kind: Literal["gaussian", "anisotropic"] = Field(
        "gaussian", description="isotropic noise, or noise with the training covariance"
    )
    sigma_min: float = Field(0.01, gt=0, description="lowest noise level, in standard deviations of a column")
    sigma_max: float | None = Field(
        None, gt=0, description="highest noise level; 6 sqrt(largest eigenvalue) if not given"
    )
    rho: float = Field(7.0, ge=1, description="how strongly levels crowd near sigma_min (Karras et al. 2022, eq. 5)")


class NetworkConfig(_Options):
    """The learned denoiser."""

    width: int | None = Field(
        None, ge=8, le=8192, description="hidden width; chosen from rows and columns if not given"
    )
    blocks: int | None = Field(
        None, ge=1, le=64, description="residual blocks; 3 for tables (2 if wide) and 4 for series if not given"
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout inside the blocks; 0.2 for tables and none for series if not given"
    )


class TrainConfig(_Options):
    """Optimisation."""

    steps: int | None = Field(
        None, ge=1, description="gradient steps at most; a fixed amount of computation if not given"
    )
    batch_size: int | None = Field(
        None, ge=1, description="rows per gradient step; 256, and fewer for small tables, if not given"
    )
    learning_rate: float = Field(4e-3, gt=0, le=1, description="largest learning rate; falls to 0 along a cosine")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    warmup: int = Field(100, ge=0, description="steps until the full learning rate")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights, which are the ones kept")
    condition_share: float = Field(0.3, ge=0, le=1, description="share of training rows shown with some cells given")
    in_order: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of training rows that show the first columns of the order in which rows are drawn, the others a random set; "
        "of tables of 5,000 rows and more",
    )
    evaluate_every: int = Field(100, ge=1, description="steps between held-out losses and checkpoints")
    patience: int = Field(8, ge=1, description="held-out losses without a better one before stopping")
    time_limit: float | None = Field(
        None, gt=0, description="seconds after which fitting stops with the best weights so far"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="cuda is an error where there is none")
    threads: int | None = Field(
        1,
        ge=1,
        description="CPU threads of a fit; small networks gain little from more, and lose much on a busy machine",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 uses autocast; worth it on a GPU only"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="the same seed, table and machine give the same model")


class ScoreConfig(_Options):
    """Anomaly scores."""

    kernel_rows: int = Field(
        4096, ge=0, le=100_000, description="training rows kept for the kernel denoiser; 0 keeps none"
    )
    contaminated: bool = Field(
        False,
        description="the training table contains anomalies; score by many small subsets of its better half",
    )
    turns: int | None = Field(
        None,
        ge=1,
        le=100,
        description="parts of the table held out in turn for calibration, each with everything fitted anew; 7 below 20,000 rows "
        "if not given, else 1",
    )
    fdr: float | None = Field(
        0.05, gt=0, lt=1, description="flag so that about this share of flags is false; the rule if no other is given"
    )
    contamination: float | None = Field(None, gt=0, lt=1, description="or flag this share of the rows of a table")
    alerts_per_day: float | None = Field(
        None, gt=0, description="or flag above the score that normal rows pass so often a day"
    )
    rows_per_day: float | None = Field(
        None, gt=0, description="rows scored a day, for alerts; from the times of the training table if not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _another_rule_replaces_the_default(cls, values: Any) -> Any:
        others = ("contamination", "alerts_per_day")
        if isinstance(values, dict) and "fdr" not in values and any(values.get(name) is not None for name in others):
            return {**values, "fdr": None}
        return values

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if len(self.rule) != 1:
            raise ValueError(
                f"exactly one of fdr, contamination and alerts_per_day sets the flags; got {self.rule or 'none'}"
            )
        if self.rows_per_day is not None and self.alerts_per_day is None:
            raise ValueError("rows_per_day goes with alerts_per_day")
        return self

    @property
    def rule(self) -> dict[str, float]:
        """The one rule that is set, and its value."""
        rules = {"fdr": self.fdr, "contamination": self.contamination, "alerts_per_day": self.alerts_per_day}
        return {name: value for name, value in rules.items() if value is not None}


class SeriesConfig(_Options):
    """Sensor series: rows in order of time, judged in windows. Without `time` a table is a table."""

    time: str | None = Field(None, description="column of times; with it the table is a series")
    entity: str | None = Field(
        None, description="column that tells machines apart; each is a recording of its own, one model for all"
    )
    sensor: str | None = Field(
        None, description="of a table with one reading a row: the column that names the sensor ..."
    )
    value: str | None = Field(None, description="... and the one with its value")
    interval: float | None = Field(
        None,
        gt=0,
        description="seconds between places (steps, if times are whole numbers); found in the times if not given",
    )
    time_zone: str | None = Field(None, description="of times without one, as in Europe/Berlin; UTC if not given")
    duplicates: Literal["refuse", "mean", "last"] = Field(
        "refuse", description="several values of a sensor at one time: an error, their mean, or the last"
    )
    window: int | None = Field(None, ge=4, le=512, description="places in a window; chosen from the data if not given")
    normalise: Literal["together", "entity"] = Field(
        "together", description="numbers in units of all recordings, or of each entity's own"
    )
    calendar: Literal["none", "auto"] | tuple[Literal["hour", "weekday", "month"], ...] = Field(
        "auto",
        description="what is normal depends on the clock: terms that held-out days and weeks show to help (auto), none, or named "
        'ones, as in ["hour", "weekday"]; counted steps have no calendar',
    )
    count: int = Field(1, ge=1, description="flags that open an event ...")
    within: int = Field(8, ge=1, description="... among so many places; as many quiet ones end it")
    cool_down: int = Field(0, ge=0, description="places after an event in which flags still belong to it")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.sensor is None) != (self.value is None):
            raise ValueError("sensor and value go together: the column with names and the one with values")
        lonely = [name for name, value in self if name != "time" and value != type(self).model_fields[name].default]
        if self.time is None and lonely:
            raise ValueError(f"{', '.join(lonely)} without time: name the column of times, too")
        if self.count > self.within:
            raise ValueError(
                f"count flags fall within so many places, count <= within; got {self.count} > {self.within}"
            )
        return self


class FitConfig(_Options):
    """Everything that `fit` needs beside the table."""

    data: DataConfig = DataConfig()  # type: ignore[call-arg]
    process: ProcessConfig = ProcessConfig()  # type: ignore[call-arg]
    network: NetworkConfig = NetworkConfig()  # type: ignore[call-arg]
    train: TrainConfig = TrainConfig()  # type: ignore[call-arg]
    score: ScoreConfig = ScoreConfig()  # type: ignore[call-arg]
    series: SeriesConfig = SeriesConfig()  # type: ignore[call-arg]


class SampleConfig(_Options):
    """How rows are drawn, and which of them may be published."""

    steps: int = Field(
        32,
        ge=1,
        le=10_000,
        description="noise levels visited; a table whose numbers are binned takes as many as its columns need, and no more than this",
    )
    sampler: Literal["dpmpp_2m", "heun", "ddpm"] = Field(
        "dpmpp_2m",
        description="DPM-Solver++(2M), Heun's method (twice the calls a step), or ancestral DDPM (needs many steps)",
    )
    rare: Literal["redraw", "null", "keep"] = Field(
        "redraw",
        description="categories of few training rows: never drawn, drawn as missing, or drawn (pooled ones as `__other__`)",
    )
    rare_rows: int = Field(5, ge=1, description="a category seen in fewer training rows is rare")
    missing: Literal["keep", "fill"] = Field(
        "keep", description="draw missing values as often as training shows them, or never"
    )
    copies: Literal["refuse", "redraw", "keep"] = Field(
        "refuse",
        description="copies of training rows: an error if there are more than chance explains and else no more than real rows have, none at all, or as they come",
    )


def parse_fit_config(path: Path | None = None, settings: Sequence[str] = ()) -> FitConfig:
    """Read a TOML file, apply ``section.key=value`` settings over it, and validate.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"cannot read the configuration {str(path)!r}: {error.strerror or error}. Check the path."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{str(path)!r} is not TOML: {error}. `tabdiff config` prints a valid file.") from error
    for setting in settings:
        _apply(values, setting)
    return validate_fit_config(values)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Nested values of ``section.key=value`` settings.

    Raises:
        ConfigError: one of them reads otherwise.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        _apply(values, setting)
    return values


def validate_fit_config(values: dict[str, Any]) -> FitConfig:
    """Build a FitConfig from plain values, with every problem in one ConfigError."""
    try:
        return FitConfig.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            name = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"unknown option {name!r}")
            else:
                lines.append(f"{name!r}: {problem['msg']}; got {problem['input']!r}")
        detail = "\n".join(f"  - {line}" for line in lines)
        raise ConfigError(f"the configuration is not valid:\n{detail}\n`tabdiff config` lists every option.") from None


def _apply(values: dict[str, Any], setting: str) -> None:
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"a setting reads section.key=value; got {setting!r}. Example: train.steps=2000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: train.device=cpu
    target = values
    *sections, key = name.strip().split(".")
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(
                f"{section!r} in {setting!r} is a value, not a section. `tabdiff config` lists every option."
            )
    target[key] = value


def to_toml(config: FitConfig) -> str:
    """Write a configuration as TOML, each option under its description. Options without a value are comments."""
    lines = []
    for section in FitConfig.model_fields:
        options: _Options = getattr(config, section)
        lines.append(f"[{section}]")
        for name, field in type(options).model_fields.items():
            if field.description:
                lines.append(f"# {field.description}")
            value = getattr(options, name)
            lines.append(f"# {name} =" if value is None else tomli_w.dumps({name: value}).rstrip())
        lines.append("")
    return "\n".join(lines)
