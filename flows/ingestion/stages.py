"""The steps that take a batch from source rows to searchable points, one function each.

Each can be repeated at any point: ids are derived and every write is an upsert. Vectors are written before
the marks that say so, so that a crash between the two leaves work that the next run repeats, never a mark
that promises a vector nobody wrote.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from embedding.encoders.sentence_encoder import Encoder
from embedding.images.decode import BadImage
from embedding.pipeline import Clock
from flows.ingestion.image_cache import Pictures, Shown
from flows.ingestion.report import BatchReport
from flows.ingestion.source_batches import Fetched, Known, Planned, Read, Run, look_up, plan_rows
from flows.resources.connections import Deps, Stores
from storage import qdrant
from storage.postgres import catalog, runs
from storage.postgres.catalog import Twin
from storage.postgres.rejects import save_rejects
from storage.qdrant import Point
from storage.records import Digest, Item, Picture

WRITES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Looked:
    """A batch of which it is known what the stores have; its new images are being decoded."""

    read: Read
    known: Known
    pictures: Mapping[str, Shown]
    """By SHA-256, those of the records that would be embedded."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A batch whose records are in Postgres, and whose points are not."""

    planned: Planned
    fresh: Mapping[UUID, Item]
    """Items to be embedded."""

    updated: Mapping[UUID, Item]
    """Items whose payload is replaced."""

    digests: Mapping[UUID, Digest]
    pictures: Mapping[str, Shown]
    truncated: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch whose points are ready to be written."""

    kept: Kept
    points: list[Point]
    shown: int
    """Pictures that the model was shown."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run, and what the steps of all its batches share."""

    deps: Deps
    run: Run
    pictures: Pictures
    clock: Clock


def look(job: Job, read: Read) -> Looked:
    """Find out what is known of a batch, and have its new images decoded."""
    deps, run = job.deps, job.run
    with job.clock("plan"):
        with deps.sessions() as session:
            known = look_up(session, run, read)
            wanted = [one for one in read.fetched if known.wants_model(one.item_id(run.source), one)]
            shas = {one.sha256 for one in wanted if one.sha256}
            under_way = job.pictures.under_way(shas)  # before the marks are read, or one could slip through
            twins = catalog.embedded_twins(session, run.collection.name, shas - under_way.keys())
        stored = with_vectors(deps, run.collection.name, twins)
        known_pictures = under_way | stored
        new = job.pictures.show(one for one in wanted if one.sha256 not in known_pictures)
    return Looked(read, known, known_pictures | new)


def keep(job: Job, looked: Looked) -> Kept:
    """Wait for the images of a batch, decide, and write to the blobs and to Postgres.

    Raises:
        RunClosed: another run has taken this one for dead; nothing was written.
    """
    deps, run = job.deps, job.run
    bad = refused(looked.pictures)
    with job.clock("store"), deps.sessions.begin() as session:
        runs.require_running(session, run.id)
        planned = plan_rows(session, run, looked.read, looked.known, bad)
        fresh = {id: as_item(run.source, planned.records[id], looked.pictures) for id in planned.plan.embed}
        updated = {id: planned.updated_item(run.source, id) for id in planned.plan.update}
        digests = {id: planned.records[id].digest for id in fresh | updated}
        keep_pictures(deps, session, (planned.records[id] for id in fresh))
        catalog.save_items(session, {id: (item, digests[id]) for id, item in (fresh | updated).items()})
        save_rejects(session, run.id, run.source, planned.rejects)
    with job.clock("plan"):
        truncated = sum(deps.encoder.truncated(texts_of(fresh)))
    needed = {item.picture.sha256 for item in fresh.values() if item.picture}
    pictures = {sha256: shown for sha256, shown in looked.pictures.items() if sha256 in needed}
    job.pictures.forget(looked.pictures.keys() - pictures.keys())
    return Kept(planned, fresh, updated, digests, pictures, truncated)


def embed(job: Job, kept: Kept) -> Embedded:
    """Show the model what is new in a batch."""
    with job.clock("embed"):
        return Embedded(kept, *embed_all(job.deps.encoder, kept.fresh, kept.digests, kept.pictures))


def write(job: Job, embedded: Embedded) -> BatchReport:
    """Write the points of a batch, and then the marks that say so.

    Raises:
        RunClosed: another run has taken this one for dead; no mark was written.
    """
    deps, run, kept = job.deps, job.run, embedded.kept
    with job.clock("upsert"):
        qdrant.upsert(deps.vectors, run.collection, embedded.points)
        payloads = {id: (item, kept.digests[id]) for id, item in kept.updated.items()}
        qdrant.overwrite_payloads(deps.vectors, run.collection.name, payloads)
    if kept.digests:
        with job.clock("mark"), deps.sessions.begin() as session:
            runs.require_running(session, run.id)
            catalog.mark_embedded(session, run.collection.name, kept.digests)
    job.pictures.forget(kept.pictures)
    pictures = sum(item.picture is not None for item in kept.fresh.values())
    besides = Counter(truncated=kept.truncated, reused=pictures - embedded.shown, pictures=pictures)
    return kept.planned.as_report() + BatchReport(besides)


def with_vectors(stores: Stores, collection: str, twins: Mapping[str, Twin]) -> dict[str, Shown]:
    """Return the images, by SHA-256, that have a vector already, at this item or at another."""
    wanted = {twin.id: twin.content_hash for twin in twins.values()}
    vectors = qdrant.image_vectors_of(stores.vectors, collection, wanted)
    return {
        sha256: Shown.with_vector(twin.picture, vectors[twin.id])
        for sha256, twin in twins.items()
        if twin.id in vectors
    }


def texts_of(items: Mapping[UUID, Item]) -> list[str]:
    """Return the texts of items that are embedded, item by item."""
    return [text for item in items.values() for text in item.embedded_texts]


def refused(pictures: Mapping[str, Shown]) -> dict[str, BadImage]:
    """Wait until all are decoded; return those that did not pass the gate, by SHA-256."""
    bad = {}
    for sha256, picture in pictures.items():
        try:
            picture.prepared()
        except BadImage as error:
            bad[sha256] = error
    return bad


def as_item(source: str, one: Fetched, pictures: Mapping[str, Shown]) -> Item:
    """Return the item that `one` is, with what its pixels told."""
    if one.sha256 is None:
        return one.as_item(source, None)
    seen = pictures[one.sha256].prepared()
    uri = one.record.image or ""
    strangers = one.record.from_strangers
    return one.as_item(source, Picture(one.sha256, uri, seen.width, seen.height, seen.format, strangers))


def keep_pictures(deps: Deps, session: Session, fresh: Iterable[Fetched]) -> None:
    """Write image bytes before the rows that need them, in the transaction of those rows."""
    if deps.blobs is None:
        return
    catalog.lock_blobs(session, alone=False)
    blobs = {one.sha256: one.data for one in fresh if one.sha256 is not None and one.data is not None}
    with ThreadPoolExecutor(WRITES_AT_ONCE) as threads:  # most of a write is waiting for the disk
        list(threads.map(deps.blobs.put, blobs.keys(), blobs.values()))


def embed_all(
    encoder: Encoder,
    items: Mapping[UUID, Item],
    digests: Mapping[UUID, Digest],
    pictures: Mapping[str, Shown],
) -> tuple[list[Point], int]:
    """Return a point for each item, and how many images the model was shown.

    Args:
        images: by SHA-256, those of all `items`; one without a vector is shown to the model, once.
    """
    new = [picture for picture in pictures.values() if picture.vector is None]
    vectors = encoder.prepared([picture.prepared().features for picture in new])
    for picture, vector in zip(new, vectors, strict=True):
        picture.embedded(vector)
    rows = encoder.texts(texts_of(items))
    points, start = [], 0
    for id, item in items.items():
        end = start + len(item.embedded_texts)
        image = pictures[item.picture.sha256].vector if item.picture else None
        points.append(Point(item, digests[id], image, rows[start:end]))
        start = end
    return points, len(new)
