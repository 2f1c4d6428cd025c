"""What goes on with models right now, and how it went last."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from nicegui import ui

from flows.console.format import lasting, moment
from flows.console.widgets import Row, heading, outcome, table
from storage.postgres.runs import Run


def progress(one: Run, now: datetime) -> None:
    """Show how far a run is."""
    with ui.element("section").classes("sl-sheet sl-note").props('role="status"'):
        told = one.progress
        if told is None:
            ui.label(f"{one.flow} has begun")
            return
        parts = [f"{one.flow}: {told.stage}"]
        if told.total:
            parts.append(f"{told.done:,} of {told.total:,}")
        if (left := told.remaining_s(now)) is not None and told.total:
            parts.append(f"about {lasting(left)} left")
        ui.label(", ".join(parts))
        if told.total:
            ui.linear_progress(min(1.0, told.done / told.total), show_value=False).props("rounded")


def last_work(last_runs: Sequence[Run]) -> None:
    """Show how the last training, promotion, re-index and rollback went."""
    if not last_runs:
        return
    with ui.element("section").classes("sl-sheet"):
        heading("Last work on models")
        rows: list[Row] = [
            [
                one.flow,
                partial(outcome, one.outcome),
                moment(one.started),
                lasting(one.took_s),
                one.error or "",
            ]
            for one in last_runs
        ]
        table(("flow", "outcome", "started", "took", ""), rows)
