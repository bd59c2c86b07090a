"""The routes of the endpoint."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, TypeVar

import numpy as np
import polars as pl
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tabdiff.config import SampleConfig
from tabdiff.errors import ConfigError, SchemaError, SynthesisError, TabdiffError
from tabdiff.model import Model
from tabdiff.serve import bodies
from tabdiff.serve.bodies import ARROW, JSON, ErrorAnswer, ModelAnswer, RowsAnswer, RowsBody, SampleBody, ScoresAnswer
from tabdiff.serve.metrics import Metrics
from tabdiff.serve.options import ServeOptions
from tabdiff.serve.worker import BusyError, Worker

_OPEN = "/healthz"  # the one path that needs no key: exactly this
_EVERYTHING = 1 - 1e-12
_REASONS = {
    400: "The body is not what its type says",
    401: "The API key is missing or wrong",
    413: "More rows or bytes than one request may have",
    415: "The body is neither JSON nor an Arrow stream",
    422: "The rows do not fit the model, or a value is not allowed",
    503: "Too many requests wait, or the endpoint is stopping",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": reason} for status, reason in _REASONS.items()
}
_ARROW_CONTENT = {ARROW: {"schema": {"type": "string", "format": "binary"}}}
_Asked = TypeVar("_Asked", bound=BaseModel)


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def create_app(model: Model, options: ServeOptions) -> FastAPI:
    """The endpoint as an ASGI application."""
    metrics = Metrics()
    worker = Worker(model, options, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await worker.start()
        yield
        await worker.stop()

    app = FastAPI(
        title="tabdiff",
        description="Scores, samples and filled gaps of one table.",
        version=metadata.version("tabdiff"),
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.worker = worker
    _add_model_routes(app, model, worker, options)
    _add_state_routes(app, model, worker, options, metrics)
    _add_errors(app)
    _add_gate(app, options, metrics)
    if options.api_key is None:
        # Without a key, a web page must not reach the endpoint through a name that points to this machine.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", "testserver"])
    return app


def _add_model_routes(app: FastAPI, model: Model, worker: Worker, options: ServeOptions) -> None:
    @app.post("/v1/score", **_described(ScoresAnswer, RowsBody))
    async def score(
        request: Request,
        fdr: float | None = Query(None, gt=0, lt=1, description="flag so that about this share of flags is false"),
        contamination: float | None = Query(None, gt=0, lt=1, description="flag this share of the rows"),
        explain: bool = Query(False, description="say of flagged rows what they should have held"),
    ) -> Response:
        """Score rows. Flags are set within the request: by the model's rule unless you say otherwise."""
        rule = model.rule(fdr=fdr, contamination=contamination)
        frame = await _rows(request, options)
        scores = await worker.score(frame)
        flagged = rule.flag(scores.score, scores.p_value, model.calibration.ascending)
        table = scores.to_frame()
        rows = np.flatnonzero(flagged)
        if explain and len(rows):
            full = await worker.run(lambda: model.score(frame[rows], contamination=_EVERYTHING).to_frame())
            table = _explained(table, full, rows)
        table = table.with_columns(flagged=pl.Series(flagged))
        worker.metrics.rows.labels("/v1/score").inc(len(flagged))
        worker.metrics.flagged.inc(len(rows))
        if _wants_arrow(request):
            return Response(bodies.arrow_of(table), media_type=ARROW)
        return _json({"provider": scores.provider, "scores": [_score_of(row) for row in table.iter_rows(named=True)]})

    @app.post("/v1/sample", **_described(RowsAnswer, SampleBody, arrow_body=False))
    async def sample(request: Request) -> Response:
        """Draw synthetic rows."""
        asked = _parsed(SampleBody, await _body(request, only_json=True))
        if asked.rows > options.max_rows:
            raise RefusedError(413, f"a request may ask for {options.max_rows} rows; got {asked.rows}")
        config = SampleConfig(steps=asked.steps)  # type: ignore[call-arg]
        drawn = await worker.run(
            lambda: model.sample(asked.rows, given=asked.given or None, seed=asked.seed, config=config)
        )
        worker.metrics.rows.labels("/v1/sample").inc(drawn.height)
        return _rows_answer(request, drawn, model)

    @app.post("/v1/impute", **_described(RowsAnswer, RowsBody))
    async def impute(
        request: Request,
        draws: int = Query(15, ge=1, le=100, description="draws whose middle fills a gap"),
        seed: int = Query(0, ge=0, lt=2**31, description="the same seed gives the same values"),
    ) -> Response:
        """Fill the gaps of rows."""
        frame = await _rows(request, options)
        filled = await worker.run(lambda: model.impute(frame, draws=draws, seed=seed))
        worker.metrics.rows.labels("/v1/impute").inc(filled.height)
        return _rows_answer(request, filled, model)


def _add_state_routes(app: FastAPI, model: Model, worker: Worker, options: ServeOptions, metrics: Metrics) -> None:
    state_errors: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (401, 503)}

    @app.get("/v1/model", response_model=ModelAnswer, responses={401: _ERRORS[401]})
    async def about() -> Response:
        """What is served: columns, engine, limits."""
        manifest = model.bundle.manifest
        columns = [
            {"name": c.name, "kind": c.kind.value, "role": c.role.value, "modelled": c.modelled}
            for c in model.schema.columns
        ]
        values = {
            "tabdiff": str(manifest.get("tabdiff", metadata.version("tabdiff"))),
            "created": str(manifest.get("created", "")),
            "fingerprint": model.bundle.fingerprint,
            "provider": model.runtime.provider,
            "columns": columns,
            "views": list(model.calibration.views),
            "default_fdr": model.bundle.config.score.fdr,
            "smallest_p_value": 1 / (len(model.calibration.normal) + 1),
            "max_rows": options.max_rows,
            "max_bytes": options.max_bytes,
        }
        return _json(values)

    @app.get(_OPEN, response_model=bodies.HealthAnswer, responses={503: {"model": bodies.HealthAnswer}})
    async def health() -> Response:
        """Whether requests are taken; needs no key."""
        return _json({"status": "stopping" if worker.stopping else "ok"}, 503 if worker.stopping else 200)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **state_errors})
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type=metrics.content_type)


def _described(answer: type[BaseModel], body: type[BaseModel], *, arrow_body: bool = True) -> dict[str, Any]:
    """Keyword arguments of a route that reads its body itself: what OpenAPI says of it."""
    content: dict[str, Any] = {JSON: {"schema": body.model_json_schema()}}
    if arrow_body:
        content |= _ARROW_CONTENT
    return {
        "response_model": answer,
        "responses": {200: {"content": _ARROW_CONTENT}, **_ERRORS},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return _error(error.status, "Refused", str(error))

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: Exception) -> Response:
        answer = _error(503, "Busy", "too many requests wait, or the endpoint is stopping; try again")
        answer.headers["Retry-After"] = "1"
        return answer

    @app.exception_handler(TabdiffError)
    async def explained(_: Request, error: Exception) -> Response:
        expected = isinstance(error, SchemaError | ConfigError | SynthesisError)
        problems = [str(problem) for problem in getattr(error, "problems", ())]
        return _error(422 if expected else 500, type(error).__name__, str(error), problems)

    from fastapi.exceptions import RequestValidationError

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _error(422, "Invalid", "a value is not allowed", _problems(error.errors()))

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = _error(error.status_code, "Refused", str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return _error(500, "Internal", "an error in the endpoint; its log has the details")


def _add_gate(app: FastAPI, options: ServeOptions, metrics: Metrics) -> None:
    """Before any route: who is there, how much is sent. After it: count."""

    @app.middleware("http")
    async def gate(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started, path = time.perf_counter(), request.url.path
        if path != _OPEN and not options.allows(_shown_key(request)):
            answer = _error(401, "Unauthorized", "show the API key as Authorization: Bearer KEY, or X-API-Key: KEY")
            answer.headers["WWW-Authenticate"] = "Bearer"
        else:
            request.state.max_bytes = options.max_bytes
            answer = await call_next(request)
        known = {getattr(route, "path", "") for route in app.routes}
        label = path if path in known else "other"
        metrics.requests.labels(label, str(answer.status_code)).inc()
        metrics.seconds.labels(label).observe(time.perf_counter() - started)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Cache-Control"] = "no-store"
        return answer


def _shown_key(request: Request) -> str | None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key")


async def _body(request: Request, *, only_json: bool = False) -> bytes:
    """The body, read only as far as it may be long."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ((JSON,) if only_json else (JSON, ARROW)):
        raise RefusedError(
            415, f"a body is {JSON}{'' if only_json else f' or {ARROW}'}; got {kind or 'no content type'}"
        )
    limit: int = request.state.max_bytes
    announced = request.headers.get("content-length", "0")
    parts, size = [], int(announced) if announced.isdigit() else 0
    if size <= limit:
        size = 0
        async for part in request.stream():
            size += len(part)
            parts.append(part)
            if size > limit:
                break
    if size > limit:
        raise RefusedError(413, f"a body has at most {limit} bytes; got more")
    return b"".join(parts)


async def _rows(request: Request, options: ServeOptions) -> pl.DataFrame:
    """The rows of a body, JSON or Arrow."""
    content = await _body(request)
    if request.headers["content-type"].partition(";")[0].strip().lower() == ARROW:
        try:
            frame = bodies.frame_of_arrow(content)
        except ValueError as error:
            raise RefusedError(400, str(error)) from None
    else:
        asked = _parsed(RowsBody, content)
        if len(asked.rows) <= options.max_rows:
            frame = bodies.frame_of(asked.rows)
        else:
            raise RefusedError(413, f"a request has at most {options.max_rows} rows; got {len(asked.rows)}")
    if frame.height > options.max_rows:
        raise RefusedError(413, f"a request has at most {options.max_rows} rows; got {frame.height}")
    return frame


def _parsed(kind: type[_Asked], content: bytes) -> _Asked:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not JSON ({error})") from None
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problems(error.errors(include_url=False, include_context=False))[:5])
        raise RefusedError(422, problems) from None


def _problems(errors: Any) -> list[str]:
    return [f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in errors]


def _explained(table: pl.DataFrame, full: pl.DataFrame, rows: np.ndarray) -> pl.DataFrame:
    full = full.with_columns(row=pl.Series(rows, dtype=table["row"].dtype))
    joined = table.join(full, on="row", how="left", maintain_order="left", suffix=" of flagged")
    filled = [pl.coalesce(name, f"{name} of flagged") for name in full.columns if name != "row"]
    return joined.with_columns(filled).select(table.columns)


def _score_of(row: dict[str, Any]) -> dict[str, Any]:
    places = [name.partition("_")[2] for name in row if name.startswith("column_")]
    columns = [
        {
            "name": row[f"column_{place}"],
            "contribution": row[f"contribution_{place}"],
            "expected": row[f"expected_{place}"],
        }
        for place in places
    ]
    return {**{name: row[name] for name in ("row", "score", "p_value", "flagged")}, "columns": columns}


def _wants_arrow(request: Request) -> bool:
    return ARROW in request.headers.get("accept", "")


def _rows_answer(request: Request, frame: pl.DataFrame, model: Model) -> Response:
    if _wants_arrow(request):
        return Response(bodies.arrow_of(frame), media_type=ARROW)
    return _json({"provider": model.runtime.provider, "rows": bodies.cells_of(frame)})


def _json(values: dict[str, Any], status: int = 200) -> Response:
    return Response(bodies.json_of(values), status_code=status, media_type=JSON)


def _error(status: int, kind: str, message: str, problems: list[str] | None = None) -> Response:
    return _json({"error": {"type": kind, "message": message, "problems": problems or []}}, status)
