"""Fill stores of any size without a model, and read their contents."""

import hashlib
from typing import Any

import numpy as np
from sqlalchemy import text

from embedding.encoders.sentence_encoder import unit_rows
from flows.resources.connections import Stores
from storage import qdrant
from storage.postgres import catalog, dump, model_registry
from storage.qdrant import Point
from storage.records import Digest, ImageInfo, Item, Text

SOME = 1000


def a_store_of(deps: Stores, records: int, *, dim: int = 24) -> None:
    """Fill empty stores with records of images, texts, or both."""
    name = qdrant.create_collection(
        deps.vectors, model="random", fingerprint="random1", dim=dim, filter_fields={"shelf": "integer"}
    )
    qdrant.activate(deps.vectors, name)
    collection = qdrant.require_collection(deps.vectors, "random1", "random")
    with deps.sessions.begin() as session:
        model_registry.activate_collection(session, name=name, model="random", fingerprint="random1", dim=dim)
    rng = np.random.default_rng(1)
    for start in range(0, records, SOME):
        points = [_point(number, dim, rng) for number in range(start, min(start + SOME, records))]
        with deps.sessions.begin() as session:
            catalog.save_items(session, {one.item.id: (one.item, one.digest) for one in points})
        for one in points:
            if one.item.image is not None and deps.blobs is not None:
                deps.blobs.put(one.item.image.sha256, _bytes(one.item.image.uri))
        qdrant.upsert(deps.vectors, collection, points)
        with deps.sessions.begin() as session:
            catalog.mark_embedded(session, name, {one.item.id: one.digest for one in points})


def contents(stores: Stores) -> dict[str, Any]:
    """Return all rows but runs, all points with vectors, all image hashes."""
    found: dict[str, Any] = {}
    with stores.sessions() as session:
        for table in dump.tables():
            if table.name != "runs":
                rows = session.scalars(text(f"select t::text from {table.name} t"))
                found[table.name] = _digest_of(sorted(rows))
        pictures = list(catalog.living_images(session))
    for name in qdrant.list_collections(stores.vectors):
        points, _ = stores.vectors.scroll(name, limit=100_000, with_vectors=True)
        found[name] = len(points), _digest_of([repr((p.id, p.payload, _exact(p.vector))) for p in points])
    active = qdrant.active_collection(stores.vectors)
    found["active"] = active and active.name
    found["pictures"] = [
        hashlib.sha256(stores.blobs.get(sha256)).hexdigest() for sha256 in pictures if stores.blobs
    ]
    return found


def _exact(vectors: Any) -> list[tuple[str, bytes]]:
    return [(name, np.asarray(rows, np.float32).tobytes()) for name, rows in sorted(vectors.items())]


def _digest_of(rows: list[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _bytes(uri: str) -> bytes:
    return f"bytes of {uri}".encode()


def _point(number: int, dim: int, rng: np.random.Generator) -> Point:
    texts = tuple(Text(f'text {row} of {number}: "quoted", 文字, \\N\t\n{row}') for row in range(number % 3))
    uri = f"/pictures/{number % 50}.png"
    picture = (
        ImageInfo(hashlib.sha256(_bytes(uri)).hexdigest(), uri, 8, 8, "PNG")
        if number % 2 or not texts
        else None
    )
    item = Item("s", f"k{number}", texts, picture, {"shelf": number % 7, "deep": {"x": [1, 0.1, None, "é"]}})
    image = unit_rows(rng.normal(size=(1, dim)))[0] if picture else None
    rows = unit_rows(rng.normal(size=(len(texts), dim))) if texts else np.zeros((0, dim), np.float32)
    return Point(item, Digest(f"c{number}", f"r{number}"), image, rows)
