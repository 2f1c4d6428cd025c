"""Show one reject: cause, remedy, row, image, and a retry button."""

from asyncio import to_thread
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime

from nicegui import ui

from flows.console.context import ConsoleContext
from flows.console.format import ago, moment
from flows.console.widgets import start_flow
from flows.ingestion.reject_preview import NoPreview, preview_reject
from flows.ingestion.reject_reasons import REASONS
from storage.errors import StoreUnavailable
from storage.postgres.rejects import Reject

SHORT_CHARS = 120
RETRY_STARTED = "It is retried within seconds."
STILL_REJECTED = "It was retried, and is still rejected."


class RejectEntry:
    """Show one reject, updated in place."""

    def __init__(
        self,
        context: ConsoleContext,
        reject: Reject,
        now: datetime,
        chosen: Callable[[], None],
        note: str = "",
    ) -> None:
        """Build the elements at the current place.

        Args:
            chosen: called when the box is ticked or cleared.
        """
        self.reject, self._context = reject, context
        self.is_retried = False
        """Whether it was just retried on this page."""

        self._image: ui.element | None = None
        self._is_busy = False
        with ui.element("li").classes("sl-sheet sl-reject") as self.root:
            with ui.element("div").classes("sl-row"):
                self.box = ui.checkbox(on_change=chosen).props("dense")
                self.box.props["aria-label"] = f"Choose {reject.place}"
                ui.label(reject.place).classes("sl-strong")
                ui.label(_what(reject)).classes("sl-faint")
                again = ui.button("Retry", on_click=self._retry).props('outline padding="2px 12px"')
                again.props["aria-label"] = f"Retry {reject.place}"
            ui.label(reject.message.removeprefix(f"{reject.place}: ")).classes("sl-message")
            self._note = ui.label(note).classes("sl-warn").props('role="status"')
            self._seen = ui.label(_seen(reject, now)).classes("sl-faint")
            self._seen.props["title"] = f"first {moment(reject.first_seen)}"
            _row_as_text(reject)
            reason = REASONS.get(reject.reason)
            if reason is not None and reason.of_image:
                self._image_button()

    def update_age(self, now: datetime) -> None:
        """Show the current age."""
        self._seen.set_text(_seen(self.reject, now))

    def show_retried(self) -> None:
        """Show that it is being retried."""
        self.is_retried = True
        self._note.set_text(RETRY_STARTED)

    async def _retry(self) -> None:
        if await start_flow(self._context, "retry", rejects=[str(self.reject.id)]):
            self.show_retried()

    def _image_button(self) -> None:
        self._button = ui.button("Show image", on_click=self._show_or_hide)
        self._button.props('flat padding="0 8px"').classes("self-start")
        self._button.props["aria-label"] = f"Show image of {self.reject.place}"
        self._shown = ui.element("div").props('aria-live="polite"')

    async def _show_or_hide(self) -> None:
        if self._is_busy:
            return
        if self._image is not None:
            self._image = None
            self._shown.clear()
            self._button.set_text("Show image")
            return
        self._is_busy = True
        self._button.set_text("Loading…")
        found = await to_thread(read_image, self._context, self.reject)
        self._is_busy = False
        if self._shown.is_deleted:
            return
        self._button.set_text("Hide image")
        image, problem = found
        with self._shown:
            if image is None:
                self._image = ui.label(problem).classes("sl-bad")
                return
            self._image = ui.element("img").classes("sl-picture")
            self._image.props["src"] = f"data:image/jpeg;base64,{b64encode(image).decode('ascii')}"
            self._image.props["alt"] = f"The image of {self.reject.place}"


def read_image(context: ConsoleContext, reject: Reject) -> tuple[bytes | None, str]:
    """Return the image of a reject, or why it cannot be shown."""
    try:
        with context.backend.sessions() as sessions:
            return preview_reject(sessions, context.backend.settings.limits, reject.id), ""
    except (NoPreview, StoreUnavailable) as error:
        return None, str(error).removeprefix(f"{reject.place}: ")


def _row_as_text(reject: Reject) -> None:
    if not reject.raw:
        return
    one_line = " ".join(reject.raw.split())
    with ui.element("details").classes("sl-raw"):
        with ui.element("summary"):
            ui.label(one_line[:SHORT_CHARS] + ("…" if len(one_line) > SHORT_CHARS else ""))
        ui.label(reject.raw).classes("sl-code")


def _what(reject: Reject) -> str:
    key = "" if reject.key in (None, reject.place) else f"key {reject.key}, "
    return f"{key}{reject.reason}, from {reject.source}"


def _seen(reject: Reject, now: datetime) -> str:
    first, last = ago(reject.first_seen, now), ago(reject.last_seen, now)
    return f"seen {first}" if first == last else f"first seen {first}, last {last}"
