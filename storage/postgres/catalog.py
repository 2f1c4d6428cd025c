"""Store items and their embedding states in Postgres; the caller commits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast
from uuid import UUID

from sqlalchemy import ColumnElement, Table, and_, delete, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.orm import Session

from storage.consistency.differences import CatalogEntry
from storage.postgres.bulk import among, from_rows
from storage.postgres.schema import ItemRow, MarkRow, SeenRow
from storage.records import Digest, ImageInfo, Item, Origin, Text, Where, any_reading

EMBEDDED = text("'$[*] ? (@.embedded == true)'")

UNUSABLE = ""
"""The place of a claim by a rejected row; a valid row with the same key replaces the claim."""


# the tables, not the classes: an attribute `metadata` of a class is SQLAlchemy's own
ITEMS, MARKS, SEEN = (cast(Table, row.__table__) for row in (ItemRow, MarkRow, SeenRow))


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """Refer to a living item with an embedded image."""

    id: UUID
    content_hash: str
    image: ImageInfo


@dataclass(frozen=True, slots=True)
class ItemState:
    """Describe a stored item before this run."""

    mark: Digest | None
    """The digest that its point was built from; None without a point."""

    image: ImageInfo | None


def record_rejected(session: Session, run_id: UUID, ids: Iterable[UUID]) -> None:
    """Record that this run met the items `ids` in rejected rows."""
    rows = [_seen(run_id, id, UNUSABLE) for id in ids]
    if rows:
        session.execute(_insert(SEEN, rows).on_conflict_do_nothing())


def claim(session: Session, run_id: UUID, places: Mapping[UUID, str]) -> dict[UUID, str]:
    """Claim items for this run by their places; return conflicting claims.

    A batch that is retried meets its own claims, which are no conflicts.

    Returns:
        By item id, the other place that claimed it first.
    """
    if not places:
        return {}
    statement = _insert(SEEN, [_seen(run_id, id, place) for id, place in places.items()])
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[SeenRow.run_id, SeenRow.item_id],
            set_={"place": statement.excluded.place},
            where=SeenRow.place == UNUSABLE,
        )
    )
    first = select(SeenRow.item_id, SeenRow.place).where(
        SeenRow.run_id == run_id, among(SeenRow.item_id, places)
    )
    return {id: place for id, place in session.execute(first).tuples() if place != places[id]}


def item_states(session: Session, collection: str, ids: Iterable[UUID]) -> dict[UUID, ItemState]:
    """Return the state of each living item among `ids`."""
    marked = and_(MarkRow.item_id == ItemRow.id, MarkRow.collection == collection)
    statement = (
        select(ItemRow, MarkRow.content_hash, MarkRow.record_hash)
        .outerjoin(MarkRow, marked)
        .where(among(ItemRow.id, ids), ItemRow.deleted.is_(None))
    )
    return {
        row.id: ItemState(Digest(content, record) if content else None, _image(row))
        for row, content, record in session.execute(statement).tuples()
    }


def deleted_on_request(session: Session, ids: Iterable[UUID]) -> set[UUID]:
    """Return those of `ids` that were deleted on request.

    They stay deleted even while their source still has them.
    """
    statement = select(ItemRow.id).where(among(ItemRow.id, ids), ItemRow.deletion == "asked")
    return set(session.scalars(statement))


def embedded_duplicates(session: Session, collection: str, shas: Iterable[str]) -> dict[str, EmbeddedImage]:
    """Return embedded items with the same image bytes, by SHA-256."""
    marked = and_(
        MarkRow.item_id == ItemRow.id,
        MarkRow.collection == collection,
        MarkRow.content_hash == ItemRow.content_hash,
    )
    statement = (
        select(ItemRow)
        .join(MarkRow, marked)
        .where(among(ItemRow.image_sha256, shas), ItemRow.deleted.is_(None))
        .order_by(ItemRow.image_sha256, ItemRow.id)
        .distinct(ItemRow.image_sha256)
    )
    pairs = ((row, _image(row)) for row in session.scalars(statement))
    return {image.sha256: EmbeddedImage(row.id, row.content_hash, image) for row, image in pairs if image}


def save_items(session: Session, items: Mapping[UUID, tuple[Item, Digest]]) -> None:
    """Insert or replace items; idempotent.

    A deleted item becomes a living one again.
    """
    if not items:
        return
    rows = [_row(item, digest) for _, (item, digest) in sorted(items.items())]
    statement = _insert(ITEMS, rows)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in ("id", "source", "key")}
    alive = {"updated": func.now(), "deleted": None, "deletion": None, "cleared": None}
    session.execute(statement.on_conflict_do_update(index_elements=[ItemRow.id], set_={**changed, **alive}))


def mark_embedded(session: Session, collection: str, digests: Mapping[UUID, Digest]) -> None:
    """Record the digests that points of `collection` were built from.

    Call it after the points are written.
    """
    if not digests:
        return
    rows = [
        {
            "item_id": str(id),
            "collection": collection,
            "content_hash": digest.content,
            "record_hash": digest.record,
        }
        for id, digest in sorted(digests.items())
    ]
    statement = _insert(MARKS, rows)
    changed = {name: statement.excluded[name] for name in ("content_hash", "record_hash")}
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[MarkRow.item_id, MarkRow.collection], set_=changed | {"embedded": func.now()}
        )
    )


def mark_current(session: Session, collection: str, digests: Mapping[UUID, Digest]) -> list[UUID]:
    """Record the points with current digests, and lock their rows until commit.

    Items that have changed since get no embedding state.

    Returns:
        The items that have been deleted since, in id order.
    """
    living = (
        select(ItemRow.id, ItemRow.content_hash, ItemRow.record_hash)
        .where(among(ItemRow.id, digests), ItemRow.deleted.is_(None))
        .order_by(ItemRow.id)
        .with_for_update(read=True)
    )
    now = {id: Digest(content, record) for id, content, record in session.execute(living).tuples()}
    mark_embedded(session, collection, {id: own for id, own in digests.items() if now.get(id) == own})
    return sorted(digests.keys() - now.keys())


@dataclass(frozen=True, slots=True)
class Selection:
    """Select items by all given conditions; at least one is required."""

    keys: tuple[str, ...] = ()
    source: str | None = None
    where: Where = field(default_factory=dict)
    """Metadata, as `search --where` takes it."""


def count_by_source(session: Session, selection: Selection) -> dict[str, int]:
    """Count the selected living items by source, in order of name."""
    many = select(ItemRow.source, func.count()).where(*_selected(selection), ItemRow.deleted.is_(None))
    return dict(session.execute(many.group_by(ItemRow.source).order_by(ItemRow.source)).tuples().all())


def sources_of_keys(session: Session, selection: Selection) -> dict[str, dict[str, bool]]:
    """Return for each selected key its sources, and whether it lives there."""
    found = select(ItemRow.key, ItemRow.source, ItemRow.deleted.is_(None)).where(*_selected(selection))
    sources: dict[str, dict[str, bool]] = {}
    for key, source, alive in session.execute(found.order_by(ItemRow.key, ItemRow.source)).tuples():
        sources.setdefault(key, {})[source] = alive
    return sources


def sources_with_uncleared(session: Session, selection: Selection) -> set[str]:
    """Return the sources with interrupted deletes within the selection's keys and source."""
    statement = select(ItemRow.source).where(ItemRow.deleted.is_not(None), ItemRow.cleared.is_(None))
    own = Selection(selection.keys, selection.source)
    if own.keys or own.source is not None:
        statement = statement.where(*_selected(own))
    return set(session.scalars(statement.distinct()))


def selected_ids(session: Session, selection: Selection, limit: int) -> list[UUID]:
    """Return up to `limit` ids of selected living items, in order."""
    statement = select(ItemRow.id).where(*_selected(selection), ItemRow.deleted.is_(None))
    return list(session.scalars(statement.order_by(ItemRow.id).limit(limit)))


def _selected(selection: Selection) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if selection.keys:
        conditions.append(ItemRow.key.in_(selection.keys))
    if selection.source is not None:
        conditions.append(ItemRow.source == selection.source)
    for name, values in selection.where.items():
        ways = [ItemRow.meta.contains({name: one}) for one in any_reading(values)]
        ways += [ItemRow.meta.contains({name: [one]}) for one in any_reading(values)]
        conditions.append(or_(*ways))
    if not conditions:
        raise ValueError("an empty selection would be everything")
    return conditions


def missing_from_run(session: Session, source: str, run_id: UUID, limit: int) -> list[UUID]:
    """Return up to `limit` living items of `source` that were not met."""
    statement = select(ItemRow.id).where(_not_met(source, run_id)).order_by(ItemRow.id).limit(limit)
    return list(session.scalars(statement))


def count_missing(session: Session, source: str, run_id: UUID) -> int:
    """Count the living items of `source` that the run has not met."""
    return session.scalar(select(func.count()).select_from(ItemRow).where(_not_met(source, run_id))) or 0


def missing_keys(session: Session, source: str, run_id: UUID, limit: int) -> list[str]:
    """Return the first keys, in order, that `count_missing` counts."""
    keys = select(ItemRow.key).where(_not_met(source, run_id)).order_by(ItemRow.key).limit(limit)
    return list(session.scalars(keys))


def count_known(session: Session, source: str, then: datetime | None) -> int:
    """Count the living items of `source`, created by `then` if given."""
    living = select(func.count()).where(ItemRow.source == source, ItemRow.deleted.is_(None))
    return session.scalar(living if then is None else living.where(ItemRow.created <= then)) or 0


def tombstone(session: Session, ids: Sequence[UUID], *, asked: bool) -> None:
    """Mark items as deleted; searches leave them out from then on.

    Args:
        asked: deleted on request, for good; otherwise they are missing from their source, and may return.
    """
    why = "asked" if asked else "missing"
    session.execute(update(ItemRow).where(ItemRow.id.in_(ids)).values(deleted=func.now(), deletion=why))


def uncleared(session: Session, source: str | None, limit: int) -> list[UUID]:
    """Return up to `limit` deleted items that are not cleared yet."""
    statement = select(ItemRow.id).where(ItemRow.deleted.is_not(None), ItemRow.cleared.is_(None))
    if source is not None:
        statement = statement.where(ItemRow.source == source)
    return list(session.scalars(statement.order_by(ItemRow.id).limit(limit)))


def lock_blobs(session: Session, *, exclusive: bool) -> None:
    """Lock the blobs until the transaction ends.

    Writers of a blob and its item share the lock; a process that removes unreferenced blobs holds it
    exclusively. Otherwise an image could be removed while a second item begins to share it.
    """
    lock = func.pg_advisory_xact_lock if exclusive else func.pg_advisory_xact_lock_shared
    session.execute(select(lock(func.hashtextextended("sightline blobs", 0))))


def unreferenced_blobs(session: Session, ids: Sequence[UUID]) -> list[str]:
    """Return the images of deleted items that no living item shares."""
    gone = select(ItemRow.image_sha256).where(ItemRow.id.in_(ids), ItemRow.deleted.is_not(None))
    living = select(ItemRow.image_sha256).where(ItemRow.deleted.is_(None), ItemRow.image_sha256.is_not(None))
    statement = gone.where(ItemRow.image_sha256.is_not(None)).distinct()
    return sorted(sha for sha in session.scalars(statement.except_(living)) if sha)


def clear(session: Session, ids: Sequence[UUID]) -> dict[UUID, int]:
    """Erase the contents of deleted items; their tombstones remain.

    Call it after their points and blobs are removed.

    Returns:
        The number of embedding states of each.
    """
    many = select(MarkRow.item_id, func.count()).where(MarkRow.item_id.in_(ids)).group_by(MarkRow.item_id)
    marks = dict(session.execute(many).tuples().all())
    session.execute(delete(MarkRow).where(MarkRow.item_id.in_(ids)))
    nothing: dict[str, object] = dict.fromkeys(("image_sha256", "uri", "width", "height", "format"))
    nothing |= {"texts": [], "metadata": {}, "content_hash": "", "record_hash": "", "cleared": func.now()}
    session.execute(ITEMS.update().where(ITEMS.c.id.in_(ids), ITEMS.c.deleted.is_not(None)).values(nothing))
    return marks


def tombstones(session: Session, ids: Sequence[UUID]) -> dict[UUID, Item]:
    """Return the deleted items among `ids`; cleared ones are empty."""
    rows = session.scalars(select(ItemRow).where(ItemRow.id.in_(ids), ItemRow.deleted.is_not(None)))
    return {row.id: item_of(row) for row in rows}


def living_items(session: Session, keys: Sequence[str] | None = None) -> Iterator[tuple[Item, Digest]]:
    """Yield the living items with their digests, in id order.

    Args:
        keys: only items with one of these keys, in any source.
    """
    statement = select(ItemRow).where(ItemRow.deleted.is_(None)).order_by(ItemRow.id)
    if keys is not None:
        statement = statement.where(among(ItemRow.key, keys))
    for row in session.scalars(statement.execution_options(yield_per=1000)):
        yield item_of(row), Digest(row.content_hash, row.record_hash)


def captioned_images(session: Session) -> Iterator[Item]:
    """Yield the living items with image and embedded text, by id."""
    statement = (
        select(ItemRow)
        .where(
            ItemRow.deleted.is_(None),
            ItemRow.image_sha256.is_not(None),
            func.jsonb_path_exists(ItemRow.texts, EMBEDDED),
        )
        .order_by(ItemRow.id)
    )
    for row in session.scalars(statement.execution_options(yield_per=1000)):
        yield item_of(row)


def items_with_key(session: Session, key: str, source: str | None) -> list[Item]:
    """Return the living items with `key`, by source.

    `source` narrows them to one.
    """
    statement = select(ItemRow).where(ItemRow.key == key, ItemRow.deleted.is_(None)).order_by(ItemRow.source)
    if source is not None:
        statement = statement.where(ItemRow.source == source)
    return [item_of(row) for row in session.scalars(statement)]


def images_of_keys(session: Session, keys: Sequence[str]) -> set[str]:
    """Return the SHA-256 of the images of items with these keys."""
    own = among(ItemRow.key, keys), ItemRow.deleted.is_(None), ItemRow.image_sha256.is_not(None)
    return {sha256 for sha256 in session.scalars(select(ItemRow.image_sha256).where(*own)) if sha256}


def image_origins(session: Session, shas: Iterable[str]) -> dict[str, Origin]:
    """Return the origins of images of living items, by SHA-256.

    Origins that came over the API are returned only where there is no other.
    """
    statement = (
        select(ItemRow.image_sha256, ItemRow.uri, ItemRow.from_strangers)
        .distinct(ItemRow.image_sha256)
        .where(among(ItemRow.image_sha256, shas), ItemRow.deleted.is_(None))
        .order_by(ItemRow.image_sha256, ItemRow.from_strangers, ItemRow.uri)
    )
    return {
        sha: Origin(uri, from_strangers)
        for sha, uri, from_strangers in session.execute(statement).tuples()
        if sha is not None and uri is not None
    }


def entries(
    session: Session,
    collection: str,
    *,
    after: UUID | None = None,
    limit: int | None = None,
    ids: Sequence[UUID] | None = None,
) -> list[CatalogEntry]:
    """Return living items with their embedding states in `collection`, in id order.

    Args:
        after: only items with a greater id.
        ids: only these items.
    """
    marked = and_(MarkRow.item_id == ItemRow.id, MarkRow.collection == collection)
    statement = (
        select(
            ItemRow.id,
            ItemRow.source,
            ItemRow.key,
            ItemRow.content_hash,
            ItemRow.record_hash,
            MarkRow.content_hash,
            MarkRow.record_hash,
            ItemRow.image_sha256.is_not(None),
            func.jsonb_path_exists(ItemRow.texts, EMBEDDED),
        )
        .outerjoin(MarkRow, marked)
        .where(ItemRow.deleted.is_(None))
        .order_by(ItemRow.id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(ItemRow.id > after)
    if ids is not None:
        statement = statement.where(ItemRow.id.in_(ids))
    return [
        CatalogEntry(
            id, source, key, Digest(content, record), Digest(mark, marked_record) if mark else None, *has
        )
        for id, source, key, content, record, mark, marked_record, *has in session.execute(statement)
    ]


def items_with_digests(session: Session, ids: Sequence[UUID]) -> dict[UUID, tuple[Item, Digest]]:
    """Return the living items among `ids` with their digests, in id order."""
    statement = select(ItemRow).where(ItemRow.id.in_(ids), ItemRow.deleted.is_(None)).order_by(ItemRow.id)
    return {
        row.id: (item_of(row), Digest(row.content_hash, row.record_hash))
        for row in session.scalars(statement)
    }


def count_images(session: Session, *, at_most: int) -> int:
    """Count the living items with an image, and stop at a number."""
    some = select(ItemRow.id).where(ItemRow.image_sha256.is_not(None), ItemRow.deleted.is_(None))
    return session.scalars(select(func.count()).select_from(some.limit(at_most).subquery())).one()


def images_by_prefix(session: Session, prefix: str) -> list[ImageInfo]:
    """Return living items' images by a prefix of their SHA-256, in order."""
    after = prefix + "g"  # the digits end with f
    statement = (
        select(ItemRow)
        .where(ItemRow.image_sha256 >= prefix, ItemRow.image_sha256 < after, ItemRow.deleted.is_(None))
        .order_by(ItemRow.image_sha256, ItemRow.from_strangers, ItemRow.id)
        .distinct(ItemRow.image_sha256)
    )
    return [image for image in map(_image, session.scalars(statement)) if image]


def living_images(session: Session) -> Iterator[str]:
    """Yield the SHA-256 of every image of a living item, in order."""
    statement = (
        select(ItemRow.image_sha256)
        .where(ItemRow.image_sha256.is_not(None), ItemRow.deleted.is_(None))
        .distinct()
        .order_by(ItemRow.image_sha256)
    )
    yield from (sha for sha in session.scalars(statement.execution_options(yield_per=1000)) if sha)


def drop_marks(session: Session, collection: str, ids: Sequence[UUID]) -> None:
    """Delete the embedding states of `ids` in `collection`."""
    session.execute(delete(MarkRow).where(MarkRow.collection == collection, MarkRow.item_id.in_(ids)))


def referenced_images(session: Session, shas: Sequence[str]) -> set[str]:
    """Return those of `shas` that a living item has as its image."""
    living = select(ItemRow.image_sha256).where(among(ItemRow.image_sha256, shas), ItemRow.deleted.is_(None))
    return {sha for sha in session.scalars(living) if sha}


def counts(session: Session) -> dict[str, int]:
    """Count the items, by image, text and deletion, and their sources."""
    living = ItemRow.deleted.is_(None)
    row = session.execute(
        select(
            func.count().filter(living).label("items"),
            func.count(ItemRow.image_sha256).filter(living).label("with_picture"),
            func.count().filter(living, func.jsonb_array_length(ItemRow.texts) > 0).label("with_text"),
            func.count(ItemRow.source.distinct()).filter(living).label("sources"),
            func.count().filter(ItemRow.deleted.is_not(None)).label("deleted"),
        )
    ).one()
    return dict(row._mapping)


def _not_met(source: str, run_id: UUID) -> ColumnElement[bool]:
    met = exists().where(SeenRow.run_id == run_id, SeenRow.item_id == ItemRow.id)
    return and_(ItemRow.source == source, ItemRow.deleted.is_(None), ~met)


def _insert(table: Table, rows: Sequence[Mapping[str, object]]) -> Insert:
    return insert(table).from_select(list(rows[0]), from_rows(table, rows))


def _seen(run_id: UUID, item_id: UUID, place: str) -> dict[str, str]:
    return {"run_id": str(run_id), "item_id": str(item_id), "place": place}


def _row(item: Item, digest: Digest) -> dict[str, object]:
    image = item.image
    return {
        "id": str(item.id),
        "source": item.source,
        "key": item.key,
        "texts": [{"text": t.text, "lang": t.lang, "embedded": t.embedded} for t in item.texts],
        "image_sha256": image.sha256 if image else None,
        "uri": image.uri if image else None,
        "from_strangers": image is not None and image.from_strangers,
        "width": image.width if image else None,
        "height": image.height if image else None,
        "format": image.format if image else None,
        "metadata": dict(item.metadata),
        "content_hash": digest.content,
        "record_hash": digest.record,
    }


def item_of(row: ItemRow) -> Item:
    """Convert a row into an item."""
    texts = tuple(Text(**text) for text in row.texts)
    return Item(row.source, row.key, texts, _image(row), row.meta)


def _image(row: ItemRow) -> ImageInfo | None:
    if row.image_sha256 is None:
        return None
    return ImageInfo(
        row.image_sha256,
        row.uri or "",
        row.width or 0,
        row.height or 0,
        row.format or "",
        row.from_strangers,
    )
