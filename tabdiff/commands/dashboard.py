"""The dashboard, started with the settings that keep it to those it is for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from tabdiff.commands.common import JsonOption, needs
from tabdiff.terminal import Outcome


def dashboard(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8501,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let others in who need not sign in (as viewers).")
    ] = False,
    allow_hosts: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Name under which browsers may reach it.")
    ] = None,
    secrets: Annotated[
        Path | None, typer.Option("--secrets", help="TOML file with tables auth (OIDC) and roles.")
    ] = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Open the dashboard of the workspace of TABDIFF_HOME, on this machine only unless told otherwise."""
    # The package stands above this one and is optional, so it is found by name.
    with needs("the dashboard needs", "dashboard"):
        importlib.import_module("streamlit")
        launch = importlib.import_module("dashboard.launch")
    launch.start(host=host, port=port, insecure=insecure, allow_hosts=tuple(allow_hosts or ()), secrets=secrets)
    return Outcome({}, [])
