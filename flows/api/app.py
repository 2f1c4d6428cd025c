"""Build the HTTP API, to be mounted at /api/v1."""

from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Security
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from flows.api import queries
from flows.api.auth import KeyAuthenticator
from flows.api.docs_page import add_page
from flows.api.limits import MOST_BODIES, BodyLimitMiddleware, ByteBudget
from flows.api.problems import Problem, add_handlers, responses
from flows.api.records import record_routes
from flows.api.request_bodies import SEARCH_FORM, read_search, request_body
from flows.api.request_models import IngestRequest, SearchRequest
from flows.api.response_models import SearchAnswer, StatusAnswer
from flows.service.observer import Observer
from flows.service.pool import Backend
from storage.postgres.api_keys import Key

DESCRIPTION = """
Search images with text and texts with images, ingest records, and delete them.

Every operation but `health` needs a key: `Authorization: Bearer sl_…`. Errors are reported as
`application/problem+json` (RFC 9457). Records are ingested and deleted through a queue: the response is a
receipt, and its URL reports the state of the request.
"""
TAGS = [
    {"name": "search", "description": "Search records by a text or an image."},
    {"name": "records", "description": "Read, ingest and delete records; read receipts."},
    {"name": "status", "description": "Status of the server and of the stores."},
]


class Health(BaseModel):
    """Report that the process answers."""

    status: str = "ok"


def create_api(backend: Backend, observer: Observer) -> FastAPI:
    """Return the API over `backend`; mount it at /api/v1.

    Requests that it accepts are carried out by `queue_worker`. Its OpenAPI description is at `openapi.json`
    below the mount, its documentation page at `docs`.
    """
    app = FastAPI(
        title="Sightline",
        version=version("sightline"),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
    )
    add_handlers(app)
    max_bytes = backend.settings.api.max_body_bytes
    budget = ByteBudget(MOST_BODIES * max_bytes, most_per_caller=MOST_BODIES * max_bytes // 2)
    app.add_middleware(BodyLimitMiddleware, max_bytes=max_bytes, budget=budget)
    authenticator = KeyAuthenticator(backend)
    app.include_router(search_routes(backend, authenticator))
    app.include_router(record_routes(backend, authenticator))
    app.include_router(status_routes(backend, observer, authenticator))
    add_page(app)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]  # FastAPI's way to extend it
    return app


def search_routes(backend: Backend, authenticator: KeyAuthenticator) -> APIRouter:
    """Return the search operation."""
    router = APIRouter(tags=["search"])
    reader = Annotated[Key, Security(authenticator.require, scopes=["read"])]

    @router.post(
        "/search",
        operation_id="search",
        responses=responses(400, 408, 409, 413, 415, 422),
        openapi_extra=request_body(SearchRequest, form=SEARCH_FORM),
    )
    def search(_: reader, request: Annotated[SearchRequest, Depends(read_search)]) -> SearchAnswer:
        """Return the records closest to a text or an image, best first.

        Send an image as base64 in the JSON document, or as the file `image` of a form. The first search of a
        server waits until its model is loaded.
        """
        return queries.search_answer(backend, request)

    return router


def status_routes(backend: Backend, observer: Observer, authenticator: KeyAuthenticator) -> APIRouter:
    """Return the operations that report status and health."""
    router = APIRouter(tags=["status"])
    reader = Annotated[Key, Security(authenticator.require, scopes=["read"])]

    @router.get("/status", operation_id="get_status", responses=responses())
    def get_status(_: reader) -> StatusAnswer:
        """Return record counts, running and failed flows, and store availability."""
        return queries.status_answer(backend, observer.latest)

    @router.get("/health", operation_id="get_health")
    def get_health() -> Health:
        """Report that the process answers, without a key or a store."""
        return Health()

    return router


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the cached OpenAPI description, with the schemas of request bodies."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        _, own = models_json_schema(
            [(Problem, "serialization"), (SearchRequest, "validation"), (IngestRequest, "validation")],
            ref_template="#/components/schemas/{model}",
        )
        schema["components"]["schemas"] |= own["$defs"]
        app.openapi_schema = schema
    return app.openapi_schema
