"""The page is whole, closed to the outside, escaped, and the same for the same input."""

import datetime
import html
import math
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from tabdiff.errors import ConfigError, TabdiffError
from tabdiff.evaluate import page
from tabdiff.evaluate.fidelity import independent_columns

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror='boom()'>\"&\u202e\x00"
VOID = {"meta", "br"}


class Outline(HTMLParser):
    """Checks that every element is closed in order; collects elements, attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def tables(name: str = "amount") -> tuple[pl.DataFrame, pl.DataFrame]:
    generator = np.random.default_rng(0)
    frames = []
    for rows in (80, 70):
        day = [datetime.date(2020, 1, 1) + datetime.timedelta(days=int(d)) for d in generator.integers(0, 400, rows)]
        frame = pl.DataFrame(
            {
                name: generator.normal(size=rows),
                "level": generator.choice(["a", "b", name], size=rows),
                "whole": generator.integers(0, 5, rows),
                "day": day,
                "gone": pl.Series([None] * rows, dtype=pl.Float64),
                "same": [1.5] * rows,
            }
        )
        frames.append(frame.with_columns(level=pl.when(pl.int_range(rows) % 9 == 0).then(None).otherwise("level")))
    return frames[0], frames[1]


def whole_page(name: str = "amount") -> str:
    real, synthetic = tables(name)
    rows = [{"method": name, "auc": 0.91234, "rows": 1200}, {"method": "random", "auc": 0.5, "rows": None}]
    card = page.anomaly_card(name, 3.2, 0.00001, [(name, 0.7), ("level", 0.3)], {name: name}, {name: 1.25})
    sections = [
        page.Section(name, page.paragraph(name) + page.table(rows, ["method", "auc", "rows"], caption=name)),
        page.Section("Scores", page.score_histogram([0, 1, 2, 2], [5, 9]) + card),
        page.Section("Columns", page.histograms(real, synthetic) + page.bars([(name, 2.5), ("b", 0)], name, "%")),
        page.Section("Pairs", page.correlation_heatmaps(real, synthetic, independent_columns(real, 50))),
    ]
    return page.render(name, name, sections)


def test_page_is_balanced_and_loads_nothing() -> None:
    source = whole_page()
    outline = Outline(source)
    tags = {tag for tag, _ in outline.seen}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "img"}
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert "@import" not in source
    policies = [attrs.get("content") for tag, attrs in outline.seen if tag == "meta"]
    assert any(policy and policy.startswith("default-src 'none'") for policy in policies)
    links = [attrs["href"] for tag, attrs in outline.seen if tag == "a"]
    ids = {attrs.get("id") for _, attrs in outline.seen}
    assert links
    assert all(link and link[0] == "#" and link[1:] in ids for link in links)
    assert len(source.encode()) < 200_000


def test_every_picture_has_a_label() -> None:
    pictures = [attrs for tag, attrs in Outline(whole_page()).seen if tag == "svg"]
    assert len(pictures) >= 6
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in pictures)


def test_hostile_names_stay_text() -> None:
    source = whole_page(HOSTILE)
    outline = Outline(source)
    assert {tag for tag, _ in outline.seen} == {tag for tag, _ in Outline(whole_page()).seen}
    allowed = {
        "class",
        "style",
        "id",
        "href",
        "role",
        "aria-label",
        "scope",
        "colspan",
        "tabindex",
        "lang",
        "charset",
    }
    allowed |= {"name", "content", "http-equiv", "viewbox", "x", "y", "d", "width", "height", "text-anchor"}
    assert {key for _, attrs in outline.seen for key in attrs} <= allowed | {"fill-opacity"}
    assert "alert(1)" in "".join(outline.words)
    assert not set("\u202e\x00") & set(source)
    assert page.text("a\ud800b") == "a\ufffdb"


def test_same_input_gives_the_same_bytes() -> None:
    assert whole_page().encode() == whole_page().encode()


def test_page_follows_the_theme_and_the_width_of_the_reader() -> None:
    source = whole_page()
    assert "prefers-color-scheme:dark" in source
    assert 'name="viewport"' in source


def test_no_number_is_shown_as_nan() -> None:
    cells = [{"a": math.nan, "b": 1.0}, {"a": math.inf, "b": None}, {"a": 0.5, "b": 2}]
    source = page.table(cells, ["a", "b"], best={"a": "high", "b": "low"})
    assert "nan" not in source
    assert "inf" not in source
    assert source.count("best") == 2
    card = page.anomaly_card(1, math.nan, math.nan, [("a", math.nan)], {}, {})
    assert "nan" not in card
    assert "nan" not in whole_page().lower().replace("dominant", "")


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [
        (0.912345, None, "0.912"),
        (12.3456, None, "12.3"),
        (1234.5, None, "1,234"),
        (1200, None, "1,200"),
        (-0.5, None, "−0.500"),
        (-3, None, "−3"),
        (0.00001, 3, "<0.001"),
        (0.0000123, None, "1.23e−5"),
        (0.0, 3, "0.000"),
        (-0.0, 2, "0.00"),
        (math.nan, None, "–"),
        (3.5e12, None, "3.50e12"),
    ],
)
def test_numbers_have_sensible_digits(value: float, decimals: int | None, shown: str) -> None:
    assert html.unescape(page.number(value, decimals)) == shown


def test_columns_of_numbers_share_their_digits_and_stand_right() -> None:
    rows = [{"name": "a", "x": 12.345, "n": 7}, {"name": "b", "x": 0.1, "n": 1234}]
    source = page.table(rows, {"name": "method", "x": "error, %", "n": "rows"}, best={"x": "low"})
    assert '<td class="n">12.3</td>' in source
    assert '<td class="n best">0.1</td>' in source
    assert '<td class="n">1,234</td>' in source
    assert '<th scope="row">a</th>' in source
    assert '<td class="n">12.3450</td>' in page.table(rows, ["name", "x"], decimals={"x": 4})


def test_charts_take_awkward_columns() -> None:
    empty = pl.Series("e", [], dtype=pl.Float64)
    full = pl.Series("e", [1.0, 2.0, None])
    for pair in ((empty, empty), (empty, full), (full, full), (full, pl.Series("e", [1e300, -1e300]))):
        assert "nan" not in page.histogram_pair(*pair)
    nulls = pl.Series("c", [None, None], dtype=pl.String)
    assert "(missing)" in page.histogram_pair(nulls, pl.Series("c", ["x", None]))
    many = pl.Series("c", [f"level {i}" for i in range(50)])
    assert "(others)" in page.histogram_pair(many, many)
    assert "No values" in page.score_histogram([], [])
    moments = pl.Series("t", [datetime.datetime(2024, 1, 1), datetime.datetime(2024, 3, 1)])
    assert "2024-01-01" in page.histogram_pair(moments, moments)
    assert page.bars([])


def test_wide_tables_show_their_most_dependent_columns() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(size=200)
    frame = pl.DataFrame({f"c{i}": base if i in (3, 17) else generator.normal(size=200) for i in range(20)})
    source = page.correlation_heatmaps(frame, frame, most_columns=2)
    assert "c3 and c17: 1.00" in source
    assert "c4" not in source


def test_misuse_is_refused() -> None:
    with pytest.raises(ConfigError):
        page.bars([("a", -1)])
    with pytest.raises(ConfigError):
        page.table([], [])
    with pytest.raises(ConfigError, match="at most"):
        page.render("t", "s", [page.Section("big", "x" * 2_000_001)])
    with pytest.raises(TabdiffError):
        page.histogram_pair(pl.Series("a", [1]), pl.Series("a", ["x"]))
    with pytest.raises(TabdiffError):
        page.correlation_heatmaps(*tables()[:1], pl.DataFrame({"other": [1]}))
