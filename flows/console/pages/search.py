"""Search by text, image, or record; the URL holds the search."""

from asyncio import to_thread
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

from nicegui import ui
from nicegui.events import GenericEventArguments
from starlette.datastructures import QueryParams
from starlette.requests import Request

from flows.console import thumbnails as thumbnail_routes
from flows.console import uploads as upload_routes
from flows.console.components.hit_cards import card, no_hits_text, query_example, summary
from flows.console.components.search_backend import SEARCH_ERRORS, ModelWarmup, run_search, suggestions
from flows.console.components.search_form import Form
from flows.console.components.search_params import MOST, PAGE, SearchParams, parse_params
from flows.console.context import ConsoleContext
from flows.console.layout import PATIENCE_S, frame
from flows.console.thumbnails import Thumbnails
from flows.console.uploads import Uploads
from flows.console.widgets import hidden_title, note, problem
from flows.search.query import Results
from flows.service.pool import Backend
from flows.tracking.errors import explain
from storage.errors import StoreUnavailable
from storage.qdrant import NoCollection
from storage.records import Item

SCRIPT = (Path(__file__).parent / "search.js").read_text("utf-8")
EMPTY = "Nothing has been ingested yet. Begin with: sightline ingest FOLDER"
HINT = "Type words, or choose, drop or paste an image; words and an image are combined into one query."


def add_page(context: ConsoleContext) -> None:
    """Add the page at `/search`, and the image routes of its results."""
    uploads, thumbnails, warmup = Uploads(), Thumbnails(), ModelWarmup(context.backend)
    thumbnail_routes.add_routes(context.backend, thumbnails)
    upload_routes.add_routes(uploads, thumbnails, context.backend.settings.limits.max_picture_bytes)

    @ui.page("/search", response_timeout=PATIENCE_S)
    def search_page(request: Request) -> None:
        with frame(context, request, "Search"):
            ui.add_body_html(f"<script>{SCRIPT}</script>")
            hidden_title("Search")
            SearchPage(context.backend, uploads, warmup).open(request.query_params)


class SearchPage:
    """Show one open search page: form, query, and hits."""

    def __init__(self, backend: Backend, uploads: Uploads, warmup: ModelWarmup) -> None:
        self._backend, self._uploads, self._warmup = backend, uploads, warmup
        self._params = SearchParams()
        self._shown: set[UUID] = set()
        self._turn = 0
        """Number of the last search; results of an earlier one are dropped."""

    def open(self, url_params: QueryParams) -> None:
        """Show the form and, once the browser is connected, the URL's search."""
        max_bytes = self._backend.settings.limits.max_picture_bytes
        self._form = Form(self._search, self._clear, max_bytes)
        with ui.element("div").classes("sl-form"):
            self._waits = ui.spinner(size="1.2em")
            self._waits.set_visibility(False)
            self._status = ui.label(HINT).classes("sl-faint").props("role=status")
        self._messages = ui.element("div").classes("sl-messages")
        self._grid = ui.element("div").classes("sl-cards").props('role=list aria-label="Hits"')
        self._more = ui.button("Show more", on_click=self._show_more).props("outline").classes("self-center")
        self._more.set_visibility(False)
        ui.on("sl_image", self._take_image)
        ui.on("sl_went", lambda event: self._go(QueryParams(str(event.args).lstrip("?"))))
        ui.timer(0, partial(self._go, url_params), once=True)
        ui.timer(0, self._suggest, once=True)

    async def _suggest(self) -> None:
        """Suggest filters that match some records."""
        try:
            known = await to_thread(suggestions, self._backend)
        except StoreUnavailable:
            return  # the search reports it
        self._form.offer(known)

    async def _go(self, url_params: QueryParams) -> None:
        """Show the search of a URL."""
        try:
            params = parse_params(url_params)
        except ValueError as error:
            self._show_message(problem, str(error))
            return
        self._form.fill(params)
        await self._submit(params, is_new=False)

    async def _show_idle(self) -> None:
        """Show the empty page, and load the model for the first search."""
        self._turn += 1
        self._reset()
        self._status.text = HINT if self._warmup.is_done else f"{HINT} The model is loading."
        self._waits.set_visibility(not self._warmup.is_done)
        try:
            await self._warmup()
        except NoCollection:
            self._show_message(note, EMPTY)
        except SEARCH_ERRORS as error:
            self._show_message(problem, explain(error))
        else:
            if not self._status.is_deleted and not self._params.is_query:
                self._status.text = HINT
                self._waits.set_visibility(False)

    async def _search(self, **changed: object) -> None:
        """Search with the values of the form, and update the URL."""
        try:
            params = self._form.read(self._params)
        except ValueError as error:
            ui.notify(str(error), type="negative")
            self._form.fill(replace(self._params, text=self._form.words))
            return
        await self._submit(replace(params, limit=PAGE, **changed))  # type: ignore[arg-type]

    async def _submit(self, params: SearchParams, *, is_new: bool = True) -> None:
        """Search, and push a new URL to the browser history."""
        if is_new and params.address != self._params.address:
            ui.navigate.history.push(params.address)
        self._params = params
        self._show_examples(None)
        if params.is_query:
            await self._answer()
        else:
            await self._show_idle()

    async def _clear(self) -> None:
        """Clear the query; filters stay."""
        self._form.words = ""
        await self._search(text="", image=None, like=None)

    async def _take_image(self, event: GenericEventArguments) -> None:
        """Search by an uploaded image, besides the text."""
        event_data = event.args
        if "problem" in event_data:
            self._turn += 1
            self._reset()
            self._show_message(problem, str(event_data["problem"]))
        elif "coming" in event_data:
            self._status.text = f"Sending {event_data['coming']} …"
        else:
            await self._search(image=str(event_data["token"]), like=None)

    async def _more_like(self, id: UUID) -> None:
        self._form.words = ""
        ui.run_javascript('scrollTo(0, 0); document.getElementById("sl-query").focus()')
        await self._search(text="", image=None, like=id)

    async def _show_more(self) -> None:
        self._params = replace(self._params, limit=min(MOST, self._params.limit + PAGE))
        ui.navigate.history.replace(self._params.address)
        await self._answer(goes_on=True)

    async def _answer(self, *, goes_on: bool = False) -> None:
        """Show the hits, best first.

        Args:
            goes_on: the same search with a higher limit: further hits are appended.
        """
        self._turn += 1
        turn, params = self._turn, self._params
        self._status.text = "Searching …" if self._warmup.is_done else "Loading the model …"
        self._grid.classes(add="sl-waiting")
        self._waits.set_visibility(True)
        try:
            await self._warmup()
            answer = await to_thread(run_search, self._backend, self._uploads, params)
        except NoCollection:
            if turn == self._turn:
                self._show_message(note, EMPTY)
        except SEARCH_ERRORS as error:
            if turn == self._turn:
                self._show_message(problem, explain(error))
        else:
            if turn == self._turn and not self._grid.is_deleted:
                self._show(params, *answer, goes_on=goes_on)

    def _show(self, params: SearchParams, results: Results, like: Item | None, *, goes_on: bool) -> None:
        if not goes_on:
            self._reset()
        self._grid.classes(remove="sl-waiting")
        self._waits.set_visibility(False)
        self._status.text = summary(results)
        self._show_examples(like)
        best = results.found[0].hit.score if results.found else 1.0
        with self._grid:
            for one in results.found:
                if one.item.id not in self._shown:
                    similar = replace(params, text="", image=None, like=one.item.id, limit=PAGE)
                    card(one, best, similar.address, partial(self._more_like, one.item.id))
        self._shown |= {one.item.id for one in results.found}
        if not results.found:
            self._show_message(note, no_hits_text(params))
        self._more.set_visibility(len(results.found) >= params.limit and params.limit < MOST)

    def _show_examples(self, like: Item | None) -> None:
        """Show the query image or the query record."""
        params = self._params
        self._form.examples.clear()
        with self._form.examples:
            if params.image is not None:
                image = f"/search/pictures/{params.image}" if params.image in self._uploads else None
                query_example(image, "your image", lambda: self._search(image=None))
            if params.like is not None:
                shown = "a record" if like is None else (like.key if like.image else like.short_text)
                source = f"/thumbnails/{params.like}" if like is not None and like.image else None
                query_example(source, f"like {shown}", lambda: self._search(like=None))

    def _reset(self) -> None:
        """Remove all hits and messages."""
        self._waits.set_visibility(False)
        self._grid.clear()
        self._grid.classes(remove="sl-waiting")
        self._messages.clear()
        self._shown = set()
        self._more.set_visibility(False)
        self._status.text = ""

    def _show_message(self, part: Callable[[str], None], sentence: str) -> None:
        """Show a message instead of hits."""
        if self._messages.is_deleted:
            return
        self._reset()
        with self._messages:
            part(sentence)
