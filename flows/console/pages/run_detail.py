"""Show everything on record of one run, and its log."""

from asyncio import to_thread
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from nicegui import ui
from starlette.requests import Request

from flows.console.components.acknowledge import acknowledge_button
from flows.console.components.run_card import RunCard, confirm_cancel, title_of
from flows.console.components.run_log_view import RunLog
from flows.console.components.run_snapshot import RunWatcher, name_of
from flows.console.components.stage_bar import (
    bar,
    duration_s,
    flattened,
    legend,
    records_per_second,
    stages_of,
)
from flows.console.context import ConsoleContext
from flows.console.format import duration, share
from flows.console.keyed_list import KeyedList
from flows.console.layout import PATIENCE_S, frame
from flows.console.pages.rejects import RejectFilter
from flows.console.widgets import Row, heading, outcome, problem, table
from flows.ingestion.report import COUNTS
from flows.tracking.text import count_of
from storage.errors import StoreUnavailable
from storage.postgres import runs
from storage.postgres.runs import FAILURES, Run

REFRESH_S = 3.0
SPEED = "speed"
LEFT_OUT = "left_out"
MAX_KINDS = 20
"""Most kinds of ignored files shown by name."""

SETTLES = timedelta(seconds=30)
"""After its end Prefect reports a run's last lines, and that it was cancelled rather than failed."""


def add_page(context: ConsoleContext, watch: RunWatcher) -> None:
    """Add the page of each run, at `/runs/{id}`."""

    @ui.page("/runs/{id}", response_timeout=PATIENCE_S)
    async def one_run(request: Request, id: str) -> None:
        found = await to_thread(find, context, id)
        with frame(context, request, "Runs"):
            ui.link("All runs", "/runs").classes("sl-faint")
            if isinstance(found, str):
                problem(found)
                return
            ui.page_title(f"{title_of(found)} · Sightline")
            ui.label(title_of(found)).props("role=heading aria-level=1").classes("sl-title")
            if found.ended is None:
                _show_progress(context, watch, found)
                return
            show(context, found)
            log = RunLog(context, found)
            ui.timer(0, log.read, once=True)


def find(context: ConsoleContext, id: str) -> Run | str:
    """Return the run of that id, or why it cannot be shown."""
    try:
        with context.backend.sessions() as sessions, sessions() as session:
            found = runs.find_run(session, UUID(id))
    except StoreUnavailable as error:
        return str(error)
    except ValueError:
        found = None
    return f"There is no run {id} on record." if found is None else found


def _show_progress(context: ConsoleContext, watch: RunWatcher, run: Run) -> None:
    """Show the progress of a run until it ends, then its record."""
    with ui.element("div").classes("sl-column") as shown:

        async def cancel() -> None:
            with shown:
                if await confirm_cancel(context, run):
                    card.show(run, await watch.refresh())

        card = RunCard(run, cancel)
    ended = KeyedList[str](ui.element("div").classes("sl-column"))
    log = RunLog(context, run)

    async def refresh() -> None:
        snapshot, found = await watch.read(), await to_thread(find, context, str(run.id))
        if isinstance(found, Run):
            is_running = found.ended is None
            shown.visible = is_running
            if is_running:
                card.show(found, snapshot)
            ended.show([] if is_running else [("ended", found.outcome, partial(_shown, context, found))])
            if found.ended is not None and snapshot.at - found.ended > SETTLES:
                timer.deactivate()
        await log.read()

    timer = ui.timer(REFRESH_S, refresh)


def _shown(context: ConsoleContext, run: Run) -> ui.element:
    with ui.element("div").classes("sl-column") as everything:
        show(context, run)
    return everything


def show(context: ConsoleContext, run: Run) -> None:
    """Show the record of a run that has ended."""
    now = datetime.now(UTC)
    has_failed = run.outcome in FAILURES
    if run.error is not None or has_failed:
        with ui.element("section").classes("sl-sheet " + ("sl-problem" if has_failed else "")):
            heading("Why it ended")
            ui.label(run.error or run.outcome).classes("sl-code")
            acknowledge_button(context, run)
    with ui.element("div").classes("sl-two"):
        with ui.element("section").classes("sl-sheet"):
            heading("Run")
            table(("", ""), facts(run, now))
            if run.source is not None and run.counts.get("rejected"):
                rejected = count_of(run.counts["rejected"], "record")
                ui.link(
                    f"{rejected} rejected: see the rejects of {run.source}",
                    RejectFilter(source=run.source).address,
                )
        _counts(run)
    _ignored(run)
    _stages(run)


def facts(run: Run, now: datetime) -> list[Row]:
    """Return the facts of a run, a name and a value each."""
    rows: list[Row] = [["flow", name_of(run)]]
    if run.source is not None:
        rows.append(["source", run.source])
    if run.location is not None:
        rows.append(["read from", run.location])
    rows += [
        ["outcome", partial(outcome, run.outcome)],
        ["started", f"{run.started:%d %b %Y %H:%M:%S} UTC"],
        ["ended", "–" if run.ended is None else f"{run.ended:%d %b %Y %H:%M:%S} UTC"],
        ["duration", duration(duration_s(run, now))],
        ["records/s", records_per_second(run, now)],
        *([f"option {name}", option_text(value)] for name, value in run.options.items()),
        ["id", str(run.id)],
        [
            "id in Prefect",
            "none: it ran without Prefect" if run.prefect_run_id is None else str(run.prefect_run_id),
        ],
    ]
    return rows


def option_text(value: object) -> str:
    """Format the value of an option.

    >>> option_text(12000), option_text(["en", "de"]), option_text(True), option_text(None)
    ('12,000', 'en, de', 'yes', '–')
    """
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.3f}".rstrip("0").rstrip(".")
        case list() | tuple():
            return ", ".join(map(option_text, value)) or "–"
    return str(value)


def counted(run: Run) -> list[tuple[str, Any]]:
    """Return the counts of a run, without its throughput and ignored files.

    Those of an ingest are in pipeline order.
    """
    order = {name: place for place, name in enumerate(COUNTS)}
    ordered = sorted(run.counts.items(), key=lambda count: order.get(count[0], len(order)))
    return flattened({name: value for name, value in ordered if name not in (SPEED, LEFT_OUT)})


def ignored_kinds(counts: Mapping[str, Any]) -> list[Row]:
    """Return the ignored files of a run by kind, most first.

    >>> ignored_kinds({"left_out": {"kinds": {"hidden": {".git": 1}, "not_an_image": {".ogg": 1200}}}})
    [['not an image', '.ogg', '1,200'], ['hidden', '.git', '1']]
    """
    kinds = counts.get(LEFT_OUT, {}).get("kinds", {})
    found = [(reason, kind, many) for reason, each in kinds.items() for kind, many in each.items()]
    found.sort(key=lambda one: -one[2])
    rows: list[Row] = [[reason.replace("_", " "), kind, f"{many:,}"] for reason, kind, many in found]
    rest = sum(many for _, _, many in found[MAX_KINDS:])
    return [*rows[:MAX_KINDS], *([["others", "", f"{rest:,}"]] if rest else [])]


def _counts(run: Run) -> None:
    with ui.element("section").classes("sl-sheet"):
        heading("Counts")
        found = counted(run)
        if found:
            table(
                ("", ""), [[name.replace("_", " "), option_text(value)] for name, value in found], numbers=1
            )
        else:
            ui.label("None.").classes("sl-faint")


def _ignored(run: Run) -> None:
    found = ignored_kinds(run.counts)
    if not found:
        return
    with ui.element("section").classes("sl-sheet"):
        heading("Ignored files and fields")
        table(("reason", "kind", "count"), found, numbers=1)
        ui.label("`sightline rejects --ignored` names the first of the last ingest.").classes("sl-faint")


def _stages(run: Run) -> None:
    taken = stages_of(run)
    if not taken:
        return
    whole, speed = sum(seconds for _, seconds in taken), run.counts.get(SPEED, {})
    busy = speed.get("busy", {})
    with ui.element("section").classes("sl-sheet"):
        heading("Seconds per stage")
        bar(taken)
        legend(taken)
        rows = [
            [name, duration(seconds), share(seconds / whole), share(busy.get(name))]
            for name, seconds in taken
        ]
        table(("stage", "time", "share of all stages", "share of the run"), rows, numbers=3)
        ui.label("Stages run concurrently: their sum may exceed the duration of the run.").classes("sl-faint")
        if "advice" in speed:
            ui.label(f"{speed['advice']}; {speed['peak_mib']:,.0f} MiB of memory at the peak.")
