"""Search a collection by vectors."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from storage.qdrant.collections import PAYLOAD_FIELDS, SHORT, Collection, metadata_path
from storage.qdrant.limits import limits_of
from storage.qdrant.points import Space, chunks, payload_digest
from storage.records import Hit, Item, Text, Where, any_reading

STRINGS, NUMBERS = ("keyword", "uuid"), ("integer", "float")
NOTHING = models.HasIdCondition(has_id=[])
"""Matches no point; a filter without conditions would match all."""


def search_points(
    client: QdrantClient,
    collection: Collection,
    query: NDArray[np.float32],
    *,
    using: Space,
    limit: int,
    min_score: float | None = None,
    where: Where | None = None,
    without: Sequence[UUID] = (),
    oversampling: float = 1.0,
) -> list[Hit]:
    """Return the points closest to `query`, best first, ties by id.

    `query` is of shape (dim,), unit length.

    Candidates found among quantized or shortened vectors are rescored with whole vectors.

    Args:
        collection: as `active_collection` returned it; it is searched by its name, because the alias may move
            to another model's collection meanwhile.
        using: `image` finds images, `text` finds texts; items without one are not found by it.
        min_score: the least score of a hit, a cosine in [-1, 1].
        where: metadata (or `source`, or `key`) that a hit must have; of several values of a field, any.
        without: items to leave out.
        oversampling: candidates to rescore per hit, where vectors are quantized or shortened.
    """
    condition = _filter(where or {}, without, collection.indexed_only)
    first_stage = None
    if collection.short_dim is not None:
        first_stage = models.Prefetch(
            query=_rows(query[: collection.short_dim], using),
            using=using + SHORT,
            limit=ceil(limit * oversampling),
            filter=condition,
        )
    found = client.query_points(
        collection.name,
        query=_rows(query, using),
        using=using,
        prefetch=first_stage,
        limit=limit,
        score_threshold=min_score,
        query_filter=condition,
        search_params=_params(collection, oversampling),
        with_vectors=["text"],
        with_payload=True,
    ).points
    hits = [_hit(point, query) for point in found]
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def _rows(query: NDArray[np.float32], using: Space) -> Any:
    """Return the query in the shape that its space requires.

    A multivector is compared with a matrix, here of one row.
    """
    return query.tolist() if using == "image" else [query.tolist()]


def _params(collection: Collection, oversampling: float) -> models.SearchParams | None:
    if collection.quantization == "none":
        return None
    quantization = models.QuantizationSearchParams(rescore=True, oversampling=oversampling)
    return models.SearchParams(quantization=quantization)


def nearest_images(
    client: QdrantClient, collection: Collection, queries: NDArray[np.float32], limit: int
) -> list[list[tuple[UUID, float]]]:
    """Return ids and scores of the closest images per query, best first.

    All queries are sent in one request.

    Args:
        queries: shape (n, dim), unit rows.
    """
    requests = [
        models.QueryRequest(
            query=query, using="image", limit=limit, params=_params(collection, oversampling=1.0)
        )
        for query in queries.tolist()
    ]
    answers = _query_batch(client, collection.name, requests)
    return [[(UUID(str(point.id)), point.score) for point in answer.points] for answer in answers]


def sampled_recall(client: QdrantClient, collection: str, ids: Sequence[UUID], limit: int) -> float | None:
    """Measure mean recall@`limit` of approximate image search, in [0, 1].

    The reference is exact search.

    Args:
        ids: points whose images are the queries; those without one are left out.

    Returns:
        None if there is no image among them.
    """
    pages = chunks([str(id) for id in ids], limits_of(client, collection).page)
    queries = [
        point.vector["image"]
        for page in pages
        for point in client.retrieve(collection, page, with_payload=False, with_vectors=["image"])
        if isinstance(point.vector, dict) and "image" in point.vector
    ]
    if not queries:
        return None
    answers = []
    for params in (None, models.SearchParams(exact=True)):
        requests: list[Any] = [
            models.QueryRequest(query=query, using="image", limit=limit, params=params) for query in queries
        ]
        answers.append(_query_batch(client, collection, requests))
    shares = [
        len({point.id for point in found.points} & {point.id for point in right.points}) / len(right.points)
        for found, right in zip(*answers, strict=True)
    ]
    return sum(shares) / len(shares)


def _hit(point: models.ScoredPoint, query: NDArray[np.float32]) -> Hit:
    payload = point.payload or {}
    text = str(payload.get("text", ""))
    item = Item(
        source=str(payload.get("source", "")),
        key=str(payload.get("key", "")),
        texts=(Text(text),) if text else (),
        metadata=payload.get("metadata") or {},
    )
    best = _best_text(point.vector, query)
    return Hit(UUID(str(point.id)), point.score, best, item, payload_digest(payload))


def _best_text(vectors: object, query: NDArray[np.float32]) -> int | None:
    rows = vectors.get("text") if isinstance(vectors, dict) else None
    return int(np.argmax(np.asarray(rows, np.float32) @ query)) if rows else None


def _query_batch(
    client: QdrantClient, collection: str, requests: list[models.QueryRequest]
) -> list[models.QueryResponse]:
    size = limits_of(client, collection).searches
    return [
        answer for some in chunks(requests, size) for answer in client.query_batch_points(collection, some)
    ]


def _filter(
    where: Where, without: Sequence[UUID], indexed: Mapping[str, str] | None = None
) -> models.Filter | None:
    if not where and not without:
        return None
    others = models.HasIdCondition(has_id=[str(id) for id in without])
    return models.Filter(
        must=[_condition(field, values, indexed) for field, values in where.items()] or None,
        must_not=[others] if without else None,
    )


def _condition(
    field: str, values: str | Sequence[str], indexed: Mapping[str, str] | None = None
) -> models.Filter:
    """Match any of the values, as a string, number or boolean.

    Args:
        indexed: the types of payload indexes, where strict mode rejects a reading without one.
    """
    path = field if field in PAYLOAD_FIELDS or field.startswith("metadata.") else metadata_path(field)
    kind = None if indexed is None else indexed.get(path)
    ways: list[models.Condition] = []
    for one in any_reading(values):
        if not isinstance(one, float) and kind in (None, *_index_kinds(one)):
            ways.append(models.FieldCondition(key=path, match=models.MatchValue(value=one)))
        if isinstance(one, int | float) and not isinstance(one, bool) and kind in (None, *NUMBERS):
            ways.append(models.FieldCondition(key=path, range=models.Range(gte=one, lte=one)))
    return models.Filter(should=ways or [NOTHING])


def _index_kinds(value: str | int) -> tuple[str, ...]:
    """Return the types of payload indexes that can match a value."""
    if isinstance(value, bool):
        return ("bool",)
    return ("integer",) if isinstance(value, int) else STRINGS
