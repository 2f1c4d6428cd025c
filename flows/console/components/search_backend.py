"""What a search page asks of the stores and of the model."""

import asyncio

from qdrant_client.http.exceptions import UnexpectedResponse

from embedding.encoders.sentence_encoder import ModelUnavailable
from embedding.images.decode import BadImage
from embedding.images.worker_pool import WorkersFailed
from flows.console.components.search_params import SearchParams
from flows.console.uploads import UploadExpired, Uploads
from flows.search.query import BadText, NoSuchRecord, Query, Results, search
from flows.service.pool import AWAY, Backend
from storage.postgres import catalog, facets
from storage.qdrant import ModelMismatch
from storage.records import Item

UNUSABLE_QUERY = BadText, BadImage, WorkersFailed
SEARCH_ERRORS = (
    *AWAY,
    ModelUnavailable,
    ModelMismatch,
    NoSuchRecord,
    UploadExpired,
    UnexpectedResponse,
    *UNUSABLE_QUERY,
)
"""What keeps a search from being answered; `explain` says what to do."""


class ModelWarmup:
    """Loads the model when somebody opens the page, so that their first search need not; once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._turn = asyncio.Lock()
        self.is_done = False

    async def __call__(self) -> None:
        """Return once the model is loaded.

        Raises:
            NoCollection: nothing has been ingested yet.
            AWAY: a store does not answer.
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
    """Return what is found, and the record that others are to be like, if one is meant.

    Raises:
        REFUSED: it cannot be answered.
        NoCollection: nothing has been ingested yet.
    """
    query = Query(
        text=params.text or None,
        find=params.find,
        limit=params.limit,
        min_score=params.min_score,
        where=dict(params.where),
        oversampling=backend.settings.qdrant.oversampling,
        picture=None if params.picture is None else uploads.get(params.picture),
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
    """Return filters that would leave something, as people write them."""
    with backend.sessions() as sessions, sessions() as session:
        own = [f"source={name}" for name in facets.sources(session)]
        return own + [f"{field}={value}" for field, value in facets.metadata(session)]
