"""Batches of records on their way from a source to the stores."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from flows.ingestion.image_cache import CachedImage
from flows.ingestion.report import BatchReport
from storage.consistency.change_plan import Plan
from storage.postgres.catalog import ItemState
from storage.qdrant import Point
from storage.records import Digest, ImageInfo, Item, Record, Rejected, item_id


@dataclass(frozen=True, slots=True)
class FetchedRecord:
    """Hold a record with the bytes of its image."""

    record: Record
    data: bytes | None
    sha256: str | None
    digest: Digest

    def item_id(self, source: str) -> UUID:
        return item_id(source, self.record.key)

    def as_item(self, source: str, image: ImageInfo | None) -> Item:
        return Item(source, self.record.key, self.record.texts, image, self.record.metadata)


@dataclass(frozen=True, slots=True)
class FetchedBatch:
    """Hold rows of a source with the bytes of their images."""

    rows: int
    """Rows of the source; a reject counts as all the rows that it stands for."""

    records: tuple[FetchedRecord, ...]
    rejects: tuple[Rejected, ...]
    """Rows that are no records, and records whose images could not be read."""

    kept: tuple[str, ...] = ()
    """Keys of excluded files, whose items are not missing."""

    stored: Mapping[UUID, ItemState] = field(default_factory=dict)
    """State of each record's item in the stores, as `look_up` reads it."""

    excluded: frozenset[UUID] = frozenset()
    """Items that were deleted on request and that the run does not revive, as `look_up` reads them."""

    images: Mapping[str, CachedImage] = field(default_factory=dict)
    """By SHA-256, the images of the records to embed, as `start_decoding` submits them."""

    def hidden_keys(self) -> set[str]:
        """Return the keys that may be hidden inside the rows."""
        rows: tuple[Record | Rejected, ...] = (*self.rejects, *(one.record for one in self.records))
        return {key for row in rows for key in row.hides}

    def needs_embedding(self, id: UUID, one: FetchedRecord) -> bool:
        """Return whether the item or the content of a record is new."""
        state = self.stored[id].mark if id in self.stored else None
        return id not in self.excluded and (state is None or state.content != one.digest.content)


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """Hold the records of a batch and the planned changes."""

    rows: int
    records: Mapping[UUID, FetchedRecord]
    stored: Mapping[UUID, ItemState]
    plan: Plan
    rejects: tuple[Rejected, ...]
    still_deleted: int
    """Records whose items stay deleted, because a user deleted them."""

    excluded: int = 0
    """Items of files that are excluded now, and that stay."""

    fresh: Mapping[UUID, Item] = field(default_factory=dict)
    """Items to embed, once `store_records` has written them to Postgres."""

    updated: Mapping[UUID, Item] = field(default_factory=dict)
    """Items whose payload is replaced, once `store_records` has written them to Postgres."""

    images: Mapping[str, CachedImage] = field(default_factory=dict)
    """By SHA-256, the images of `fresh`."""

    @property
    def digests(self) -> dict[UUID, Digest]:
        """Digests of the items that are embedded or updated."""
        return {id: self.records[id].digest for id in (*self.fresh, *self.updated)}

    def updated_item(self, source: str, id: UUID) -> Item:
        """Return an item that keeps its vectors.

        Its image has the same bytes as before, perhaps at another URI.
        """
        one, image = self.records[id], self.stored[id].image
        uri, strangers = one.record.image, one.record.from_strangers
        if image is not None and uri is not None:
            image = replace(image, uri=uri, from_strangers=strangers)
        return one.as_item(source, image)

    def as_report(self) -> BatchReport:
        """Return the counts of the planned changes."""
        counts = Counter(
            read=self.rows,
            unchanged=len(self.plan.unchanged),
            embedded=len(self.plan.embed),
            updated=len(self.plan.update),
            rejected=sum(reject.rows for reject in self.rejects),
            still_deleted=self.still_deleted,
            not_deleted=self.excluded,
        )
        reasons = Counter[str]()
        for reject in self.rejects:
            reasons[reject.reason] += reject.rows
        return BatchReport(counts, reasons)


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Hold the points of a batch, ready to be written to Qdrant."""

    planned: PlannedBatch
    points: list[Point]
    encoded_images: int
    """Images that the model has encoded; the others had a vector."""

    truncated: int
    """Texts of which the model reads only the beginning."""
