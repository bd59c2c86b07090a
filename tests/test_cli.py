"""The command line: what it writes, what it prints where, and how it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from tabdiff import TabdiffError, doctor, errors
from tabdiff.cli import app
from tests.conftest import make_mixed_table

RUN = [sys.executable, "-c", "from tabdiff.cli import main; main()"]
QUICK = ("--set", "train.steps=40", "--set", "train.batch_size=64", "--set", "network.width=16")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """The message of a command that fails on purpose; with --json it is on stdout too, and nothing else."""
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(("error: ", "note: "))
    assert "Traceback" not in result.output
    if "--json" in arguments:
        error = json.loads(result.stdout)["error"]
        assert issubclass(getattr(errors, error["type"]), TabdiffError)
        assert error["message"] in result.stderr
    else:
        assert result.stdout == ""
    return " ".join(result.stderr.split())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def table(tmp_path: Path, fitted_table: pl.DataFrame) -> Path:
    path = tmp_path / "table.parquet"
    fitted_table.write_parquet(path)
    return path


@pytest.fixture
def model(tmp_path: Path, small_bundle: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "model"))


# ---------------------------------------------------------------------------------------------- the command


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    def seconds(code: str) -> float:
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            taken.append(time.perf_counter() - started)
        return min(taken)

    code = (
        "import sys; sys.argv = ['tabdiff', '--help']\n"
        "from tabdiff.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'polars', 'sklearn', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    # 0.3 s on a quiet machine; a busy one shows in the bare start of Python as well.
    bare = seconds("pass")
    assert seconds(code) < 0.3 + 10 * bare


def test_help_documents_exit_codes_and_every_command() -> None:
    text = " ".join(ok("--help").stdout.split())
    assert "Exit codes: 0 done; 1 an error" in text
    for command in ("fit", "score", "sample", "impute", "show", "config", "doctor", "demo"):
        assert f" {command} " in text
        assert "--json" in ok(command, "--help").stdout


def test_version() -> None:
    from importlib import metadata

    assert ok("--version").stdout.strip() == f"tabdiff {metadata.version('tabdiff')}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit"],
        ["nonsense"],
        ["sample", "m", "--rows", "many", "--out", "a.csv"],
        ["sample", "m", "--sampler", "x"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr("tabdiff.bundle.Bundle.read", lambda path: 1 / 0)
    assert isinstance(call("show", model).exception, ZeroDivisionError)


# ------------------------------------------------------------------------------------------------ the verbs


def test_fit_score_sample_impute_show(tmp_path: Path, table: Path, fitted_table: pl.DataFrame) -> None:
    model = tmp_path / "model"
    fitted = json.loads(ok("fit", table, "--out", model, *QUICK, "--json").stdout)
    assert fitted["report"]["steps"] == 40
    assert fitted["not_modelled"] == {"order_id": "id", "remark": "ignore"}
    assert names(tmp_path) == {"table.parquet", "model"}

    scored = json.loads(
        ok("score", model, table, "--out", tmp_path / "s.parquet", "--contamination", 0.05, "--json").stdout
    )
    scores = pl.read_parquet(tmp_path / "s.parquet")
    assert (scored["rows"], scored["flagged"]) == (400, 20) == (scores.height, scores["flagged"].sum())
    assert scores["order_id"].equals(fitted_table["order_id"])
    assert scores.columns[1:5] == ["row", "score", "p_value", "flagged"]

    ok(
        "sample",
        model,
        "--rows",
        30,
        "--out",
        tmp_path / "r.parquet",
        "--given",
        "channel=shop",
        "--given",
        "items=2",
    )
    rows = pl.read_parquet(tmp_path / "r.parquet")
    assert rows.height == 30
    assert set(rows["channel"]) == {"shop"}
    assert set(rows["items"]) == {2}
    missing = ok("sample", model, "--rows", 5, "--out", tmp_path / "r.parquet", "--given", "rating=", "--json")
    assert json.loads(missing.stdout)["given"] == {"rating": None}
    assert pl.read_parquet(tmp_path / "r.parquet")["rating"].null_count() == 5

    filled = json.loads(ok("impute", model, table, "--out", tmp_path / "f.parquet", "--draws", 3, "--json").stdout)
    assert filled["filled"] == {"rating": fitted_table["rating"].null_count()}
    assert pl.read_parquet(tmp_path / "f.parquet").drop("rating").equals(fitted_table.drop("rating"))

    shown = json.loads(ok("show", model, "--json").stdout)
    assert [column["name"] for column in shown["schema"]["columns"]] == fitted_table.columns
    assert shown["report"] == fitted["report"]
    text = ok("show", model).stdout
    assert "web, shop, " in text
    assert str(model / "card.md") in text


def test_summaries_say_what_next(tmp_path: Path, table: Path) -> None:
    out = tmp_path / "my model"
    first = ok("fit", table, "--out", out, *QUICK)
    assert f"Next: tabdiff score '{out}' {table} --out scores.parquet" in first.stdout
    assert "step 40/40" in first.stderr
    assert "step 40/40" not in first.stdout
    scored = ok("score", out, table, "--out", tmp_path / "s.parquet", "--fdr", 1e-9)
    assert "Nothing is flagged" in scored.stdout
    assert "no p-value is below" in scored.stdout
    again = ok("fit", table, "--out", out, *QUICK)  # a model may be replaced
    assert again.exit_code == 0


def test_samples_repeat_by_seed(tmp_path: Path, model: Path) -> None:
    frames = []
    for seed in (1, 1, 2):
        ok(
            "sample",
            model,
            "--rows",
            20,
            "--out",
            tmp_path / "r.csv",
            "--seed",
            seed,
            "--sampler",
            "ddpm",
            "--steps",
            5,
        )
        frames.append((tmp_path / "r.csv").read_text())
    assert frames[0] == frames[1] != frames[2]


def test_config_prints_toml_that_fit_reads(tmp_path: Path, table: Path) -> None:
    import tomllib

    text = ok("config").stdout
    assert tomllib.loads(text)["train"]["seed"] == 0
    options = tmp_path / "fit.toml"
    options.write_text(text)
    columns = tmp_path / "columns.toml"
    columns.write_text('[columns.items]\nrole = "id"\n')
    fitted = ok("fit", table, "--out", tmp_path / "m", "--config", options, "--columns", columns, *QUICK, "--json")
    assert json.loads(fitted.stdout)["not_modelled"]["items"] == "id"
    schema = json.loads(ok("config", "--json").stdout)
    assert "train" in schema["properties"]


def test_rows_of_a_database(tmp_path: Path, model: Path, fitted_table: pl.DataFrame) -> None:
    frame = fitted_table.with_columns(pl.col("ordered").dt.to_string("%Y-%m-%d %H:%M:%S"))
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute(f"create table orders ({', '.join(frame.columns)})")
        connection.executemany(f"insert into orders values ({', '.join('?' * frame.width)})", frame.rows())
    connection.close()
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    result = ok("score", model, url, "--query", "select * from orders limit 7", "--out", tmp_path / "s.csv", "--json")
    assert json.loads(result.stdout)["rows"] == 7
    assert "query" in refused("score", model, url, "--out", tmp_path / "t.csv")


def test_keys_that_collide_with_results_are_renamed(tmp_path: Path) -> None:
    frame = make_mixed_table(120).select(pl.col("order_id").alias("score"), "weight", "price")
    frame.write_csv(tmp_path / "t.csv")
    (tmp_path / "c.toml").write_text('[columns.score]\nrole = "id"\n')
    ok("fit", tmp_path / "t.csv", "--out", tmp_path / "m", "--columns", tmp_path / "c.toml", *QUICK)
    ok("score", tmp_path / "m", tmp_path / "t.csv", "--out", tmp_path / "s.parquet")
    scores = pl.read_parquet(tmp_path / "s.parquet")
    assert scores["input_score"].to_list() == frame["score"].to_list()
    assert scores["score"].dtype == pl.Float64


def test_unknown_category_and_extra_column(tmp_path: Path, fitted_table: pl.DataFrame) -> None:
    common = fitted_table.filter(pl.col("channel").is_in(["web", "shop"])).select("weight", "price", "channel")
    common.write_parquet(tmp_path / "common.parquet")
    ok("fit", tmp_path / "common.parquet", "--out", tmp_path / "m", *QUICK)
    channel = pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("pigeon")).otherwise("channel")
    common.with_columns(channel=channel, extra=pl.lit(1)).write_parquet(tmp_path / "odd.parquet")
    result = ok(
        "score",
        tmp_path / "m",
        tmp_path / "odd.parquet",
        "--out",
        tmp_path / "s.csv",
        "--contamination",
        0.03,
    )
    assert "note: columns not in the schema were dropped: ['extra']" in result.stderr
    row = pl.read_csv(tmp_path / "s.csv", infer_schema_length=None).row(3, named=True)
    assert row["flagged"]
    assert row["column_1"] == "channel"
    assert row["expected_1"] in ("web", "shop")


@pytest.mark.parametrize("form", ["utf-16", "semicolon"])
def test_usual_csv_dialects(tmp_path: Path, model: Path, fitted_table: pl.DataFrame, form: str) -> None:
    path = tmp_path / "t.csv"
    text = fitted_table.write_csv(separator=";" if form == "semicolon" else ",")
    path.write_text(text, encoding="utf-16" if form == "utf-16" else "utf-8")
    ok("score", model, path, "--out", tmp_path / "s.parquet")
    plain = tmp_path / "plain.csv"
    fitted_table.write_csv(plain)
    ok("score", model, plain, "--out", tmp_path / "p.parquet")
    assert pl.read_parquet(tmp_path / "s.parquet").equals(pl.read_parquet(tmp_path / "p.parquet"))


def test_columns_that_say_nothing_are_fitted(tmp_path: Path, fitted_table: pl.DataFrame) -> None:
    frame = fitted_table.select("weight", "price", nothing=pl.lit(None, pl.Float64), constant=pl.lit(7))
    frame.write_parquet(tmp_path / "t.parquet")
    ok("fit", tmp_path / "t.parquet", "--out", tmp_path / "m", *QUICK)
    ok("sample", tmp_path / "m", "--rows", 10, "--out", tmp_path / "r.parquet")
    rows = pl.read_parquet(tmp_path / "r.parquet")
    assert rows["nothing"].null_count() == 10
    assert set(rows["constant"]) == {7}


# ------------------------------------------------------------------------------------------------- refusals


def numbers(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"a": np.linspace(0, 1, 40), "b": np.linspace(0, 1, 40) ** 2}).with_columns(**columns)


def at(value: float) -> pl.Expr:
    return pl.when(pl.int_range(40) == 4).then(value).otherwise("b")


BAD_TABLES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "empty file": (lambda path: path.write_bytes(b""), ("bad.csv", "empty", "Write it again")),
    "header only": (lambda path: path.write_text("a,b\n"), ("bad.csv", "rows below the header", "again")),
    "one row": (lambda path: path.write_text("a,b\n1,2\n"), ("at least", "1 row", "rows")),
    "all null": (
        lambda path: path.write_text("a,b\n" + ",\n" * 30),
        ("nothing is left to model", "a (", "override"),
    ),
    "inf": (
        lambda path: numbers(b=at(np.inf)).write_csv(path),
        ("'b'", "finite", "inf in row 5", "empty the cells"),
    ),
    "1e300": (
        lambda path: numbers(b=at(1e300)).write_csv(path),
        ("'b'", "1e30", "1e+300 in row 5", "empty those"),
    ),
    "twice": (lambda path: path.write_text("a,a\n1,2\n3,4\n"), ("bad.csv", "['a'] more than once", "Rename")),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_fit_refuses(tmp_path: Path, name: str) -> None:
    make, parts = BAD_TABLES[name]
    make(tmp_path / "bad.csv")
    message = refused("fit", tmp_path / "bad.csv", "--out", tmp_path / "model", *QUICK, "--json")
    for part in parts:
        assert part in message
    assert names(tmp_path) == {"bad.csv"}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: f.drop("price"), ("'price'", "no such column", "Add the column")),
        (
            lambda f: f.with_columns(price=pl.lit("cheap")),
            ("'price'", "must be a number", "'cheap' in row 1"),
        ),
        (lambda f: f.with_columns(weight=pl.lit(-np.inf)), ("'weight'", "finite", "-inf in row 1")),
        (lambda f: f.clear(), ("rows", "0 rows")),
        (lambda f: f.drop("price").with_columns(express=pl.lit(7)), ("2 problems", "'price'", "'express'")),
    ],
)
@pytest.mark.parametrize("verb", ["score", "impute"])
def test_tables_that_do_not_fit_the_model(
    tmp_path: Path,
    model: Path,
    fitted_table: pl.DataFrame,
    verb: str,
    change: Callable[[Any], Any],
    parts: tuple[str],
) -> None:
    change(fitted_table).write_parquet(tmp_path / "bad.parquet")
    message = refused(verb, model, tmp_path / "bad.parquet", "--out", tmp_path / "out.parquet", "--json")
    for part in parts:
        assert part in message
    assert names(tmp_path) == {"bad.parquet", "model"}


@pytest.mark.parametrize("keep", [20, 0.5, 0.99])
def test_truncated_parquet(tmp_path: Path, table: Path, model: Path, keep: float) -> None:
    content = table.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    assert "cut.parquet" in refused("score", model, tmp_path / "cut.parquet", "--out", tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()


def test_damage_inside_parquet(tmp_path: Path, table: Path, model: Path) -> None:
    content = bytearray(table.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)  # the footer is whole, the pages are not
    (tmp_path / "hole.parquet").write_bytes(content)
    message = refused("score", model, tmp_path / "hole.parquet", "--out", tmp_path / "s.parquet")
    assert "hole.parquet" in message
    assert "again" in message


@pytest.mark.parametrize("damage", ["missing", "altered", "truncated", "no manifest", "no folder"])
@pytest.mark.parametrize("verb", ["show", "sample"])
def test_broken_models(tmp_path: Path, model: Path, damage: str, verb: str) -> None:
    file = model / "weights.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "altered":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "no manifest":
        (model / "manifest.json").unlink()
    else:
        shutil.rmtree(model)
    rest = ("--rows", 5, "--out", tmp_path / "r.csv") if verb == "sample" else ()
    message = refused(verb, model, *rest, "--json")
    name = {"no manifest": "manifest.json", "no folder": "not a folder"}.get(damage, "weights.safetensors")
    assert name in message
    assert any(cure in message for cure in ("Restore the folder", "Is it a model?", "Check the path"))
    assert not (tmp_path / "r.csv").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--set", "train.stepps=3"), ("unknown option 'train.stepps'", "tabdiff config")),
        (("--set", "train.steps=-3"), ("'train.steps'", "got -3")),
        (("--set", "train.steps"), ("section.key=value", "Example")),
        (("--config", "absent.toml"), ("absent.toml", "Check the path")),
        (("--resume", "--restart"), ("--resume", "Leave one of them out")),
    ],
)
def test_bad_options_of_fit(tmp_path: Path, table: Path, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    message = refused("fit", table, "--out", tmp_path / "m", *options, "--json")
    for part in parts:
        assert part in message
    assert names(tmp_path) == {"table.parquet"}


def test_config_file_with_unknown_key(tmp_path: Path, table: Path) -> None:
    (tmp_path / "fit.toml").write_text("[train]\nspeed = 3\n")
    message = refused("fit", table, "--out", tmp_path / "m", "--config", tmp_path / "fit.toml")
    assert "unknown option 'train.speed'" in message


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--rows", 0), ("at least 1; got 0",)),
        (("--rows", 5, "--given", "wing=3"), ("'wing'", "must be modelled", "Modelled columns: weight")),
        (("--rows", 5, "--given", "channel=pigeon"), ("'channel'", "seen in training", "'pigeon'")),
        (("--rows", 5, "--given", "express=pigeon"), ("'express'", "true or false", "'pigeon'")),
        (("--rows", 5, "--given", "price=cheap"), ("'price'", "must be a number", "'cheap'")),
        (("--rows", 5, "--given", "channel"), ("COLUMN=VALUE", "'channel'", "Example")),
        (("--rows", 5, "--given", "items=1", "--given", "items=2"), ("'items' twice", "Leave one")),
    ],
)
def test_bad_options_of_sample(tmp_path: Path, model: Path, options: tuple[Any, ...], parts: tuple[str, ...]) -> None:
    message = refused("sample", model, *options, "--out", tmp_path / "r.csv", "--json")
    for part in parts:
        assert part in message
    assert names(tmp_path) == {"model"}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--fdr", 0.1, "--contamination", 0.1), ("--fdr and --contamination", "Leave one")),
        (("--fdr", 2), ("fdr is a share inside (0, 1); got 2", "Example")),
        (("--contamination", 0), ("contamination is a share", "got 0")),
    ],
)
def test_bad_rules_of_score(
    tmp_path: Path, table: Path, model: Path, options: tuple[Any, ...], parts: tuple[str, ...]
) -> None:
    message = refused("score", model, table, "--out", tmp_path / "s.parquet", *options)
    for part in parts:
        assert part in message
    assert names(tmp_path) == {"model", "table.parquet"}


@pytest.mark.parametrize("verb", ["fit", "score", "sample", "impute"])
def test_unwritable_output_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, table: Path, model: Path, verb: str
) -> None:
    monkeypatch.setattr("tabdiff.commands.tables.read_table", lambda *_: pytest.fail("read the data first"))
    monkeypatch.setattr("tabdiff.commands.tables.load_model", lambda *_: pytest.fail("loaded the model first"))
    given = {"fit": (table,), "sample": (model, "--rows", 5)}.get(verb, (model, table))
    for out in (tmp_path / "absent" / "out.csv", table / "out.csv", Path("/proc/out.csv")):
        assert str(out) in refused(verb, *given, "--out", out)
    if verb == "fit":
        (tmp_path / "precious").mkdir()
        assert "only a model may be replaced" in refused(verb, *given, "--out", tmp_path / "precious")
        assert "only a model may be replaced" in refused(verb, *given, "--out", table)
    else:
        assert ".parquet, .csv" in refused(verb, *given, "--out", tmp_path / "out.xlsx")
        assert "a folder of that name" in refused(verb, *given, "--out", shutil.copytree(model, tmp_path / "x.csv"))
    assert table.exists()


# -------------------------------------------------------------------------------------------- interruptions


def tensors(model: Path) -> bytes:
    return (model / "weights.safetensors").read_bytes()


def start_and_wait_for_checkpoint(arguments: list[str], checkpoint: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([*RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    while not (checkpoint / "progress.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_killed_fit_resumes_to_the_same_model(tmp_path: Path, table: Path) -> None:
    long = ["--set", "train.steps=600", "--set", "train.evaluate_every=20", "--set", "train.patience=99"]
    small = ["--set", "train.batch_size=128", "--set", "network.width=16"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ok("fit", table, "--out", whole, *long, *small)
    arguments = ["fit", str(table), "--out", str(cut), *long, *small]
    process = start_and_wait_for_checkpoint(arguments, tmp_path / "cut.checkpoint")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not cut.exists()
    assert "--resume to go on with it, or --restart" in refused(*arguments)
    resumed = subprocess.run([*RUN, *arguments, "--resume"], capture_output=True, text=True, check=True)
    assert resumed.stderr.startswith("fitting: step ")
    assert not resumed.stderr.startswith("fitting: step 20/")
    assert tensors(cut) == tensors(whole)
    assert not (tmp_path / "cut.checkpoint").exists()


@pytest.mark.slow
def test_ctrl_c_is_130_and_says_how_to_go_on(tmp_path: Path, table: Path) -> None:
    arguments = ["fit", str(table), "--out", str(tmp_path / "m"), "--set", "train.evaluate_every=20"]
    process = start_and_wait_for_checkpoint(arguments, tmp_path / "m.checkpoint")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "interrupted. The same command with --resume goes on" in stderr
    assert "Traceback" not in stderr
    restarted = ok(*arguments, "--restart", "--set", "train.steps=10", "--set", "network.width=16")
    assert "step 10/10" in restarted.stderr


def test_resume_without_a_checkpoint_starts_anew_with_a_note(tmp_path: Path, table: Path) -> None:
    result = ok("fit", table, "--out", tmp_path / "m", "--resume", *QUICK)
    assert "note: nothing to resume" in result.stderr


# ---------------------------------------------------------------------------------------- through a process


def test_streams_of_a_real_process(tmp_path: Path, table: Path, model: Path) -> None:
    environment = {**os.environ, "NO_COLOR": "1"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*RUN, *(str(argument) for argument in arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    good = run("score", model, table, "--out", tmp_path / "s.parquet", "--json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["rows"] == 400
    bad = run("score", model, tmp_path / "absent.csv", "--out", tmp_path / "s.parquet", "--json")
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["error"]["type"] == "SourceError"
    assert bad.stderr.startswith("error: ")
    assert "\x1b" not in run("show", model).stdout
    assert run("score").returncode == 2


# --------------------------------------------------------------------------------------------------- doctor


def test_doctor() -> None:
    result = ok("doctor", "--json")
    found = json.loads(result.stdout)
    assert [check["name"] for check in found["checks"]][:3] == ["python", "packages", "torch"]
    assert "ok       python" in ok("doctor").stdout


@pytest.mark.parametrize("builds", [(), ("onnxruntime",), ("onnxruntime-gpu",)])
def test_doctor_one_onnxruntime(monkeypatch: pytest.MonkeyPatch, builds: tuple[str, ...]) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "1.31.1" if name in builds else None)
    check = doctor._onnxruntime()
    assert check.ok
    assert (builds[0] if builds else "not installed") in check.found


def test_doctor_two_onnxruntimes_and_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("torch", "scikit-learn") else "1.31.1")
    text = ok("doctor").stdout
    assert "warning  onnxruntime" in text
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in text
    assert "To cure torch: Run pip install 'tabdiff[train]'" in text


def test_doctor_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not doctor._folder(tmp_path / "absent").ok
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    assert doctor._folder(tmp_path).cure == "Make room on this disk."


def test_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch, table: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tabdiff.api", None)
    monkeypatch.delattr("tabdiff.api", raising=False)

    def without(*_: object) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("builtins.__import__", blocked(without))
    assert "pip install 'tabdiff[train]'" in refused("fit", table, "--out", tmp_path / "m", *QUICK)


def blocked(instead: Callable[..., Any]) -> Callable[..., Any]:
    """`__import__` without `from tabdiff import api`."""
    usual = __import__

    def importer(name: str, *rest: Any) -> Any:
        return instead() if name == "tabdiff" and len(rest) > 2 and "api" in (rest[2] or ()) else usual(name, *rest)

    return importer
