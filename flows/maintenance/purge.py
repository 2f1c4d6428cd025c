"""Removing what nothing refers to any more."""

import shutil
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from flows.config.settings import Settings
from flows.maintenance.backup import left_scratch
from flows.resources.connections import Stores
from flows.resources.deletion import finish_deletes
from flows.tracking.retry_policy import hold
from flows.tracking.run_log import tracked_run
from storage import qdrant
from storage.blobs import PREFIXES
from storage.errors import Conflict
from storage.postgres import catalog, model_registry, request_queue
from storage.postgres.locks import Lock, exclusive_lock, flow_lock

USUAL_SHARE = 0.05
"""Of all images: more than that at once is a mistake more often than a wish."""


class TooManyOrphans(Conflict):
    """A purge would remove more than the limit allows; nothing was removed."""


@dataclass(frozen=True, slots=True)
class PurgeResult:
    """What a purge removed, or would remove."""

    pictures: int
    """All that were kept before."""

    orphans: int
    """Those that no living item has."""

    unfinished: int
    """Files and scratch folders that a crash left behind."""

    collections: tuple[str, ...]
    """Those that searches no longer use, or never did."""

    receipts: int = 0
    """Of requests over the API that ended long ago."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"collections": list(self.collections)}


def purge(
    stores: Stores,
    settings: Settings,
    *,
    max_delete: float = USUAL_SHARE,
    yes: bool = False,
    dry_run: bool = False,
    prefect_run_id: UUID | None = None,
) -> PurgeResult:
    """Remove images that no living item has, what a crash left half-written, and disused collections.

    Receipts of the API's requests go as well, once they are old.

    Args:
        max_delete: the share of all images that may be removed, in [0, 1].
        yes: remove however many there are.

    Raises:
        TooManyOrphans: more would go.
        Busy: another process writes.
    """
    with (
        flow_lock(stores.engine, "re-index"),
        hold(exclusive_lock(stores.engine), for_s=settings.retry_for_s) as own,
    ):
        if dry_run:
            return _count(stores, settings)
        with tracked_run(stores.sessions, own, "purge", prefect_run_id=prefect_run_id) as run:
            found = _count(stores, settings)
            run.counts = found.as_json()
            _refuse_many_orphans(found, max_delete, yes=yes)
            _remove(stores, settings, found, own.lock)
    return found


def _refuse_many_orphans(found: PurgeResult, max_delete: float, *, yes: bool) -> None:
    if found.orphans > max_delete * found.pictures and not yes:
        raise TooManyOrphans(
            f"a purge would remove {found.orphans:,} of {found.pictures:,} pictures, more than "
            f"{max_delete:.0%}; is this the right database? Nothing was removed; --yes removes them, "
            "--max-delete sets the limit"
        )


def _remove(stores: Stores, settings: Settings, found: PurgeResult, lock: Lock) -> None:
    for _ in finish_deletes(stores, None):
        lock.ensure()
    for name in found.collections:
        lock.ensure()
        _drop(stores, name)
    for folder in left_scratch(settings.home):
        shutil.rmtree(folder)
    with stores.sessions.begin() as session:
        request_queue.delete_old(session, settings.api.keep_receipts_days)
    if stores.blobs is not None:
        for prefix in PREFIXES:
            lock.ensure()
            for sha256 in sorted(_orphans(stores, stores.blobs.names(prefix))):
                stores.blobs.delete(sha256)
            stores.blobs.remove_unfinished(prefix)


def _drop(stores: Stores, collection: str) -> None:
    stores.vectors.delete_collection(collection)
    with stores.sessions.begin() as session:
        model_registry.forget_collection(session, collection)


def _count(stores: Stores, settings: Settings) -> PurgeResult:
    pictures = orphans = 0
    unfinished = len(left_scratch(settings.home))
    with stores.sessions() as session:
        collections = model_registry.disused(session, settings.keep_retired_days)
        receipts = request_queue.count_old(session, settings.api.keep_receipts_days)
    searched = qdrant.active_collection(stores.vectors)
    if stores.blobs is not None:
        for prefix in PREFIXES:
            names = stores.blobs.names(prefix)
            pictures += len(names)
            orphans += len(_orphans(stores, names))
            unfinished += len(stores.blobs.unfinished(prefix))
    dropped = tuple(name for name in collections if searched is None or name != searched.name)
    return PurgeResult(pictures, orphans, unfinished, dropped, receipts)


def _orphans(stores: Stores, names: set[str]) -> set[str]:
    if not names:
        return set()
    with stores.sessions() as session:
        return names - catalog.referenced_images(session, sorted(names))
