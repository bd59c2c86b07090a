"""Reading and writing of tables, and the refusal of broken ones."""

from __future__ import annotations

import gzip
import hashlib
import os
import resource
import sqlite3
import struct
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tabdiff import csv_files
from tabdiff.errors import SchemaError, SourceError, TabdiffWarning
from tabdiff.files import atomic_folder, atomic_write, fingerprint, write
from tabdiff.sources import load, read

FRAME = pl.DataFrame({"n": [3, 1, 2], "x": [1.5, None, -2.0], "s": ["a", "ü", None]})


def rows(source: object, **options: str) -> list[tuple[object, ...]]:
    return read(source, **options).collect().rows()  # type: ignore[arg-type]


def put(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow", ".feather"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    write(FRAME, path)
    assert read(path).collect().equals(FRAME)
    assert read(str(path)).collect().equals(FRAME)
    assert [part.name for part in tmp_path.iterdir()] == [path.name]


def test_an_arrow_stream_is_read(tmp_path: Path) -> None:
    FRAME.write_ipc_stream(tmp_path / "t.arrow")
    assert read(tmp_path / "t.arrow").collect().equals(FRAME)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,x\n2,y\n", [(1, "x"), (2, "y")]),
        ("a;b\n1;x\n2;y\n", [(1, "x"), (2, "y")]),
        ("a\tb\n1\tx\n", [(1, "x")]),
        ("a|b\n1|x\n", [(1, "x")]),
        ("a\n1\n2\n", [(1,), (2,)]),
        ("a;b\n1,5;x\n-2,25;y\n", [(1.5, "x"), (-2.25, "y")]),
        ("a;b\n1.5;x\n2.5;y\n", [(1.5, "x"), (2.5, "y")]),
        ('a;b\n"1,5";"x,y;z"\n', [(1.5, "x,y;z")]),
        ('a,b\n"x\ny",1\n', [("x\ny", 1)]),
        ("a,b\r\n1,x\r\n\r\n\r\n", [(1, "x")]),
        ("a,b\r1,x\r2,y\r", [(1, "x"), (2, "y")]),
        ("a\n1\n\n", [(1,), (None,)]),
        ("a,b\n1,NA\n,N/A\nnan,null\nNone,NULL\n5,NaN\n", [(v, None) for v in (1, None, None, None, 5)]),
        ("a,b\n?,?\n1,x\n", [("?", "?"), ("1", "x")]),
        ("zip,n\n02138,1\n10001,2\n", [("02138", 1), ("10001", 2)]),
        ("a,b\n0,0.5\n10,0\n", [(0, 0.5), (10, 0.0)]),
        ("day,b\n2024-01-31,1\n", [("2024-01-31", 1)]),
    ],
)
def test_csv(tmp_path: Path, text: str, expected: list[tuple[object, ...]]) -> None:
    assert rows(put(tmp_path / "t.csv", text)) == expected
    assert rows(put(tmp_path / "t.csv.gz", gzip.compress(text.encode()))) == expected


def test_csv_types_come_from_the_whole_file(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "a\n" + "1\n" * 30_000 + "1.5\n")
    frame = read(path).collect()
    assert frame.schema["a"] == pl.Float64
    assert frame["a"][-1] == 1.5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_encodings(tmp_path: Path, encoding: str, delimiter: str) -> None:
    text = f"name{delimiter}n\nJörg{delimiter}1\nŽofie{delimiter}2\n"
    frame = read(put(tmp_path / "t.csv", text.encode(encoding))).collect()
    assert frame.columns == ["name", "n"]
    assert frame.rows() == [("Jörg", 1), ("Žofie", 2)]


def test_latin_1_is_guessed_and_said(tmp_path: Path) -> None:
    text = "name,city\n" + "Jürgen Müller,Köln\nRené,Besançon\nBjörn,Malmö\n" * 20
    path = put(tmp_path / "t.csv", text.encode("latin-1"))
    with pytest.warns(TabdiffWarning, match=r"t\.csv: the text is not UTF-8 and was read as cp125\d"):
        frame = read(path).collect()
    assert frame.row(0) == ("Jürgen Müller", "Köln")


@pytest.mark.parametrize(
    "words", [["España", "Cataluña"], ["São Paulo", "Brasília"], ["Genève", "Zürich"], ["20 °C", "½"]]
)
def test_words_that_fit_two_code_pages_are_read_in_the_western_one(tmp_path: Path, words: list[str]) -> None:
    path = put(tmp_path / "t.csv", ("place\n" + "\n".join(words * 30) + "\n").encode("latin-1"))
    with pytest.warns(TabdiffWarning, match="was read as cp1252"):
        assert read(path).collect()["place"].unique().sort().to_list() == sorted(words)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", "", "must not be empty, found 0 bytes"),
        ("t.parquet", "", "must not be empty, found 0 bytes"),
        ("t.csv", "a,b\n", "found 0 rows"),
        ("t.csv", "a,b\n\n\n", "found 0 rows"),
        ("t.csv", "a,b\n1,2\n3\n", "must have the 2 fields of the header, found 1 in line 3 (delimiter ',')"),
        ("t.csv", "a,b\n1,2,9\n3,4\n", "must have the 2 fields of the header, found 3 in line 2"),
        ("t.csv", "a,b\n1,2\n\n3,4\n", "found 0 in line 3"),
        ("t.csv", "a\n1\n2,3\n", "the 1 fields of the header, found 2 in line 3"),
        ("t.csv", "a,b\n1,x\0y\n", "NUL bytes, found one in line 2"),
        ("t.csv", "a,b,a\n1,2,3\n", "column names must differ, found ['a']"),
        ("t.csv.gz", "no gzip", "not a readable csv file"),
        # Without a time in its header: these bytes name the test, and every worker must know it by the same name.
        ("t.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 999, mtime=0)[:-12], "not a readable csv file"),
        ("t.parquet", "PAR1 garbage", "not a readable parquet file"),
        ("t.arrow", "ARROW1 garbage", "not a readable arrow file"),
        ("t.arrow", "garbage", "not a readable arrow file"),
        ("t.xlsx", "x", "must end in .parquet, .pq, .csv"),
        ("t", "x", "found no suffix"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    path = put(tmp_path / name, data)
    with pytest.raises(SourceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    FRAME.write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"t\.parquet: not a readable parquet file"):
        read(path)


def test_a_damaged_page_is_told_of_by_load(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pl.DataFrame({"n": range(20_000)}).write_parquet(tmp_path / f"{name}.parquet")
    path = tmp_path / "b.parquet"
    assert load(tmp_path).equals(read(tmp_path).collect())
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996  # the first page; the footer stays whole
    path.write_bytes(data)
    assert read(path).collect_schema() == {"n": pl.Int64}
    for source in (path, tmp_path):
        with pytest.raises(SourceError, match=r"b\.parquet: not a readable parquet file \(.+\)\. Copy"):
            load(source)


def test_a_value_that_no_type_holds_is_told_of_by_load(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "a\n" + "1\n" * 5000 + "9" * 45 + "\n")
    with pytest.raises(SourceError, match=r"t\.csv: not a readable csv file \(could not parse `9+`"):
        load(path)


def test_load_queries(shop: Path) -> None:
    assert load(f"sqlite:///{shop}", query="select id from orders").rows() == [(1,), (2,)]


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent\.csv: no such file or folder\. Check"):
        read(tmp_path / "absent.csv")
    with pytest.raises(SourceError, match=r"nor is its folder"):
        read(tmp_path / "no" / "absent.csv")
    with pytest.raises(SourceError, match=r"\*\.csv: the pattern must match a file, found none"):
        read(tmp_path / "*.csv")
    put(tmp_path / "notes.md", "x")
    with pytest.raises(SourceError, match=r"the folder must hold files that end in .*found \['notes.md'\]"):
        read(tmp_path)
    put(tmp_path / "a.csv", "a\n1\n")
    FRAME.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"must hold one format, found \['csv', 'parquet'\]"):
        read(tmp_path)


def test_a_folder_and_a_glob_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (2, 0, 1):
        pl.DataFrame({"n": [number * 10, number * 10 + 1]}).write_parquet(tmp_path / f"part{number}.parquet")
    put(tmp_path / "_SUCCESS", "")
    put(tmp_path / ".hidden.parquet", "junk")
    expected = [0, 1, 10, 11, 20, 21]
    assert read(tmp_path).collect()["n"].to_list() == expected
    assert read(tmp_path / "part*.parquet").collect()["n"].to_list() == expected
    monkeypatch.chdir(tmp_path.parent)
    assert read(f"{tmp_path.name}/*.parquet").collect()["n"].to_list() == expected
    assert read(f"{tmp_path}/**/part[12].parquet").collect()["n"].to_list() == expected[2:]


def test_csv_parts_widen_but_differing_parts_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", "x,y,z\n1,p,\n2,q,\n")
    put(tmp_path / "b.csv", "y,x,z\nr,2.5,7\n")
    assert rows(tmp_path) == [(1.0, "p", None), (2.0, "q", None), (2.5, "r", 7)]
    put(tmp_path / "c.csv", "x,w\nfar,1\n")
    with pytest.raises(SchemaError) as caught:
        read(tmp_path)
    assert [problem.column for problem in caught.value.problems] == ["x", "y", "z", "w"]
    assert "Float64 in" in str(caught.value)
    assert f"String in {tmp_path / 'c.csv'}" in str(caught.value)
    assert f"it in {tmp_path / 'a.csv'} but not in {tmp_path / 'c.csv'}" in str(caught.value)


def test_parquet_parts_are_not_widened(tmp_path: Path) -> None:
    pl.DataFrame({"n": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"n": [1.5]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match=r"column 'n': files must agree; found Int64 in .*a\.parquet and Float64 in"):
        read(tmp_path)


# ------------------------------------------------------------------------------------------------- databases


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "my shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table orders (id integer, price real, note text)")
        connection.executemany("insert into orders values (?, ?, ?)", [(1, 2.5, "a"), (2, None, None)])
    connection.close()
    return path


@pytest.mark.parametrize("slashes", ["sqlite://", "sqlite:///"])
def test_sqlite(shop: Path, slashes: str) -> None:
    assert rows(f"{slashes}{shop}", query="select * from orders order by id desc") == [
        (2, None, None),
        (1, 2.5, "a"),
    ]


def test_sqlite_relative(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.parent)
    assert rows("sqlite:///my shop.db", query="select id from orders") == [(1,), (2,)]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (None, "needs a query, found none"),
        ("  ", "needs a query, found none"),
        ("select * from orders where 0", "found 0 rows"),
        ("select nothing", "the query failed: "),
        ("delete from orders", "the query failed: "),
        ("create table planted (a integer)", "the query failed: .*readonly"),
    ],
)
def test_bad_queries(shop: Path, query: str | None, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(f"sqlite:///{shop}", query=query)
    assert len(rows(f"sqlite:///{shop}", query="select * from orders")) == 2


def test_bad_urls(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such database file"):
        read(f"sqlite:///{tmp_path}/absent.db", query="select 1")
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(SourceError, match=r"s3:// is not supported"):
        read("s3://bucket/t.parquet")
    with pytest.raises(SourceError, match=r"a query needs a database URL"):
        read(put(tmp_path / "t.csv", "a\n1\n"), query="select 1")
    junk = put(tmp_path / "junk.db", "this is not a database" * 100)
    with pytest.raises(SourceError, match="file is not a database"):
        read(f"sqlite:///{junk}", query="select * from t")


PASSWORD_URL = "postgresql://ann:s3cr%21t@127.0.0.1:1/shop?sslpassword=hidden"


def test_passwords_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(query: str, uri: str, **_: object) -> None:
        raise RuntimeError(f"cannot connect to {uri} as ann with s3cr!t or s3cr%21t, hidden")

    monkeypatch.setattr(pl, "read_database_uri", fail)
    for query in ("select 1", None):
        with pytest.raises(SourceError) as caught:
            read(PASSWORD_URL, query=query)
        shown = str(caught.value)
        assert "postgresql://127.0.0.1:1/shop" in shown
        assert not any(secret in shown for secret in ("s3cr", "sslpassword=hidden", "ann:"))
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("password", ["x1/y2", "x1?y2", "x1#y2", "x1@y2/z3", "x1[y2"])
def test_passwords_that_break_the_url_are_not_shown(password: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(f"postgresql://ann:{password}@127.0.0.1:1/shop", query="select 1")
    assert not any(part in str(caught.value) for part in ("ann", "x1", "y2", "z3"))


def test_an_unreachable_server_is_a_source_error() -> None:
    with pytest.raises(SourceError, match=r"postgresql://127\.0\.0\.1:1/shop: ") as caught:
        read("postgresql://ann:s3cret@127.0.0.1:1/shop", query="select 1")
    assert "s3cret" not in str(caught.value)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"pip install 'tabdiff\[db\]'"):
        read("postgresql://ann@localhost/shop", query="select 1")


# --------------------------------------------------------------------------------------------------- writing


def test_formulas_are_made_harmless(tmp_path: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "a=1", "", None]
    frame = pl.DataFrame({"=name": texts, "n": range(-4, 5), "c": pl.Series(texts, dtype=pl.Categorical)})
    write(frame, tmp_path / "t.csv")
    safe = pl.read_csv(tmp_path / "t.csv")
    expected = ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "'\rx", "a=1", "", None]
    assert safe["'=name"].to_list() == expected
    assert safe["c"].to_list() == expected
    assert safe["n"].to_list() == list(range(-4, 5))
    write(frame, tmp_path / "t.csv", safe_csv=False)
    assert pl.read_csv(tmp_path / "t.csv")["=name"].to_list() == texts


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.csv.gz"])
def test_unknown_suffix_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"must end in \.parquet, \.csv, \.arrow, \.feather"):
        write(FRAME, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_write_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the folder .*absent does not exist\. Create it"):
        write(FRAME, tmp_path / "absent" / "t.csv")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "old")
    with pytest.raises(SourceError, match=r"t\.csv: cannot be written as \.csv"):
        write(pl.DataFrame({"a": [[1, 2]]}), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_a_full_disk(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path / f"t{suffix}", "old")
    big = pl.DataFrame({"a": [f"{number * 7919 % 100_003}" for number in range(100_000)]})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(SourceError) as caught:
            write(big, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(SourceError, match=r"could not be written .*Permission denied.*Check the rights"):
        write(FRAME, tmp_path / "t.csv")


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "new"

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace, sync = Path.replace, os.fsync
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), replace(self, to))[1])
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), sync(handle))[1])
    write(FRAME, tmp_path / "t.parquet")
    assert order == ["sync", "rename", "sync"]


def test_atomic_write_respects_the_umask(tmp_path: Path) -> None:
    write(FRAME, tmp_path / "t.csv")
    plain = put(tmp_path / "plain", "x")
    assert (tmp_path / "t.csv").stat().st_mode == plain.stat().st_mode


def test_atomic_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for text, replace in (("one", False), ("two", True)):
        with atomic_folder(path, replace=replace) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / "f").write_text(text)
        assert (path / "sub" / "f").read_text() == text
    with pytest.raises(SourceError, match=r"model: already exists"), atomic_folder(path):
        pytest.fail("must not get here")

    def fail() -> None:
        with atomic_folder(path, replace=True) as temporary:
            (temporary / "f").write_text("half")
            raise OSError("no space left")

    with pytest.raises(SourceError, match=r"model: could not be written \(no space left\)"):
        fail()
    assert (path / "sub" / "f").read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_folder_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as temporary:
        (temporary / "f").write_text("one")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(SourceError, match="busy"), atomic_folder(path, replace=True) as temporary:
        (temporary / "f").write_text("two")
    assert (path / "f").read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------------------------------------- fingerprint

EVERYTHING = {
    "i": pl.Series([1, None, 3], dtype=pl.Int16),
    "big": pl.Series([2**70, None, 3], dtype=pl.Int128),
    "f": pl.Series([1.5, float("nan"), None]),
    "s": pl.Series(["a", None, "bc"]),
    "c": pl.Series(["x", None, "y"], dtype=pl.Categorical),
    "e": pl.Series(["x", None, "y"], dtype=pl.Enum(["y", "x"])),
    "b": pl.Series([True, None, False]),
    "d": pl.Series([date(2024, 1, 1), None, date(1969, 1, 1)]),
    "t": pl.Series([datetime(2024, 1, 1, tzinfo=UTC), None, datetime(2025, 1, 1, tzinfo=UTC)]),
    "time": pl.Series([time(1), None, time(2)]),
    "span": pl.Series([timedelta(1), None, timedelta(2)]),
    "m": pl.Series([Decimal("1.50"), None, Decimal("2.25")]),
    "l": pl.Series([[1], None, [2, 3]]),
    "raw": pl.Series([b"a", None, b"b"]),
    "null": pl.Series([None, None, None]),
}


def test_fingerprint_ignores_chunks_and_sees_every_change() -> None:
    frame = pl.DataFrame(EVERYTHING)
    whole = fingerprint(frame)
    assert fingerprint(pl.concat([frame[:1], frame[1:]], rechunk=False)) == whole
    changed = {
        whole,
        fingerprint(frame.reverse()),
        fingerprint(frame[:2]),
        fingerprint(frame.select(pl.exclude("i"))),
    }
    for name, dtype in frame.schema.items():
        changed.add(fingerprint(frame.rename({name: name + "_"})))
        if dtype != pl.Null:
            changed.add(fingerprint(frame.with_columns(pl.col(name).reverse())))
            changed.add(fingerprint(frame.with_columns(pl.col(name).shift(1))))
    assert len(changed) == 4 + frame.width * 3 - 2
    assert fingerprint(pl.DataFrame({"a": ["x", "yz"]})) != fingerprint(pl.DataFrame({"a": ["xy", "z"]}))


def test_fingerprint_is_the_same_in_another_process() -> None:
    table = "{'a': ['x', None], 'b': [1, 2]}"
    code = f"import polars, tabdiff.files as s; print(s.fingerprint(polars.DataFrame({table})))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    expected = fingerprint(pl.DataFrame({"a": ["x", None], "b": [1, 2]}))
    assert output == expected
    # The layout, byte by byte: bundles keep fingerprints, so a new version must compute the same.
    text = b"'a':String:2;" + bytes([0, 1]) + struct.pack("<2I", 1, 0) + b"x"
    numbers = b"'b':Int64:2;" + bytes([0, 0]) + struct.pack("<2q", 1, 2)
    assert expected == hashlib.sha256(text + numbers).hexdigest()


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8).filter(
    lambda text: text.strip() not in {*csv_files.NULL_TEXTS, ""} and text[0] not in "=+-@\t'"
)


@given(st.lists(st.tuples(cells, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, float]]) -> None:
    # A letter in front keeps the text from being read as a number, which is not what is tested here.
    frame = pl.DataFrame({"text": ["t" + text for text, _ in table], "x": [x for _, x in table]})
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    write(frame, path)
    assert read(path).collect().equals(frame)
