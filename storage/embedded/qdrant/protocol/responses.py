"""Select the payload and vectors of results, and convert engine points."""

from collections.abc import Sequence

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.target import Target
from storage.embedded.qdrant.protocol.errors import NotSupported, RequestError, TooLarge
from storage.embedded.qdrant.protocol.vectors import rest_id, to_rest

MAX_RESULTS = 100_000
MAX_NUMBERS = 5_000_000
"""Limit of numbers in the vectors of one response; writing them takes half a second and blocks all others."""

EnginePayloadSelector = bool | list[str] | edge.PayloadSelector
EngineVectorSelector = bool | list[str]


def payload_selector(selector: models.WithPayloadInterface | None, default: bool) -> EnginePayloadSelector:
    """Convert `with_payload` to the engine's form; `default` stands for None."""
    match selector:
        case None:
            return default
        case models.PayloadSelectorInclude(include=keys):
            return edge.PayloadSelector.Include(keys)
        case models.PayloadSelectorExclude(exclude=keys):
            return edge.PayloadSelector.Exclude(keys)
        case _:
            return selector


def vector_selector(selector: models.WithVector | None, target: Target, most: int) -> EngineVectorSelector:
    """Convert `with_vector` to the engine's form; None means no vectors.

    Args:
        most: the number of requested points.

    Raises:
        RequestError: there is no vector of such a name.
        TooLarge: there are over `MAX_NUMBERS` numbers in them, a multivector counted as one row.
    """
    if not selector:
        return False
    length = vector_length(selector, target)
    if most * length > MAX_NUMBERS and min(most, target.shard.info().points_count) * length > MAX_NUMBERS:
        raise TooLarge(
            f"the vectors of {most:,} points are over the limit of {MAX_NUMBERS:,} numbers a response; "
            f"read {MAX_NUMBERS // length:,} points at a time, or request fewer of their vectors"
        )
    return selector


def vector_length(selector: models.WithVector | None, target: Target) -> int:
    """Return the number of dense dimensions that `with_vector` selects.

    Raises:
        RequestError: there is no vector of such a name.
    """
    if not selector:
        return 0
    spaces = target.spaces
    names = selector if isinstance(selector, list) else [*spaces.dense, *spaces.sparse]
    for name in names:
        if name not in spaces.dense and name not in spaces.sparse:
            raise RequestError(f"Not existing vector name error: {name!r}")
    return sum(spaces.dense[name].size for name in names if name in spaces.dense)


def checked_limit(limit: int | None, default: int, target: Target, *, offset: int = 0, least: int = 1) -> int:
    """Return the requested number of points, at most those of the collection.

    Raises:
        RequestError: fewer than `least`, or a negative offset.
        TooLarge: more than `MAX_RESULTS`, those skipped included: one response would block all others.
    """
    limit = default if limit is None else limit
    if limit < least:
        raise RequestError(f"limit value {limit} is invalid, must be {least} or larger")
    if offset < 0:
        raise RequestError(f"offset value {offset} is invalid, must be 0 or larger")
    if limit + offset <= MAX_RESULTS:
        return limit
    # A larger limit usually means "all", and in a small collection costs nothing.
    points = target.shard.info().points_count
    if min(limit + offset, points) > MAX_RESULTS:
        raise TooLarge(
            f"{limit + offset:,} results are over the limit of {MAX_RESULTS:,} a request; "
            "read them page by page with scroll and its next_page_offset"
        )
    return min(limit, max(points, least))


def refuse_shard_key(shard_key: models.ShardKeySelector | None) -> None:
    """Reject a request that names a shard; there is one, unnamed."""
    if shard_key is not None:
        raise NotSupported("the embedded index has no shard keys; leave shard_key out")


def scored_points(points: Sequence[edge.ScoredPoint]) -> list[models.ScoredPoint]:
    """Convert scored points to the REST API's form, in the same order."""
    # Nothing is left to validate in what the engine returns, and validating every number is slow.
    return [
        models.ScoredPoint.model_construct(
            id=rest_id(point.id),
            version=point.version,
            score=point.score,
            payload=point.payload,
            vector=to_rest(point.vector),
            order_value=point.order_value,
        )
        for point in points
    ]


def records(points: Sequence[edge.Record]) -> list[models.Record]:
    """Convert stored points to the REST API's form, in the same order."""
    return [
        models.Record.model_construct(
            id=rest_id(point.id),
            payload=point.payload,
            vector=to_rest(point.vector),
            order_value=point.order_value,
        )
        for point in points
    ]
