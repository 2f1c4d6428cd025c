"""One batch from source rows to searchable points. Plain functions; safe to repeat at any point."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from embedding.encoder import Encoder
from embedding.images import BadImage, Decoded, decode_image
from flows.deps import Deps
from flows.report import BatchReport
from flows.rows import Fetched, Row, Run, fetch_rows, plan_rows, rejected
from storage import catalog, index, runs
from storage.catalog import Twin
from storage.index import Point
from storage.records import Digest, Item, Picture, Rejected


def ingest_batch(deps: Deps, run: Run, rows: Sequence[Row]) -> BatchReport:
    """Embed and store one batch. Ids are derived and every write is an upsert, so repeating it is safe.

    Vectors are written before the marks that say so: a crash between the two leaves work that the next
    run repeats, never a mark that promises a vector nobody wrote.

    Raises:
        RunClosed: another run has taken this one for dead; nothing was written.
    """
    stages: Counter[str] = Counter()
    with _timed(stages, "read"):
        fetched, unread = fetch_rows(run, rows)
    with _timed(stages, "plan"), deps.sessions.begin() as session:
        runs.require_running(session, run.id)
        planned = plan_rows(session, run, fetched, unread)
        to_embed = {id: planned.records[id] for id in planned.plan.embed}
        shas = {one.sha256 for one in to_embed.values() if one.sha256}
        twins = catalog.embedded_twins(session, run.collection, shas)
    with _timed(stages, "decode"):
        pictures = kept_pictures(deps, run.collection, twins)
        bad = decode_new(to_embed, pictures)
    planned = planned.without(bad)
    fresh = {id: as_item(run.source, planned.records[id], pictures) for id in planned.plan.embed}
    updated = {id: planned.updated_item(run.source, id) for id in planned.plan.update}
    digests = {id: planned.records[id].digest for id in fresh | updated}
    with _timed(stages, "store"), deps.sessions.begin() as session:
        runs.require_running(session, run.id)
        keep_pictures(deps, session, (planned.records[id] for id in fresh))
        catalog.save_items(session, {id: (item, digests[id]) for id, item in (fresh | updated).items()})
        runs.save_rejects(session, run.id, run.source, planned.rejects)
        catalog.release(session, run.id, bad)
    with _timed(stages, "embed"):
        points, truncated = embed_all(deps.encoder, fresh, digests, pictures)
    with _timed(stages, "index"):
        index.upsert(deps.vectors, run.collection, points, dim=run.dim)
        index.overwrite_payloads(
            deps.vectors, run.collection, {id: (item, digests[id]) for id, item in updated.items()}
        )
    with _timed(stages, "mark"), deps.sessions.begin() as session:
        runs.require_running(session, run.id)
        catalog.mark_embedded(session, run.collection, digests)
    seen = sum(item.picture is not None for item in fresh.values())
    shown = sum(picture.image is not None for picture in pictures.values())
    besides = Counter(truncated=truncated, reused=seen - shown)
    return planned.as_report(rows) + BatchReport(besides, stages=stages)


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture of a batch, whichever items share it: its pixels, or the vector they gave before."""

    width: int
    height: int
    format: str
    image: Decoded | None
    vector: NDArray[np.float32] | None


def kept_pictures(deps: Deps, collection: str, twins: Mapping[str, Twin]) -> dict[str, Seen]:
    """Return the pictures, by SHA-256, that have a vector already, at this item or at another."""
    wanted = {twin.id: twin.content_hash for twin in twins.values()}
    vectors = index.picture_vectors(deps.vectors, collection, wanted)
    return {
        sha256: Seen(twin.picture.width, twin.picture.height, twin.picture.format, None, vectors[twin.id])
        for sha256, twin in twins.items()
        if twin.id in vectors
    }


def decode_new(wanted: Mapping[UUID, Fetched], pictures: dict[str, Seen]) -> dict[UUID, Rejected]:
    """Pass the pictures of `wanted` through the gate, each once, and add them to `pictures`.

    Returns:
        The records whose pictures did not pass.
    """
    bad = {}
    for id, one in wanted.items():
        if one.data is None or one.sha256 is None or one.sha256 in pictures:
            continue
        try:
            decoded = decode_image(one.data, name=one.record.place)
        except BadImage as error:
            bad[id] = rejected(one.record, error.reason, str(error))
        else:
            pictures[one.sha256] = Seen(decoded.width, decoded.height, decoded.format, decoded, None)
    return bad


def as_item(source: str, one: Fetched, pictures: Mapping[str, Seen]) -> Item:
    """Return the item that `one` is, with what its pixels told."""
    if one.sha256 is None:
        return one.as_item(source, None)
    seen = pictures[one.sha256]
    uri = one.record.image or ""
    return one.as_item(source, Picture(one.sha256, uri, seen.width, seen.height, seen.format))


def keep_pictures(deps: Deps, session: Session, fresh: Iterable[Fetched]) -> None:
    """Write picture bytes before the rows that need them, in the transaction of those rows."""
    if deps.blobs is None:
        return
    catalog.lock_blobs(session, alone=False)
    for one in fresh:
        if one.data is not None and one.sha256 is not None:
            deps.blobs.put(one.sha256, one.data)


def embed_all(
    encoder: Encoder, items: Mapping[UUID, Item], digests: Mapping[UUID, Digest], pictures: Mapping[str, Seen]
) -> tuple[list[Point], int]:
    """Return a point for each item, and how many texts the model reads only the beginning of.

    Args:
        pictures: by SHA-256, those of all `items`; one without a vector is shown to the model, once.
    """
    new = {sha256: seen.image.image for sha256, seen in pictures.items() if seen.image is not None}
    vectors = dict(zip(new, encoder.images(list(new.values())), strict=True))
    vectors |= {sha256: seen.vector for sha256, seen in pictures.items() if seen.vector is not None}
    texts = [text for item in items.values() for text in item.embedded_texts]
    rows = encoder.texts(texts)
    points, start = [], 0
    for id, item in items.items():
        end = start + len(item.embedded_texts)
        image = vectors[item.picture.sha256] if item.picture else None
        points.append(Point(item, digests[id], image, rows[start:end]))
        start = end
    return points, sum(encoder.truncated(texts))


@contextmanager
def _timed(stages: Counter[str], name: str) -> Iterator[None]:
    start = time.perf_counter_ns()
    try:
        yield
    finally:
        stages[name] += (time.perf_counter_ns() - start) // 1_000_000
