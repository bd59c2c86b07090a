"""Models of series: views compared with closed forms, streams with the whole, faults that are found and named, what is refused."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.decomposition import PCA
from typer.testing import CliRunner

from tabdiff import fit_series, load, load_series
from tabdiff.cli import app
from tabdiff.config import FitConfig, validate_fit_config
from tabdiff.errors import BundleError, ConfigError, SchemaError, TabdiffWarning
from tabdiff.nn.wiener import SIGMAS, fit_window_view
from tabdiff.planting import KINDS, Plant
from tabdiff.series_check import WindowedPca
from tabdiff.series_model import SeriesModel, SeriesState
from tests.devices import run_on_one_device

START = datetime(2024, 3, 1)


def sensors(places: int, seed: int = 0, *, first: int = 0) -> pl.DataFrame:
    """Two sensors that follow one cycle, one by itself, a switch."""
    rng = np.random.default_rng(seed)
    step = np.arange(first, first + places)
    cycle = np.sin(2 * np.pi * step / 40)
    return pl.DataFrame(
        {
            "at": [START + timedelta(seconds=10 * int(i)) for i in step],
            "inlet": cycle + 0.1 * rng.normal(size=places),
            "outlet": np.sin(2 * np.pi * (step - 5) / 40) + 0.1 * rng.normal(size=places),
            "level": 5 + 0.3 * rng.normal(size=places),
            "pump": np.where(cycle > 0, "on", "off"),
        }
    )


def options(**more: object) -> FitConfig:
    return validate_fit_config({"series": {"time": "at", "window": 32, **more}, "train": {"steps": 2}})


@pytest.fixture(scope="module")
def model() -> SeriesModel:
    return fit_series(sensors(1200), options())


@pytest.fixture(scope="module")
def broken() -> pl.DataFrame:
    frame = sensors(500, seed=1, first=1200)
    outlet = frame["outlet"].to_numpy().copy()
    outlet[200:240] += 1.2
    return frame.with_columns(pl.Series("outlet", outlet))


def test_no_tensor_stays_behind_on_a_device(model: SeriesModel) -> None:
    run_on_one_device(model.bundle, model.window)


# ------------------------------------------------------------------------------------------------- closed forms


def test_the_wiener_residual_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    windows = (rng.normal(size=(500, 8, 3)) @ rng.normal(size=(3, 3))).astype(np.float32)
    view = fit_window_view(torch.from_numpy(windows), start=2, length=6, pool=2)
    found = view(torch.from_numpy(windows[:5])).numpy()
    x = windows[:, 2:].reshape(500, 3, 2, 3).mean(2).reshape(500, -1).astype(np.float64)
    mean, covariance = x.mean(0), np.cov(x.T, bias=True)
    residuals = [(x[:5] - mean) @ np.linalg.inv(covariance + s**2 * np.eye(9)) * s**2 for s in SIGMAS]
    total = np.exp(np.mean([np.log((r**2).sum(1) + 1e-9) for r in residuals], axis=0))
    assert found.sum((1, 2)) == pytest.approx(total, rel=1e-4)
    share = (residuals[2] ** 2).reshape(5, 3, 3) / (residuals[2] ** 2).sum(1)[:, None, None]
    assert found[:, 2:].reshape(5, 3, 2, 3).sum(2) / found.sum((1, 2))[:, None, None] == pytest.approx(share, abs=1e-4)
    assert not found[:, :2].any()


def test_a_solver_that_gives_up_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    # As it did on the covariance of a real recording with 25 sensors of which one moved.
    windows = np.zeros((300, 8, 5), np.float32)
    windows[..., 0] = np.random.default_rng(0).normal(size=(300, 8)).cumsum(axis=1)
    usual = fit_window_view(torch.from_numpy(windows), start=0, length=8, pool=1)

    def gives_up(matrix: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    view = fit_window_view(torch.from_numpy(windows), start=0, length=8, pool=1)
    some = torch.from_numpy(windows[:5] + 0.3)
    torch.testing.assert_close(view(some), usual(some), rtol=1e-4, atol=1e-6)


def test_the_control_is_windowed_pca() -> None:
    x = np.random.default_rng(0).normal(size=(300, 2)).cumsum(0) * 0.1
    windows = np.lib.stride_tricks.sliding_window_view(x, 16, axis=0).transpose(0, 2, 1).astype(np.float32)
    rows = windows.reshape(len(windows), -1)
    pca = PCA(n_components=0.9, svd_solver="full").fit(rows)
    left = ((rows - pca.inverse_transform(pca.transform(rows))) ** 2).mean(1)
    assert WindowedPca(windows).score(x)[7:-8] == pytest.approx(left, rel=1e-4)


# -------------------------------------------------------------------------------------------------------- scores


def test_a_fault_is_one_event_at_its_time_with_its_sensor(model: SeriesModel, broken: pl.DataFrame) -> None:
    scores = model.score(broken)
    (event,) = scores.events.iter_rows(named=True)
    at = broken["at"]
    assert abs(event["start"] - at[200]) <= timedelta(seconds=80)
    assert abs(event["end"] - at[239]) <= timedelta(seconds=20)
    assert event["sensors"][0] == "outlet"
    assert event["kind"] == "abnormal"
    assert event["p_value"] == pytest.approx(1 / (len(model.blocks) + 1))
    inside = scores.expected[210:235]
    assert (broken["outlet"][210:235] > inside["outlet_high"]).mean() > 0.8
    assert (broken["level"][210:235].is_between(inside["level_low"], inside["level_high"])).mean() > 0.5


def test_normal_time_is_normal(model: SeriesModel) -> None:
    scores = model.score(sensors(2000, seed=2, first=1200))
    assert scores.events.height <= 1
    p_value = scores.places["p_value"].to_numpy()
    assert 0.04 < np.mean(p_value <= 0.1) < 0.2
    outlet = sensors(2000, seed=2, first=1200)["outlet"]
    covered = outlet.is_between(scores.expected["outlet_low"], scores.expected["outlet_high"]).mean()
    assert 0.9 < covered < 0.99


@pytest.mark.parametrize("sizes", [[500], [1] * 90 + [410], [31, 1, 32, 33, 200, 203]])
def test_a_stream_scores_as_the_whole(model: SeriesModel, broken: pl.DataFrame, sizes: list[int]) -> None:
    whole, state, parts, start = model.score(broken), model.start(), [], 0
    for size in sizes:
        parts.append(model.score_next(state, broken[start : start + size], last=start + size == 500))
        state = SeriesState(**json.loads(json.dumps(state.to_json(), default=str)))
        start += size
    places = pl.concat([part.places for part in parts])
    assert places["at"].equals(whole.places["at"])
    assert places["score"].to_numpy() == pytest.approx(whole.places["score"].to_numpy(), abs=1e-9, rel=1e-5)
    assert pl.concat([part.expected for part in parts]).to_numpy() == pytest.approx(whole.expected.to_numpy(), abs=1e-9)
    events = pl.concat([part.events for part in parts])
    assert events.drop("severity", "shares", "open").equals(whole.events.drop("severity", "shares", "open"))


def test_rows_of_a_stream_come_later(model: SeriesModel) -> None:
    state, frame = model.start(), sensors(100, first=1200)
    model.score_next(state, frame[50:])
    with pytest.raises(SchemaError, match=r"'at'.*come later.*2024-03-01 03:20:00"):
        model.score_next(state, frame[:50])


def test_a_gap_in_a_stream_is_time_that_passes(model: SeriesModel) -> None:
    frame = sensors(300, first=1200)
    frame = pl.concat([frame[:120], frame[150:]])
    whole, state = model.score(frame), model.start()
    parts = [model.score_next(state, frame[:120]), model.score_next(state, frame[120:], last=True)]
    assert pl.concat([part.places for part in parts])["score"].to_numpy() == pytest.approx(
        whole.places["score"].to_numpy(), abs=1e-9, rel=1e-5
    )


def test_a_stream_of_machines_ends_for_those_that_fell_silent() -> None:
    both = [sensors(400, seed=i).with_columns(pl.lit(name).alias("machine")) for i, name in enumerate("ab")]
    found = fit_series(pl.concat(both), options(entity="machine"))
    state = found.start()
    first = found.score_next(state, pl.concat([part[:200] for part in both]))
    second = found.score_next(state, both[0][200:], last=True)
    whole = found.score(pl.concat([both[0], both[1][:200]])).places.sort("machine", "at")
    streamed = pl.concat([first.places, second.places]).sort("machine", "at")
    assert streamed["score"].to_numpy() == pytest.approx(whole["score"].to_numpy(), abs=1e-9, rel=1e-5)
    assert found.score_next(state, None).places.height == 0


def test_a_long_recording_is_scored_in_pieces(model: SeriesModel, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = sensors(700, seed=4, first=1200)
    whole = model.score(frame)
    monkeypatch.setattr("tabdiff.series_scoring._PIECE", 150)
    pieces = model.score(frame)
    assert pieces.places["score"].to_numpy() == pytest.approx(whole.places["score"].to_numpy(), abs=1e-9, rel=1e-5)
    assert pieces.expected.to_numpy() == pytest.approx(whole.expected.to_numpy(), abs=1e-9)


def test_the_order_of_rows_does_not_matter(model: SeriesModel, broken: pl.DataFrame) -> None:
    with pytest.warns(TabdiffWarning, match="go back in time"):
        shuffled = model.score(broken.sample(fraction=1, shuffle=True, seed=0))
    assert shuffled.places.equals(model.score(broken).places)


def test_a_sensor_that_stops_reporting_is_told_once(model: SeriesModel) -> None:
    frame = sensors(300, first=1200).with_columns(
        pl.when(pl.int_range(pl.len()) >= 100).then(None).otherwise(pl.col("level")).alias("level")
    )
    whole = model.score(frame).events.filter(kind="silent")
    assert whole["sensors"].to_list() == [["level"]]
    assert whole["start"][0] == frame["at"][100]
    state = model.start()
    parts = [model.score_next(state, frame[i : i + 50]).events for i in range(0, 300, 50)]
    silent = pl.concat(parts).filter(kind="silent")
    assert silent["start"].to_list() == [frame["at"][100]]


def test_a_level_shift_alerts_once_and_can_be_accepted(model: SeriesModel) -> None:
    frame = sensors(600, seed=3, first=1200)
    shifted = frame.with_columns(
        pl.when(pl.int_range(pl.len()) >= 200).then(pl.col("level") + 4).otherwise(pl.col("level")).alias("level")
    )
    events = model.score(shifted).events
    assert events.height == 1
    assert events["sensors"][0][0] == "level"
    accepted = model.accept(shifted[300:])
    # Chance may flag a place or two of any stretch; the shift itself is gone.
    assert accepted.score(shifted[232:]).places["score"].max() < 4
    assert model.score(shifted[232:]).places["score"].max() > 50
    assert set(accepted.plan.units["None"]) == {"level"}
    assert accepted.score(shifted[300:]).expected["level"].mean() == pytest.approx(9, abs=0.2)


def test_machines_share_a_model_in_their_own_units() -> None:
    parts = []
    for index, name in enumerate(["a", "b", "c"]):
        part = sensors(500, seed=index)
        parts.append(part.with_columns(pl.col("level") * (1 + index) + 50 * index, pl.lit(name).alias("machine")))
    fleet = pl.concat(parts).sample(fraction=1, shuffle=True, seed=0)
    with pytest.warns(TabdiffWarning, match="go back in time"):
        found = fit_series(fleet, options(entity="machine", normalise="entity"))
    new = sensors(200, seed=7, first=500).with_columns(pl.col("level") + 2, pl.lit("a").alias("machine"))
    other = sensors(200, seed=8, first=500).with_columns(pl.col("level") * 3 + 100, pl.lit("c").alias("machine"))
    events = found.score(pl.concat([new, other])).events
    assert events["machine"].unique().to_list() == ["a"]
    with pytest.raises(SchemaError, match=r"'machine'.*every entity was in training.*'z'; known are a, b, c"):
        found.score(new.with_columns(pl.lit("z").alias("machine")))
    assert events["sensors"][0][0] == "level"


def test_a_stored_model_scores_the_same(model: SeriesModel, broken: pl.DataFrame, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    again = load_series(tmp_path / "m")
    assert again.score(broken).places.equals(model.score(broken).places)
    assert again.describe() == "every 10 s, windows of 32 places, 4 sensors"
    with pytest.raises(BundleError, match="model of a series, not of a table"):
        load(tmp_path / "m")


def test_planted_faults_are_reported(model: SeriesModel) -> None:
    planted = model.bundle.model["report"]["planted"]
    assert planted["planted"] == 4 * len(KINDS)
    assert planted["found"] >= 0.7
    assert planted["kinds"]["spike"]["found"] == 1.0
    # Which of two sensors that are alike has left the other, or its clock, is mostly not to be seen from them.
    assert all(planted["kinds"][kind]["sensor_first"] >= 0.9 for kind in ("spike", "drift", "stuck", "noise"))
    assert planted["sensor_first"] >= 0.7
    assert planted["sensor_first"] + planted["anyway"] + planted["alike"] > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_a_plant_changes_its_own_stretch_only(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=300).cumsum()
    plant = Plant.draw(kind, 300, 40, rng)
    broken = plant.apply(values, 1.0, rng)
    inside = np.zeros(300, dtype=bool)
    inside[plant.start : plant.start + plant.length] = True
    assert np.array_equal(broken[~inside], values[~inside])
    assert not np.array_equal(broken[inside], values[inside])
    assert plant.start >= 40
    assert plant.start + plant.length <= 260


# ------------------------------------------------------------------------------------------------------- refused


def test_too_little_time_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"at least 128 places in time; found 60"):
        fit_series(sensors(60), options())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"series": {"entity": "machine"}}, "entity without time"),
        ({"series": {"time": "at", "sensor": "name"}}, "sensor and value go together"),
        ({"series": {"time": "at", "count": 9, "within": 8}}, "count <= within"),
    ],
)
def test_options_that_contradict_each_other(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate_fit_config(settings)


def test_what_a_series_cannot_have() -> None:
    config = validate_fit_config({"series": {"time": "at"}, "process": {"kind": "anisotropic"}})
    with pytest.raises(ConfigError, match=r"no process\.kind=anisotropic"):
        fit_series(sensors(200), config)
    with pytest.raises(ConfigError, match=r"series\.time, the column of times"):
        fit_series(sensors(200), FitConfig())
    with pytest.raises(SchemaError, match=r"'when': series\.time names a column; found no such column"):
        fit_series(sensors(200), validate_fit_config({"series": {"time": "when"}}))


def test_tables_that_do_not_fit(model: SeriesModel) -> None:
    frame = sensors(100)
    with pytest.raises(SchemaError, match="'outlet'"):
        model.score(frame.drop("outlet"))
    with pytest.raises(SchemaError, match="inf"):
        model.score(frame.with_columns(pl.lit(float("inf")).alias("level")))
    with pytest.raises(ConfigError, match="between 0 and"):
        model.score(frame, alerts_per_day=1e9)
    with pytest.raises(ConfigError, match="one rule"):
        model.score(frame, fdr=0.1, contamination=0.1)
    with pytest.warns(TabdiffWarning, match="20 places have no score"):
        assert model.score(frame[:20]).places["score"].null_count() == 20


def test_constant_and_missing_readings(model: SeriesModel) -> None:
    frame = sensors(400).with_columns(pl.lit(3.0).alias("fixed"))
    frame = frame.with_columns(
        pl.when(pl.int_range(pl.len()) % 7 == 0).then(None).otherwise(pl.col("level")).alias("level")
    )
    found = fit_series(frame, options())
    assert np.isfinite(found.score(frame).places["score"].to_numpy()).all()
    moved = frame.with_columns(
        pl.when(pl.int_range(pl.len()) > 300).then(4.0).otherwise(pl.col("fixed")).alias("fixed")
    )
    assert found.score(moved).events["sensors"][0][0] == "fixed"


def test_steps_have_no_days() -> None:
    frame = sensors(400).drop("at").with_row_index("at").with_columns(pl.col("at").cast(pl.Int64))
    found = fit_series(frame, options())
    assert found.score(frame).events.schema["start"] == pl.Int64
    with pytest.raises(ConfigError, match="counts steps"):
        found.score(frame, alerts_per_day=1)


# -------------------------------------------------------------------------------------------------- command line


def test_the_command_line_fits_and_scores_a_series(tmp_path: Path, broken: pl.DataFrame) -> None:
    sensors(800).write_parquet(tmp_path / "train.parquet")
    broken.write_csv(tmp_path / "new.csv")
    run = CliRunner()
    made = run.invoke(
        app,
        [
            "fit",
            str(tmp_path / "train.parquet"),
            "--out",
            str(tmp_path / "m"),
            "--time",
            "at",
            "--set",
            "series.window=32",
            "--set",
            "train.steps=2",
        ],
    )
    assert made.exit_code == 0, made.output
    assert "every 10 s, windows of 32 places, 4 sensors" in made.output
    assert "windowed PCA" in made.output
    scored = run.invoke(
        app,
        [
            "score",
            str(tmp_path / "m"),
            str(tmp_path / "new.csv"),
            "--out",
            str(tmp_path / "s.csv"),
            "--picture",
            str(tmp_path / "s.png"),
            "--json",
        ],
    )
    assert scored.exit_code == 0, scored.output
    events = json.loads(scored.stdout)["events"]
    assert events[0]["sensors"][0] == "outlet"
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    assert pl.read_csv(tmp_path / "s.events.csv").height == len(events)
    table = pl.read_csv(tmp_path / "s.csv")
    assert table.height == 500
    assert {"at", "score", "expected_outlet_low"} <= set(table.columns)


def test_an_exported_series_model_runs_on_onnx(model: SeriesModel, broken: pl.DataFrame, tmp_path: Path) -> None:
    from onnx_export import export

    model.save(tmp_path / "m")
    export(tmp_path / "m")
    compiled = load_series(tmp_path / "m", runtime="onnx")
    found, truth = compiled.score(broken), model.score(broken)
    assert "ONNX" in found.provider or "onnx" in found.provider
    assert found.places["score"].to_numpy() == pytest.approx(truth.places["score"].to_numpy(), rel=1e-3, abs=1e-4)
    assert found.places["flagged"].equals(truth.places["flagged"])


def test_a_matched_filter_is_that_of_the_precision(model: SeriesModel) -> None:
    expectation = model.expectation
    steps, width = expectation.steps, expectation.width
    rng = np.random.default_rng(0)
    normal, fault = rng.normal(size=(3 * steps, width)), np.zeros((2, width))
    fault[:, 1] = 5.0
    inside, at_most = expectation.surprise(fault, normal, steps)
    # The long way: (P d)_s of the window around each step, whose middle block is P_ss (d_s - E[d_s | neighbours]).
    precision = expectation._precision
    padded, around = np.pad(normal, ((steps, steps), (0, 0)), mode="edge"), np.zeros((2 * steps + 2, width))
    around[steps : steps + 2] = fault
    middle = np.zeros_like(around)
    for step in range(len(around)):
        start = int(np.clip(step - steps // 2, 0, len(around) - steps))
        rows = slice((step - start) * width, (step - start + 1) * width)
        own = precision[rows, rows]
        pull = (precision @ around[start : start + steps].ravel())[rows]
        half = slice(steps // 2 * width, (steps // 2 + 1) * width)
        middle[step] = precision[half, half] @ np.linalg.solve(own, pull)
    scores = [(middle * padded[i : i + len(around)]).sum() for i in range(len(padded) - len(around) + 1)]
    assert np.isclose(at_most, max(scores))
    assert np.isclose(inside, scores[steps] + (middle * around).sum())
    assert inside > at_most


# ---------------------------------------------------------------------------------------------------- false alarms


def planted(seed: int, first: int, *plants: tuple[str, float, str, int]) -> pl.DataFrame:
    """Normal time with deviations from place 200 on: (sensor, height, shape, length)."""
    frame = sensors(420, seed=seed, first=first)
    for name, height, shape, length in plants:
        values = frame[name].to_numpy().copy()
        forms = {"step": np.ones(length), "ramp": np.linspace(0, 1, length), "swing": np.sin(1.3 * np.arange(length))}
        values[200 : 200 + length] += height * forms[shape]
        frame = frame.with_columns(pl.Series(name, values))
    return frame


STEP = ("outlet", 1.2, "step", 40)


@pytest.fixture(scope="module")
def forgiving(model: SeriesModel) -> SeriesModel:
    """Told that a step of the outlet, forty places long, is a false alarm."""
    frame = planted(3, 2000, STEP)
    (event,) = model.score(frame).events.iter_rows(named=True)
    told = model.with_false_alarms([model.false_alarm(frame, event["start"], event["end"])])
    assert told.score(frame).events.height == 0
    assert model.false_alarms == ()
    return told


@pytest.mark.parametrize(
    ("plants", "share"),
    [
        ([STEP], (0, 0.02)),
        ([("outlet", 1.0, "step", 40)], (0, 0.02)),
        ([("outlet", 1.4, "step", 50)], (0, 0.02)),
        ([("outlet", 1.2, "step", 25)], (0, 0.05)),
        ([("outlet", 2.4, "step", 40)], (0.2, 0.7)),
        ([("outlet", -1.2, "step", 40)], (0.99, 1)),
        ([("outlet", 1.2, "swing", 40)], (0.8, 1)),
        ([("inlet", 1.2, "step", 40)], (0.8, 1)),
        ([("level", 1.5, "step", 40)], (0.95, 1)),
        ([STEP, ("level", 1.5, "step", 20)], (0.1, 0.5)),
    ],
)
def test_a_false_alarm_is_excused_and_what_is_not_like_it_is_not(
    model: SeriesModel, forgiving: SeriesModel, plants: list[tuple[str, float, str, int]], share: tuple[float, float]
) -> None:
    frame = planted(7, 2600, *plants)
    before, after = model.score(frame), forgiving.score(frame)
    highest = [scores.places["score"][190:250].max() for scores in (before, after)]
    assert share[0] <= highest[1] / highest[0] <= share[1]
    assert after.events.height == (0 if share[1] < 0.1 else 1)
    assert before.events.height == 1
    assert (after.places["score"] <= before.places["score"] + 1e-6).all()
    assert after.places["score"][:150].equals(before.places["score"][:150])
    same = (
        after.places["score"] == before.places["score"]
    )  # elsewhere fewer readings are out of order, so more are believed
    assert after.expected.filter(same).equals(before.expected.filter(same))


def test_of_two_faults_at_once_the_one_that_was_not_judged_is_named(model: SeriesModel, forgiving: SeriesModel) -> None:
    frame = planted(7, 2600, STEP, ("level", 1.5, "step", 20))
    (event,) = forgiving.score(frame).events.iter_rows(named=True)
    alone = model.score(planted(7, 2600, ("level", 1.5, "step", 20)))
    assert event["severity"] == pytest.approx(alone.events["severity"][0], rel=0.25)


def test_a_told_model_streams_as_the_whole_and_is_kept(forgiving: SeriesModel, tmp_path: Path) -> None:
    frame = planted(9, 3000, ("outlet", 1.3, "step", 38), ("level", 1.0, "step", 10))
    whole = forgiving.score(frame)
    forgiving.save(tmp_path / "model")
    loaded = load_series(tmp_path / "model")
    state, parts = loaded.start(), []
    for begin in range(0, 420, 70):
        parts.append(loaded.score_next(state, frame[begin : begin + 70], last=begin == 350).places)
        state = SeriesState(**json.loads(json.dumps(state.to_json())))
    found = pl.concat(parts)
    np.testing.assert_allclose(found["score"].to_numpy(), whole.places["score"].to_numpy(), rtol=1e-6, atol=1e-9)


def test_a_false_alarm_holds_for_its_machine_alone() -> None:
    rows = pl.concat([sensors(700, seed=s).with_columns(pl.lit(name).alias("who")) for s, name in ((0, "a"), (1, "b"))])
    model = fit_series(rows, options(entity="who"))
    new = [planted(s, 900, STEP).with_columns(pl.lit(name).alias("who")) for s, name in ((2, "a"), (3, "b"))]
    event = model.score(new[0]).events.row(0, named=True)
    told = model.with_false_alarms([model.false_alarm(new[0], event["start"], event["end"])])
    found = told.score(pl.concat(new)).events
    assert found["who"].to_list() == ["b"]
    with pytest.raises(ConfigError, match="one entity; the rows have 2"):
        model.false_alarm(pl.concat(new), event["start"], event["end"])
    with pytest.raises(ConfigError, match="do not reach from"):
        model.false_alarm(new[0][:100], event["start"], event["end"])
