"""Run the universal query: nearest, recommend, discover, fusion, formula and others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors
from storage.embedded.qdrant.engine.target import Find, Target
from storage.embedded.qdrant.protocol.diversity import (
    Diversity,
    diversity,
    mmr_of,
    select_diverse,
    without_mmr,
)
from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.examples import Stage, example_ids, examples, prefetches, typed_query
from storage.embedded.qdrant.protocol.filters import check_finite, to_filter
from storage.embedded.qdrant.protocol.named_vectors import UNNAMED
from storage.embedded.qdrant.protocol.responses import (
    MAX_RESULTS,
    EnginePayloadSelector,
    EngineVectorSelector,
    checked_limit,
    payload_selector,
    refuse_shard_key,
    scored_points,
    vector_selector,
)
from storage.embedded.qdrant.protocol.scoring import ScoringQuery, check_stage, scoring_query, search_params

DEFAULT_LIMIT = 10
MAX_DEPTH = 32


def query_points(request: models.QueryRequest, target: Target, find: Find) -> list[models.ScoredPoint]:
    """Return the results of a query, best first.

    Points that the query or a prefetch uses as examples are left out, as on a server. A random sample has no
    order, so it ignores the offset.

    Raises:
        RequestError: the query is wrong, or the engine rejects it.
        NotFound: an example or a collection does not exist.
        NotSupported: it names a shard key, or has something to embed.
        TooLarge: it requests more than `responses.MAX_RESULTS`.
    """
    refuse_shard_key(request.shard_key)
    offset = request.offset or 0
    limit = checked_limit(request.limit, DEFAULT_LIMIT, target, offset=offset)
    sampled = isinstance(request.query, models.SampleQuery) and not prefetches(request)
    return run(
        request,
        target,
        find,
        limit=limit,
        offset=0 if sampled else min(offset, MAX_RESULTS),
        with_payload=payload_selector(request.with_payload, default=False),
        with_vector=vector_selector(request.with_vector, target, limit),
    )


def run(
    stage: Stage,
    target: Target,
    find: Find,
    *,
    limit: int,
    offset: int = 0,
    with_payload: EnginePayloadSelector = False,
    with_vector: EngineVectorSelector = False,
    also: edge.Filter | None = None,
) -> list[models.ScoredPoint]:
    """Return the first `limit` results of a query's ranking.

    The limit, offset and selectors of the request itself are not read.

    Args:
        also: a filter that the points must match besides the request's own.
    """
    mmr, using = mmr_of(stage), stage.using or UNNAMED
    if mmr is None:
        return _run(stage, target, find, limit, offset, with_payload, with_vector, also)
    if using not in target.spaces.sparse:
        found = _run(stage, target, find, limit, offset, with_payload, with_vector, also)
    else:
        wanted = diversity(mmr, limit + offset)
        plain = stage.model_copy(update={"query": without_mmr(stage)})
        vectors = _with(using, with_vector)
        near = _run(plain, target, find, max(wanted.candidates, 1), 0, with_payload, vectors, also)
        chosen = select_diverse(near, [_sparse(hit, using) for hit in near], limit + offset, wanted.relevance)
        found = chosen[offset:]
    return [_selected(hit, with_vector) for hit in found]


def _with(name: str, selector: EngineVectorSelector) -> EngineVectorSelector:
    if isinstance(selector, bool):
        return selector or [name]
    return [*selector, name]


def _sparse(hit: models.ScoredPoint, name: str) -> models.SparseVector:
    vector = hit.vector[name] if isinstance(hit.vector, dict) else None
    if not isinstance(vector, models.SparseVector):
        raise TypeError(f"point {hit.id} has no sparse vector {name!r}")
    return vector


def _selected(hit: models.ScoredPoint, selector: EngineVectorSelector) -> models.ScoredPoint:
    """Return a result without the vectors that only its selection needed."""
    if selector is True:
        return hit
    names = selector or []
    if isinstance(hit.vector, dict):
        vector: Any = {name: one for name, one in hit.vector.items() if name in names} or None
    else:
        vector = hit.vector if UNNAMED in names else None
    return hit.model_copy(update={"vector": vector})


def _run(
    stage: Stage,
    target: Target,
    find: Find,
    limit: int,
    offset: int,
    with_payload: EnginePayloadSelector,
    with_vector: EngineVectorSelector,
    also: edge.Filter | None,
) -> list[models.ScoredPoint]:
    with engine_errors():
        where = _filter(stage, target, find, also)
        within = Outer(target, find, where, _is_fusion(stage), 1)
        request = edge.QueryRequest(
            limit=limit,
            offset=offset,
            query=_scoring(stage, target, find, limit),
            prefetches=[_prefetch(earlier, within) for earlier in prefetches(stage)],
            filter=where,
            score_threshold=_threshold(stage),
            params=search_params(stage.params, target.spaces.fields),
            with_payload=with_payload,
            with_vector=with_vector,
        )
        with _formula_errors():
            found = target.shard.query(request)
    _check_scores(found)
    return scored_points(found)


def _check_scores(found: list[edge.ScoredPoint]) -> None:
    if not all(isfinite(hit.score) for hit in found):
        raise RequestError(
            "the scores overflow 32-bit floats; use smaller weights, feedback or formula numbers"
        )


@contextmanager
def _formula_errors() -> Iterator[None]:
    # The engine loses the cause when a formula fails: it reports the searches that it cancels.
    try:
        yield
    except Exception as error:
        if not str(error).startswith("Operation cancelled"):
            raise
        raise RequestError(
            "the formula gives no finite number for some point: a field it names is missing there or holds "
            "no number (see `defaults`), or it divides by zero and the like"
        ) from error


@dataclass(frozen=True, slots=True)
class Outer:
    """Represent the stages that a prefetch belongs to."""

    target: Target
    find: Find
    where: edge.Filter | None
    """Filter that their results must match."""

    is_fusion: bool
    """Whether the stage above merges by rank or score."""

    depth: int


def _prefetch(stage: models.Prefetch, outer: Outer) -> edge.Prefetch:
    if outer.depth > MAX_DEPTH:
        raise RequestError(f"prefetches are nested deeper than {MAX_DEPTH} levels")
    mmr, target = mmr_of(stage), outer.target
    limit = checked_limit(stage.limit, DEFAULT_LIMIT, target)
    if mmr is not None and (outer.is_fusion or stage.using in target.spaces.sparse):
        return _diverse_prefetch(stage, diversity(mmr, limit), limit, outer)
    own = to_filter(stage.filter, target.spaces.fields)
    within = Outer(target, outer.find, _all_of(own, outer.where), _is_fusion(stage), outer.depth + 1)
    return edge.Prefetch(
        limit=limit,
        query=_scoring(stage, target, outer.find, limit),
        prefetches=[_prefetch(earlier, within) for earlier in prefetches(stage)],
        filter=own,
        score_threshold=_threshold(stage),
        params=search_params(stage.params, target.spaces.fields),
    )


def _diverse_prefetch(stage: models.Prefetch, wanted: Diversity, limit: int, outer: Outer) -> edge.Prefetch:
    """Convert a prefetch by diversity.

    Below a fusion the engine would pass on all of its candidates.
    """
    plain = stage.model_copy(update={"query": without_mmr(stage)})
    if not outer.is_fusion:
        return _prefetch(plain.model_copy(update={"limit": max(wanted.candidates, 1)}), outer)
    chosen = run(stage, outer.target, outer.find, limit=limit, also=outer.where)
    best = models.Filter(must=[models.HasIdCondition(has_id=[hit.id for hit in chosen])])
    return _prefetch(plain.model_copy(update={"filter": best, "prefetch": None}), outer)


def _is_fusion(stage: Stage) -> bool:
    return isinstance(typed_query(stage.query), models.FusionQuery | models.RrfQuery)


def _scoring(stage: Stage, target: Target, find: Find, limit: int) -> ScoringQuery | None:
    check_stage(stage)
    query = typed_query(stage.query)
    return None if query is None else scoring_query(query, examples(stage, target, find), limit)


def _filter(stage: Stage, target: Target, find: Find, also: edge.Filter | None) -> edge.Filter | None:
    named: set[edge.PointId] = set(example_ids(stage, target, find))
    without = edge.Filter(must_not=[edge.HasIdCondition(named)]) if named else None
    return _all_of(to_filter(stage.filter, target.spaces.fields), also, without)


def _all_of(*filters: edge.Filter | None) -> edge.Filter | None:
    given = [one for one in filters if one is not None]
    return given[0] if len(given) == 1 else edge.Filter(must=[*given]) if given else None


def _threshold(stage: Stage) -> float | None:
    check_finite("score_threshold", stage.score_threshold)
    return stage.score_threshold
