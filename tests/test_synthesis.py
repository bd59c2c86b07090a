"""Rows as they are asked for: conditions, balance, constraints, copies, translation, gaps with intervals."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import stats

import tabdiff
from tabdiff import FitConfig, Model, SampleConfig
from tabdiff.constraints import Among, Combinations, Order, Range, Sum, Unique
from tabdiff.errors import ConfigError, SchemaError, SynthesisError
from tabdiff.generation import SampleReport
from tabdiff.originals import Originals
from tabdiff.restrictions import parse_given

ROWS = 1500


def people(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    """Income depends on age and group; days are in order; parts add up; one town is rare, some ages are missing."""
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 80, rows)
    group = np.where(rng.random(rows) < (age - 10) / 80, "b", "a").astype(object)
    group[rng.random(rows) < 0.06] = "c"
    wage = (20 + 0.8 * age + 12 * (group == "b") + rng.normal(0, 4, rows)).round(1)
    bonus = np.where(rng.random(rows) < 0.5, 0.0, rng.gamma(2, 3, rows).round(1))
    town = rng.choice(["north", "south"], rows).astype(object)
    town[:3] = "hamlet"
    joined = [datetime(2020, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, 900, rows)]
    return pl.DataFrame(
        {
            "age": age,
            "group": group,
            "wage": wage,
            "bonus": bonus,
            "income": (wage + bonus).round(1),
            "town": town,
            "joined": joined,
            "left": [d + timedelta(days=int(e)) for d, e in zip(joined, rng.integers(1, 400, rows), strict=True)],
            "rating": [
                None if g else r for g, r in zip(rng.random(rows) < 0.2, rng.normal(size=rows).tolist(), strict=True)
            ],
        }
    )


@pytest.fixture(scope="module")
def real() -> pl.DataFrame:
    return people()


@pytest.fixture(scope="module")
def model(real: pl.DataFrame) -> Model:
    """Trained for some seconds: enough to tell a condition from none."""
    config = FitConfig.model_validate({"train": {"steps": 700, "batch_size": 256}, "network": {"width": 64}})
    return tabdiff.fit(real, config)


def drawn(model: Model, rows: int, **arguments: object) -> tuple[pl.DataFrame, SampleReport]:
    reports: list[SampleReport] = []
    frame = model.sample(rows, on_report=reports.append, **arguments)  # type: ignore[arg-type]
    return frame, reports[0]


# -------------------------------------------------------------------------------------------- conditions


def test_a_range_is_obeyed_exactly_and_the_rest_is_as_in_the_training_rows_there(model, real):
    """The independent check: rows of the table in the range, against the unconditional ones."""
    rows, report = drawn(model, 500, given={"age": (60, 70)})
    assert rows["age"].is_between(60, 70).all()
    assert set(rows["age"]) == set(range(60, 71))
    there = people(6000, seed=9).filter(pl.col("age").is_between(60, 70))
    assert stats.ks_2samp(there["wage"], rows["wage"]).statistic < 0.2
    assert stats.ks_2samp(real["wage"], rows["wage"]).statistic > 0.28
    assert abs((there["group"] == "b").mean() - (rows["group"] == "b").mean()) < 0.12
    trained = real.filter(pl.col("age").is_between(60, 70))  # the value itself is drawn as in training
    assert stats.ks_2samp(trained["age"], model.sample(3000, given={"age": (60, 70)})["age"]).statistic < 0.05
    assert report.acceptance > 0.5  # the range itself costs nothing; the other rules do


def test_open_ends_dates_and_sets(model, real):
    rows = model.sample(200, given={"age": (None, 25), "joined": (datetime(2021, 1, 1), None), "group": ["b", "c"]})
    assert rows["age"].max() <= 25
    assert rows["joined"].min() >= datetime(2021, 1, 1)
    assert set(rows["group"]) == {"b", "c"}
    there = real.filter(pl.col("group").is_in(["b", "c"]))
    only = model.sample(600, given={"group": {"b", "c"}})
    assert abs((only["group"] == "c").mean() - (there["group"] == "c").mean()) < 0.06
    assert abs(only["wage"].mean() - there["wage"].mean()) < 3


def test_exact_values_are_exact_to_the_last_bit(model):
    rows = model.sample(50, given={"wage": 61.7, "joined": datetime(2021, 5, 4)})
    assert set(rows["wage"]) == {61.7}
    assert set(rows["joined"]) == {datetime(2021, 5, 4)}
    partial = pl.DataFrame({"age": [30, None, 50], "group": ["b", "a", None]})
    done = model.sample(given=partial)
    assert done["age"][0] == 30
    assert done["age"][2] == 50
    assert done["group"][:2].to_list() == ["b", "a"]
    assert done.select("age", "group").null_count().sum_horizontal().item() == 0


def test_rows_do_not_depend_on_how_many_are_drawn(model):
    arguments = {"given": {"age": (30, 40), "group": ["a", "b"]}, "seed": 5}
    assert_frame_equal(model.sample(60, **arguments), model.sample(90, **arguments).head(60), abs_tol=1e-3)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["group=a"], {"group": "a"}),
        (["rating="], {"rating": None}),
        (["age=30..40"], {"age": Range(column="age", low=30, high=40)}),
        (["age>=30", "age<40"], {"age": Range(column="age", low=30, high=39)}),
        (["age>30"], {"age": Range(column="age", low=31)}),
        (["age>30.5", "age<40.5"], {"age": Range(column="age", low=31, high=40)}),
        (["wage <= 30.5"], {"wage": Range(column="wage", high=30.5)}),
        (["group in {a, b}"], {"group": Among(column="group", values=("a", "b"))}),
        (["town=a..b"], {"town": "a..b"}),
        (["joined=2020-01-01..2020-01-02"], {"joined": Range(column="joined", low=1577836800e6, high=1577923200e6)}),
    ],
)
def test_conditions_of_the_command_line(model, texts, expected):
    assert parse_given(texts, model.schema) == expected


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"age": (40, 30)}, ConfigError, "nothing is between 40 and 30"),
        ({"age": ("old", None)}, ConfigError, "cannot end at 'old'"),
        ({"group": ("a", "b")}, ConfigError, "Give a list for a set"),
        ({"age": (float("nan"), 40)}, ConfigError, "cannot end at nan"),
        ({"group": []}, ConfigError, "at least one value"),
        ({"group": ["a", None]}, ConfigError, "missing is none"),
        ({"rating": [None]}, ConfigError, "missing is none"),
        ({"joined": ("soon", None)}, ConfigError, "cannot end at 'soon'"),
        ({"age": (200, 300)}, SynthesisError, "none has 200 <= age <= 300"),
        ({"group": ["nobody"]}, SynthesisError, "none has group in {nobody}"),
        ({"nope": [1]}, SchemaError, "'nope'"),
        ({"wage": (30, 40), "income": (70, 80)}, SynthesisError, "came out"),
    ],
)
def test_impossible_conditions_end_in_an_error(model, given, error, message):
    with pytest.raises(error, match=message):
        model.sample(50, given=given)


def test_a_value_that_training_never_showed_is_refused_with_those_it_did(model):
    with pytest.raises(SchemaError, match="Give one of 'b', 'a', 'c'") as told:
        model.sample(5, given={"group": "nobody"})
    # Frequent ones first. Nothing is pooled in this column, and one given value has no row.
    assert "__other__" not in str(told.value)
    assert "row 1" not in str(told.value)
    with pytest.raises(SchemaError, match=r"found None\. No training row has a gap here"):
        model.sample(5, given={"wage": None})
    with pytest.raises(SchemaError, match="'nobody' in row 2"):
        model.sample(given=pl.DataFrame({"group": ["a", "nobody"]}))


def test_a_value_of_a_set_that_training_never_showed_is_told_of(model):
    with pytest.warns(tabdiff.errors.TabdiffWarning, match="no training row has 'nobody'"):
        rows = model.sample(20, given={"group": ["a", "nobody"]})
    assert set(rows["group"]) == {"a"}


# ----------------------------------------------------------------------------------------------- balance


def test_balance_gives_exact_counts(model):
    rows = model.sample(99, balance="group")
    assert dict(rows["group"].value_counts().iter_rows()) == {"a": 33, "b": 33, "c": 33}
    shares = model.sample(100, balance={"group": {"a": 3, "c": 1}})
    assert dict(shares["group"].value_counts().iter_rows()) == {"a": 75, "c": 25}
    ages = model.sample(40, balance={"age": {(18, 30): 0.5, (60, 79): 0.5}})
    assert ages["age"].is_between(18, 30).sum() == ages["age"].is_between(60, 79).sum() == 20
    joint = model.sample(60, balance={("group", "town"): {("a", "north"): 1, ("b", "south"): 2}})
    counts = dict(zip(*joint.group_by("group", "town").len().sort("group").select(["group", "len"]), strict=True))
    assert counts == {"a": 20, "b": 40}
    even = model.sample(60, balance=["group", "town"]).group_by("group", "town").len()
    assert even["len"].to_list() == [10] * 6


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ("age", "is integer"),
        ("nope", "modelled columns; got 'nope'"),
        ({"group": {"a": -1}}, "at least 0"),
        ({"group": {}}, "a share to each value"),
        ({("group", "town"): {"a": 1}}, "as a tuple"),
        ({"group": {"a": 1}, "town": {"north": 1}}, "one key"),
        ({"group": {"a": 0}}, "a share above 0"),
    ],
)
def test_bad_balances_are_refused(model, balance, message):
    with pytest.raises(ConfigError, match=message):
        model.sample(10, balance=balance)


# ------------------------------------------------------------------------------------------- constraints


def test_found_rules_hold_in_every_row(model):
    assert {str(rule) for rule in model.constraints} >= {"income = wage + bonus", "joined < left"}
    rows, report = drawn(model, 600)
    assert (rows["joined"] < rows["left"]).all()
    assert ((rows["wage"] + rows["bonus"] - rows["income"]).abs() < 1e-6).all()
    assert rows["income"].is_between(people()["income"].min(), people()["income"].max()).all()
    assert report.repaired > 0
    free = model.sample(600, constraints=[])
    assert (free["wage"] + free["bonus"] - free["income"]).abs().max() > 0.1


def test_declared_rules_hold_and_acceptance_is_reported(model):
    rules = [Range(column="age", low=30), Order(columns=("bonus", "wage")), Among(column="town", values=("north",))]
    rows, report = drawn(model, 300, constraints=rules)
    assert rows["age"].min() >= 30
    assert set(rows["town"]) == {"north"}
    assert 0.25 < report.acceptance < 0.6
    assert report.broken["town in {north}"] > report.broken["30 <= age"] > 0
    whole = model.constrained(rules)
    assert whole.constraints == tuple(rules)
    assert_frame_equal(whole.sample(300), rows)


def test_uniqueness_holds_over_the_whole_sample(model):
    rows = model.sample(45, constraints=[Unique(columns=("age",))])
    assert rows["age"].n_unique() == 45
    with pytest.raises(SynthesisError, match="age: no two rows alike"):
        model.sample(80, constraints=[Unique(columns=("age",))])


@pytest.mark.parametrize(
    "rule",
    [
        Range(column="age", low=500),
        Sum(total="bonus", parts=("age", "wage")),
        Combinations(columns=("group", "town"), rows=(("zz", "zz"),)),
    ],
    ids=str,
)
def test_an_impossible_rule_is_an_error_not_a_loop(model, rule):
    with pytest.raises(SynthesisError, match="0 came out"):
        model.sample(20, constraints=[rule])


def test_given_cells_survive_repairs(model):
    rows = model.sample(100, given={"income": 70.0})
    assert set(rows["income"]) == {70.0}
    assert ((rows["wage"] + rows["bonus"]) - 70).abs().max() < 1e-6


def test_the_users_own_rule(model):
    rows, report = drawn(model, 100, where=lambda frame: frame["wage"] > 70)
    assert rows["wage"].min() > 70
    assert report.acceptance < 0.6
    with pytest.raises(ConfigError, match=r"got shape \(\)"):
        model.sample(10, where=lambda frame: True)


def test_rules_travel_with_the_model(model, tmp_path):
    changed = model.constrained([Sum(total="income", parts=("wage", "bonus"))])
    changed.save(tmp_path / "m")
    assert tabdiff.load(tmp_path / "m").constraints == changed.constraints
    with pytest.raises(ConfigError, match="names 'nope'"):
        model.constrained([Unique(columns=("nope",))])


# --------------------------------------------------------------------------- rare, missing, copies


def test_rare_categories_are_suppressed_and_never_invented(model, real):
    rows = model.sample(1000)
    assert set(rows["town"]) == {"north", "south"}
    nulls = model.sample(1000, config=SampleConfig(rare="null"))
    assert set(nulls["town"]) <= {"north", "south", None}
    kept = model.sample(1000, config=SampleConfig(rare="keep"))
    assert set(kept["town"]) <= set(real["town"])
    assert set(model.sample(5, given={"town": "hamlet"})["town"]) == {"hamlet"}


def test_missing_values_are_synthesised_or_filled(model, real):
    kept, filled = model.sample(900), model.sample(900, config=SampleConfig(missing="fill"))
    assert abs(kept["rating"].null_count() / 900 - real["rating"].null_count() / ROWS) < 0.06
    assert filled["rating"].null_count() == 0
    assert filled["rating"].dtype == real["rating"].dtype


def test_a_sample_of_copies_is_refused_or_drawn_anew(model, monkeypatch):
    usual = model.sample(200)
    memory = Originals.of(model.schema.conform(usual), model.schema.conform(usual[:2]), model.codec.columns, "s")
    sampling = {**model.bundle.model["sampling"], "originals": memory.to_json()}
    monkeypatch.setitem(model.bundle.model, "sampling", sampling)
    with pytest.raises(SynthesisError, match=r"200 of 200 rows equal.*copies=redraw"):
        model.sample(200)
    fresh = model.sample(200, config=SampleConfig(copies="redraw"))
    assert not memory.copies(model.schema.conform(fresh)).any()
    assert_frame_equal(model.sample(200, config=SampleConfig(copies="keep")), usual)


def test_little_is_in_hand_however_few_of_the_drawn_rows_come_out(model, monkeypatch):
    monkeypatch.setattr("tabdiff.generation._PLACES", 32)
    sizes: list[int] = []

    def rich(frame: pl.DataFrame) -> pl.Series:
        sizes.append(frame.height)
        return frame["wage"] > 75

    rows, report = drawn(model, 150, where=rich)
    assert (rows.height, sum(sizes)) == (150, report.drawn)
    assert (rows["wage"] > 75).all()
    assert sizes[0] == 32  # five parts of at most so many places, with a try for each at first, then two, four ...
    assert max(sizes) < report.drawn / 4
    assert_frame_equal(model.sample(100, where=rich), rows[:100])


def test_copies_in_excess_are_drawn_anew_and_other_rows_stay(model, monkeypatch):
    usual = model.sample(200, config=SampleConfig(copies="keep"))
    known = model.schema.conform(usual[60:200:28])
    memory = replace(Originals.of(known, known[:0], model.codec.columns, "s"), rows=3000, paired=30)  # 1 in 100
    sampling = {**model.bundle.model["sampling"], "originals": memory.to_json()}
    monkeypatch.setitem(model.bundle.model, "sampling", sampling)
    rows, report = drawn(model, 200)
    assert (report.copies, report.broken["copies of training rows"]) == (1, 4)
    changed = usual.with_row_index().join(
        rows.with_row_index(), on=["index", *rows.columns], how="anti", nulls_equal=True
    )
    assert changed["index"].to_list() == [60, 88, 144, 172]
    assert_frame_equal(model.sample(100), rows[:100])


def test_a_model_without_memory_remembers_no_rows(real):
    config = FitConfig.model_validate({"train": {"steps": 2}, "network": {"width": 8}, "score": {"kernel_rows": 0}})
    bare = tabdiff.fit(real.head(100), config)
    assert "originals" not in bare.bundle.model["sampling"]
    assert drawn(bare, 5)[1].copies is None


# ------------------------------------------------------------------------------------------- translation


def test_translation_changes_what_is_asked_and_keeps_the_rest(model, real):
    source = real.filter(pl.col("group") == "a").head(250)
    moved = model.translate(source, {"group": "b"}, strength=0.5, keep=["age"])
    assert set(moved["group"]) == {"b"}
    assert moved["age"].equals(source["age"])
    gains = [
        (model.translate(source, {"group": "b"}, strength=t, keep=["age"])["wage"] - source["wage"]).mean()
        for t in (0.3, 0.9)
    ]
    assert gains[0] < (moved["wage"] - source["wage"]).mean() < gains[1]
    assert 6 < gains[1] < 18  # 12 in the truth
    afresh = model.sample(given=source.select("age").with_columns(group=pl.lit("b")))
    near, far = (abs(float(np.corrcoef(t["bonus"], source["bonus"])[0, 1])) for t in (moved, afresh))
    assert near > far + 0.3  # the bonus has nothing to do with age or group: only the source row tells it
    still = model.translate(source, {"group": "a"}, strength=0.05)
    assert float(np.corrcoef(still["wage"], source["wage"])[0, 1]) > 0.97
    assert (moved["joined"] < moved["left"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"changed": {"group": "b"}, "strength": 0}, "strength is above 0"),
        ({"changed": {"group": "b"}, "keep": ["group"]}, "'group' in both"),
        ({"changed": {"group": "b"}, "keep": ["nope"]}, "got 'nope'"),
    ],
)
def test_bad_translations_are_refused(model, real, arguments, message):
    with pytest.raises(ConfigError, match=message):
        model.translate(real.head(5), **arguments)


# ------------------------------------------------------------------------------------------------ gaps


def test_intervals_hold_the_share_they_promise(model):
    truth = people(150, seed=4)
    holed = truth.with_columns(wage=pl.lit(None, dtype=pl.Float64), income=pl.lit(None, dtype=pl.Float64))
    filled = model.impute(holed, draws=20, interval=0.8, config=SampleConfig(steps=10))
    assert filled.columns == [
        *truth.columns,
        "wage_low",
        "wage_high",
        "income_low",
        "income_high",
        "rating_low",
        "rating_high",
    ]
    inside = truth["wage"].is_between(filled["wage_low"], filled["wage_high"]).mean()
    assert 0.65 < inside < 0.95
    assert (filled["wage_low"] <= filled["wage"]).all()
    there = truth["rating"].is_not_null()
    assert filled["rating_low"].filter(there).null_count() == there.sum()
    assert filled["rating_low"].filter(~there).null_count() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 1.5}, "inside"),
        ({"interval": 0.9}, "at least 20 draws; got 15"),
        ({"draws": 0}, "at least 1"),
    ],
)
def test_bad_intervals_are_refused(model, real, arguments, message):
    with pytest.raises(ConfigError, match=message):
        model.impute(real, **arguments)
