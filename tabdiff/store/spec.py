"""What is registered of a source: where its rows are, and how new ones are told from old ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SourceSpec(BaseModel):
    """A registered source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    location: Annotated[str, Field(min_length=1, max_length=2000)] = Field(
        description="absolute path of a file, folder or glob, or env:NAME, file:PATH or a URL without password of a database"
    )
    table: str | None = Field(None, description="table or view of the database, optionally schema.name")
    new: Literal["column", "file", "partition"] = Field(
        "file",
        description="what makes rows new: a larger value in `column`, a file not seen before, or a subfolder not seen before",
    )
    column: str | None = Field(None, description="column that only grows: integer, date or datetime")
    lateness: float = Field(
        0.0,
        ge=0,
        description="how far below the largest value rows may still arrive: seconds for times, days for dates",
    )
    late_within: float | None = Field(
        None,
        gt=0,
        description="rows that come later still are scored if they lie at most so far below the watermark; needs keys",
    )
    settle: float = Field(
        2.0,
        ge=0,
        le=3600,
        description="seconds for which a file without an end mark (CSV, Arrow stream) must not change",
    )
    marker: str | None = Field(
        None,
        pattern=r"[A-Za-z0-9_.-]{1,64}",
        description="file whose presence says that a subfolder is complete, such as _SUCCESS; otherwise the last one waits for the next",
    )
    keys: tuple[str, ...] = Field((), description="columns that say which row is which, copied beside the scores")

    @model_validator(mode="after")
    def _agree(self) -> SourceSpec:
        if self.is_database and (not self.table or self.new != "column"):
            raise ValueError("a database needs table, and column to tell new rows from old ones (new=column)")
        if not self.is_database and self.table:
            raise ValueError("table is for databases; location is a path")
        if (self.new == "column") != (self.column is not None):
            raise ValueError("column is given exactly with new=column")
        if self.late_within is not None and not (self.new == "column" and self.keys):
            raise ValueError("late_within goes with new=column, and needs keys, by which scored rows are known")
        if self.marker and self.new != "partition":
            raise ValueError("marker goes with new=partition")
        return self

    @property
    def is_database(self) -> bool:
        """Rows come from a database; otherwise from files."""
        return "://" in self.location or self.location.startswith(("env:", "file:"))

    @property
    def root(self) -> Path:
        """The path of files."""
        return Path(self.location)
