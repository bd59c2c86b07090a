"""The dashboard on a large workspace, as a browser sees it: first useful paint, page switch and filter; memory; ten people at once.

    OMP_NUM_THREADS=1 python benchmarks/dashboard.py [--rows 1000000] [--alerts 10000] [--users 10] [--times 7] [--keep FOLDER] [--crowd]

The workspace is real: a small model scores every row, in parts of a tenth, and a tenth of the alerts comes from each. Times are of a
Chromium on the same machine with a new profile, after one visit that warms the server, from the click (or the address) to the moment at which what was asked for is on the page. Of the first
page two: *first useful paint*, the frame in which the number of open alerts is on the screen, and *live*, when Streamlit has drawn the page and it can be used.

What one of ten people feels is measured by one browser while nine others use the dashboard: they speak Streamlit's protocol by web socket and draw nothing, as their browsers
run on machines of their own. All pause for a second between pages, or not at all. `--crowd` adds ten tabs of one Chromium at once, which on two cores measures Chromium.
What the server alone does is measured by web sockets only, and the processor time of server and of browsers is counted. Memory is that of the server's process, as RSS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parent.parent))

from tabdiff.operations import ScoreJob, TrainJob, score_new, train
from tabdiff.store import Workspace
from tabdiff.store.triage import Filter
from tests.browser import SIZES, dashboard

PARTS, MACHINES = 10, 40


def readings(rows: int, first: int, seed: int) -> pl.DataFrame:
    """Six readings of forty machines, one row a second; one row in two hundred has a reading that does not fit."""
    rng = np.random.default_rng(seed)
    load = rng.beta(4, 3, rows)
    values = {f"sensor_{k}": (k + 1) * load ** (1 + k / 4) + 0.05 * rng.standard_normal(rows) for k in range(6)}
    odd, which = np.flatnonzero(rng.random(rows) < 0.005), rng.integers(6, size=rows)
    for row in odd:
        values[f"sensor_{which[row]}"][row] += rng.choice([-1, 1]) * rng.uniform(1, 4)
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=PARTS * rows)
    moments = pl.datetime_range(
        start, interval="1s", end=start + timedelta(seconds=(first + 1) * rows), eager=True, closed="left"
    )
    return pl.DataFrame(
        {
            "time": moments[first * rows : (first + 1) * rows],
            "machine": [f"m{n}" for n in rng.integers(MACHINES, size=rows)],
            **values,
        }
    )


def fill(home: Path, rows: int, alerts: int) -> Workspace:
    """A workspace with so many scored rows and alerts."""
    workspace = Workspace.create(home / "home")
    data = home / "data"
    data.mkdir()
    readings(4000, 0, 1).write_parquet(data / "0-fit.parquet")
    workspace.sources.add("machines", location=str(data), keys=("time", "machine"))
    columns = {"time": {"role": "time"}, "machine": {"role": "entity"}}
    fit = {"network": {"width": 16, "blocks": 1}, "train": {"steps": 60}, "score": {"kernel_rows": 200}}
    train(workspace, TrainJob.of(source="machines", model="machines", fit=fit, columns=columns))
    (data / "0-fit.parquet").unlink()
    for part in range(PARTS):
        readings(rows // PARTS, part, 10 + part).write_parquet(data / f"{part + 1:02d}.parquet")
    job = ScoreJob.of(source="machines", model="machines", contamination=alerts / rows, max_alerts=alerts)
    done = score_new(workspace, job)
    print(f"workspace: {done['rows']:,} rows scored, {done['flagged']:,} alerts", flush=True)
    assert (done["rows"], done["flagged"]) == (rows, alerts)
    return workspace


def rss(pid: int) -> float:
    """Megabytes."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


def cpu(pid: int) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def browsers(server: int) -> float:
    """Seconds of processor time of everything that this process started, the server left out."""
    children: dict[int, list[tuple[int, float]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks = sum(int(field) for field in fields[11:15])
            children.setdefault(int(fields[1]), []).append((int(folder.name), ticks / os.sysconf("SC_CLK_TCK")))
    found, open_ones = 0.0, [os.getpid()]
    while open_ones:
        for number, seconds in children.get(open_ones.pop(), []):
            if number != server:
                found += seconds
                open_ones.append(number)
    return found


async def ask(url: str, pages: list[tuple[str, str]], pause: float = 0.0) -> list[float]:
    """Seconds until each page (name, query) is complete, for somebody who speaks Streamlit's protocol and draws nothing, and pauses between pages."""
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
    from websockets.asyncio.client import connect

    found = []
    address = f"{url.replace('http', 'ws', 1)}/_stcore/stream"
    async with connect(address, subprotocols=["streamlit"], origin=url, max_size=None) as socket:  # type: ignore[list-item,arg-type]
        for page, query in pages:
            message = BackMsg()
            message.rerun_script.page_name, message.rerun_script.query_string = page, query
            message.rerun_script.context_info.timezone = "Europe/Berlin"
            started = time.monotonic()
            await socket.send(message.SerializeToString())
            while ForwardMsg.FromString(await socket.recv()).WhichOneof("type") != "script_finished":  # type: ignore[arg-type]
                pass
            found.append(time.monotonic() - started)
            await asyncio.sleep(pause)
    return found


def way(first: int) -> list[tuple[str, str]]:
    """The pages that everybody goes through; `first` is the most severe alert."""
    return [("", ""), ("anomalies", ""), ("anomalies", "entity=m7"), ("anomalies", f"alert={first}"), ("", "")]


@contextlib.asynccontextmanager
async def others(url: str, first: int, people: int, pause: float) -> AsyncIterator[list[float]]:
    """So many people who go through the pages again and again, each beginning at another moment; yields how long their pages took."""
    found: list[float] = []

    async def somebody(number: int) -> None:
        await asyncio.sleep(pause * number / people)
        while True:
            found.extend(await ask(url, way(first), pause))

    tasks = [asyncio.create_task(somebody(number)) for number in range(people)]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(end, asyncio.CancelledError):
                raise end  # type: ignore[misc]


async def serve_only(url: str, pid: int, users: int, first: int) -> None:
    """What the same way costs the server, without browsers."""
    pages = way(first)
    names = ["overview", "queue", "filter", "alert", "overview again"]
    await ask(url, pages)
    print("\n| server without browsers | " + " | ".join(names) + " | server CPU of one visit |\n|---|" + "---|" * 6)
    for many in (1, users):
        before = cpu(pid)
        together = await asyncio.gather(*(ask(url, pages) for _ in range(many)))
        each = (cpu(pid) - before) / many
        middle = [sorted(column)[len(column) // 2] for column in zip(*together, strict=True)]
        print(f"| {many} at once, median s | " + " | ".join(f"{value:.3f}" for value in middle) + f" | {each:.2f} s |")


async def timed(what: Callable[[], Awaitable[Any]]) -> float:
    started = time.monotonic()
    await what()
    return time.monotonic() - started


# Looks at every frame: when was the number of alerts first on the screen, and when was the page Streamlit's?
_WATCH = """(() => {
  const seen = window.seen = {}, shown = (where) => [...document.querySelectorAll(where)].some(e => e.innerText.trim() === "ALERTS" && e.checkVisibility({visibilityProperty: true}))
  const look = () => {
    const live = shown("[data-testid=stMetricValue]")
    if (!seen.paint && (live || shown("#first-view dd"))) seen.paint = performance.now()
    if (live) seen.live = performance.now(); else requestAnimationFrame(look)
  }
  requestAnimationFrame(look)
})()"""


async def visit(context: Any, url: str, alerts: int, pause: float) -> dict[str, float]:
    """One person's way: open, look at the queue, filter it, open an alert, go back to the overview; with a pause before each step."""
    page = await context.new_page()
    page.set_default_timeout(120_000)
    await page.add_init_script(_WATCH.replace("ALERTS", f"{alerts:,}"))
    counted = page.get_by_test_id("stMetricValue").first

    async def open_first() -> None:
        await page.goto(url, wait_until="commit")
        await page.wait_for_function("window.seen && window.seen.live")

    async def to_queue() -> None:
        await page.get_by_role("link", name="Anomalies").click()
        await page.get_by_text(f"{alerts:,} alerts, most severe first").wait_for()
        await page.locator("[data-testid=stDataFrame] canvas").first.wait_for()

    async def narrow() -> None:
        about = page.get_by_role("combobox", name="About")
        await about.fill("m7")
        await about.press("Enter")
        await page.wait_for_function(
            "all => { const t = document.body.innerText; return t.includes('alerts, most severe first') && !t.includes(all) }",
            arg=f"{alerts:,} alerts, most",
        )

    async def next_page() -> None:
        await page.get_by_role("button", name="Open the first").click()
        await page.get_by_text("What carries the score").wait_for()

    async def back() -> None:
        await page.get_by_role("link", name="Overview").click()
        await counted.wait_for()

    await open_first()
    first = await page.evaluate("window.seen")
    found = {"first useful paint": first["paint"] / 1000, "first page, live": first["live"] / 1000}
    steps = {
        "page switch: queue": to_queue,
        "filter": narrow,
        "open an alert": next_page,
        "page switch: overview": back,
    }
    for name, step in steps.items():
        await asyncio.sleep(pause)
        found[name] = await timed(step)
    await page.close()
    return found


def told(title: str, visits: list[dict[str, float]]) -> None:
    """Print a table of steps."""
    print(f"\n| {title} | median s | worst s |\n|---|---|---|")
    for name in visits[0]:
        seconds = sorted(visit[name] for visit in visits)
        print(f"| {name} | {seconds[len(seconds) // 2]:.2f} | {seconds[-1]:.2f} |", flush=True)


async def measure(url: str, pid: int, alerts: int, users: int, times: int, number: int, crowd: bool) -> None:
    """Print what was measured; `number` is the most severe alert."""
    from playwright.async_api import async_playwright

    program = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        width, height = SIZES["desktop"]

        async def somebody(pause: float = 1.0) -> dict[str, float]:
            context = await browser.new_context(
                viewport={"width": width, "height": height}, timezone_id="Europe/Berlin"
            )
            try:
                return await visit(context, url, alerts, pause)
            finally:
                await context.close()

        print(f"server after its start: {rss(pid):.0f} MB")
        first = await somebody()
        print("very first visit: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in first.items()))
        before, drawn = cpu(pid), browsers(pid)
        alone = [await somebody() for _ in range(times)]
        each, drawing = (cpu(pid) - before) / times, (browsers(pid) - drawn) / times
        told(f"one person, {times} visits, pauses 1 s", alone)
        print(
            f"\nCPU of one visit of five steps: server {each:.2f} s, browser {drawing:.2f} s; {rss(pid):.0f} MB; load {os.getloadavg()[0]:.1f}"
        )
        for pause in (1.0, 0.0):
            async with others(url, number, users - 1, pause) as pages:
                among = [await somebody(pause) for _ in range(times)]
            seconds = sorted(pages)
            told(f"one person among {users}, all pause {pause:g} s", among)
            print(
                f"\npages of the others: {len(seconds)}, median {seconds[len(seconds) // 2]:.2f} s, worst {seconds[-1]:.2f} s; {rss(pid):.0f} MB; load {os.getloadavg()[0]:.1f}"
            )
        if crowd:
            before, drawn = cpu(pid), browsers(pid)
            told(f"{users} browsers at once", await asyncio.gather(*(somebody(0.0) for _ in range(users))))
            print(
                f"\nCPU of one visit: server {(cpu(pid) - before) / users:.2f} s, browser {(browsers(pid) - drawn) / users:.2f} s; {rss(pid):.0f} MB; load {os.getloadavg()[0]:.1f}"
            )
        await browser.close()


def main() -> None:
    """Fill a workspace, or take the one that is there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--alerts", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="folder to keep the workspace in, and to take it from if it is there")
    parser.add_argument("--crowd", action="store_true", help="also so many browsers at once on this machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "home").exists():
            fill(folder, options.rows, options.alerts)
        with dashboard(folder / "home", folder) as started:
            number = Workspace.open(folder / "home").triage.numbers(Filter(), 1)[0]
            asyncio.run(serve_only(started.url, started.process.pid, options.users, number))
            given = (options.alerts, options.users, options.times, number, options.crowd)
            asyncio.run(measure(started.url, started.process.pid, *given))


if __name__ == "__main__":
    main()
