"""The page that searches: by words, by an image, by both, or by a record; its address says what for."""

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

from flows.console import thumbnails as small_pictures
from flows.console import uploads as handed_in
from flows.console.components.hit_cards import card, example, nothing, summary
from flows.console.components.search_backend import REFUSED, Warming, find, suggestions
from flows.console.components.search_form import Form
from flows.console.components.search_params import MOST, PAGE, Asked, asked_by
from flows.console.context import Desk
from flows.console.layout import PATIENCE_S, frame
from flows.console.thumbnails import Thumbnails
from flows.console.uploads import Uploads
from flows.console.widgets import note, problem, spoken_title
from flows.search.query import Results
from flows.service.pool import AWAY, Backend
from flows.tracking.errors import explain
from storage.qdrant import NoCollection
from storage.records import Item

SCRIPT = (Path(__file__).parent / "search.js").read_text("utf-8")
EMPTY = "Nothing has been ingested yet. Begin with: sightline ingest FOLDER"
HINT = "Type words, or choose, drop or paste a picture; words and a picture are looked for together."


def add_page(desk: Desk) -> None:
    """Add the page at `/search`, and the images that it shows."""
    uploads, thumbnails, warming = Uploads(), Thumbnails(), Warming(desk.backend)
    small_pictures.add_routes(desk.backend, thumbnails)
    handed_in.add_routes(uploads, thumbnails, desk.backend.settings.limits.max_picture_bytes)

    @ui.page("/search", response_timeout=PATIENCE_S)
    def search_page(request: Request) -> None:
        with frame(desk, request, "Search"):
            ui.add_body_html(f"<script>{SCRIPT}</script>")
            spoken_title("Search")
            SearchPage(desk.backend, uploads, warming).open(request.query_params)


class SearchPage:
    """One open page: the form, what it was asked for last, and what was found."""

    def __init__(self, backend: Backend, uploads: Uploads, warming: Warming) -> None:
        self._backend, self._uploads, self._warming = backend, uploads, warming
        self._asked = Asked()
        self._shown: set[UUID] = set()
        self._turn = 0
        """Of the search that was asked for last; an answer to one before it is not shown."""

    def open(self, params: QueryParams) -> None:
        """Show the form and, once the browser is connected, what the address asks for."""
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
        ui.on("sl_picture", self._take_picture)
        ui.on("sl_went", lambda event: self._go(QueryParams(str(event.args).lstrip("?"))))
        ui.timer(0, partial(self._go, params), once=True)
        ui.timer(0, self._suggest, once=True)

    async def _suggest(self) -> None:
        """Offer filters that would leave something."""
        try:
            known = await to_thread(suggestions, self._backend)
        except AWAY:
            return  # the search says so
        self._form.offer(known)

    async def _go(self, params: QueryParams) -> None:
        """Show what an address asks for."""
        try:
            asked = asked_by(params)
        except ValueError as error:
            self._tell(problem, str(error))
            return
        self._form.fill(asked)
        await self._ask(asked, is_new=False)

    async def _rest(self) -> None:
        """Show that nothing is asked for, and have the model ready for when something is."""
        self._turn += 1
        self._forget()
        self._status.text = HINT if self._warming.is_done else f"{HINT} The model is being loaded meanwhile."
        self._waits.set_visibility(not self._warming.is_done)
        try:
            await self._warming()
        except NoCollection:
            self._tell(note, EMPTY)
        except REFUSED as error:
            self._tell(problem, explain(error))
        else:
            if not self._status.is_deleted and not self._asked.is_query:
                self._status.text = HINT
                self._waits.set_visibility(False)

    async def _search(self, **changed: object) -> None:
        """Search for what the form says, and have the address say it."""
        try:
            asked = self._form.read(self._asked)
        except ValueError as error:
            ui.notify(str(error), type="negative")
            self._form.fill(replace(self._asked, text=self._form.words))
            return
        await self._ask(replace(asked, limit=PAGE, **changed))  # type: ignore[arg-type]

    async def _ask(self, asked: Asked, *, is_new: bool = True) -> None:
        """Search; what the address does not say yet, it says from now on."""
        if is_new and asked.address != self._asked.address:
            ui.navigate.history.push(asked.address)
        self._asked = asked
        self._show_examples(None)
        if asked.is_query:
            await self._answer()
        else:
            await self._rest()

    async def _clear(self) -> None:
        """Look for nothing; what narrows a search stays."""
        self._form.words = ""
        await self._search(text="", picture=None, like=None)

    async def _take_picture(self, event: GenericEventArguments) -> None:
        """Search by an image that was handed in, beside the words."""
        told = event.args
        if "problem" in told:
            self._turn += 1
            self._forget()
            self._tell(problem, str(told["problem"]))
        elif "coming" in told:
            self._status.text = f"Sending {told['coming']} …"
        else:
            await self._search(picture=str(told["token"]), like=None)

    async def _more_like(self, id: UUID) -> None:
        self._form.words = ""
        ui.run_javascript('scrollTo(0, 0); document.getElementById("sl-query").focus()')
        await self._search(text="", picture=None, like=id)

    async def _show_more(self) -> None:
        self._asked = replace(self._asked, limit=min(MOST, self._asked.limit + PAGE))
        ui.navigate.history.replace(self._asked.address)
        await self._answer(goes_on=True)

    async def _answer(self, *, goes_on: bool = False) -> None:
        """Show what is found, best first.

        Args:
            goes_on: it is the same search with more hits, which are added to those that are shown.
        """
        self._turn += 1
        turn, asked = self._turn, self._asked
        self._status.text = (
            "Searching …" if self._warming.is_done else "Loading the model: it takes seconds …"
        )
        self._grid.classes(add="sl-waiting")
        self._waits.set_visibility(True)
        try:
            await self._warming()
            answer = await to_thread(find, self._backend, self._uploads, asked)
        except NoCollection:
            if turn == self._turn:
                self._tell(note, EMPTY)
        except REFUSED as error:
            if turn == self._turn:
                self._tell(problem, explain(error))
        else:
            if turn == self._turn and not self._grid.is_deleted:
                self._show(asked, *answer, goes_on=goes_on)

    def _show(self, asked: Asked, results: Results, like: Item | None, *, goes_on: bool) -> None:
        if not goes_on:
            self._forget()
        self._grid.classes(remove="sl-waiting")
        self._waits.set_visibility(False)
        self._status.text = summary(results)
        self._show_examples(like)
        best = results.found[0].hit.score if results.found else 1.0
        with self._grid:
            for one in results.found:
                if one.item.id not in self._shown:
                    similar = replace(asked, text="", picture=None, like=one.item.id, limit=PAGE)
                    card(one, best, similar.address, partial(self._more_like, one.item.id))
        self._shown |= {one.item.id for one in results.found}
        if not results.found:
            self._tell(note, nothing(asked))
        self._more.set_visibility(len(results.found) >= asked.limit and asked.limit < MOST)

    def _show_examples(self, like: Item | None) -> None:
        """Show the image, or the record, that is searched by."""
        asked = self._asked
        self._form.examples.clear()
        with self._form.examples:
            if asked.picture is not None:
                picture = f"/search/pictures/{asked.picture}" if asked.picture in self._uploads else None
                example(picture, "your picture", lambda: self._search(picture=None))
            if asked.like is not None:
                shown = "a record" if like is None else (like.key if like.picture else like.short_text)
                source = f"/thumbnails/{asked.like}" if like is not None and like.picture else None
                example(source, f"like {shown}", lambda: self._search(like=None))

    def _forget(self) -> None:
        """Show no hits and no message."""
        self._waits.set_visibility(False)
        self._grid.clear()
        self._grid.classes(remove="sl-waiting")
        self._messages.clear()
        self._shown = set()
        self._more.set_visibility(False)
        self._status.text = ""

    def _tell(self, part: Callable[[str], None], sentence: str) -> None:
        """Show a message instead of hits."""
        if self._messages.is_deleted:
            return
        self._forget()
        with self._messages:
            part(sentence)
