"""Show the search form: query, target, and filters."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from nicegui import ui

from embedding.images.decode import MEDIA_TYPES
from flows.console.components.search_params import LONGEST_TEXT, SearchParams, parse_filters

IMAGE_TYPES = ",".join((*MEDIA_TYPES.values(), ".heic", ".heif"))  # systems differ in the type of these
OPEN_CHOOSER = '() => document.getElementById("sl-chooser").click()'


class Form:
    """Show the search form.

    It searches when it is submitted, or when a filter changes.
    """

    def __init__(
        self, search: Callable[[], Awaitable[None]], clear: Callable[[], Awaitable[None]], max_bytes: int
    ) -> None:
        self._search = search
        self._is_filling = False
        form = ui.element("form").classes("sl-sheet").props("role=search")
        with form.on("submit.prevent", lambda: search()):
            with ui.element("div").classes("sl-form"):
                self._box = ui.input(placeholder="What are you looking for?").classes("grow")
                self._box.props(f"for=sl-query outlined dense autofocus maxlength={LONGEST_TEXT}")
                self._box.props('type=search enterkeyhint=search aria-label="Words to search for"')
                # a browser also clears such a box, and NiceGUI then restores its old value
                self._box.on("keydown.escape.prevent", lambda: clear())
                choose = ui.button(icon="add_photo_alternate").props("type=button flat dense")
                choose.props('aria-label="Choose an image"').on("click", js_handler=OPEN_CHOOSER)
                choose.tooltip("Choose an image; you can drop or paste one as well")
                ui.button("Search").props("type=submit unelevated")
            chooser = ui.element("input").props("id=sl-chooser type=file hidden aria-hidden=true tabindex=-1")
            chooser.props(f"accept={IMAGE_TYPES} data-most={max_bytes}")
            self.examples = ui.element("div").classes("sl-row")
            with ui.element("div").classes("sl-row"):
                self._narrowing()

    @property
    def words(self) -> str:
        """Return the query text."""
        return (self._box.value or "").strip()

    @words.setter
    def words(self, words: str) -> None:
        self._box.value = words

    def fill(self, params: SearchParams) -> None:
        """Fill the form without starting a search."""
        self._is_filling = True
        self._box.value, self._find.value, self._least.value = params.text, params.find, params.min_score
        filters = [f"{field}={value}" for field, value in params.where]
        known = [one for one in self._filters.options if "=" in one]  # without rejected input
        self._filters.set_options([*dict.fromkeys([*filters, *known])], value=filters)
        self._is_filling = False

    def read(self, before: SearchParams) -> SearchParams:
        """Return `before` with the current values of the form.

        Raises:
            ValueError: a filter is malformed; the message is for the user.
        """
        return replace(
            before,
            text=self.words[:LONGEST_TEXT],  # browsers enforce that, other clients need not
            find=self._find.value,
            where=parse_filters(self._filters.value),
            min_score=self._least.value,
        )

    def offer(self, filters: Sequence[str]) -> None:
        """Suggest filters."""
        if not self._filters.is_deleted:
            self._filters.set_options([*dict.fromkeys([*self._filters.value, *filters])])

    def _narrowing(self) -> None:
        finds = {"images": "Images", "texts": "Texts"}
        self._find = ui.toggle(finds, value="images", on_change=self._changed)
        self._find.props('unelevated dense padding="4px 12px" aria-label="What to find"')
        label = "Filters, such as source=shop"
        self._filters = ui.select(
            [], label=label, multiple=True, new_value_mode="add-unique", on_change=self._changed
        )
        self._filters.classes("grow").props("use-chips outlined dense").style("min-width: min(100%, 16rem)")
        self._least = ui.number(label="Minimum score", min=-1, max=1, step=0.05, on_change=self._changed)
        self._least.props("outlined dense clearable debounce=400").style("width: 8.5rem")

    def _changed(self) -> Awaitable[None] | None:
        return None if self._is_filling else self._search()
