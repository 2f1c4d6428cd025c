"""Keeping what is stored in step with what should be: deletes that leave nothing behind."""

from collections.abc import Sequence
from uuid import UUID

from flows.deps import Deps
from storage import catalog, index

DELETE_BATCH = 500


def delete_missing(deps: Deps, source: str, run_id: UUID) -> int:
    """Delete the items of `source` that the run, which read all of it, has not met; return how many."""
    deleted = 0
    while True:
        with deps.sessions.begin() as session:
            ids = catalog.missing_from_run(session, source, run_id, DELETE_BATCH)
            catalog.tombstone(session, ids)
        if not ids:
            return deleted
        remove_points_and_blobs(deps, ids)
        deleted += len(ids)


def finish_deletes(deps: Deps, source: str) -> None:
    """Take up deletes that an earlier run began: items with a tombstone whose points may still be there."""
    while True:
        with deps.sessions() as session:
            ids = catalog.deleted_with_marks(session, source, DELETE_BATCH)
        if not ids:
            return
        remove_points_and_blobs(deps, ids)


def remove_points_and_blobs(deps: Deps, ids: Sequence[UUID]) -> None:
    """Remove what deleted items leave: points, blobs that no living item shares, then the marks.

    The marks go last, so that a crash leaves a list of what is still to be done.
    """
    index.delete(deps.vectors, ids)
    with deps.sessions.begin() as session:
        catalog.lock_blobs(session, alone=True)
        for sha256 in catalog.unreferenced_blobs(session, ids):
            if deps.blobs is not None:
                deps.blobs.delete(sha256)
        catalog.drop_marks(session, ids)
