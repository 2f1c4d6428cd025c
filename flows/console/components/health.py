"""Say whether all is well, or name the first problem."""

from dataclasses import dataclass
from datetime import datetime

from nicegui import ui

from flows.console.components.run_card import title_of
from flows.console.format import ago, duration, share
from flows.service.observer import Observation
from flows.tracking.text import count_of

STALE_S = 3600
LITTLE_DISK = 0.1
UNWELL, REMARK = "sl-bad", "sl-warn"


@dataclass(frozen=True, slots=True)
class Finding:
    """Represent one thing that is not as it should be."""

    text: str
    kind: str
    address: str


def findings(seen: Observation, now: datetime) -> list[Finding]:
    """Return the findings of an observation, the worst first."""
    found = [
        Finding(f"{name} is unavailable", UNWELL, "/integrity")
        for name, trouble in (("Postgres", seen.postgres_problem), ("Qdrant", seen.qdrant_problem))
        if trouble is not None
    ]
    free = seen.disk_free_bytes / seen.disk_bytes
    if free < LITTLE_DISK:
        found.append(Finding(f"only {share(free)} of the disk is free", UNWELL, "/runs?flow=purge"))
    catalog = seen.catalog
    if catalog is None:
        return found
    for run in catalog.failed:
        text = f"{title_of(run)} {run.outcome} {ago(run.ended, now)}"
        found.append(Finding(text, UNWELL, f"/runs/{run.id}"))
    if catalog.figures.pending:
        age_s = catalog.figures.age_s(now)
        waits = f"{count_of(catalog.figures.pending, 'record')} pending for {duration(age_s)}"
        kind = UNWELL if age_s > STALE_S else REMARK
        found.append(Finding(waits, kind, "/runs?flow=ingest"))
    if catalog.open_rejects:
        rejects = f"{count_of(catalog.open_rejects, 'record')} rejected"
        found.append(Finding(rejects, REMARK, "/rejects"))
    return sorted(found, key=lambda one: one.kind != UNWELL)


def show_health(seen: Observation, now: datetime) -> None:
    """Show whether all is well, with a link to the first finding."""
    found = findings(seen, now)
    is_unwell = bool(found) and found[0].kind == UNWELL
    with ui.element("div").classes("sl-row sl-health").props("role=status"):
        if not found:
            is_empty = seen.catalog is not None and not seen.catalog.figures.items
            text = (
                "Nothing has been ingested yet. Begin with: sightline ingest FOLDER"
                if is_empty
                else "All is well."
            )
            ui.label(text).classes("sl-strong" + ("" if is_empty else " sl-good"))
            return
        ui.label("Not all is well:" if is_unwell else "All is well, apart from").classes(
            f"sl-strong {'sl-bad' if is_unwell else 'sl-good'}"
        )
        ui.link(found[0].text, found[0].address)
        if len(found) > 1:
            ui.label(f"and {len(found) - 1} more: {', '.join(one.text for one in found[1:])}").classes(
                "sl-faint"
            )
