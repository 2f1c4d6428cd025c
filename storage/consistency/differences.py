"""Compare Postgres and Qdrant: merge two streams in id order into differences."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from storage.records import Digest

PointId = UUID | int
"""Qdrant allows both; our ids are all UUIDs, so a number is a stray."""

Kind = Literal["missing", "stray", "stale", "wrong_vectors", "pending"]
"""Kinds of difference between one item and its point."""

DAMAGE = (
    "missing",
    "stray",
    "stale",
    "wrong_vectors",
    "missing_picture",
    "other_model",
    "no_alias",
    "lost_writes",
)
"""Kinds of difference between the stores that need a repair; `pending` is work that an ingest has left."""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """Describe a living item, and its embedding state in one collection."""

    id: UUID
    source: str
    key: str
    wanted: Digest
    """The digest that the point should be built from."""

    mark: Digest | None
    """The digest that the point was built from, by the embedding state; None without a state."""

    image: bool
    """Whether the item has an image, and so its point the vector `image`."""

    text: bool
    """Whether the item has embedded texts, and so its point the vector `text`."""


@dataclass(frozen=True, slots=True)
class PointEntry:
    """Describe a point in Qdrant."""

    id: PointId
    digest: Digest | None
    """None where the payload has no digest, as with points of other programs."""

    image: bool
    text: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """Name the difference between one item and its point.

    `missing`: an embedding state without its point. `stray`: a point without a living item. `stale`: a point
    built from another digest than the embedding state says. `wrong_vectors`: a vector that the item has no
    content for, or the reverse. `pending`: an item that no ingest has finished; this is work, not damage.
    """

    kind: Kind
    id: PointId
    entry: CatalogEntry | None
    point: PointEntry | None

    @property
    def only_payload(self) -> bool:
        """Whether the vectors are right, so that a repair needs no model."""
        if self.kind != "stale" or self.entry is None or self.point is None or self.point.digest is None:
            return False
        right = (self.point.image, self.point.text) == (self.entry.image, self.entry.text)
        return right and self.point.digest.content == self.entry.wanted.content


def compare(
    entries: Iterable[CatalogEntry], points: Iterable[PointEntry], *, complete: bool
) -> Iterator[Difference]:
    """Yield the differences of one collection in id order.

    Each stream is read once.

    Args:
        entries: all living items, by id.
        points: all points, by id: numbers first, then UUIDs, which is Qdrant's order.
        complete: whether the collection should hold every living item, as the searched one should.
    """
    entries, points = iter(entries), iter(points)
    entry, point = next(entries, None), next(points, None)
    while entry is not None or point is not None:
        if point is None or (entry is not None and id_order(entry.id) < id_order(point.id)):
            found, entry = find_difference(entry, None, complete=complete), next(entries, None)
        elif entry is None or id_order(point.id) < id_order(entry.id):
            found, point = find_difference(None, point, complete=complete), next(points, None)
        else:
            found = find_difference(entry, point, complete=complete)
            entry, point = next(entries, None), next(points, None)
        if found is not None:
            yield found


def find_difference(
    entry: CatalogEntry | None, point: PointEntry | None, *, complete: bool
) -> Difference | None:
    """Return the difference between one item and its point, or None."""
    if entry is None:
        return None if point is None else Difference("stray", point.id, None, point)
    if entry.mark is None or (complete and entry.mark != entry.wanted):
        return Difference("pending", entry.id, entry, point) if complete else None
    if point is None:
        return Difference("missing", entry.id, entry, None)
    if point.digest != entry.mark:
        return Difference("stale", entry.id, entry, point)
    if entry.mark == entry.wanted and (point.image, point.text) != (entry.image, entry.text):
        return Difference("wrong_vectors", entry.id, entry, point)
    return None


def id_order(id: PointId) -> tuple[bool, int]:
    """Return the sort key of an id, the order of Postgres."""
    return (True, id.int) if isinstance(id, UUID) else (False, id)
