"""Serve the API documentation page: Swagger UI, bundled to work offline."""

from pathlib import Path

import swagger_ui
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

FILES = Path(swagger_ui.__path__[0]) / "static"


def add_page(app: FastAPI) -> None:
    """Add the documentation page at `/docs` below the API."""
    app.mount("/docs/files", StaticFiles(directory=FILES))

    def page(request: Request) -> HTMLResponse:
        """Return the page; its scripts and styles are served locally."""
        root = str(request.scope.get("root_path", ""))
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title="Sightline API",
            swagger_js_url=f"{root}/docs/files/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/files/swagger-ui.css",
            swagger_favicon_url="/favicon.ico",
        )

    app.add_route("/docs", page, include_in_schema=False)
