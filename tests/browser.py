"""A real dashboard and a real browser: Chromium, driven by Playwright, on a server that `tabdiff dashboard` starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.databases import free_port

ROOT = Path(__file__).parent.parent
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 60  # seconds; a busy machine is slow to start a server
SIZES = {"desktop": (1360, 860), "phone": (390, 844)}


@dataclass
class Dashboard:
    """Where it is, and the log of its process."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]


@contextmanager
def dashboard(
    home: Path, folder: Path, *options: str, port: int | None = None, **environment: str
) -> Iterator[Dashboard]:
    """A dashboard of a workspace that answers; `options` are those of the command."""
    port = port or free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TABDIFF", "STREAMLIT"))}
    settings = {**inherited, "PYTHONPATH": str(ROOT), "TABDIFF_HOME": str(home), **environment}
    command = [sys.executable, "-c", "from tabdiff.cli import main; main()", "dashboard", "--port", str(port), *options]
    log = folder / "dashboard.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=settings, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + _PATIENCE
        while not _answers(f"{address}/_stcore/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.05)
        yield Dashboard(address, log, process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Without Chromium installed: a failure under CI, skipped elsewhere."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        message = "Chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser: Any, *, size: str = "desktop", dark: bool = False, zone: str = "Europe/Berlin") -> Iterator[Any]:
    """A fresh profile with one page. Requests that leave this machine are refused and listed in `page.outside`."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        timezone_id=zone,
        locale="en-GB",
        accept_downloads=True,
    )
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.outside = []

    def route(request: Any) -> None:
        if request.request.url.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:")):
            request.continue_()
        else:
            page.outside.append(request.request.url)
            request.abort()

    context.route("**/*", route)
    try:
        yield page
    finally:
        context.close()


def settle(page: Any) -> None:
    """Wait until Streamlit has drawn the page: nothing runs, nothing is stale, no placeholder is left."""
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    page.wait_for_function("!document.querySelector('[data-stale=true], [data-testid=stSkeleton]')")
