"""Group query results by a payload field, which the engine cannot.

A group ranks by its best hit, so the first `limit` distinct values met along the query's ranking are the
result's groups, and the first `group_size` hits of each are its hits. Where a filter keeps the ranking of the
remaining points, groups are found by excluding those already known, and each is filled by a query of its own;
the cost depends on the result, not on the collection. Elsewhere the whole ranking is read once: it is at most
as long as the prefetches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import qdrant_edge as edge
from qdrant_client import models
from qdrant_client.local.payload_value_extractor import value_by_key

from storage.embedded.qdrant.engine.bindings import engine_errors
from storage.embedded.qdrant.engine.target import Find, Target
from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.examples import prefetches, typed_query
from storage.embedded.qdrant.protocol.filters import INT64
from storage.embedded.qdrant.protocol.query import run
from storage.embedded.qdrant.protocol.responses import (
    MAX_RESULTS,
    checked_limit,
    payload_selector,
    records,
    refuse_shard_key,
    vector_selector,
)
from storage.embedded.qdrant.protocol.vectors import point_id

DEFAULT_LIMIT = 10
DEFAULT_GROUP_SIZE = 3
GROWTH = 4

Key = int | str
Groups = dict[Key, list[models.ScoredPoint]]


@dataclass(frozen=True, slots=True)
class Grouping:
    """Represent a group request and its target."""

    request: models.QueryGroupsRequest
    target: Target
    find: Find
    limit: int
    size: int

    def ranking(self, limit: int, *conditions: models.Condition) -> list[models.ScoredPoint]:
        """Return the best points with a group value, with that field."""
        path = self.request.group_by
        empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=path))
        return run(
            self.request,
            self.target,
            self.find,
            limit=limit,
            with_payload=[path.removesuffix("[]")],
            also=models.Filter(must=list(conditions), must_not=[empty]),
        )

    def keys(self, hit: models.ScoredPoint) -> list[Key]:
        """Return the distinct groups of a point.

        There are none when one of its values is neither text nor integer.
        """
        values = value_by_key(hit.payload or {}, self.request.group_by) or []
        if any(isinstance(value, bool) or not isinstance(value, int | str) for value in values):
            return []
        return list(dict.fromkeys(values))


def query_groups(request: models.QueryGroupsRequest, target: Target, find: Find) -> models.GroupsResult:
    """Return the best groups with their best hits, best first.

    A point with many values is in many groups.

    Raises:
        RequestError, NotFound, NotSupported, TooLarge: as `query_points` does.
    """
    refuse_shard_key(request.shard_key)
    limit = checked_limit(request.limit, DEFAULT_LIMIT)
    size = checked_limit(request.group_size, DEFAULT_GROUP_SIZE)
    checked_limit(limit * size, DEFAULT_LIMIT)
    if not _keeps_ranking(request):
        request = _widen(request, limit)
    grouping = Grouping(request, target, find, limit, size)
    found = _group_stepwise(grouping) if _keeps_ranking(request) else _group_all(grouping)
    return models.GroupsResult.model_construct(groups=_with_contents(found, grouping))


def _keeps_ranking(request: models.QueryGroupsRequest) -> bool:
    """Return whether a filter keeps the ranking of the remaining points."""
    query = typed_query(request.query)
    if prefetches(request) or isinstance(query, models.SampleQuery):
        return False
    return not (isinstance(query, models.NearestQuery) and query.mmr is not None)


def _widen(request: models.QueryGroupsRequest, groups: int) -> models.QueryGroupsRequest:
    """Multiply the limit of every prefetch, as a server does for groups."""
    query = request.query
    if (
        isinstance(query, models.NearestQuery)
        and query.mmr is not None
        and query.mmr.candidates_limit is None
    ):
        mmr = query.mmr.model_copy(update={"candidates_limit": groups})
        query = query.model_copy(update={"mmr": mmr})
    wider = [_widen_prefetch(prefetch, groups) for prefetch in prefetches(request)]
    return request.model_copy(update={"prefetch": wider or None, "query": query})


def _widen_prefetch(stage: models.Prefetch, groups: int) -> models.Prefetch:
    limit = min(checked_limit(stage.limit, DEFAULT_LIMIT) * groups, MAX_RESULTS)
    inner = [_widen_prefetch(earlier, groups) for earlier in prefetches(stage)]
    return stage.model_copy(update={"limit": limit, "prefetch": inner or None})


def _group_all(grouping: Grouping) -> Groups:
    return _first(_group(grouping.ranking(MAX_RESULTS), grouping), grouping)


def _group_stepwise(grouping: Grouping) -> Groups:
    found: Groups = {}
    want = grouping.limit * grouping.size
    while len(found) < grouping.limit:
        hits = grouping.ranking(want, *_outside_groups(found, grouping.request.group_by))
        new = {key: near for key, near in _group(hits, grouping).items() if key not in found}
        found |= new
        if len(hits) < want:
            break
        if not new:
            want = checked_limit(want * GROWTH, want)
    found = _first(found, grouping)
    return {key: _fill_group(key, hits, grouping) for key, hits in found.items()}


def _fill_group(key: Key, hits: list[models.ScoredPoint], grouping: Grouping) -> list[models.ScoredPoint]:
    want = grouping.size
    while len(hits) < grouping.size:
        near = grouping.ranking(want, *_in_group(key, grouping.request.group_by))
        hits = [hit for hit in near if key in grouping.keys(hit)]
        if len(near) < want:
            break
        want = checked_limit(want * GROWTH, want)
    return hits[: grouping.size]


def _group(hits: Sequence[models.ScoredPoint], grouping: Grouping) -> Groups:
    groups: Groups = {}
    for hit in hits:
        for key in grouping.keys(hit):
            groups.setdefault(key, []).append(hit)
    return groups


def _first(groups: Groups, grouping: Grouping) -> Groups:
    best = list(groups.items())[: grouping.limit]
    return {key: hits[: grouping.size] for key, hits in best}


def _outside_groups(found: Groups, path: str) -> list[models.Condition]:
    # "Except" keeps a point that has any other value: it may be the best one of a group not met yet.
    texts = [key for key in found if isinstance(key, str)]
    numbers = [key for key in found if isinstance(key, int) and key in INT64]
    return [
        models.FieldCondition(key=path, match=models.MatchExcept(**{"except": keys}))
        for keys in (texts, numbers)
        if keys
    ]


def _in_group(key: Key, path: str) -> list[models.Condition]:
    if isinstance(key, int) and key not in INT64:
        return []  # no condition can name it; the caller checks the payloads instead
    return [models.FieldCondition(key=path, match=models.MatchValue(value=key))]


def _with_contents(found: Groups, grouping: Grouping) -> list[models.PointGroup]:
    """Add the requested payload, vectors and lookups to the groups."""
    request, target = grouping.request, grouping.target
    ids: list[edge.PointId] = list(dict.fromkeys(hit.id for hits in found.values() for hit in hits))
    with engine_errors():
        with_payload = payload_selector(request.with_payload, default=False)
        with_vector = vector_selector(request.with_vector, target, len(ids))
        stored = target.shard.retrieve(ids, with_payload, with_vector)
    dress = {record.id: {"payload": record.payload, "vector": record.vector} for record in records(stored)}
    looked_up = _lookup(list(found), request.with_lookup, grouping.find)
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
