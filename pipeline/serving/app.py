"""The HTTP interface of a model: what clients may send, what they get, and every way to be refused. No Ray.

    POST /classify   {"text": "..."} | {"text": "...", "pair": "..."} | {"text": ["...", "..."], "speed": 0.3}
    GET  /healthz    200 while the engine works
    GET  /model      what is served, and the limits
    GET  /docs       OpenAPI page

Refusals are JSON, {"detail": "one line"}: 400 not JSON, 401 wrong token, 408 body too slow, 413 body too large, 422 wrong
content, 429 queue full (with Retry-After), 500 the engine failed, 503 the engine is stuck, 504 timeout. Ray Serve adds 404 and
503 while there is no replica, and 500, as text, for requests in flight in a replica that died.
"""

from typing import Any

from fastapi import FastAPI, HTTPException, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware

from pipeline.serving.auth import BEARER, BearerAuth
from pipeline.serving.classifier import TextClassifier
from pipeline.serving.limits import BodyLimit
from pipeline.serving.observer import OnResponse, ResponseObserver
from pipeline.serving.schema import ClassifyRequest, ClassifyResponse, Problem

REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (400, 401, 408, 413, 422, 429, 500, 504)
}


def build_app(
    classifier: TextClassifier,
    *,
    token_hash: bytes | None,
    version: str,
    on_response: OnResponse = lambda status, seconds: None,
) -> FastAPI:
    """Build the application around a classifier; clients need the token of `token_hash` (see `hash_token`), if there is one."""
    middleware = [Middleware(ResponseObserver, on_response=on_response)]
    if token_hash is not None:
        middleware.append(Middleware(BearerAuth, token_hash=token_hash))
    middleware.append(Middleware(BodyLimit, limits=classifier.limits))
    app = FastAPI(title="offramp", version=version, redoc_url=None, middleware=middleware)
    _add_routes(app, classifier, [] if token_hash is None else [Security(BEARER)])
    app.exception_handler(RequestValidationError)(_refuse_content)
    app.exception_handler(Exception)(_report_failure)
    return app


def _add_routes(app: FastAPI, classifier: TextClassifier, security: list[Any]) -> None:
    @app.post(
        "/classify",
        responses=REFUSALS,
        response_model=ClassifyResponse,
        response_model_exclude_none=True,
        dependencies=security,
    )
    async def classify(request: ClassifyRequest) -> JSONResponse:
        """Classify one text, a pair, or a list; every request may set a speed of its own."""
        return JSONResponse(await classifier.classify(request))

    @app.get("/model", dependencies=security)
    async def model() -> dict[str, Any]:
        """Describe what is served, and the limits."""
        return classifier.describe()

    @app.get("/healthz", responses={503: {"model": Problem}})
    async def healthz() -> dict[str, str]:
        """Return 200 while the engine works."""
        if classifier.queue.is_stuck():
            raise HTTPException(503, "the engine does not come back")
        return {"status": "ok"}


async def _refuse_content(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Return pydantic's list of problems as one line: 400 if the body is not JSON at all, else 422."""
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return JSONResponse({"detail": "the body is no JSON"}, 400)
    lines = [
        f"{'.'.join(map(str, problem['loc'][1:])) or 'body'}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in problems
    ]
    return JSONResponse({"detail": "; ".join(lines)}, 422)


async def _report_failure(_request: Request, error: Exception) -> JSONResponse:
    """Return 500 with the exception's type only; the log has the rest."""
    return JSONResponse({"detail": f"the engine failed: {type(error).__name__}"}, 500)
