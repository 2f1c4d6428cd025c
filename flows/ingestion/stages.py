"""Carry a batch from source rows to searchable points.

Each stage can be repeated at any point: ids are derived and every write is an upsert. Vectors are written
before the embedding states, so that a crash between the two leaves work that the next run repeats, never a
state that promises a vector that is not there.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy.orm import Session

from embedding.encoders.sentence_encoder import Encoder
from embedding.images.decode import BadImage
from embedding.pipeline import Clock
from flows.ingestion.batches import EncodedBatch, FetchedBatch, FetchedRecord, PlannedBatch
from flows.ingestion.image_cache import CachedImage, ImageCache
from flows.ingestion.report import BatchReport
from flows.ingestion.source_batches import IngestRun, look_up, plan_rows
from flows.resources.connections import Deps, Stores
from storage import qdrant
from storage.postgres import catalog, runs
from storage.postgres.catalog import EmbeddedImage
from storage.postgres.rejects import save_rejects
from storage.qdrant import Point
from storage.records import Digest, ImageInfo, Item

WRITES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Job:
    """Hold the parts that all batches of one run share."""

    deps: Deps
    run: IngestRun
    images: ImageCache
    clock: Clock


def start_decoding(job: Job, batch: FetchedBatch) -> FetchedBatch:
    """Read the stored states of a batch and start decoding."""
    deps, run = job.deps, job.run
    with job.clock("plan"):
        with deps.sessions() as session:
            batch = look_up(session, run, batch)
            wanted = [one for one in batch.records if batch.needs_embedding(one.item_id(run.source), one)]
            shas = {one.sha256 for one in wanted if one.sha256}
            pending = job.images.pending(shas)  # before the states are read, or one could slip through
            duplicates = catalog.embedded_duplicates(session, run.collection.name, shas - pending.keys())
        images = pending | stored_vectors(deps, run.collection.name, duplicates)
        for one in wanted:
            if one.data is not None and one.sha256 is not None and one.sha256 not in images:
                images[one.sha256] = job.images.decode(one.sha256, one.data, name=one.record.place)
    return replace(batch, images=images)


def store_records(job: Job, batch: FetchedBatch) -> PlannedBatch:
    """Decode and plan a batch, then write blobs and catalog.

    Raises:
        RunClosed: another run has declared this one dead; nothing was written.
    """
    deps, run = job.deps, job.run
    bad = decoding_errors(batch.images)
    with job.clock("store"), deps.sessions.begin() as session:
        runs.require_running(session, run.id)
        planned = plan_rows(session, run, batch, bad)
        fresh = {id: as_item(run.source, planned.records[id], batch.images) for id in planned.plan.embed}
        updated = {id: planned.updated_item(run.source, id) for id in planned.plan.update}
        needed = {item.image.sha256 for item in fresh.values() if item.image}
        images = {sha256: image for sha256, image in batch.images.items() if sha256 in needed}
        planned = replace(planned, fresh=fresh, updated=updated, images=images)
        digests = planned.digests
        store_images(deps, session, (planned.records[id] for id in fresh))
        catalog.save_items(session, {id: (item, digests[id]) for id, item in (fresh | updated).items()})
        save_rejects(session, run.id, run.source, planned.rejects)
    job.images.discard(batch.images.keys() - images.keys())
    return planned


def encode_batch(job: Job, planned: PlannedBatch) -> EncodedBatch:
    """Encode the new texts and images of a batch."""
    with job.clock("embed"):
        encoded = encode_items(job.deps.encoder, planned.fresh, planned.digests, planned.images)
    return EncodedBatch(planned, *encoded)


def write_points(job: Job, batch: EncodedBatch) -> BatchReport:
    """Write the points of a batch, and then its embedding states.

    Raises:
        RunClosed: another run has declared this one dead; no state was written.
    """
    deps, run, planned = job.deps, job.run, batch.planned
    digests = planned.digests
    with job.clock("upsert"):
        qdrant.upsert(deps.vectors, run.collection, batch.points)
        payloads = {id: (item, digests[id]) for id, item in planned.updated.items()}
        qdrant.overwrite_payloads(deps.vectors, run.collection.name, payloads)
    if digests:
        with job.clock("mark"), deps.sessions.begin() as session:
            runs.require_running(session, run.id)
            catalog.mark_embedded(session, run.collection.name, digests)
    job.images.discard(planned.images)
    images = sum(item.image is not None for item in planned.fresh.values())
    counts = Counter(truncated=batch.truncated, reused=images - batch.encoded_images, pictures=images)
    return planned.as_report() + BatchReport(counts)


def stored_vectors(
    stores: Stores, collection: str, duplicates: Mapping[str, EmbeddedImage]
) -> dict[str, CachedImage]:
    """Return the images, by SHA-256, that have a vector in the collection."""
    wanted = {one.id: one.content_hash for one in duplicates.values()}
    vectors = qdrant.image_vectors_of(stores.vectors, collection, wanted)
    return {
        sha256: CachedImage.with_vector(one.image, vectors[one.id])
        for sha256, one in duplicates.items()
        if one.id in vectors
    }


def texts_of(items: Mapping[UUID, Item]) -> list[str]:
    """Return the embedded texts of items, item by item."""
    return [text for item in items.values() for text in item.embedded_texts]


def decoding_errors(images: Mapping[str, CachedImage]) -> dict[str, BadImage]:
    """Wait until all images are decoded; return the errors by SHA-256."""
    errors = {}
    for sha256, image in images.items():
        try:
            image.prepared()
        except BadImage as error:
            errors[sha256] = error
    return errors


def as_item(source: str, one: FetchedRecord, images: Mapping[str, CachedImage]) -> Item:
    """Return the item of a record with its decoded image."""
    if one.sha256 is None:
        return one.as_item(source, None)
    decoded = images[one.sha256].prepared()
    uri = one.record.image or ""
    strangers = one.record.from_strangers
    return one.as_item(
        source, ImageInfo(one.sha256, uri, decoded.width, decoded.height, decoded.format, strangers)
    )


def store_images(deps: Deps, session: Session, fresh: Iterable[FetchedRecord]) -> None:
    """Write image bytes before the rows that need them, in their transaction."""
    if deps.blobs is None:
        return
    catalog.lock_blobs(session, exclusive=False)
    blobs = {one.sha256: one.data for one in fresh if one.sha256 is not None and one.data is not None}
    with ThreadPoolExecutor(WRITES_AT_ONCE) as threads:  # most of a write is waiting for the disk
        list(threads.map(deps.blobs.put, blobs.keys(), blobs.values()))


def encode_items(
    encoder: Encoder,
    items: Mapping[UUID, Item],
    digests: Mapping[UUID, Digest],
    images: Mapping[str, CachedImage],
) -> tuple[list[Point], int, int]:
    """Encode items as points.

    Args:
        images: by SHA-256, those of all `items`; each one without a vector is encoded once.

    Returns:
        The points, the number of images that were encoded, and the number of texts that were truncated.
    """
    new = [image for image in images.values() if image.vector is None]
    vectors = encoder.encode_prepared([image.prepared().features for image in new])
    for image, vector in zip(new, vectors, strict=True):
        image.set_vector(vector)
    texts = encoder.encode_texts(texts_of(items))
    points, start = [], 0
    for id, item in items.items():
        end = start + len(item.embedded_texts)
        vector = images[item.image.sha256].vector if item.image else None
        points.append(Point(item, digests[id], vector, texts.vectors[start:end]))
        start = end
    return points, len(new), sum(texts.truncated)
