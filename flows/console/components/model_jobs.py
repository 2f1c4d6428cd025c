"""Show the running and last jobs on models."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from nicegui import ui

from flows.console.components.run_card import stage_text
from flows.console.format import duration, moment
from flows.console.widgets import Row, heading, outcome, table
from storage.postgres.runs import Run


def show_progress(one: Run, now: datetime) -> None:
    """Show the progress of a run."""
    with ui.element("section").classes("sl-sheet sl-note").props('role="status"'):
        progress = one.progress
        left = None if progress is None else progress.remaining_s(now)
        ui.label(
            f"{one.flow}: {stage_text(progress, ', ')}"
            + ("" if left is None else f", about {duration(left)} left")
        )
        if progress is not None and progress.total:
            ui.linear_progress(min(1.0, progress.done / progress.total), show_value=False).props("rounded")


def show_last_jobs(last_runs: Sequence[Run]) -> None:
    """Show the last training, promotion, re-index and rollback."""
    if not last_runs:
        return
    with ui.element("section").classes("sl-sheet"):
        heading("Last model jobs")
        rows: list[Row] = [
            [
                one.flow,
                partial(outcome, one.outcome),
                moment(one.started),
                duration(one.took_s),
                one.error or "",
            ]
            for one in last_runs
        ]
        table(("flow", "outcome", "started", "duration", "error"), rows)
