"""Find the best groups of a query, and their best hits.

A group ranks by its best hit. Where a filter keeps the ranking of the remaining points, the first `limit`
distinct values met along the ranking are the groups: they are found by excluding those already known, and
each is filled by a query of its own; the cost depends on the result, not on the collection.

Elsewhere (over prefetches, in a sample, by diversity) a filter changes the ranking. There the result is by
definition what a server finds with its requests, so the same requests are sent: up to five for the groups and
up to five to fill them, each without the points known so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from qdrant_client import models
from qdrant_client.local.payload_value_extractor import value_by_key

from storage.embedded.qdrant.engine.target import Find, Target
from storage.embedded.qdrant.protocol.diversity import mmr_of
from storage.embedded.qdrant.protocol.examples import prefetches, typed_query
from storage.embedded.qdrant.protocol.filters import INT64, to_filter
from storage.embedded.qdrant.protocol.named_vectors import UNNAMED
from storage.embedded.qdrant.protocol.query import run
from storage.embedded.qdrant.protocol.responses import MAX_RESULTS, checked_limit

DEFAULT_PREFETCH_LIMIT = 10
GROWTH = 4
ROUNDS = 5
"""Requests of a server to find groups, and as many to fill them."""

SMALLER_IS_BETTER = (models.Distance.EUCLID, models.Distance.MANHATTAN)

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

    def ranking(
        self, limit: int, *conditions: models.Condition, without: Sequence[models.ExtendedPointId] = ()
    ) -> list[models.ScoredPoint]:
        """Return the best points with a group value, with that field."""
        path = self.request.group_by
        excluded: list[models.Condition] = [
            models.IsEmptyCondition(is_empty=models.PayloadField(key=path)),
            *([models.HasIdCondition(has_id=list(without))] if without else []),
        ]
        return run(
            self.request,
            self.target,
            self.find,
            limit=checked_limit(limit, limit, self.target),
            with_payload=[path.removesuffix("[]")],
            also=to_filter(
                models.Filter(must=list(conditions), must_not=excluded), self.target.spaces.fields
            ),
        )

    def keys(self, hit: models.ScoredPoint) -> list[Key]:
        """Return the distinct groups of a point.

        There are none when one of its values is neither text nor integer.
        """
        values = value_by_key(hit.payload or {}, self.request.group_by) or []
        if any(isinstance(value, bool) or not isinstance(value, int | str) for value in values):
            return []
        return list(dict.fromkeys(values))


def best_groups(
    request: models.QueryGroupsRequest, target: Target, find: Find, limit: int, size: int
) -> Groups:
    """Return at most `limit` groups of at most `size` hits, best first."""
    if _keeps_ranking(request):
        return _group_stepwise(Grouping(request, target, find, limit, size))
    return _group_in_rounds(Grouping(_widen(request, size), target, find, limit, size))


def _keeps_ranking(request: models.QueryGroupsRequest) -> bool:
    """Return whether a filter keeps the ranking of the remaining points."""
    is_sample = isinstance(typed_query(request.query), models.SampleQuery)
    return not (is_sample or prefetches(request) or mmr_of(request))


def _group_stepwise(grouping: Grouping) -> Groups:
    found: Groups = {}
    want = grouping.limit * grouping.size
    while len(found) < grouping.limit:
        hits = grouping.ranking(want, *_outside_groups(list(found), grouping.request.group_by))
        new = {key: near for key, near in _group(hits, grouping).items() if key not in found}
        found |= new
        if len(hits) < want:
            break
        if not new:
            want *= GROWTH
    best = dict(islice(found.items(), grouping.limit))
    return {key: _fill_group(key, hits, grouping) for key, hits in best.items()}


def _fill_group(key: Key, hits: list[models.ScoredPoint], grouping: Grouping) -> list[models.ScoredPoint]:
    want = grouping.size
    while len(hits) < grouping.size:
        near = grouping.ranking(want, *_in_groups([key], grouping.request.group_by))
        hits = [hit for hit in near if key in grouping.keys(hit)]
        if len(near) < want:
            break
        want *= GROWTH
    return hits[: grouping.size]


def _widen(request: models.QueryGroupsRequest, size: int) -> models.QueryGroupsRequest:
    """Multiply the limit of every prefetch by the size of a group."""
    wider = [_widen_prefetch(prefetch, size) for prefetch in prefetches(request)]
    return request.model_copy(update={"prefetch": wider or None})


def _widen_prefetch(stage: models.Prefetch, size: int) -> models.Prefetch:
    own = DEFAULT_PREFETCH_LIMIT if stage.limit is None else stage.limit
    limit = max(own, min(own * size, MAX_RESULTS))
    inner = [_widen_prefetch(earlier, size) for earlier in prefetches(stage)]
    return stage.model_copy(update={"limit": limit, "prefetch": inner or None})


def _group_in_rounds(grouping: Grouping) -> Groups:
    """Request groups, then hits of unfilled ones, as a server does."""
    found: Groups = {}
    seen: list[models.ExtendedPointId] = []
    path = grouping.request.group_by
    for is_filling in (False, True):
        for _ in range(ROUNDS):
            best = _ranked(found, grouping)
            unfilled = [key for key, hits in best.items() if len(hits) < grouping.size]
            if len(best) == grouping.limit and not unfilled:
                return best
            full = [key for key, hits in found.items() if len(hits) >= grouping.size]
            conditions = _in_groups(unfilled, path) if is_filling else _outside_groups(full, path)
            hits = grouping.ranking(grouping.limit * grouping.size, *conditions, without=seen)
            if not hits:
                break
            seen += [hit.id for hit in hits]
            for key, near in _group(hits, grouping).items():
                found.setdefault(key, []).extend(near)
    return _ranked(found, grouping)


def _ranked(groups: Groups, grouping: Grouping) -> Groups:
    """Return the groups and hits by score.

    Equal ones stay in the order of their requests.
    """
    sign = 1 if _smaller_is_better(grouping) else -1
    ranked = {key: sorted(hits, key=lambda hit: sign * hit.score) for key, hits in groups.items()}
    best = sorted(ranked.items(), key=lambda group: sign * group[1][0].score)[: grouping.limit]
    return {key: hits[: grouping.size] for key, hits in best}


def _smaller_is_better(grouping: Grouping) -> bool:
    query = typed_query(grouping.request.query)
    if not isinstance(query, models.NearestQuery) or mmr_of(grouping.request):
        return False
    params = grouping.target.spaces.dense.get(grouping.request.using or UNNAMED)
    return params is not None and params.distance in SMALLER_IS_BETTER


def _group(hits: Sequence[models.ScoredPoint], grouping: Grouping) -> Groups:
    groups: Groups = {}
    for hit in hits:
        for key in grouping.keys(hit):
            groups.setdefault(key, []).append(hit)
    return groups


def _outside_groups(keys: Sequence[Key], path: str) -> list[models.Condition]:
    # "Except" keeps a point that has any other value: it may be the best one of a group not met yet.
    return [
        models.FieldCondition(key=path, match=models.MatchExcept(**{"except": same_kind}))
        for same_kind in _by_kind(keys)
    ]


def _in_groups(keys: Sequence[Key], path: str) -> list[models.Condition]:
    kinds = _by_kind(keys)
    if sum(map(len, kinds)) < len(keys):
        return []  # no condition can name one of them; the caller checks the payloads instead
    return [
        models.Filter(
            should=[
                models.FieldCondition(key=path, match=models.MatchAny(any=same_kind)) for same_kind in kinds
            ]
        )
    ]


def _by_kind(keys: Sequence[Key]) -> list[list[Key]]:
    """Return the texts and the numbers that a condition can name."""
    texts: list[Key] = [key for key in keys if isinstance(key, str)]
    numbers: list[Key] = [key for key in keys if isinstance(key, int) and key in INT64]
    return [kind for kind in (texts, numbers) if kind]
