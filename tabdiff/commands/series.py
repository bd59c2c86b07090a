"""Fit and score sensor series; `tabdiff fit` and `tabdiff score` come here when a column of times is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabdiff.commands.common import files
from tabdiff.errors import ConfigError
from tabdiff.terminal import Outcome, count, seconds, table

if TYPE_CHECKING:
    import polars as pl

    from tabdiff.series_model import SeriesModel
    from tabdiff.series_results import SeriesScores


def describe_fit(model: SeriesModel, out: Path) -> Outcome:
    """Interval, window, threshold, and what was found of planted faults, beside windowed PCA."""
    report = model.bundle.model["report"]
    planted, rule = report["planted"], model.rule()
    shown: list[Any] = [
        f"Fitted a model of {count(len(model.codec.columns), 'sensor')} in {seconds(report['seconds'])}: {model.describe()}.",
        f"{count(report['calibration_rows'], 'place')} of held-out time set the threshold: {describe_rule(model, rule)}.",
    ]
    if planted:
        kinds = table("fault planted into held-out time", "tabdiff", "windowed PCA")
        for kind, share in planted["kinds"].items():
            kinds.add_row(kind, f"{share['found']:.0%}", f"{share['control']:.0%}")
        kinds.add_row("all", f"{planted['found']:.0%}", f"{planted['control']:.0%}")
        named, among = planted["sensor_first"], planted["found_of_findable"]
        shown += [
            "Found, above everything in the same time without a fault:",
            kinds,
            *(
                [
                    f"{planted['findable']:.0%} stand out of the noise for who knows the fault; of these {among:.0%} are found."
                ]
                if among is not None
                else []
            ),
            *([f"The broken sensor is named first in {named:.0%} of those found."] if named is not None else []),
        ]
    else:
        shown.append("No faults were planted: no sensor moves, or held-out time is too short.")
    shown += [
        f"Model: {out} ({out / 'card.md'} describes it)",
        f"Next: tabdiff score {out} NEW_DATA --out scores.parquet",
    ]
    values = {"model": str(out), "columns": model.codec.columns, "window": model.window, "report": report}
    return Outcome(values, shown)


def describe_rule(model: SeriesModel, rule: Any) -> str:
    """The threshold in words."""
    if model.stretches_per_day is None:
        return "above all held-out time"
    return f"normal time may pass it {rule.value:,.3g} times a day"


def score(model: SeriesModel, frame: pl.DataFrame, out: Path, picture: Path | None, asked: dict[str, Any]) -> Outcome:
    """Score a series: places to OUT, events beside it, and a picture if asked for."""
    from tabdiff.tracks import prepared

    if asked["rows_per_day"] is not None:
        raise ConfigError("--rows-per-day is for tables; a series knows its own interval. Leave it out.")
    scores = model.score(frame, **{name: value for name, value in asked.items() if name != "rows_per_day"})
    events = out.with_name(f"{out.stem}.events{out.suffix}")
    nested = scores.events
    if out.suffix == ".csv":  # which holds no lists
        nested = nested.with_columns(
            nested["sensors"].list.join(", "), nested["shares"].cast(list_of_text()).list.join(", ")
        )
    files().write(scores.places.hstack(renamed(scores.expected, scores.places)), out)
    files().write(nested, events)
    if picture is not None:
        from tabdiff.series_picture import draw

        grid = model.plan.grid
        wide = model.schema.conform(prepared(frame, model.plan.config))
        entity = None
        shown = scores
        if grid.entity is not None:
            worst = scores.places.sort("score", descending=True, nulls_last=True)
            entity = worst[grid.entity][0]
            wide, shown = wide.filter(wide[grid.entity].cast(str) == entity), only(scores, grid.entity, entity)
        draw(
            wide.sort(grid.time),
            shown,
            grid.time,
            sensors_of(model, shown),
            picture,
            title="" if entity is None else f"{grid.entity} {entity}",
        )
    return describe_scores(model, scores, out, events, picture)


def describe_scores(model: SeriesModel, scores: SeriesScores, out: Path, events: Path, picture: Path | None) -> Outcome:
    """How many places are flagged, and the events that weigh most."""
    grid, found = model.plan.grid, scores.events
    listed = table(*([grid.entity] if grid.entity else []), "kind", "start", "end", "severity", "p-value", "sensors")
    for event in found.head(8).iter_rows(named=True):
        named = ", ".join(f"{name} {share:.0%}" for name, share in zip(event["sensors"], event["shares"], strict=True))
        p_value = "" if event["p_value"] is None else f"{event['p_value']:.3g}"
        listed.add_row(
            *([str(event[grid.entity])] if grid.entity else []),
            event["kind"],
            str(event["start"]),
            str(event["end"]) + (" ..." if event["open"] else ""),
            f"{event['severity']:.1f}",
            p_value,
            named,
        )
    flagged = int(scores.places["flagged"].sum())
    shown: list[Any] = [
        f"Scored {count(scores.places.height, 'place')}: {count(found.height, 'event')}, {count(flagged, 'place')} flagged "
        f"({describe_rule(model, model.rule())})."
    ]
    shown += [listed] if found.height else []
    shown += [f"Scores: {out}", f"Events: {events}", *([f"Picture: {picture}"] if picture else [])]
    values = {
        "out": str(out),
        "events": found.to_dicts(),
        "places": scores.places.height,
        "flagged": flagged,
        "provider": scores.provider,
    }
    return Outcome(values, shown)


def list_of_text() -> Any:
    """polars' type of lists of texts."""
    import polars as pl

    return pl.List(pl.String)


def renamed(expected: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    """Expected values under names that do not clash with those of the scores."""
    return expected.rename({name: f"expected_{name}" for name in expected.columns})


def only(scores: SeriesScores, column: str, entity: str) -> SeriesScores:
    """The part of one entity."""
    from dataclasses import replace

    keep = scores.places[column] == entity
    return replace(
        scores,
        places=scores.places.filter(keep),
        contributions=scores.contributions.filter(keep),
        expected=scores.expected.filter(keep),
        events=scores.events.filter(scores.events[column] == entity),
    )


def sensors_of(model: SeriesModel, scores: SeriesScores) -> list[str]:
    """The numbers that carry most of the flagged score, then the others in order."""
    flagged = scores.contributions.filter(scores.places["flagged"])
    total = dict(zip(flagged.columns, flagged.sum().row(0), strict=True)) if flagged.height else {}
    numbers = model.expectation.columns()
    return sorted(numbers, key=lambda name: -(total.get(name) or 0.0))
