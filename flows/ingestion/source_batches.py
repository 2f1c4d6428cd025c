"""From source rows to a plan: fetch the images, find keys that come twice, compare with what is stored."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from uuid import UUID

from sqlalchemy.orm import Session

from embedding.images.decode import BadImage
from embedding.pipeline import side_by_side
from flows.config.settings import Limits
from flows.ingestion.report import BatchReport
from flows.resources.images import fetch_image
from storage.consistency.change_plan import Plan, plan_batch
from storage.postgres import catalog
from storage.postgres.catalog import Stored
from storage.qdrant import Collection
from storage.records import Digest, Item, Origin, Picture, Record, Rejected, digest_of, item_id
from storage.sources import FetchError, printable

Row = Record | Rejected
NONE_BAD: Mapping[str, BadImage] = MappingProxyType({})
FETCHES_AT_ONCE = 16
"""Pictures behind URLs take their time, most of it waiting."""

MOST_BYTES = 64 * 2**20
"""A batch ends with the image that makes it larger: several batches are in memory at once."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """When a batch is full: with so many rows, or so many images, which cost a model far more."""

    rows: int
    pictures: int


@dataclass(frozen=True, slots=True)
class Run:
    """What every batch of one run shares."""

    id: UUID
    source: str
    collection: Collection
    langs: tuple[str, ...]
    limits: Limits
    revive: bool = False
    """Whether items that somebody asked to delete are taken in again."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A record with the bytes of its image."""

    record: Record
    data: bytes | None
    sha256: str | None
    digest: Digest

    def item_id(self, source: str) -> UUID:
        return item_id(source, self.record.key)

    def as_item(self, source: str, picture: Picture | None) -> Item:
        return Item(source, self.record.key, self.record.texts, picture, self.record.metadata)


@dataclass(frozen=True, slots=True)
class Read:
    """Some rows of a source, with the bytes of their images."""

    rows: int
    """A reject counts as all the rows that it stands for."""

    fetched: tuple[Fetched, ...]
    rejects: tuple[Rejected, ...]
    """Rows that are no records, and records whose images could not be read."""

    def hidden_keys(self) -> set[str]:
        """Return the keys of rows that may stand inside these."""
        rows: tuple[Row, ...] = (*self.rejects, *(one.record for one in self.fetched))
        return {key for row in rows for key in row.hides}


@dataclass(frozen=True, slots=True)
class Known:
    """What the stores know of the records of a batch, before anything is decided."""

    stored: Mapping[UUID, Stored]
    kept_out: frozenset[UUID]
    """Items that somebody asked to delete, and that are not revived."""

    def wants_model(self, id: UUID, one: Fetched) -> bool:
        """Whether the record would be embedded: it is new, or its content is."""
        mark = self.stored[id].mark if id in self.stored else None
        return id not in self.kept_out and (mark is None or mark.content != one.digest.content)


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch that has been compared with what is stored."""

    rows: int
    records: Mapping[UUID, Fetched]
    known: Known
    plan: Plan
    rejects: tuple[Rejected, ...]
    still_deleted: int
    """Records that somebody asked to delete: their source still has them, and they stay deleted."""

    def updated_item(self, source: str, id: UUID) -> Item:
        """Return the item whose vectors stay; its image has the same bytes as before, perhaps elsewhere."""
        one, picture = self.records[id], self.known.stored[id].picture
        image, strangers = one.record.image, one.record.from_strangers
        if picture is not None and image is not None:
            picture = replace(picture, uri=image, from_strangers=strangers)
        return one.as_item(source, picture)

    def as_report(self) -> BatchReport:
        """Return what becomes of the batch, in numbers."""
        counts = Counter(
            read=self.rows,
            unchanged=len(self.plan.unchanged),
            embedded=len(self.plan.embed),
            updated=len(self.plan.update),
            rejected=sum(reject.rows for reject in self.rejects),
            still_deleted=self.still_deleted,
        )
        reasons = Counter[str]()
        for reject in self.rejects:
            reasons[reject.reason] += reject.rows
        return BatchReport(counts, reasons)


def read_batches(run: Run, rows: Iterable[Row], sizes: Sizes) -> Iterator[Read]:
    """Yield the rows of a source in batches, with the images' bytes; several are fetched at once."""
    rows_read, fetched, rejects = 0, list[Fetched](), list[Rejected]()
    pictures = size = 0
    for one in side_by_side(partial(read_row, run), rows, threads=FETCHES_AT_ONCE, slow=has_picture):
        if isinstance(one, Rejected):
            rows_read += one.rows
            rejects.append(one)
        else:
            rows_read += 1
            fetched.append(one)
            pictures += one.data is not None
            size += len(one.data or b"")
        if rows_read >= sizes.rows or pictures == sizes.pictures or size >= MOST_BYTES:
            yield Read(rows_read, tuple(fetched), tuple(rejects))
            rows_read, fetched, rejects = 0, [], []
            pictures = size = 0
    if rows_read:
        yield Read(rows_read, tuple(fetched), tuple(rejects))


def has_picture(row: Row) -> bool:
    """Whether something is to be fetched for `row`."""
    return isinstance(row, Record) and row.image is not None and row.data is None


def read_row(run: Run, row: Row) -> Fetched | Rejected:
    """Return a record with the bytes of its image; one without anything to embed is rejected as well."""
    if isinstance(row, Rejected):
        return row
    record = row.select_languages(run.langs)
    if record.image is None and not any(text.embedded for text in record.texts):
        why = f"{record.place}: no picture, and no text in an embedded language; name it with --langs"
        return rejected(record, "nothing_to_embed", why)
    try:
        data = picture_of(record, run.limits)
    except FetchError as error:
        return rejected(record, error.reason, f"{record.place}: {error}")
    sha256 = None if data is None else hashlib.sha256(data).hexdigest()
    return Fetched(record, data, sha256, digest_of(record, sha256))


def look_up(session: Session, run: Run, read: Read) -> Known:
    """Return what Postgres knows of the records that were read."""
    ids = [one.item_id(run.source) for one in read.fetched]
    kept_out = frozenset() if run.revive else frozenset(catalog.asked_to_delete(session, ids))
    return Known(catalog.stored(session, run.collection.name, ids), kept_out)


def plan_rows(
    session: Session, run: Run, read: Read, known: Known, bad: Mapping[str, BadImage] = NONE_BAD
) -> Planned:
    """Decide what the records of a batch need; the run's claims are all that is written.

    Of the records with one key the first counts that can be taken in, in the whole run.

    Args:
        bad: by SHA-256, the new images that cannot be shown to a model.
    """
    rejects = list(read.rejects)
    unique: dict[UUID, Fetched] = {}
    for one in read.fetched:
        id = one.item_id(run.source)
        if known.wants_model(id, one) and (problem := bad.get(one.sha256 or "")):
            rejects.append(rejected(one.record, problem.reason, str(problem.of(one.record.place))))
        elif id in unique:
            rejects.append(_second(one.record, unique[id].record.place))
        else:
            unique[id] = one
    met = read.hidden_keys() | {one.key for one in rejects if one.key is not None}
    catalog.meet(session, run.id, {item_id(run.source, key) for key in met})
    places = {id: one.record.place for id, one in unique.items()}
    for id, place in catalog.claim(session, run.id, places).items():
        rejects.append(_second(unique.pop(id).record, place))
    wanted = {id: one for id, one in unique.items() if id not in known.kept_out}
    marked = {id: entry.mark for id, entry in known.stored.items() if entry.mark}
    plan = plan_batch({id: one.digest for id, one in wanted.items()}, marked)
    return Planned(read.rows, wanted, known, plan, tuple(rejects), len(unique) - len(wanted))


def picture_of(record: Record, limits: Limits) -> bytes | None:
    """Return the bytes of the record's image, which came with it or are fetched; None without an image.

    Raises:
        FetchError: they cannot be had, or there are too many of them.
    """
    if record.image is None:
        return None
    if record.data is None:
        return fetch_image(Origin(record.image, record.from_strangers, record.folder), limits)
    if len(record.data) > limits.max_picture_bytes:
        raise FetchError(
            "too_large", f"its picture has over {limits.max_picture_bytes:,} bytes; make it smaller"
        )
    return record.data


def _second(record: Record, first_place: str) -> Rejected:
    why = f"{record.place}: key {record.key!r} is taken by {first_place}; give each record its own key"
    return rejected(record, "duplicate_key", why)


def rejected(record: Record, reason: str, message: str) -> Rejected:
    """Return `record` as a reject; `message` names it and says what to do."""
    row = {"key": record.key, "image": record.image, "texts": [text.text for text in record.texts]}
    raw = json.dumps(row, ensure_ascii=False)
    return Rejected(record.place, record.key, reason, printable(message), printable(raw), hides=record.hides)
