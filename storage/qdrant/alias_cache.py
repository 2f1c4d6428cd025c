"""Cache the description of the collection that searches use."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock

from qdrant_client import QdrantClient

from storage.qdrant.aliases import active_collection
from storage.qdrant.collections import Collection

MAX_AGE_S = 1.0


class AliasCache:
    """Cache the collection behind the alias for `MAX_AGE_S`; threads may share it.

    For processes that search often: the alias and its collection are described once a second at most,
    so a search sends one request. A stale description does not make a result wrong:

    - A query goes to the described collection by its name, never to the alias, and its vector comes from
      the model of that collection. Vectors of two models are never compared.
    - A re-index, a promotion or a rollback moves the alias, and retains the other collection. Within the
      next second a search may still use that one, as a search does that began before the move. Deleted
      items are left out by Postgres, and points of older digests are recognised by their payload.
    - A collection that was removed, or created again with other vectors, returns an error. The
      caller then calls `refresh`, and searches again if the description has changed.

    The absence of a collection is not cached, so the first ingest is seen at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._collection: Collection | None = None
        self._described_at = 0.0
        self._request: Future[Collection | None] | None = None

    def collection(self, client: QdrantClient) -> Collection | None:
        """Return the collection behind the alias, or None before the first ingest.

        Threads that need a new description at the same time share one.
        """
        with self._lock:
            if self._collection is not None and self._clock() - self._described_at < MAX_AGE_S:
                return self._collection
            shared, request = self._request, Future[Collection | None]()
            if shared is None:
                self._request = request
        if shared is not None:
            return shared.result()
        try:
            request.set_result(self.refresh(client))
        except BaseException as error:
            request.set_exception(error)
            raise
        finally:
            with self._lock:
                self._request = None
        return request.result()

    def refresh(self, client: QdrantClient) -> Collection | None:
        """Describe the collection behind the alias now."""
        at = self._clock()  # before the request: the collection may change while it is under way
        collection = active_collection(client)
        with self._lock:
            if at >= self._described_at:
                self._collection, self._described_at = collection, at
        return collection
