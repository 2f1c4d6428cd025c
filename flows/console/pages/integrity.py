"""Show whether Postgres and Qdrant agree, and repair differences."""

from asyncio import gather, to_thread
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from nicegui import ui
from starlette.requests import Request

from flows.console.components.active_runs import ActiveRuns
from flows.console.components.consistency import (
    MEANINGS,
    NOUNS,
    Collections,
    CollectionState,
    Comparisons,
    Verdict,
    findings_text,
    kind_name,
    read_collections,
    read_comparisons,
    repair_text,
    verdict_of,
)
from flows.console.components.flow_controls import start_if_idle
from flows.console.components.run_snapshot import RunSnapshot, RunWatcher, name_of
from flows.console.components.stage_bar import duration_s
from flows.console.context import ConsoleContext
from flows.console.format import ago, duration
from flows.console.keyed_list import Child, KeyedList, box
from flows.console.layout import PATIENCE_S, frame
from flows.console.widgets import Row, heading, hidden_title, note, outcome, problem, table
from flows.tracking.text import count_of
from storage.postgres.runs import Run
from storage.postgres.statistics import Figures

REFRESH_S = 3.0
OWN = ("reconcile", "repair")


def add_page(context: ConsoleContext) -> None:
    """Add the page at `/integrity`."""
    watch = RunWatcher(context)

    @ui.page("/integrity", response_timeout=PATIENCE_S)
    async def integrity(request: Request) -> None:
        comparisons, collections = await gather(
            to_thread(read_comparisons, context), to_thread(read_collections, context)
        )
        with frame(context, request, "Integrity"):
            hidden_title("Integrity")
            Page(context, watch, comparisons, collections)


class Page:
    """Show the page, updated in place while a comparison runs."""

    def __init__(
        self, context: ConsoleContext, watch: RunWatcher, comparisons: Comparisons, collections: Collections
    ) -> None:
        self._context, self._watch = context, watch
        self._comparisons, self._collections = comparisons, collections
        with ui.element("div").classes("sl-column") as self._where:
            self._problems = KeyedList[str](ui.element("div").classes("sl-column"))
            with ui.element("div").classes("sl-sheet") as self._sheet, ui.element("div").classes("sl-row"):
                self._verdict = ui.label().props("role=status")
                self._repair = ui.button("Repair…", on_click=self._confirm_repair).props("unelevated no-caps")
                self._compare_now = ui.button("Compare now", on_click=self._compare)
                self._compare_now.props("outline no-caps")
            self._live = ActiveRuns(context, watch, OWN)
            self._findings = KeyedList[str](ui.element("div").classes("sl-column"))
            self._rest = KeyedList[str](ui.element("div").classes("sl-column"))
        self._show(context.observer.latest.at)
        ui.timer(REFRESH_S, self._refresh)

    async def _refresh(self) -> None:
        snapshot = await self._watch.read()
        self._show_live(snapshot)
        before, self._comparisons = self._comparisons, await to_thread(read_comparisons, self._context)
        if before != self._comparisons or self._collections.problem is not None:
            self._collections = await to_thread(read_collections, self._context)
        self._show(snapshot.at)

    def _show_live(self, snapshot: RunSnapshot) -> None:
        self._live.show(snapshot)
        is_idle = not any(snapshot.is_active(flow) for flow in OWN)
        self._compare_now.set_enabled(is_idle)
        self._repair.set_enabled(is_idle)

    def _show(self, now: datetime) -> None:
        verdict = verdict_of(self._comparisons.runs)
        differ = tuple(verdict.differences.items())
        remarks = remarks_on(self._collections.states)
        self._verdict.text = verdict_text(verdict, now, remarks)
        kind = "" if verdict.last is None or differ else " sl-warn" if remarks else " sl-good"
        self._verdict.classes(replace=f"sl-strong sl-grow{kind}")
        self._sheet.classes(replace="sl-sheet" + (" sl-problem" if differ else ""))
        self._sheet.visible = self._comparisons.problem is None
        self._repair.visible = bool(differ)
        problems = sorted({one for one in (self._comparisons.problem, self._collections.problem) if one})
        self._problems.show([(one, None, partial(box, problem, one)) for one in problems])
        findings: list[Child[str]] = []
        if verdict.problem is not None:
            findings.append(("problem", verdict.problem, partial(box, problem, verdict.problem)))
        if differ:
            findings.append(("differences", differ, partial(_differences, differ)))
        catalogued = self._context.observer.latest.catalog
        if catalogued is not None and catalogued.figures.pending:
            behind = pending_text(catalogued.figures, now)
            findings.append(("behind", behind, partial(box, note, behind)))
        self._findings.show(findings)
        ended = tuple(run for run in self._comparisons.runs if run.ended is not None)
        collections = self._collections.states
        self._rest.show(
            [
                ("collections", collections, partial(_collections, collections)),
                ("comparisons", tuple((run.id, run.outcome) for run in ended), partial(_history, ended)),
            ]
        )

    async def _compare(self) -> None:
        with self._where:
            if await start_if_idle(self._context, self._watch, "reconcile", None):
                self._show_live(await self._watch.refresh())

    async def _confirm_repair(self) -> None:
        differences = verdict_of(self._comparisons.runs).differences
        points = sum(one.points or 0 for one in self._collections.states)
        with self._where:
            if await start_if_idle(self._context, self._watch, "repair", repair_text(differences, points)):
                self._show_live(await self._watch.refresh())


def remarks_on(collections: Sequence[CollectionState]) -> list[str]:
    """Return the inconsistencies of the searched and the active collection."""
    return [
        f"{one.name}: {one.remark}"
        for one in collections
        if one.remark and (one.is_searched or one.state == "active")
    ]


def verdict_text(verdict: Verdict, now: datetime, remarks: Sequence[str] = ()) -> str:
    """Return whether the stores agree, as of the last comparison.

    Args:
        remarks: inconsistencies seen now, which the last comparison may be too old to have.
    """
    if verdict.last is None:
        return "Postgres and Qdrant have not been compared yet."
    when = ago(verdict.last.ended, now)
    if verdict.differences:
        return (
            f"Postgres and Qdrant differ, as of {when}. Postgres is authoritative; a repair corrects Qdrant."
        )
    if remarks:
        return f"No differences {when}, but since then {'; '.join(remarks)}. Compare again to find out why."
    return f"Postgres and Qdrant agree. Compared {when}, in {duration(duration_s(verdict.last, now))}."


def pending_text(waiting: Figures, now: datetime) -> str:
    """Return how far the index lags behind.

    >>> pending_text(Figures(9, 2, 0, datetime(2026, 1, 1, 11), None), datetime(2026, 1, 1, 12))
    'The index is behind: 2 records wait for the next ingest, the oldest for 1 h.'
    """
    wait = "waits" if waiting.pending == 1 else "wait"
    oldest = duration(waiting.age_s(now))
    return (
        f"The index is behind: {count_of(waiting.pending, 'record')} {wait} for the next ingest, the oldest "
        f"for {oldest}."
    )


def _differences(differ: Sequence[tuple[str, int]]) -> ui.element:
    with ui.element("section").classes("sl-sheet") as sheet:
        heading("Differences")
        rows = [[kind_name(kind), count_of(number, NOUNS[kind]), MEANINGS[kind]] for kind, number in differ]
        table(("kind", "count", "meaning"), rows)
        ui.label("For a list, run: sightline reconcile").classes("sl-faint")
    return sheet


def _collections(collections: Sequence[CollectionState]) -> ui.element:
    with ui.element("section").classes("sl-sheet") as sheet:
        heading("Collections")
        if not collections:
            ui.label("None yet; the first ingest creates one.").classes("sl-faint")
            return sheet
        rows: list[Row] = [
            [
                one.name,
                one.state or "unknown",
                "yes" if one.is_searched else "no",
                partial(_remark, one.remark),
                f"{one.expected:,}",
                "–" if one.points is None else f"{one.points:,}",
            ]
            for one in collections
        ]
        table(
            ("collection", "state", "searched", "", "points in Postgres", "points in Qdrant"), rows, numbers=2
        )
    return sheet


def _remark(remark: str) -> None:
    ui.label(remark).classes("sl-warn")


def _history(comparisons: Sequence[Run]) -> ui.element:
    with ui.element("section").classes("sl-sheet") as sheet:
        heading("Last comparisons")
        if not comparisons:
            ui.label("None yet.").classes("sl-faint")
            return sheet
        rows: list[Row] = [
            [
                partial(ui.link, f"{run.started:%d %b %Y %H:%M:%S}", f"/runs/{run.id}"),
                "repair" if name_of(run) == "repair" else "comparison",
                partial(outcome, run.outcome),
                findings_text(run),
                duration(run.took_s),
            ]
            for run in comparisons
        ]
        table(("started, UTC", "", "outcome", "found", "duration"), rows, numbers=1)
        ui.link("All comparisons", "/runs?flow=reconcile").classes("sl-faint")
    return sheet
