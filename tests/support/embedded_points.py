"""Points of every shape, in the engine and in the in-memory store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from storage.embedded.qdrant.engine import bindings
from storage.embedded.qdrant.engine.target import Target
from storage.embedded.qdrant.protocol.errors import NotFound
from storage.embedded.qdrant.protocol.named_vectors import Fields, Spaces
from storage.embedded.qdrant.protocol.vectors import to_engine

N = 240
DIM = 6
MAX_SIM = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
DISTANCES = {
    "cos": models.Distance.COSINE,
    "dot": models.Distance.DOT,
    "l2": models.Distance.EUCLID,
    "l1": models.Distance.MANHATTAN,
}
SPACES = Spaces(
    dense={name: models.VectorParams(size=DIM, distance=kind) for name, kind in DISTANCES.items()}
    | {"multi": models.VectorParams(size=3, distance=models.Distance.COSINE, multivector_config=MAX_SIM)},
    sparse={"sparse": models.SparseVectorParams()},
)
INDEXES = {
    "n": models.PayloadSchemaType.INTEGER,
    "unique": models.PayloadSchemaType.INTEGER,
    "tag": models.PayloadSchemaType.KEYWORD,
    "f": models.PayloadSchemaType.FLOAT,
    "ok": models.PayloadSchemaType.BOOL,
    "when": models.PayloadSchemaType.DATETIME,
    "place": models.PayloadSchemaType.GEO,
    "words": models.TextIndexParams(type=models.TextIndexType.TEXT, phrase_matching=True),
}
WORDS = ["red", "green", "blue", "old", "new", "house", "tree", "river"]
Id = int | str


def an_id(i: int) -> Id:
    return i if i % 3 else str(UUID(int=i * 7919))


def a_multivector(rng: np.random.Generator, i: int) -> list[list[float]]:
    return rng.normal(size=(1 + i % 4, 3)).round(3).tolist()


def a_sparse_vector(rng: np.random.Generator) -> models.SparseVector:
    indices = rng.choice(12, size=4, replace=False).tolist()
    return models.SparseVector(indices=indices, values=rng.uniform(0.1, 1, size=4).round(3).tolist())


def some_vectors(rng: np.random.Generator, i: int) -> dict[str, Any]:
    vectors: dict[str, Any] = {name: rng.normal(size=DIM).round(3).tolist() for name in DISTANCES}
    if i % 7:
        vectors["multi"] = a_multivector(rng, i)
    if i % 11:
        vectors["sparse"] = a_sparse_vector(rng)
    return vectors


def a_payload(rng: np.random.Generator, i: int) -> dict[str, Any]:
    when = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=int(rng.integers(0, 9000)))
    payload: dict[str, Any] = {
        "n": int(rng.integers(-5, 15)),
        "unique": i,
        "f": round(float(rng.normal()), 2),
        "tag": [["a"], ["a", "b"], ["c", "a", "a"], []][i % 4] if i % 5 == 0 else "abcde"[i % 5],
        "ok": bool(i % 2),
        "when": when.isoformat(),
        "place": dict(zip(("lon", "lat"), rng.uniform(-20, 20, size=2).round(3).tolist(), strict=True)),
        "words": " ".join(rng.choice(WORDS, size=4)),
        "mixed": [1, 1.0, True, "1", None, [1, "x", 2.5], [], [None], {"in": 1}][i % 9],
        "rows": [{"x": int(x), "y": int(x) % 2} for x in rng.integers(0, 4, size=i % 4)],
        "deep": {"er": {"value": i % 6}},
        "a.b": {"c d": i % 3},
        "key": [i % 6, f"k{i % 4}", [i % 6, f"k{i % 4}"], [i % 3, 2.5]][i % 4],
    }
    return {name: value for name, value in payload.items() if hash((i, len(name))) % 10}


def some_points(seed: int, n: int) -> list[models.PointStruct]:
    rng = np.random.default_rng(seed)
    return [
        models.PointStruct(id=an_id(i), vector=some_vectors(rng, i), payload=a_payload(rng, i))
        for i in range(1, n + 1)
    ]


POINTS = some_points(seed=1, n=N)
COLLECTIONS = {"points": POINTS, "other": some_points(seed=3, n=20)}
RNG = np.random.default_rng(2)
V, W = RNG.normal(size=(2, DIM)).round(3).tolist()
MULTI = a_multivector(RNG, 2)
SPARSE = a_sparse_vector(RNG)
FIRST, SECOND, THIRD = 1, an_id(3), 5
WITHOUT_MULTI = 7


@dataclass(frozen=True, slots=True, repr=False)
class Both:
    """The same points in the engine and in the client's own store.

    "other" is a second collection.
    """

    target: Target
    other: Target
    local: QdrantClient

    def find(self, name: str) -> Target:
        known = {"points": self.target, "other": self.other}
        if name not in known:
            raise NotFound(f"no collection {name}")
        return known[name]


def a_shard(path: Path, points: list[models.PointStruct], indexed: bool) -> edge.EdgeShard:
    distance = dict(zip(DISTANCES, ["Cosine", "Dot", "Euclid", "Manhattan"], strict=True))
    max_sim = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    dense = {
        name: edge.EdgeVectorParams(DIM, getattr(edge.Distance, kind)) for name, kind in distance.items()
    }
    dense["multi"] = edge.EdgeVectorParams(3, edge.Distance.Cosine, multivector_config=max_sim)
    config = edge.EdgeConfig(vectors=dense, sparse_vectors={"sparse": edge.EdgeSparseVectorParams()})
    path.mkdir()
    shard = edge.EdgeShard.create(str(path), config)
    if indexed:
        for name, kind in INDEXES.items():
            shard.update(edge.UpdateOperation.create_field_index(name, bindings.to_engine(kind)))
    made = [edge.Point(point.id, to_engine(point.vector, SPACES), point.payload) for point in points]
    shard.update(edge.UpdateOperation.upsert_points(made))
    return shard


@contextmanager
def opened(folder: Path, *, indexed: bool) -> Iterator[Both]:
    """Both stores with the same points; `indexed` adds payload indexes."""
    local = QdrantClient(":memory:")
    fill(local)
    shards = [a_shard(folder / name, points, indexed=indexed) for name, points in COLLECTIONS.items()]
    spaces = replace(SPACES, fields=Fields(INDEXES if indexed else {}))
    yield Both(Target(shards[0], spaces), Target(shards[1], spaces), local)
    for shard in shards:
        shard.close()
    local.close()


def fill(client: QdrantClient) -> None:
    """Make both collections."""
    for name, points in COLLECTIONS.items():
        client.create_collection(
            name, vectors_config=dict(SPACES.dense), sparse_vectors_config=dict(SPACES.sparse)
        )
        client.upsert(name, points)


def ids(points: list[models.ScoredPoint] | list[models.Record]) -> list[Id]:
    return [point.id for point in points]


def field_is(key: str, **condition: Any) -> models.FieldCondition:
    return models.FieldCondition(key=key, **condition)


def value_is(key: str, value: Any) -> models.FieldCondition:
    return field_is(key, match=models.MatchValue(value=value))


SOME = models.Filter(must=value_is("ok", True))
