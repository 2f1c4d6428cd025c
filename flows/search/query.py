"""Search items by text, image or record."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from qdrant_client.http.exceptions import UnexpectedResponse

from embedding.encoders.query_fusion import fuse_vectors
from embedding.encoders.sentence_encoder import Encoder
from embedding.images.worker_pool import prepare_soon
from embedding.process_tuning import keep_freed_memory, shorten_spinning
from flows.config.settings import OVERSAMPLING, Limits, Settings
from flows.resources.connections import Deps, open_stores
from flows.resources.images import load_image
from flows.resources.model_loader import ModelCache, active_model
from flows.search.gallery import Card, Page
from flows.tracking.tracing import span
from storage import qdrant
from storage.errors import InvalidInput, NotFound
from storage.postgres import catalog
from storage.records import Digest, Hit, Item, Where
from storage.redaction import redacted
from storage.sources.unicode_marks import MAX_MARKS, has_many_marks
from storage.sources.validation import MAX_TEXT_CHARS

Find = Literal["images", "texts"]
QueryKind = Literal["text", "image", "both", "record"]
Clock = Callable[[str, str], AbstractContextManager[None]]
"""Return the context that measures a search, from its kind and its result type."""

SPACES: dict[Find, qdrant.Space] = {"images": "image", "texts": "text"}


@dataclass(frozen=True, slots=True)
class Query:
    """Describe a search: its text, image or record, and its filters.

    A text and an image are combined into one query vector.
    """

    text: str | None = None
    image: Path | None = None
    find: Find = "images"
    limit: int = 10
    min_score: float | None = None
    where: Where | None = None
    oversampling: float = OVERSAMPLING
    """Candidates per hit that are rescored, where the collection quantizes or shortens vectors."""

    image_bytes: bytes | None = None
    """Query image that is no file; `image` is its alternative."""

    like: UUID | None = None
    """Id of a record to find similar ones of; it is no hit itself."""

    @property
    def kind(self) -> QueryKind:
        """Kind of the query."""
        has_image = self.image is not None or self.image_bytes is not None
        if self.like is not None:
            return "record"
        if has_image:
            return "image" if self.text is None else "both"
        return "text"


@dataclass(frozen=True, slots=True)
class FoundItem:
    """Hold one hit with its item."""

    hit: Hit
    item: Item

    @property
    def text(self) -> str:
        """Text of the item that matched best, else its short text."""
        texts = self.item.embedded_texts
        best = self.hit.best_text
        return texts[best] if best is not None and best < len(texts) else self.item.short_text

    def as_json(self) -> dict[str, Any]:
        return {
            "id": str(self.item.id),
            "key": self.item.key,
            "source": self.item.source,
            "score": self.hit.score,
            "text": self.text,
            "uri": redacted(self.item.image.uri) if self.item.image else None,
            "metadata": dict(self.item.metadata),
        }


@dataclass(frozen=True, slots=True)
class SearchTiming:
    """Measure the parts of a search, in seconds."""

    encode_s: float
    """To encode the query."""

    index_s: float
    catalog_s: float

    @property
    def total_s(self) -> float:
        return self.encode_s + self.index_s + self.catalog_s


@dataclass(frozen=True, slots=True)
class Results:
    """Hold the hits of a search, best first."""

    query: Query
    model: str
    collection: str
    found: tuple[FoundItem, ...]
    took: SearchTiming

    def as_json(self) -> dict[str, Any]:
        text, image = self.query.text, self.query.image
        where = {
            "query": str(image) if text is None else text,
            "image": None if image is None else str(image),
            "model": self.model,
            "collection": self.collection,
        }
        return where | {"hits": [one.as_json() for one in self.found]}


class BadText(InvalidInput):
    """Report a query text that is too long or malformed."""


class NoSuchRecord(NotFound):
    """Report a query by a record that is not searchable."""

    def __init__(self, id: UUID) -> None:
        super().__init__(f"record {id} is not searchable: it was deleted, or no ingest has embedded it yet")


@dataclass(frozen=True, slots=True)
class SearchDeps(Deps):
    """Hold the stores and the models that searches use.

    The searched collection and its model may change while it is open.
    """

    models: ModelCache
    clock: Clock | None = None
    """Measures searches; None in a command."""

    alias: qdrant.AliasCache = field(default_factory=qdrant.AliasCache)

    def searched_collection(self, *, refresh: bool = False) -> qdrant.Collection | None:
        return self.alias.refresh(self.vectors) if refresh else self.alias.collection(self.vectors)

    def encoder_of(self, collection: qdrant.Collection) -> Encoder:
        return self.models.of(collection)

    def timed(self, kind: str, find: str) -> AbstractContextManager[None]:
        return nullcontext() if self.clock is None else self.clock(kind, find)


@contextmanager
def open_search(settings: Settings) -> Iterator[SearchDeps]:
    """Open the stores and a model for `search`.

    Loading the model takes seconds, so that a long-lived process keeps it open. Searches follow the alias to
    the collection of another model.

    Raises:
        NoCollection: nothing has been ingested yet; no model was loaded to find that out.
        UnusedModel: a model is set that has never been used here.
    """
    with open_stores(settings) as stores:
        alias = qdrant.AliasCache()
        collection = alias.collection(stores.vectors)
        if collection is None:
            raise qdrant.NoCollection
        active_model(stores.vectors, stores.sessions, settings)
        keep_freed_memory()
        shorten_spinning()
        models = ModelCache(settings)
        yield SearchDeps(
            stores.engine,
            stores.sessions,
            stores.vectors,
            stores.blobs,
            models.of(collection),
            models,
            alias=alias,
        )


def search(deps: Deps, query: Query) -> Results:
    """Return the items closest to a query.

    The query is a text, an image, both (see `fuse_vectors`), or a record.

    Items that Postgres has deleted are left out, even if Qdrant still holds them. The collection that the
    alias names at the beginning answers, with a query vector of its model, even if the alias moves meanwhile.

    Raises:
        NoCollection: nothing has been ingested yet.
        ModelMismatch: the collection was made by another model than `deps` has.
        NoSuchRecord: the record of the query is not searchable.
        BadText: the text of the query is too long or has too many marks.
        BadImage: the image of the query cannot be decoded.
        WorkersFailed: the image cannot be decoded now, for example because too many others wait.
        OSError: the query's image cannot be read.
    """
    if query.text is not None:
        _check_text(query.text)
    about = {"query": query.kind, "find": query.find, "limit": query.limit}
    with deps.timed(query.kind, query.find), span("search", about) as note:
        collection = deps.searched_collection()
        while True:
            if collection is None:
                raise qdrant.NoCollection
            try:
                results = _search_in(deps, collection, query)
            except UnexpectedResponse:
                stale, collection = collection, deps.searched_collection(refresh=True)
                if collection == stale:
                    raise
                continue  # the collection was dropped or recreated meanwhile
            note({"collection": collection.name, "model": results.model, "hits": len(results.found)})
            return results


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT_CHARS:
        raise BadText(f"the text has {len(text):,} characters; search by {MAX_TEXT_CHARS:,} or fewer")
    if has_many_marks(text):
        raise BadText(f"the text has more than {MAX_MARKS} combining marks in a row; leave them out")


def _search_in(deps: Deps, collection: qdrant.Collection, query: Query) -> Results:
    started = perf_counter()
    encoder = deps.encoder_of(collection)
    with span("encode"):
        vector = _vector(deps, collection, encoder, query)
    encoded = perf_counter()
    with span("qdrant"):
        hits = qdrant.search_points(
            deps.vectors,
            collection,
            vector,
            using=SPACES[query.find],
            limit=query.limit,
            min_score=query.min_score,
            where=query.where,
            without=() if query.like is None else (query.like,),
            oversampling=query.oversampling,
        )
    ranked = perf_counter()
    with span("postgres"), deps.sessions() as session:
        items = catalog.items_with_digests(session, [hit.id for hit in hits])
    found = tuple(FoundItem(hit, _matched_item(hit, *items[hit.id])) for hit in hits if hit.id in items)
    took = SearchTiming(encoded - started, ranked - encoded, perf_counter() - ranked)
    return Results(query, encoder.name, collection.name, found, took)


def _vector(deps: Deps, collection: qdrant.Collection, encoder: Encoder, query: Query) -> NDArray[np.float32]:
    """Return the query vector: shape (dim,), unit length."""
    parts = []
    data = query.image_bytes if query.image is None else query.image.read_bytes()
    if data is not None:
        name = "the image" if query.image is None else str(query.image)
        prepared = prepare_soon(encoder.preparation, data, name=name)
        parts += [*encoder.encode_prepared([prepared.features])]
    if query.like is not None:
        parts.append(_vector_of(deps, collection, query.like, SPACES[query.find]))
    if query.text is not None:
        parts += [*encoder.texts([query.text])]
    return fuse_vectors(parts)


def _vector_of(
    deps: Deps, collection: qdrant.Collection, id: UUID, using: qdrant.Space
) -> NDArray[np.float32]:
    """Return the vector of a record, preferably of one space."""
    with deps.sessions() as session:
        alive = id in catalog.items_with_digests(session, [id])
    spaces = qdrant.record_vectors(deps.vectors, collection.name, id) if alive else {}
    if not spaces:
        raise NoSuchRecord(id)
    return fuse_vectors([*(spaces[using] if using in spaces else next(iter(spaces.values())))])


def _matched_item(hit: Hit, item: Item, digest: Digest) -> Item:
    """Return the item that the score belongs to.

    While an ingest replaces an item, the point is of the earlier version.
    """
    return item if hit.digest == digest else hit.point


def gallery_page(deps: Deps, results: Results, limits: Limits) -> Page:
    """Return the gallery page of search results."""
    query = results.query
    cards = tuple(
        Card(
            one.item.key,
            one.item.source,
            one.hit.score,
            one.text,
            one.item.image.uri if one.item.image else None,
            _image_of(deps, one.item, limits),
        )
        for one in results.found
    )
    query_image = query.image.read_bytes() if query.image else None
    points = qdrant.count(deps.vectors, qdrant.ALIAS)
    return Page(query.text, query_image, query.find, results.model, points, cards)


def _image_of(deps: Deps, item: Item, limits: Limits) -> bytes | None:
    image = item.image
    return None if image is None else load_image(deps, image.sha256, image.origin, limits)
