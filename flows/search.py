"""Searching: a text or a picture in, ranked items out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qdrant_client.http.exceptions import UnexpectedResponse

from embedding.encoder import Encoder, Vectors
from embedding.preparation import prepare
from embedding.process import keep_freed_memory, wait_briefly
from flows.deps import Deps, open_stores
from flows.gallery import Card, Page
from flows.models import Models, active_model
from flows.rows import kept_picture
from flows.settings import OVERSAMPLING, Limits, Settings
from flows.tracing import span
from storage import catalog, index
from storage.records import Digest, Hit, Item

Find = Literal["images", "texts"]
Asked = Literal["text", "image"]
Clock = Callable[[str, str], AbstractContextManager[None]]
"""Returns what a search happens in, by what is asked with and what is found."""

SPACES: dict[Find, index.Space] = {"images": "image", "texts": "text"}


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for, and among what."""

    text: str | None = None
    image: Path | None = None
    picture: bytes | None = None
    """The bytes of a picture that is no file."""

    find: Find = "images"
    limit: int = 10
    min_score: float | None = None
    where: Mapping[str, str] | None = None
    oversampling: float = OVERSAMPLING
    """Candidates per hit that are scored anew, where the collection packs or shortens vectors."""

    @property
    def asked(self) -> Asked:
        """What it is asked with."""
        return "text" if self.image is None and self.picture is None else "image"


@dataclass(frozen=True, slots=True)
class Found:
    """One hit with its item."""

    hit: Hit
    item: Item

    @property
    def text(self) -> str:
        """The item's text that matched best, else what it is shown by."""
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
            "uri": self.item.picture.uri if self.item.picture else None,
        }


@dataclass(frozen=True, slots=True)
class Results:
    """What a search found, best first, and where it looked."""

    query: Query
    model: str
    collection: str
    found: tuple[Found, ...]

    def as_json(self) -> dict[str, Any]:
        asked = self.query.text if self.query.text is not None else str(self.query.image)
        where = {"query": asked, "model": self.model, "collection": self.collection}
        return where | {"hits": [one.as_json() for one in self.found]}


@dataclass(frozen=True, slots=True)
class Searching(Deps):
    """What searches need that go on while models come and go."""

    models: Models
    clock: Clock | None = None
    """Takes the time of searches, where somebody wants to know."""

    def encoder_of(self, collection: index.Collection) -> Encoder:
        return self.models.of(collection)

    def timed(self, asked: str, find: str) -> AbstractContextManager[None]:
        return nullcontext() if self.clock is None else self.clock(asked, find)


@contextmanager
def open_search(settings: Settings) -> Iterator[Searching]:
    """Open what `search` needs; whoever searches often keeps it, for loading the model takes seconds.

    It follows when searches go to another model's collection.

    Raises:
        NoCollection: nothing has been ingested yet; no model was loaded to find that out.
        OtherModel: a model is set that has never been used here.
    """
    with open_stores(settings) as stores:
        collection = index.active(stores.vectors)
        if collection is None:
            raise index.NoCollection
        active_model(stores.vectors, stores.sessions, settings)
        keep_freed_memory()
        wait_briefly()
        models = Models(settings)
        yield Searching(
            stores.engine, stores.sessions, stores.vectors, stores.blobs, models.of(collection), models
        )


def search(deps: Deps, query: Query) -> Results:
    """Return the items closest to the query's text or picture.

    What Postgres says is deleted is left out, whatever Qdrant still holds. The collection that the alias
    names at the beginning answers, to a query by its own model, wherever the alias moves meanwhile.

    Raises:
        NoCollection: nothing has been ingested yet.
        ModelMismatch: the collection was made by another model than `deps` has.
        BadImage: the query's picture cannot be shown to a model.
        OSError: the query's picture cannot be read.
    """
    about = {"query": query.asked, "find": query.find, "limit": query.limit}
    with deps.timed(query.asked, query.find), span("search", about) as note:
        while True:
            collection = index.active(deps.vectors)
            if collection is None:
                raise index.NoCollection
            try:
                results = _search_in(deps, collection, query)
            except UnexpectedResponse:
                if deps.vectors.collection_exists(collection.name):
                    raise
                continue  # it was dropped since the alias was read, which therefore names another
            note({"collection": collection.name, "model": results.model, "hits": len(results.found)})
            return results


def _search_in(deps: Deps, collection: index.Collection, query: Query) -> Results:
    encoder = deps.encoder_of(collection)
    with span("encode"):
        [vector] = _encoded(encoder, query)
    with span("qdrant"):
        hits = index.search(
            deps.vectors,
            collection,
            vector,
            using=SPACES[query.find],
            limit=query.limit,
            min_score=query.min_score,
            where=query.where,
            oversampling=query.oversampling,
        )
    with span("postgres"), deps.sessions() as session:
        items = catalog.items_with_digests(session, [hit.id for hit in hits])
    found = tuple(Found(hit, _as_matched(hit, *items[hit.id])) for hit in hits if hit.id in items)
    return Results(query, encoder.name, collection.name, found)


def _encoded(encoder: Encoder, query: Query) -> Vectors:
    """Return the query's vector as a row, shape (1, dim)."""
    data = query.picture if query.image is None else query.image.read_bytes()
    if data is None:
        return encoder.texts([query.text or ""])
    prepared = prepare(encoder.preparation, data, name=str(query.image or "the query's picture"))
    return encoder.prepared([prepared.features])


def _as_matched(hit: Hit, item: Item, digest: Digest) -> Item:
    """Return the item that the score is of: while `item` is replacing another, the point is the other's."""
    return item if hit.digest == digest else hit.point


def gallery_page(deps: Deps, results: Results, limits: Limits) -> Page:
    """Return what the gallery page shows of `results`; pictures come from where they are kept."""
    query = results.query
    cards = tuple(
        Card(
            one.item.key,
            one.item.source,
            one.hit.score,
            one.text,
            one.item.picture.uri if one.item.picture else None,
            _picture_of(deps, one.item, limits),
        )
        for one in results.found
    )
    query_picture = query.image.read_bytes() if query.image else None
    points = index.count(deps.vectors, index.ALIAS)
    return Page(query.text, query_picture, query.find, results.model, points, cards)


def _picture_of(deps: Deps, item: Item, limits: Limits) -> bytes | None:
    picture = item.picture
    return None if picture is None else kept_picture(deps, picture.sha256, picture.uri, limits)
