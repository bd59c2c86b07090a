"""Answer requests over HTTP."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tabdiff.commands.common import JsonOption, ModelArgument, needs
from tabdiff.terminal import Outcome, console, say


def serve(
    model_dir: ModelArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65_535, help="Port to listen on.")] = 8000,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "tensorrt"], typer.Option("--device", help="Where the model runs.")
    ] = "auto",
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads of one call.")] = 1,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Rows of one request.")] = 10_000,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Bytes of one request.")] = 16_000_000,
    as_json: JsonOption = False,
) -> Outcome:
    """Score, sample and impute over HTTP, until SIGTERM.

    The API key is read from TABDIFF_API_KEY or the file that TABDIFF_API_KEY_FILE names. Without one, only this
    machine is listened to.
    """
    with needs("serving needs", "serve,cpu"):
        from tabdiff.serve.server import serve as run
    from tabdiff.loading import load
    from tabdiff.serve.options import ServeOptions, key_from_environment

    options = ServeOptions(host, port, key_from_environment(), max_rows, max_bytes)
    model = load(model_dir, device=device, threads=threads)
    guard = "with an API key" if options.api_key else "without an API key, for this machine alone"
    say(console(stderr=True), f"serving {model_dir} with {model.runtime.provider} on http://{host}:{port}, {guard}")
    run(model, options)
    return Outcome({"served": str(model_dir), "provider": model.runtime.provider}, ["Stopped."])
