"""Authenticate requests, limit them, and format responses as Qdrant does."""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from storage.embedded.qdrant.engine.bindings import EngineFault, EnginePanic
from storage.embedded.qdrant.protocol.errors import RequestError, TooLarge, Unauthorized
from storage.embedded.qdrant.protocol.json_depth import require_shallow

MAX_BODY_BYTES = 64 * 1024**2
PUBLIC_PATHS = ("/healthz", "/livez", "/readyz")
FIRST_ERRORS = 3
SEE_LOG = "the log of the index in the data directory has more"
log = logging.getLogger("sightline.qdrant")

Handler = Callable[[Request, Any], Any]


@dataclass(slots=True)
class Activity:
    """Count requests, for `/metrics` and for the idle time."""

    last_request_s: float = field(default_factory=time.monotonic)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    responses: Counter = field(init=False)
    seconds: Histogram = field(init=False)

    def __post_init__(self) -> None:
        names = ["method", "endpoint", "status"]
        self.responses = Counter("rest_responses", "Responses to requests.", names, registry=self.registry)
        self.seconds = Histogram(
            "rest_responses_duration_seconds", "Time to a response.", names, registry=self.registry
        )

    def record(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """Count one response; `endpoint` is the pattern of the route."""
        self.last_request_s = time.monotonic()
        labels = (method, endpoint, str(status))
        self.responses.labels(*labels).inc()
        self.seconds.labels(*labels).observe(seconds)


@dataclass(frozen=True, slots=True)
class Gateway:
    """Authenticate requests, and turn results and errors into responses."""

    key: str
    activity: Activity
    after_panic: Callable[[str | None], None]
    """Called after a panic of the engine, with the name in the path or None."""

    home: Path
    """Data directory, which messages to clients do not show."""

    def route(self, method: str, path: str, handler: Handler, body: Any = None) -> Route:
        """Create a route that responds with the result of a handler.

        Args:
            method: GET, PUT, POST, PATCH or DELETE.
            path: with `{parameters}`, as in Qdrant's own description.
            handler: called for each request; an awaitable result is awaited, a Response is sent unchanged, an
                iterator of bytes gives the result's JSON in parts.
            body: the type of the request's JSON; None to ignore the body.
        """
        adapter = TypeAdapter(body) if body is not None else None
        # A whole name between slashes, decoded: a quoted name may hold a slash.
        return Route(path, partial(self._handle, path, handler, adapter), methods=[method])

    async def _handle(
        self, path: str, handler: Handler, adapter: TypeAdapter[Any] | None, request: Request
    ) -> Response:
        begun = time.perf_counter()
        try:
            self._authenticate(request)
            body = _parse(adapter, await _read(request)) if adapter else None
            # Freeing a hundred thousand numbers takes time as well: not before the response is sent.
            request.state.body = body
            result = handler(request, body)
            if isinstance(result, Awaitable):
                result = await result
            if isinstance(result, Response):
                response = result
            elif isinstance(result, Iterator):
                response = _stream(next(result), result, begun)
            else:
                response = _success(result, begun)
        except RequestError as error:
            response = self._failure(error.http_status, str(error), begun)
        except (EngineFault, OSError) as error:
            if isinstance(error, EnginePanic):
                self.after_panic(request.path_params.get("name"))
            log.exception("%s %s failed", request.method, path)
            response = self._failure(500, f"{error}; {SEE_LOG}", begun)
        except Exception:
            # Whatever it is, the client gets an answer of its kind, and its connection stays usable.
            log.exception("%s %s failed", request.method, path)
            response = self._failure(500, f"the index failed at this request; {SEE_LOG}", begun)
        self.activity.record(request.method, path, response.status_code, time.perf_counter() - begun)
        return response

    def _failure(self, status: int, message: str, begun: float) -> Response:
        """Return an error with paths relative to the data directory."""
        text = message.replace(f"{self.home}/", "")
        document = {"result": None, "status": {"error": text}, "time": time.perf_counter() - begun}
        return Response(to_json(document), status, media_type="application/json")

    def _authenticate(self, request: Request) -> None:
        if request.scope["path"] in PUBLIC_PATHS:  # a URL would be made up of the Host header as well
            return
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = request.headers.get("api-key") or bearer
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            raise Unauthorized(
                "the key is missing or wrong: it is in qdrant.json in the data directory, and changes with "
                "each start; read that file again, and pass the key to QdrantClient as api_key"
            )


def _parse(adapter: TypeAdapter[Any], body: bytearray) -> Any:
    require_shallow(body)
    try:
        # Pydantic's own parser takes twice as long over a batch of vectors, and lets NaN through.
        return adapter.validate_python(orjson.loads(body or b"null"))
    except orjson.JSONDecodeError as error:
        raise RequestError(f"not JSON: {error}") from error
    except ValidationError as error:
        raise RequestError(f"not such a request: {_summary(error)}") from error


async def _read(request: Request) -> bytearray:
    """Read the body, up to the limit."""
    too_large = TooLarge(f"a request may have {MAX_BODY_BYTES // 1024**2} MiB; send smaller batches")
    if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    return body


def _success(result: Any, begun: float) -> Response:
    document = {"result": result, "status": "ok", "time": time.perf_counter() - begun}
    return Response(to_json(document), media_type="application/json")


def _stream(first: bytes, rest: Iterator[bytes], begun: float) -> Response:
    """Send the parts of a result, and answer other requests in between.

    An error after the first part breaks the connection: a status has been sent.
    """

    async def parts() -> AsyncIterator[bytes]:
        yield b'{"result":' + first
        for part in rest:
            yield part
            await asyncio.sleep(0)
        yield b',"status":"ok","time":' + to_json(time.perf_counter() - begun) + b"}"

    return StreamingResponse(parts(), media_type="application/json")


def _summary(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    parts = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in found[:FIRST_ERRORS]]
    more = f", and {len(found) - FIRST_ERRORS} more" if len(found) > FIRST_ERRORS else ""
    return "; ".join(parts) + more
