"""The dashboard as people meet it: a real server, a real Chromium, and the workspace that one click makes."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tabdiff
from dashboard import launch
from tabdiff.demo_workspace import FAILED, last_night
from tabdiff.loading import load_any
from tabdiff.operations.tuning import tuning
from tabdiff.series_model import SeriesModel
from tabdiff.store import Workspace
from tabdiff.store.scores import Alert, Part
from tabdiff.store.triage import Filter
from tests.browser import ROOT, SIZES, Dashboard, chromium, dashboard, settle, tab
from tests.databases import free_port
from tests.oidc import CLIENT, SECRET, provider
from tests.test_store import add_version

PAGES = ("overview", "anomalies", "series", "synthesize", "models", "data", "runs")
_WAIT = 300_000  # milliseconds; three fits on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def demo(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dashboard, Workspace]]:
    """A dashboard on the demo workspace, made by the button of the empty one."""
    folder = tmp_path_factory.mktemp("demo")
    with dashboard(folder / "home", folder) as started, tab(browser) as page:
        page.goto(started.url)
        page.get_by_role("button", name="Make the demo workspace").click()
        page.get_by_text("drawing penguins").wait_for(timeout=_WAIT)
        page.get_by_text("Open anomalies").wait_for(timeout=_WAIT)
        assert page.outside == []
        yield started, Workspace.open(folder / "home")
        assert "Traceback" not in started.log.read_text()


def go(page: Any, started: Dashboard, path: str = "") -> None:
    page.goto(f"{started.url}/{path}")
    settle(page)


def click_cell(page: Any, row: int, x: int = 230) -> None:
    """Choose a cell of the queue, or with a small `x` its tick box. The table is drawn, so there is nothing else to hold on to."""
    table = page.get_by_test_id("stDataFrame").first
    table.locator("canvas").first.wait_for()
    table.click(position={"x": x, "y": 35 + 33 * row + 16})


def tour() -> list[str]:
    """What the tour of the documentation has in bold, in order."""
    text = (ROOT / "docs" / "dashboard.md").read_text(encoding="utf-8")
    return re.findall(r"\*\*(.+?)\*\*", text.partition("## Five minutes")[2].partition("\n## ")[0])


def test_which_machine_failed_last_night_and_why(demo: tuple[Dashboard, Workspace], browser: Any) -> None:
    """The tour of docs/dashboard.md, step by step: everything in bold is on the page when the tour says so."""
    started, workspace = demo
    found: dict[str, Any] = {}

    def choose_pump() -> None:
        page.get_by_role("combobox", name="About").fill(FAILED)
        page.get_by_role("combobox", name="About").press("Enter")
        page.wait_for_url(re.compile(f"entity={FAILED}"))
        settle(page)
        click_cell(page, 0)
        page.get_by_role("heading", name=re.compile(rf"Alert \d+: {FAILED}, .* to ")).wait_for()

    def read_why() -> None:
        words = page.get_by_text(re.compile(r"was .* at the peak; .* would be expected")).first
        words.wait_for()
        found["sensor"] = words.inner_text().split()[0]
        found["numbers"] = [
            float(number) for number in re.findall(r"\d+\.?\d*", words.inner_text().partition("was")[2])
        ]
        found["alert"] = int(re.search(r"alert=(\d+)", page.url)[1])  # type: ignore[index]

    def to_series() -> None:
        page.get_by_role("link", name="Look at it in the series").click()
        page.wait_for_url(re.compile(rf"series\?.*about={FAILED}"))
        page.get_by_role("img", name=re.compile(r"Lanes of .*Highest score")).wait_for()
        assert "from=" in page.url

    def compare() -> None:
        page.get_by_role("combobox", name="Compare with").fill("pump-2")
        page.get_by_role("combobox", name="Compare with").press("Enter")
        page.get_by_text("the dotted line pump-2").wait_for()

    def back_to_alert() -> None:
        page.get_by_role("link", name=f"Open {found['alert']}", exact=True).click()
        page.get_by_text("would be expected").first.wait_for()

    def confirm() -> None:
        page.get_by_label("Note").fill("bearing worn out, *replaced*")
        page.get_by_role("button", name="Confirm").click()
        page.get_by_text("“bearing worn out, *replaced*”").wait_for()

    actions = {
        "What they tell": lambda: page.get_by_text(re.compile(rf"{FAILED}, ")).first.wait_for(),
        "Work through them": lambda: page.get_by_role("link", name="Work through them").click(),
        "About": choose_pump,
        "would be expected": read_why,
        "Recorded against expected": lambda: page.get_by_role("img", name=re.compile("Lanes of ")).wait_for(),
        "Look at it in the series": to_series,
        "Compare with": compare,
        "in this stretch": back_to_alert,
        "Confirm": confirm,
        "Back to the queue": lambda: page.get_by_role("button", name="Back to the queue").click(),
    }
    labels = tour()
    assert labels[0] == "Make the demo workspace"  # pressed already: see `demo`
    assert set(actions) < set(labels)
    with tab(browser) as page:
        go(page, started)
        for label in labels[1:]:
            page.get_by_text(label, exact=label not in ("would be expected", "in this stretch")).first.wait_for()
            actions.get(label, lambda: None)()
        page.get_by_text("No alert fits").wait_for()  # of this machine none is open any more
        go(page, started, "anomalies?view=Stories")
        page.get_by_text("alerts tell").wait_for()
        assert page.outside == []
    value, low, high = found["numbers"]
    alert = workspace.triage.get(found["alert"])
    assert alert["kind"] == "event"
    assert value == pytest.approx(float(alert["values"][found["sensor"]]), rel=1e-3)
    assert not low <= value <= high
    begun = last_night(datetime.now(UTC))
    # A window that holds the beginning of a fault lies before it, too: by the hour of the day an event begins up to six hours early.
    assert alert["at"] - timedelta(hours=1) <= begun <= alert["ended"]
    assert alert["ended"] - alert["at"] < timedelta(hours=12)
    assert [(entry["verdict"], entry["note"]) for entry in alert["history"]] == [
        ("anomaly", "bearing worn out, *replaced*")
    ]
    with tab(browser) as page:  # somebody else opens the link
        go(page, started, f"anomalies?alert={found['alert']}")
        page.get_by_text("“bearing worn out, *replaced*”").wait_for()


def test_ticked_rows_are_judged_together(demo: tuple[Dashboard, Workspace], browser: Any) -> None:
    started, workspace = demo
    before = workspace.triage.queue(Filter(source="tumours"), limit=3)
    with tab(browser) as page:
        go(page, started, "anomalies?source=tumours")
        click_cell(page, 0, x=17)
        click_cell(page, 2, x=17)
        page.get_by_role("button", name="Judge 2 ticked").click()
        page.get_by_label("Note").fill("known patients")
        page.get_by_role("button", name="False alarm").click()
        page.get_by_text("2 alerts: false alarm").wait_for()
    verdicts = [workspace.triage.get(alert["id"])["verdict"] for alert in before]
    assert verdicts == ["normal", None, "normal"]


def test_a_threshold_shows_what_it_would_do_and_is_saved(demo: tuple[Dashboard, Workspace], browser: Any) -> None:
    started, workspace = demo
    stream = workspace.scores.stream(workspace.sources.get("tumours")[0], "tumours")
    with tab(browser) as page:
        go(page, started, "anomalies?view=Threshold&stream=tumours by tumours")
        above = page.get_by_test_id("stMetric").filter(has_text="Rows above").get_by_test_id("stMetricValue")
        first = above.inner_text()
        page.get_by_role("slider").press("ArrowRight")
        page.wait_for_function("before => !document.body.innerText.includes(before)", arg=first)
        settle(page)
        assert int(above.inner_text().split(" of ")[0]) > int(first.split(" of ")[0])
        assert workspace.triage.rules(stream.id) == []  # looking changes nothing
        shown = above.inner_text()
        page.get_by_label("Note").fill("the night shift can take more")
        page.get_by_role("button", name="Save this threshold").click()
        page.get_by_text("Scoring uses it from now on").wait_for()
        page.get_by_text("“the night shift can take more”").wait_for()
    (saved,) = workspace.triage.rules(stream.id)
    folder = workspace.models.get("tumours").folder
    assert folder is not None
    model = tabdiff.load(folder / "bundle")
    limit = model.rule(**saved["rule"]).threshold(np.asarray(model.calibration.normal))
    files = [part["file"] for part in workspace.scores.partitions() if part["source"] == "tumours"]
    above_it = sum(int((pl.read_parquet(file)["score"] > limit).sum()) for file in files)
    assert shown == f"{above_it:,} of {sum(pl.read_parquet(file).height for file in files):,}"


def test_the_threshold_of_a_series_is_that_of_its_model(demo: tuple[Dashboard, Workspace]) -> None:
    _, workspace = demo
    folder = workspace.models.get("pumps").folder
    assert folder is not None
    model, found = load_any(folder / "bundle"), tuning(workspace, "pumps", "pumps")
    assert isinstance(model, SeriesModel)
    assert found.stretches_per_day == pytest.approx(model.stretches_per_day)
    asked = found.choices(found.rows_per_day)[-1]
    rule = found.as_rule(asked, found.rows_per_day)
    assert rule == {"alerts_per_day": asked}  # scoring of a series takes nothing else
    limit = model.rule(asked).threshold(model.blocks)
    assert found.at(asked, found.rows_per_day)["threshold"] == pytest.approx(limit)
    parts = workspace.scores.partitions()  # one of which nothing is final yet has no file
    files = [part["file"] for part in parts if part["source"] == "pumps" and part["file"]]
    places = pl.concat([pl.read_parquet(file) for file in files]).drop_nulls("score").sort("machine", "time")
    first, peaks = places["time"].min(), dict[tuple[str, int], float]()
    for machine, time, score in places.select("machine", "time", "score").iter_rows():
        key = machine, int((time - first) / timedelta(hours=8))
        peaks[key] = max(score, peaks.get(key, 0.0))
    assert found.rows == len(peaks)
    assert found.at(asked, found.rows_per_day)["flagged"] == sum(peak > limit for peak in peaks.values())


def test_filters_are_in_the_link(demo: tuple[Dashboard, Workspace], browser: Any) -> None:
    started, workspace = demo
    with tab(browser) as page:
        go(page, started, "anomalies")
        page.get_by_role("button", name="high", exact=True).click()
        page.get_by_text("all", exact=True).click()
        page.wait_for_url(re.compile("severity=high.*state=all|state=all.*severity=high"))
        total = f"{workspace.triage.count(Filter(severities=('high',), state='all'))} alerts, most severe first"
        page.get_by_text(total).wait_for()
        address = page.url
    with tab(browser) as page:
        page.goto(address)
        settle(page)
        page.get_by_text(total).wait_for()


HOSTILE = {
    "<img src=x onerror=window.pwned=1>": "<script>window.pwned=1</script>",
    "[click](javascript:window.pwned=1)": "![](https://evil.example/x.png)",
    "**bold** :material/home: $x$ https://evil.example": '=HYPERLINK("https://evil.example")',
}


@contextmanager
def before_scripts(browser: Any, url: str, *, size: str = "desktop", dark: bool = False) -> Iterator[Any]:
    """The page as it is painted before a script runs, or where none may."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        java_script_enabled=False,
        color_scheme="dark" if dark else "light",
    )
    try:
        page = context.new_page()
        page.goto(url)
        yield page
    finally:
        context.close()


def test_numbers_are_there_before_any_script_runs(
    demo: tuple[Dashboard, Workspace], browser: Any, tmp_path: Path
) -> None:
    started, workspace = demo
    count = workspace.triage.count(Filter())
    backgrounds = set()
    for size in SIZES:
        for dark in (False, True):
            with before_scripts(browser, started.url, size=size, dark=dark) as page:
                view = page.locator("#first-view")
                (number,) = (
                    view.locator("div", has=page.get_by_text("Open anomalies", exact=True)).locator("dd").first.all()
                )
                assert number.inner_text() == f"{count:,}"
                for words in (
                    "Anomalies of 14 days (UTC)",
                    "What they tell",
                    "pumps by pumps",
                    "UTC. The page is loading",
                ):
                    assert view.get_by_text(words).first.is_visible(), words
                assert view.get_by_role("img", name=re.compile("Bar chart of alerts by day")).is_visible()
                assert page.locator("#first-view").evaluate("e => e.scrollWidth <= e.clientWidth")
                backgrounds.add(view.evaluate("e => getComputedStyle(e).backgroundColor"))
    assert len(backgrounds) == 2
    with tab(browser) as page:  # it goes when the page is drawn, and nothing is read twice meanwhile
        page.add_init_script(
            "window.both = 0; new MutationObserver(() => { if (document.querySelector('#first-view') && "
            "document.querySelector('[data-testid=stMetric]')?.checkVisibility({visibilityProperty: true})) window.both++ })"
            ".observe(document, {childList: true, subtree: true})"
        )
        go(page, started)
        page.wait_for_function("!document.querySelector('#first-view')")
        assert page.get_by_test_id("stMetricValue").first.inner_text() == f"{count:,}"
        assert page.evaluate("window.both") == 0
    with tab(browser) as page:  # whoever chose a theme sees it at once
        page.add_init_script("localStorage.setItem('stActiveTheme-/-v2', '\"Dark\"')")
        page.goto(started.url, wait_until="commit")
        page.wait_for_function(
            "document.querySelector('#first-view.dark') || document.querySelector('[data-testid=stMetric]')"
        )
        settle(page)
        dark_page = page.get_by_test_id("stApp").evaluate("e => getComputedStyle(e).backgroundColor")
        assert dark_page in backgrounds
    with dashboard(workspace.home, tmp_path, TABDIFF_DASHBOARD_ROLE="nobody") as closed:
        assert "pumps" not in urllib.request.urlopen(closed.url).read().decode()
    with dashboard(tmp_path / "empty", tmp_path) as empty:
        assert '<div id="first-view"' not in urllib.request.urlopen(empty.url).read().decode()


def test_hostile_names_stay_text(browser: Any, tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "home")
    add_version(workspace, "m", "one")
    workspace.models.promote("m", 1)
    workspace.sources.add("hostile", location=str(tmp_path))
    reasons = [{"column": name, "part": 2.0, "expected": value} for name, value in HOSTILE.items()]
    stream = workspace.scores.stream(workspace.sources.get("hostile")[0], "m")
    with workspace.runs.start("score", "hostile:m") as run:
        rows = [Alert(n, 9.0, 0.01, reasons, dict(HOSTILE), entity=next(iter(HOSTILE)), excess=3.0) for n in range(2)]
        options = {"flagged": 2, "model_id": workspace.models.get("m").id, "run_id": run.id, "watermark": None}
        workspace.scores.commit(
            stream, Part("<b>unit</b>", 0, True, None, 9), pl.DataFrame({"score": [1.0]}), rows, **options
        )
    number = workspace.triage.queue(Filter())[0]["id"]
    workspace.scores.judge(number, "anomaly", author="<i>ann</i>", note="<b>bold</b> [x](https://evil.example)")
    workspace.events.tell("late_rows", "<u>subject</u>", "warning", {"reason": "<s>why</s> :red[x]"})
    with dashboard(tmp_path / "home", tmp_path) as started, tab(browser) as page:
        with before_scripts(browser, started.url) as early:
            view = early.locator("#first-view")
            assert next(iter(HOSTILE)) in view.inner_text()
            assert view.locator("script, img, i, u, s, [onerror], a[href*=evil], a[href^=javascript]").count() == 0
            assert early.request.get(started.url, headers={"Host": "evil.example"}).status == 421
        for path in ("", "anomalies?state=all", f"anomalies?alert={number}", "anomalies?view=Stories&state=all"):
            go(page, started, path)
            assert page.evaluate("window.pwned") is None
            inside = page.get_by_test_id("stMain")
            assert inside.locator("script, img, b, i, u, s, a[href*=evil], a[href^=javascript]").count() == 0
            assert inside.locator(".katex").count() == 0
            assert page.outside == []
        go(page, started, f"anomalies?alert={number}")
        shown = page.get_by_test_id("stMain").inner_text().replace("\u2060", "")
        assert "Alert" in shown
        for text in (*HOSTILE, "<i>ann</i>", "<b>bold</b> [x](https://evil.example)", "<b>unit</b>"):
            assert text in shown
        go(page, started, "anomalies?state=all")
        with page.expect_download() as download:
            page.get_by_role("button", name="CSV of this page").click()
        text = Path(download.value.path()).read_text()
        assert "<img src=x onerror=window.pwned=1>" in text
        assert not re.search(r'(^|,)"?[=+@]', text, re.MULTILINE)


def test_nobody_sees_anything_before_signing_in(browser: Any, tmp_path: Path) -> None:
    Workspace.create(tmp_path / "home").sources.add("secret-source", location=str(tmp_path))
    secrets = tmp_path / "secrets.toml"
    auth = dict.fromkeys(launch._OIDC, "https://127.0.0.1:1/x")
    secrets.write_text(
        "[auth]\n" + "".join(f'{k} = "{v}"\n' for k, v in auth.items()) + '[roles]\nadmin = "a@example.org"\n'
    )
    secrets.chmod(0o600)
    with dashboard(tmp_path / "home", tmp_path, "--secrets", str(secrets)) as started, tab(browser) as page:
        document = page.request.get(started.url).text()
        assert "secret-source" not in document
        assert '<div id="first-view"' not in document
        for path in ("anomalies?alert=1", "overview", "data", ""):
            go(page, started, path)
            page.get_by_role("button", name="Sign in").wait_for()
            assert "secret-source" not in page.content()
            assert page.get_by_role("link", name="Anomalies").count() == 0
        answer = page.request.get(started.url, headers={"Host": "evil.example"})
        assert answer.status == 421
        assert page.request.get(started.url).headers["x-frame-options"] == "DENY"


def test_people_sign_in_and_are_what_their_address_says(browser: Any, tmp_path: Path) -> None:
    """The whole round: the dashboard sends the browser to a provider, which sends it back with a code, for which the dashboard gets a token."""
    Workspace.create(tmp_path / "home").sources.add("secret-source", location=str(tmp_path))
    port = free_port()
    with provider(free_port()) as signing:
        secrets = tmp_path / "secrets.toml"
        auth = {
            "redirect_uri": f"http://127.0.0.1:{port}/oauth2callback",
            "cookie_secret": "c" * 64,
            "client_id": CLIENT,
            "client_secret": SECRET,
            "server_metadata_url": f"{signing.url}/.well-known/openid-configuration",
        }
        roles = '[roles]\nviewer = ["*@example.org"]\nanalyst = ["ann@example.org"]\n'
        secrets.write_text("[auth]\n" + "".join(f'{k} = "{v}"\n' for k, v in auth.items()) + roles)
        secrets.chmod(0o600)
        with dashboard(tmp_path / "home", tmp_path, "--secrets", str(secrets), port=port) as started:
            people = {
                "ann@example.org": ({}, "Role: analyst"),
                "bob@example.org": ({"email_verified": True}, "Role: viewer"),
                "eve@example.com": ({}, "have no role here"),
                "ann@EXAMPLE.org": ({"email_verified": False}, "have no role here"),
            }
            for address, (claims, expected) in people.items():
                signing.person = {"email": address, **claims}
                with tab(browser) as page:
                    go(page, started, "data")
                    page.get_by_role("button", name="Sign in").click()
                    page.get_by_text(expected).wait_for()
                    if expected.startswith("Role"):
                        page.get_by_text("secret-source").wait_for()
                    else:
                        assert "secret-source" not in page.content()
                    page.get_by_role("button", name="Sign out").click()
                    page.get_by_role("button", name="Sign in").wait_for()
                    assert "secret-source" not in page.content()
            assert signing.asked.count("/token") == len(people)
            with tab(browser) as page:  # a cookie that somebody made up opens nothing
                context = page.context
                context.add_cookies(
                    [{"name": "_streamlit_user", "value": '"{\\"email\\": \\"ann@example.org\\"}"', "url": started.url}]
                )
                go(page, started, "data")
                page.get_by_role("button", name="Sign in").wait_for()
                assert "secret-source" not in page.content()


def test_a_viewer_looks_but_has_no_buttons(demo: tuple[Dashboard, Workspace], browser: Any, tmp_path: Path) -> None:
    _, workspace = demo
    number = workspace.triage.queue(Filter())[0]["id"]
    with dashboard(workspace.home, tmp_path, TABDIFF_DASHBOARD_ROLE="viewer") as started, tab(browser) as page:
        go(page, started, f"anomalies?alert={number}")
        page.get_by_text("Verdicts need the role analyst").wait_for()
        assert page.get_by_role("button", name="Confirm").count() == 0


def test_every_page_in_light_and_dark_on_desktop_and_phone(
    demo: tuple[Dashboard, Workspace], browser: Any, tmp_path: Path
) -> None:
    """Pictures of every page; with TABDIFF_SCREENSHOTS they are kept in that folder."""
    started, workspace = demo
    folder = Path(os.environ.get("TABDIFF_SCREENSHOTS") or tmp_path)
    events = workspace.triage.queue(Filter(state="all", kind="event"))
    number = next(alert["id"] for alert in events if alert["entity"] == FAILED)
    paths = {**{name: name for name in PAGES}, "alert": f"anomalies?alert={number}"}
    row = workspace.triage.queue(Filter(state="all", kind="row"))[0]["id"]
    paths |= {
        "row": f"anomalies?alert={row}",
        "stories": "anomalies?view=Stories",
        "threshold": "anomalies?view=Threshold",
    }
    with tab(browser) as page:
        for name, path in paths.items():
            go(page, started, "" if path == "overview" else path)
            if name == "row":
                page.get_by_text("What carries the score").wait_for()
            if name in ("alert", "series"):
                page.get_by_role("img", name=re.compile("Lanes of ")).wait_for()
            for size, (width, height) in SIZES.items():
                page.set_viewport_size({"width": width, "height": height})
                page.wait_for_timeout(350)  # the sidebar slides away
                for scheme in ("light", "dark"):
                    page.emulate_media(color_scheme=scheme)
                    page.wait_for_timeout(120)  # the theme fades over
                    picture = page.screenshot(path=folder / f"{name}-{size}-{scheme}.png")
                    assert len(picture) > 8000, f"{name} is blank"
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
                f"{name} is wider than a phone"
            )
            assert page.locator("[data-testid=stException]").count() == 0, name
            unnamed = "[...document.querySelectorAll('[data-testid=stVegaLiteChart], [data-testid=stEChartsChart]')].filter(c => !c.matches('[aria-label]') && !c.querySelector('[aria-label]'))"
            assert page.evaluate(f"{unnamed}.length") == 0, name
            page.set_viewport_size(dict(zip(("width", "height"), SIZES["desktop"], strict=True)))
        assert page.outside == []
