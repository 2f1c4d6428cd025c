"""Show the progress of one run, with a cancel button."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial

from nicegui import ui

from flows.console.components.run_snapshot import RunSnapshot, name_of
from flows.console.components.stage_bar import bar, duration_s, legend, records_per_second, stages_of
from flows.console.context import ConsoleContext
from flows.console.format import ago, duration
from flows.console.keyed_list import KeyedList
from flows.console.widgets import confirm, run_action
from storage.postgres.runs import Run, StageProgress

QUIET_S = 60
"""A run without a progress report for so long shows the time of its last one."""

COUNTS = ("read", "embedded", "updated", "unchanged", "deleted", "rejected")
AT_A_TERMINAL = "it was started at a terminal: end it there, by Ctrl-C"


class RunCard:
    """Show one run in progress, updated in place."""

    def __init__(self, run: Run, cancel: Callable[[], Awaitable[None]]) -> None:
        with ui.element("article").classes("sl-sheet") as self.element:
            with ui.element("div").classes("sl-row sl-between"):
                with ui.element("div").classes("sl-row"):
                    ui.link(title_of(run), f"/runs/{run.id}").classes("sl-strong")
                    self._since = ui.label().classes("sl-faint")
                self._cancel = ui.button("Cancel", on_click=cancel).props("outline no-caps")
                self._cancel.props["aria-label"] = f"Cancel {title_of(run)}"
                self._note = ui.label().classes("sl-faint")
            with ui.element("div").classes("sl-row sl-between"):
                self._stage = ui.label()
                self._left = ui.label().classes("sl-faint")
            self._bar = ui.linear_progress(0, show_value=False, size="8px").props("rounded instant-feedback")
            self._counts = ui.label().classes("sl-faint")
            self._stages = KeyedList[str](ui.element("div").classes("sl-column"))
        self.element.props["data-run"] = str(run.id)

    def show(self, run: Run, snapshot: RunSnapshot) -> None:
        """Show the current progress."""
        begun, now = snapshot.prefect_run(run), snapshot.at
        ends = run.prefect_run_id in snapshot.ending or (begun is not None and begun.state == "Cancelling")
        self._since.text = f"since {duration(duration_s(run, now))}"
        self._cancel.visible = begun is not None and not ends
        self._note.text = (
            "is being cancelled…" if ends else why_not_cancellable(snapshot) if begun is None else ""
        )
        self._note.visible = bool(self._note.text)
        self._progress(run, now)
        counts = [f"{run.counts[name]:,} {name}" for name in COUNTS if run.counts.get(name)]
        self._counts.text = " · ".join(
            [*counts, f"{records_per_second(run, now)} records/s"] if counts else []
        )
        taken = stages_of(run)
        self._stages.show([("stages", tuple(taken), partial(_stages, taken))] if taken else [])

    def _progress(self, run: Run, now: datetime) -> None:
        progress = run.progress
        self._bar.visible = progress is not None and bool(progress.total)
        self._stage.text, self._left.text = stage_text(progress), ""
        if progress is None:
            return
        self._bar.value = min(1.0, progress.done / progress.total) if progress.total else 0.0
        self._bar.props["aria-label"] = self._stage.text
        left, quiet = progress.remaining_s(now), (now - progress.at).total_seconds() > QUIET_S
        last_reported = f"last report {ago(progress.at, now)}" if quiet else ""
        self._left.text = last_reported or ("" if left is None else f"about {duration(left)} left")


def stage_text(progress: StageProgress | None, between: str = ": ") -> str:
    """Return the stage of a run and its count.

    A total is there where one is known.

    >>> at = datetime.now().astimezone()
    >>> stage_text(StageProgress("embed", 1200, 4000, at, 0, at))
    'embed: 1,200 of 4,000'
    >>> stage_text(StageProgress("embed", 1200, 0, at, 0, at))
    'embed: 1,200 so far'
    >>> stage_text(StageProgress("verify", 0, 0, at, 0, at))
    'verify'
    """
    if progress is None:
        return "starting"
    if progress.total:
        return f"{progress.stage}{between}{progress.done:,} of {progress.total:,}"
    return f"{progress.stage}{between}{progress.done:,} so far" if progress.done else progress.stage


def _stages(taken: Sequence[tuple[str, float]]) -> ui.element:
    with ui.element("div").classes("sl-column") as both:
        bar(taken)
        legend(taken)
    return both


def title_of(run: Run) -> str:
    """Return the title of a run: its flow and source.

    An ingest of all sources has a run of its own, beside those of each source.
    """
    name = name_of(run)
    if run.source is not None:
        return f"{name} of {run.source}"
    return f"{name} of all sources" if name == "ingest" else name


def why_not_cancellable(snapshot: RunSnapshot) -> str:
    """Return why a run cannot be cancelled here, if known."""
    if snapshot.prefect_problem is not None:
        return snapshot.prefect_problem
    return AT_A_TERMINAL if snapshot.deployed else ""


async def confirm_cancel(context: ConsoleContext, run: Run) -> bool:
    """Cancel a run through Prefect, after confirmation."""
    title = title_of(run)
    what = "It stops where it is. Completed work is kept, and the next run does the rest."
    if run.source is not None:
        what += " If it reads one source of several, the others stop with it."
    if not await confirm(f"Cancel {title}?", what, "Cancel the run", no="Let it run"):
        return False
    return await run_action(context, partial(cancel, context, run), f"{title} is being cancelled")


def cancel(context: ConsoleContext, run: Run) -> None:
    """Cancel a run through Prefect.

    Raises:
        NothingServes: no Prefect server runs here.
        NoSuchRun: Prefect does not know it.
    """
    with context.prefect() as prefect:
        if run.prefect_run_id is not None:
            prefect.cancel(run.prefect_run_id)
