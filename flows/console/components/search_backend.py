"""What a search page asks of the stores and of the model."""

import asyncio

from qdrant_client.http.exceptions import UnexpectedResponse

from embedding.encoders.sentence_encoder import ModelUnavailable
from embedding.images.decode import BadImage
from embedding.images.worker_pool import WorkersFailed
from flows.console.components.search_params import Asked
from flows.console.uploads import Gone, Uploads
from flows.search.query import BadText, NoSuchRecord, Query, Results, search
from flows.service.pool import AWAY, Backend
from storage.postgres import catalog, facets
from storage.qdrant import ModelMismatch
from storage.records import Item

UNUSABLE = BadText, BadImage, WorkersFailed
REFUSED = (*AWAY, ModelUnavailable, ModelMismatch, NoSuchRecord, Gone, UnexpectedResponse, *UNUSABLE)
"""What keeps a search from being answered; `explain` says what to do."""


class Warming:
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


def find(backend: Backend, uploads: Uploads, asked: Asked) -> tuple[Results, Item | None]:
    """Return what is found, and the record that others are to be like, if one is meant.

    Raises:
        REFUSED: it cannot be answered.
        NoCollection: nothing has been ingested yet.
    """
    query = Query(
        text=asked.text or None,
        find=asked.find,
        limit=asked.limit,
        min_score=asked.min_score,
        where=dict(asked.where),
        oversampling=backend.settings.qdrant.oversampling,
        picture=None if asked.picture is None else uploads.get(asked.picture),
        like=asked.like,
    )
    with backend.searching() as deps:
        results = search(deps, query)
        if asked.like is None:
            return results, None
        with deps.sessions() as session:
            known = catalog.items_with_digests(session, [asked.like])
    return results, known[asked.like][0] if asked.like in known else None


def suggestions(backend: Backend) -> list[str]:
    """Return filters that would leave something, as people write them."""
    with backend.sessions() as sessions, sessions() as session:
        own = [f"source={name}" for name in facets.sources(session)]
        return own + [f"{field}={value}" for field, value in facets.metadata(session)]
