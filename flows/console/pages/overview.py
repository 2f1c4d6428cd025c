"""Show the overview: freshness, availability of the stores, and failed flows."""

from datetime import UTC, datetime
from functools import partial

from nicegui import ui
from starlette.requests import Request

from flows.console.components.acknowledge import acknowledge_button
from flows.console.components.health import LITTLE_DISK, STALE_S, show_health
from flows.console.components.run_card import title_of
from flows.console.components.stage_bar import records_per_second
from flows.console.context import ConsoleContext
from flows.console.format import ago, duration, share
from flows.console.layout import PATIENCE_S, frame
from flows.console.widgets import Row, heading, hidden_title, outcome, problem, table, tile
from flows.service.observer import CatalogStatus, Observation
from flows.tracking.text import count_of
from storage.postgres.runs import Run
from storage.postgres.statistics import HEADLINE, Day

REFRESH_S = 5.0
INGESTS = "/runs?flow=ingest"


def add_page(context: ConsoleContext) -> None:
    """Add the page at `/`."""

    @ui.page("/", response_timeout=PATIENCE_S)
    async def overview(request: Request) -> None:
        await context.first_observation()
        with frame(context, request, "Overview"):
            hidden_title("Overview")
            shown = ui.refreshable(lambda: show(context, context.observer.latest, datetime.now(UTC)))
            shown()
            ui.timer(REFRESH_S, shown.refresh)


def show(context: ConsoleContext, seen: Observation, now: datetime) -> None:
    """Show an observation."""
    show_health(seen, now)
    for sentence in (seen.postgres_problem, seen.qdrant_problem):
        if sentence is not None:
            problem(sentence)
    with ui.element("div").classes("sl-tiles"):
        if seen.catalog is not None:
            _records(seen.catalog, seen.at)
        _stores(seen)
    if seen.catalog is not None:
        if seen.catalog.failed:
            _failed(context, seen.catalog.failed, now)
        with ui.element("div").classes("sl-two"):
            _last_runs(seen.catalog.last_runs, now)
            _searches(seen, seen.catalog)
        _trend(seen.catalog.days)
    ui.label(f"As of {ago(seen.at, now)}.").classes("sl-faint")


def _records(catalogued: CatalogStatus, at: datetime) -> None:
    figures = catalogued.figures
    tile("Records", f"{figures.items:,}", to="/search")
    tile(
        "Searchable",
        f"{figures.searchable:,}",
        share(figures.searchable / figures.items if figures.items else 1),
        to="/search",
    )
    tile("Pending", f"{figures.pending:,}", kind="sl-warn" if figures.pending else "", to=INGESTS)
    if figures.waiting_since is None or figures.newest_waiting is None:
        tile("Freshness", "fresh", "nothing pending", "sl-good", INGESTS)
    else:
        newest = duration((at - figures.newest_waiting).total_seconds())
        kind = "sl-bad" if figures.age_s(at) > STALE_S else "sl-warn"
        tile("Freshness", duration(figures.age_s(at)), f"oldest pending; newest {newest}", kind, INGESTS)
    tile(
        "Rejected",
        f"{catalogued.open_rejects:,}",
        kind="sl-warn" if catalogued.open_rejects else "",
        to="/rejects",
    )
    tile("Deleted", f"{figures.deleted:,}", to="/runs?flow=delete")


def _stores(seen: Observation) -> None:
    for name, trouble in (("Postgres", seen.postgres_problem), ("Qdrant", seen.qdrant_problem)):
        points = "" if seen.index is None or name == "Postgres" else count_of(seen.index.points, "point")
        tile(name, "down" if trouble else "up", points, "sl-bad" if trouble else "sl-good", "/integrity")
    free = seen.disk_free_bytes / seen.disk_bytes
    tile(
        "Disk",
        f"{seen.disk_free_bytes / 2**30:,.0f} GiB",
        f"{share(free)} free",
        "sl-bad" if free < LITTLE_DISK else "",
        "/runs?flow=purge",
    )


def _failed(context: ConsoleContext, failed: tuple[Run, ...], now: datetime) -> None:
    with ui.element("section").classes("sl-sheet sl-problem"):
        heading("Failed")
        rows: list[Row] = [
            [
                partial(ui.link, title_of(run), f"/runs/{run.id}"),
                ago(run.ended, now),
                run.error or run.outcome,
                partial(acknowledge_button, context, run),
            ]
            for run in failed
        ]
        table(("flow", "ended", "error", ""), rows)


def _last_runs(last_runs: tuple[Run, ...], now: datetime) -> None:
    with ui.element("section").classes("sl-sheet"):
        heading("Last run of each flow")
        if not last_runs:
            ui.label("Nothing has run yet. Begin with: sightline ingest FOLDER").classes("sl-faint")
            return
        rows: list[Row] = [
            [
                partial(ui.link, run.flow, f"/runs/{run.id}"),
                partial(outcome, run.outcome),
                ago(run.started, now),
                duration(run.took_s),
                records_per_second(run, now),
            ]
            for run in last_runs
        ]
        table(("flow", "outcome", "started", "duration", "records/s"), rows, numbers=2)
        ui.link("All runs", "/runs").classes("sl-faint")


def _searches(seen: Observation, catalogued: CatalogStatus) -> None:
    with ui.element("section").classes("sl-sheet"):
        heading("Active collection")
        collection = None if seen.index is None else seen.index.collection
        if collection is None:
            ui.label("No collection is active yet; the first ingest creates one.").classes("sl-faint")
            return
        rows: list[Row] = [
            ["model", partial(ui.link, collection.model, "/models")],
            ["fingerprint", collection.fingerprint[:12]],
            ["collection", partial(ui.link, collection.name, "/integrity")],
        ]
        for one in catalogued.evaluation:
            if one.metric == HEADLINE:
                interval = "" if one.low is None else f" ({share(one.low)} to {share(one.high)})"
                rows.append(
                    [f"{HEADLINE}, {one.direction.replace('_', ' ')}", f"{share(one.value)}{interval}"]
                )
        table(("", ""), rows)


def _trend(days: tuple[Day, ...]) -> None:
    """Draw the last days: throughput, rejects, recall."""
    with ui.element("section").classes("sl-sheet"):
        heading("Last 30 days")
        with ui.element("div").classes("sl-two"):
            _chart("Records read", days, [day.read for day in days], "bar")
            _chart("Records per second", days, [_rounded(day.records_a_second, 1) for day in days], "line")
            _chart("Rejected", days, [day.rejected for day in days], "bar")
            _chart("Recall@10", days, [_rounded(day.recall, 3) for day in days], "line", most=1)


def _chart(
    name: str, days: tuple[Day, ...], values: list[float | None], kind: str, most: float | None = None
) -> None:
    series = {
        "type": kind,
        "name": name,
        "data": values,
        "connectNulls": True,
        "symbolSize": 7,
        "color": "#5b8def",
    }
    grey = {"color": "#8a94a0"}
    ui.echart(
        {
            "title": {"text": name, "textStyle": {"fontSize": 13, "fontWeight": 550, **grey}},
            "tooltip": {"trigger": "axis"},
            "grid": {"left": 48, "right": 12, "top": 36, "bottom": 24},
            "xAxis": {"type": "category", "data": [f"{day.day:%d %b}" for day in days], "axisLabel": grey},
            "yAxis": {
                "type": "value",
                "min": 0,
                "max": most,
                **({"interval": most / 4} if most else {}),
                **({"minInterval": 1} if kind == "bar" else {}),  # counts are whole numbers
                "axisLabel": grey,
                "splitNumber": 3,
                "splitLine": {"lineStyle": {"color": "#8a94a033"}},
            },
            "series": [series],
            "animation": False,
        }
    ).style("height: 11rem; width: 100%").props(f'role=img aria-label="{name}, last 30 days"')


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
