"""The API over a backend, as a caller meets it: mounted in an application, with keys of one's own."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from flows.api.app import create_api
from flows.api.mcp import mcp_app
from flows.api.worker import drain, queue_worker
from flows.config.settings import Settings
from flows.service.observer import Observer
from flows.service.pool import Backend
from storage.postgres import api_keys
from storage.postgres.api_keys import Scope

API = "/api/v1"


def an_application(backend: Backend) -> FastAPI:
    """What `sightline console` serves of this: the API, MCP, and the queue at work."""
    observer = Observer(backend)
    assistants = mcp_app(backend, observer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with assistants.at_work():
            with queue_worker(backend):
                yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.router.routes.append(assistants.route)
    app.mount(API, create_api(backend, observer))
    return app


@contextmanager
def a_caller(backend: Backend, *scopes: Scope) -> Iterator[TestClient]:
    """A client with a key of these scopes; nothing drains the queue but the test."""
    app = FastAPI(openapi_url=None)
    app.mount(API, create_api(backend, Observer(backend)))
    headers = a_key(backend, *scopes) if scopes else {}
    with TestClient(app, base_url=f"http://testserver{API}", headers=headers) as client:
        yield client


def a_key(backend: Backend, *scopes: Scope, name: str | None = None) -> dict[str, str]:
    """The header with a new key of these scopes."""
    with backend.sessions() as sessions, sessions.begin() as session:
        key, _ = api_keys.create(
            session, name or f"{' and '.join(scopes)} {len(api_keys.list_keys(session))}", scopes
        )
    return {"Authorization": f"Bearer {key}"}


def with_limits(backend: Backend, **limits: Any) -> Backend:
    """The same backend with other limits of the API."""
    api = backend.settings.api.model_copy(update=limits)
    return with_settings(backend, api=api)


def with_settings(backend: Backend, **changed: Any) -> Backend:
    settings: Settings = backend.settings.model_copy(update=changed)
    return Backend(settings, load=backend._models._load)


def sent(client: TestClient, *records: dict[str, Any], source: str = "shop", **more: Any) -> dict[str, Any]:
    """The receipt of these records, which wait in the queue."""
    answer = client.post("records", json={"source": source, "records": list(records)}, **more)
    assert answer.status_code == 202, answer.text
    receipt: dict[str, Any] = answer.json()
    return receipt


def taken_in(backend: Backend, client: TestClient, *records: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The receipt of these records, once the queue is empty."""
    receipt = sent(client, *records, **more)
    drain(backend)
    found: dict[str, Any] = client.get(f"receipts/{receipt['id']}").json()
    return found
