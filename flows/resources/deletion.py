"""Remove deleted items from every store; safe to interrupt and to repeat."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from flows.resources.connections import Stores
from storage import qdrant
from storage.postgres import catalog, runs
from storage.records import Item

DELETE_BATCH = 500


ImageFate = Literal["removed", "kept for another item", "never kept"]


@dataclass(frozen=True, slots=True)
class DeletedItem:
    """Report the data that was removed with one item."""

    id: UUID
    source: str
    key: str
    collections: tuple[str, ...]
    """Names of the collections that had a point of it."""

    marks: int
    image: ImageFate | None
    """What happened to the bytes of its image; None without an image."""

    def as_json(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "source": self.source,
            "key": self.key,
            "points_removed_from": list(self.collections),
            "marks_removed": self.marks,
            "picture": self.image,
        }


def delete_missing(stores: Stores, source: str, run_id: UUID) -> Iterator[int]:
    """Delete the items of `source` that the run did not read.

    The run must have read all of its source. Yields the number of items deleted, batch by batch.

    Raises:
        RunClosed: another run has declared this one dead.
    """
    while True:
        with stores.sessions.begin() as session:
            runs.require_running(session, run_id)
            ids = catalog.missing_from_run(session, source, run_id, DELETE_BATCH)
            catalog.tombstone(session, ids, asked=False)
        if not ids:
            return
        clear_deleted(stores, ids)
        yield len(ids)


def finish_deletes(stores: Stores, source: str | None) -> Iterator[list[DeletedItem]]:
    """Finish interrupted deletes of `source`, or of all sources, batch by batch."""
    while True:
        with stores.sessions() as session:
            ids = catalog.uncleared(session, source, DELETE_BATCH)
        if not ids:
            return
        yield clear_deleted(stores, ids)


def clear_deleted(stores: Stores, ids: Sequence[UUID]) -> list[DeletedItem]:
    """Remove points, unshared blobs, embedding states and content of deleted items.

    The items are recorded as cleared last, so that a crash leaves a list of the remaining work.
    """
    points = qdrant.delete_everywhere(stores.vectors, ids)
    with stores.sessions.begin() as session:
        catalog.lock_blobs(session, exclusive=True)
        items = catalog.tombstones(session, ids)
        alone = set(catalog.unreferenced_blobs(session, ids))
        if stores.blobs is not None:
            for sha256 in sorted(alone):
                stores.blobs.delete(sha256)
        marks = catalog.clear(session, ids)
    deleted = []
    for id, item in sorted(items.items()):
        image = _fate(item, alone, kept=stores.blobs is not None)
        deleted.append(
            DeletedItem(id, item.source, item.key, tuple(points.get(id, ())), marks.get(id, 0), image)
        )
    return deleted


def _fate(item: Item, alone: Collection[str], *, kept: bool) -> ImageFate | None:
    if item.image is None:
        return None
    if not kept:
        return "never kept"
    return "removed" if item.image.sha256 in alone else "kept for another item"
