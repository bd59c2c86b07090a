"""What an empty workspace says, and the demo that one click makes: a `tabdiff` command in a process of its own."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import streamlit as st

from dashboard import access, queries, state
from dashboard.text import plain
from tabdiff.errors import StoreError
from tabdiff.store import Workspace

_COMMAND = (sys.executable, "-c", "from tabdiff.cli import main; main()", "workspace", "demo")
_STEP = re.compile(r"^(\d+)/(\d+) (.*)$", re.MULTILINE)


class Demo:
    """The process that makes the demo. Its log is held locked as long as it lives, whoever started it."""

    def __init__(self, home: Path) -> None:
        self.log = home / "work" / "demo.log"

    def start(self) -> None:
        """Begin, unless it is at work already.

        Raises:
            StoreError: the process cannot be started.
        """
        try:
            with self.log.open("a+b") as log:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                log.truncate(0)
                # The child shares the open file, and with it the lock.
                subprocess.Popen(_COMMAND, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        except BlockingIOError:
            return
        except OSError as error:
            raise StoreError(f"the demo cannot be started ({error}). Run tabdiff workspace demo.") from error

    @property
    def at_work(self) -> bool:
        """Whether the process lives."""
        try:
            handle = os.open(self.log, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    @property
    def progress(self) -> tuple[float, str]:
        """How far it is (0 to 1) and what it does; the last line if it said something else."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        steps = _STEP.findall(text)
        last = text.strip().rpartition("\n")[2]
        if not steps:
            return 0.0, last or "starting"
        number, of, what = steps[-1]
        return (int(number) - 1) / int(of), what

    @property
    def failure(self) -> str:
        """What it ended with, if that was an error."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return text[text.rindex("error: ") :].strip() if "error: " in text else ""


@queries.cached()
def is_empty(workspace: Workspace) -> bool:
    """Whether nothing was registered or fitted yet."""
    return not workspace.sources.all() and not workspace.models.all()


@state.action("admin")
def _start() -> str:
    Demo(queries.workspace().home).start()
    return ""


def greet(workspace: Workspace) -> None:
    """Say what to do first, and offer the demo."""
    demo = Demo(workspace.home)
    st.markdown("#### There is nothing here yet. Two ways to begin:")
    st.caption(f"Workspace: {plain(workspace.home)}. If there should be something, TABDIFF_HOME names another folder.")
    left, right = st.columns(2, gap="large")
    with left, st.container(border=True):
        st.markdown("**Look around first**")
        st.write(
            "Fill this workspace with real results in about a minute: readings of four pumps, one of which failed last night "
            "(simulated), tumours and penguins (real tables). Three models are fitted on this machine."
        )
        if demo.at_work:
            _watch(demo)
        else:
            if demo.failure:
                st.error(plain(demo.failure, 1000))
            if access.may("admin"):
                st.button("Make the demo workspace", type="primary", icon=":material/science:", on_click=_start)
            else:
                st.caption("Ask an admin of the dashboard to make it.")
    with right, st.container(border=True):
        st.markdown("**Begin with your own table**")
        st.write("Register a file, a folder or a database, look at what was understood of it, and fit a model.")
        st.page_link("pages/data.py", label="Register a source", icon=":material/database:")
        st.write("The same from a terminal:")
        st.code(
            "tabdiff sources add orders /data/orders\ntabdiff run train --source orders --model orders\ntabdiff run score --source orders --model orders",
            language="shell",
        )


@st.fragment(run_every=1.0)
def _watch(demo: Demo) -> None:
    share, what = demo.progress
    if not demo.at_work:
        queries.refresh()
        st.rerun()
    st.progress(share, text=plain(what))


def watch_demo(workspace: Workspace) -> None:
    """Show how far the demo is, while it fills a workspace that is not empty any more."""
    demo = Demo(workspace.home)
    if demo.at_work:
        with st.container(border=True):
            st.write("The demo is being made; results appear as they come.")
            _watch(demo)
