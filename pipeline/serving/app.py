"""The HTTP face of a model: what callers may send, what they get, and every way to be refused. No Ray.

    POST /classify   {"text": "..."} | {"text": "...", "pair": "..."} | {"text": ["...", "..."], "speed": 0.3}
    GET  /healthz    200 while the engine works
    GET  /model      what is served, and the limits
    GET  /docs       OpenAPI page

Refusals are JSON, {"detail": "one line"}: 400 no JSON, 401 wrong token, 408 body too slow, 413 body too large, 422 wrong
content, 429 queue full (with Retry-After), 500 the engine failed, 503 the engine is stuck, 504 no answer in time. Ray Serve
adds 404 and 503 while no replica is there, and 500, as text, for what was at work in a replica that died.
"""

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware

from pipeline.serving.classifier import STUCK_S, Classifier
from pipeline.serving.limits import Gate, OnResponse
from pipeline.serving.schema import ClassifyRequest, ClassifyResponse, Problem


def build_app(
    classifier: Classifier,
    *,
    token_hash: bytes | None,
    version: str,
    on_response: OnResponse = lambda status, seconds: None,
) -> FastAPI:
    """Build the application around a classifier; `token_hash` (see `hash_token`) is that of the bearer token it wants."""
    gate = Middleware(Gate, limits=classifier.limits, token_hash=token_hash, on_response=on_response)
    app = FastAPI(title="offramp", version=version, redoc_url=None, middleware=[gate])
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem} for code in (400, 401, 408, 413, 422, 429, 500, 504)
    }

    @app.post("/classify", responses=refusals, response_model=ClassifyResponse, response_model_exclude_none=True)
    async def classify(request: ClassifyRequest) -> JSONResponse:
        """Classify one text, a pair, or a list; every request may have a speed of its own."""
        return JSONResponse({"results": await classifier.classify(request)})

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Tell what is served, and the limits."""
        return classifier.describe()

    @app.get("/healthz", responses={503: {"model": Problem}})
    async def healthz() -> dict[str, str]:
        """Say that the engine works."""
        if classifier.queue.stuck_for() > STUCK_S:
            raise HTTPException(503, "the engine does not come back")
        return {"status": "ok"}

    @app.exception_handler(RequestValidationError)
    async def wrong(_request: Request, error: RequestValidationError) -> JSONResponse:
        """One line in place of pydantic's list; and no JSON at all is another mistake than wrong JSON."""
        problems = error.errors()
        no_json = any(problem["type"] == "json_invalid" for problem in problems)
        lines = [f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}" for problem in problems]
        return JSONResponse({"detail": "the body is no JSON" if no_json else "; ".join(lines)}, 400 if no_json else 422)

    @app.exception_handler(Exception)
    async def failed(_request: Request, error: Exception) -> JSONResponse:
        """Say that it is our fault, and no more: the log has the rest."""
        return JSONResponse({"detail": f"the engine failed: {type(error).__name__}"}, 500)

    return app
