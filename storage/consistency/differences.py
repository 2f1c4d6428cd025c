"""Where Postgres and Qdrant disagree. Pure: two streams in id order in, differences out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from storage.records import Digest

PointId = UUID | int
"""Qdrant allows both; ours are all UUIDs, so that a number is a stray."""

Kind = Literal["missing", "stray", "stale", "wrong_vectors", "pending"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A living item, as Postgres has it, and what it says of the item's point in one collection."""

    id: UUID
    source: str
    key: str
    wanted: Digest
    mark: Digest | None
    """What the point was made from, by its mark; None where no point is promised."""

    image: bool
    """Whether the item has an image, and so its point the vector `image`."""

    text: bool
    """Whether the item has texts that are embedded, and so its point the vector `text`."""


@dataclass(frozen=True, slots=True)
class Held:
    """A point, as Qdrant has it."""

    id: PointId
    digest: Digest | None
    """None where the payload has none, as with points that others wrote."""

    image: bool
    text: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with one point or item.

    `missing`: a mark promises a point that isn't there. `stray`: a point without a living item. `stale`:
    a point made from something else than the mark says. `wrong_vectors`: a vector for what the item hasn't,
    or none for what it has. `pending`: an item that no ingest has finished; this is work, not damage.
    """

    kind: Kind
    id: PointId
    kept: Kept | None
    held: Held | None

    @property
    def only_payload(self) -> bool:
        """Whether the vectors are right, and no model is needed to mend it."""
        if self.kind != "stale" or self.kept is None or self.held is None or self.held.digest is None:
            return False
        right = (self.held.image, self.held.text) == (self.kept.image, self.kept.text)
        return right and self.held.digest.content == self.kept.wanted.content


def compare(kept: Iterable[Kept], held: Iterable[Held], *, complete: bool) -> Iterator[Difference]:
    """Yield the differences of one collection, in id order; both streams are read once, in step.

    Args:
        kept: all living items, by id.
        held: all points, by id: numbers first, then UUIDs, which is Qdrant's order.
        complete: whether every living item belongs into the collection, as into the one that is searched.
    """
    items, points = iter(kept), iter(held)
    item, point = next(items, None), next(points, None)
    while item is not None or point is not None:
        if point is None or (item is not None and order(item.id) < order(point.id)):
            found, item = judge(item, None, complete=complete), next(items, None)
        elif item is None or order(point.id) < order(item.id):
            found, point = judge(None, point, complete=complete), next(points, None)
        else:
            found = judge(item, point, complete=complete)
            item, point = next(items, None), next(points, None)
        if found is not None:
            yield found


def judge(kept: Kept | None, held: Held | None, *, complete: bool) -> Difference | None:
    """Return what is wrong with one item and its point, or None."""
    if kept is None:
        return None if held is None else Difference("stray", held.id, None, held)
    if kept.mark is None or (complete and kept.mark != kept.wanted):
        return Difference("pending", kept.id, kept, held) if complete else None
    if held is None:
        return Difference("missing", kept.id, kept, None)
    if held.digest != kept.mark:
        return Difference("stale", kept.id, kept, held)
    if kept.mark == kept.wanted and (held.image, held.text) != (kept.image, kept.text):
        return Difference("wrong_vectors", kept.id, kept, held)
    return None


def order(id: PointId) -> tuple[bool, int]:
    """Return what to sort ids by: Postgres sorts UUIDs so as well."""
    return (True, id.int) if isinstance(id, UUID) else (False, id)
