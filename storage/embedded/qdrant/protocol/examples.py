"""Resolve the example vectors of a query, given or stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from qdrant_client import models

from storage.embedded.qdrant.engine.target import Find, Target
from storage.embedded.qdrant.protocol.errors import NotFound, NotSupported, RequestError
from storage.embedded.qdrant.protocol.named_vectors import UNNAMED
from storage.embedded.qdrant.protocol.vectors import EngineVector, point_id, query_vector, stored_vector

Stage = models.QueryRequest | models.QueryGroupsRequest | models.Prefetch


@dataclass(frozen=True, slots=True)
class Examples:
    """Resolve the inputs of one query stage to vectors."""

    target: Target
    using: str
    lookup: Target
    lookup_name: str

    def vector(self, given: models.VectorInput) -> EngineVector:
        """Return a checked vector.

        Raises:
            RequestError: it does not belong in the space.
            NotFound: there is no such point, or it lacks the vector.
        """
        if isinstance(given, int | str | UUID):
            given = self._stored(point_id(given))
        return query_vector(given, self.using, self.target.spaces)

    def vectors(self, given: list[models.VectorInput] | None) -> list[EngineVector]:
        return [self.vector(one) for one in given or []]

    def _stored(self, id: int | str) -> models.Vector:
        spaces = self.lookup.spaces
        if self.lookup_name not in spaces.dense and self.lookup_name not in spaces.sparse:
            raise RequestError(f"Not existing vector name error: {self.lookup_name!r}")
        found = self.lookup.shard.retrieve([id], with_payload=False, with_vector=[self.lookup_name])
        if not found:
            raise NotFound(f"Not found: No point with id {id} found")
        vector = stored_vector(found[0], self.lookup_name)
        if vector is None:
            raise NotFound(f"Not found: Vector with name {self.lookup_name!r} for point {id}")
        return vector


def examples(stage: Stage, target: Target, find: Find) -> Examples:
    """Return the lookup of example vectors for one query stage."""
    using = stage.using or UNNAMED
    place = stage.lookup_from
    if place is None:
        return Examples(target, using, target, using)
    if place.shard_key is not None:
        raise NotSupported("the embedded index has no shard keys; leave shard_key out of lookup_from")
    return Examples(target, using, find(place.collection), place.vector or using)


def typed_query(query: models.QueryInterface | None) -> models.Query | None:
    """Return a query of a specific type.

    A bare vector or id becomes a nearest-neighbour query.
    """
    match query:
        case None:
            return None
        case list() | int() | str() | UUID() | models.SparseVector():
            return models.NearestQuery.model_construct(nearest=query, mmr=None)
        case models.Document() | models.Image() | models.InferenceObject():
            return models.NearestQuery.model_construct(nearest=query, mmr=None)
        case _:
            return query


def prefetches(stage: Stage) -> list[models.Prefetch]:
    """Return the stages before this one."""
    given = stage.prefetch
    if given is None:
        return []
    return given if isinstance(given, list) else [given]


def example_ids(stage: Stage, target: Target, find: Find) -> Iterator[int | str]:
    """Yield the ids of this collection that a query uses as examples.

    A server leaves them all out of the result, also those of a prefetch.
    """
    if examples(stage, target, find).lookup.shard is target.shard:
        for given in _inputs(typed_query(stage.query)):
            if isinstance(given, int | str | UUID):
                yield point_id(given)
    for earlier in prefetches(stage):
        yield from example_ids(earlier, target, find)


def pairs(context: list[models.ContextPair] | models.ContextPair) -> list[models.ContextPair]:
    """Return the pairs of a context as a list."""
    return context if isinstance(context, list) else [context]


def _inputs(query: models.Query | None) -> Iterator[models.VectorInput]:
    match query:
        case models.NearestQuery(nearest=given):
            yield given
        case models.RecommendQuery(recommend=given):
            yield from given.positive or []
            yield from given.negative or []
        case models.DiscoverQuery(discover=given):
            yield given.target
            yield from _of_pairs(given.context)
        case models.ContextQuery(context=given):
            yield from _of_pairs(given)
        case models.RelevanceFeedbackQuery(relevance_feedback=given):
            yield given.target
            yield from (item.example for item in given.feedback)


def _of_pairs(context: list[models.ContextPair] | models.ContextPair) -> Iterator[models.VectorInput]:
    for pair in pairs(context):
        yield pair.positive
        yield pair.negative
