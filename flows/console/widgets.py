"""Build the basic widgets of pages: tiles, tables, messages, dialogs."""

from asyncio import to_thread
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from flows.console.context import ConsoleContext
from storage.errors import SightlineError

Row = Sequence[str | Callable[[], Any]]
"""Cells of a row: text, or a function that builds the cell."""

OUTCOMES = {
    "completed": "sl-good",
    "running": "sl-faint",
    "cancelled": "sl-faint",
    "refused": "sl-warn",
    "failed": "sl-bad",
    "crashed": "sl-bad",
}


def tile(name: str, value: str, note: str = "", kind: str = "", to: str | None = None) -> None:
    """Show a figure with its name and note.

    Args:
        kind: a class such as `sl-bad`.
        to: path of the list behind the figure.
    """
    around = ui.element("div") if to is None else ui.link(target=to)
    with around.classes("sl-tile").props(f'data-figure="{name}"'):
        ui.label(name).classes("sl-faint")
        ui.label(value).classes(f"sl-value {kind}")
        if note:
            ui.label(note).classes("sl-faint")


def problem(sentence: str) -> None:
    """Show an error with its remedy."""
    with ui.element("div").classes("sl-sheet sl-problem").props('role="alert"'):
        ui.label(sentence)


def note(sentence: str) -> None:
    """Show a notice."""
    with ui.element("div").classes("sl-sheet sl-note").props('role="status"'):
        ui.label(sentence)


def table(columns: Sequence[str], rows: Sequence[Row], numbers: int = 0) -> None:
    """Show rows below their headings.

    Args:
        numbers: how many of the last columns are numeric.
    """
    with table_body(columns, numbers):
        for row in rows:
            table_row(row, numbers, columns)


def table_body(columns: Sequence[str], numbers: int = 0) -> ui.element:
    """Show the headings of a table; return the element for its rows."""
    kind = "sl-table sl-stacking" if len(columns) > 2 else "sl-table"
    with ui.element("div").classes("sl-scroll"), ui.element("table").classes(kind):
        if any(columns):
            with ui.element("thead"), ui.element("tr"):
                for place, column in enumerate(columns):
                    with ui.element("th").classes("sl-number" if place >= len(columns) - numbers else ""):
                        ui.label(column)
        return ui.element("tbody")


def table_row(row: Row, numbers: int = 0, columns: Sequence[str] = ()) -> ui.element:
    """Show a row of a table.

    Args:
        columns: headings, which a narrow screen shows beside each cell.
    """
    with ui.element("tr") as shown:
        for place, cell in enumerate(row):
            kind = "sl-number" if place >= len(row) - numbers else ""
            if callable(cell):
                with ui.element("td").classes(kind) as made:
                    cell()
            else:
                made = TextElement(tag="td", text=cell).classes(kind)
            if len(columns) > 2 and columns[place]:
                made.props["data-column"] = columns[place]
    return shown


def heading(text: str) -> None:
    """Show the heading of a section."""
    ui.label(text).props("role=heading aria-level=2").style("font-weight: 650")


def hidden_title(text: str) -> None:
    """Add the page title for screen readers; the navigation shows it."""
    ui.label(text).props("role=heading aria-level=1").classes("sr-only")


def outcome(name: str) -> None:
    """Show the outcome of a run."""
    ui.label(name).classes(OUTCOMES.get(name, ""))


async def confirm(title: str, consequences: str, yes: str, no: str = "Cancel") -> bool:
    """Show a confirmation dialog with the consequences; Escape cancels."""
    with ui.dialog() as dialog, ui.card():
        ui.label(title).style("font-weight: 650; font-size: 1.1rem")
        ui.label(consequences)
        with ui.row().classes("justify-end w-full"):
            ui.button(no, on_click=lambda: dialog.submit(False)).props("flat autofocus")
            ui.button(yes, on_click=lambda: dialog.submit(True)).props("unelevated")
    agreed = bool(await dialog)
    dialog.delete()
    return agreed


async def start_flow(context: ConsoleContext, flow: str, **parameters: Any) -> bool:
    """Start a flow, and report success or failure.

    Its acceptance is said at once: Prefect takes seconds. The same start is not accepted twice meanwhile.
    """
    start = f"{flow} {sorted(parameters.items())}"
    if start in context.starting:
        ui.notify(f"{flow} is being started already", type="warning")
        return False

    def begin() -> None:
        with context.prefect() as prefect:
            prefect.start(flow, **parameters)

    context.starting.add(start)
    ui.notify(f"{flow} is accepted; Prefect is scheduling it", type="info")
    try:
        return await run_action(
            context, begin, f"{flow} is scheduled; its process begins within half a minute; see Runs"
        )
    finally:
        context.starting.discard(start)


def show_error(error: Exception) -> None:
    """Show an error until it is dismissed."""
    ui.notify(str(error), type="negative", timeout=0, close_button="Close", multi_line=True)


async def run_action(context: ConsoleContext, act: Callable[[], object], done: str) -> bool:
    """Run an action in a thread, and report success or failure."""
    try:
        await to_thread(act)
    except (SightlineError, ValueError) as error:
        show_error(error)
        return False
    context.observer.refresh()
    ui.notify(done, type="positive")
    return True
