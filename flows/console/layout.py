"""Lay out pages: header, navigation, theme and keyboard shortcuts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from nicegui import ui
from nicegui.events import KeyEventArguments
from sqlalchemy.engine import make_url
from starlette.requests import Request

from flows.config.settings import Settings
from flows.console.context import ConsoleContext
from storage.redaction import redacted

PAGES = (
    ("Overview", "/", "o"),
    ("Runs", "/runs", "r"),
    ("Rejects", "/rejects", "j"),
    ("Models", "/models", "m"),
    ("Search", "/search", "s"),
    ("Integrity", "/integrity", "i"),
)
"""Title, path, and the key that opens it after `g`."""

PATIENCE_S = 90.0
"""Response timeout of a page, longer than the time limits of the stores, so that it can report them."""

THEMES: dict[str, bool | None] = {"dark": True, "light": False}
STYLE = (Path(__file__).parent / "style.css").read_text("utf-8")
KEEP_THEME = "document.cookie = 'theme={}; path=/; max-age=31536000; samesite=strict'"


@contextmanager
def frame(context: ConsoleContext, request: Request, title: str) -> Iterator[ui.element]:
    """Show a page with its header; the body becomes its content."""
    ui.add_css(STYLE)
    ui.colors(primary="#2457c5", positive="#1b7f4b", warning="#9a6200", negative="#b3261e")
    ui.page_title(f"{title} · Sightline")
    theme = ui.dark_mode(THEMES.get(request.cookies.get("theme", "")))
    with ui.header(elevated=False).classes("sl-header items-center"):
        with ui.element("nav").classes("sl-nav").props('aria-label="Pages"'):
            for name, path, _ in PAGES:
                link = ui.link(name, path)
                if name == title:
                    link.props('aria-current="page"')
        with ui.element("div").classes("sl-end"):
            place = stores_of(context.backend.settings)
            ui.label(place).classes("sl-home sl-faint").props["title"] = place
            ui.button(icon="contrast", on_click=lambda: _next_theme(theme)).props(
                'flat round dense color=grey aria-label="Dark or light"'
            )
            if context.protected:
                ui.button(icon="logout", on_click=lambda: ui.navigate.to("/logout")).props(
                    'flat round dense color=grey aria-label="Sign out"'
                )
    with ui.element("main").classes("sl-page") as main:
        yield main
    ui.skip_link(target=main)
    _listen_to_keys(title)


def with_query(path: str, params: Mapping[str, object]) -> str:
    """Return the URL of `path` with these parameters; None is omitted.

    >>> with_query("/runs", {"source": "a&b", "flow": None}), with_query("/runs", {})
    ('/runs?source=a%26b', '/runs')
    """
    query = urlencode({name: value for name, value in params.items() if value is not None})
    return f"{path}?{query}" if query else path


def stores_of(settings: Settings) -> str:
    """Return the data directory of a console, and its servers."""
    servers = []
    if settings.database_url is not None:
        url = make_url(settings.database_url.get_secret_value())
        servers.append(f"Postgres {url.host or ''}/{url.database or ''}")
    if settings.qdrant.url is not None:
        servers.append(f"Qdrant {redacted(settings.qdrant.url)}")
    return " · ".join([str(settings.home.resolve()), *servers])


def _next_theme(theme: ui.dark_mode) -> None:
    theme.value = not theme.value
    ui.run_javascript(KEEP_THEME.format("dark" if theme.value else "light"))


def _listen_to_keys(title: str) -> None:
    """Open a page by `g` and its letter, and the search by `/`.

    The search page handles `/` itself.
    """
    keys = {key: path for _, path, key in PAGES}
    after_g = False

    def pressed(event: KeyEventArguments) -> None:
        nonlocal after_g
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.meta or event.modifiers.alt:
            return
        key = str(event.key)
        if after_g and key in keys:
            ui.navigate.to(keys[key])
        elif key == "/" and title != "Search":
            ui.navigate.to("/search")
        after_g = key == "g"

    ui.keyboard(pressed)
