"""Compute distances between randomly sampled points."""

from dataclasses import dataclass
from uuid import UUID

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors
from storage.embedded.qdrant.engine.target import Target
from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.filters import to_filter
from storage.embedded.qdrant.protocol.named_vectors import UNNAMED
from storage.embedded.qdrant.protocol.responses import checked_limit, refuse_shard_key, scored_points
from storage.embedded.qdrant.protocol.vectors import query_vector, rest_id, stored_vector

DEFAULT_SAMPLE = 10
DEFAULT_LIMIT = 3


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Represent a sampled point and its nearest sampled points, best first."""

    id: models.ExtendedPointId
    nearest: tuple[models.ScoredPoint, ...]


def matrix_pairs(request: models.SearchMatrixRequest, target: Target) -> models.SearchMatrixPairsResponse:
    """Return the nearest sampled points of each, as pairs by id."""
    return models.SearchMatrixPairsResponse(
        pairs=[
            models.SearchMatrixPair(a=row.id, b=hit.id, score=hit.score)
            for row in _neighbours(request, target)
            for hit in row.nearest
        ]
    )


def matrix_offsets(request: models.SearchMatrixRequest, target: Target) -> models.SearchMatrixOffsetsResponse:
    """Return the result of `matrix_pairs` as offsets into the sampled ids."""
    rows = _neighbours(request, target)
    position: dict[models.ExtendedPointId, int] = {row.id: index for index, row in enumerate(rows)}
    return models.SearchMatrixOffsetsResponse(
        offsets_row=[position[row.id] for row in rows for _ in row.nearest],
        offsets_col=[position[hit.id] for row in rows for hit in row.nearest],
        scores=[hit.score for row in rows for hit in row.nearest],
        ids=list(position),
    )


def _neighbours(request: models.SearchMatrixRequest, target: Target) -> list[Neighbours]:
    refuse_shard_key(request.shard_key)
    limit = checked_limit(request.limit, DEFAULT_LIMIT, target)
    size = checked_limit(request.sample, DEFAULT_SAMPLE, target, least=2)
    using = request.using or UNNAMED
    if using not in target.spaces.dense and using not in target.spaces.sparse:
        raise RequestError(f"Not existing vector name error: {using!r}")
    with engine_errors():
        sample = _sample(to_filter(request.filter, target.spaces.fields), size, using, target)
        if len(sample) < 2:
            return []
        among = edge.Filter(must=[edge.HasIdCondition({point.id for point in sample})])
        return [_nearest(point, among, limit, using, target) for point in sample]


def _sample(filter: edge.Filter | None, size: int, using: str, target: Target) -> list[edge.ScoredPoint]:
    has_vector = edge.HasVectorCondition(using)
    request = edge.QueryRequest(
        limit=size,
        query=edge.Sample.Random,
        filter=edge.Filter(must=[has_vector] if filter is None else [has_vector, filter]),
        with_vector=[using],
    )
    return sorted(target.shard.query(request), key=lambda point: _id_order(point.id))


def _id_order(id: int | str | UUID) -> tuple[bool, int, str]:
    # As in Qdrant: numbers before UUIDs.
    return (False, id, "") if isinstance(id, int) else (True, 0, str(id))


def _nearest(
    point: edge.ScoredPoint, among: edge.Filter, limit: int, using: str, target: Target
) -> Neighbours:
    vector = stored_vector(point, using)
    if vector is None:
        raise RuntimeError(f"point {point.id} was sampled for its vector {using!r}, and lacks it")
    nearest = edge.Query.Nearest(query_vector(vector, using, target.spaces), using)
    request = edge.QueryRequest(limit=limit + 1, query=nearest, filter=among)
    found = scored_points([hit for hit in target.shard.query(request) if hit.id != point.id])
    return Neighbours(rest_id(point.id), tuple(found[:limit]))
