"""The parts that pages are made of."""

from asyncio import to_thread
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from flows.console.context import ConsoleContext
from flows.orchestration.prefect_client import NothingServes
from flows.service.pool import AWAY

Row = Sequence[str | Callable[[], Any]]
"""Cells of text; one that is more than text is a function that makes it."""

OUTCOMES = {
    "completed": "sl-good",
    "running": "sl-faint",
    "cancelled": "sl-faint",
    "failed": "sl-bad",
    "crashed": "sl-bad",
}


def tile(name: str, value: str, note: str = "", kind: str = "") -> None:
    """Show one figure with its name, and what it means; `kind` is a class such as `sl-bad`."""
    with ui.element("div").classes("sl-tile").props(f'data-figure="{name}"'):
        ui.label(name).classes("sl-faint")
        ui.label(value).classes(f"sl-value {kind}")
        if note:
            ui.label(note).classes("sl-faint")


def problem(sentence: str) -> None:
    """Show what is wrong, and what to do, instead of what cannot be shown."""
    with ui.element("div").classes("sl-sheet sl-problem").props('role="alert"'):
        ui.label(sentence)


def note(sentence: str) -> None:
    """Show what whoever looks should know."""
    with ui.element("div").classes("sl-sheet sl-note").props('role="status"'):
        ui.label(sentence)


def table(columns: Sequence[str], rows: Sequence[Row], numbers: int = 0) -> None:
    """Show rows under their columns.

    Args:
        numbers: how many of the last columns are figures.
    """
    with table_body(columns, numbers):
        for row in rows:
            table_row(row, numbers)


def table_body(columns: Sequence[str], numbers: int = 0) -> ui.element:
    """Show the heads of columns; return the element that rows belong into."""
    with ui.element("div").classes("sl-scroll"), ui.element("table").classes("sl-table"):
        with ui.element("thead"), ui.element("tr"):
            for place, column in enumerate(columns):
                with ui.element("th").classes("sl-number" if place >= len(columns) - numbers else ""):
                    ui.label(column)
        return ui.element("tbody")


def table_row(row: Row, numbers: int = 0) -> ui.element:
    """Show a row of a table."""
    with ui.element("tr") as shown:
        for place, cell in enumerate(row):
            kind = "sl-number" if place >= len(row) - numbers else ""
            if callable(cell):
                with ui.element("td").classes(kind):
                    cell()
            else:
                TextElement(tag="td", text=cell).classes(kind)
    return shown


def heading(text: str) -> None:
    """Show what a section of a page is about."""
    ui.label(text).props("role=heading aria-level=2").style("font-weight: 650")


def hidden_title(text: str) -> None:
    """Have a page begin with its title for whoever hears it; others see it among the links."""
    ui.label(text).props("role=heading aria-level=1").classes("sr-only")


def outcome(name: str) -> None:
    """Show how a run ended."""
    ui.label(name).classes(OUTCOMES.get(name, ""))


async def confirm(title: str, what_happens: str, yes: str, no: str = "Cancel") -> bool:
    """Ask whether to go on, and say what will happen; Escape says no."""
    with ui.dialog() as dialog, ui.card():
        ui.label(title).style("font-weight: 650; font-size: 1.1rem")
        ui.label(what_happens)
        with ui.row().classes("justify-end w-full"):
            ui.button(no, on_click=lambda: dialog.submit(False)).props("flat autofocus")
            ui.button(yes, on_click=lambda: dialog.submit(True)).props("unelevated")
    agreed = bool(await dialog)
    dialog.delete()
    return agreed


async def start_flow(context: ConsoleContext, flow: str, **parameters: Any) -> bool:
    """Have a flow run, and say so; or say what keeps it from running."""

    def begin() -> None:
        with context.prefect() as prefect:
            prefect.start(flow, **parameters)

    return await run_action(context, begin, f"{flow} starts within seconds; see Runs")


def show_error(error: Exception) -> None:
    """Say what keeps something from being done, until somebody has read it."""
    ui.notify(str(error), type="negative", timeout=0, close_button="Close", multi_line=True)


async def run_action(context: ConsoleContext, act: Callable[[], object], done: str) -> bool:
    """Do what a person asked for in a thread, and say that it is done, or what keeps it from being done."""
    try:
        await to_thread(act)
    except (NothingServes, ValueError, *AWAY) as error:
        show_error(error)
        return False
    context.observer.look_again()
    ui.notify(done, type="positive")
    return True
