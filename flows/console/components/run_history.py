"""Show the run history: filtered by flow, source and outcome, and paged."""

from asyncio import to_thread
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from nicegui import ui

from flows.console.components.run_snapshot import name_of
from flows.console.components.stage_bar import bar, records_per_second, stages_of
from flows.console.context import ConsoleContext
from flows.console.format import duration
from flows.console.keyed_list import KeyedList, box
from flows.console.layout import with_query
from flows.console.widgets import OUTCOMES, heading, outcome, problem, table_body, table_row
from storage.errors import StoreUnavailable
from storage.postgres import runs
from storage.postgres.runs import Run

PAGE = 20
COLUMNS = (
    "started, UTC",
    "flow",
    "source",
    "outcome",
    "stages",
    "duration",
    "read",
    "embedded",
    "rejected",
    "records/s",
)
NUMBERS = 5

Cursor = tuple[datetime, UUID]
"""The run after which a page begins: its start, and its id."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Represent the filter of the run history, as in the URL."""

    flow: str | None = None
    source: str | None = None
    outcome: str | None = None
    before: Cursor | None = None

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> "RunFilter":
        """Parse a URL that `url` built; invalid parameters are ignored."""
        outcome = query.get("outcome")
        return cls(
            query.get("flow") or None,
            query.get("source") or None,
            outcome if outcome in OUTCOMES else None,
            _cursor(query.get("before", "")),
        )

    def url(self) -> str:
        """Return the URL of this filter.

        >>> RunFilter(flow="ingest", source="a&b").url()
        '/runs?flow=ingest&source=a%26b'
        """
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.before is not None:
            started, id = self.before
            given["before"] = f"{started.isoformat()}_{id}"
        return with_query("/runs", given)


def _cursor(text: str) -> Cursor | None:
    started, _, id = text.partition("_")
    try:
        place = datetime.fromisoformat(started), UUID(id)
    except ValueError:
        return None
    return place if place[0].tzinfo is not None else None


@dataclass(frozen=True, slots=True)
class RunPage:
    """Hold a page of runs, and the choices of its filters."""

    runs: tuple[Run, ...] = ()
    has_more: bool = False
    flows: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    problem: str | None = None


def read_runs(context: ConsoleContext, wanted: RunFilter) -> RunPage:
    """Read one page."""
    try:
        with context.backend.sessions() as sessions, sessions() as session:
            flows, sources = runs.flows_and_sources(session)
            found = runs.recent_runs(
                session,
                PAGE + 1,
                flow=wanted.flow,
                source=wanted.source,
                outcome=wanted.outcome,
                before=wanted.before,
            )
    except StoreUnavailable as error:
        return RunPage(problem=str(error))
    return RunPage(tuple(found[:PAGE]), len(found) > PAGE, tuple(flows), tuple(sources))


class History:
    """Show the table; filtering and paging update the URL in place."""

    def __init__(self, context: ConsoleContext, wanted: RunFilter, found: RunPage) -> None:
        self._context, self._wanted = context, wanted
        self._pages: list[Cursor | None] = [None] if wanted.before is None else [None, wanted.before]
        with ui.element("section").classes("sl-sheet"):
            heading("History")
            with ui.element("div").classes("sl-row"):
                self._choice("flow", found.flows)
                self._choice("source", found.sources)
                self._choice("outcome", tuple(OUTCOMES))
            self._rows = KeyedList[UUID](table_body(COLUMNS, NUMBERS))
            self._none = ui.label("There is no such run.").classes("sl-faint")
            self._problem = KeyedList[str](ui.element("div").classes("sl-column"))
            with ui.element("div").classes("sl-row") as self._pager:
                self._newer = ui.button("Newer", on_click=self._go_back).props("flat no-caps")
                self._older = ui.button("Older", on_click=self._go_on).props("flat no-caps")
        self._show(found)

    async def follow(self) -> None:
        """Refresh the newest page; older pages stay."""
        wanted = self._wanted
        if wanted.before is None:
            found = await to_thread(read_runs, self._context, wanted)
            if wanted == self._wanted:  # else the filter has changed meanwhile
                self._show(found)

    def _choice(self, name: str, known: tuple[str, ...]) -> None:
        chosen = getattr(self._wanted, name)
        options = [*known] if chosen is None or chosen in known else [*known, chosen]

        async def choose(event: Any) -> None:
            self._pages = [None]
            await self._apply(replace(self._wanted, before=None, **{name: event.value}))

        select = ui.select(options, label=name, value=chosen, clearable=True, on_change=choose)
        select.props("dense outlined options-dense").classes("sl-choice")

    async def _go_on(self) -> None:
        self._pages.append((self._last.started, self._last.id))
        await self._apply(replace(self._wanted, before=self._pages[-1]))

    async def _go_back(self) -> None:
        self._pages.pop()
        await self._apply(replace(self._wanted, before=self._pages[-1]))

    async def _apply(self, wanted: RunFilter) -> None:
        self._wanted = wanted
        ui.navigate.history.replace(wanted.url())
        found = await to_thread(read_runs, self._context, wanted)
        if wanted == self._wanted:
            self._show(found)

    def _show(self, found: RunPage) -> None:
        self._rows.show([(run.id, (run.outcome, run.ended), partial(_row, run)) for run in found.runs])
        self._none.visible = not found.runs and found.problem is None
        problems = [found.problem] if found.problem else []
        self._problem.show([(one, None, partial(box, problem, one)) for one in problems])
        if found.runs:
            self._last = found.runs[-1]
        self._older.enabled, self._newer.enabled = found.has_more, len(self._pages) > 1
        self._pager.visible = found.has_more or len(self._pages) > 1


def _row(run: Run) -> ui.element:
    stages = stages_of(run)
    row = [
        partial(link_to, run),
        name_of(run),
        run.source or "",
        partial(outcome, run.outcome),
        partial(bar, stages, slim=True) if stages else "",
        duration(run.took_s),
        *(count(run, name) for name in ("read", "embedded", "rejected")),
        "–" if run.ended is None else records_per_second(run, run.ended),
    ]
    return table_row(row, NUMBERS, COLUMNS)


def link_to(run: Run) -> None:
    """Show the start of a run, linked to its page."""
    ui.link(f"{run.started:%d %b %Y %H:%M:%S}", f"/runs/{run.id}").classes("sl-when")


def count(run: Run, name: str) -> str:
    """Return a count of a run; a dash if it has none."""
    found = run.counts.get(name)
    return f"{found:,}" if isinstance(found, int) else "–"
