"""Open the stores and models of a server lazily.

An unavailable store fails one request, not the server: the next request tries again.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

from qdrant_client import QdrantClient
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from embedding.process_tuning import keep_freed_memory, shorten_spinning
from flows.config.settings import Settings
from flows.resources.connections import (
    Deps,
    Stores,
    index_named,
    open_blobs,
    open_catalog,
    open_index,
    postgres_named,
)
from flows.resources.model_loader import Load, ModelCache, active_model, open_model
from flows.search.query import SearchDeps
from flows.service.search_metrics import SearchTimes
from storage import qdrant
from storage.data_directory import make_data_directory


class Backend:
    """Share the stores and models of a server between its threads."""

    def __init__(self, settings: Settings, load: Load = open_model) -> None:
        """Open nothing yet.

        Args:
            load: opens a model by its name.
        """
        self.settings = settings
        self.search_times = SearchTimes()
        make_data_directory(settings.home)  # with remote servers nothing else makes it
        self._open = ExitStack()
        self._turn = Lock()
        self._engine: Engine | None = None
        self._vectors: QdrantClient | None = None
        self._models = ModelCache(settings, load)
        self._alias = qdrant.AliasCache()
        self.blobs = open_blobs(settings)

    @contextmanager
    def sessions(self) -> Iterator[sessionmaker[Session]]:
        """Yield sessions of Postgres.

        Raises:
            StoreUnavailable: it does not answer, now or in what the caller does with it.
        """
        engine = self._catalog()
        with postgres_named(self.settings, engine):
            yield sessionmaker(engine)

    @contextmanager
    def vectors(self) -> Iterator[QdrantClient]:
        """Yield the client of Qdrant.

        Raises:
            StoreUnavailable: it does not answer, now or in what the caller does with it.
        """
        client = self._index()
        with index_named(self.settings):
            yield client

    @contextmanager
    def searching(self) -> Iterator[SearchDeps]:
        """Yield the dependencies of a search; the first call loads the model.

        Raises:
            StoreUnavailable: a store does not answer, now or in what the caller does with it.
            NoCollection: nothing has been ingested yet.
            ModelUnavailable: the model of the collection cannot be loaded.
        """
        with self.sessions() as sessions, self.vectors() as vectors:
            collection = self._alias.collection(vectors)
            if collection is None:
                raise qdrant.NoCollection
            keep_freed_memory()
            shorten_spinning()
            encoder = self._models.of(collection)
            yield SearchDeps(
                self._catalog(),
                sessions,
                vectors,
                self.blobs,
                encoder,
                self._models,
                self.search_times.of,
                self._alias,
            )

    @contextmanager
    def stores(self) -> Iterator[Stores]:
        """Yield the stores.

        Raises:
            StoreUnavailable: one does not answer, now or in what the caller does with it.
        """
        with self.sessions() as sessions, self.vectors() as vectors:
            yield Stores(self._catalog(), sessions, vectors, self.blobs)

    @contextmanager
    def writing(self) -> Iterator[Deps]:
        """Yield the dependencies of an ingest: the stores and a model.

        Raises:
            StoreUnavailable: a store does not answer, now or in what the caller does with it.
            UnusedModel: a model is set that has never been used here.
            ModelUnavailable: it cannot be loaded.
        """
        with self.stores() as stores:
            name = active_model(stores.vectors, stores.sessions, self.settings)
            collection = qdrant.active_collection(stores.vectors)
            keep_freed_memory()
            shorten_spinning()
            encoder = self._models.named(name) if collection is None else self._models.of(collection)
            yield Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, encoder)

    def close(self) -> None:
        """Close all connections; embedded servers keep running."""
        self._open.close()

    def _catalog(self) -> Engine:
        with self._turn:
            if self._engine is None:
                self._engine = self._open.enter_context(open_catalog(self.settings))
            return self._engine

    def _index(self) -> QdrantClient:
        with self._turn:
            if self._vectors is None:
                self._vectors = self._open.enter_context(open_index(self.settings))
            return self._vectors
