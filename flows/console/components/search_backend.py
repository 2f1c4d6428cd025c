"""Run searches of the search page, and suggest filters."""

import asyncio

from qdrant_client.http.exceptions import UnexpectedResponse

from embedding.encoders.sentence_encoder import ModelUnavailable
from embedding.images.decode import BadImage
from embedding.images.worker_pool import WorkersFailed
from flows.console.components.search_params import SearchParams
from flows.console.uploads import UploadExpired, Uploads
from flows.search.query import BadText, NoSuchRecord, Query, Results, search
from flows.service.pool import Backend
from storage.errors import StoreUnavailable
from storage.postgres import catalog, facets
from storage.qdrant import ModelMismatch
from storage.records import Item, parse_conditions

UNUSABLE_QUERY = BadText, BadImage, WorkersFailed
SEARCH_ERRORS = (
    StoreUnavailable,
    ModelUnavailable,
    ModelMismatch,
    NoSuchRecord,
    UploadExpired,
    UnexpectedResponse,
    *UNUSABLE_QUERY,
)
"""Errors of a search that `explain` turns into a message."""


class ModelWarmup:
    """Load the model once, before the first search."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._turn = asyncio.Lock()
        self.is_done = False

    async def __call__(self) -> None:
        """Wait until the model is loaded.

        Raises:
            NoCollection: nothing has been ingested yet.
            StoreUnavailable: a store does not answer.
            ModelUnavailable: it cannot be loaded.
        """
        async with self._turn:
            if not self.is_done:
                await asyncio.to_thread(self._load)
                self.is_done = True

    def _load(self) -> None:
        with self._backend.searching():
            pass


def run_search(backend: Backend, uploads: Uploads, params: SearchParams) -> tuple[Results, Item | None]:
    """Return the hits, and the record of a similarity search.

    Raises:
        SEARCH_ERRORS: it cannot be answered.
        NoCollection: nothing has been ingested yet.
    """
    query = Query(
        text=params.text or None,
        find=params.find,
        limit=params.limit,
        min_score=params.min_score,
        where=parse_conditions(f"{field}={value}" for field, value in params.where),
        oversampling=backend.settings.qdrant.oversampling,
        image_bytes=None if params.image is None else uploads.get(params.image),
        like=params.like,
    )
    with backend.searching() as deps:
        results = search(deps, query)
        if params.like is None:
            return results, None
        with deps.sessions() as session:
            known = catalog.items_with_digests(session, [params.like])
    return results, known[params.like][0] if params.like in known else None


def suggestions(backend: Backend) -> list[str]:
    """Return suggested filters, as `field=value`."""
    with backend.sessions() as sessions, sessions() as session:
        own = [f"source={name}" for name in facets.sources(session)]
        return own + [f"{field}={value}" for field, value in facets.metadata(session)]
