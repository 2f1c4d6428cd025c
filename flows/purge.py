"""Removing what nothing refers to any more."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.backup import left_scratch
from flows.deps import Stores
from flows.maintain import finish_deletes
from storage import catalog
from storage.blobs import PREFIXES
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
    """Files and scratch folders that a crash left behind."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def purge(stores: Stores, home: Path, *, max_delete: float, yes: bool, dry_run: bool) -> Purged:
    """Remove pictures that no living item has, and what a crash left half-written.

    Args:
        home: where backups and restores have their scratch folders.
        max_delete: the share of all pictures that may be removed, in [0, 1].
        yes: remove however many there are.

    Raises:
        TooManyOrphans: more would go.
        Busy: another process writes.
    """
    with lone_lock(stores.engine) as lock:
        found = _count(stores, home)
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
        for folder in left_scratch(home):
            shutil.rmtree(folder)
        if stores.blobs is not None:
            for prefix in PREFIXES:
                lock.keep()
                for sha256 in sorted(_orphans(stores, stores.blobs.names(prefix))):
                    stores.blobs.delete(sha256)
                stores.blobs.remove_unfinished(prefix)
    return found


def _count(stores: Stores, home: Path) -> Purged:
    pictures = orphans = 0
    unfinished = len(left_scratch(home))
    if stores.blobs is not None:
        for prefix in PREFIXES:
            names = stores.blobs.names(prefix)
            pictures += len(names)
            orphans += len(_orphans(stores, names))
            unfinished += len(stores.blobs.unfinished(prefix))
    return Purged(pictures, orphans, unfinished)


def _orphans(stores: Stores, names: set[str]) -> set[str]:
    if not names:
        return set()
    with stores.sessions() as session:
        return names - catalog.referenced(session, sorted(names))
