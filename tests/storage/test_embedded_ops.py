"""Random sequences of operations leave the index equal to local mode."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

Step = Callable[[QdrantClient, str], object]
NUMBERS = st.integers(-4, 4).map(lambda number: number / 2)
ROWS = st.lists(NUMBERS, min_size=3, max_size=3).filter(any)
IDS = st.integers(0, 7)
KNOWN = st.lists(IDS, min_size=1, max_size=3, unique=True)
VECTORS = st.fixed_dictionaries({}, optional={"image": ROWS, "text": st.lists(ROWS, min_size=1, max_size=3)})
VALUES = st.one_of(st.integers(0, 3), st.sampled_from(["x", "y"]), st.none(), st.lists(st.integers(0, 3)))
PAYLOADS = st.dictionaries(st.sampled_from(["a", "b"]), VALUES, max_size=2)
WHERE = st.integers(0, 3).map(
    lambda value: models.Filter(must=[models.FieldCondition(key="a", match=models.MatchValue(value=value))])
)
NAMES = st.lists(st.sampled_from(["image", "text"]), min_size=1, max_size=2, unique=True)
KEYS = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2, unique=True)
WHICH = st.one_of(KNOWN, WHERE)
numbers = count()


def step(act: Callable[..., object], *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """A step that calls `act` with a client, a collection and drawn values."""
    return st.tuples(*arguments).map(lambda drawn: lambda client, name: act(client, name, *drawn))


def present(client: QdrantClient, name: str, which: Any) -> Any:
    """The ids that exist; for others a server and local mode differ."""
    if isinstance(which, models.Filter):
        return which
    return [point.id for point in client.retrieve(name, which, with_payload=False)]


def upsert(client: QdrantClient, name: str, id: int, vectors: Any, payload: Any, mode: Any) -> None:
    point = models.PointStruct(id=id, vector=vectors, payload=payload)
    client.upsert(name, [point], update_mode=mode)


def update_vectors(client: QdrantClient, name: str, id: int, vectors: Any) -> None:
    if vectors and present(client, name, [id]):
        client.update_vectors(name, [models.PointVectors(id=id, vector=vectors)])


def changing(change: Callable[..., object]) -> Callable[..., None]:
    def act(client: QdrantClient, name: str, what: Any, which: Any) -> None:
        chosen = present(client, name, which)
        if chosen:
            change(client, name, what, chosen)

    return act


STEPS = st.one_of(
    step(upsert, IDS, VECTORS, PAYLOADS, st.sampled_from([None, *models.UpdateMode])),
    step(upsert, IDS, VECTORS, PAYLOADS, st.none()),
    step(lambda client, name, which: client.delete(name, which), WHICH),
    step(changing(lambda client, *given: client.set_payload(*given)), PAYLOADS, WHICH),
    step(changing(lambda client, *given: client.overwrite_payload(*given)), PAYLOADS, WHICH),
    step(changing(lambda client, *given: client.delete_payload(*given)), KEYS, WHICH),
    step(changing(lambda client, name, _, which: client.clear_payload(name, which)), st.none(), WHICH),
    step(update_vectors, IDS, VECTORS),
    step(changing(lambda client, *given: client.delete_vectors(*given)), NAMES, WHICH),
    step(lambda client, name: client.create_payload_index(name, "a", "integer")),
)


@given(steps=st.lists(STEPS, max_size=12), query=ROWS)
@settings(max_examples=30)
def test_any_sequence_of_writes_leaves_what_local_mode_holds(
    embedded: QdrantClient, steps: list[Step], query: list[float]
):
    local = QdrantClient(":memory:")
    name = f"ops-{next(numbers)}"
    for client in (local, embedded):
        make(client, name)

        for one in steps:
            one(client, name)

    assert held(embedded, name) == held(local, name)
    assert counted(embedded, name) == counted(local, name)
    for using, row in (("image", query), ("text", [query])):
        assert scored(embedded, name, using, row) == pytest.approx(scored(local, name, using, row), abs=1e-5)
    embedded.delete_collection(name)


def make(client: QdrantClient, name: str) -> None:
    max_sim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    client.create_collection(
        name,
        vectors_config={
            "image": models.VectorParams(size=3, distance=models.Distance.COSINE),
            "text": models.VectorParams(size=3, distance=models.Distance.DOT, multivector_config=max_sim),
        },
    )


def held(client: QdrantClient, name: str) -> dict[Any, Any]:
    points, _ = client.scroll(name, limit=100, with_vectors=True)
    return {point.id: (point.payload, rounded(point.vector or {})) for point in points}


def rounded(vectors: Any) -> Any:
    if isinstance(vectors, dict):
        return {name: rounded(part) for name, part in vectors.items()}
    return [rounded(part) for part in vectors] if isinstance(vectors, list) else round(vectors, 5) + 0.0


def counted(client: QdrantClient, name: str) -> list[int]:
    matches = [models.MatchValue(value=value) for value in range(4)]
    wheres = [models.Filter(must=[models.FieldCondition(key="a", match=match)]) for match in matches]
    return [client.count(name, where).count for where in (None, *wheres)]


def scored(client: QdrantClient, name: str, using: str, query: Any) -> dict[Any, float]:
    return {hit.id: hit.score for hit in client.query_points(name, query, using=using, limit=100).points}
