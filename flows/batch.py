"""One batch from source rows to searchable points. Plain functions; safe to repeat at any point."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from uuid import UUID

from sqlalchemy.orm import Session

from embedding.encoder import Encoder
from embedding.images import BadImage, Decoded, decode_image
from flows.deps import Deps
from storage import catalog, index, runs
from storage.catalog import Stored
from storage.index import Point
from storage.plan import Plan, plan_batch
from storage.records import Digest, Ignored, Item, Picture, Record, Rejected, digest_of, item_id
from storage.source import FetchError, fetch

Row = Record | Rejected | Ignored
RAW_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a record may cost."""

    max_picture_bytes: int
    fetch_timeout_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """What every batch of one run shares."""

    id: UUID
    source: str
    collection: str
    dim: int
    langs: tuple[str, ...]
    limits: Limits


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What became of one batch, as counts; never arrays, so that Prefect can carry it."""

    counts: Counter[str] = field(default_factory=Counter)
    """`read` = `unchanged` + `embedded` + `updated` + `rejected`; `ignored` and `truncated` besides."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Rejects by reason code."""

    stages: Counter[str] = field(default_factory=Counter)
    """Milliseconds by stage."""

    def __add__(self, other: "BatchReport") -> "BatchReport":
        return BatchReport(
            self.counts + other.counts, self.reasons + other.reasons, self.stages + other.stages
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """A record with the bytes of its picture."""

    record: Record
    data: bytes | None
    sha256: str | None

    @property
    def digest(self) -> Digest:
        return digest_of(self.record, self.sha256)


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch that has been compared with what is stored."""

    records: Mapping[UUID, Fetched]
    known: Mapping[UUID, Stored]
    plan: Plan
    rejects: tuple[Rejected, ...]

    def without(self, bad: Mapping[UUID, Rejected]) -> "Planned":
        """Return the plan less the records that proved bad."""
        embed = tuple(id for id in self.plan.embed if id not in bad)
        return replace(self, plan=replace(self.plan, embed=embed), rejects=(*self.rejects, *bad.values()))

    def updated_item(self, source: str, id: UUID) -> Item:
        """Return the item whose vectors stay; its picture has the same bytes as before, perhaps elsewhere."""
        record, picture = self.records[id].record, self.known[id].picture
        if picture is not None and record.image is not None:
            picture = replace(picture, uri=record.image)
        return Item(source, record.key, record.texts, picture, record.metadata)

    def as_report(self, rows: Sequence[Row]) -> BatchReport:
        """Return the counts of the batch `rows`."""
        ignored = sum(isinstance(row, Ignored) for row in rows)
        counts = Counter(
            read=len(rows) - ignored,
            unchanged=len(self.plan.unchanged),
            embedded=len(self.plan.embed),
            updated=len(self.plan.update),
            rejected=len(self.rejects),
            ignored=ignored,
        )
        return BatchReport(counts, Counter(reject.reason for reject in self.rejects))


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
    with _timed(stages, "embed"):
        points, truncated = embed_all(deps.encoder, fresh, pictures)
    with _timed(stages, "index"):
        index.upsert(deps.vectors, run.collection, points, dim=run.dim)
        index.overwrite_payloads(deps.vectors, run.collection, updated.values())
    with _timed(stages, "mark"), deps.sessions.begin() as session:
        catalog.mark_embedded(session, run.collection, digests)
    return planned.as_report(rows) + BatchReport(Counter(truncated=truncated), stages=stages)


def fetch_rows(run: Run, rows: Sequence[Row]) -> tuple[list[Fetched], list[Rejected]]:
    """Return the records of a batch with their pictures' bytes, and the rejects so far."""
    records = [chosen(row, run.langs) for row in rows if isinstance(row, Record)]
    fetched, unread = fetch_all(records, run.limits)
    return fetched, [*(row for row in rows if isinstance(row, Rejected)), *unread]


def plan_rows(
    session: Session, run: Run, fetched: Sequence[Fetched], rejects: Sequence[Rejected]
) -> "Planned":
    """Decide what the records of a batch need; the run's claims are all that is written."""
    catalog.meet(session, run.id, {item_id(run.source, bad.key) for bad in rejects if bad.key is not None})
    unique, twice = first_of_each(session, run, fetched)
    known = catalog.stored(session, run.collection, unique)
    marked = {id: entry.mark for id, entry in known.items() if entry.mark}
    plan = plan_batch({id: one.digest for id, one in unique.items()}, marked)
    return Planned(unique, known, plan, (*rejects, *twice))


def chosen(record: Record, langs: Sequence[str]) -> Record:
    """Return `record` with each text told whether it is embedded: those without a tag, and `langs`."""
    return replace(
        record,
        texts=tuple(
            replace(text, embedded=text.lang is None or "all" in langs or text.lang in langs)
            for text in record.texts
        ),
    )


def fetch_all(records: Sequence[Record], limits: Limits) -> tuple[list[Fetched], list[Rejected]]:
    """Read the picture of each record; a record without anything to embed is rejected as well."""
    fetched, rejected = [], []
    for record in records:
        if record.image is None and not any(text.embedded for text in record.texts):
            why = f"{record.place}: no picture, and no text in an embedded language; name it with --langs"
            rejected.append(_reject(record, "nothing_to_embed", why))
            continue
        try:
            data = _picture_bytes(record.image, limits) if record.image else None
        except FetchError as error:
            rejected.append(_reject(record, error.reason, f"{record.place}: {error}"))
            continue
        fetched.append(Fetched(record, data, None if data is None else hashlib.sha256(data).hexdigest()))
    return fetched, rejected


def first_of_each(
    session: Session, run: Run, fetched: Sequence[Fetched]
) -> tuple[dict[UUID, Fetched], list[Rejected]]:
    """Keep the first record of each key in the whole run, by item id; the others are rejected."""
    unique: dict[UUID, Fetched] = {}
    places: dict[UUID, str] = {}
    twice = []
    for one in fetched:
        id = item_id(run.source, one.record.key)
        if id in unique:
            twice.append(_second(one.record, places[id]))
        else:
            unique[id], places[id] = one, one.record.place
    for id, place in catalog.claim(session, run.id, places).items():
        twice.append(_second(unique.pop(id).record, place))
    return unique, twice


def decode_all(wanted: Mapping[UUID, Fetched]) -> tuple[dict[UUID, Decoded], dict[UUID, Rejected]]:
    """Pass the pictures of `wanted` through the gate."""
    decoded, bad = {}, {}
    for id, one in wanted.items():
        if one.data is None:
            continue
        try:
            decoded[id] = decode_image(one.data, name=one.record.place)
        except BadImage as error:
            bad[id] = _reject(one.record, error.reason, str(error))
    return decoded, bad


def as_item(source: str, one: Fetched, decoded: Decoded | None) -> Item:
    """Return the item that `one` is, with what its pixels told."""
    picture = None
    if decoded is not None:
        uri, sha256 = one.record.image or "", one.sha256 or ""
        picture = Picture(sha256, uri, decoded.width, decoded.height, decoded.format)
    return Item(source, one.record.key, one.record.texts, picture, one.record.metadata)


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


def _picture_bytes(uri: str, limits: Limits) -> bytes:
    return fetch(uri, max_bytes=limits.max_picture_bytes, timeout_s=limits.fetch_timeout_s)


def _second(record: Record, first_place: str) -> Rejected:
    why = f"{record.place}: key {record.key!r} is taken by {first_place}; give each record its own key"
    return _reject(record, "duplicate_key", why)


def _reject(record: Record, reason: str, message: str) -> Rejected:
    row = {"key": record.key, "image": record.image, "texts": [text.text for text in record.texts]}
    raw = json.dumps(row, ensure_ascii=False)[:RAW_CHARS]
    return Rejected(record.place, record.key, reason, message, raw)


@contextmanager
def _timed(stages: Counter[str], name: str) -> Iterator[None]:
    start = time.perf_counter_ns()
    try:
        yield
    finally:
        stages[name] += (time.perf_counter_ns() - start) // 1_000_000
