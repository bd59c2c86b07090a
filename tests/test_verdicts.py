"""What people said of alerts is heard by later runs: judged rows bend the score, confirmed anomalies are no part of a fit."""

from __future__ import annotations

import json
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tabdiff
from tabdiff.config import SeriesConfig
from tabdiff.feedback import _perhaps_like
from tabdiff.model import Model
from tabdiff.operations import ScoreJob, TrainJob, score_new, train
from tabdiff.operations.judges import plain
from tabdiff.operations.verdicts import readable, with_verdicts, without_confirmed
from tabdiff.store import Workspace
from tests.workspaces import QUICK, orders, with_champion

STRANGE = {"price": 900.0, "weight": 0.1, "items": 40}


def kept(frame: pl.DataFrame) -> list[dict[str, object]]:
    """Rows as alerts keep them: through JSON, as the database has it."""
    rows = frame.iter_rows(named=True)
    return [json.loads(json.dumps({name: plain(value) for name, value in row.items()})) for row in rows]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def workspace(tmp_path: Path, data: Path, database_url: str, small_bundle: Path) -> Workspace:
    made = with_champion(tmp_path / "home", database_url, small_bundle)
    made.sources.add("orders", location=str(data), keys=("order_id",))
    return made


def hour(data: Path, name: str, first: int, odd: dict[str, object]) -> None:
    """Twenty orders of which the first is odd."""
    rows = orders(20, first, seed=first)
    changed = [pl.when(pl.int_range(pl.len()) == 0).then(pl.lit(v)).otherwise(n).alias(n) for n, v in odd.items()]
    rows.with_columns(changed).write_parquet(data / f"{name}.parquet")


def job(**options: object) -> ScoreJob:
    made: ScoreJob = ScoreJob.of(**{"source": "orders", "model": "orders", "contamination": 0.05, **options})
    return made


def test_a_false_alarm_is_said_once(workspace: Workspace, data: Path, small_model: Model) -> None:
    hour(data, "1", 0, STRANGE)
    assert score_new(workspace, job())["verdicts"] == {"false_alarms": 0, "confirmed": 0, "not_used": 0}
    (alert,) = workspace.scores.alerts()
    assert alert["values"]["order_id"] == 0
    workspace.scores.judge(alert["id"], "normal", author="ann")
    hour(data, "2", 100, STRANGE | {"price": 905.0})
    result = score_new(workspace, job())
    assert result["verdicts"] == {"false_alarms": 1, "confirmed": 0, "not_used": 0}
    part = next(part for part in workspace.scores.partitions() if part["unit"] == "2.parquet")
    scored = pl.read_parquet(part["file"])
    alone = small_model.score(pl.read_parquet(data / "2.parquet"))
    assert scored["score"][0] < 0.1 * alone.score[0] < alone.score[0]
    assert not scored["flagged"][0]
    np.testing.assert_allclose(scored["score"][1:], alone.score[1:], rtol=1e-5)

    # The latest verdict counts, and a job may do without them.
    workspace.scores.judge(alert["id"], "anomaly", author="bob")
    for name, options, factor in (("3", {}, 2.0), ("4", {"feedback": False}, 1.0)):
        hour(data, name, 100 * int(name), STRANGE)
        result = score_new(workspace, job(**options))
        part = next(part for part in workspace.scores.partitions() if part["unit"] == f"{name}.parquet")
        found = pl.read_parquet(part["file"])["score"][0]
        expected = small_model.score(pl.read_parquet(data / f"{name}.parquet")).score[0]
        # The time of the order is another one, so the row is nearly but not quite the one that was judged.
        assert found == pytest.approx(expected * factor, rel=0.1 if factor > 1 else 1e-5), name
        assert result.get("verdicts", {}).get("confirmed", 0) == int(factor > 1)


def test_a_confirmed_row_is_left_out_of_training(workspace: Workspace, data: Path) -> None:
    hour(data, "1", 0, STRANGE)
    score_new(workspace, job())
    (alert,) = workspace.scores.alerts()
    for number in range(2, 8):
        orders(60, 100 * number, seed=number).write_parquet(data / f"{number}.parquet")
    frame = pl.concat(pl.read_parquet(file) for file in sorted(data.glob("*.parquet")))
    never = without_confirmed(workspace, "orders", frame, SeriesConfig(), None)
    assert never.equals(frame)
    workspace.scores.judge(alert["id"], "anomaly", author="ann")
    out = without_confirmed(workspace, "orders", frame, SeriesConfig(), None)
    assert out.equals(frame.filter(pl.col("order_id") != 0))
    # A column that came since, and one that went, are no reason to forget; a value that was corrected is.
    more = frame.drop("remark").with_columns(shop=pl.lit("a"))
    assert without_confirmed(workspace, "orders", more, SeriesConfig(), None).height == frame.height
    for changed in (frame.drop("remark"), frame.with_columns(shop=pl.lit("a"))):
        assert without_confirmed(workspace, "orders", changed, SeriesConfig(), None).height == frame.height - 1
    corrected = frame.with_columns(price=pl.when(pl.col("order_id") == 0).then(9.5).otherwise("price"))
    assert without_confirmed(workspace, "orders", corrected, SeriesConfig(), None).equals(corrected)

    # A column of numbers that some file has as text; a text that may have been longer says nothing.
    texts = frame.with_columns(pl.col("order_id").cast(pl.String))
    assert without_confirmed(workspace, "orders", texts, SeriesConfig(), None).height == frame.height - 1
    long = frame.with_columns(remark=pl.col("remark") + "x" * 300)
    assert without_confirmed(workspace, "orders", long, SeriesConfig(), None).equals(long)

    options = {"source": "orders", "model": "orders", "fit": QUICK, "compiled": False, "promote": "never"}
    left_out, as_it_is = (train(workspace, TrainJob.of(**options, leave_out_confirmed=yes)) for yes in (True, False))
    assert (left_out["left_out"], as_it_is["left_out"]) == (1, 0)
    ranges = []
    for result in (left_out, as_it_is):
        folder = next(v for v in workspace.models.all("orders") if v.version == result["version"]).folder
        assert folder is not None
        seen = pl.concat(pl.read_parquet(folder / name) for name in ("fitted.parquet", "reference.parquet"))
        ranges.append(seen["price"].max())
    assert ranges[0] < 200 < 900 == ranges[1]


def test_what_is_judged_again_is_judged_last(workspace: Workspace, data: Path) -> None:
    hour(data, "1", 0, STRANGE)
    score_new(workspace, job(contamination=0.2))
    first, second = [alert["id"] for alert in workspace.scores.alerts()][:2]
    for number, verdict in ((first, "normal"), (second, "anomaly"), (first, "normal")):
        workspace.scores.judge(number, verdict, author="ann")  # type: ignore[arg-type]
    assert [verdict for _, verdict in workspace.scores.judged("orders")] == ["anomaly", "normal"]


@pytest.fixture(scope="module")
def odd_types() -> tuple[pl.DataFrame, Model]:
    rng = np.random.default_rng(3)
    size = 120
    start = datetime(2026, 3, 1, 7, tzinfo=UTC)
    frame = pl.DataFrame(
        {
            "clock": [time(8 + i % 9, i % 60, i % 7) for i in range(size)],
            "took": [timedelta(days=i % 3, seconds=int(s)) for i, s in enumerate(rng.integers(5, 4000, size - 1))]
            + [None],
            "when": [start + timedelta(minutes=17 * i) for i in range(size)],
            "day": [(start + timedelta(days=i)).date() for i in range(size)],
            "paid": [Decimal(int(cents)) / 100 for cents in rng.integers(100, 9000, size)],
            "wide": rng.normal(size=size).astype(np.float32),
            "level": pl.Series(rng.choice(["low", "high"], size), dtype=pl.Enum(["low", "high"])),
            "open": rng.random(size) < 0.5,
            "part": [None if i % 9 == 0 else float(i) for i in rng.normal(size=size)],
        },
    ).with_columns(pl.col("when").dt.convert_time_zone("Europe/Berlin"))
    options = tabdiff.FitConfig.model_validate({"train": {"steps": 5}, "network": {"width": 16, "blocks": 1}})
    return frame, tabdiff.fit(frame, options)


def test_kept_values_are_rows_again(odd_types: tuple[pl.DataFrame, Model]) -> None:
    frame, model = odd_types
    rows, verdicts = readable(model.schema, [(values, "normal") for values in kept(frame)])
    assert verdicts == ["normal"] * frame.height
    np.testing.assert_array_equal(model.score(rows).score, model.score(frame).score)
    heard, said = with_verdicts(model, lambda: [(values, "normal") for values in kept(frame[:3])])
    assert said == {"false_alarms": 3, "confirmed": 0, "not_used": 0}
    direct = model.with_feedback(frame[:3], [False] * 3)
    np.testing.assert_array_equal(heard.score(frame).score, direct.score(frame).score)


def test_a_verdict_that_cannot_be_read_costs_no_other(odd_types: tuple[pl.DataFrame, Model]) -> None:
    frame, model = odd_types
    rows = kept(frame[:9])
    bad = [rows[0] | {"part": "a lot"}, rows[1] | {"day": "soon"}, {n: v for n, v in rows[2].items() if n != "open"}]
    bad += [rows[3] | {"level": "x" * 200}]  # perhaps cut
    mixed = [(values, "anomaly") for pair in zip(bad, rows[4:8], strict=True) for values in pair]
    heard, said = with_verdicts(model, lambda: [*mixed, (rows[8], "unsure")])
    assert said == {"false_alarms": 0, "confirmed": 4, "not_used": 4}
    assert len(heard.feedback) == 4
    assert with_verdicts(model, lambda: [(bad[0], "normal")])[0] is model


def test_a_model_without_rows_says_why_it_takes_no_verdicts() -> None:
    frame = orders(60, 0)
    options = {"train": {"steps": 2}, "network": {"width": 16, "blocks": 1}, "score": {"kernel_rows": 0, "turns": 1}}
    model = tabdiff.fit(frame, tabdiff.FitConfig.model_validate(options))
    same, said = with_verdicts(model, lambda: [(kept(frame)[0], "normal")])
    assert same is model
    assert said["not_used"] == 1
    assert "kernel_rows=0" in said["reason"]


def test_only_rows_like_a_judged_one_are_looked_at_closely() -> None:
    rng = np.random.default_rng(0)
    stored = 1e4 + rng.normal(size=(200, 5))
    view, judged = (1e4 + 3 * rng.normal(size=(size, 5)) for size in (3000, 40))
    far = [
        ((one[:, None] - other) ** 2).sum(axis=2) for one, other in ((view, judged), (judged, stored), (view, stored))
    ]
    reach, own = far[1].min(axis=1), far[2].min(axis=1)
    like = far[0] < 2 * np.minimum(reach, own[:, None])
    found = _perhaps_like(view, judged, reach, stored)
    assert set(np.flatnonzero(like.any(axis=1))) == set(found)
    assert 0 < len(found) < len(view)
