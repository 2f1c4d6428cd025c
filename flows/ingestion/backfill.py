"""Backfill the points of a collection from Postgres and the blob store."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from uuid import UUID

from embedding.encoders.sentence_encoder import Encoder
from embedding.images.worker_pool import Workers
from embedding.pipeline import in_background, prefetch
from flows.config.settings import Settings
from flows.ingestion.image_cache import CachedImage
from flows.ingestion.stages import decoding_errors, encode_items, stored_vectors
from flows.resources.connections import Stores
from flows.resources.images import decode_many, load_image
from flows.tracking.progress import Progress
from flows.tracking.retry_policy import HeldLock
from storage import qdrant
from storage.postgres import catalog, embedding_states
from storage.postgres.locks import Busy, Lock, shared_lock
from storage.qdrant import Point
from storage.records import Digest, Item
from storage.redaction import redacted

PAUSE_S = 3.0
PAGE = 2000


@dataclass(slots=True)
class Backfill:
    """Hold the state of a backfill."""

    stores: Stores
    encoder: Encoder
    collection: qdrant.Collection
    workers: Workers
    settings: Settings
    written: int = 0
    """Points written."""

    missing: dict[UUID, str] = field(default_factory=dict)
    """Items without a usable image, with the reason of each."""

    unusable: dict[str, str] = field(default_factory=dict)
    """Images that are lost or cannot be decoded, by SHA-256, with the reason: none is tried twice."""


@dataclass(frozen=True, slots=True)
class DecodedItems:
    """Hold items with their decoded images."""

    items: Mapping[UUID, Item]
    digests: Mapping[UUID, Digest]
    images: Mapping[str, CachedImage]
    missing: Mapping[UUID, str]


@dataclass(frozen=True, slots=True)
class EncodedItems:
    """Hold points that are ready to be written."""

    points: Sequence[Point]
    digests: Mapping[UUID, Digest]
    missing: Mapping[UUID, str]


def catch_up(backfill: Backfill, lock: HeldLock, progress: Progress) -> None:
    """Write outdated points beside other writers, until a pass finds none."""
    stores = backfill.stores
    with stores.sessions() as session:
        total = catalog.counts(session)["items"]

    def write_beside_others(items: EncodedItems) -> None:
        with _when_free(shared_lock(stores.engine), progress):
            lock.persist(partial(write, backfill, items))
        progress("embed", backfill.written, total)

    while True:
        before = backfill.written
        backfill.missing.clear()
        with prefetch(decode_outdated(backfill)) as decoded, in_background(write_beside_others) as hand_on:
            for items in decoded:
                hand_on(encode(backfill, items))
        if backfill.written == before:
            return


def rewrite(backfill: Backfill, ids: Iterable[Sequence[UUID]]) -> None:
    """Write the points of some items anew, batch by batch.

    The caller holds the exclusive lock. `ids` is read in another thread.
    """
    decoded_items = (decode(backfill, batch) for batch in ids)
    with prefetch(decoded_items) as decoded, in_background(partial(write, backfill)) as hand_on:
        for items in decoded:
            hand_on(encode(backfill, items))


@contextmanager
def _when_free(lock: Lock, progress: Progress) -> Iterator[None]:
    """Wait for a lock, and hold it."""
    while True:
        try:
            lock.ensure()
            break
        except Busy as error:
            progress(f"wait: {error}", 0, 0)
            time.sleep(PAUSE_S)
    try:
        yield
    finally:
        lock.release()


def decode_outdated(backfill: Backfill) -> Iterator[DecodedItems]:
    """Yield items without a current point, with decoded images."""
    ids = _outdated(backfill.stores, backfill.collection.name)
    while batch := list(islice(ids, backfill.settings.batch_size)):
        yield decode(backfill, batch)


def _outdated(stores: Stores, collection: str) -> Iterator[UUID]:
    after = None
    while True:
        with stores.sessions() as session:
            page = embedding_states.outdated(session, collection, after=after, limit=PAGE)
        if not page:
            return
        yield from page
        after = page[-1]


def decode(backfill: Backfill, ids: Sequence[UUID]) -> DecodedItems:
    """Load items, and decode their images without a stored vector."""
    stores, limits, unusable = backfill.stores, backfill.settings.limits, backfill.unusable
    with stores.sessions() as session:
        found = catalog.items_with_digests(session, ids)
        wanted = {item.image.sha256: item.image for item, _ in found.values() if item.image}
        twins = catalog.embedded_duplicates(session, backfill.collection.name, wanted)
    images = stored_vectors(stores, backfill.collection.name, twins)
    origins = {
        sha256: image.origin
        for sha256, image in wanted.items()
        if sha256 not in images and sha256 not in unusable
    }
    load = partial(load_image, stores, limits=limits, or_origin=True)
    decoding = decode_many(backfill.workers, origins, load)
    images |= {sha256: CachedImage(future) for sha256, future in decoding.items()}
    for sha256, origin in origins.items():
        if sha256 not in decoding:
            unusable[sha256] = f"its image is lost, here and at {redacted(origin.uri)}"
    for sha256, error in decoding_errors(images).items():
        unusable[sha256] = str(error)
        del images[sha256]
    missing = {
        id: f"{item.source}: {item.key}: {unusable[item.image.sha256]}"
        for id, (item, _) in found.items()
        if item.image and item.image.sha256 not in images
    }
    items = {id: item for id, (item, _) in found.items() if id not in missing}
    return DecodedItems(items, {id: found[id][1] for id in items}, images, missing)


def encode(backfill: Backfill, decoded: DecodedItems) -> EncodedItems:
    """Encode items as points."""
    points, *_ = encode_items(backfill.encoder, decoded.items, decoded.digests, decoded.images)
    return EncodedItems(points, decoded.digests, decoded.missing)


def write(backfill: Backfill, encoded: EncodedItems) -> None:
    """Write points, and then the embedding states of unchanged items.

    Safe to repeat.
    """
    stores, name = backfill.stores, backfill.collection.name
    qdrant.upsert(stores.vectors, backfill.collection, encoded.points)
    with stores.sessions.begin() as session:
        deleted = catalog.mark_current(session, name, encoded.digests)
    if deleted:
        qdrant.delete_points(stores.vectors, name, deleted)
    backfill.written += len(encoded.points)
    backfill.missing.update(encoded.missing)
