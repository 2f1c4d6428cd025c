"""One batch from source rows to searchable points. Plain functions; safe to repeat at any point."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy.orm import Session

from embedding.encoder import Encoder
from embedding.images import BadImage, Decoded, decode_image
from flows.deps import Deps
from flows.report import BatchReport
from flows.rows import Fetched, Row, Run, fetch_rows, plan_rows, rejected
from storage import catalog, index, runs
from storage.index import Point
from storage.records import Item, Picture, Rejected


def ingest_batch(deps: Deps, run: Run, rows: Sequence[Row]) -> BatchReport:
    """Embed and store one batch. Ids are derived and every write is an upsert, so repeating it is safe.

    Vectors are written before the marks that say so: a crash between the two leaves work that the next
    run repeats, never a mark that promises a vector nobody wrote.
    """
    stages: Counter[str] = Counter()
    with _timed(stages, "read"):
        fetched, unread = fetch_rows(run, rows)
    with _timed(stages, "plan"), deps.sessions.begin() as session:
        planned = plan_rows(session, run, fetched, unread)
    with _timed(stages, "decode"):
        pictures, bad = decode_all({id: planned.records[id] for id in planned.plan.embed})
    planned = planned.without(bad)
    fresh = {id: as_item(run.source, planned.records[id], pictures.get(id)) for id in planned.plan.embed}
    updated = {id: planned.updated_item(run.source, id) for id in planned.plan.update}
    digests = {id: planned.records[id].digest for id in fresh | updated}
    with _timed(stages, "store"), deps.sessions.begin() as session:
        keep_pictures(deps, session, (planned.records[id] for id in fresh))
        catalog.save_items(session, {id: (item, digests[id]) for id, item in (fresh | updated).items()})
        runs.save_rejects(session, run.id, run.source, planned.rejects)
        catalog.release(session, run.id, bad)
    with _timed(stages, "embed"):
        points, truncated = embed_all(deps.encoder, fresh, pictures)
    with _timed(stages, "index"):
        index.upsert(deps.vectors, run.collection, points, dim=run.dim)
        index.overwrite_payloads(deps.vectors, run.collection, updated.values())
    with _timed(stages, "mark"), deps.sessions.begin() as session:
        catalog.mark_embedded(session, run.collection, digests)
    return planned.as_report(rows) + BatchReport(Counter(truncated=truncated), stages=stages)


def decode_all(wanted: Mapping[UUID, Fetched]) -> tuple[dict[UUID, Decoded], dict[UUID, Rejected]]:
    """Pass the pictures of `wanted` through the gate."""
    decoded, bad = {}, {}
    for id, one in wanted.items():
        if one.data is None:
            continue
        try:
            decoded[id] = decode_image(one.data, name=one.record.place)
        except BadImage as error:
            bad[id] = rejected(one.record, error.reason, str(error))
    return decoded, bad


def as_item(source: str, one: Fetched, decoded: Decoded | None) -> Item:
    """Return the item that `one` is, with what its pixels told."""
    picture = None
    if decoded is not None:
        uri, sha256 = one.record.image or "", one.sha256 or ""
        picture = Picture(sha256, uri, decoded.width, decoded.height, decoded.format)
    return one.as_item(source, picture)


def keep_pictures(deps: Deps, session: Session, fresh: Iterable[Fetched]) -> None:
    """Write picture bytes before the rows that need them, in the transaction of those rows."""
    if deps.blobs is None:
        return
    catalog.lock_blobs(session, alone=False)
    for one in fresh:
        if one.data is not None and one.sha256 is not None:
            deps.blobs.put(one.sha256, one.data)


def embed_all(
    encoder: Encoder, items: Mapping[UUID, Item], pictures: Mapping[UUID, Decoded]
) -> tuple[list[Point], int]:
    """Return a point for each item, and how many texts the model reads only the beginning of."""
    with_picture = [id for id in items if id in pictures]
    images = encoder.images([pictures[id].image for id in with_picture])
    image_of = dict(zip(with_picture, images, strict=True))
    texts = [text for item in items.values() for text in item.embedded_texts]
    rows = encoder.texts(texts)
    points, start = [], 0
    for id, item in items.items():
        end = start + len(item.embedded_texts)
        points.append(Point(item, image_of.get(id), rows[start:end]))
        start = end
    return points, sum(encoder.truncated(texts))


@contextmanager
def _timed(stages: Counter[str], name: str) -> Iterator[None]:
    start = time.perf_counter_ns()
    try:
        yield
    finally:
        stages[name] += (time.perf_counter_ns() - start) // 1_000_000
