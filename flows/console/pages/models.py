"""Show models and collections: lineage, recall, promotion decisions, and actions."""

from asyncio import to_thread
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from nicegui import ui
from starlette.requests import Request

from flows.console.components.model_actions import confirm_promotion, confirm_reindex, confirm_rollback
from flows.console.components.model_jobs import show_last_jobs, show_progress
from flows.console.components.model_table import (
    last_decision,
    model_collections,
    model_name,
    model_state,
    recall_change,
    show_decision,
)
from flows.console.components.recall_chart import data_set_of, data_sets, recall, short
from flows.console.context import ConsoleContext
from flows.console.format import moment
from flows.console.layout import PATIENCE_S, frame, with_query
from flows.console.widgets import Row, heading, hidden_title, problem, table, tile
from flows.service.model_overview import WORK, ModelOverview, read_model_overview
from storage.errors import StoreUnavailable
from storage.postgres import runs
from storage.postgres.model_history import ModelHistory
from storage.postgres.runs import Run

REFRESH_S = 3.0
DECISIONS = 10


@dataclass(frozen=True, slots=True)
class ModelsParams:
    """Represent the parameters of the page's URL."""

    dataset: str | None = None
    before: int | None = None
    """Only decisions before the one with this id."""

    def address(self, **changed: object) -> str:
        return with_query("/models", {"dataset": self.dataset, "before": self.before} | changed)


@dataclass(frozen=True, slots=True)
class ModelsSnapshot:
    """Hold the lineage of models, and the jobs in progress."""

    lineage: ModelOverview
    running: tuple[Run, ...]


def add_page(context: ConsoleContext) -> None:
    """Add the page at `/models`."""

    @ui.page("/models", response_timeout=PATIENCE_S)
    async def models(request: Request, dataset: str | None = None, before: int | None = None) -> None:
        with frame(context, request, "Models"):
            hidden_title("Models and indexes")
            page = Page(context, ModelsParams(dataset or None, before))
            await page.refresh()
            ui.timer(REFRESH_S, page.refresh, immediate=False)


def read_models(context: ConsoleContext, wanted: ModelsParams) -> ModelsSnapshot | str:
    """Read the models, or why they cannot be read."""
    seen = context.observer.latest
    if seen.catalog is None:
        return seen.postgres_problem or ""
    try:
        lineage = read_model_overview(context.backend, decisions=DECISIONS + 1, before=wanted.before)
        with context.backend.sessions() as sessions, sessions() as session:
            running = tuple(one for one in runs.running(session) if one.flow in WORK)
    except StoreUnavailable as error:
        return str(error)
    return ModelsSnapshot(lineage, running)


class Page:
    """Show the page; all but running jobs is rebuilt only on changes."""

    def __init__(self, context: ConsoleContext, wanted: ModelsParams) -> None:
        self._context, self._wanted = context, wanted
        self._running = ui.element("div").classes("contents")
        self._rest = ui.element("div").classes("contents")
        self._shown: ModelOverview | str | None = None
        self._root = ui.context.slot.parent

    async def refresh(self) -> None:
        """Read again, and show changes."""
        found = await to_thread(read_models, self._context, self._wanted)
        if self._rest.is_deleted:
            return
        self._running.clear()
        if isinstance(found, ModelsSnapshot):
            with self._running:
                for one in found.running:
                    show_progress(one, datetime.now(UTC))
        lineage = found.lineage if isinstance(found, ModelsSnapshot) else found
        if lineage == self._shown:
            return
        self._shown = lineage
        self._rest.clear()
        with self._rest:
            if isinstance(lineage, str):
                problem(lineage)
            else:
                self._show(lineage)

    def _show(self, seen: ModelOverview) -> None:
        if seen.qdrant_problem is not None:
            problem(seen.qdrant_problem)
        if not seen.models:
            with ui.element("section").classes("sl-sheet"):
                ui.label("No model has been used yet. Begin with: sightline ingest FOLDER").classes(
                    "sl-faint"
                )
            return
        self._in_use(seen)
        self._lineage(seen)
        self._recall(seen)
        self._decisions(seen)
        show_last_jobs(seen.last_runs)

    def _in_use(self, seen: ModelOverview) -> None:
        active = seen.active
        collection = next((one for one in seen.collections if one.state == "active"), None)
        with ui.element("div").classes("sl-tiles"):
            if active is not None:
                tile("Active model", short(active.name, active.fingerprint), active.name)
            if collection is not None:
                points = seen.points.get(collection.name)
                since = "" if collection.activated is None else f"since {moment(collection.activated)}"
                tile("Points", "–" if points is None else f"{points:,}", since)
        back = seen.back
        if back is not None and active is not None:
            name = seen.names.get(back.fingerprint, back.fingerprint)
            with ui.element("div").classes("sl-row"):
                ui.button(
                    f"Roll back to {short(name, back.fingerprint)}…",
                    on_click=partial(self._act, partial(confirm_rollback, self._context, seen, active, back)),
                ).props("outline")

    def _lineage(self, seen: ModelOverview) -> None:
        with ui.element("section").classes("sl-sheet"):
            heading("Models")
            rows: list[Row] = [
                [
                    partial(model_name, depth, life),
                    partial(model_state, life.state),
                    partial(self._actions, seen, life),
                    partial(model_collections, seen, life),
                    recall_change(life, "text_to_image"),
                    recall_change(life, "image_to_text"),
                    last_decision(life),
                ]
                for depth, life in seen.models
            ]
            table(
                ("model", "state", "", "collection", "text to image", "image to text", "last decision"), rows
            )
            ui.label(
                "A model is listed below the one that it was fine-tuned from. Figures: recall@10 on the "
                "held-out pairs, before and after its training."
            ).classes("sl-faint")

    def _actions(self, seen: ModelOverview, life: ModelHistory) -> None:
        active = seen.active
        if active is None or life.fingerprint == active.fingerprint:
            return
        with ui.element("div").classes("sl-row no-wrap"):
            if seen.is_promoted(life):
                act = partial(self._act, partial(confirm_reindex, self._context, life, active))
                ui.button("Re-index…", on_click=act).props('unelevated no-wrap padding="2px 12px"')
            else:
                act = partial(self._act, partial(confirm_promotion, self._context, life, active))
                ui.button("Promote…", on_click=act).props('outline no-wrap padding="2px 12px"')

    async def _act(self, ask: Callable[[], Awaitable[None]]) -> None:
        with self._root:  # a dialog is removed with its parent, and the table may be rebuilt meanwhile
            await ask()

    def _recall(self, seen: ModelOverview) -> None:
        names = data_sets(seen.measured)
        with ui.element("section").classes("sl-sheet"):
            heading("Recall")
            if not names:
                ui.label("No evaluation yet. Begin with: sightline evaluate").classes("sl-faint")
                return
            chosen = self._wanted.dataset if self._wanted.dataset in names else names[0]
            with ui.element("nav").classes("sl-chips").props('aria-label="Data sets"'):
                for name in names:
                    link = ui.link(name, self._wanted.address(dataset=name)).classes("sl-chip")
                    if name == chosen:
                        link.props('aria-current="true"')
            recall([one for one in seen.measured if data_set_of(one) == chosen], seen.names)

    def _decisions(self, seen: ModelOverview) -> None:
        with ui.element("section").classes("sl-sheet"):
            heading("Promotion gate decisions")
            if not seen.decisions:
                ui.label("None yet.").classes("sl-faint")
            for decision in seen.decisions[:DECISIONS]:
                show_decision(decision)
            if self._wanted.before is not None:
                ui.link("Newest", self._wanted.address(before=None))
            if len(seen.decisions) > DECISIONS:
                ui.link("Older", self._wanted.address(before=seen.decisions[DECISIONS - 1].id))
