"""What a person has the schedules' processes do, a plain function each. Knows no Prefect."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from flows.config.settings import Settings
from flows.evaluation import promotion_gate
from flows.ingestion.retry_rejects import retry_rejects
from flows.maintenance.repair import MAX_DELETE
from flows.maintenance.repair import repair as mend
from flows.orchestration.scheduled_jobs import Counts, StoresDiffer
from flows.reindexing.reindex import Order, free_disk
from flows.reindexing.reindex import reindex as switch_to
from flows.reindexing.reindex import rollback as switch_back
from flows.resources.comparison import damage_of
from flows.resources.connections import open_deps, open_stores
from storage.errors import SightlineError


class NotAllTried(SightlineError):
    """Some sources of rejects could not be read again."""


def promote(settings: Settings, prefect_run_id: UUID | None, *, model: str, force: bool) -> Counts:
    """Decide whether searches may use a candidate; see `flows.evaluation.promotion_gate.promote`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        decision = promotion_gate.promote(stores, settings, model, force=force, prefect_run_id=prefect_run_id)
    return {"candidate": decision.candidate, "promoted": decision.promoted, "forced": decision.forced}


def reindex(settings: Settings, prefect_run_id: UUID | None, *, model: str, force: bool) -> Counts:
    """Have searches go to a model; see `flows.reindexing.reindex.reindex`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        order = Order(model, force)
        free = free_disk(settings)
        return switch_to(stores, settings, order, free_bytes=free, prefect_run_id=prefect_run_id).as_json()


def rollback(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Have searches go back; see `flows.reindexing.reindex.rollback`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        return switch_back(stores, settings, prefect_run_id=prefect_run_id).as_json()


def repair(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Mend what differs; see `flows.maintenance.repair.repair`.

    Raises:
        StoresDiffer: not all of it could be mended.
    """
    with open_deps(settings, wait_s=settings.retry_for_s) as deps:
        mended = mend(
            deps,
            settings,
            max_delete=MAX_DELETE,
            yes=False,
            prefect_run_id=prefect_run_id,
        )
    if mended.after.damage:
        raise StoresDiffer("; ".join([damage_of(mended.after), *mended.unmended]))
    return {"before": dict(mended.before.counts), "rounds": mended.rounds}


def retry(
    settings: Settings,
    prefect_run_id: UUID | None,
    *,
    reason: str | None,
    source: str | None,
    rejects: Collection[UUID] | None,
) -> dict[str, Any]:
    """Try rejects again; see `flows.ingestion.retry_rejects.retry_rejects`.

    Raises:
        NotAllTried: why some of them could not be.
    """
    with open_deps(settings, wait_s=settings.retry_for_s) as deps:
        done = retry_rejects(
            deps,
            settings,
            reason=reason,
            source=source,
            ids=rejects,
            prefect_run_id=prefect_run_id,
        )
    problems = [f"{one.source}: {one.problem}" for one in done if one.problem]
    if problems:
        raise NotAllTried("; ".join(problems))
    return {"tried": sum(one.tried for one in done), "open": sum(one.open for one in done)}
