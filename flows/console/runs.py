"""The runs: what goes on, what can be started, and how the earlier ones went."""

from asyncio import to_thread

from nicegui import ui
from starlette.requests import Request

from flows.console import one_run
from flows.console.desk import Desk
from flows.console.frame import PATIENCE_S, frame
from flows.console.going import Watch
from flows.console.history import History, Wanted, find
from flows.console.live import Live
from flows.console.parts import heading, spoken_title
from flows.console.startable import Startable

REFRESH_S = 3.0


def add_page(desk: Desk) -> None:
    """Add the page at `/runs`, and that of each run below it."""
    watch = Watch(desk)
    one_run.add_page(desk, watch)

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
