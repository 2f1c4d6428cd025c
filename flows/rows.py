"""From source rows to a plan: fetch the pictures, find keys that come twice, compare with what is stored."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy.orm import Session

from flows.deps import Stores
from flows.report import BatchReport
from flows.settings import Limits
from storage import catalog
from storage.catalog import Stored
from storage.plan import Plan, plan_batch
from storage.records import Digest, Item, Picture, Record, Rejected, digest_of, item_id
from storage.source import FetchError, fetch, printable

Row = Record | Rejected


@dataclass(frozen=True, slots=True)
class Run:
    """What every batch of one run shares."""

    id: UUID
    source: str
    collection: str
    dim: int
    langs: tuple[str, ...]
    limits: Limits
    revive: bool = False
    """Whether items that somebody asked to delete are taken in again."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A record with the bytes of its picture."""

    record: Record
    data: bytes | None
    sha256: str | None
    digest: Digest

    def as_item(self, source: str, picture: Picture | None) -> Item:
        return Item(source, self.record.key, self.record.texts, picture, self.record.metadata)


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch that has been compared with what is stored."""

    records: Mapping[UUID, Fetched]
    known: Mapping[UUID, Stored]
    plan: Plan
    rejects: tuple[Rejected, ...]
    still_deleted: int
    """Records that somebody asked to delete: their source still has them, and they stay deleted."""

    def without(self, bad: Mapping[UUID, Rejected]) -> "Planned":
        """Return the plan less the records that proved bad."""
        embed = tuple(id for id in self.plan.embed if id not in bad)
        return replace(self, plan=replace(self.plan, embed=embed), rejects=(*self.rejects, *bad.values()))

    def updated_item(self, source: str, id: UUID) -> Item:
        """Return the item whose vectors stay; its picture has the same bytes as before, perhaps elsewhere."""
        one, picture = self.records[id], self.known[id].picture
        if picture is not None and one.record.image is not None:
            picture = replace(picture, uri=one.record.image)
        return one.as_item(source, picture)

    def as_report(self, rows: Sequence[Row]) -> BatchReport:
        """Return what becomes of the batch `rows`, in numbers."""
        counts = Counter(
            read=len(rows),
            unchanged=len(self.plan.unchanged),
            embedded=len(self.plan.embed),
            updated=len(self.plan.update),
            rejected=len(self.rejects),
            still_deleted=self.still_deleted,
        )
        return BatchReport(counts, Counter(reject.reason for reject in self.rejects))


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
    kept_out = set() if run.revive else catalog.asked_to_delete(session, unique)
    unique = {id: one for id, one in unique.items() if id not in kept_out}
    known = catalog.stored(session, run.collection, unique)
    marked = {id: entry.mark for id, entry in known.items() if entry.mark}
    plan = plan_batch({id: one.digest for id, one in unique.items()}, marked)
    return Planned(unique, known, plan, (*rejects, *twice), len(kept_out))


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
    fetched, unread = [], []
    for record in records:
        if record.image is None and not any(text.embedded for text in record.texts):
            why = f"{record.place}: no picture, and no text in an embedded language; name it with --langs"
            unread.append(rejected(record, "nothing_to_embed", why))
            continue
        try:
            data = picture_bytes(record.image, limits) if record.image else None
        except FetchError as error:
            unread.append(rejected(record, error.reason, f"{record.place}: {error}"))
            continue
        sha256 = None if data is None else hashlib.sha256(data).hexdigest()
        fetched.append(Fetched(record, data, sha256, digest_of(record, sha256)))
    return fetched, unread


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


def picture_bytes(uri: str, limits: Limits) -> bytes:
    """Return the bytes at `uri`, as `fetch` does, within `limits`."""
    return fetch(
        uri,
        max_bytes=limits.max_picture_bytes,
        timeout_s=limits.fetch_timeout_s,
        private_redirects=limits.private_redirects,
    )


def kept_picture(stores: Stores, sha256: str, uri: str, limits: Limits) -> bytes | None:
    """Return an item's picture from where pictures are kept, else from its source; None where it is gone."""
    try:
        return picture_bytes(uri, limits) if stores.blobs is None else stores.blobs.get(sha256)
    except (FileNotFoundError, FetchError):
        return None


def _second(record: Record, first_place: str) -> Rejected:
    why = f"{record.place}: key {record.key!r} is taken by {first_place}; give each record its own key"
    return rejected(record, "duplicate_key", why)


def rejected(record: Record, reason: str, message: str) -> Rejected:
    """Return `record` as a reject; `message` names it and says what to do."""
    row = {"key": record.key, "image": record.image, "texts": [text.text for text in record.texts]}
    raw = json.dumps(row, ensure_ascii=False)
    return Rejected(record.place, record.key, reason, printable(message), printable(raw))
