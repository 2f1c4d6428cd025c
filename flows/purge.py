"""Removing what nothing refers to any more."""

from dataclasses import asdict, dataclass
from typing import Any

from flows.deps import Stores
from flows.maintain import finish_deletes
from storage import catalog
from storage.blobs import PREFIXES, Blobs
from storage.locks import lone_lock


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
    """Files that a crash left half-written."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def purge(stores: Stores, *, max_delete: float, yes: bool, dry_run: bool) -> Purged:
    """Remove pictures that no living item has, and files that a crash left half-written.

    Args:
        max_delete: the share of all pictures that may be removed, in [0, 1].
        yes: remove however many there are.

    Raises:
        TooManyOrphans: more would go.
        Busy: another process writes.
    """
    if stores.blobs is None:
        return Purged(0, 0, 0)
    with lone_lock(stores.engine) as lock:
        found = _count(stores, stores.blobs)
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
        for prefix in PREFIXES:
            lock.keep()
            for sha256 in sorted(_orphans(stores, stores.blobs.names(prefix))):
                stores.blobs.delete(sha256)
            stores.blobs.remove_unfinished(prefix)
    return found


def _count(stores: Stores, blobs: Blobs) -> Purged:
    pictures = orphans = unfinished = 0
    for prefix in PREFIXES:
        names = blobs.names(prefix)
        pictures += len(names)
        orphans += len(_orphans(stores, names))
        unfinished += len(blobs.unfinished(prefix))
    return Purged(pictures, orphans, unfinished)


def _orphans(stores: Stores, names: set[str]) -> set[str]:
    if not names:
        return set()
    with stores.sessions() as session:
        return names - catalog.referenced(session, sorted(names))
