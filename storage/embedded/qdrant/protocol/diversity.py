"""Select diverse results by maximal marginal relevance (Carbonell and Goldstein, 1998).

The engine does so for the results of a query over a dense vector. Sparse vectors, and the limit of a prefetch
below a fusion, are left to this module.
"""

from dataclasses import dataclass

import numpy as np
from qdrant_client import models

from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.examples import Stage, typed_query

DEFAULT_DIVERSITY = 0.5
MAX_CANDIDATES = 16_384


@dataclass(frozen=True, slots=True)
class Diversity:
    """Represent the checked parameters of a query by maximal marginal relevance."""

    relevance: float
    """Weight of the similarity to the query, 0 to 1; the rest is that of the similarity to results."""

    candidates: int


def diversity(mmr: models.Mmr, limit: int) -> Diversity:
    """Check the parameters of a query.

    As many candidates as results are the default.

    Raises:
        RequestError: one is outside its range.
    """
    weight = DEFAULT_DIVERSITY if mmr.diversity is None else mmr.diversity
    candidates = limit if mmr.candidates_limit is None else mmr.candidates_limit
    if not 0 <= weight <= 1:
        raise RequestError(f"mmr diversity must be from 0 to 1, got {weight}")
    if not 0 <= candidates <= MAX_CANDIDATES:
        raise RequestError(f"mmr candidates_limit must be from 0 to {MAX_CANDIDATES}, got {candidates}")
    return Diversity(1 - weight, candidates)


def mmr_of(stage: Stage) -> models.Mmr | None:
    """Return the diversity that a query stage requests, if it does."""
    query = typed_query(stage.query)
    return query.mmr if isinstance(query, models.NearestQuery) else None


def without_mmr(stage: Stage) -> models.NearestQuery:
    """Return the query of a stage without its diversity."""
    query = typed_query(stage.query)
    if not isinstance(query, models.NearestQuery):
        raise TypeError(f"{type(query).__name__} has no diversity")
    return models.NearestQuery.model_construct(nearest=query.nearest, mmr=None)


def select_diverse(
    candidates: list[models.ScoredPoint], vectors: list[models.SparseVector], limit: int, relevance: float
) -> list[models.ScoredPoint]:
    """Select up to `limit` candidates, each the best beside those before it.

    Args:
        candidates: by similarity to the query, best first.
        vectors: the vector of each.
        limit: number of results.
        relevance: weight of the similarity to the query.
    """
    if not candidates:
        return []
    rows = np.repeat(np.arange(len(vectors)), [len(vector.indices) for vector in vectors])
    places = [place for vector in vectors for place in vector.indices]
    columns = np.unique(places, return_inverse=True)[1]
    values = np.array([value for vector in vectors for value in vector.values])
    similarity = np.array([point.score for point in candidates])
    nearest = np.full(len(candidates), -np.inf)
    left = np.ones(len(candidates), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < min(limit, len(candidates)):
        penalty = nearest if chosen else np.zeros(len(candidates))
        gain = np.where(left, relevance * similarity - (1 - relevance) * penalty, -np.inf)
        best = int(np.argmax(gain))
        chosen.append(best)
        left[best] = False
        dense = np.bincount(columns, np.where(rows == best, values, 0))
        nearest = np.maximum(nearest, np.bincount(rows, values * dense[columns], len(candidates)))
    return [candidates[index] for index in chosen]
