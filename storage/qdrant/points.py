"""Write, delete and scroll the points of a collection."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import merge
from itertools import product
from typing import Any, Literal, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from storage.consistency.differences import PointEntry, PointId, id_order
from storage.errors import InvalidInput
from storage.qdrant.collections import SHORT, Collection, list_collections
from storage.qdrant.limits import Limits, limits_of
from storage.records import Digest, Item

Space = Literal["image", "text"]
Thing = TypeVar("Thing")
STREAMS = 3
"""Measured: more requests at once are slower, on two cores at least."""


class DimensionMismatch(InvalidInput):
    """Signal vectors of another length than the collection has.

    Another model made them.
    """


@dataclass(frozen=True, slots=True)
class Point:
    """Store the vectors of one item: its image, and its embedded texts."""

    item: Item
    digest: Digest
    """In the payload too, so that Postgres and Qdrant can be compared."""

    image: NDArray[np.float32] | None
    """Shape (dim,), unit length; None without an image."""

    texts: NDArray[np.float32]
    """Shape (n, dim), unit rows in the order of `item.embedded_texts`; n may be 0."""


def upsert(client: QdrantClient, collection: Collection, points: Sequence[Point]) -> None:
    """Write one point per item; existing points are replaced.

    Returns once they are searchable.

    Args:
        points: distinct items; every vector of length `collection.dim`.

    Raises:
        DimensionMismatch: a vector has another length.
        ValueError: a vector holds NaN or infinity, or a point has not one row for each embedded text.
    """
    for point in points:
        _check(point, collection.dim)
    if not points:
        return
    requests = chunks(points, limits_of(client, collection.name).upsert)
    with ThreadPoolExecutor(STREAMS) as streams:
        sent = [streams.submit(_send, client, collection, some) for some in requests]
    for one in sent:
        one.result()


def _send(client: QdrantClient, collection: Collection, points: Sequence[Point]) -> None:
    structs = [_struct(point, collection.short_dim) for point in points]
    client.upsert(collection.name, structs, wait=True)


def overwrite_payloads(
    client: QdrantClient, collection: str, items: Mapping[UUID, tuple[Item, Digest]]
) -> None:
    """Replace the payloads of points, and keep their vectors."""
    steps = [
        models.OverwritePayloadOperation(
            overwrite_payload=models.SetPayload(payload=_payload(item, digest), points=[str(id)])
        )
        for id, (item, digest) in sorted(items.items())
    ]
    if steps:
        for some in chunks(steps, limits_of(client, collection).upsert):
            client.batch_update_points(collection, some, wait=True)


def delete_everywhere(client: QdrantClient, ids: Sequence[UUID]) -> dict[UUID, list[str]]:
    """Delete the points of `ids` from all our collections.

    Returns:
        By id, the collections that had a point of it.
    """
    wanted: list[Any] = [str(id) for id in ids]
    held: dict[UUID, list[str]] = {}
    for name in list_collections(client):
        for some in chunks(wanted, limits_of(client, name).page):
            for point in client.retrieve(name, some, with_payload=False):
                held.setdefault(UUID(str(point.id)), []).append(name)
        client.delete(name, wanted, wait=True)
    return held


def delete_points(client: QdrantClient, collection: str, ids: Sequence[PointId]) -> None:
    """Delete points from one collection."""
    client.delete(collection, wire_ids(ids), wait=True)


def count(client: QdrantClient, collection: str) -> int:
    """Return the exact number of points."""
    return client.count(collection, exact=True).count


def scroll_entries(
    client: QdrantClient, collection: str, ids: Sequence[PointId] | None = None
) -> Iterator[PointEntry]:
    """Yield every point of `collection`, or those of `ids`, in id order.

    Each point is read once, without its vectors: Qdrant does not list which vectors a point has, so that the
    points with both, one or none of them are scrolled apart, and merged. A point that is written meanwhile
    can come twice, or not at all.

    Args:
        collection: an absent one has no points.
    """
    if client.collection_exists(collection):
        kinds = product((True, False), repeat=2)
        streams = (_entries(client, collection, ids, image=image, text=text) for image, text in kinds)
        yield from merge(*streams, key=lambda entry: id_order(entry.id))


def _entries(
    client: QdrantClient, collection: str, ids: Sequence[PointId] | None, *, image: bool, text: bool
) -> Iterator[PointEntry]:
    vectors: dict[Space, bool] = {"image": image, "text": text}
    for point in _scroll(client, collection, ids, having=vectors, payload=["content_hash", "record_hash"]):
        yield PointEntry(_point_id(point), payload_digest(point.payload or {}), image, text)


def scroll_digests(
    client: QdrantClient, collection: str, ids: Sequence[PointId] | None = None
) -> Iterator[tuple[PointId, Digest | None]]:
    """Yield id and digest of all points, or of `ids`, in order."""
    for point in _scroll(client, collection, ids, payload=["content_hash", "record_hash"]):
        yield _point_id(point), payload_digest(point.payload or {})


def image_vectors_of(
    client: QdrantClient, collection: str, content_hashes: Mapping[UUID, str]
) -> dict[UUID, NDArray[np.float32]]:
    """Return the image vectors of the points that have this content.

    Each is of shape (dim,).
    """
    if not content_hashes:
        return {}
    pages = chunks(list(map(str, content_hashes)), limits_of(client, collection).page)
    return {
        id: np.asarray(point.vector["image"], np.float32)
        for ids in pages
        for point in client.retrieve(collection, ids, with_payload=["content_hash"], with_vectors=["image"])
        if isinstance(point.vector, dict) and "image" in point.vector
        if (point.payload or {}).get("content_hash") == content_hashes[id := UUID(str(point.id))]
    }


def record_vectors(client: QdrantClient, collection: str, id: UUID) -> dict[Space, NDArray[np.float32]]:
    """Return the vectors of one point by space.

    Rows are (1, dim) for `image` and (n, dim) for `text`.

    Returns:
        Nothing where there is no such point.
    """
    found = client.retrieve(collection, [str(id)], with_payload=False, with_vectors=["image", "text"])
    vectors = found[0].vector if found else None
    if not isinstance(vectors, dict):
        return {}
    spaces: tuple[Space, ...] = ("image", "text")
    rows = {space: np.atleast_2d(np.asarray(vectors.get(space, ()), np.float32)) for space in spaces}
    return {space: own for space, own in rows.items() if own.size}


def scroll_image_vectors(client: QdrantClient, collection: str) -> Iterator[tuple[UUID, NDArray[np.float32]]]:
    """Yield id and vector of every point with an image."""
    for point in _scroll(client, collection, vectors=["image"]):
        if isinstance(point.vector, dict) and "image" in point.vector:
            yield UUID(str(point.id)), np.asarray(point.vector["image"], np.float32)


def wire_ids(ids: Sequence[PointId]) -> list[Any]:
    """Convert ids into the form of Qdrant's API."""
    return [id if isinstance(id, int) else str(id) for id in ids]


def payload_digest(payload: Mapping[str, Any]) -> Digest | None:
    """Return the digest in a payload, or None if it has none."""
    content, record = payload.get("content_hash"), payload.get("record_hash")
    return Digest(content, record) if isinstance(content, str) and isinstance(record, str) else None


def chunks(things: Sequence[Thing], size: int) -> list[Sequence[Thing]]:
    """Split a sequence into parts of at most `size`."""
    return [things[start : start + size] for start in range(0, len(things), size)]


def _scroll(
    client: QdrantClient,
    collection: str,
    ids: Sequence[PointId] | None = None,
    *,
    having: Mapping[Space, bool] | None = None,
    payload: list[str] | bool = False,
    vectors: list[str] | bool = False,
) -> Iterator[models.Record]:
    limits = limits_of(client, collection)
    if ids is None or len(ids) <= limits.ids:
        parts: list[Sequence[PointId] | None] = [ids]
    else:
        parts = [*chunks(sorted(ids, key=id_order), limits.ids)]
    must: list[models.Condition] = []
    must_not: list[models.Condition] = []
    for space, has in (having or {}).items():
        (must if has else must_not).append(models.HasVectorCondition(has_vector=space))
    for part in parts:
        own: list[models.Condition] = [] if part is None else [models.HasIdCondition(has_id=wire_ids(part))]
        wanted = models.Filter(must=own + must, must_not=must_not) if own or must or must_not else None
        yield from _pages(client, collection, limits, wanted, payload, vectors)


def _pages(
    client: QdrantClient,
    collection: str,
    limits: Limits,
    wanted: models.Filter | None,
    payload: list[str] | bool,
    vectors: list[str] | bool,
) -> Iterator[models.Record]:
    offset: Any = None
    while True:
        points, offset = client.scroll(
            collection,
            scroll_filter=wanted,
            limit=limits.page,
            offset=offset,
            with_payload=payload,
            with_vectors=vectors,
        )
        yield from points
        if offset is None:
            return


def _point_id(point: models.Record) -> PointId:
    return point.id if isinstance(point.id, int) else UUID(str(point.id))


def _check(point: Point, dim: int) -> None:
    key, texts = point.item.key, point.item.embedded_texts
    for rows in (point.texts,) if point.image is None else (point.texts, point.image):
        if rows.shape[-1] != dim:
            raise DimensionMismatch(
                f"{key}: a vector of length {rows.shape[-1]}, but the collection holds {dim}; "
                "was the model changed without a re-index?"
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"{key}: a vector holds NaN or infinity; check the model's precision")
    if len(point.texts) != len(texts):
        raise ValueError(f"{key}: {len(point.texts)} rows for {len(texts)} texts")


def _struct(point: Point, short_dim: int | None) -> models.PointStruct:
    vectors: dict[str, Any] = {}
    for space, rows in (("image", point.image), ("text", point.texts)):
        if rows is not None and len(rows):
            vectors[space] = rows.tolist()
            if short_dim is not None:
                vectors[space + SHORT] = rows[..., :short_dim].tolist()  # Qdrant makes them unit length
    payload = _payload(point.item, point.digest)
    return models.PointStruct(id=str(point.item.id), vector=vectors, payload=payload)


def _payload(item: Item, digest: Digest) -> dict[str, Any]:
    return {
        "source": item.source,
        "key": item.key,
        "text": item.short_text,
        "metadata": dict(item.metadata),
        "content_hash": digest.content,
        "record_hash": digest.record,
    }
