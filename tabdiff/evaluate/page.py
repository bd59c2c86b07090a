"""One HTML page that shows a result: it needs no network, no script and no other file.

Bodies are HTML made by the helpers here and in `charts`, which escape every text from data. The page
forbids itself all loading by a content security policy, follows the light or dark theme of the reader and
fits a phone. The same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tabdiff.errors import ConfigError
from tabdiff.evaluate.charts import (
    bars,
    correlation_heatmaps,
    figure,
    grid,
    histogram_pair,
    histograms,
    number,
    scale,
    score_histogram,
    text,
)

__all__ = [
    "Section",
    "anomaly_card",
    "bars",
    "correlation_heatmaps",
    "figure",
    "grid",
    "histogram_pair",
    "histograms",
    "number",
    "paragraph",
    "raw_table",
    "render",
    "scale",
    "score_histogram",
    "table",
    "text",
]

MOST_BYTES = 2_000_000

STYLE = """
:root{color-scheme:light dark;--page:#fbfaf8;--panel:#fff;--ink:#1d2126;--soft:#5c646d;--line:#e3e0da;
--a:#0072b2;--b:#c04f00;--wash:#f2f0ec}
@media(prefers-color-scheme:dark){:root{--page:#15181c;--panel:#1c2025;--ink:#e6e4df;--soft:#a0a7af;
--line:#33393f;--a:#56b4e9;--b:#f0a03c;--wash:#23282e}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;overflow-wrap:break-word}
main,header{max-width:54rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:3.5rem}
h1,h2{font-family:Charter,"Bitstream Charter","Iowan Old Style",Georgia,"DejaVu Serif",serif;font-weight:600;
line-height:1.2;letter-spacing:-.01em;text-wrap:balance}
h1{font-size:2.1rem;margin:0 0 .5rem}
h2{font-size:1.4rem;margin:0 0 1rem}
h3{font-size:.95rem;font-weight:600;margin:0 0 .4rem}
p{margin:0 0 1rem;max-width:42rem}
.subtitle{color:var(--soft);font-size:1.1rem}
nav{margin:1.5rem 0 0;display:flex;flex-wrap:wrap;gap:.3rem 1.25rem;font-size:.92rem}
a{color:var(--a);text-underline-offset:.2em}
section{margin:3rem 0 0;padding-top:2rem;border-top:1px solid var(--line)}
.scroll{overflow-x:auto;margin:0 0 .6rem}.scroll+.note{margin-bottom:2rem}
table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .75rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child,td:first-child{padding-left:0}th:last-child,td:last-child{padding-right:0}
thead th{color:var(--soft);font-weight:500;font-size:.86rem;line-height:1.3;vertical-align:bottom}
tbody th{font-weight:400}
.n{text-align:right}td.n{white-space:nowrap}
td.best{font-weight:700}
figure{margin:0 0 1.75rem;min-width:0}
figcaption,.note{color:var(--soft);font-size:.88rem;line-height:1.45;margin:.5rem 0 0;max-width:42rem}
.note{margin-bottom:1rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(17rem,100%),1fr));gap:.5rem 2rem}
.grid.three{grid-template-columns:repeat(auto-fit,minmax(min(15rem,100%),1fr))}
svg{display:block;width:100%;max-width:34rem;height:auto}
svg text{font-size:11px;fill:var(--soft);font-variant-numeric:tabular-nums}
svg .fill-a{fill:var(--a)}svg .fill-b{fill:var(--b)}
svg rect.fill-a:not(.cell){fill-opacity:.42}
svg .line-b{fill:none;stroke:var(--b);stroke-width:1.8;stroke-linejoin:round}
svg .axis{stroke:var(--line);fill:none}svg .axis.strong{stroke:var(--soft);stroke-width:1.5}
td.scale{width:11.5rem;min-width:7rem}td.scale svg{max-width:11.25rem}
.pass::before{content:"✓ ";color:var(--a);font-weight:700}.fail{font-weight:600}
.fail::before{content:"✗ ";color:var(--b);font-weight:700}.verdict{font-size:1.1rem;font-weight:600}
svg .cell{stroke:var(--line);stroke-width:.5}
.key{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;color:var(--soft);font-size:.84rem;margin:0 0 .3rem}
.key i{display:inline-block;width:.8rem;height:.7rem;margin-right:.4rem}
.key i.fill-a{background:var(--a);opacity:.5}
.key i.line-b{border:2px solid var(--b)}
.key i.fill-b{background:var(--b)}.key i.none{border:1px solid var(--line)}.key i.full{background:var(--a)}
.bars{list-style:none;margin:0;padding:0;font-size:.88rem;font-variant-numeric:tabular-nums}
.bars li{display:grid;grid-template-columns:minmax(0,9rem) minmax(3rem,1fr) 4.5rem;gap:.75rem;
align-items:center;padding:.18rem 0}
.bars .name{overflow-wrap:anywhere;line-height:1.25}
.bars .bar b{display:block;height:.7rem;min-width:1px;background:var(--a)}
.bars .pair b{height:.55rem;margin:1px 0;opacity:.55}
.bars .pair b.line-b{background:none;border:2px solid var(--b);opacity:1}
.bars .value{text-align:right;color:var(--soft);line-height:1.15}
.card{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:1.1rem 1.25rem;
margin:0 0 1.25rem}
.card header{padding:0;margin:0 0 .75rem;max-width:none;display:flex;flex-wrap:wrap;gap:.1rem 1.5rem;
align-items:baseline}
.card h3{font-size:1.05rem;margin:0;margin-right:auto}
.card .fact{color:var(--soft);font-size:.9rem;font-variant-numeric:tabular-nums}
.card .fact b{color:var(--ink)}
.card .scroll{margin:0}
.card td.share{width:30%;min-width:3rem}
.card .share span{display:block;height:.6rem;background:var(--a);min-width:1px;margin-top:.5rem}
main{padding-bottom:4rem}
@media(max-width:32rem){header{padding-top:2rem}h1{font-size:1.7rem}
section{margin-top:2rem;padding-top:1.5rem}
th,td{padding:.45rem .35rem}table{font-size:.88rem}thead th{font-size:.8rem}.card{padding:1rem}
.bars li{grid-template-columns:minmax(0,6.5rem) minmax(3rem,1fr) 4rem}}
@media print{body{background:#fff}section,.card,figure{break-inside:avoid}}
"""


@dataclass(frozen=True)
class Section:
    """A part of the page. `title` is plain text; `body_html` is HTML made by the helpers, and trusted."""

    title: str
    body_html: str


def paragraph(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(words, 5000)}</p>"


def table(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[str] | Mapping[str, str],
    caption: str = "",
    best: Mapping[str, Literal["high", "low"]] | None = None,
    decimals: Mapping[str, int] | None = None,
) -> str:
    """A table of dicts. The first column heads each row; numbers are aligned right.

    Args:
        rows: one dict per row; a missing key or None shows as a dash.
        columns: keys to show, in order, or key -> heading.
        caption: one sentence on how to read the table.
        best: key -> whether the highest or the lowest number of that column is set in bold.
        decimals: key -> digits after the point; by default enough for three significant digits of the
            largest number of the column.
    """
    headings = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    if not headings:
        raise ConfigError("a table has at least one column; found none")
    formats = {key: _column_format(key, rows, decimals or {}) for key in headings}
    winners = {key: _best(key, rows, way) for key, way in (best or {}).items()}
    head = "".join(
        f'<th scope="col"{_class(["n"] if formats[key] is not None else [])}>{text(heading)}</th>'
        for key, heading in headings.items()
    )
    body = []
    for row in rows:
        cells = []
        for place, key in enumerate(headings):
            value, digits = row.get(key), formats[key]
            won = key in winners and value == winners[key]
            classes = (["n"] if digits is not None else []) + (["best"] if won else [])
            opening, closing = ('<th scope="row"', "</th>") if place == 0 else ("<td", "</td>")
            cells.append(f"{opening}{_class(classes)}>{_cell(value, digits)}{closing}")
        body.append(f"<tr>{''.join(cells)}</tr>")
    note = f'<p class="note">{text(caption, 600)}</p>' if caption else ""
    return _scrolled(head, "".join(body)) + note


def raw_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = (), caption: str = ""
) -> str:
    """A table whose cells are HTML made by the helpers, and trusted; columns in `numeric` are aligned right."""
    head = "".join(
        f'<th scope="col"{_class(["n"] if i in numeric else [])}>{text(heading)}</th>'
        for i, heading in enumerate(headings)
    )
    body = ""
    for row in rows:
        cells = [f'<th scope="row">{row[0]}</th>']
        for i, cell in enumerate(row[1:], 1):
            kind = ["n"] if i in numeric else ["scale"] if cell.startswith("<svg") else []
            cells.append(f"<td{_class(kind)}>{cell}</td>")
        body += f"<tr>{''.join(cells)}</tr>"
    note = f'<p class="note">{text(caption, 600)}</p>' if caption else ""
    return _scrolled(head, body) + note


def anomaly_card(
    row_id: object,
    score: float,
    p_value: float | None,
    contributions: Sequence[tuple[str, float]],
    actual: Mapping[str, object],
    expected: Mapping[str, object],
) -> str:
    """Why one row is anomalous.

    Args:
        row_id: how the reader finds the row.
        score: its anomaly score, higher is more anomalous.
        p_value: share of normal rows with at least this score, 0 to 1; None leaves it out.
        contributions: (column, share of the score 0 to 1), in the order to show.
        actual: column -> value in the row.
        expected: column -> value that the model expected there; a column may lack one.
    """
    facts = f'<span class="fact">score <b>{number(score)}</b></span>'
    if p_value is not None:
        facts += f'<span class="fact">p <b>{_p_value(p_value)}</b></span>'
    lines = []
    for column, share in contributions:
        width = 100 * min(max(float(share), 0.0), 1.0) if np.isfinite(share) else 0.0
        lines.append(
            f'<tr><th scope="row">{text(column, 60)}</th><td>{_cell(actual.get(column), None)}</td>'
            f"<td>{_cell(expected.get(column), None)}</td>"
            f'<td class="share"><span style="width:{width:.1f}%"></span></td>'
            f'<td class="n">{width:.0f}&nbsp;%</td></tr>'
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("column", "in this row", "expected"))
    head += '<th scope="col" colspan="2">share of the score</th>'
    return (
        f'<article class="card"><header><h3>Row {text(row_id, 60)}</h3>{facts}</header>'
        f"{_scrolled(head, ''.join(lines))}</article>"
    )


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page as one string, to be written as UTF-8. ConfigError if it exceeds 2 MB."""
    links = "".join(f'<a href="#part-{i}">{text(part.title)}</a>' for i, part in enumerate(sections, 1))
    contents = f'<nav aria-label="Contents">{links}</nav>' if len(sections) > 1 else ""
    parts = "".join(
        f'<section id="part-{i}"><h2>{text(part.title)}</h2>{part.body_html}</section>'
        for i, part in enumerate(sections, 1)
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{text(title)}</h1><p class="subtitle">{text(subtitle, 600)}</p>{contents}</header>'
        f"<main>{parts}</main></body></html>\n"
    )
    size = len(page.encode())
    if size > MOST_BYTES:
        raise ConfigError(f"a page is at most {MOST_BYTES:,} bytes; found {size:,}. Show fewer rows or columns")
    return page


def _scrolled(head: str, body: str) -> str:
    """A table that scrolls sideways within itself where the page is too narrow."""
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _column_format(key: str, rows: Sequence[Mapping[str, object]], decimals: Mapping[str, int]) -> int | None:
    """Digits after the point for a column of numbers; None for a column with anything else."""
    present = [row[key] for row in rows if row.get(key) is not None]
    if not present or not all(_is_number(value) for value in present):
        return None
    if key in decimals:
        return decimals[key]
    if all(isinstance(value, int | np.integer) for value in present):
        return 0
    finite = [abs(float(str(value))) for value in present if np.isfinite(float(str(value)))]
    largest = max(finite, default=0.0)
    return 3 if largest <= 1 else int(np.clip(2 - np.floor(np.log10(largest)), 0, 3))


def _best(key: str, rows: Sequence[Mapping[str, object]], way: Literal["high", "low"]) -> object:
    """The value that wins a column; None, which no cell is, if it has no number."""
    present = [row[key] for row in rows if _is_number(row.get(key)) and np.isfinite(float(str(row[key])))]
    if not present:
        return None
    return (max if way == "high" else min)(present, key=lambda value: float(str(value)))


def _class(names: Sequence[str]) -> str:
    return f' class="{" ".join(names)}"' if names else ""


def _cell(value: object, decimals: int | None) -> str:
    """One cell: a dash for nothing, a number with its digits, anything else as text."""
    if value is None:
        return "–"
    if _is_number(value):
        return number(float(str(value)), decimals)
    return text(value)


def _p_value(value: float) -> str:
    return number(value, 3) if np.isfinite(value) else "–"
