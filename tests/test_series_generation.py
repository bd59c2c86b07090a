"""Drawn, forecast, translated and filled series, compared with what is known in closed form of the processes they learn from."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from tabdiff import FitConfig, SeriesModel, fit_series
from tabdiff.cli import app
from tabdiff.codenoising import Posterior
from tabdiff.errors import ConfigError, SchemaError
from tabdiff.loading import load_series

PHI, TOGETHER, WINDOW = 0.9, 0.8, 16
START = datetime(2024, 3, 1)


def autoregression(places: int, seed: int = 0) -> pl.DataFrame:
    """Two AR(1) sensors of variance 1 and autocorrelation PHI^lag, whose correlation is TOGETHER at each lag's decay."""
    rng = np.random.default_rng(seed)
    noise = rng.multivariate_normal([0, 0], [[1, TOGETHER], [TOGETHER, 1]], places) * (1 - PHI**2) ** 0.5
    x = np.zeros((places, 2))
    x[0] = noise[0] / (1 - PHI**2) ** 0.5
    for k in range(1, places):
        x[k] = PHI * x[k - 1] + noise[k]
    stamps = [START + timedelta(minutes=10 * k) for k in range(places)]
    return pl.DataFrame({"at": stamps, "a": 20 + 2 * x[:, 0], "b": x[:, 1]})


def fitted(frame: pl.DataFrame, **series: object) -> SeriesModel:
    """A model that learned no more than the covariance: its denoiser is the exact one of a Gaussian process."""
    train = {"steps": 1, "batch_size": 32, "learning_rate": 1e-7}
    options = {"series": {"time": "at", "window": WINDOW, **series}, "train": train}
    return fit_series(frame, FitConfig.model_validate(options))


@pytest.fixture(scope="module")
def model() -> SeriesModel:
    return fitted(autoregression(6000))


def autocorrelation(values: np.ndarray, lag: int) -> float:
    z = values - values.mean()
    return float((z[:-lag] * z[lag:]).mean() / z.var())


def test_windows_have_the_covariance_of_the_process(model: SeriesModel) -> None:
    drawn = model.sample(windows=600, seed=1)
    assert drawn.columns == ["series", "at", "a", "b"]
    assert drawn.schema["at"] == pl.Datetime("us")
    assert drawn.height == 600 * WINDOW
    a = (drawn["a"].to_numpy().reshape(600, WINDOW) - 20) / 2
    b = drawn["b"].to_numpy().reshape(600, WINDOW)
    lag = np.abs(np.subtract.outer(np.arange(WINDOW), np.arange(WINDOW)))
    assert np.abs(a.T @ a / 600 - PHI**lag).max() < 0.25  # 600 windows of a process estimated from 6000 places
    assert np.abs(a.T @ b / 600 - TOGETHER * PHI**lag).max() < 0.25
    first = drawn["at"][0]
    assert first == START + timedelta(minutes=60_000)  # the grid goes on after training
    assert drawn["at"][1] - first == timedelta(minutes=10)


def test_a_long_series_has_no_seams(model: SeriesModel) -> None:
    drawn = model.sample(length=6000, seed=2)
    assert drawn.columns == ["at", "a", "b"]
    a = drawn["a"].to_numpy()
    step = np.abs(np.diff(a))
    seams = np.zeros(len(step), bool)
    seams[WINDOW // 2 - 1 :: WINDOW // 2] = True
    assert 0.9 < step[seams].mean() / step[~seams].mean() < 1.1
    assert a.std() == pytest.approx(2, abs=0.35)
    for lag in (1, 4, WINDOW // 2, WINDOW, WINDOW + 4):
        assert autocorrelation(a, lag) == pytest.approx(PHI**lag, abs=0.12)
    assert np.corrcoef(a, drawn["b"].to_numpy())[0, 1] == pytest.approx(TOGETHER, abs=0.07)


def test_a_series_depends_on_its_seed_and_number_only(model: SeriesModel) -> None:
    some, more = model.sample(length=40, series=2, seed=3), model.sample(length=40, series=4, seed=3)
    assert_frame_equal(some, more.filter(pl.col("series") < 2), abs_tol=1e-4)
    assert_frame_equal(some, model.sample(length=40, series=2, seed=3))
    assert not some["a"].equals(model.sample(length=40, series=2, seed=4)["a"])


def test_a_series_may_be_shorter_than_a_window(model: SeriesModel) -> None:
    drawn = model.sample(length=5, start=datetime(2025, 1, 1))
    assert drawn["at"].to_list() == [datetime(2025, 1, 1) + timedelta(minutes=10 * k) for k in range(5)]


def test_a_forecast_has_the_conditional_distribution(model: SeriesModel) -> None:
    history = autoregression(40, seed=5)
    drawn = model.sample(given=history, length=8, series=400, seed=6)
    assert drawn.height == 400 * 48
    futures = drawn.filter(pl.col("at") > history["at"][-1])["a"].to_numpy().reshape(400, 8)
    assert_frame_equal(drawn[:40].drop("series"), history)
    ahead = np.arange(1, 9)
    last = (history["a"][-1] - 20) / 2
    z = (futures - 20) / 2
    assert np.abs(z.mean(axis=0) - last * PHI**ahead).max() < 0.2
    assert np.abs(z.std(axis=0) - np.sqrt(1 - PHI ** (2 * ahead))).max() < 0.15


def test_other_sensors_are_taken_into_account(model: SeriesModel) -> None:
    truth = autoregression(60, seed=7)
    drawn = model.sample(given=truth.drop("b"), series=200, seed=8)
    b = drawn["b"].to_numpy().reshape(200, 60)
    # The two have the same dynamics, so b given all of a is TOGETHER times a, plus an AR(1) of what is left.
    expected = TOGETHER * (truth["a"].to_numpy() - 20) / 2
    assert np.abs(b.mean(axis=0) - expected).mean() < 0.12
    assert b.std(axis=0).mean() == pytest.approx((1 - TOGETHER**2) ** 0.5, abs=0.08)


def test_gaps_get_their_conditional_mean_and_honest_intervals(model: SeriesModel) -> None:
    truth = autoregression(900, seed=9)
    rng = np.random.default_rng(0)
    gone = rng.choice(np.arange(1, 899), 90, replace=False)
    a = truth["a"].to_list()
    for k in gone:
        a[k] = None
    b = truth["b"].set(pl.Series(np.isin(np.arange(900), gone)), None)
    frame = truth.with_columns(pl.Series("a", a), b)
    reports: list[object] = []
    filled = model.impute(frame, draws=15, interval=0.8, on_report=reports.append)
    alone = [k for k in gone if not {k - 1, k + 1} & set(gone.tolist())]
    z = (truth["a"].to_numpy() - 20) / 2
    expected = np.array([PHI / (1 + PHI**2) * (z[k - 1] + z[k + 1]) for k in alone])
    found = (filled["a"].to_numpy()[alone] - 20) / 2
    assert np.abs(found - expected).mean() < 0.12
    within = (filled["a_low"] <= truth["a"]) & (truth["a"] <= filled["a_high"])
    assert within.to_numpy()[gone].mean() == pytest.approx(0.8, abs=0.12)
    assert filled["a_low"].null_count() == 900 - 90
    kept = np.setdiff1d(np.arange(900), gone)
    assert_frame_equal(filled[kept].select(frame.columns), truth[kept])
    (report,) = reports
    assert report["a"].cells == 90  # type: ignore[index]
    assert set(report["a"].errors) >= {"model", "linear", "neighbours"}  # type: ignore[index]


def test_the_posterior_is_that_of_a_gaussian() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(9, 9))
    covariance, sigma = root @ root.T, 0.7
    variance, basis = np.linalg.eigh(covariance)
    x0 = root @ rng.normal(size=9)
    x = x0 + sigma * rng.normal(size=9)
    denoised = covariance @ np.linalg.solve(covariance + sigma**2 * np.eye(9), x)
    for known in ([0, 3], [0, 1, 2, 4, 5, 7]):
        mask = np.isin(np.arange(9), known)
        # The joint of the whole, its noisy observation and some exact ones, conditioned the long way.
        seen = np.concatenate([covariance, covariance[:, mask]], axis=1)
        both = np.block(
            [
                [covariance + sigma**2 * np.eye(9), covariance[:, mask]],
                [covariance[mask], covariance[np.ix_(mask, mask)]],
            ]
        )
        expected = seen @ np.linalg.solve(both, np.concatenate([x, x0[mask]]))
        posterior = Posterior(basis, variance)
        found = posterior.given(denoised[None], mask[None], x0[None], sigma)[0]
        assert np.allclose(found, expected, atol=1e-6)


def test_a_fall_of_temperature_is_carried_over(model: SeriesModel) -> None:
    truth = autoregression(80, seed=11)
    high = model.translate(truth, {"a": (truth["a"] + 4).to_list()}, strength=0.7, seed=1)
    assert_frame_equal(high.select("at"), truth.select("at"))
    assert (high["a"] - truth["a"]).to_numpy() == pytest.approx(4)
    moved = high["b"].to_numpy() - truth["b"].to_numpy()
    assert 0.8 < moved.mean() < 2.2  # TOGETHER x 4 / 2 = 1.6, less what the start holds on to
    assert np.corrcoef(high["b"].to_numpy(), truth["b"].to_numpy())[0, 1] > 0.65
    kept = model.translate(truth, {"a": 24.0}, keep=["b"])
    assert kept["b"].equals(truth["b"])


def test_what_repeats_is_drawn_as_it_was_recorded() -> None:
    """Machines with units of their own, a sensor of few values, whole numbers, and a switch that says where the level is."""
    rng = np.random.default_rng(0)
    tables = []
    for entity, level in (("x", 100.0), ("y", 500.0)):
        on = np.repeat(rng.integers(0, 2, 60), 20)
        wave = np.sin(np.arange(1200) / 3) + 3 * on + rng.normal(0, 0.1, 1200)
        tables.append(
            pl.DataFrame(
                {
                    "at": np.arange(1200),
                    "machine": entity,
                    "flow": (level + 20 * wave).round().astype(int),
                    "step": rng.integers(0, 4, 1200) * 10,
                    "mode": np.where(on, "on", "off"),
                }
            )
        )
    frame = pl.concat(tables)
    model = fitted(frame, entity="machine", normalise="entity")
    drawn = model.sample(windows=80, seed=1)
    assert drawn.schema == {"series": pl.Int64, **frame.select("machine", "at", "flow", "step", "mode").schema}
    assert set(drawn["step"]) <= {0, 10, 20, 30}
    assert set(drawn["mode"]) == {"on", "off"}
    assert drawn["at"].min() == 1200
    middle = drawn.group_by("machine").agg(pl.col("flow").mean()).sort("machine")["flow"].to_list()
    assert middle == pytest.approx([130, 530], abs=12)
    only = model.sample(length=30, entity="y")
    assert set(only["machine"]) == {"y"}
    assert only["flow"].min() > 400
    on = model.sample(given=pl.DataFrame({"at": np.arange(64), "machine": "x", "mode": "on"}), series=10, seed=2)
    assert set(on["mode"]) == {"on"}
    gaps = frame.with_columns(pl.when(pl.col("at") % 50 == 7).then(None).otherwise("mode").alias("mode"))
    filled = model.impute(gaps, draws=3, steps=8)
    assert (filled["mode"] == frame["mode"]).to_numpy().mean() > 0.99
    assert filled.schema == frame.schema


def test_silent_places_come_back_if_asked_for(model: SeriesModel) -> None:
    truth = autoregression(60, seed=13)
    frame = pl.concat([truth[:30], truth[33:]])
    assert model.impute(frame, draws=3).equals(frame)
    whole = model.impute(frame, draws=20, interval=0.9, every_place=True)
    assert whole["at"].equals(truth["at"])
    assert whole.null_count().select("a", "b").row(0) == (0, 0)
    assert whole["a_low"].null_count() == 57
    assert (whole["a_low"] <= whole["a_high"]).all()


def test_a_straight_line_is_filled_by_one() -> None:
    frame = pl.DataFrame({"at": np.arange(800), "a": np.abs(np.arange(800) % 200 - 100) * 1.0})
    model = fitted(frame)
    gone = np.isin(np.arange(800), np.arange(10, 800, 17))
    reports: list[object] = []
    filled = model.impute(
        frame.with_columns(frame["a"].set(pl.Series(gone), None)), draws=3, steps=6, on_report=reports.append
    )
    assert reports[0]["a"].method == "linear"  # type: ignore[index]
    assert np.abs(filled["a"].to_numpy() - frame["a"].to_numpy()).max() <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either length or windows"),
        ({"length": 3, "windows": 3}, "either length or windows"),
        ({"length": 0}, "length is at least 1"),
        ({"length": 3, "series": 0}, "series is at least 1"),
        ({"length": 3, "entity": "x"}, "entity names a machine"),
        ({"given": autoregression(5), "start": START}, "given rows say entity and time"),
    ],
)
def test_contradictions_are_refused(model: SeriesModel, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.sample(**options)  # type: ignore[arg-type]


def test_what_cannot_be_given_is_refused(model: SeriesModel) -> None:
    with pytest.raises(SchemaError, match="given rows hold a sensor"):
        model.sample(given=pl.DataFrame({"at": [START]}))
    with pytest.raises(ConfigError, match="there is no sensor 'c'"):
        model.translate(autoregression(20), {"c": 1.0})
    with pytest.raises(ConfigError, match=r"changed or kept; got 'a'"):
        model.translate(autoregression(20), {"a": 1.0}, keep=["a"])
    with pytest.raises(ConfigError, match="needs at least 20 draws"):
        model.impute(autoregression(20), draws=5, interval=0.9)


def test_the_network_learns_what_is_not_gaussian_and_runs_in_onnx(tmp_path: Path) -> None:
    """Waves of one of two levels: their windows have two modes, which the best linear denoiser smears together."""
    from onnx_export.export import export

    rng = np.random.default_rng(0)
    level = np.repeat(rng.integers(0, 2, 100) * 2 - 1, 16)
    frame = pl.DataFrame({"at": np.arange(1600), "a": level + 0.1 * rng.normal(size=1600)})
    options = {
        "series": {"time": "at", "window": 8},
        "train": {"steps": 250, "batch_size": 64},
        "network": {"width": 32},
    }
    model = fit_series(frame, FitConfig.model_validate(options))
    linear = fit_series(frame, FitConfig.model_validate({**options, "train": {"steps": 1, "learning_rate": 1e-7}}))
    real, ours, smeared = (
        np.lib.stride_tricks.sliding_window_view(frame["a"].to_numpy(), 8),
        *(each.sample(windows=300, seed=1)["a"].to_numpy().reshape(300, 8) for each in (model, linear)),
    )
    # A level lasts 16 places, so a real window of 8 changes it once at most.
    changes = [(np.diff(np.sign(x), axis=1) != 0).sum(axis=1).mean() for x in (real, ours, smeared)]
    assert changes[0] < changes[1] < 0.85 * changes[2]
    model.save(tmp_path / "model")
    export(tmp_path / "model")
    compiled = load_series(tmp_path / "model", runtime="onnx")
    assert_frame_equal(
        compiled.sample(length=30, series=2, seed=4), model.sample(length=30, series=2, seed=4), abs_tol=1e-3
    )


def test_the_command_line_draws_and_fills_series(model: SeriesModel, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    truth = autoregression(80, seed=15)
    truth.with_columns(b=pl.when(pl.int_range(80) % 9 == 4).then(None).otherwise("b")).write_parquet(
        tmp_path / "holed.parquet"
    )

    def run(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return result.exit_code, result.output

    code, said = run("sample", tmp_path / "m", "--length", 30, "--seed", 3, "--out", tmp_path / "s.parquet")
    assert code == 0, said
    assert_frame_equal(pl.read_parquet(tmp_path / "s.parquet"), model.sample(length=30, seed=3), abs_tol=1e-4)
    code, said = run("impute", tmp_path / "m", tmp_path / "holed.parquet", "--out", tmp_path / "f.parquet")
    assert code == 0, said
    assert "b: 9 gaps by" in said
    assert pl.read_parquet(tmp_path / "f.parquet")["b"].null_count() == 0
    for options, message in (
        (("--rows", 5), "--rows is for the model of a table"),
        (("--length", 5, "--sampler", "heun"), "drawn with dpmpp_2m"),
        ((), "either length or windows"),
    ):
        code, said = run("sample", tmp_path / "m", *options, "--out", tmp_path / "no.parquet")
        assert code == 1
        assert message in " ".join(said.split())
        assert not (tmp_path / "no.parquet").exists()
