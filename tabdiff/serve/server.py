"""Listen, answer, and on SIGTERM finish what was begun."""

from __future__ import annotations

import logging

import uvicorn

from tabdiff.model import Model
from tabdiff.serve.app import create_app
from tabdiff.serve.options import ServeOptions

_PATIENCE = 60  # seconds that open requests have to be answered, once it is asked to stop
_WARM_UP_ROWS = (1, 2)


def serve(model: Model, options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT. Then no new connections are taken, and every request that is in is answered."""
    for rows in _WARM_UP_ROWS:  # the first call is slow, and shall not be a user's
        model.score(model.sample(rows, seed=0))
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    uvicorn.run(
        create_app(model, options),
        host=options.host,
        port=options.port,
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE,
        timeout_keep_alive=30,
        backlog=1024,
    )
