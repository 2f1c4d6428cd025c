"""Read a source in batches and plan the changes of each."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from uuid import UUID

from sqlalchemy.orm import Session

from embedding.images.decode import BadImage
from embedding.pipeline import map_in_order
from flows.config.settings import Limits
from flows.ingestion.batches import FetchedBatch, FetchedRecord, PlannedBatch
from flows.resources.images import fetch_image
from storage.consistency.change_plan import plan_batch
from storage.postgres import catalog
from storage.qdrant import Collection
from storage.records import Ignored, Origin, Record, Rejected, digest_of, item_id
from storage.sources import FetchError, printable

Row = Record | Rejected
NO_ERRORS: Mapping[str, BadImage] = MappingProxyType({})
FETCHES_AT_ONCE = 16
"""Most of fetching an image from a URL is waiting."""

MOST_BYTES = 64 * 2**20
"""A batch ends with the image that makes it larger: several batches are in memory at once."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Limit a batch by rows and by images.

    An image costs a model far more than a text.
    """

    rows: int
    images: int


@dataclass(frozen=True, slots=True)
class IngestRun:
    """Hold the parameters that every batch of one run shares."""

    id: UUID
    source: str
    collection: Collection
    langs: tuple[str, ...]
    limits: Limits
    revive: bool = False
    """Whether items that were deleted on request are ingested again."""


def read_batches(run: IngestRun, rows: Iterable[Row | Ignored], size: BatchSize) -> Iterator[FetchedBatch]:
    """Yield the rows of a source in batches, with fetched images."""
    rows_read, records, rejects = 0, list[FetchedRecord](), list[Rejected]()
    kept = list[str]()
    images = total_bytes = 0
    for one in map_in_order(partial(fetch_row, run), rows, threads=FETCHES_AT_ONCE, slow=needs_fetch):
        if isinstance(one, Ignored):
            kept.append(one.key or one.place)
        elif isinstance(one, Rejected):
            rows_read += one.rows
            rejects.append(one)
        else:
            rows_read += 1
            records.append(one)
            images += one.data is not None
            total_bytes += len(one.data or b"")
        if rows_read + len(kept) >= size.rows or images == size.images or total_bytes >= MOST_BYTES:
            yield FetchedBatch(rows_read, tuple(records), tuple(rejects), kept=tuple(kept))
            rows_read, records, rejects, kept = 0, [], [], []
            images = total_bytes = 0
    if rows_read or kept:
        yield FetchedBatch(rows_read, tuple(records), tuple(rejects), kept=tuple(kept))


def needs_fetch(row: Row | Ignored) -> bool:
    """Return whether the image of `row` must be fetched."""
    return isinstance(row, Record) and row.image is not None and row.data is None


def fetch_row(run: IngestRun, row: Row | Ignored) -> FetchedRecord | Rejected | Ignored:
    """Return a record with its image bytes, or a reject.

    A record without anything to embed is a reject.
    """
    if not isinstance(row, Record):
        return row
    record = row.select_languages(run.langs)
    if record.image is None and not any(text.embedded for text in record.texts):
        why = f"{record.place}: no image, and no text in an embedded language; name it with --langs"
        return as_reject(record, "nothing_to_embed", why)
    try:
        data = image_bytes(record, run.limits)
    except FetchError as error:
        return as_reject(record, error.reason, f"{record.place}: {error}")
    sha256 = None if data is None else hashlib.sha256(data).hexdigest()
    return FetchedRecord(record, data, sha256, digest_of(record, sha256))


def look_up(session: Session, run: IngestRun, batch: FetchedBatch) -> FetchedBatch:
    """Return the batch with the stored state of its records."""
    ids = [one.item_id(run.source) for one in batch.records]
    excluded = frozenset() if run.revive else frozenset(catalog.deleted_on_request(session, ids))
    return replace(batch, stored=catalog.item_states(session, run.collection.name, ids), excluded=excluded)


def plan_rows(
    session: Session, run: IngestRun, batch: FetchedBatch, bad: Mapping[str, BadImage] = NO_ERRORS
) -> PlannedBatch:
    """Plan the changes of a batch.

    Only the claims of the run are written. Of the valid records with one key the first counts, in the
    whole run.

    Args:
        batch: with the stored states that `look_up` reads.
        bad: by SHA-256, the new images that cannot be decoded.
    """
    rejects = list(batch.rejects)
    unique: dict[UUID, FetchedRecord] = {}
    for one in batch.records:
        id = one.item_id(run.source)
        if batch.needs_embedding(id, one) and (error := bad.get(one.sha256 or "")):
            rejects.append(as_reject(one.record, error.reason, str(error.of(one.record.place))))
        elif id in unique:
            rejects.append(_duplicate(one.record, unique[id].record.place))
        else:
            unique[id] = one
    kept = [item_id(run.source, key) for key in batch.kept]
    catalog.record_rejected(session, run.id, kept)
    excluded = catalog.item_states(session, run.collection.name, kept)
    met = batch.hidden_keys() | {one.key for one in rejects if one.key is not None}
    catalog.record_rejected(session, run.id, {item_id(run.source, key) for key in met})
    places = {id: one.record.place for id, one in unique.items()}
    for id, place in catalog.claim(session, run.id, places).items():
        rejects.append(_duplicate(unique.pop(id).record, place))
    wanted = {id: one for id, one in unique.items() if id not in batch.excluded}
    embedded = {id: entry.mark for id, entry in batch.stored.items() if entry.mark}
    plan = plan_batch({id: one.digest for id, one in wanted.items()}, embedded)
    return PlannedBatch(
        batch.rows, wanted, batch.stored, plan, tuple(rejects), len(unique) - len(wanted), len(excluded)
    )


def image_bytes(record: Record, limits: Limits) -> bytes | None:
    """Return the bytes of a record's image; None without an image.

    Raises:
        FetchError: the bytes cannot be read, or there are too many.
    """
    if record.image is None:
        return None
    if record.data is None:
        return fetch_image(Origin(record.image, record.from_strangers, record.folder), limits)
    if len(record.data) > limits.max_picture_bytes:
        raise FetchError(
            "too_large", f"its image has over {limits.max_picture_bytes:,} bytes; make it smaller"
        )
    return record.data


def _duplicate(record: Record, first_place: str) -> Rejected:
    why = f"{record.place}: key {record.key!r} is taken by {first_place}; give each record its own key"
    return as_reject(record, "duplicate_key", why)


def as_reject(record: Record, reason: str, message: str) -> Rejected:
    """Return a record as a reject; `message` names it and the remedy."""
    row = {"key": record.key, "image": record.image, "texts": [text.text for text in record.texts]}
    raw = json.dumps(row, ensure_ascii=False)
    return Rejected(record.place, record.key, reason, printable(message), printable(raw), hides=record.hides)
