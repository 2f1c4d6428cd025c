"""Show the runs: in progress, startable flows, and history."""

from asyncio import to_thread

from nicegui import ui
from starlette.requests import Request

from flows.console.components.active_runs import ActiveRuns
from flows.console.components.flow_controls import FlowControls
from flows.console.components.run_history import History, RunFilter, read_runs
from flows.console.components.run_snapshot import RunWatcher
from flows.console.context import ConsoleContext
from flows.console.layout import PATIENCE_S, frame
from flows.console.pages import run_detail
from flows.console.widgets import heading, hidden_title

REFRESH_S = 3.0


def add_page(context: ConsoleContext) -> None:
    """Add the page at `/runs`, and that of each run below it."""
    watch = RunWatcher(context)
    run_detail.add_page(context, watch)

    @ui.page("/runs", response_timeout=PATIENCE_S)
    async def runs(request: Request) -> None:
        wanted = RunFilter.of_query(request.query_params)
        found = await to_thread(read_runs, context, wanted)
        with frame(context, request, "Runs"):
            hidden_title("Runs")
            with ui.element("section").classes("sl-column"):
                heading("Now")
                live = ActiveRuns(context, watch, idle="Nothing runs now.")
            controls = FlowControls(context, watch, live)
            history = History(context, wanted, found)

            async def refresh() -> None:
                snapshot = await watch.read()
                live.show(snapshot)
                controls.show(snapshot)
                await history.follow()

            ui.timer(REFRESH_S, refresh)
