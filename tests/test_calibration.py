"""p-values, rules for flags, and feedback: against their definitions, by simulation, and on real labels."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.feature_selection import SelectFdr
from sklearn.metrics import average_precision_score, precision_recall_curve
from typer.testing import CliRunner

import tabdiff
from tabdiff import ConfigError, FitConfig, Model, TabdiffWarning
from tabdiff.bundle import Bundle
from tabdiff.cli import app
from tabdiff.config import ScoreConfig, parse_fit_config
from tabdiff.flags import Rule, benjamini_hochberg, tail_quantile

TINY = {"train": {"steps": 30, "batch_size": 64}, "network": {"width": 32, "blocks": 1}}
rng = np.random.default_rng(0)


def table(x: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(x.astype(float), schema=[f"x{index}" for index in range(x.shape[1])], orient="row")


def fitted(x: np.ndarray, **score: object) -> Model:
    kinds = {name: {"kind": "continuous"} for name in table(x).columns}
    return tabdiff.fit(table(x), FitConfig.model_validate({**TINY, "score": score}), overrides=kinds)


# ---------------------------------------------------------------------------------------------------- p-values


def correlated(rows: int, columns: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(columns, columns))
    return draw.normal(size=(rows, columns)) @ mixing


def p_values_of_new_rows(rows: int, columns: int, splits: int, **score: object) -> np.ndarray:
    """(splits, 60): every split fits anew."""
    found = []
    for seed in range(splits):
        x = correlated(rows + 60, columns, seed)
        found.append(fitted(x[:rows], **score).score(table(x[rows:])).p_value)
    return np.stack(found)


@pytest.mark.parametrize(
    "score",
    [{}, {"turns": 1}, {"contaminated": True}, {"kernel_rows": 0}, {"kernel_rows": 30}],
    ids=["turns", "one split", "contaminated", "no stored rows", "few stored rows"],
)
def test_few_rows_of_many_columns_do_not_get_p_values_too_small(score: dict[str, object]):
    """50 rows of 12 columns, where a row leans heavily on the metric that it takes part in."""
    p = p_values_of_new_rows(50, 12, 6, **score)
    for level in (0.05, 0.1, 0.2, 0.5):
        by_split = (p <= level).mean(axis=1)
        assert by_split.mean() <= level + 2.5 * by_split.std(ddof=1) / np.sqrt(len(p)) + 0.01, (level, by_split)


@pytest.mark.slow
def test_p_values_of_normal_rows_are_not_too_small_and_the_false_discovery_rate_holds():
    p = p_values_of_new_rows(200, 5, 15)
    assert 0.3 < p.mean() < 0.6
    by_split = [stats.kstest(one, "uniform", alternative="greater").pvalue for one in p]  # too many small ones
    assert np.mean(np.array(by_split) < 0.05) <= 0.4  # rows of a split share one calibration set
    assert stats.kstest(p[:, :2].ravel(), "uniform", alternative="greater").pvalue > 1e-3
    for rate in (0.05, 0.1, 0.2):
        share = np.array([found.mean() > 0 for found in (benjamini_hochberg(one, rate) for one in p)])
        # Without anomalies every flag is false, so the rate is how often there is any flag at all.
        assert share.mean() <= rate + 2.5 * np.sqrt(rate * (1 - rate) / len(p))


def test_every_row_of_a_small_table_calibrates():
    x = correlated(90, 3, 0)
    assert len(fitted(x).calibration.normal) == 90
    assert len(fitted(x, turns=1).calibration.normal) == round(0.15 * 90)
    assert fitted(x).score(table(x + 100)).p_value.max() == 1 / 91


def test_copies_are_as_normal_in_training_as_they_are_later():
    x = np.repeat(correlated(40, 3, 0), 3, axis=0)
    p = fitted(x).score(table(x)).p_value
    assert p.min() > 0.02
    assert np.mean(p <= 0.2) < 0.2 + 2.5 * np.sqrt(0.2 * 0.8 / 40)  # 40 rows are different


# ---------------------------------------------------------------------------------------------------- rules


def test_fdr_flags_are_benjamini_hochberg():
    p = np.concatenate([rng.random(200), rng.random(20) * 1e-3])
    ours = benjamini_hochberg(p, 0.1)
    theirs = SelectFdr(lambda x, y: (-p, p), alpha=0.1).fit(np.zeros((2, len(p))), [0, 1]).get_support()
    np.testing.assert_array_equal(ours, theirs)


def test_contamination_flags_exactly_that_share_even_with_ties():
    nothing = np.zeros(0)
    assert Rule("contamination", 0.05).flag(np.zeros(200), np.ones(200), nothing).sum() == 10
    scores = rng.random(200)
    flagged = Rule("contamination", 0.1).flag(scores, scores, nothing)
    assert set(np.flatnonzero(flagged)) == set(np.argsort(-scores)[:20])


def test_alerts_come_as_often_as_asked():
    shares = []
    for seed in range(30):
        draw = np.random.default_rng(seed)
        normal, new = np.sort(draw.chisquare(2, 1000)), draw.chisquare(2, 20_000)
        shares.append(Rule("alerts_per_day", 500.0, 24_000.0).flag(new, new, normal).mean())
    assert abs(np.mean(shares) - 500 / 24_000) < 3 * np.std(shares) / np.sqrt(30) + 1e-3


def test_an_alert_is_a_p_value_at_most_the_share():
    normal = np.sort(rng.chisquare(2, 99))
    scores = np.concatenate([normal, normal + 1e-9, rng.chisquare(2, 500)])
    p = np.array([(1 + (normal >= score).sum()) / 100 for score in scores])
    for alerts in (12.0, 20.0):
        np.testing.assert_array_equal(Rule("alerts_per_day", alerts, 100.0).flag(scores, p, normal), p <= alerts / 100)


@pytest.mark.parametrize("share", [3e-3, 3.4e-4])
def test_the_fitted_tail_is_within_its_factor_of_three(share: float):
    """Scores of five correlated views, as Gaussian and as Laplace."""
    ratios = []
    for seed in range(15):
        draw = np.random.default_rng(seed)
        for noise in (draw.normal, draw.laplace):
            z = noise(0, 0.5, (1000, 5)) + noise(0, 0.4, (1000, 1))
            big = noise(0, 0.5, (40_000, 5)) + noise(0, 0.4, (40_000, 1))
            normal, new = (np.square(np.maximum(part, 0)).sum(axis=1) for part in (z, big))
            ratios.append((new > tail_quantile(np.sort(normal), share)).mean() / share)
    assert 1 / 3 < np.mean(ratios) < 3


def test_alerts_beyond_what_the_rows_tell_are_refused_or_warned_of():
    normal = np.sort(rng.chisquare(2, 1500))
    with pytest.raises(
        ConfigError, match=r"1500 calibration rows cannot tell .* in 1,000,000 passes.*2\.2e\+02 alerts"
    ):
        Rule("alerts_per_day", 1.0, 1e6).threshold(normal)
    with pytest.warns(TabdiffWarning, match="extrapolated"):
        assert Rule("alerts_per_day", 400.0, 1e6).threshold(normal) > normal[-100]
    with pytest.raises(ConfigError, match="30 calibration rows cannot tell"):
        Rule("alerts_per_day", 1.0, 100.0).threshold(normal[:30])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"fdr": 0.1, "contamination": 0.1}, "one rule"),
        ({"fdr": 0.0}, "share inside"),
        ({"contamination": 1.0}, "share inside"),
        ({"alerts_per_day": 5.0}, "needs the number of rows"),
        ({"alerts_per_day": 5.0, "rows_per_day": 4.0}, "below rows_per_day"),
        ({"rows_per_day": 4.0}, "goes with alerts_per_day"),
        ({"fdr": 0.1, "rows_per_day": 4.0}, "goes with alerts_per_day"),
    ],
)
def test_rules_are_checked(rules: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        Rule.choose(ScoreConfig(), **rules)


def test_one_rule_is_stored():
    assert ScoreConfig().rule == {"fdr": 0.05}
    assert ScoreConfig.model_validate({"contamination": 0.01}).rule == {"contamination": 0.01}
    alerts = parse_fit_config(settings=["score.alerts_per_day=5", "score.rows_per_day=24000"])
    assert FitConfig.model_validate(alerts.model_dump()) == alerts
    assert Rule.choose(alerts.score).label == "5 alerts a day among 24,000 normal rows"
    for wrong in (["score.fdr=0.1", "score.contamination=0.1"], ["score.rows_per_day=5"]):
        with pytest.raises(ConfigError, match="score"):
            parse_fit_config(settings=wrong)


def test_rows_a_day_come_from_the_times_of_the_training_table(tmp_path: Path):
    x = correlated(241, 2, 0)
    times = [datetime(2024, 1, 1) + timedelta(hours=hour) for hour in range(241)]
    frame = table(x).with_columns(pl.Series("read_at", times))
    config = FitConfig.model_validate({**TINY, "score": {"alerts_per_day": 2.4, "turns": 2}})
    model = tabdiff.fit(frame, config, overrides={"read_at": {"role": "time"}})
    assert model.rule().rows_per_day == pytest.approx(24)
    model.save(tmp_path / "model")
    loaded = tabdiff.load(tmp_path / "model")
    new = frame.with_columns(pl.all().exclude("read_at") * 1.3)
    together = loaded.score(new).flagged
    alone = np.concatenate([loaded.score(new[hour : hour + 1]).flagged for hour in range(30)])
    np.testing.assert_array_equal(together[:30], alone)
    np.testing.assert_array_equal(together, model.score(new, alerts_per_day=2.4, rows_per_day=24).flagged)
    assert "2.4 alerts a day among 24 normal rows" in Bundle.read(tmp_path / "model").card()
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "model")])
    assert "2.4 alerts a day among 24 normal rows" in " ".join(shown.output.split())
    with pytest.raises(ConfigError, match="needs the number of rows"):
        tabdiff.fit(table(x), config)


def test_alerts_on_the_command_line(small_bundle: Path, tmp_path: Path, mixed_table: Callable[..., pl.DataFrame]):
    mixed_table(50, seed=1).write_parquet(tmp_path / "new.parquet")
    common = ["score", str(small_bundle), str(tmp_path / "new.parquet"), "--out", str(tmp_path / "scores.parquet")]
    done = CliRunner().invoke(app, [*common, "--alerts-per-day", "100", "--rows-per-day", "1000"])
    assert done.exit_code == 0, done.output
    assert "100 alerts a day among 1,000 normal rows" in " ".join(done.output.split())
    scores = pl.read_parquet(tmp_path / "scores.parquet")
    normal = np.asarray(Bundle.read(small_bundle).calibration["normal"])
    expected = scores["score"].to_numpy() > np.sort(normal)[len(normal) - int(0.1 * (len(normal) + 1))]
    np.testing.assert_array_equal(scores["flagged"].to_numpy(), expected)
    both = CliRunner().invoke(app, [*common, "--alerts-per-day", "100", "--fdr", "0.1"])
    assert both.exit_code == 1
    assert "--fdr and --alerts-per-day" in both.output


# ---------------------------------------------------------------------------------------------------- feedback


def replayed(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and precision at recall .5 and .8 on rows not judged, without and with feedback on others."""
    order = np.random.default_rng(seed)
    normal, odd = order.permutation(np.flatnonzero(y == 0)), order.permutation(np.flatnonzero(y == 1))
    third, odd = len(normal) // 3, odd[: len(normal) // 6]
    half = len(odd) // 2
    model = fitted(x[normal[:third]], turns=1)
    first = np.concatenate([normal[third : 2 * third], odd[:half]])
    second = np.concatenate([normal[2 * third :], odd[half:]])
    highest = first[np.argsort(-model.score(table(x[first])).score)[: 2 * half]]
    told = model.with_feedback(table(x[highest]), y[highest] == 1)
    found = []
    for one in (model, told):
        score = one.score(table(x[second])).score
        precision, recall, _ = precision_recall_curve(y[second], score)
        at = [precision[recall >= level].max() for level in (0.5, 0.8)]
        found.append([average_precision_score(y[second], score), *at])
    return np.array(found[0]), np.array(found[1])


def cancer() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_breast_cancer(return_X_y=True)
    return x, (y == 0).astype(int)


def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x, np.isin(y, [8, 9]).astype(int)


@pytest.mark.parametrize("data", [cancer, digits])
def test_feedback_raises_precision_at_equal_recall(data: Callable[[], tuple[np.ndarray, np.ndarray]]):
    without, told = np.mean([replayed(*data(), seed) for seed in range(2)], axis=0)
    assert told[0] > without[0] + 0.02
    assert (told[1:] >= without[1:]).all()


@pytest.fixture(scope="module")
def plain() -> Model:
    return fitted(rng.normal(size=(300, 4)), turns=2)


def test_one_false_alarm_silences_its_like_and_nothing_else(plain: Model):
    kinds = 8 * np.concatenate([np.eye(4), -np.eye(4)])
    before = plain.score(table(kinds))
    told = plain.with_feedback(table(kinds[:1]), ["false alarm"])
    after = told.score(table(kinds))
    assert after.score[0] < 0.02
    assert after.p_value[0] > 0.2
    np.testing.assert_array_equal(after.score[1:], before.score[1:])
    np.testing.assert_array_equal(after.p_value[1:], before.p_value[1:])
    np.testing.assert_allclose(after.contributions.sum(axis=1), after.score)
    like = table(kinds[:1] + 0.3 * rng.normal(size=(20, 4)))
    assert (told.score(like).score < 0.8 * plain.score(like).score).all()
    farther = table(np.array([[30.0, 0, 0, 0], [8, 60, 0, 0]]))
    assert told.score(farther).score[0] > 0.7 * plain.score(farther).score[0]
    assert told.score(farther).score[1] == plain.score(farther).score[1]


def test_confirmed_rows_raise_scores_and_never_lower_p_values(plain: Model):
    rows = table(np.array([[3.0, 0, 0, 0], [3.1, 0.1, 0, 0], [0, -3, 0, 0]]))
    before, after = plain.score(rows), plain.with_feedback(rows[:1], [True]).score(rows)
    assert after.score[0] == pytest.approx(2 * before.score[0])
    assert before.score[1] < after.score[1] < 2 * before.score[1]
    np.testing.assert_array_equal(after.p_value, before.p_value)
    assert after.score[2] == before.score[2]


def test_the_last_verdict_counts_and_the_order_of_calls_does_not(plain: Model):
    rows = table(np.array([[8.0, 0, 0, 0], [0, 8, 0, 0]]))
    changed = plain.with_feedback(rows, [True, False]).with_feedback(rows[:1], [False])
    at_once = plain.with_feedback(rows, [False, False])
    np.testing.assert_allclose(changed.score(rows).score, at_once.score(rows).score)
    assert len(changed.feedback) == 2
    assert len(plain.feedback) == 0
    assert len(plain.with_feedback(rows, [None, ""]).feedback) == 0


def test_feedback_travels_with_the_model(plain: Model, tmp_path: Path):
    rows = table(rng.normal(size=(40, 4)) * 3)
    told = plain.with_feedback(rows[:10], rng.random(10) < 0.5)
    told.save(tmp_path / "model")
    loaded = tabdiff.load(tmp_path / "model").score(rows)
    np.testing.assert_array_equal(loaded.score, told.score(rows).score)
    alone = [told.score(rows[place : place + 1]).score[0] for place in range(20)]
    np.testing.assert_allclose(loaded.score[:20], alone, rtol=1e-5)
    assert "| judged rows (feedback) | 10 |" in Bundle.read(tmp_path / "model").card()


def test_feedback_is_checked(plain: Model):
    rows = table(np.zeros((2, 4)))
    for verdicts, message in (([True], "one verdict for each row; got 1 for 2"), (["maybe", None], r"got \['maybe'\]")):
        with pytest.raises(ConfigError, match=message):
            plain.with_feedback(rows, verdicts)
    with pytest.raises(ConfigError, match="kernel_rows=0"):
        fitted(correlated(60, 3, 0), kernel_rows=0, turns=1).with_feedback(table(np.zeros((1, 3))), [True])
    contaminated = fitted(correlated(90, 3, 0), contaminated=True, turns=1)
    odd = table(np.full((1, 3), 50.0))
    assert contaminated.with_feedback(odd, [False]).score(odd).score[0] <= 0 < contaminated.score(odd).score[0]


def test_the_next_table_has_what_was_judged(small_model: Model, fitted_table: pl.DataFrame):
    new = fitted_table[:3].with_columns(price=pl.Series([1.0, 2.0, 3.0])).drop("remark")
    reviewed = pl.concat([new, fitted_table[10:12].drop("remark")])
    table = small_model.next_table(fitted_table, reviewed, [True, False, None, "confirmed", "false alarm"])
    assert table.height == 400 - 1 + 1
    assert table.columns == fitted_table.columns
    assert table[:399].equals(pl.concat([fitted_table[:10], fitted_table[11:]]))
    assert table[399].drop("remark").equals(new[1])
    assert table["remark"][399] is None


def test_feedback_on_the_command_line(small_bundle: Path, tmp_path: Path, mixed_table: Callable[..., pl.DataFrame]):
    judged = mixed_table(3, seed=1).with_columns(verdict=pl.Series(["confirmed", "false alarm", None]))
    judged.write_parquet(tmp_path / "judged.parquet")
    common = ["feedback", str(small_bundle), str(tmp_path / "judged.parquet"), "--out", str(tmp_path / "told")]
    done = CliRunner().invoke(app, common)
    assert done.exit_code == 0, done.output
    assert "1 false alarm and 1 confirmed" in done.output
    assert len(tabdiff.load(tmp_path / "told").feedback) == 2
    wrong = CliRunner().invoke(app, [*common, "--verdict", "vote"])
    assert wrong.exit_code == 1
    assert "'vote' is not among" in wrong.output
