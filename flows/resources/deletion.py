"""Deletes that leave nothing behind, whoever asks for them, and however often they are interrupted."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from flows.ingestion.source_batches import Run
from flows.resources.connections import Stores
from storage import qdrant
from storage.postgres import catalog, runs
from storage.records import Item

DELETE_BATCH = 500


PictureFate = Literal["removed", "kept for another item", "never kept"]


@dataclass(frozen=True, slots=True)
class Gone:
    """What became of all that one deleted item had."""

    id: UUID
    source: str
    key: str
    collections: tuple[str, ...]
    """Where it had a point."""

    marks: int
    picture: PictureFate | None
    """What became of its image's bytes; None without an image."""

    def as_json(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "source": self.source,
            "key": self.key,
            "points_removed_from": list(self.collections),
            "marks_removed": self.marks,
            "picture": self.picture,
        }


def delete_missing(stores: Stores, run: Run) -> Iterator[int]:
    """Delete what the run, which read all of its source, has not met; yield how many, batch by batch."""
    while True:
        with stores.sessions.begin() as session:
            runs.require_running(session, run.id)
            ids = catalog.missing_from_run(session, run.source, run.id, DELETE_BATCH)
            catalog.tombstone(session, ids, asked=False)
        if not ids:
            return
        clear_deleted(stores, ids)
        yield len(ids)


def finish_deletes(stores: Stores, source: str | None) -> Iterator[list[Gone]]:
    """Take up deletes that were interrupted, of `source` or of all; yield what went, batch by batch."""
    while True:
        with stores.sessions() as session:
            ids = catalog.uncleared(session, source, DELETE_BATCH)
        if not ids:
            return
        yield clear_deleted(stores, ids)


def clear_deleted(stores: Stores, ids: Sequence[UUID]) -> list[Gone]:
    """Remove all that deleted items leave: points, blobs that no living item shares, marks, their content.

    That they are cleared is written last, so that a crash leaves a list of what is still to be done.
    """
    points = qdrant.delete(stores.vectors, ids)
    with stores.sessions.begin() as session:
        catalog.lock_blobs(session, alone=True)
        items = catalog.tombstones(session, ids)
        alone = set(catalog.unreferenced_blobs(session, ids))
        if stores.blobs is not None:
            for sha256 in sorted(alone):
                stores.blobs.delete(sha256)
        marks = catalog.clear(session, ids)
    gone = []
    for id, item in sorted(items.items()):
        picture = _fate(item, alone, kept=stores.blobs is not None)
        gone.append(Gone(id, item.source, item.key, tuple(points.get(id, ())), marks.get(id, 0), picture))
    return gone


def _fate(item: Item, alone: Collection[str], *, kept: bool) -> PictureFate | None:
    if item.picture is None:
        return None
    if not kept:
        return "never kept"
    return "removed" if item.picture.sha256 in alone else "kept for another item"
