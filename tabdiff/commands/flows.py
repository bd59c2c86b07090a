"""Scheduled flows: the server, the process that runs what is due, and what watches over both."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tabdiff.commands.common import JsonOption, needs, reported
from tabdiff.terminal import Outcome

PlanOption = Annotated[
    Path | None, typer.Option("--plan", help="File of schedules; flows.toml of the workspace if not given.")
]


def _deploy() -> tuple[Any, Any]:
    """`flows.deploy` and the workspace. The package stands above this one and is optional, so it is found by name."""
    with needs("flows need", "flows"):
        deploy = importlib.import_module("flows.deploy")
        importlib.import_module("importlib.metadata").version("prefect")
    from tabdiff.store import Workspace

    workspace = Workspace.open()
    deploy.prepare(workspace.home)
    return deploy, workspace


def server(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 4200,
    as_json: JsonOption = False,
) -> Outcome:
    """Run a Prefect server with a password (made on first use, in prefect-auth of the workspace)."""
    deploy, workspace = _deploy()
    deploy.start_server(workspace.home, host, port)
    return Outcome({}, [])


def serve(plan: PlanOption = None, as_json: JsonOption = False) -> Outcome:
    """Run what is due, and what the dashboard asks for, until stopped. One process, good for one host."""
    deploy, workspace = _deploy()
    standard = workspace.home / "flows.toml"
    asked = deploy.read_plan(plan or standard) if plan or standard.exists() else deploy.Plan()
    print(*deploy.announce(asked, workspace), sep="\n", file=sys.stderr, flush=True)
    deploy.serve(asked)
    return Outcome({}, ["Stopped. Schedules stay active; runs that come due show as late until somebody serves them."])


def prefect(
    arguments: Annotated[
        list[str], typer.Argument(metavar="ARGUMENTS...", help="As for `prefect` itself.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> Outcome:
    """Run Prefect's own command with the address, password and settings of the workspace: for work pools and workers."""
    deploy, _ = _deploy()
    deploy.become_prefect(arguments)
    return Outcome({}, [])


def init(
    notify: Annotated[
        str | None, typer.Option("--notify", help="Notification block of Prefect, as in slack-webhook/ops.")
    ] = None,
    as_json: JsonOption = False,
) -> Outcome:
    """Write example schedules, and create what fails silent runs and tells of alerts."""
    deploy, workspace = _deploy()
    done = deploy.initialise(workspace, notify)
    created = [f"Created in Prefect: {name}" for name in done["created"]] or ["Prefect had everything already."]
    return Outcome(done, [*created, f"Schedules: {done['schedules']} (edit it, then tabdiff flows serve)"])


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    group = typer.Typer(help="Schedule the jobs of the workspace with Prefect.", no_args_is_help=True)
    commands: dict[str, Callable[..., Outcome]] = {"init": init, "server": server, "serve": serve, "prefect": prefect}
    for name, function in commands.items():
        # What Prefect's command is given is not ours to read.
        settings = {"ignore_unknown_options": True, "allow_interspersed_args": False} if name == "prefect" else None
        group.command(name, context_settings=settings)(reported(function))
    app.add_typer(group, name="flows")
