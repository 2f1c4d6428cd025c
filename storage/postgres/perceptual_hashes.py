"""Find copies and near duplicates of images; the caller commits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import cast, func, select
from sqlalchemy.dialects.postgresql import BIT, insert
from sqlalchemy.orm import Session

from storage.postgres.schema import ItemRow, PerceptualHashRow
from storage.records import Origin

SIGN = 1 << 63


@dataclass(frozen=True, slots=True)
class Copy:
    """Describe a living item and its image."""

    id: UUID
    source: str
    key: str
    sha256: str
    uri: str


def count_copies(session: Session) -> tuple[int, int]:
    """Count the images that several living items share, and these items."""
    shared = (
        select(func.count().label("holders"))
        .where(ItemRow.deleted.is_(None), ItemRow.image_sha256.is_not(None))
        .group_by(ItemRow.image_sha256)
        .having(func.count() > 1)
        .subquery()
    )
    row = session.execute(select(func.count(), func.coalesce(func.sum(shared.c.holders), 0))).one()
    return int(row[0]), int(row[1])


def copies(session: Session) -> list[Copy]:
    """Return the living items that share their image with another item.

    They are sorted by image, source and key.
    """
    shared = (
        select(ItemRow.image_sha256)
        .where(ItemRow.deleted.is_(None))
        .group_by(ItemRow.image_sha256)
        .having(func.count() > 1)
    )
    return _copies(session, shared.scalar_subquery())


def items_with(session: Session, shas: Sequence[str]) -> list[Copy]:
    """Return the living items with these images, sorted.

    The order is image, source and key.
    """
    return _copies(session, shas)


def unhashed(session: Session, after: str = "", limit: int | None = None) -> dict[str, Origin]:
    """Return up to `limit` images without a perceptual hash, after `after`.

    Each has its origin; the order is SHA-256.
    """
    hashed = select(PerceptualHashRow.sha256)
    statement = (
        select(ItemRow.image_sha256, ItemRow.uri, ItemRow.from_strangers)
        .distinct(ItemRow.image_sha256)
        .where(ItemRow.deleted.is_(None), ItemRow.image_sha256 > after, ItemRow.image_sha256.not_in(hashed))
        .order_by(ItemRow.image_sha256, ItemRow.from_strangers, ItemRow.uri)
        .limit(limit)
    )
    return {
        sha256: Origin(uri, from_strangers)
        for sha256, uri, from_strangers in session.execute(statement).tuples()
        if sha256 is not None and uri is not None
    }


def save_hashes(session: Session, hashes: Mapping[str, int]) -> None:
    """Store perceptual hashes, in [0, 2**64), by SHA-256."""
    if hashes:
        rows = [{"sha256": sha256, "phash": hash - SIGN} for sha256, hash in sorted(hashes.items())]
        session.execute(insert(PerceptualHashRow).values(rows).on_conflict_do_nothing())


def hashes(session: Session) -> dict[str, int]:
    """Return the perceptual hashes of images of living items, by SHA-256."""
    living = select(ItemRow.image_sha256).where(ItemRow.deleted.is_(None))
    statement = select(PerceptualHashRow).where(PerceptualHashRow.sha256.in_(living))
    rows = session.scalars(statement.order_by(PerceptualHashRow.sha256))
    return {row.sha256: row.phash + SIGN for row in rows}


def near(session: Session, sha256: str, *, bits: int, least_bits: int, limit: int) -> list[Copy] | None:
    """Return the living items with the same or a similar image.

    Exact copies come first.

    Args:
        bits: the largest Hamming distance between the hashes (64 bits) of similar images.
        least_bits: a hash with fewer set bits belongs to an image without detail, similar to none.

    Returns:
        At most `limit`; None without a hash of the image, if no other item has its bytes.
    """
    own = session.scalar(select(PerceptualHashRow.phash).where(PerceptualHashRow.sha256 == sha256))
    shas = {sha256: 0}
    if own is not None and (own + SIGN).bit_count() >= least_bits:
        differing = func.bit_count(cast(PerceptualHashRow.phash.op("#")(own), BIT(64)))
        alike = select(PerceptualHashRow.sha256, differing).where(differing <= bits)
        nearest = alike.order_by(differing, PerceptualHashRow.sha256).limit(limit)
        shas |= dict(session.execute(nearest).tuples().all())
    found = sorted(_copies(session, list(shas)), key=lambda copy: shas[copy.sha256])
    return None if own is None and len(found) == 1 else found[:limit]


def _copies(session: Session, shas: object) -> list[Copy]:
    statement = (
        select(ItemRow.id, ItemRow.source, ItemRow.key, ItemRow.image_sha256, ItemRow.uri)
        .where(ItemRow.deleted.is_(None), ItemRow.image_sha256.in_(shas))  # type: ignore[arg-type]
        .order_by(ItemRow.image_sha256, ItemRow.source, ItemRow.key)
    )
    return [Copy(*row) for row in session.execute(statement)]
