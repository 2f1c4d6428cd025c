"""Remove images, collections and files without references."""

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
"""Default limit, as a share of all images: more at once is more often a mistake than intended."""


class TooManyOrphans(Conflict):
    """A purge would remove more than the limit allows; nothing was removed."""


@dataclass(frozen=True, slots=True)
class PurgeResult:
    """Count the removed objects, or those of a dry run."""

    pictures: int
    """Stored images before the purge."""

    orphans: int
    """Images without a living item."""

    unfinished: int
    """Partial files and scratch folders of crashed processes."""

    collections: tuple[str, ...]
    """Collections that are not searched any more, or never were."""

    receipts: int = 0
    """Old receipts of API requests."""

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
    """Remove orphaned images, partial files, disused collections and old receipts.

    Args:
        max_delete: share of all images that may be removed, in [0, 1].
        yes: whether any number may be removed.

    Raises:
        TooManyOrphans: more would be removed; nothing was.
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
            _require_few_orphans(found, max_delete, yes=yes)
            _remove(stores, settings, found, own.lock)
    return found


def _require_few_orphans(found: PurgeResult, max_delete: float, *, yes: bool) -> None:
    if found.orphans > max_delete * found.pictures and not yes:
        raise TooManyOrphans(
            f"a purge would remove {found.orphans:,} of {found.pictures:,} images, more than "
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
