"""The bearer token: how it is checked, and declared on the OpenAPI page.

The check is a middleware and not a FastAPI dependency: FastAPI reads the body before it resolves dependencies, and would answer
404 for unknown paths without one. So `BEARER` only declares the scheme.
"""

import hmac

from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.serving.token import hash_token

OPEN_PATHS = ("/healthz", "/docs", "/openapi.json")
"""Paths that need no token: they reveal nothing of the model's data, and health probes and browsers send none."""
BEARER = HTTPBearer(auto_error=False, description="The token that the server was started with.")
"""The security scheme, for OpenAPI; `BearerAuth` enforces it."""


class BearerAuth:
    """ASGI middleware that answers 401, before it reads a body, unless the request carries the token or the path is open."""

    def __init__(self, app: ASGIApp, token_hash: bytes) -> None:
        self.app, self.token_hash = app, token_hash

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or refuse it."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_authorized(scope):
            await self.app(scope, receive, send)
            return
        refusal = JSONResponse({"detail": "wrong or missing bearer token"}, 401, {"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)

    def _is_authorized(self, scope: Scope) -> bool:
        headers = {name.lower(): value for name, value in scope["headers"]}
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(hash_token(token.strip()), self.token_hash)
