"""List open rejects by reason and source, with causes, remedies and retries."""

from asyncio import to_thread
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from nicegui import ui
from starlette.requests import Request

from flows.console.components.filter_chips import Chips
from flows.console.components.reject_entry import STILL_REJECTED, RejectEntry
from flows.console.context import ConsoleContext
from flows.console.layout import PATIENCE_S, frame, with_query
from flows.console.widgets import confirm, hidden_title, problem, start_flow
from flows.ingestion.reject_reasons import REASONS
from flows.tracking.text import count_of
from storage.errors import StoreUnavailable
from storage.postgres import statistics
from storage.postgres.rejects import Reject, open_rejects
from storage.postgres.statistics import RejectCount

REFRESH_S = 3.0
PAGE = 20


@dataclass(frozen=True, slots=True)
class RejectFilter:
    """Represent the filter of rejects, as in the URL."""

    reason: str | None = None
    source: str | None = None
    after: tuple[str, str] | None = None
    """Only rejects after this source and place."""

    @property
    def address(self) -> str:
        after_source, after_place = self.after or (None, None)
        params = {
            "reason": self.reason,
            "source": self.source,
            "after_source": after_source,
            "after_place": after_place,
        }
        return with_query("/rejects", params)

    def has(self, one: RejectCount) -> bool:
        return self.reason in (None, one.reason) and self.source in (None, one.source)


@dataclass(frozen=True, slots=True)
class RejectPage:
    """Hold a page of rejects, plus one if there are more."""

    counts: tuple[RejectCount, ...]
    rejects: Sequence[Reject]


def add_page(context: ConsoleContext) -> None:
    """Add the page at `/rejects`."""

    @ui.page("/rejects", response_timeout=PATIENCE_S)
    async def rejects(
        request: Request,
        reason: str | None = None,
        source: str | None = None,
        after_source: str | None = None,
        after_place: str | None = None,
    ) -> None:
        after = None if after_source is None or after_place is None else (after_source, after_place)
        with frame(context, request, "Rejects"):
            hidden_title("Rejects")
            listing = Listing(context, RejectFilter(reason or None, source or None, after))
            await listing.refresh()
            ui.timer(REFRESH_S, listing.refresh, immediate=False)


def read_rejects(context: ConsoleContext, wanted: RejectFilter) -> RejectPage | str:
    """Read a page of open rejects, or why it cannot be read."""
    seen = context.observer.latest
    if seen.catalog is None:
        return seen.postgres_problem or ""
    try:
        with context.backend.sessions() as sessions, sessions() as session:
            found = open_rejects(
                session, reason=wanted.reason, source=wanted.source, after=wanted.after, limit=PAGE + 1
            )
    except StoreUnavailable as error:
        return str(error)
    return RejectPage(seen.catalog.rejects, found)


def count_open(context: ConsoleContext, wanted: RejectFilter) -> int:
    """Count the open rejects on all pages."""
    with context.backend.sessions() as sessions, sessions() as session:
        return sum(one.many for one in statistics.count_rejects(session) if wanted.has(one))


class Listing:
    """Show the list, updated in place."""

    def __init__(self, context: ConsoleContext, wanted: RejectFilter) -> None:
        self._context, self._wanted = context, wanted
        self._entries: dict[UUID, RejectEntry] = {}
        self._away = ui.element("div").classes("contents")
        with ui.element("div").classes("contents") as self._content:
            with ui.element("section").classes("sl-sheet"):
                self._reasons = Chips("Reasons", wanted.reason, lambda name: self._narrowed(reason=name))
                self._sources = Chips("Sources", wanted.source, lambda name: self._narrowed(source=name))
                self._explain()
            with ui.element("div").classes("sl-row"):
                self._total = ui.label().classes("sl-strong").props('role="status"')
                ui.space()
                self._every = ui.checkbox("All on this page", on_change=self._choose_every).props("dense")
                self._some = ui.button(on_click=self._retry_chosen).props("outline")
                self._all = ui.button("Retry all…", on_click=self._retry_all).props("unelevated")
            self._list = ui.element("ul").classes("sl-list")
            with ui.element("nav").classes("sl-row").props('aria-label="Pages of rejects"'):
                if wanted.after is not None:
                    ui.link("First page", replace(wanted, after=None).address)
                self._next = ui.link("Next page", "")
        self._count_chosen()

    async def refresh(self) -> None:
        """Read again, and show changes."""
        found = await to_thread(read_rejects, self._context, self._wanted)
        if self._content.is_deleted:
            return
        self._away.clear()
        self._content.set_visibility(not isinstance(found, str))
        if isinstance(found, str):
            with self._away:
                problem(found)
            return
        self._show_counts(found.counts)
        self._show_entries(found.rejects[:PAGE])
        last = found.rejects[PAGE - 1] if len(found.rejects) > PAGE else None
        self._next.set_visibility(last is not None)
        if last is not None:
            self._next.props["href"] = replace(self._wanted, after=(last.source, last.place)).address

    def _narrowed(self, **chosen: str | None) -> str:
        return replace(self._wanted, after=None, **chosen).address

    def _explain(self) -> None:
        reason = REASONS.get(self._wanted.reason or "")
        if reason is not None:
            ui.label(f"{reason.meaning} {reason.remedy}").classes("sl-message")

    def _show_counts(self, counts: Sequence[RejectCount]) -> None:
        by_reason, by_source = Counter[str](), Counter[str]()
        for one in counts:
            if self._wanted.source in (None, one.source):
                by_reason[one.reason] += one.many
            if self._wanted.reason in (None, one.reason):
                by_source[one.source] += one.many
        self._reasons.show(by_reason)
        self._sources.show(by_source)
        total = sum(one.many for one in counts if self._wanted.has(one))
        self._total.set_text(f"{count_of(total, 'reject')} open" if total else "No open rejects.")
        for element in (self._every, self._some, self._all):
            element.set_visibility(total > 0)

    def _show_entries(self, rejects: Sequence[Reject]) -> None:
        now = datetime.now(UTC)
        wanted = {reject.id: reject for reject in rejects}
        again: dict[UUID, RejectEntry] = {}
        for id, entry in list(self._entries.items()):
            if wanted.get(id) != entry.reject:
                again[id] = self._entries.pop(id)
                entry.root.delete()
        with self._list:
            for place, reject in enumerate(rejects):
                if reject.id in self._entries:
                    self._entries[reject.id].update_age(now)
                    continue
                was = again.get(reject.id)
                note = STILL_REJECTED if was is not None and was.is_retried else ""
                made = RejectEntry(self._context, reject, now, self._count_chosen, note)
                made.box.value = was is not None and was.box.value
                if place < len(self._entries):
                    made.root.move(self._list, place)
                self._entries[reject.id] = made
        self._count_chosen()

    def _chosen(self) -> list[RejectEntry]:
        return [entry for entry in self._entries.values() if entry.box.value]

    def _count_chosen(self) -> None:
        chosen = len(self._chosen())
        self._some.set_text(f"Retry chosen ({chosen})")
        self._some.set_enabled(chosen > 0)

    def _choose_every(self) -> None:
        for entry in self._entries.values():
            entry.box.value = self._every.value

    async def _retry_chosen(self) -> None:
        chosen = self._chosen()
        if await start_flow(self._context, "retry", rejects=[str(entry.reject.id) for entry in chosen]):
            for entry in chosen:
                entry.show_retried()
                entry.box.value = False

    async def _retry_all(self) -> None:
        reason, source = self._wanted.reason, self._wanted.source
        try:
            total = await to_thread(count_open, self._context, self._wanted)
        except StoreUnavailable as error:
            ui.notify(str(error), type="negative")
            return
        which = (f" rejected as {reason}" if reason else "") + (f" from {source}" if source else "")
        consequences = (
            f"{count_of(total, 'row')}{which} will be read from the source and retried. Rows that pass are "
            "searchable at once and leave this list; the others stay, with their current errors."
        )
        if await confirm("Retry all?", consequences, f"Retry {total:,}") and await start_flow(
            self._context, "retry", reason=reason, source=source
        ):
            for entry in self._entries.values():
                entry.show_retried()
