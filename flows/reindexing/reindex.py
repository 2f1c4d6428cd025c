"""Re-index with another model, switch searches to it, and roll back.

Postgres says which items the collection must hold, and the embedding states which it has: an interrupted
re-index resumes. Ingests go on meanwhile, into the active collection, and pass after pass follows them. The
collection is verified beside them; only the last changes are backfilled and verified under the exclusive
lock. Then the alias moves in one step, and the rows that record it are committed.
"""

import shutil
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from uuid import UUID

from embedding.encoders.sentence_encoder import Encoder
from embedding.images.worker_pool import Workers
from flows.config.settings import Settings
from flows.ingestion.backfill import PAUSE_S, Backfill, catch_up, decode_outdated, encode, write
from flows.reindexing.verification import (
    Verification,
    recheck,
    require_recall,
    verify,
    wait_until_optimized,
)
from flows.resources.collections import make_collection
from flows.resources.connections import Stores
from flows.resources.model_loader import Load, open_model
from flows.tracking.progress import Progress, no_progress
from flows.tracking.retry_policy import HeldLock
from flows.tracking.run_log import tracked_run
from storage import qdrant
from storage.errors import Conflict, NotFound, SightlineError
from storage.postgres import catalog, model_registry
from storage.postgres.locks import Busy, Lock, exclusive_lock, flow_lock

BYTES_A_NUMBER = 4
SPARE = 2.5
"""Largest size of a collection, while it is optimized, as a multiple of its bare vectors."""

PAYLOAD_BYTES = 2048


class NotPromoted(Conflict):
    """The promotion gate has not passed the model."""

    refusal = True


class NotEnoughDisk(SightlineError):
    """The new collection does not fit beside the old one."""


class MissingImages(Conflict):
    """Images that the new collection needs are lost."""


class NoPreviousCollection(NotFound):
    """No earlier collection is kept."""

    refusal = True


@dataclass(frozen=True, slots=True)
class ReindexRequest:
    """Name the model of a re-index, and its accepted risks."""

    model: str
    force: bool = False
    """Whether the promotion gate is bypassed."""

    yes: bool = False
    """Whether the disk may run full."""

    max_missing: int = 0
    """Number of items that may be left out because their images are lost."""


@dataclass(frozen=True, slots=True)
class ReindexResult:
    """Name the collection that searches use now, and the one before."""

    collection: str
    model: str
    before: str | None
    written: int
    """Points written."""

    missing: tuple[str, ...]
    """Items left out, each with the reason."""

    recall: float | None
    """Recall of a sample of approximate searches, against exact ones; None without images, or if unknown."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"missing": list(self.missing)}


def reindex(
    stores: Stores,
    settings: Settings,
    request: ReindexRequest,
    *,
    load: Load = open_model,
    free_bytes: int | None = None,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> ReindexResult:
    """Backfill the collection of a model, and switch searches to it.

    An interrupted re-index resumes. With the active model, the active collection is completed.

    Args:
        load: opens a model by its name.
        free_bytes: space for a new collection; None if unknown.

    Raises:
        NotPromoted: the promotion gate has not passed the model.
        NotEnoughDisk: the collection does not fit.
        MissingImages: more than `request.max_missing` items have no usable image.
        NotVerified: the collection differs from Postgres, or is searched badly.
        ModelUnavailable: there is no such model.
        Busy: another re-index is running.
    """
    encoder = load(settings, request.model)
    with (
        tracked_run(
            stores.sessions,
            flow_lock(stores.engine, "re-index"),
            "reindex",
            for_s=settings.retry_for_s,
            options={"model": encoder.name},
            prefect_run_id=prefect_run_id,
            progress=progress,
        ) as run,
        Workers(encoder.preparation, settings.decode_workers) as workers,
    ):
        before = run.persist(partial(qdrant.active_collection, stores.vectors))
        if before is None:
            raise qdrant.NoCollection
        if before.fingerprint != encoder.fingerprint:
            run.persist(partial(_require_promotion_and_room, stores, encoder, before, request, free_bytes))
        collection = run.persist(partial(_begin, stores, settings, encoder, request, before))
        backfill = Backfill(stores, encoder, collection, workers, settings)
        recall = _backfill_and_switch(backfill, run.lock, request, run.progress)
        run.counts = {"written": backfill.written, "missing": len(backfill.missing)}
    old = None if before.name == collection.name else before.name
    why = tuple(backfill.missing[id] for id in sorted(backfill.missing))
    return ReindexResult(collection.name, encoder.name, old, backfill.written, why, recall)


def rollback(
    stores: Stores,
    settings: Settings,
    *,
    load: Load = open_model,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> ReindexResult:
    """Switch searches to the previous collection at once, and then complete it.

    Raises:
        NoPreviousCollection: none is kept.
        Busy: a re-index is running.
        ModelUnavailable: its model, which encodes the queries, cannot be loaded; nothing was changed.
    """
    with tracked_run(
        stores.sessions,
        flow_lock(stores.engine, "re-index"),
        "rollback",
        for_s=settings.retry_for_s,
        prefect_run_id=prefect_run_id,
        progress=progress,
    ) as run:
        before = qdrant.active_collection(stores.vectors)
        collection = _last_retired(stores)
        encoder = load(settings, collection.model)
        qdrant.require_model(collection, encoder.fingerprint, encoder.name)
        run.persist(partial(_switch, stores, encoder, collection))
        with Workers(encoder.preparation, settings.decode_workers) as workers:
            backfill = Backfill(stores, encoder, collection, workers, settings)
            catch_up(backfill, run.lock, run.progress)
        run.counts = {"written": backfill.written, "missing": len(backfill.missing)}
    why = tuple(backfill.missing[id] for id in sorted(backfill.missing))
    return ReindexResult(
        collection.name, encoder.name, before.name if before else None, backfill.written, why, None
    )


def free_disk(settings: Settings) -> int | None:
    """Return the free bytes for the embedded index; None with a server."""
    return shutil.disk_usage(settings.home).free if settings.qdrant.url is None else None


def _require_promotion_and_room(
    stores: Stores,
    encoder: Encoder,
    active: qdrant.Collection,
    request: ReindexRequest,
    free_bytes: int | None,
) -> None:
    """Require a promotion or `force`, and room for the collection."""
    with stores.sessions() as session:
        promoted = model_registry.is_promoted(session, encoder.fingerprint, over=active.fingerprint)
        counts = catalog.counts(session)
    if not promoted and not request.force:
        raise NotPromoted(
            f"model {encoder.name!r} has not been promoted over {active.model!r}; run: "
            f"sightline promote {encoder.name}, or bypass the promotion gate with --force"
        )
    rows = counts["with_picture"] + counts["with_text"]
    needed = int(rows * encoder.dim * BYTES_A_NUMBER * SPARE + counts["items"] * PAYLOAD_BYTES)
    if free_bytes is not None and needed > free_bytes and not request.yes:
        raise NotEnoughDisk(
            f"the new collection needs about {needed / 2**20:,.0f} MiB beside the old one, and "
            f"{free_bytes / 2**20:,.0f} MiB are free; make room, or go on with --yes"
        )


def _begin(
    stores: Stores, settings: Settings, encoder: Encoder, request: ReindexRequest, active: qdrant.Collection
) -> qdrant.Collection:
    """Record the re-index, and create the collection if missing."""
    name = qdrant.collection_name(encoder.fingerprint)
    with stores.sessions.begin() as session:
        model_registry.save_model(
            session, fingerprint=encoder.fingerprint, name=encoder.name, dim=encoder.dim
        )
        session.flush()
        promoted = model_registry.is_promoted(session, encoder.fingerprint, over=active.fingerprint)
        if name != active.name and request.force and not promoted:
            model_registry.save_decision(
                session,
                candidate=encoder.fingerprint,
                active=active.fingerprint,
                promoted=True,
                forced=True,
                checks=[],
            )
        model_registry.begin_collection(session, name=name, fingerprint=encoder.fingerprint)
    if name != active.name:
        make_collection(stores.vectors, stores.sessions, settings, encoder)
    return qdrant.describe(stores.vectors, name)


def _backfill_and_switch(
    backfill: Backfill, lock: HeldLock, request: ReindexRequest, progress: Progress
) -> float | None:
    """Backfill and verify beside writers, and finish under the exclusive lock.

    Returns:
        The recall of a sample of image searches.
    """
    verified, recall = None, None
    while True:
        catch_up(backfill, lock, progress)
        _require_few_missing(backfill, request)
        wait_until_optimized(backfill, progress)
        is_first, verified = verified is None, lock.persist(partial(verify, backfill, verified, progress))
        if is_first:  # that took its time: what was written meanwhile is not left to the exclusive lock
            recall = require_recall(backfill)
            continue
        exclusive = exclusive_lock(backfill.stores.engine)
        try:
            exclusive.ensure()
        except Busy as error:
            progress(f"wait: {error}", 0, 0)
            time.sleep(PAUSE_S)
            continue
        try:
            lock.persist(partial(_finish, backfill, request, exclusive, verified))
        finally:
            exclusive.release()
        return recall


def _finish(backfill: Backfill, request: ReindexRequest, exclusive: Lock, verified: Verification) -> None:
    """Backfill and verify the last changes, and switch; safe to repeat.

    Raises:
        MissingImages: more items than allowed have no usable image.
        NotVerified: the collection differs from Postgres.
        Busy: the lock was lost with its connection, and another process holds it now.
    """
    taken = None
    while taken != exclusive.times_taken:  # else another process may have written in between
        exclusive.ensure()
        taken = exclusive.times_taken
        backfill.missing.clear()
        for decoded in decode_outdated(backfill):
            exclusive.ensure()
            write(backfill, encode(backfill, decoded))
        _require_few_missing(backfill, request)
        recheck(backfill, verified)
        exclusive.ensure()
    _switch(backfill.stores, backfill.encoder, backfill.collection)


def _switch(stores: Stores, encoder: Encoder, collection: qdrant.Collection) -> None:
    """Switch searches to `collection`.

    The alias moves before the commit, so that the rows never run ahead; after a crash between the two, the
    next run records what the alias says.
    """
    with stores.sessions.begin() as session:
        model_registry.activate_collection(
            session,
            name=collection.name,
            model=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=encoder.dim,
        )
        session.flush()
        qdrant.activate(stores.vectors, collection.name)


def _last_retired(stores: Stores) -> qdrant.Collection:
    with stores.sessions() as session:
        retired = model_registry.last_retired(session)
    for one in retired:
        if stores.vectors.collection_exists(one.name):
            return qdrant.describe(stores.vectors, one.name)
    raise NoPreviousCollection("no earlier collection is kept; sightline reindex --model M creates one")


def _require_few_missing(backfill: Backfill, request: ReindexRequest) -> None:
    missing = backfill.missing
    if len(missing) > request.max_missing:
        raise MissingImages(
            f"{len(missing):,} items have no usable image, the first of them {missing[min(missing)]}; "
            "sightline reconcile --repair fetches images again, --max-missing leaves these items out"
        )
