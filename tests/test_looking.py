"""A first look at a table, in this process and in the one that is limited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from dashboard import bounded
from tabdiff.errors import ConfigError, SourceError
from tabdiff.operations.looking import load_upload, look
from tabdiff.schema import Schema
from tabdiff.store import Workspace

HOSTILE = "<img src=x onerror=alert(1)> :red[x] $a$ [l](http://x)"


def test_a_look_says_what_columns_were_taken_for(mixed_table: Callable[..., pl.DataFrame]) -> None:
    table = mixed_table(400).rename({"weight": HOSTILE})
    found = look(table, {"rating": {"kind": "categorical"}})
    schema = Schema.infer(table, overrides={"rating": {"kind": "categorical"}})
    assert [(c["name"], c["kind"], c["role"]) for c in found["columns"]] == [
        (c.name, c.kind, c.role) for c in schema.columns
    ]
    rating = next(c for c in found["columns"] if c["name"] == "rating")
    assert rating["missing"] == table["rating"].null_count() / 400
    assert rating["distinct"] == 5
    assert (found["rows"], len(found["sample"]), found["sample"][0][0]) == (400, 20, "10000")
    assert {(f["severity"], f["column"]) for f in found["findings"]} == {("info", "order_id"), ("info", "remark")}
    with pytest.raises(ConfigError, match="no column 'weight'"):
        look(table, {"weight": {"kind": "integer"}})


def test_a_look_tells_what_is_odd(mixed_table: Callable[..., pl.DataFrame]) -> None:
    table = mixed_table(150).with_columns(
        constant=pl.lit("x"),
        empty=pl.lit(None, dtype=pl.Float64),
        gaps=pl.when(pl.int_range(pl.len()) % 3 == 0).then(1.5),
        far=pl.when(pl.int_range(pl.len()) == 7).then(1e6).otherwise("price"),
        endless=pl.when(pl.int_range(pl.len()) == 7).then(float("inf")).otherwise("price"),
    )
    findings = {(f["column"], f["what"].partition(" ")[0]) for f in look(pl.concat([table, table[:3]]))["findings"]}
    assert {("constant", "holds"), ("empty", "has"), ("gaps", "is"), ("far", "1"), ("", "there"), ("", "3")} <= findings


def test_a_table_that_cannot_be_modelled_is_shown_with_the_reason() -> None:
    found = look(pl.DataFrame({"note": [f"some long text {i} and {i * i}" for i in range(300)]}))
    assert found["findings"][0]["severity"] == "error"
    assert "nothing is left to model" in found["findings"][0]["what"]
    assert found["columns"][0]["dtype"] == "String"


def test_the_child_finds_the_same(tmp_path: Path, mixed_table: Callable[..., pl.DataFrame]) -> None:
    table = mixed_table(300)
    table.write_csv(tmp_path / "a.csv")
    assert bounded.look_at_file(tmp_path / "a.csv") == look(load_upload(tmp_path / "a.csv"))
    with pytest.raises(SourceError, match="no such file"):
        bounded.look_at_file(tmp_path / "b.csv")


def test_a_source_is_looked_at_in_a_child(
    tmp_path: Path, mixed_table: Callable[..., pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TABDIFF_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    mixed_table(250).write_parquet(tmp_path / "data" / "a.parquet")
    (tmp_path / "data" / "b.parquet").write_text("half")
    Workspace.create().sources.add("orders", location=str(tmp_path / "data"))
    found = bounded.look_at_source("orders", {"items": {"kind": "categorical"}})
    assert found["rows"] == 250
    assert next(c["kind"] for c in found["columns"] if c["name"] == "items") == "categorical"
    assert found["findings"][0]["what"].startswith("b.parquet:")


def test_uploads_that_would_become_too_large_are_refused_unread(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.parquet"
    pl.DataFrame({"a": pl.repeat(1, 60_000_000, dtype=pl.Int8, eager=True)}).write_parquet(bomb)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(SourceError, match="60,000,000 rows"):
        load_upload(bomb)
    wide = tmp_path / "wide.csv"
    wide.write_text(",".join(f"c{i}" for i in range(1001)) + "\n" + ",".join("1" * 1001) + "\n")
    with pytest.raises(SourceError, match="1,001 columns"):
        load_upload(wide)
    (tmp_path / "packed.csv.gz").write_bytes(b"")
    with pytest.raises(SourceError, match="ends in"):
        load_upload(tmp_path / "packed.csv.gz")
    (tmp_path / "half.parquet").write_bytes(bomb.read_bytes()[:1000])
    with pytest.raises(SourceError, match="not a readable parquet"):
        load_upload(tmp_path / "half.parquet")


def test_a_child_that_needs_too_much_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(bounded, "_WALL", 0.05)
    with pytest.raises(SourceError, match="Give a smaller one"):
        bounded.look_at_file(tmp_path / "a.csv")
