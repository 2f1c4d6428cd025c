"""Control the flows: start them, show their schedules, pause them."""

from asyncio import to_thread
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

from nicegui import ui

from flows.console.components.active_runs import ActiveRuns
from flows.console.components.run_snapshot import RunSnapshot, RunWatcher
from flows.console.context import ConsoleContext
from flows.console.format import duration
from flows.console.keyed_list import KeyedList, box
from flows.console.widgets import confirm, heading, note, run_action, start_flow
from flows.maintenance.purge import USUAL_SHARE
from flows.orchestration.prefect_client import DeployedFlow
from flows.tracking.text import count_of
from storage.postgres import model_registry

DESCRIPTIONS = {
    "ingest": "reads every known source again",
    "evaluate": "evaluates the active model",
    "reconcile": "compares Postgres and Qdrant; changes nothing",
    "finetune": "trains a candidate; if it passes the promotion gate, searches move to it",
    "backup": "writes a backup",
    "prove": "restores the latest backup into temporary stores, and compares them",
    "purge": "removes data that nothing refers to",
}

Act = Callable[[str], Awaitable[None]]


class FlowRow:
    """Show one flow; its buttons keep their place on updates."""

    def __init__(self, flow: str, cron: str | None, start: Act, pause: Act) -> None:
        self._flow, self.is_paused = flow, False
        with ui.element("li").classes("sl-flow"):
            with ui.element("div").classes("sl-flow-name"):
                ui.label(flow).classes("sl-strong")
                ui.label(DESCRIPTIONS[flow]).classes("sl-faint")
            with ui.element("div").classes("sl-flow-when"):
                self._next = ui.label()
                self._when = ui.label().classes("sl-faint")
            with ui.element("div").classes("sl-flow-acts"):
                self._pause = ui.button("Pause", on_click=partial(pause, flow)).props("flat no-caps")
                self._start = ui.button("Start", on_click=partial(start, flow)).props("outline no-caps")
                self._start.props["aria-label"] = f"Start {flow}"
        self._cron = cron
        self.show_default()

    def show_default(self) -> None:
        """Show the schedule of the settings.

        Without a server that runs the flows it does not apply.
        """
        self._show(self._cron, None, datetime.now(UTC), paused=False)

    def show(self, deployed: DeployedFlow, now: datetime) -> None:
        """Show the deployment as Prefect reports it."""
        self._show(deployed.cron, deployed.next, now, paused=deployed.paused)

    def allow_start(self, *, allowed: bool) -> None:
        """Enable the start button, unless the flow is running or about to."""
        self._start.set_enabled(allowed)

    def _show(self, cron: str | None, next: datetime | None, now: datetime, *, paused: bool) -> None:
        self.is_paused = paused and cron is not None
        self._when.text = f"{cron} (UTC)" if cron else ""
        if self.is_paused:
            self._next.text = "paused"
        elif cron is None:
            self._next.text = "manual only"
        else:
            self._next.text = "" if next is None else f"{next:%H:%M} UTC, in {time_until(next, now)}"
        self._next.classes(replace="sl-warn" if self.is_paused else "" if cron else "sl-faint")
        self._pause.visible = cron is not None
        self._pause.text = "Resume" if self.is_paused else "Pause"
        self._pause.props["aria-label"] = f"{self._pause.text} {self._flow}"


def time_until(then: datetime, now: datetime) -> str:
    """Format the time until a moment.

    >>> time_until(datetime(2026, 1, 1, 12), datetime(2026, 1, 1, 11, 58, 30, 5))
    '2 min'
    """
    minutes = -(-max(0.0, (then - now).total_seconds()) // 60)
    return duration(minutes * 60) if minutes else "moments"


class FlowControls:
    """Show a row of controls for each flow."""

    def __init__(self, context: ConsoleContext, watch: RunWatcher, live: ActiveRuns) -> None:
        self._context, self._watch, self._live = context, watch, live
        settings = context.backend.settings
        crons: dict[str, str | None] = settings.schedules.model_dump()
        flows = [flow for flow in DESCRIPTIONS if flow != "backup" or settings.backup_url is not None]
        with ui.element("section").classes("sl-sheet") as self._where:
            heading("Flows")
            self._problem = KeyedList[str](ui.element("div").classes("sl-column"))
            with ui.element("ul").classes("sl-flows"):
                self._rows = {flow: FlowRow(flow, crons[flow], self._begin, self._pause) for flow in flows}

    def show(self, snapshot: RunSnapshot) -> None:
        """Show the next run of each flow, and which are paused."""
        for one in snapshot.deployed:
            if one.scheduled and one.flow in self._rows:
                self._rows[one.flow].show(one, snapshot.at)
        for flow, row in self._rows.items():
            row.allow_start(allowed=not snapshot.is_active(flow))
        if snapshot.prefect_problem:
            for row in self._rows.values():
                row.show_default()
        problems = [snapshot.prefect_problem] if snapshot.prefect_problem else []
        self._problem.show([(one, None, partial(box, note, one)) for one in problems])

    async def _begin(self, flow: str) -> None:
        with self._where:
            if await start_if_idle(self._context, self._watch, flow, await self._consequences(flow)):
                snapshot = await self._watch.refresh()
                self._live.show(snapshot)
                self.show(snapshot)

    async def _pause(self, flow: str) -> None:
        paused = not self._rows[flow].is_paused

        def pause() -> None:
            with self._context.prefect() as prefect:
                prefect.pause(flow, paused=paused)

        with self._where:
            done = f"{flow} is paused; it still runs when started by hand" if paused else f"{flow} is resumed"
            if await run_action(self._context, pause, done):
                self.show(await self._watch.refresh())

    async def _consequences(self, flow: str) -> str | None:
        """Return the consequences to confirm; None if minor."""
        if flow == "finetune":
            seen = self._context.observer.latest.catalog
            stored = "the stored records" if seen is None else count_of(seen.figures.items, "stored record")
            return (
                f"It trains a candidate from {stored}. If that passes the promotion gate, they are embedded "
                "again in a new collection, and searches move to it; a rollback moves them back."
            )
        if flow == "purge":
            return await to_thread(purge_text, self._context)
        return None


def purge_text(context: ConsoleContext) -> str:
    """Describe the effects of a purge."""
    days = context.backend.settings.keep_retired_days
    with context.backend.sessions() as sessions, sessions() as session:
        disused = len(model_registry.disused(session, days))
    return (
        f"It removes images that no record refers to, and {count_of(disused, 'collection')} that searches "
        f"left more than {days:g} days ago. It refuses to remove more than {USUAL_SHARE:.0%} of the images."
    )


async def start_if_idle(
    context: ConsoleContext, watch: RunWatcher, flow: str, consequences: str | None
) -> bool:
    """Start a flow after confirmation, unless it is already running."""
    if (await watch.refresh()).is_active(flow):
        ui.notify(f"{flow} is already running: see Now", type="warning")
        return False
    if consequences is not None and not await confirm(f"Start {flow} now?", consequences, f"Start {flow}"):
        return False
    return await start_flow(context, flow)
