"""The jobs of a workspace without a scheduler: every row scored exactly once, whatever happens to the source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import psycopg
import pytest
from scipy import stats

from tabdiff.errors import BundleError, ConfigError, SchemaError, SourceError, StoreError
from tabdiff.operations import (
    MonitorJob,
    ScoreJob,
    SynthesizeJob,
    TrainJob,
    drift,
    monitor,
    new_rows,
    score_new,
    synthesize,
    train,
)
from tabdiff.operations.training import split
from tabdiff.store import Workspace
from tests.databases import Postgres
from tests.workspaces import QUICK, files_without_a_row, orders, scored_ids, with_champion


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def workspace(tmp_path: Path, database_url: str, small_bundle: Path) -> Workspace:
    return with_champion(tmp_path / "home", database_url, small_bundle)


@pytest.fixture
def on_sqlite(tmp_path: Path, small_bundle: Path) -> Workspace:
    return with_champion(tmp_path / "home", None, small_bundle)


def job(**options: object) -> ScoreJob:
    made: ScoreJob = ScoreJob.of(**{"source": "orders", "model": "orders", "contamination": 0.05, **options})
    return made


# ---------------------------------------------------------------------------------------------- by file


def test_new_files_are_scored_once_in_parts(workspace: Workspace, data: Path) -> None:
    workspace.sources.add("orders", location=str(data), keys=("order_id",))
    assert score_new(workspace, job())["rows"] == 0  # an empty folder is nothing new
    orders(50, 0).write_parquet(data / "a.parquet")
    orders(10, 50).write_csv(data / "b.csv")
    pl.DataFrame(schema=orders(1, 0).schema).write_parquet(data / "empty.parquet")
    workspace.sources.add("orders", replace=True, location=str(data), keys=("order_id",), settle=0.05)
    done = score_new(workspace, job(rows_per_part=20, max_parts=2))
    assert (done["rows"], done["parts"], done["more"]) == (40, 2, True)
    done = score_new(workspace, job(rows_per_part=20))
    assert (done["rows"], done["parts"], done["more"]) == (20, 3, False)
    assert score_new(workspace, job())["rows"] == 0
    assert scored_ids(workspace) == list(range(60))
    assert files_without_a_row(workspace) == []


def test_scores_are_those_of_the_champion(workspace: Workspace, data: Path, small_model) -> None:  # type: ignore[no-untyped-def]
    rows = orders(60, 0, seed=4)
    rows.write_parquet(data / "a.parquet")
    workspace.sources.add("orders", location=str(data))
    result = score_new(workspace, job(contamination=0.1))
    truth = small_model.score(rows, contamination=0.1)
    part = workspace.scores.partitions()[0]
    found = pl.read_parquet(part["file"])
    assert np.allclose(found["score"].to_numpy(), truth.score, rtol=1e-6)
    assert found["flagged"].to_list() == truth.flagged.tolist()
    assert (result["flagged"], part["version"]) == (6, 1)
    alerts = workspace.scores.alerts(run_id=result["run"])
    worst = int(truth.score.argmax())
    assert (alerts[0]["row"], len(alerts)) == (worst, 6)
    assert [r["column"] for r in alerts[0]["reasons"]] == [name for name, _ in truth.top_columns(worst)]
    assert alerts[0]["values"]["price"] == rows["price"][worst]


def test_half_a_file_waits_for_the_other_half(
    on_sqlite: Workspace, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_sqlite.sources.add("orders", location=str(data), settle=0.3)
    whole = data / "whole.parquet"
    orders(20, 0).write_parquet(whole)
    (data / "half.parquet").write_bytes(whole.read_bytes()[:3000])
    (data / "empty.csv").touch()
    text = orders(20, 20).write_csv().splitlines(keepends=True)
    growing = data / "growing.csv"
    growing.write_text("".join(text[:5]))
    with monkeypatch.context() as patch:  # its writer goes on while it is looked at
        patch.setattr(new_rows.time, "sleep", lambda _: growing.write_text("".join(text)))
        result = score_new(on_sqlite, job())
    kinds = {finding["subject"]: finding["kind"] for finding in result["findings"]}
    assert kinds == {"half.parquet": "unreadable", "empty.csv": "unreadable", "growing.csv": "unfinished"}
    assert scored_ids(on_sqlite) == list(range(20))
    orders(5, 40).write_parquet(data / "half.parquet")
    score_new(on_sqlite, job())
    assert scored_ids(on_sqlite) == list(range(45))
    told = [event["kind"] for event in on_sqlite.events.latest()]
    assert sorted(set(told)) == ["source_unfinished", "source_unreadable"]


def test_a_replaced_file_is_told_of_and_scored_again_on_request(on_sqlite: Workspace, data: Path) -> None:
    on_sqlite.sources.add("orders", location=str(data))
    orders(20, 0).write_parquet(data / "a.parquet")
    score_new(on_sqlite, job(rows_per_part=10, max_parts=1))  # half of it
    orders(30, 100).write_parquet(data / "a.parquet")
    result = score_new(on_sqlite, job())
    assert [finding["kind"] for finding in result["findings"]] == ["changed"]
    assert scored_ids(on_sqlite) == list(range(10))
    number = on_sqlite.sources.get("orders")[0]
    on_sqlite.scores.forget(on_sqlite.scores.stream(number, "orders"), "a.parquet")
    score_new(on_sqlite, job())
    assert scored_ids(on_sqlite) == list(range(100, 130))


def test_a_file_of_another_schema_does_not_stop_the_others(on_sqlite: Workspace, data: Path) -> None:
    on_sqlite.sources.add("orders", location=str(data))
    orders(20, 0).drop("price").write_parquet(data / "a.parquet")
    orders(20, 20).write_parquet(data / "b.parquet")
    for _ in range(2):
        result = score_new(on_sqlite, job())
        assert [(f["kind"], f["subject"]) for f in result["findings"]] == [("schema", "a.parquet")]
        assert "price" in result["findings"][0]["reason"]
    assert scored_ids(on_sqlite) == list(range(20, 40))
    assert len(on_sqlite.events.latest()) == 1  # told once


def test_a_folder_that_is_gone_is_an_error(on_sqlite: Workspace, data: Path) -> None:
    on_sqlite.sources.add("orders", location=str(data / "gone"))
    with pytest.raises(SourceError, match="gone"):
        score_new(on_sqlite, job())
    assert on_sqlite.runs.latest()[0]["status"] == "failed"


@pytest.mark.parametrize("marker", [None, "_SUCCESS"])
def test_subfolders_are_scored_when_complete(on_sqlite: Workspace, data: Path, marker: str | None) -> None:
    on_sqlite.sources.add("orders", location=str(data), new="partition", marker=marker)
    for day in range(3):
        folder = data / f"day=2024-01-0{day + 1}"
        folder.mkdir()
        for part in range(2):
            orders(10, 20 * day + 10 * part).write_parquet(folder / f"{part}.parquet")
        if marker and day < 2:
            (folder / marker).touch()
    assert score_new(on_sqlite, job())["rows"] == 40  # the last one is not complete
    assert scored_ids(on_sqlite) == list(range(40))
    if marker:
        (data / "day=2024-01-03" / marker).touch()
    else:
        (data / "day=2024-01-04").mkdir()
    score_new(on_sqlite, job())
    assert scored_ids(on_sqlite) == list(range(60))


# ---------------------------------------------------------------------------------------------- by a column that grows


def growing_files(data: Path, workspace: Workspace, column: str, lateness: float) -> Callable[[pl.DataFrame], None]:
    workspace.sources.add("orders", location=str(data), new="column", column=column, lateness=lateness)
    return lambda frame: frame.write_parquet(data / f"{len(list(data.iterdir()))}.parquet")


def test_rows_above_the_watermark_are_scored(workspace: Workspace, data: Path) -> None:
    append = growing_files(data, workspace, "order_id", 5)
    append(orders(50, 0))
    assert score_new(workspace, job(rows_per_part=20))["parts"] == 3
    assert scored_ids(workspace) == list(range(45))  # the last five values may still get company
    append(orders(20, 50))
    score_new(workspace, job())
    assert scored_ids(workspace) == list(range(65))
    late = orders(2, 10)
    append(late)
    result = score_new(workspace, job())
    assert (result["rows"], result["late"]) == (0, 2)
    assert workspace.events.latest()[0]["kind"] == "late_rows"
    assert scored_ids(workspace) == list(range(65))


def test_late_rows_are_scored_once_by_the_rule(workspace: Workspace, data: Path) -> None:
    options = {"location": str(data), "new": "column", "column": "items", "lateness": 0.0, "late_within": 10.0}
    with pytest.raises(ConfigError, match="needs keys"):
        workspace.sources.add("orders", **options)
    workspace.sources.add("orders", **options, keys=("order_id",))

    def append(first: int, values: list[int]) -> None:
        frame = orders(len(values), first).with_columns(items=pl.Series(values))
        frame.write_parquet(data / f"{len(list(data.iterdir()))}.parquet")

    def look(**asked: object) -> tuple[int, int, int]:
        found = score_new(workspace, job(**asked))
        return found["rows"], found["late_scored"], found["late"]

    append(0, list(range(30, 60)))
    assert look() == (30, 0, 0)
    # Above, just inside, on the edge of and far below what is still scored; one row has the key of another.
    append(100, [61, 59, 52, 51, 49, 20])
    append(0, [55])
    assert look(rows_per_part=2) == (3, 2, 4)  # the watermark is 61 now: 52 and 59 are within 10 of it
    assert look() == (0, 0, 4)
    assert scored_ids(workspace) == sorted([*range(30), 100, 101, 102])
    append(200, [58])
    assert look() == (1, 1, 4)
    stream = workspace.scores.stream(workspace.sources.get("orders")[0], "orders")
    assert stream.watermark == {"kind": "int", "value": 61}
    # Where retention has taken score files nobody can tell any more which rows they had.
    workspace.database.write(
        lambda connection: connection.exec_driver_sql("UPDATE partitions SET file = NULL WHERE unit = '(59,61]'")
    )
    append(300, [60])
    assert look() == (0, 0, 5)


@pytest.mark.filterwarnings("ignore:columns not in the schema")
def test_late_rows_are_known_by_keys_of_any_name_and_type(on_sqlite: Workspace, data: Path) -> None:
    options = {"location": str(data), "new": "column", "column": "items", "late_within": 10.0, "keys": ("row",)}
    on_sqlite.sources.add("orders", **options)

    def append(first: int, values: list[int], kind: type[pl.DataType]) -> None:
        frame = orders(len(values), first).with_columns(items=pl.Series(values)).rename({"order_id": "row"})
        for part in data.iterdir():
            pl.read_parquet(part).with_columns(pl.col("row").cast(kind)).write_parquet(part)
        frame.with_columns(pl.col("row").cast(kind)).write_parquet(data / f"{len(list(data.iterdir()))}.parquet")

    append(500, [30, 31, 32], pl.Int64)  # numbers that no line of a score file has
    assert [score_new(on_sqlite, job())["rows"] for _ in range(2)] == [3, 0]
    append(0, [31], pl.String)
    assert score_new(on_sqlite, job())["late_scored"] == 1
    assert score_new(on_sqlite, job())["rows"] == 0


def test_late_rows_are_known_by_times(on_sqlite: Workspace, data: Path) -> None:
    options = {"location": str(data), "new": "column", "column": "items", "late_within": 10.0, "keys": ("ordered",)}
    on_sqlite.sources.add("orders", **options)
    frame = orders(3, 0).with_columns(items=pl.Series([30, 31, 32]))
    frame.write_parquet(data / "a.parquet")
    assert score_new(on_sqlite, job())["rows"] == 3
    late = frame.with_columns(pl.col("ordered") + pl.duration(seconds=1, microseconds=5), items=pl.lit(31, pl.Int64))
    pl.concat([frame, late[:1]]).write_parquet(data / "b.parquet")
    assert score_new(on_sqlite, job())["late_scored"] == 1
    assert score_new(on_sqlite, job())["rows"] == 0


def test_late_rows_of_a_table_are_scored_once(
    workspace: Workspace, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.make_database()
    monkeypatch.setenv("SHOP_URL", url)
    start = datetime(2024, 1, 1)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE orders (order_id int, weight float, price numeric, discount float, items int, channel text, "
            "express bool, ordered timestamp, rating int, remark text)"
        )

        def insert(first: int, hours: list[float]) -> None:
            times = [start + timedelta(hours=hour) for hour in hours]
            frame = orders(len(hours), first).with_columns(ordered=pl.Series(times))
            with connection.cursor() as cursor:
                cursor.executemany(f"INSERT INTO orders VALUES ({', '.join(['%s'] * 10)})", frame.rows())

        insert(0, list(range(48)))
        workspace.sources.add(
            "orders",
            location="env:SHOP_URL",
            table="orders",
            new="column",
            column="ordered",
            late_within=6 * 3600,
            keys=("order_id",),
        )
        assert score_new(workspace, job())["rows"] == 48
        insert(100, [46.5, 41.25, 12.0])
        found = score_new(workspace, job())
        assert (found["rows"], found["late_scored"], found["late"]) == (2, 2, 1)
        assert score_new(workspace, job())["rows"] == 0
    assert scored_ids(workspace) == [*range(48), 100, 101]


def test_times_with_ties_are_never_cut(on_sqlite: Workspace, data: Path) -> None:
    append = growing_files(data, on_sqlite, "ordered", 0)
    start = datetime(2024, 1, 1)
    times = [start + timedelta(hours=index // 7) for index in range(50)]
    append(orders(50, 0).with_columns(ordered=pl.Series(times, dtype=pl.Datetime("ns"))))
    result = score_new(on_sqlite, job(rows_per_part=10))
    assert result["rows"] == 50
    assert scored_ids(on_sqlite) == list(range(50))
    assert all(part["rows"] % 7 in (0, 1) for part in on_sqlite.scores.partitions())
    data.joinpath("0.parquet").unlink()
    append(orders(50, 50).with_columns(ordered=pl.lit(start).cast(pl.Datetime("us"))))
    with pytest.raises(SourceError, match="watermark means nothing"):
        score_new(on_sqlite, job())


def test_a_growing_source_stops_at_rows_that_do_not_fit(on_sqlite: Workspace, data: Path) -> None:
    append = growing_files(data, on_sqlite, "order_id", 0)
    append(orders(10, 0).with_columns(price=pl.lit("cheap")))
    with pytest.raises(SchemaError, match="price"):
        score_new(on_sqlite, job())
    assert on_sqlite.scores.partitions() == []
    (data / "0.parquet").unlink()
    append(orders(10, 0))
    score_new(on_sqlite, job())
    assert scored_ids(on_sqlite) == list(range(10))


def test_rows_of_a_database(workspace: Workspace, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.make_database()
    rows = orders(60, 0)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            'CREATE TABLE "Orders; DROP" (order_id int, weight float, price numeric, discount float, items int, channel text, '
            "express bool, ordered timestamp, rating int, remark text)"
        )

        def insert(frame: pl.DataFrame) -> None:
            with connection.cursor() as cursor:
                values = ", ".join(["%s"] * frame.width)
                cursor.executemany(f'INSERT INTO "Orders; DROP" VALUES ({values})', frame.rows())  # type: ignore[arg-type]

        insert(rows)
        monkeypatch.setenv("SHOP_URL", url)
        workspace.sources.add("orders", location="env:SHOP_URL", table="Orders; DROP", new="column", column="ordered")
        first = score_new(workspace, job(rows_per_part=25))
        assert (first["rows"], first["late"]) == (60, 0)
        assert score_new(workspace, job())["rows"] == 0
        later = rows["ordered"].max() + timedelta(days=1)  # type: ignore[operator]
        insert(orders(30, 60).with_columns(ordered=pl.lit(later)))
        assert score_new(workspace, job())["rows"] == 30
        assert scored_ids(workspace) == list(range(90))
        insert(orders(1, 90).with_columns(ordered=pl.lit(datetime(2020, 1, 1))))
        assert score_new(workspace, job())["late"] == 1
        workspace.sources.add("absent", location="env:SHOP_URL", table="orders", new="column", column="order_id")
        with pytest.raises(SourceError, match="no table or view"):
            score_new(workspace, job(source="absent"))
        monkeypatch.setenv("SHOP_URL", url.replace(postgres.password, "wr0ng"))
        with pytest.raises(SourceError, match="authentication failed") as caught:
            score_new(workspace, job())
    recorded = str(workspace.runs.latest()) + str(workspace.events.latest()) + str(caught.value)
    assert postgres.password not in recorded
    assert "wr0ng" not in recorded


# ---------------------------------------------------------------------------------------------- at once


def test_two_runs_at_once_score_every_row_once(workspace: Workspace, data: Path) -> None:
    workspace.sources.add("orders", location=str(data))
    for index in range(6):
        orders(30, 30 * index).write_parquet(data / f"{index}.parquet")
    results, errors = [], []
    together = threading.Barrier(2)

    def run() -> None:
        other = Workspace.open(workspace.home, workspace.database._url)
        together.wait()
        try:
            results.append(score_new(other, job(rows_per_part=15)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(result["rows"] for result in results) == 180
    assert scored_ids(workspace) == list(range(180))
    assert files_without_a_row(workspace) == []


# ---------------------------------------------------------------------------------------------- train, draw, watch


@pytest.fixture
def trained(tmp_path: Path, data: Path) -> Workspace:
    workspace = Workspace.create(tmp_path / "home")
    workspace.sources.add("orders", location=str(data))
    orders(300, 0).write_parquet(data / "a.parquet")
    result = train(workspace, training())
    assert (result["decision"], result["version"], result["new"]) == ("promoted", 1, True)
    return workspace


def training(**options: object) -> TrainJob:
    made: TrainJob = TrainJob.of(
        **{"source": "orders", "model": "orders", "fit": QUICK, "evaluation_share": 0.3, "compiled": False, **options}
    )
    return made


def test_judges_are_never_trained_on() -> None:
    first, later = orders(300, 0), pl.concat([orders(300, 0), orders(200, 300, seed=5)])
    rest, judges = split(first, 0.3)
    rest_later, _ = split(later.sample(fraction=1, shuffle=True, seed=1), 0.3)
    assert rest.height + judges.height == 300
    assert 60 < judges.height < 120
    assert not set(judges["order_id"]) & set(rest_later["order_id"])


def test_a_version_is_compiled_and_scores_where_torch_is_not(tmp_path: Path, data: Path) -> None:
    workspace = Workspace.create(tmp_path / "home")
    workspace.sources.add("orders", location=str(data))
    orders(300, 0).write_parquet(data / "a.parquet")
    result = train(workspace, training(compiled=True))
    assert result["compiled"] == "yes"
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tabdiff.operations import ScoreJob, score_new\n"
        "from tabdiff.store import Workspace\n"
        "found = score_new(Workspace.open(), ScoreJob.of(source='orders', model='orders'))\n"
        "assert found['rows'] == 300, found"
    )
    environment = {**os.environ, "TABDIFF_HOME": str(workspace.home)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_a_version_that_cannot_be_compiled_is_kept_and_told_of(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise BundleError("score.onnx: it does not compute what torch does.")

    monkeypatch.setattr("onnx_export.export", refuse)
    workspace = Workspace.create(tmp_path / "home")
    workspace.sources.add("orders", location=str(data))
    orders(300, 0).write_parquet(data / "a.parquet")
    result = train(workspace, training(compiled=True))
    assert result["compiled"] == "no: score.onnx: it does not compute what torch does."
    assert result["decision"] == "promoted"
    assert "not_compiled" in [event["kind"] for event in workspace.events.latest()]
    assert score_new(workspace, ScoreJob.of(source="orders", model="orders"))["rows"] == 300


def test_training_repeats_nothing_and_promotes_by_rule(trained: Workspace, data: Path) -> None:
    again = train(trained, training())
    assert (again["new"], again["version"], again["decision"]) == (False, 1, "kept")
    # A challenger that learned from shuffled columns is worse, and is not promoted.
    rng = np.random.default_rng(0)
    frame = orders(300, 0, seed=3)
    broken = frame.with_columns(
        frame[name].shuffle(int(rng.integers(99))) for name in frame.columns if name != "order_id"
    )
    (data / "a.parquet").unlink()
    broken.write_parquet(data / "b.parquet")
    worse = trained.models.get("orders")
    orders(300, 1000, seed=6).write_parquet(data / "c.parquet")
    (data / "b.parquet").unlink()
    asked = train(trained, training(promote="ask", tolerance=1.0))
    assert (asked["decision"], asked["version"]) == ("asked", 2)
    assert trained.models.get("orders").id == worse.id
    assert trained.events.latest()[0]["kind"] == "challenger_waits"
    assert set(asked["metrics"]["challenger"]) == {"false_alarms", "separation", "fill_error"}
    trained.models.promote("orders", 2)
    assert trained.models.roll_back("orders").version == 1


def test_what_a_killed_training_leaves_is_taken_away(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    # It dies when its version is there and the checkpoint still is, too.
    job = training(fit={**QUICK, "train": {**QUICK["train"], "seed": 5}})
    with monkeypatch.context() as patched:
        patched.setattr("tabdiff.operations.training.shutil.rmtree", killed)
        with pytest.raises(Killed):
            train(trained, job)
    (checkpoint,) = (path for path in (trained.home / "work").iterdir() if path.is_dir())
    (checkpoint.parent / f".{checkpoint.name}.0123.tmp").mkdir()  # it can die while a checkpoint is written as well
    assert (train(trained, job)["new"], train(trained, job)["version"]) == (False, 2)
    assert not [path for path in (trained.home / "work").iterdir() if path.is_dir()]


def test_a_worse_challenger_is_not_promoted(trained: Workspace, data: Path) -> None:
    frame = orders(300, 5000, seed=8)
    shuffled = frame.select("order_id", *(frame[name].shuffle(index) for index, name in enumerate(frame.columns[1:])))
    reference = trained.models.get("orders").folder / "reference.parquet"  # type: ignore[operator]
    real = pl.read_parquet(reference)
    (data / "a.parquet").unlink()
    shuffled.write_parquet(data / "b.parquet")
    from tabdiff.operations import comparing

    result = train(trained, training(promote="never"))
    challenger = trained.models.get("orders", result["version"])
    assert challenger.folder is not None
    real.write_parquet(challenger.folder / "reference.parquet")  # judged on real rows
    judged = comparing.compare(challenger, trained.models.get("orders"), [], lambda champion: [], tolerance=0.02)
    assert not judged.better
    assert any("separation" in reason for reason in judged.reasons)


def test_a_challenger_begins_with_the_champions_weights(trained: Workspace, data: Path) -> None:
    assert trained.models.get("orders").metrics["started_from"] == "random weights: there was no champion"
    orders(100, 300, seed=4).write_parquet(data / "b.parquet")
    warm = train(trained, training(promote="never"))
    assert (warm["started_from"], warm["version"]) == ("orders version 1", 2)
    cold = train(trained, training(promote="never", warm_start=False))
    assert (cold["started_from"], cold["version"]) == ("random weights: warm_start is off", 3)
    again = train(trained, training(promote="never"))
    assert (again["started_from"], again["new"], again["version"]) == ("orders version 1", False, 2)
    more_judges = train(trained, training(promote="never", evaluation_share=0.4))
    assert "kept 0.3 of the rows from its fit" in more_judges["started_from"]
    fit = {**QUICK, "network": {"width": 24, "blocks": 1}}
    wider = train(trained, training(promote="never", fit=fit))
    assert "network.width was 16, is 24" in wider["started_from"]


def test_a_synthetic_set_is_drawn_once(trained: Workspace) -> None:
    wanted = SynthesizeJob.of(model="orders", rows=50, seed=3, sample={"steps": 3})
    first = synthesize(trained, wanted)
    assert pl.read_parquet(first["file"]).height == 50
    assert first["report"]["compared_with"] > 20
    assert first["report"]["shape_error"] > 0
    again = synthesize(trained, wanted)
    assert (first["new"], again["new"], again["file"]) == (True, False, first["file"])
    other = synthesize(
        trained, SynthesizeJob.of(model="orders", rows=50, given={"channel": "web"}, sample={"steps": 3})
    )
    assert other["file"] != first["file"]
    # The report judges by rows of the fit and by rows kept from it, and the page is kept beside the set.
    version = trained.models.get("orders")
    assert version.folder is not None
    fitted, kept = (pl.read_parquet(version.folder / f"{name}.parquet") for name in ("fitted", "reference"))
    assert not set(fitted["order_id"]) & set(kept["order_id"])
    found = json.loads(Path(first["file"]).with_name("report.json").read_text(encoding="utf-8"))
    assert found["figures"] == first["report"]["figures"]
    assert found["holdout_given"] is True
    assert {figure["name"] for figure in found["figures"]} >= {"shape error", "trend error", "detector (C2ST)"}
    page = Path(first["page"])
    assert page.parent == Path(first["file"]).parent
    assert "Told apart by a detector" in page.read_text(encoding="utf-8")
    (version.folder / "fitted.parquet").unlink()  # as in versions of before
    older = synthesize(trained, SynthesizeJob.of(model="orders", rows=50, seed=5, sample={"steps": 3}))
    assert "too few for a floor" in older["report"]["not_compared"]


def watch(workspace: Workspace, frame: pl.DataFrame, data: Path, **options: object) -> dict[str, object]:
    for path in data.iterdir():
        path.unlink()
    frame.write_parquet(data / "now.parquet")
    return monitor(workspace, MonitorJob.of(source="orders", model="orders", **options))


def test_drift_is_told_from_odd_rows(trained: Workspace, data: Path) -> None:
    fine = orders(1500, 1000, seed=11)
    report = watch(trained, fine, data)
    assert report["verdict"] == "fine", report["findings"]
    dearer = watch(trained, fine.with_columns(price=pl.col("price") * 1.6 + 10), data)
    assert dearer["verdict"] == "drifted"
    assert "price" in str(dearer["findings"])
    strange = pl.int_range(pl.len()) % 8 == 0
    odd = watch(trained, fine.with_columns(price=pl.when(strange).then(500.0).otherwise("price")), data)
    assert odd["verdict"] == "odd rows", odd["findings"]
    gone = watch(trained, fine.with_columns(rating=pl.lit(None, dtype=pl.Int64)), data)
    assert gone["verdict"] == "drifted"
    assert "rating" in str(gone["findings"])
    renamed = watch(trained, fine.rename({"price": "cost"}), data)
    assert renamed["verdict"] == "schema changed"
    stale = watch(trained, fine, data, every=60)
    assert stale["verdict"] == "stale"  # nothing was ever scored
    assert [row["verdict"] for row in trained.reports()][:2] == ["stale", "schema changed"]


def test_drift_statistics_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.15, 1.0):
        first, second = rng.normal(size=300), rng.normal(shift, size=500)
        truth = stats.ks_2samp(first, second, method="asymp")
        statistic, p_value = drift.ks(first, second)
        assert statistic == pytest.approx(truth.statistic)
        assert p_value == pytest.approx(truth.pvalue, rel=0.2, abs=1e-6)
    for hits, trials, share in ((3, 100, 0.01), (40, 2000, 0.01), (1, 5, 0.3)):
        assert drift.at_least_p_value(hits, trials, share) == pytest.approx(
            stats.binom.sf(hits - 1, trials, share), rel=1e-6
        )


# ---------------------------------------------------------------------------------------------- options


def test_options_are_checked() -> None:
    assert ScoreJob.of(source="a", model="b", alerts_per_day=3, rows_per_day=500).rule["alerts_per_day"] == 3
    for wrong in (
        {"rows_per_day": 5},
        {"fdr": 0.1, "alerts_per_day": 3},
        {"source": "../x"},
        {"fdr": 2},
        {"unknown": 1},
        {"fdr": 0.1, "contamination": 0.1},
    ):
        with pytest.raises(ConfigError, match="cannot be used"):
            ScoreJob.of(**{"source": "a", "model": "b", **wrong})


def test_alerts_a_day_are_a_limit_of_the_score(on_sqlite: Workspace, data: Path) -> None:
    on_sqlite.sources.add("orders", location=str(data))
    orders(400, 0, seed=21).write_parquet(data / "a.parquet")
    some = score_new(on_sqlite, job(contamination=None, alerts_per_day=20, rows_per_day=400))
    (part,) = on_sqlite.scores.partitions()
    scores = pl.read_parquet(part["file"])
    assert some["flagged"] == scores["flagged"].sum()
    assert 2 <= some["flagged"] <= 60  # about 20 of 400 normal rows
    assert scores.filter("flagged")["score"].min() > scores.filter(~pl.col("flagged"))["score"].max()  # type: ignore[operator]


def test_without_a_champion_nothing_is_scored(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "home")
    workspace.sources.add("orders", location=str(tmp_path))
    with pytest.raises(StoreError, match="versions: none"):
        score_new(workspace, job())
