"""Show the log of a run from Prefect, extended while it runs."""

from asyncio import to_thread
from dataclasses import dataclass
from logging import ERROR, WARNING, getLevelName
from pathlib import Path
from uuid import UUID

from nicegui import ui

from flows.console.context import ConsoleContext
from flows.console.widgets import heading
from flows.orchestration.prefect_client import MOST_LOGS, LogLine, NothingServes
from storage.postgres.runs import Run

AT_ONCE = 1000
"""Lines that are shown before more are requested."""

NOT_WITH_PREFECT = "It ran without Prefect, which stores the logs; its output went to its terminal."
NOT_KNOWN = "This Prefect server does not know the run: it was started at a terminal, or on another server."


@dataclass(frozen=True, slots=True)
class LogPage:
    """Hold some log lines, or why there are none."""

    lines: tuple[LogLine, ...] = ()
    page: str | None = None
    """The URL of the run in Prefect's own pages."""

    login: str | None = None
    """The URL of Prefect's sign-in page."""

    password_file: Path | None = None
    """The file of Prefect's password."""

    why_not: str | None = None


def read_log(context: ConsoleContext, run: UUID, after: int) -> LogPage:
    """Return the lines after the first `after` ones, a page at most."""
    try:
        with context.prefect() as prefect:
            if not prefect.knows(run):
                return LogPage(why_not=NOT_KNOWN)
            lines = tuple(prefect.log(run, after=after))
            return LogPage(lines, prefect.page_of(run), prefect.login_of(run), prefect.password_file)
    except NothingServes as error:
        return LogPage(why_not=f"Prefect stores the log: {error}")


class RunLog:
    """Show log lines, extended in place."""

    def __init__(self, context: ConsoleContext, run: Run) -> None:
        self._context, self._run = context, run.prefect_run_id
        self._many, self._most = 0, AT_ONCE
        with ui.element("section").classes("sl-sheet"):
            with ui.element("div").classes("sl-row sl-between"):
                heading("Log")
                self._page = ui.link("In Prefect", new_tab=True).props('rel="noopener"')
            self._page.visible = False
            with ui.element("p").classes("sl-faint") as self._password:
                self._login = ui.link("Sign in to Prefect", new_tab=True).props('rel="noopener"')
                self._file = ui.label().classes("inline")
            self._password.visible = False
            self._why_not = ui.label(NOT_WITH_PREFECT if self._run is None else "").classes("sl-faint")
            box = ui.element("div").classes("sl-code sl-log" + (" sl-tail" if run.ended is None else ""))
            with box.props('role=log tabindex=0 aria-label="Log"'):
                self._lines = ui.element("div")
            self._box = box
            self._box.visible = False
            self._more = ui.button("More lines", on_click=self._read_on).props("flat no-caps")
            self._more.visible = False

    async def read(self) -> None:
        """Show new lines, up to a limit."""
        while self._run is not None:
            page = await to_thread(read_log, self._context, self._run, self._many)
            self._why_not.text = page.why_not or ("" if self._many or page.lines else "It has no lines yet.")
            if page.page is not None:
                self._page.props["href"], self._page.visible = page.page, True
            if page.login is not None:
                self._login.props["href"], self._password.visible = page.login, True
                self._file.text = f" first, with its password: the line in {page.password_file}"
            self._add(page.lines)
            is_whole_page = len(page.lines) == MOST_LOGS
            self._more.visible = is_whole_page and self._many >= self._most
            if not is_whole_page or self._many >= self._most:
                return

    def _add(self, lines: tuple[LogLine, ...]) -> None:
        self._many += len(lines)
        self._box.visible = self._many > 0
        with self._lines:
            for line in lines:
                kind = "sl-bad" if line.level >= ERROR else "sl-warn" if line.level >= WARNING else ""
                level = getLevelName(line.level).lower()
                ui.label(f"{line.at:%H:%M:%S}  {level:<8}{line.message}").classes(kind)

    async def _read_on(self) -> None:
        self._most += AT_ONCE
        await self.read()
