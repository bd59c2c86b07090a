"""Tell a model which of the rows that it flagged were false alarms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tabdiff.commands.common import DataArgument, JsonOption, ModelArgument, QueryOption, files, load_model, read_table
from tabdiff.errors import ConfigError
from tabdiff.terminal import Outcome, count


def feedback(
    model_dir: ModelArgument,
    data: DataArgument,
    verdict: Annotated[
        str,
        typer.Option("--verdict", metavar="COLUMN", help="Column with 'confirmed', 'false alarm' or nothing."),
    ] = "verdict",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="MODEL_DIR", help="Model folder to write; if not given, the model itself."),
    ] = None,
    query: QueryOption = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Tell a model which rows were false alarms or confirmed anomalies; rows like them score lower or higher."""
    target = out or model_dir
    files().check_model_folder(target)
    model, frame = load_model(model_dir), read_table(data, query)
    if verdict not in frame.columns:
        raise ConfigError(
            f"DATA has a column of verdicts; {verdict!r} is not among {frame.columns}. Name it with --verdict."
        )
    told = model.with_feedback(frame.drop(verdict), frame[verdict].to_list())
    told.save(target)
    confirmed = int(told.feedback.confirmed.sum())
    false_alarms = len(told.feedback) - confirmed
    values = {"model": str(target), "confirmed": confirmed, "false_alarms": false_alarms}
    shown = [
        f"The model knows {count(false_alarms, 'false alarm')} and {confirmed} confirmed.",
        f"Model: {target}",
    ]
    return Outcome(values, shown)
