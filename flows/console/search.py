"""The page that searches: by words, by a picture, by both, or by a record; its address says what for."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

from nicegui import run, ui
from nicegui.events import GenericEventArguments
from starlette.datastructures import QueryParams
from starlette.requests import Request

from flows.backend import AWAY, Backend
from flows.console import thumbnails as small_pictures
from flows.console import uploads as handed_in
from flows.console.address import LONGEST_TEXT, MOST, PAGE, Asked, asked_by, pairs
from flows.console.cards import card, example, nothing, summary
from flows.console.desk import Desk
from flows.console.frame import frame
from flows.console.parts import note, problem
from flows.console.searching import REFUSED, Warming, find, suggestions
from flows.console.thumbnails import Thumbnails
from flows.console.uploads import Uploads
from flows.errors import explain
from flows.search import Results
from storage.index import NoCollection
from storage.records import Item

SCRIPT = (Path(__file__).parent / "search.js").read_text("utf-8")
PICTURES = ",".join(f"image/{kind}" for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"))
HINT = "Type words, or choose, drop or paste a picture; words and a picture are looked for together."


def add_page(desk: Desk) -> None:
    """Add the page at `/search`, and the pictures that it shows."""
    uploads, thumbnails, warming = Uploads(), Thumbnails(), Warming(desk.backend)
    small_pictures.add_routes(desk.backend, thumbnails)
    handed_in.add_routes(uploads, thumbnails, desk.backend.settings.limits.max_picture_bytes)

    @ui.page("/search")
    def search_page(request: Request) -> None:
        with frame(desk, request, "Search"):
            ui.add_body_html(f"<script>{SCRIPT}</script>")
            ui.label("Search").props("role=heading aria-level=1").classes("sr-only")
            SearchPage(desk.backend, uploads, warming).open(request.query_params)


class SearchPage:
    """One open page: the form, what it was asked for last, and what was found."""

    def __init__(self, backend: Backend, uploads: Uploads, warming: Warming) -> None:
        self._backend, self._uploads, self._warming = backend, uploads, warming
        self._asked = Asked()
        self._shown: set[UUID] = set()
        self._turn = 0
        """Of the search that was asked for last; an answer to one before it is not shown."""

        self._is_filling = False

    def open(self, params: QueryParams) -> None:
        """Show the form and, once the browser is connected, what the address asks for."""
        self._form()
        self._status = ui.label(HINT).classes("sl-faint").props("role=status")
        self._messages = ui.element("div").classes("sl-messages")
        self._grid = ui.element("div").classes("sl-cards").props('role=list aria-label="Hits"')
        self._more = ui.button("Show more", on_click=self._show_more).props("outline").classes("self-center")
        self._more.set_visibility(False)
        ui.on("sl_picture", self._take_picture)
        ui.on("sl_went", lambda event: self._go(QueryParams(str(event.args).lstrip("?"))))
        ui.timer(0, partial(self._go, params), once=True)
        ui.timer(0, self._suggest, once=True)

    def _form(self) -> None:
        with (
            ui.element("form")
            .classes("sl-sheet")
            .props("role=search")
            .on("submit.prevent", lambda: self._search())
        ):
            with ui.element("div").classes("sl-form"):
                self._box = ui.input(placeholder="What are you looking for?").classes("grow")
                self._box.props(f"for=sl-query outlined dense autofocus maxlength={LONGEST_TEXT}")
                self._box.props('type=search enterkeyhint=search aria-label="Words to search for"')
                self._box.on("keydown.escape", self._clear)
                choose = ui.button(icon="add_photo_alternate").props(
                    'type=button flat dense aria-label="Choose a picture"'
                )
                choose.on("click", js_handler='() => document.getElementById("sl-chooser").click()')
                choose.tooltip("Choose a picture; you can drop or paste one as well")
                ui.button("Search").props("type=submit unelevated")
            chooser = ui.element("input").props("id=sl-chooser type=file hidden aria-hidden=true tabindex=-1")
            chooser.props(f"accept={PICTURES} data-most={self._backend.settings.limits.max_picture_bytes}")
            self._examples = ui.element("div").classes("sl-row")
            with ui.element("div").classes("sl-row"):
                self._find = ui.toggle(
                    {"images": "Pictures", "texts": "Texts"}, value="images", on_change=self._changed
                )
                self._find.props('unelevated dense padding="4px 12px" aria-label="What to find"')
                self._filters = ui.select(
                    [],
                    label="Only where, such as source=shop",
                    multiple=True,
                    new_value_mode="add-unique",
                    on_change=self._changed,
                )
                self._filters.classes("grow").props("use-chips outlined dense").style(
                    "min-width: min(100%, 16rem)"
                )
                self._least = ui.number(
                    label="Least score", min=-1, max=1, step=0.05, on_change=self._changed
                )
                self._least.props("outlined dense clearable debounce=400").style("width: 8.5rem")

    async def _suggest(self) -> None:
        """Offer filters that would leave something."""
        try:
            known = await run.io_bound(suggestions, self._backend)
        except AWAY:
            return  # the search says so
        if known is not None and not self._filters.is_deleted:
            self._filters.set_options([*dict.fromkeys([*(self._filters.value or ()), *known])])

    async def _go(self, params: QueryParams) -> None:
        """Show what an address asks for."""
        try:
            asked = asked_by(params)
        except ValueError as error:
            self._tell(problem, str(error))
            return
        self._fill(asked)
        if asked.is_query:
            await self._answer()
        else:
            await self._rest()

    def _fill(self, asked: Asked) -> None:
        """Have the form say what is asked for."""
        self._asked = asked
        self._is_filling = True
        self._box.value, self._find.value, self._least.value = asked.text, asked.find, asked.min_score
        filters = [f"{field}={value}" for field, value in asked.where]
        self._filters.set_options([*dict.fromkeys([*filters, *self._filters.options])], value=filters)
        self._is_filling = False
        self._show_examples(None)

    async def _rest(self) -> None:
        """Show that nothing is asked for, and have the model ready for when something is."""
        self._turn += 1
        self._forget()
        self._status.text = HINT if self._warming.is_done else f"{HINT} The model is being loaded meanwhile."
        try:
            await self._warming()
        except NoCollection as error:
            self._tell(note, str(error))
        except REFUSED as error:
            self._tell(problem, explain(error))
        else:
            if not self._status.is_deleted and not self._asked.is_query:
                self._status.text = HINT

    def _changed(self) -> object:
        """Search again when a person has changed what narrows the search."""
        return None if self._is_filling else self._search()

    async def _search(self, **changed: object) -> None:
        """Search for what the form says, and have the address say it."""
        try:
            asked = replace(
                self._asked,
                text=(self._box.value or "").strip(),
                find=self._find.value,
                where=pairs(self._filters.value),
                min_score=self._least.value,
                limit=PAGE,
            )
        except ValueError as error:
            ui.notify(str(error), type="negative")
            self._filters.value = [f"{field}={value}" for field, value in self._asked.where]
            return
        await self._ask(replace(asked, **changed))  # type: ignore[arg-type]

    async def _ask(self, asked: Asked) -> None:
        if asked.address != self._asked.address:
            ui.navigate.history.push(asked.address)
        self._asked = asked
        self._show_examples(None)
        if asked.is_query:
            await self._answer()
        else:
            await self._rest()

    async def _clear(self) -> None:
        """Look for nothing; what narrows a search stays."""
        self._box.value = ""
        await self._search(text="", picture=None, like=None)

    async def _take_picture(self, event: GenericEventArguments) -> None:
        """Search by a picture that was handed in, beside the words."""
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
        self._box.value = ""
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
        try:
            await self._warming()
            answer = await run.io_bound(find, self._backend, self._uploads, asked)
        except NoCollection as error:
            if turn == self._turn:
                self._tell(note, str(error))
        except REFUSED as error:
            if turn == self._turn:
                self._tell(problem, explain(error))
        else:
            if answer is not None and turn == self._turn and not self._grid.is_deleted:
                self._show(asked, *answer, goes_on=goes_on)

    def _show(self, asked: Asked, results: Results, like: Item | None, *, goes_on: bool) -> None:
        if not goes_on:
            self._forget()
        self._grid.classes(remove="sl-waiting")
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
        """Show the picture, or the record, that is searched by."""
        asked = self._asked
        self._examples.clear()
        with self._examples:
            if asked.picture is not None:
                picture = f"/search/pictures/{asked.picture}" if asked.picture in self._uploads else None
                example(picture, "your picture", lambda: self._search(picture=None))
            if asked.like is not None:
                shown = "a record" if like is None else (like.key if like.picture else like.short_text)
                source = f"/thumbnails/{asked.like}" if like is not None and like.picture else None
                example(source, f"like {shown}", lambda: self._search(like=None))

    def _forget(self) -> None:
        """Show no hits and no message."""
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
