"""Run the universal query: nearest, recommend, discover, fusion, formula and others."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors
from storage.embedded.qdrant.engine.target import Find, Target
from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.examples import Stage, example_ids, examples, prefetches, typed_query
from storage.embedded.qdrant.protocol.filters import check_finite, to_filter
from storage.embedded.qdrant.protocol.responses import (
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
    limit = checked_limit(request.limit, DEFAULT_LIMIT, offset=request.offset or 0)
    sampled = isinstance(request.query, models.SampleQuery) and not prefetches(request)
    return run(
        request,
        target,
        find,
        limit=limit,
        offset=0 if sampled else request.offset or 0,
        with_payload=payload_selector(request.with_payload, default=False),
        with_vector=vector_selector(request.with_vector, target, limit),
    )


def run(
    stage: models.QueryRequest | models.QueryGroupsRequest,
    target: Target,
    find: Find,
    *,
    limit: int,
    offset: int = 0,
    with_payload: EnginePayloadSelector = False,
    with_vector: EngineVectorSelector = False,
    also: models.Filter | None = None,
) -> list[models.ScoredPoint]:
    """Return the first `limit` results of a query's ranking.

    The limit, offset and selectors of the request itself are not read.

    Args:
        also: a filter that the points must match besides the request's own.
    """
    with engine_errors():
        request = edge.QueryRequest(
            limit=limit,
            offset=offset,
            query=_scoring(stage, target, find, limit),
            prefetches=[_prefetch(earlier, target, find, 1) for earlier in prefetches(stage)],
            filter=_filter(stage, target, find, also),
            score_threshold=_threshold(stage),
            params=search_params(stage.params),
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


def _prefetch(stage: models.Prefetch, target: Target, find: Find, depth: int) -> edge.Prefetch:
    if depth > MAX_DEPTH:
        raise RequestError(f"prefetches are nested deeper than {MAX_DEPTH} levels")
    limit = checked_limit(stage.limit, DEFAULT_LIMIT)
    return edge.Prefetch(
        limit=limit,
        query=_scoring(stage, target, find, limit),
        prefetches=[_prefetch(earlier, target, find, depth + 1) for earlier in prefetches(stage)],
        filter=to_filter(stage.filter),
        score_threshold=_threshold(stage),
        params=search_params(stage.params),
    )


def _scoring(stage: Stage, target: Target, find: Find, limit: int) -> ScoringQuery | None:
    check_stage(stage)
    query = typed_query(stage.query)
    return None if query is None else scoring_query(query, examples(stage, target, find), limit)


def _filter(stage: Stage, target: Target, find: Find, also: models.Filter | None) -> edge.Filter | None:
    given = [part for part in (to_filter(stage.filter), to_filter(also)) if part is not None]
    named: set[edge.PointId] = set(example_ids(stage, target, find))
    if not named and len(given) < 2:
        return given[0] if given else None
    return edge.Filter(must=[*given], must_not=[edge.HasIdCondition(named)] if named else None)


def _threshold(stage: Stage) -> float | None:
    check_finite("score_threshold", stage.score_threshold)
    return stage.score_threshold
