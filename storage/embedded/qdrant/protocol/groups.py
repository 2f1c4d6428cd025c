"""Group query results by a payload field, which the engine cannot."""

import sys
from collections.abc import Sequence

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors
from storage.embedded.qdrant.engine.target import Find, Target
from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.grouping import Groups, Key, best_groups
from storage.embedded.qdrant.protocol.responses import (
    payload_selector,
    records,
    refuse_shard_key,
    vector_selector,
)
from storage.embedded.qdrant.protocol.vectors import point_id

DEFAULT_LIMIT = 10
DEFAULT_GROUP_SIZE = 3


def query_groups(request: models.QueryGroupsRequest, target: Target, find: Find) -> models.GroupsResult:
    """Return the best groups with their best hits, best first.

    A point with many values is in many groups.

    Raises:
        RequestError, NotFound, NotSupported, TooLarge: as `query_points` does.
    """
    refuse_shard_key(request.shard_key)
    limit = _checked_number(request.limit, DEFAULT_LIMIT)
    size = _checked_number(request.group_size, DEFAULT_GROUP_SIZE)
    found = best_groups(request, target, find, limit, size)
    return models.GroupsResult.model_construct(groups=_with_contents(found, request, target, find))


def _checked_number(number: int | None, default: int) -> int:
    """Check a number of groups or hits; points are limited elsewhere."""
    number = default if number is None else number
    if number < 1:
        raise RequestError(f"limit value {number} is invalid, must be 1 or larger")
    return min(number, sys.maxsize)


def _with_contents(
    found: Groups, request: models.QueryGroupsRequest, target: Target, find: Find
) -> list[models.PointGroup]:
    """Add the requested payload, vectors and lookups to the groups."""
    ids: list[edge.PointId] = list(dict.fromkeys(hit.id for hits in found.values() for hit in hits))
    with engine_errors():
        with_payload = payload_selector(request.with_payload, default=False)
        with_vector = vector_selector(request.with_vector, target, len(ids))
        stored = target.shard.retrieve(ids, with_payload, with_vector)
    dress = {record.id: {"payload": record.payload, "vector": record.vector} for record in records(stored)}
    looked_up = _lookup(list(found), request.with_lookup, find)
    return [
        models.PointGroup.model_construct(
            id=key,
            hits=[hit.model_copy(update=dress[hit.id]) for hit in hits],
            lookup=None if (id := _as_id(key)) is None else looked_up.get(id),
        )
        for key, hits in found.items()
    ]


def _lookup(
    keys: Sequence[Key], given: models.WithLookupInterface | None, find: Find
) -> dict[models.ExtendedPointId, models.Record]:
    if given is None:
        return {}
    lookup = models.WithLookup(collection=given) if isinstance(given, str) else given
    target = find(lookup.collection)
    ids: list[edge.PointId] = [id for key in keys if (id := _as_id(key)) is not None]
    with engine_errors():
        stored = target.shard.retrieve(
            ids,
            payload_selector(lookup.with_payload, default=True),
            vector_selector(lookup.with_vectors, target, len(ids)),
        )
    return {record.id: record for record in records(stored)}


def _as_id(key: Key) -> int | str | None:
    """Return the point id that a group's value names, or None."""
    try:
        return point_id(key)
    except RequestError:
        return None
