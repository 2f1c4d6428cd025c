"""A collection of another model: filled beside the active one, verified, switched to, and left again.

Postgres says what belongs into it, and its marks what is there already: a killed re-index goes on where it
was. Ingests go on meanwhile, into the active collection; pass after pass takes over what they bring, the
last one while nobody writes. Then the alias moves, in one step, and the rows that say so are committed.
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
from flows.ingestion.backfill import (
    PAUSE_S,
    Filling,
    NotVerified,
    batches,
    catch_up,
    differences,
    measured_recall,
    settle,
    write,
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
from storage.postgres.locks import Busy, Lock, flow_lock, lone_lock

LEAST_RECALL = 0.9
"""Of searches, compared with exact ones, below which an index is not fit to be searched."""

BYTES_A_NUMBER = 4
SPARE = 2.5
"""What a collection takes at its largest, in sizes of its bare vectors: while it is being optimised."""

PAYLOAD_BYTES = 2048


class NotPromoted(Conflict):
    """The gate has not let the model through."""


class NotEnoughDisk(SightlineError):
    """The new collection would not fit beside the old one."""


class MissingPictures(Conflict):
    """Pictures that are needed for the new collection are gone."""


class NothingToGoBackTo(NotFound):
    """No collection is kept that searches went to before."""


@dataclass(frozen=True, slots=True)
class Order:
    """Which model searches are to use, and what is put up with for it."""

    model: str
    force: bool = False
    """Whether the gate is passed by."""

    yes: bool = False
    """Whether the disk may run full."""

    max_missing: int = 0
    """How many items may be left behind because their images are gone."""


@dataclass(frozen=True, slots=True)
class Switched:
    """Where searches go now, and where they went before."""

    collection: str
    model: str
    before: str | None
    written: int
    """Points that were written for it."""

    missing: tuple[str, ...]
    """What could not be taken along, each with why."""

    recall: float | None
    """Of a sample of its searches, compared with exact ones; None without images, or where not measured."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"missing": list(self.missing)}


def reindex(
    stores: Stores,
    settings: Settings,
    order: Order,
    *,
    load: Load = open_model,
    free_bytes: int | None = None,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> Switched:
    """Fill a collection of a model, and have searches go to it; run it again to take up a killed one.

    Of the active model it fills in what its collection lacks.

    Args:
        load: opens a model by its name.
        free_bytes: what a new collection may take; None where that is not known.

    Raises:
        NotPromoted: the gate has not let the model through.
        NotEnoughDisk: the collection would not fit.
        MissingPictures: more than `order.max_missing` items cannot be taken along.
        NotVerified: what was filled differs from Postgres, or is searched badly.
        ModelUnavailable: there is no such model.
        Busy: another re-index is running.
    """
    encoder = load(settings, order.model)
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
        before = qdrant.active_collection(stores.vectors)
        if before is None:
            raise qdrant.NoCollection
        if before.fingerprint != encoder.fingerprint:
            _refuse(stores, encoder, before, order, free_bytes)
        collection = run.persist(partial(_begin, stores, settings, encoder, order, before))
        filling = Filling(stores, encoder, collection, workers, settings, 0, {})
        recall = _fill_and_switch(filling, run.lock, order, run.progress)
        run.counts = {"written": filling.written, "missing": len(filling.missing)}
    old = None if before.name == collection.name else before.name
    why = tuple(filling.missing[id] for id in sorted(filling.missing))
    return Switched(collection.name, encoder.name, old, filling.written, why, recall)


def rollback(
    stores: Stores,
    settings: Settings,
    *,
    load: Load = open_model,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> Switched:
    """Have searches go to the collection that they went to before, at once; then fill in what it lacks.

    Raises:
        NothingToGoBackTo: none is kept.
        Busy: a re-index is running.
        ModelUnavailable: its model cannot be loaded, by which queries are encoded; nothing was changed.
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
            filling = Filling(stores, encoder, collection, workers, settings, 0, {})
            catch_up(filling, run.lock, run.progress)
        run.counts = {"written": filling.written, "missing": len(filling.missing)}
    why = tuple(filling.missing[id] for id in sorted(filling.missing))
    return Switched(
        collection.name, encoder.name, before.name if before else None, filling.written, why, None
    )


def free_disk(settings: Settings) -> int | None:
    """Return how many bytes are free where the index lies; None where that is a server's business."""
    return shutil.disk_usage(settings.home).free if settings.qdrant.url is None else None


def _refuse(
    stores: Stores, encoder: Encoder, active: qdrant.Collection, order: Order, free_bytes: int | None
) -> None:
    """Raise unless the model was promoted over the active one, or is forced, and its collection has room."""
    with stores.sessions() as session:
        promoted = model_registry.is_promoted(session, encoder.fingerprint, over=active.fingerprint)
        counts = catalog.counts(session)
    if not promoted and not order.force:
        raise NotPromoted(
            f"model {encoder.name!r} has not been promoted over {active.model!r}; run: "
            f"sightline promote {encoder.name}, or pass the gate by with --force"
        )
    rows = counts["with_picture"] + counts["with_text"]
    needed = int(rows * encoder.dim * BYTES_A_NUMBER * SPARE + counts["items"] * PAYLOAD_BYTES)
    if free_bytes is not None and needed > free_bytes and not order.yes:
        raise NotEnoughDisk(
            f"the new collection needs about {needed / 2**20:,.0f} MiB beside the old one, and "
            f"{free_bytes / 2**20:,.0f} MiB are free; make room, or go on with --yes"
        )


def _begin(
    stores: Stores, settings: Settings, encoder: Encoder, order: Order, active: qdrant.Collection
) -> qdrant.Collection:
    """Make the collection, unless it is there, and put on record what it is for and who forced it."""
    name = qdrant.collection_name(encoder.fingerprint)
    with stores.sessions.begin() as session:
        model_registry.save_model(
            session, fingerprint=encoder.fingerprint, name=encoder.name, dim=encoder.dim
        )
        session.flush()
        promoted = model_registry.is_promoted(session, encoder.fingerprint, over=active.fingerprint)
        if name != active.name and order.force and not promoted:
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


def _fill_and_switch(filling: Filling, lock: HeldLock, order: Order, progress: Progress) -> float | None:
    """Catch up with whoever writes, then do the last of it alone; return the recall of the sample."""
    while True:
        catch_up(filling, lock, progress)
        _refuse_missing(filling, order)
        settle(filling, progress)
        alone = lone_lock(filling.stores.engine)
        try:
            alone.keep()
        except Busy as error:
            progress(f"wait: {error}", 0, 0)
            time.sleep(PAUSE_S)
            continue
        try:
            return lock.persist(partial(_finish, filling, order, alone, progress))
        finally:
            alone.release()


def _finish(filling: Filling, order: Order, alone: Lock, progress: Progress) -> float | None:
    """Fill in the rest, verify, and switch; nobody else writes meanwhile. Safe to repeat.

    Raises:
        NotVerified: what was filled differs from Postgres, or is searched badly.
    """
    stores, name = filling.stores, filling.collection.name
    filling.missing.clear()
    for ready in batches(filling):
        alone.keep()
        write(filling, ready)
    _refuse_missing(filling, order)
    progress("verify", 0, 0)
    settle(filling, progress)
    strays = [one.id for one in differences(filling) if one.kind == "stray"]
    if strays:
        qdrant.delete_points(stores.vectors, name, strays)
    if left := [
        one for one in differences(filling) if one.entry is None or one.entry.id not in filling.missing
    ]:
        raise NotVerified(
            f"{len(left):,} points of {name} are not what Postgres has, the first of them {left[0].id} "
            f"({left[0].kind}); searches stay as they are; run it again"
        )
    recall = measured_recall(filling)
    if recall is not None and recall < LEAST_RECALL:
        raise NotVerified(
            f"searches of {name} find {recall:.0%} of what exact ones find, less than {LEAST_RECALL:.0%}; "
            "searches stay as they are; is it still being optimised? Run it again later"
        )
    alone.keep()
    _switch(stores, filling.encoder, filling.collection)
    return recall


def _switch(stores: Stores, encoder: Encoder, collection: qdrant.Collection) -> None:
    """Have searches go to `collection`: the alias moves before the commit, so that the rows never run ahead.

    Where a crash comes between the two, whatever runs next puts on record what the alias says.
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
    raise NothingToGoBackTo(
        "no collection is kept that searches went to before; sightline reindex --model M makes one anew"
    )


def _refuse_missing(filling: Filling, order: Order) -> None:
    missing = filling.missing
    if len(missing) > order.max_missing:
        raise MissingPictures(
            f"{len(missing):,} items cannot be taken along, the first of them {missing[min(missing)]}; "
            "sightline reconcile --repair fetches pictures again, --max-missing leaves them behind"
        )
