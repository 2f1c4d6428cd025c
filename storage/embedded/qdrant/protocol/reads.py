"""Read points by id, by page, by count or by facet."""

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors
from storage.embedded.qdrant.engine.target import Target
from storage.embedded.qdrant.protocol.errors import RequestError, TooLarge
from storage.embedded.qdrant.protocol.filters import to_filter
from storage.embedded.qdrant.protocol.responses import (
    MAX_RESULTS,
    checked_limit,
    payload_selector,
    records,
    refuse_shard_key,
    vector_selector,
)
from storage.embedded.qdrant.protocol.scoring import order_by
from storage.embedded.qdrant.protocol.vectors import point_id, rest_id

DEFAULT_LIMIT = 10
FACET_GROWTH = 8


def retrieve(request: models.PointRequest, target: Target) -> list[models.Record]:
    """Return the existing points of these ids, each once, in their order."""
    refuse_shard_key(request.shard_key)
    ids: list[edge.PointId] = list(dict.fromkeys(point_id(id) for id in request.ids))
    with engine_errors():
        return records(
            target.shard.retrieve(
                ids,
                payload_selector(request.with_payload, default=True),
                vector_selector(request.with_vector, target, len(ids)),
            )
        )


def scroll(request: models.ScrollRequest, target: Target) -> models.ScrollResult:
    """Return one page in order of ids, and the next offset.

    In the order of a payload field there is no next id: pages start from a value of that field.

    Raises:
        RequestError: both an order and an offset are given, or the field has no index to order by.
    """
    refuse_shard_key(request.shard_key)
    if request.order_by is not None and request.offset is not None:
        raise RequestError(
            "Cannot use an `offset` when using `order_by`: page with `order_by.start_from`, "
            "and a filter that excludes the ids already seen for that value"
        )
    limit = checked_limit(request.limit, DEFAULT_LIMIT, target)
    with engine_errors():
        query = edge.ScrollRequest(
            offset=None if request.offset is None else point_id(request.offset),
            limit=limit,
            filter=to_filter(request.filter, target.spaces.fields),
            with_payload=payload_selector(request.with_payload, default=True),
            with_vector=vector_selector(request.with_vector, target, limit),
            order_by=None if request.order_by is None else order_by(request.order_by),
        )
        points, following = target.shard.scroll(query)
    start = None if following is None else rest_id(following)
    return models.ScrollResult.model_construct(points=records(points), next_page_offset=start)


def count(request: models.CountRequest, target: Target) -> models.CountResult:
    """Count matching points, exactly unless a filter comes with `exact=False`."""
    refuse_shard_key(request.shard_key)
    with engine_errors():
        if request.filter is None:
            number = target.shard.info().points_count  # to count, the engine would go through all of them
        else:
            exact = True if request.exact is None else request.exact
            number = target.shard.count(
                edge.CountRequest(exact=exact, filter=to_filter(request.filter, target.spaces.fields))
            )
    return models.CountResult(count=number)


def facet(request: models.FacetRequest, target: Target) -> models.FacetResponse:
    """Count points per value of a field, the most frequent first.

    Raises:
        RequestError: the field has no payload index; a server needs one too.
        TooLarge: there are more values than `MAX_RESULTS`, and more are requested.
    """
    refuse_shard_key(request.shard_key)
    limit = DEFAULT_LIMIT if request.limit is None else request.limit
    if limit < 1:
        raise RequestError(f"limit value {limit} is invalid, must be 1 or larger")
    with engine_errors():
        hits = _facet_hits(request, limit, target)[:limit]
    if len(hits) > MAX_RESULTS:
        raise TooLarge(f"the field has more than {MAX_RESULTS:,} values; request fewer")
    return models.FacetResponse(hits=[models.FacetValueHit(value=hit.value, count=hit.count) for hit in hits])


def _facet_hits(request: models.FacetRequest, limit: int, target: Target) -> list[edge.FacetHit]:
    """Return at least `limit` values, by count and then by value.

    Of values with equal counts the engine returns any: all that have the count of the last one are read.
    """
    where, exact = to_filter(request.filter, target.spaces.fields), request.exact or False
    most = min(limit, MAX_RESULTS) + 1  # a point may have many values: their number is not known before
    while True:
        hits = target.shard.facet(edge.FacetRequest(request.key, most, exact, where)).hits
        is_cut = len(hits) == most and hits[-1].count == hits[min(limit, most) - 1].count
        if not is_cut or most > MAX_RESULTS:
            return sorted(hits, key=lambda hit: (-hit.count, hit.value))
        most = min(most * FACET_GROWTH, MAX_RESULTS + 1)
