"""Confirm and start promotions, re-indexes and rollbacks."""

from asyncio import to_thread

from nicegui import ui

from flows.console.context import ConsoleContext
from flows.console.format import duration
from flows.console.widgets import confirm, show_error, start_flow
from flows.service.model_overview import BackfillEstimate, ModelOverview, estimate_backfill
from flows.tracking.text import count_of
from storage.errors import StoreUnavailable
from storage.postgres.model_history import CollectionHistory, ModelHistory
from storage.qdrant import collection_name

FORCE = "Promote it regardless of the comparison; the decision records that"


async def confirm_promotion(context: ConsoleContext, life: ModelHistory, active: ModelHistory) -> None:
    """Run the promotion gate on a model, after confirmation."""
    gate = context.backend.settings.gate
    outside = f", nor on {gate.outside}" if gate.outside is not None else ""
    with ui.dialog() as dialog, ui.card():
        ui.label("Promote this model?").style("font-weight: 650; font-size: 1.1rem")
        ui.label(
            f"{life.name} and {active.name} answer the same queries, on records that neither was trained "
            "on. To pass, its recall@10 must be better: the 95% confidence interval of the gain above "
            f"{gate.margin:.1%}. In no language with {gate.least_queries} queries or more{outside} may it "
            f"fall by over {gate.tolerance:.1%}."
        )
        ui.label("The decision is recorded. Searches stay as they are, until you re-index.")
        force = ui.checkbox(FORCE)
        with ui.row().classes("justify-end w-full"):
            ui.button("Cancel", on_click=lambda: dialog.submit(None)).props("flat autofocus")
            ui.button("Compare and decide", on_click=lambda: dialog.submit(force.value)).props("unelevated")
    forced = await dialog
    dialog.delete()
    if forced is not None:
        await start_flow(context, "promote", model=life.name, force=forced)


async def confirm_reindex(context: ConsoleContext, life: ModelHistory, active: ModelHistory) -> None:
    """Re-index with a promoted model, after confirmation."""
    effort = await _effort(context, life.fingerprint)
    if effort is None:
        return
    consequences = (
        f"{life.name} embeds {_embedded(effort)}. Meanwhile searches go on with {active.name}; they switch "
        "in one step at the end, once the new collection is complete and verified. The old one stays for "
        f"{context.backend.settings.keep_retired_days:g} days, so that you can roll back."
    )
    if await confirm("Re-index with this model?", consequences, "Re-index"):
        await start_flow(context, "reindex", model=life.name)


async def confirm_rollback(
    context: ConsoleContext, seen: ModelOverview, active: ModelHistory, back: CollectionHistory
) -> None:
    """Roll back to the previous collection, after confirmation."""
    effort = await _effort(context, back.fingerprint)
    if effort is None:
        return
    now = next((one.name for one in seen.collections if one.state == "active"), "none")
    consequences = (
        f"Searches move at once from {active.name} (collection {now}) to "
        f"{seen.names.get(back.fingerprint, back.fingerprint)} (collection {back.name}). Then its "
        f"missing records are embedded: {_embedded(effort)}. The collection that they leave stays for "
        f"{context.backend.settings.keep_retired_days:g} days."
    )
    if await confirm("Roll back?", consequences, "Roll back"):
        await start_flow(context, "rollback")


async def _effort(context: ConsoleContext, fingerprint: str) -> BackfillEstimate | None:
    """Return the effort of a backfill; None, with a message, without Postgres."""
    try:
        return await to_thread(read_effort, context, fingerprint)
    except StoreUnavailable as error:
        show_error(error)
        return None


def read_effort(context: ConsoleContext, fingerprint: str) -> BackfillEstimate:
    """Return the effort of the backfill of a model's collection."""
    with context.backend.sessions() as sessions, sessions() as session:
        return estimate_backfill(session, collection_name(fingerprint))


def _embedded(effort: BackfillEstimate) -> str:
    """Format the records to embed, and the estimated time."""
    what = count_of(effort.records, "record")
    if not effort.records:
        return what
    if effort.seconds is None:
        return f"{what}; no run has measured yet how long that takes"
    return f"{what}, in about {duration(effort.seconds)} at the pace of a recent {effort.by}"
