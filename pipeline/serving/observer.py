"""Status and duration of every response, for metrics."""

from collections.abc import Callable
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

OnResponse = Callable[[int, float], None]
"""Function that takes the status code of a response, and the seconds from its request."""


class ResponseObserver:
    """ASGI middleware that reports every response once."""

    def __init__(self, app: ASGIApp, on_response: OnResponse) -> None:
        self.app, self.on_response = app, on_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and report its response when that starts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, reported = perf_counter(), False

        async def observed(message: Message) -> None:
            nonlocal reported
            if message["type"] == "http.response.start":
                self.on_response(message["status"], perf_counter() - started)
                reported = True
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception:
            if not reported:  # Starlette turns this into a 500 above our middleware, so record it here.
                self.on_response(500, perf_counter() - started)
            raise
