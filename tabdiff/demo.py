"""Three real jobs, from table to report: find tumours among benign samples, draw penguins, and watch a person's gait.

Only public functions are called, so this is also an example of how to use them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.text import Text

from tabdiff import Model, fit, gait
from tabdiff.config import parse_fit_config
from tabdiff.errors import RuntimeUnavailable, SourceError
from tabdiff.evaluate import detection, fidelity, page, privacy
from tabdiff.files import atomic_write, write
from tabdiff.scoring import Scores
from tabdiff.sources import read
from tabdiff.terminal import table_of

_FILES = (
    *("breast-cancer.model", "penguins.model", "scores.parquet", "samples.parquet", "gentoo.parquet"),
    *("filled.parquet", "report.html", "gait.model", "gait.parquet", "gait.events.parquet", "gait.png"),
)
_TOP = 5


@dataclass(frozen=True)
class _Stage:
    """Where results go and who is told."""

    out: Path
    seed: int
    say: Callable[[Any], None]
    progress: Callable[[str], AbstractContextManager[Callable[[Any], None]]]

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say what is being done, and afterwards how long it took."""
        self.say(f"- {what}")
        started = time.monotonic()
        yield
        self.say(f"  done in {time.monotonic() - started:.1f} s")

    def explain(self, words: str) -> None:
        """A paragraph, wrapped at words."""
        self.say(Text(f"{words}\n"))

    def fit(self, frame: pl.DataFrame, name: str, steps: int) -> Model:
        """Fit with fewer steps than the default, which small tables do not need, and save."""
        options = parse_fit_config(None, [f"train.steps={steps}", "train.evaluate_every=50", f"train.seed={self.seed}"])
        with self.progress("  fitting") as on_event:
            model = fit(frame, options, on_event=on_event)
        model.save(self.out / name)
        return model


def run(
    out: Path,
    *,
    seed: int,
    say: Callable[[Any], None],
    progress: Callable[[str], AbstractContextManager[Callable[[Any], None]]],
) -> dict[str, Any]:
    """Do the jobs and leave models, tables and report.html in `out`.

    Args:
        out: a folder; made if it is not there.
        seed: of every split, fit and draw.
        say: shows a line of text or a rich table.
        progress: makes a consumer of training events, given a title.

    Raises:
        SourceError: the folder holds other files or cannot be written.
        RuntimeUnavailable: the package with the penguins is not installed.
    """
    started = time.monotonic()
    penguins = penguin_table()
    _make_folder(out)
    stage = _Stage(out, seed, say, progress)
    found, detection_parts = _find_tumours(stage)
    drawn, sampling_parts = _draw_penguins(stage, penguins)
    watched, series_parts = gait.watch(out, seed=seed, say=say, step=stage.step, explain=stage.explain)
    subtitle = "Anomalies in one real table, synthetic rows of another, events in a recording. All of it was computed by the demo."
    html = page.render("tabdiff demo", subtitle, [*detection_parts, *sampling_parts, *series_parts])
    with atomic_write(out / "report.html") as file:
        file.write_text(html, encoding="utf-8")
    seconds = time.monotonic() - started
    say(f"All done in {seconds:.0f} s. Look at {out / 'report.html'} in a browser. Beside it in {out}:")
    say("  tumours: breast-cancer.model, scores.parquet")
    say("  penguins: penguins.model, samples.parquet, gentoo.parquet, filled.parquet")
    if watched:
        say("  gait: gait.model, gait.parquet, gait.events.parquet, gait.png")
    say(f"Next: tabdiff show {out / 'penguins.model'}")
    say(f"      tabdiff sample {out / 'penguins.model'} --rows 5 --given species=Chinstrap --out new.csv")
    return {"out": str(out), "seconds": seconds, "detection": found, "sampling": drawn, "series": watched}


def _make_folder(out: Path) -> None:
    others = sorted(path.name for path in out.iterdir() if path.name not in _FILES) if out.is_dir() else []
    if others or (out.exists() and not out.is_dir()):
        found = f"{others[0]!r}" if others else "a file of that name"
        raise SourceError(f"{out}: the demo needs a folder of its own; found {found}. Choose another one with --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(
            f"{out}: the folder cannot be made ({error.strerror}). Choose another one with --out."
        ) from error


# -----------------------------------------------------------------------------------------------------


def tumour_table() -> tuple[pl.DataFrame, np.ndarray]:
    """30 measurements of 569 tumours, and which of them are malignant."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return pl.DataFrame(data.data, schema=[str(name) for name in data.feature_names]), data.target == 0


def _find_tumours(stage: _Stage) -> tuple[dict[str, Any], list[page.Section]]:
    frame, malignant = tumour_table()
    benign = np.flatnonzero(~malignant)
    chosen = np.sort(np.random.default_rng(stage.seed).permutation(benign)[: len(benign) // 2])
    rest = np.setdiff1d(np.arange(frame.height), chosen)
    train, test, truth = frame[chosen], frame[rest], malignant[rest]
    stage.say("1. Anomalies: tumours (Breast Cancer Wisconsin, 30 measurements of 569 tumours)\n")
    with stage.step(f"Fitting on {len(chosen)} benign tumours, half of them. No malignant one is shown."):
        model = stage.fit(train, "breast-cancer.model", 300)
    with stage.step(f"Scoring the other {(~truth).sum()} benign and all {truth.sum()} malignant tumours."):
        scores = model.score(test, contamination=0.05)
        table = scores.to_frame().with_columns(pl.Series("tumour", rest), pl.Series("malignant", truth))
        write(table, stage.out / "scores.parquet")
    with stage.step("Scoring the same tumours with three other methods."):
        left, right = detection.encode_for_controls(train, test)
        values = {
            "tabdiff": scores.score,
            "k nearest neighbours (mean of 5)": detection.nearest_neighbours_score(left, right),
            "Isolation Forest": detection.isolation_forest_score(left, right, stage.seed),
            "random order": detection.random_score(len(test), stage.seed),
        }
        results = [row.to_json() for row in detection.compare(truth.astype(int), values)]
    measures = {"name": "method", "roc_auc": "ROC AUC", "average_precision": "average precision"}
    caption = (
        f"1 is best. One split only, {len(rest)} tumours, {100 * truth.mean():.0f} % of them malignant: with "
        "another --seed each value moves by about 0.01, so smaller differences may be chance."
    )
    stage.say(table_of(results, measures, 3))
    stage.explain(caption)
    words = f"A model of {len(chosen)} benign tumours scores all others: do the malignant ones come out on top?"
    shown = np.log1p(np.maximum(scores.score, 0.0))  # the highest scores would squeeze all others into a bar
    histogram = page.score_histogram(shown[~truth], shown[truth], "Anomaly scores, as log(1 + score)")
    body = page.paragraph(words) + page.table(results, measures, caption) + histogram
    labels = [f"{name} ({'malignant' if bad else 'benign'})" for name, bad in zip(rest, truth, strict=True)]
    cards = _reasons(stage, scores, test, labels)
    sections = [
        page.Section("How high malignant tumours rank", body),
        page.Section("Why a tumour is abnormal", cards),
    ]
    return {"rows": len(rest), "methods": results}, sections


def _reasons(stage: _Stage, scores: Scores, test: pl.DataFrame, labels: list[str]) -> str:
    """The highest scores with the columns that say so, on the terminal and as cards."""
    flagged = np.flatnonzero(scores.flagged).tolist()
    lines, cards = [], ""
    for row in np.argsort(-scores.score, kind="stable")[:_TOP].tolist():
        score, shown = float(scores.score[row]), labels[row]
        reasons = [(name, part / score) for name, part in scores.top_columns(row)]
        actual, expected = test.row(row, named=True), scores.expected.row(flagged.index(row), named=True)
        cards += page.anomaly_card(labels[row], score, None, reasons, actual, expected)
        for name, share in reasons:
            line = {"tumour": shown, "score": f"{score:.2f}" if shown else "", "because of": name}
            line |= {"part of score": f"{100 * share:.0f} %", "value": f"{actual[name]:.4g}"}
            lines.append(line | {"expected": f"{expected[name]:.4g}"})
            shown = ""
    words = (
        f"The {_TOP} most abnormal tumours, and the columns that carry most of the score. "
        "Expected is what the other columns of the row suggest."
    )
    stage.explain(words)
    stage.say(table_of(lines, dict.fromkeys(lines[0]), 3))
    return page.paragraph(words) + cards


# ------------------------------------------------------------------------------------------- synthetic rows


def penguin_table() -> pl.DataFrame:
    """344 penguins: species, island, four measurements with gaps, sex with gaps, year."""
    try:
        with resources.as_file(resources.files("palmerpenguins") / "data" / "penguins.csv") as path:
            return read(path).collect()
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable("the demo needs the penguins table. Run pip install 'tabdiff[demo]'.") from error


def _draw_penguins(stage: _Stage, frame: pl.DataFrame) -> tuple[dict[str, Any], list[page.Section]]:
    order = np.random.default_rng(stage.seed).permutation(frame.height)
    aside, train = frame[order[: frame.height // 5]], frame[order[frame.height // 5 :]]
    stage.say("2. Synthetic rows: penguins (Palmer Archipelago, 344 rows, text and numbers, with gaps)\n")
    with stage.step(f"Fitting on {train.height} penguins; {aside.height} are put aside to check with."):
        model = stage.fit(train, "penguins.model", 500)
    with stage.step(f"Drawing {train.height} synthetic penguins, and 100 with species=Gentoo."):
        samples = model.sample(train.height, seed=stage.seed)
        gentoos = model.sample(100, given={"species": "Gentoo"}, seed=stage.seed)
        write(samples, stage.out / "samples.parquet")
        write(gentoos, stage.out / "gentoo.parquet")
    shown = samples.select("species", "island", "bill_length_mm", "body_mass_g", "sex").head(3)
    stage.say(table_of(shown.to_dicts(), dict.fromkeys(shown.columns), 1))
    with stage.step("Measuring how close they are to the real ones."):
        alone = fidelity.independent_columns(train, train.height, stage.seed)
        half = train.height // 2
        others = {"tabdiff": samples, "independent columns": alone, "other real penguins": train[half:]}
        results = [_closeness(name, train, rows[:half], aside, stage.seed) for name, rows in others.items()]
    measures = {"name": "rows", "shape": "shape error", "trend": "trend error", "detector": "detector"}
    measures |= {"copies": "exact copies"}
    caption = (
        f"{half} rows of each kind against {half} real ones: the last line is what chance alone gives. "
        "Errors in percent, 0 is perfect. Detector: how well a classifier tells the rows from real ones; "
        "0.5: not at all, 1: always. Copies: complete rows equal to a row fitted on. So few rows make this "
        "coarse: differences of 2 % or 0.05 may be chance."
    )
    stage.say(table_of(results, measures, 2))
    gentoo = _describe_gentoos(frame, gentoos)
    stage.explain(f"{caption}\n\n{gentoo}")
    with stage.step("Filling in the sex of penguins."):
        filling = _fill_sex(stage, model, frame, aside)
    stage.explain(filling["words"])
    quality = page.table(results, measures, caption, decimals={"shape": 1, "trend": 1, "detector": 2})
    quality += page.paragraph(gentoo) + page.paragraph(filling["words"])
    sections = [
        page.Section("Synthetic penguins", quality),
        page.Section("Columns, real and synthetic", page.histograms(train, samples)),
        page.Section("How columns depend on each other", page.correlation_heatmaps(train, samples, alone)),
    ]
    return {"rows": train.height, "quality": results, "gentoo": gentoo, "filling": filling}, sections


def _closeness(name: str, train: pl.DataFrame, rows: pl.DataFrame, aside: pl.DataFrame, seed: int) -> dict[str, Any]:
    real = train[: rows.height]
    fitted_on = train if name == "tabdiff" else real
    return {
        "name": name,
        "shape": fidelity.shape_error(real, rows).mean,
        "trend": fidelity.trend_error(real, rows).mean,
        "detector": fidelity.detector_auc(real, rows, seed),
        "copies": privacy.exact_copies(fitted_on, rows.drop_nulls(), aside).copies,
    }


def _describe_gentoos(real: pl.DataFrame, drawn: pl.DataFrame) -> str:
    def summary(frame: pl.DataFrame) -> str:
        mass, biscoe = frame.select(pl.mean("body_mass_g"), (pl.col("island") == "Biscoe").mean()).row(0)
        return f"{mass:.0f} g on average, {100 * biscoe:.0f} % from Biscoe"

    known = real.filter(pl.col("species") == "Gentoo")
    return (
        f"Asked for species=Gentoo, the model draws penguins of {summary(drawn)}. "
        f"Real Gentoos: {summary(known)}. All real penguins: {summary(real)}."
    )


def _fill_sex(stage: _Stage, model: Model, frame: pl.DataFrame, aside: pl.DataFrame) -> dict[str, Any]:
    """Fill the gaps of the whole table; then hide the known sex of the rows put aside, and count hits."""
    write(model.impute(frame, seed=stage.seed), stage.out / "filled.parquet")
    known = aside.filter(pl.col("sex").is_not_null())
    hidden = known.with_columns(pl.lit(None, pl.String).alias("sex"))
    right = int((model.impute(hidden, seed=stage.seed)["sex"] == known["sex"]).sum())
    gaps = frame["sex"].null_count()
    words = (
        f"The sex of {gaps} penguins is not recorded; filled.parquet has a guess for each. How good is it? "
        f"With the known sex of {known.height} penguins put aside hidden, {right} are guessed right ("
        f"{100 * right / known.height:.0f} %; tossing a coin: 50 %)."
    )
    return {"gaps": gaps, "checked": known.height, "right": right, "words": words}
