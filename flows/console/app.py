"""Build the web application: console pages, HTTP API, MCP and metrics."""

from asyncio import get_running_loop
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing

from fastapi import FastAPI
from nicegui import ui
from starlette.responses import JSONResponse

from flows.api.app import create_api
from flows.api.mcp import mcp_app
from flows.api.worker import queue_worker
from flows.config.settings import Settings
from flows.console.auth import Guard, Sessions, add_login, require_protection
from flows.console.context import ConsoleContext
from flows.console.pages import integrity, models, overview, record, rejects, runs, search
from flows.service.metrics import metrics_route
from flows.service.observer import Observer
from flows.service.pool import Backend
from storage.data_directory import make_data_directory

API = "/api/v1"
MOST_WAITING = 40
"""Threads for pages that wait for a store; the default, six on two cores, is soon used up by a store that
does not answer.
"""

ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><circle cx='16' cy='16' r='13' fill='none' "
    "stroke='%235b8def' stroke-width='3'/><circle cx='16' cy='16' r='5' fill='%235b8def'/></svg>"
)


def create_app(settings: Settings) -> FastAPI:
    """Return the application; it opens the stores at the first request.

    Call it once in a process.

    Raises:
        NotProtected: it would listen at an address where anyone could use it.
    """
    console = settings.console
    require_protection(console)
    make_data_directory(settings.home)
    backend = Backend(settings)
    observer = Observer(backend)
    sessions = Sessions.of(settings)

    mcp = mcp_app(backend, observer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        get_running_loop().set_default_executor(ThreadPoolExecutor(MOST_WAITING, "page"))
        with closing(backend), observer.running(), queue_worker(backend):
            async with mcp.at_work():
                yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz", include_in_schema=False)
    def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    app.router.routes += [metrics_route(observer), mcp.route]
    app.mount(API, create_api(backend, observer))
    if sessions is not None:
        add_login(app, sessions)

    context = ConsoleContext(backend, observer, protected=sessions is not None)
    for page in (overview, runs, rejects, models, search, integrity, record):
        page.add_page(context)
    ui.run_with(app, title="Sightline", favicon=ICON, dark=None, language="en-US", show_welcome_message=False)
    app.add_middleware(Guard, console=console, sessions=sessions)
    return app
