"""One run that goes on: how far it is, what it has done so far, and how to end it."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial

from nicegui import ui

from flows.console.components.run_snapshot import Going, name_of
from flows.console.components.stage_bar import a_second, bar, legend, stages_of, took_s
from flows.console.context import Desk
from flows.console.format import ago, lasting
from flows.console.keyed_list import Kept
from flows.console.widgets import acting, confirmed
from storage.postgres.runs import Run

QUIET_S = 60
"""A run that has not told anything for so long has that said."""

COUNTS = ("read", "embedded", "updated", "unchanged", "deleted", "rejected")
AT_A_TERMINAL = "it was started at a terminal: end it there, by Ctrl-C"


class Card:
    """One run that goes on."""

    def __init__(self, run: Run, cancel: Callable[[], Awaitable[None]]) -> None:
        with ui.element("article").classes("sl-sheet") as self.element:
            with ui.element("div").classes("sl-row sl-between"):
                with ui.element("div").classes("sl-row"):
                    ui.link(title_of(run), f"/runs/{run.id}").classes("sl-strong")
                    self._since = ui.label().classes("sl-faint")
                self._cancel = ui.button("Cancel", on_click=cancel).props("outline no-caps")
                self._cancel.props["aria-label"] = f"Cancel {title_of(run)}"
                self._whose = ui.label().classes("sl-faint")
            with ui.element("div").classes("sl-row sl-between"):
                self._stage = ui.label()
                self._left = ui.label().classes("sl-faint")
            self._bar = ui.linear_progress(0, show_value=False, size="8px").props("rounded instant-feedback")
            self._counts = ui.label().classes("sl-faint")
            self._stages = Kept[str](ui.element("div").classes("sl-column"))
        self.element.props["data-run"] = str(run.id)

    def show(self, run: Run, going: Going) -> None:
        """Show how far it is."""
        begun, now = going.begun_as(run), going.at
        ends = run.prefect_run_id in going.ending or (begun is not None and begun.state == "Cancelling")
        self._since.text = f"since {lasting(took_s(run, now))}"
        self._cancel.visible = begun is not None and not ends
        self._whose.text = "is being ended…" if ends else who_ends(going) if begun is None else ""
        self._whose.visible = bool(self._whose.text)
        self._progress(run, now)
        counts = [f"{run.counts[name]:,} {name}" for name in COUNTS if run.counts.get(name)]
        self._counts.text = " · ".join([*counts, f"{a_second(run, now)} records/s"] if counts else [])
        taken = stages_of(run)
        self._stages.show([("stages", tuple(taken), partial(_stages, taken))] if taken else [])

    def _progress(self, run: Run, now: datetime) -> None:
        told = run.progress
        self._bar.props.set_bool("indeterminate", told is None or not told.total)
        if told is None:
            self._stage.text, self._left.text = "begins", ""
            return
        of_total = f" of {told.total:,}" if told.total else ""
        self._stage.text = f"{told.stage}: {told.done:,}{of_total}"
        self._bar.value = min(1.0, told.done / told.total) if told.total else 0.0
        self._bar.props["aria-label"] = self._stage.text
        left, quiet = told.remaining_s(now), (now - told.at).total_seconds() > QUIET_S
        told_last = f"last told {ago(told.at, now)}" if quiet else ""
        self._left.text = told_last or ("" if left is None else f"about {lasting(left)} left")


def _stages(taken: Sequence[tuple[str, float]]) -> ui.element:
    with ui.element("div").classes("sl-column") as both:
        bar(taken)
        legend(taken)
    return both


def title_of(run: Run) -> str:
    """Return a run's flow, and what it is of.

    An ingest of all sources has a run of its own, beside those of each source.
    """
    name = name_of(run)
    if run.source is not None:
        return f"{name} of {run.source}"
    return f"{name} of all sources" if name == "ingest" else name


def who_ends(going: Going) -> str:
    """Return why a run cannot be cancelled from here, as far as that is known."""
    if going.prefect_problem is not None:
        return going.prefect_problem
    return AT_A_TERMINAL if going.deployed else ""


async def ask_to_cancel(desk: Desk, run: Run) -> bool:
    """Have Prefect end a run, if whoever asked for it means it."""
    title = title_of(run)
    what = "It ends where it is. What it has done stays, and the next run does the rest."
    if run.source is not None:
        what += " If it reads one source of several, the others end with it."
    if not await confirmed(f"Cancel {title}?", what, "Cancel the run", no="Let it run"):
        return False
    return await acting(desk, partial(cancel, desk, run), f"{title} is being ended")


def cancel(desk: Desk, run: Run) -> None:
    """Have Prefect end a run.

    Raises:
        NothingServes: nothing does that here.
        NoSuchRun: Prefect does not know it.
    """
    with desk.prefect() as prefect:
        if run.prefect_run_id is not None:
            prefect.cancel(run.prefect_run_id)
