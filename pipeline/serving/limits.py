"""Limits on a request, and the middleware that reads a whole body under them before anything looks at it."""

import asyncio
from dataclasses import dataclass

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What one request may ask for."""

    rows: int = 1000
    """Texts, or pairs, in a request."""
    body_bytes: int = 4 << 20
    """Bytes of the request's body."""
    body_seconds: float = 10.0
    """Time for the client to send the whole request."""
    answer_seconds: float = 30.0
    """Time from the whole request to its response."""


class BodyLimit:
    """ASGI middleware that answers 408 to a body that comes too slowly, and 413 to one that is too large."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on once its body is here, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read_in_time(Headers(scope=scope), receive)
        except ClientDisconnect:
            return
        except HTTPException as refusal:
            # Without "close", the rest of the body would be taken for the next request.
            response = JSONResponse({"detail": refusal.detail}, refusal.status_code, {"Connection": "close"})
            await response(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read_in_time(self, headers: Headers, receive: Receive) -> bytes:
        """Return the body; raise HTTPException if it breaks a limit, and ClientDisconnect if the client went away."""
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                return await self._read(headers.get("content-length", ""), receive)
        except TimeoutError as error:
            raise HTTPException(408, f"the request took over {self.limits.body_seconds:g} s to arrive") from error

    async def _read(self, content_length: str, receive: Receive) -> bytes:
        if content_length.isdecimal():
            self._check_size(int(content_length))
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            self._check_size(len(body))
            if not message.get("more_body", False):
                return bytes(body)

    def _check_size(self, size: int) -> None:
        if size > self.limits.body_bytes:
            raise HTTPException(413, f"the body is larger than {self.limits.body_bytes:,} bytes")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the whole body in one message, and then what the server sends after it: a disconnect."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
