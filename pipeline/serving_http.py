"""The HTTP face of a model: what callers may send, what they get, and every way to be refused. No Ray.

    POST /classify   {"text": "..."} | {"text": "...", "pair": "..."} | {"text": ["...", "..."], "speed": 0.3}
    GET  /healthz    200 while the engine works
    GET  /model      what is served, and the limits
    GET  /docs       OpenAPI page

Refusals are JSON, {"detail": "one line"}: 400 no JSON, 401 wrong token, 408 body too slow, 413 body too large, 422 wrong
content, 429 queue full (with Retry-After), 500 the engine failed, 503 the engine is stuck, 504 no answer in time. Ray Serve
adds 404 and 503 while no replica is there, and 500, as text, for what was at work in a replica that died.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.criterion import Criterion
from pipeline.calibration import Curve
from pipeline.guarantees import CONFIDENCE
from pipeline.rows import Predictions, Thresholds
from pipeline.schema import EXIT_LAYER, LABEL, LABEL_ID, PROBABILITIES, SCORE, TRUNCATED, UNCERTAINTY, VALUE
from pipeline.serving_queue import EngineQueue, QueueFullError
from pipeline.serving_schema import ClassifyRequest, ClassifyResponse, Problem
from pipeline.tokenise import Tokenised, Tokeniser

OPEN_PATHS = ("/healthz", "/docs", "/openapi.json")
"""Answered without a token: they tell nothing of the model's data, and probes and browsers send none."""
OnResponse = Callable[[int, float], None]
"""Told the status code and the seconds of every answer."""
STUCK_S = 120.0
"""A batch takes a second or so; an engine that has not come back after this long never will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a caller may ask for at once."""

    rows: int = 1000
    """Texts, or pairs, in a request."""
    body_bytes: int = 4 << 20
    body_seconds: float = 10.0
    """To send the whole request."""
    answer_seconds: float = 30.0
    """From the whole request to its answer."""


class Classifier:
    """Text in, results out: a tokeniser and an engine's queue, for coroutines."""

    def __init__(
        self, queue: EngineQueue, tokeniser: Tokeniser, criterion: Criterion, limits: Limits, curve: Curve | None = None
    ) -> None:
        """`criterion` judges requests that ask for nothing else; `curve`, of the calibration, finds what others ask for."""
        self.queue, self.tokeniser, self.criterion, self.limits = queue, tokeniser, criterion, limits
        self.labels, self.regression = queue.engine.model.labels, queue.engine.model.regression
        self.layers = queue.engine.model.shape.layers
        self.curve = curve
        self.takes_speed = not queue.engine.config.criterion.full_depth and criterion.name != "patience"
        self._tokenising = ThreadPoolExecutor(
            1, thread_name_prefix="tokenise"
        )  # the work itself is on all cores, in Rust

    async def classify(self, request: ClassifyRequest) -> list[dict[str, Any]]:
        """Answer a request; raise HTTPException as this module's head says."""
        texts, pairs = self._rows_of(request)
        criterion = self._criterion_of(request)
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                self.queue.check_room()
                loop = asyncio.get_running_loop()
                tokenised = await loop.run_in_executor(self._tokenising, self.tokeniser, texts, pairs)
                thresholds = None if criterion is None else np.tile(self._thresholds(criterion), (len(texts), 1))
                predictions = await asyncio.wrap_future(self.queue.submit(tokenised.rows, thresholds))
        except QueueFullError as error:
            raise HTTPException(429, str(error), {"Retry-After": str(error.retry_after_s)}) from error
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {self.limits.answer_seconds:g} s") from error
        return self._results(predictions, tokenised, probabilities=request.probabilities)

    def describe(self) -> dict[str, Any]:
        """Tell what is served, and the limits."""
        engine = self.queue.engine
        return {
            "labels": None if self.regression else self.labels,
            "layers": self.layers,
            "exit_layers": list(engine.model.exit_layers),
            "criterion": self.criterion.describe(),
            "speed_per_request": self.takes_speed,
            "calibrated": self.curve is not None,
            "max_tokens": self.tokeniser.spec.max_tokens,
            "dtype": engine.precision,
            "device": engine.device.type,
            "max_rows": self.limits.rows,
            "max_body_bytes": self.limits.body_bytes,
        }

    def _rows_of(self, request: ClassifyRequest) -> tuple[list[str], list[str] | None]:
        texts = [request.text] if isinstance(request.text, str) else request.text
        pairs = [request.pair] if isinstance(request.pair, str) else request.pair
        if len(texts) > self.limits.rows:
            raise HTTPException(422, f"text: {len(texts)} texts; at most {self.limits.rows} in a request")
        if pairs is not None and (
            len(pairs) != len(texts) or isinstance(request.pair, str) != isinstance(request.text, str)
        ):
            raise HTTPException(422, f"pair: {len(pairs)} second texts for {len(texts)} first ones")
        for name, values in (("text", texts), ("pair", pairs or ())):
            for place, value in enumerate(values):
                if problem := _problem_of(value):
                    raise HTTPException(422, f"{name}: number {place} {problem}")
        return texts, pairs

    def _criterion_of(self, request: ClassifyRequest) -> Criterion | None:
        """Return what judges this request's rows; None where the engine's criterion has no thresholds to vary."""
        asked = request.asked()
        if len(asked) > 1:
            raise HTTPException(422, f"{' and '.join(asked)} exclude each other")
        if "target_speedup" in asked or "max_disagreement" in asked:
            return self._calibrated(**asked)
        if not self.takes_speed:
            if asked and self.criterion.name == "patience":
                raise HTTPException(422, f"speed: this model is served with {self.criterion.describe()}")
            return None
        return Criterion(name=self.criterion.name, speed=asked["speed"]) if asked else self.criterion

    def _calibrated(self, target_speedup: float | None = None, max_disagreement: float | None = None) -> Criterion:
        """Look up the thresholds for a speed-up or a limit."""
        name = "max_disagreement" if target_speedup is None else "target_speedup"
        if self.curve is None:
            raise HTTPException(422, f"{name}: this model is served without a calibration (jobs/calibrate.py)")
        if target_speedup is None:
            assert max_disagreement is not None
            return self.curve.within(max_disagreement, CONFIDENCE).criterion
        try:
            return self.curve.at_speedup(target_speedup).criterion
        except ValueError as error:
            raise HTTPException(422, f"{name}: {error}") from error

    def _thresholds(self, criterion: Criterion) -> Thresholds:
        """Lay a criterion out by layer: [L]."""
        return np.array([criterion.speed_at(layer) for layer in range(1, self.layers + 1)], np.float32)

    def _results(self, predictions: Predictions, tokenised: Tokenised, *, probabilities: bool) -> list[dict[str, Any]]:
        answer: dict[str, list[Any]] = {}
        if self.regression:
            answer[VALUE] = predictions.logits[:, 0].tolist()
        else:
            label_ids = predictions.label_ids.tolist()
            answer |= {LABEL: [self.labels[i] for i in label_ids], LABEL_ID: label_ids}
            answer[SCORE] = predictions.scores.tolist()
            if probabilities:
                answer[PROBABILITIES] = predictions.probabilities.tolist()
        answer[EXIT_LAYER] = predictions.exit_layers.tolist()
        answer[UNCERTAINTY] = predictions.uncertainty.tolist()
        answer[TRUNCATED] = tokenised.truncated.tolist()
        return [dict(zip(answer, row, strict=True)) for row in zip(*answer.values(), strict=True)]


def _problem_of(text: str) -> str | None:
    """Say why a text is none, by the rules of the bulk job's reader."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, as in the JSON escape \ud800
        return "holds an escape that is no UTF-8"
    return None if text.strip() else "is empty"


class Gate:
    """Middleware: checks the token, and reads the whole body under its limits before anything looks at it."""

    def __init__(self, app: ASGIApp, limits: Limits, token_hash: bytes | None, on_response: OnResponse) -> None:
        self.app, self.limits, self.token_hash, self.on_response = app, limits, token_hash, on_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, noted = perf_counter(), False

        async def note(message: Message) -> None:
            nonlocal noted
            if message["type"] == "http.response.start":
                self.on_response(message["status"], perf_counter() - started)
                noted = True
            await send(message)

        try:
            await self._answer(scope, receive, note)
        except Exception:
            if not noted:  # what makes a 500 of it stands outside of all middleware
                self.on_response(500, perf_counter() - started)
            raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._may_pass(scope["path"], headers.get(b"authorization", b"")):
            refusal = JSONResponse({"detail": "wrong or missing bearer token"}, 401, {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._read(receive, headers.get(b"content-length", b""))
        except TimeoutError:
            body = JSONResponse({"detail": f"the request took over {self.limits.body_seconds:g} s to arrive"}, 408)
        if body is None:  # the caller went away
            return
        if isinstance(body, JSONResponse):
            body.headers["Connection"] = "close"  # what is left of the body would be taken for the next request
            await body(scope, receive, send)
            return
        await self.app(scope, _once(body, receive), send)

    def _may_pass(self, path: str, authorization: bytes) -> bool:
        if self.token_hash is None or path in OPEN_PATHS:
            return True
        scheme, _, token = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(hash_token(token.strip()), self.token_hash)

    async def _read(self, receive: Receive, announced: bytes) -> bytes | JSONResponse | None:
        limit = self.limits.body_bytes
        too_large = JSONResponse({"detail": f"the body is larger than {limit:,} bytes"}, 413)
        if announced.isdigit() and int(announced) > limit:
            return too_large
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            if sum(map(len, parts)) > limit:
                return too_large
            if not message.get("more_body", False):
                return b"".join(parts)


def hash_token(token: bytes) -> bytes:
    """Return what is kept of a token: enough to compare, too little to use."""
    return hashlib.sha256(token).digest()


def _once(body: bytes, receive: Receive) -> Receive:
    """Give the body in one message, and after it what else comes: a disconnect."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


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
