"""Run the embedded Prefect server on a listening socket.

Started as `python -P -m flows.orchestration.server_process DESCRIPTOR`.

Prefect has a setting for the password and for cross-origin requests, but none for the names by which a
server may be called: a page of another site whose name leads to this machine could read ours. So its
application is served here, behind checks of the Host and the Origin of each request.
"""

import socket
import sys
from collections.abc import Collection

import uvicorn
from prefect.settings import (
    PREFECT_SERVER_API_KEEPALIVE_TIMEOUT,
    PREFECT_SERVER_API_WEBSOCKET_PING_INTERVAL,
    PREFECT_SERVER_API_WEBSOCKET_PING_TIMEOUT,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

NAMES = ("127.0.0.1", "localhost")
ANY = "*"


class OwnOrigins:
    """Reject requests and frames of other origins' pages."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        origin = Headers(scope=scope).get("origin")
        if origin is None or origin in self._origins or ANY in self._origins:
            await self._app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await WebSocketClose(code=1008)(scope, receive, send)
        else:
            await PlainTextResponse("this request comes from another site's page\n", 403)(
                scope, receive, send
            )


def with_checks(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """Restrict an application to this machine's names and to these origins."""
    return TrustedHostMiddleware(OwnOrigins(app, origins), allowed_hosts=[*NAMES], www_redirect=False)


def serve(listener: socket.socket) -> None:
    """Serve Prefect on a listening socket until SIGTERM or SIGINT."""
    from prefect.server.api.server import create_app  # takes a second, and the checks need none of it

    origins = PREFECT_SERVER_CORS_ALLOWED_ORIGINS.value().split(",")
    config = uvicorn.Config(
        with_checks(create_app(final=True), origins),
        timeout_keep_alive=PREFECT_SERVER_API_KEEPALIVE_TIMEOUT.value(),
        ws_ping_interval=PREFECT_SERVER_API_WEBSOCKET_PING_INTERVAL.value(),
        ws_ping_timeout=PREFECT_SERVER_API_WEBSOCKET_PING_TIMEOUT.value(),
        log_level="warning",
    )
    uvicorn.Server(config).run(sockets=[listener])


def _unframed(send: Send) -> Send:
    async def send_unframed(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Frame-Options"] = "SAMEORIGIN"
        await send(message)

    return send_unframed


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
