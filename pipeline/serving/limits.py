"""What is checked of a request before anything reads it."""

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from time import perf_counter

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.classifier import Limits

OPEN_PATHS = ("/healthz", "/docs", "/openapi.json")
"""Answered without a token: they tell nothing of the model's data, and probes and browsers send none."""
OnResponse = Callable[[int, float], None]
"""Told the status code and the seconds of every answer."""


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
