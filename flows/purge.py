"""Removing what nothing refers to any more."""

import shutil
from dataclasses import asdict, dataclass
from typing import Any

from flows.backup import left_scratch
from flows.deps import Stores
from flows.maintain import finish_deletes
from flows.settings import Settings
from storage import catalog, index, registry
from storage.blobs import PREFIXES
from storage.locks import lone_lock, reindex_lock


class TooManyOrphans(RuntimeError):
    """A purge would remove more than the limit allows; nothing was removed."""


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge removed, or would remove."""

    pictures: int
    """All that were kept before."""

    orphans: int
    """Those that no living item has."""

    unfinished: int
    """Files and scratch folders that a crash left behind."""

    collections: tuple[str, ...]
    """Those that searches no longer use, or never did."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"collections": list(self.collections)}


def purge(stores: Stores, settings: Settings, *, max_delete: float, yes: bool, dry_run: bool) -> Purged:
    """Remove pictures that no living item has, what a crash left half-written, and disused collections.

    Args:
        max_delete: the share of all pictures that may be removed, in [0, 1].
        yes: remove however many there are.

    Raises:
        TooManyOrphans: more would go.
        Busy: another process writes.
    """
    home = settings.home
    with reindex_lock(stores.engine), lone_lock(stores.engine) as lock:
        found = _count(stores, settings)
        if dry_run:
            return found
        if found.orphans > max_delete * found.pictures and not yes:
            raise TooManyOrphans(
                f"a purge would remove {found.orphans:,} of {found.pictures:,} pictures, more than "
                f"{max_delete:.0%}; is this the right database? Nothing was removed; --yes removes them, "
                "--max-delete sets the limit"
            )
        for _ in finish_deletes(stores, None):
            lock.keep()
        for name in found.collections:
            lock.keep()
            _drop(stores, name)
        for folder in left_scratch(home):
            shutil.rmtree(folder)
        if stores.blobs is not None:
            for prefix in PREFIXES:
                lock.keep()
                for sha256 in sorted(_orphans(stores, stores.blobs.names(prefix))):
                    stores.blobs.delete(sha256)
                stores.blobs.remove_unfinished(prefix)
    return found


def _drop(stores: Stores, collection: str) -> None:
    stores.vectors.delete_collection(collection)
    with stores.sessions.begin() as session:
        registry.forget_collection(session, collection)


def _count(stores: Stores, settings: Settings) -> Purged:
    pictures = orphans = 0
    unfinished = len(left_scratch(settings.home))
    with stores.sessions() as session:
        collections = registry.disused(session, settings.keep_retired_days)
    searched = index.active(stores.vectors)
    if stores.blobs is not None:
        for prefix in PREFIXES:
            names = stores.blobs.names(prefix)
            pictures += len(names)
            orphans += len(_orphans(stores, names))
            unfinished += len(stores.blobs.unfinished(prefix))
    dropped = tuple(name for name in collections if searched is None or name != searched.name)
    return Purged(pictures, orphans, unfinished, dropped)


def _orphans(stores: Stores, names: set[str]) -> set[str]:
    if not names:
        return set()
    with stores.sessions() as session:
        return names - catalog.referenced(session, sorted(names))
