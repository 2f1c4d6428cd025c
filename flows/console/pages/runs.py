"""The runs: what goes on, what can be started, and how the earlier ones went."""

from asyncio import to_thread

from nicegui import ui
from starlette.requests import Request

from flows.console.components.active_runs import Live
from flows.console.components.flow_controls import Startable
from flows.console.components.run_history import History, Wanted, find
from flows.console.components.run_snapshot import Watch
from flows.console.context import Desk
from flows.console.layout import PATIENCE_S, frame
from flows.console.pages import run_detail
from flows.console.widgets import heading, spoken_title

REFRESH_S = 3.0


def add_page(desk: Desk) -> None:
    """Add the page at `/runs`, and that of each run below it."""
    watch = Watch(desk)
    run_detail.add_page(desk, watch)

    @ui.page("/runs", response_timeout=PATIENCE_S)
    async def runs(request: Request) -> None:
        wanted = Wanted.of_query(request.query_params)
        found = await to_thread(find, desk, wanted)
        with frame(desk, request, "Runs"):
            spoken_title("Runs")
            with ui.element("section").classes("sl-column"):
                heading("Now")
                live = Live(desk, watch, idle="Nothing runs now.")
            startable = Startable(desk, watch, live)
            history = History(desk, wanted, found)

            async def refresh() -> None:
                going = await watch.look()
                live.show(going)
                startable.show(going)
                await history.follow()

            ui.timer(REFRESH_S, refresh)
