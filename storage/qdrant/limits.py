"""Adapt requests to the limits that strict mode sets for a collection."""

from collections.abc import Mapping
from dataclasses import dataclass

from qdrant_client import QdrantClient, models

SCROLL_PAGE = 1000
POINTS_A_REQUEST = 64
"""Measured: more points in a request are slower, on two cores at least."""

IDS_A_FILTER = 100_000
SEARCHES_A_REQUEST = 1000


@dataclass(frozen=True, slots=True)
class Limits:
    """Hold the largest sizes of requests to one collection."""

    page: int
    """Points in a page of a scroll, and ids in a retrieval."""

    upsert: int
    """Points, or operations, in one write."""

    ids: int
    """Ids in the condition of a filter."""

    searches: int
    """Queries in one request."""


def limits_of(client: QdrantClient, collection: str) -> Limits:
    """Read the limits of a collection."""
    return limits_within(client.get_collection(collection).config.strict_mode_config)


def limits_within(strict: models.StrictModeConfigOutput | None) -> Limits:
    """Return the largest sizes that strict mode permits.

    >>> limits_within(models.StrictModeConfigOutput(enabled=True, max_query_limit=100)).page
    100
    """
    ours = Limits(SCROLL_PAGE, POINTS_A_REQUEST, IDS_A_FILTER, SEARCHES_A_REQUEST)
    if strict is None or not strict.enabled:
        return ours
    return Limits(
        page=_least(ours.page, strict.max_query_limit),
        upsert=_least(ours.upsert, strict.upsert_max_batchsize),
        ids=_least(ours.ids, strict.condition_max_size),
        searches=_least(ours.searches, strict.search_max_batchsize),
    )


def indexed_only(info: models.CollectionInfo) -> Mapping[str, str] | None:
    """Return the type of each payload index where filters require one."""
    strict = info.config.strict_mode_config
    if strict is None or not strict.enabled or strict.unindexed_filtering_retrieve is not False:
        return None
    return {field: index.data_type.value for field, index in info.payload_schema.items()}


def _least(ours: int, theirs: int | None) -> int:
    return ours if theirs is None else max(1, min(ours, theirs))
