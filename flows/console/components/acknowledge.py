"""Acknowledge failed runs with a button."""

from functools import partial

from nicegui import ui

from flows.console.components.run_card import title_of
from flows.console.context import ConsoleContext
from flows.console.widgets import run_action
from storage.postgres import runs
from storage.postgres.runs import FAILURES, Run


def acknowledge_button(context: ConsoleContext, run: Run) -> None:
    """Show a button that acknowledges a failed run, or its state."""
    if run.outcome not in FAILURES:
        return
    if run.acknowledged is not None:
        ui.label(f"Acknowledged {run.acknowledged:%d %b %Y %H:%M} UTC.").classes("sl-faint")
        return

    async def act() -> None:
        button.disable()
        title = title_of(run)
        if await run_action(context, partial(acknowledge, context, run), f"{title}: acknowledged"):
            button.set_text("Acknowledged")
        else:
            button.enable()

    button = (
        ui.button("Acknowledge", on_click=act).props("outline dense no-caps").style("align-self: flex-start")
    )
    button.props["aria-label"] = f"Acknowledge the failure of {title_of(run)}"


def acknowledge(context: ConsoleContext, run: Run) -> None:
    """Acknowledge a failed run.

    Raises:
        StoreUnavailable: Postgres does not answer.
        NoSuchFailure: the run is no failed one.
    """
    with context.backend.sessions() as sessions, sessions.begin() as session:
        runs.acknowledge(session, str(run.id))
