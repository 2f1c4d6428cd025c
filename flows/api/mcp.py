"""Serve search, records and status to assistants over MCP."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, TypeVar
from uuid import UUID

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.api import queries
from flows.api.auth import KeyAuthenticator, require_scope
from flows.api.limits import MOST_BODIES, BoundedBody, ByteBudget, stated_size
from flows.api.problems import HANDLED_ERRORS, api_error_of, problem_response
from flows.api.request_bodies import require_plain_json
from flows.api.request_models import SearchRequest, Where, Words
from flows.api.response_models import RecordAnswer, SearchAnswer, StatusAnswer
from flows.search.query import Find
from flows.service.observer import Observation, Observer, observe
from flows.service.pool import Backend

PATH = "/mcp"
INSTRUCTIONS = (
    "Sightline holds images and texts. `search` finds those that match a text, `get` returns one "
    "record, `status` reports how many records there are and whether everything works."
)
MAX_BODY_BYTES = 2**20
"""Size limit of a message: a text and its conditions are far smaller."""

READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class McpApp:
    """Hold the MCP route (Streamable HTTP) and its session manager.

    Args:
        route: to be appended to the application's routes, not mounted: clients do not follow the redirect
            from `/mcp` to `/mcp/` that a mount answers with.
        at_work: entered once, in the application's lifespan.
    """

    route: Route
    server: MCPServer

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with self.server.session_manager.run():
            yield


def mcp_app(backend: Backend, observer: Observer) -> McpApp:
    """Return the MCP server over HTTP, which requires a `read` key."""
    server = mcp_server(backend, lambda: observer.latest)
    # without a key there is no answer, so that a page that a browser was lured to gets none either
    no_check = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(
        streamable_http_path=PATH, stateless_http=True, json_response=True, transport_security=no_check
    )
    return McpApp(Route(PATH, endpoint=_KeyGuard(app, KeyAuthenticator(backend))), server)


def serve_on_stdio(backend: Backend) -> None:
    """Serve one local assistant on standard input and output."""
    mcp_server(backend, lambda: observe(backend)).run("stdio")


def mcp_server(backend: Backend, read_observation: Callable[[], Observation]) -> MCPServer:
    """Return the server with its three read-only tools.

    Args:
        read_observation: returns the observation that `status` reports.
    """
    server: MCPServer = MCPServer(
        "sightline",
        title="Sightline",
        version=version("sightline"),
        instructions=INSTRUCTIONS,
        log_level="WARNING",
        subscriptions=False,
    )

    @server.tool(annotations=READ_ONLY)
    def search(
        text: Annotated[Words, Field(description="Query text.")],
        find: Annotated[Find, Field(description="Whether to search images or texts.")] = "images",
        limit: Annotated[int, Field(ge=1, le=100)] = 10,
        min_score: Annotated[float | None, Field(ge=-1, le=1, allow_inf_nan=False)] = None,
        where: Where | None = None,
    ) -> SearchAnswer:
        """Find the records closest to a text, best first."""
        arguments = {"text": text, "find": find, "limit": limit, "min_score": min_score, "where": where or {}}
        return _answer(lambda: queries.search_answer(backend, SearchRequest.model_validate(arguments)))

    @server.tool(annotations=READ_ONLY)
    def get(id: Annotated[UUID, Field(description="Id of the record, as in a hit.")]) -> RecordAnswer:
        """Return one record: its texts, metadata and image properties."""
        return _answer(lambda: queries.record_answer(backend, id))

    @server.tool(annotations=READ_ONLY)
    def status() -> StatusAnswer:
        """Return record counts, running and failed flows, and store availability."""
        return _answer(lambda: queries.status_answer(backend, read_observation()))

    return server


def _answer(work: Callable[[], Answer]) -> Answer:
    try:
        return work()
    except HANDLED_ERRORS as error:
        raise ToolError(api_error_of(error).detail) from error


class _KeyGuard:
    """Admit requests with a `read` key and a bounded JSON body."""

    def __init__(self, app: ASGIApp, authenticator: KeyAuthenticator) -> None:
        self._app, self._authenticator = app, authenticator
        self._budget = ByteBudget(MOST_BODIES * MAX_BODY_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stated = Headers(scope=scope).get("authorization", "")
        scheme, _, key = stated.partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else None
        try:
            caller = await run_in_threadpool(self._authenticator.authenticate, given)
            require_scope(caller, "read")
            data = await self._read(scope, receive, caller.id)
        except HANDLED_ERRORS as error:
            await problem_response(api_error_of(error))(scope, receive, send)
            return
        await self._app(scope, _again(data, receive), send)

    async def _read(self, scope: Scope, receive: Receive, caller: UUID) -> bytes:
        """Return the body.

        Raises:
            ApiError: 408, 413, 422 or 503.
        """
        body = BoundedBody(receive, stated_size(scope), MAX_BODY_BYTES, self._budget, caller=lambda: caller)
        data, is_whole = bytearray(), False
        try:
            while not is_whole:
                message = await body.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                data += message.get("body", b"")
                is_whole = not message.get("more_body", False)
        finally:
            body.release()
        require_plain_json(data)
        return bytes(data)


def _again(data: bytes, receive: Receive) -> Receive:
    """Return a receiver that replays a body, then continues."""
    messages: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again
