"""What a person has the schedules' processes do, a plain function each. Knows no Prefect."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from flows import gate, rebuild
from flows.deps import open_deps, open_stores
from flows.reconcile import MAX_DELETE, damage_of
from flows.reconcile import repair as mend
from flows.retry import retry_rejects
from flows.scheduled import Counts, StoresDiffer
from flows.settings import Settings


class NotAllTried(RuntimeError):
    """Some sources of rejects could not be read again."""


def promote(settings: Settings, prefect_run_id: UUID | None, *, model: str, force: bool) -> Counts:
    """Decide whether searches may use a candidate; see `flows.gate.promote`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        decision = gate.promote(stores, settings, model, force=force, prefect_run_id=prefect_run_id)
    return {"candidate": decision.candidate, "promoted": decision.promoted, "forced": decision.forced}


def reindex(settings: Settings, prefect_run_id: UUID | None, *, model: str, force: bool) -> Counts:
    """Have searches go to a model; see `flows.rebuild.reindex`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        order = rebuild.Order(model, force)
        free = rebuild.free_disk(settings)
        return rebuild.reindex(
            stores, settings, order, free_bytes=free, prefect_run_id=prefect_run_id
        ).as_json()


def rollback(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Have searches go back; see `flows.rebuild.rollback`."""
    with open_stores(settings, wait_s=settings.retry_for_s) as stores:
        return rebuild.rollback(stores, settings, prefect_run_id=prefect_run_id).as_json()


def repair(settings: Settings, prefect_run_id: UUID | None) -> Counts:
    """Mend what differs; see `flows.reconcile.repair`.

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
    """Try rejects again; see `flows.retry.retry_rejects`.

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
