"""Charts of the pages on models and synthesis: pure, frames and plain values in, Altair out."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from dashboard.charts import ACTUAL, EXPECTED, QUIET

_BINS = 30
_BARS = 20


def calibration(curve: list[tuple[float, float]]) -> alt.LayerChart | alt.FacetChart:
    """Score of normal rows against the p-value that goes with it; lines where a row counts as one in twenty and one in a hundred."""
    points = pl.DataFrame(curve, schema=["score", "p"], orient="row")
    line = (
        alt.Chart(points)
        .mark_line(color=EXPECTED, interpolate="step-before")
        .encode(
            x=alt.X("score:Q", title="score"),
            y=alt.Y("p:Q", title="p-value", scale=alt.Scale(type="log", domainMax=1)),
            tooltip=[alt.Tooltip("score:Q", format=".3f"), alt.Tooltip("p:Q", format=".4f", title="p-value")],
        )
    )
    marks = pl.DataFrame({"p": [0.05, 0.01], "words": ["1 in 20", "1 in 100"]}).filter(pl.col("p") >= points["p"].min())
    rules = alt.Chart(marks).mark_rule(strokeDash=[4, 4], color=QUIET).encode(y="p:Q")
    words = (
        alt.Chart(marks)
        .mark_text(align="left", dx=4, dy=-7, color=QUIET)
        .encode(y="p:Q", x=alt.value(0), text="words:N")
    )
    return alt.layer(line, rules, words).properties(height=240)


def compared(drawn: pl.Series, real: list[Any]) -> alt.Chart:
    """How often values occur in drawn and in real rows: shares, so that different numbers of rows compare."""
    other = pl.Series(drawn.name, real, strict=False)
    parts = [("synthetic", drawn)]
    if len(other.drop_nulls()):
        parts.append(("real, unseen by the model", other))
    table = _binned(parts) if drawn.dtype.is_numeric() or drawn.dtype.is_temporal() else _counted(parts)
    colour = alt.Color(
        "rows:N",
        title=None,
        scale=alt.Scale(domain=[name for name, _ in parts], range=[ACTUAL, EXPECTED][: len(parts)]),
        legend=alt.Legend(orient="top"),
    )
    share = alt.Y("share:Q", title="share of rows", axis=alt.Axis(format="%"))
    if "from" in table.columns:
        place = alt.X("from:T" if table["from"].dtype.is_temporal() else "from:Q", title=None)
        made = (
            alt.Chart(table)
            .mark_line(interpolate="step-after")
            .encode(x=place, y=share, color=colour, strokeDash="rows:N")
        )
    else:
        place = alt.X("value:N", title=None, sort=None, axis=alt.Axis(labelLimit=120))
        made = alt.Chart(table).mark_bar().encode(x=place, y=share, color=colour, xOffset="rows:N")
    chart: alt.Chart = made.properties(height=240)
    return chart


def _binned(parts: list[tuple[str, pl.Series]]) -> pl.DataFrame:
    """Shares of rows in bins of equal width over both."""
    dtype = parts[0][1].dtype
    numbers = [(name, values.drop_nulls().to_physical().cast(pl.Float64).rename("value")) for name, values in parts]
    ends = pl.concat([values for _, values in numbers])
    low, high = float(ends.min() or 0.0), float(ends.max() or 0.0)  # type: ignore[arg-type]
    width = (high - low) / _BINS or 1.0
    tables = []
    for name, values in numbers:
        places = ((values - low) / width).floor().clip(0, _BINS - 1).cast(pl.Int64)
        counts = pl.DataFrame({"bin": places}).group_by("bin").len()
        shares = (
            pl.DataFrame({"bin": range(_BINS)})
            .join(counts, on="bin", how="left")
            .select(
                (low + pl.col("bin") * width).alias("from"),
                (pl.col("len").fill_null(0) / max(len(values), 1)).alias("share"),
                pl.lit(name).alias("rows"),
            )
        )
        tables.append(shares)
    table = pl.concat(tables)
    return table.with_columns(pl.col("from").cast(pl.Int64).cast(dtype)) if dtype.is_temporal() else table


def _counted(parts: list[tuple[str, pl.Series]]) -> pl.DataFrame:
    """Shares of the commonest values, missing ones included."""
    tables = [
        pl.DataFrame({"value": values.cast(pl.String, strict=False).fill_null("(missing)")})
        .group_by("value")
        .len()
        .select("value", (pl.col("len") / max(len(values), 1)).alias("share"), pl.lit(name).alias("rows"))
        for name, values in parts
    ]
    table = pl.concat(tables)
    common = (
        table.group_by("value").agg(pl.col("share").max()).sort("share", "value", descending=[True, False]).head(_BARS)
    )
    return table.join(common.select("value"), on="value", how="semi").sort("share", "value", descending=[True, False])


def anchored(figures: list[dict[str, Any]], *, value: str = "error") -> alt.LayerChart | alt.FacetChart:
    """Errors as dots between the floor (what real rows have) and the ceiling (what independent columns have), worst first."""
    table = pl.DataFrame(
        [
            {"name": str(f["name"])[:60], "value": f[value], "floor": f["floor"], "ceiling": f["ceiling"]}
            for f in figures
        ]
    )
    order = table["name"].to_list()
    place = alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=220, labelOverlap=False, grid=True))
    tip = ["name:N", *(alt.Tooltip(f"{key}:Q", format=".2f") for key in ("value", "floor", "ceiling"))]
    base = alt.Chart(table)
    span = base.mark_rule(color=QUIET, strokeWidth=3, opacity=0.45).encode(
        x=alt.X("floor:Q", title="error in percent; lower is better"), x2="ceiling:Q", y=place, tooltip=tip
    )
    ends = base.mark_tick(color=EXPECTED, thickness=3, height=14).encode(x="floor:Q", y=place, tooltip=tip)
    dots = base.mark_circle(color=ACTUAL, size=110, opacity=1).encode(x="value:Q", y=place, tooltip=tip)
    return alt.layer(span, ends, dots).properties(height=70 + 28 * len(order))
