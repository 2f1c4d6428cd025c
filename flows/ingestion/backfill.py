"""A collection is filled with what it lacks, in passes beside others that write, and looked over."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from itertools import islice
from uuid import UUID

from embedding.encoders.sentence_encoder import Encoder
from embedding.images.worker_pool import Workers
from embedding.pipeline import ahead
from flows.config.settings import Settings
from flows.ingestion.image_cache import CachedImage
from flows.ingestion.stages import decoding_errors, encode_items, stored_vectors
from flows.resources.comparison import Report, confirmed, item_pages
from flows.resources.connections import Stores
from flows.resources.images import decode_many, load_image
from flows.tracking.progress import Progress, no_steps
from flows.tracking.retry_policy import HeldLock
from storage import qdrant
from storage.consistency.differences import Difference
from storage.postgres import catalog
from storage.postgres.locks import Busy, Lock, writing_lock
from storage.records import Digest, Item
from storage.sources import redacted

PAUSE_S = 3.0
SETTLE_S = 600.0
SAMPLE = 100
NEIGHBOURS = 10


class NotVerified(RuntimeError):
    """The new collection is not what it should be; searches stay with the old one."""


@dataclass(slots=True)
class Filling:
    """A collection that is being filled."""

    stores: Stores
    encoder: Encoder
    collection: qdrant.Collection
    workers: Workers
    settings: Settings
    written: int
    missing: dict[UUID, str]
    """Items whose images cannot be had, each with why."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Some items with all that the model needs of them."""

    items: Mapping[UUID, Item]
    digests: Mapping[UUID, Digest]
    pictures: Mapping[str, CachedImage]
    missing: Mapping[UUID, str]


def catch_up(filling: Filling, lock: HeldLock, progress: Progress) -> None:
    """Write what the collection lacks, beside others that write, until a pass finds nothing."""
    with filling.stores.sessions() as session:
        total = catalog.counts(session)["items"]
    while True:
        before = filling.written
        filling.missing.clear()
        with ahead(batches(filling)) as decoded:
            for ready in decoded:
                with _when_free(writing_lock(filling.stores.engine), progress):
                    lock.persist(partial(write, filling, ready))
                progress("embed", filling.written, total)
        if filling.written == before:
            return


@contextmanager
def _when_free(lock: Lock, progress: Progress) -> Iterator[None]:
    """Hold `lock`, however long it takes until others give it back."""
    while True:
        try:
            lock.keep()
            break
        except Busy as error:
            progress(f"wait: {error}", 0, 0)
            time.sleep(PAUSE_S)
    try:
        yield
    finally:
        lock.release()


def batches(filling: Filling) -> Iterator[Ready]:
    """Yield what the collection lacks, in id order, with images that are decoded."""
    lacking = _lacking(filling.stores, filling.collection.name)
    while ids := list(islice(lacking, filling.settings.batch_size)):
        yield _ready(filling, ids)


def _lacking(stores: Stores, collection: str) -> Iterator[UUID]:
    """Yield the living items whose mark in the collection is not that of their content, in id order."""
    for page in item_pages(stores, collection):
        yield from (one.id for one in page if one.mark != one.wanted)


def _ready(filling: Filling, ids: Sequence[UUID]) -> Ready:
    stores, name, limits = filling.stores, filling.collection.name, filling.settings.limits
    with stores.sessions() as session:
        found = catalog.items_with_digests(session, ids)
        wanted = {item.picture.sha256: item.picture for item, _ in found.values() if item.picture}
        twins = catalog.embedded_twins(session, name, wanted)
    pictures = stored_vectors(stores, name, twins)
    origins = {sha256: image.origin for sha256, image in wanted.items() if sha256 not in pictures}
    load = partial(load_image, stores, limits=limits, or_origin=True)
    decoding = decode_many(filling.workers, origins, load)
    pictures |= {sha256: CachedImage(future) for sha256, future in decoding.items()}
    gone = {
        sha256: f"its picture is gone, here and at {redacted(origin.uri)}"
        for sha256, origin in origins.items()
        if sha256 not in decoding
    }
    for sha256, error in decoding_errors(pictures).items():
        gone[sha256] = str(error)
        del pictures[sha256]
    missing = {
        id: f"{item.source}: {item.key}: {gone[item.picture.sha256]}"
        for id, (item, _) in found.items()
        if item.picture and item.picture.sha256 in gone
    }
    items = {id: item for id, (item, _) in found.items() if id not in missing}
    return Ready(items, {id: digest for id, (_, digest) in found.items() if id in items}, pictures, missing)


def write(filling: Filling, ready: Ready) -> None:
    """Write points, and then the marks of those that are still what Postgres has; safe to repeat."""
    stores, name = filling.stores, filling.collection.name
    points, *_ = encode_items(filling.encoder, ready.items, ready.digests, ready.pictures)
    qdrant.upsert(stores.vectors, filling.collection, points)
    with stores.sessions.begin() as session:
        deleted = catalog.mark_current(session, name, ready.digests)
    if deleted:
        qdrant.delete_points(stores.vectors, name, deleted)
    filling.written += len(points)
    filling.missing.update(ready.missing)


def settle(filling: Filling, progress: Progress) -> None:
    """Wait until the server has optimised the collection."""
    stores, name = filling.stores, filling.collection.name
    until = time.monotonic() + SETTLE_S
    while not qdrant.is_settled(stores.vectors, name):
        if time.monotonic() > until:
            raise NotVerified(
                f"{name} is still being optimised after {SETTLE_S / 60:.0f} minutes; searches stay as they "
                "are; run it again later"
            )
        progress("wait for the index to be optimised", 0, 0)
        time.sleep(PAUSE_S)


def differences(filling: Filling) -> list[Difference]:
    """Return how the collection differs from what Postgres has, in id order."""
    return list(confirmed(filling.stores, filling.collection.name, True, Report(), no_steps))


def measured_recall(filling: Filling) -> float | None:
    """Return the recall of searches for a sample of images, the same for the same items."""
    stores, name = filling.stores, filling.collection.name
    marked = (one.id for page in item_pages(stores, name) for one in page if one.image and one.mark)
    sample = nsmallest(SAMPLE, marked, key=lambda id: hashlib.sha256(id.bytes).digest())
    return qdrant.sampled_recall(stores.vectors, name, sample, NEIGHBOURS)
