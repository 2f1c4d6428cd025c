"""Searching: a text or a picture in, ranked items out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedding.preparation import prepare
from flows.deps import Deps, open_stores, with_model
from flows.gallery import Card, Page
from flows.rows import kept_picture
from flows.settings import OVERSAMPLING, Limits, Settings
from storage import catalog, index
from storage.records import Digest, Hit, Item

Find = Literal["images", "texts"]
SPACES: dict[Find, index.Space] = {"images": "image", "texts": "text"}


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for, and among what."""

    text: str | None = None
    image: Path | None = None
    find: Find = "images"
    limit: int = 10
    min_score: float | None = None
    where: Mapping[str, str] | None = None
    oversampling: float = OVERSAMPLING
    """Candidates per hit that are scored anew, where the collection packs or shortens vectors."""


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
    found: tuple[Found, ...]

    def as_json(self) -> dict[str, Any]:
        asked = self.query.text if self.query.text is not None else str(self.query.image)
        return {"query": asked, "model": self.model, "hits": [one.as_json() for one in self.found]}


@contextmanager
def open_search(settings: Settings) -> Iterator[Deps]:
    """Open what `search` needs; whoever searches often keeps it, for loading the model takes seconds.

    Raises:
        NoCollection: nothing has been ingested yet; no model was loaded to find that out.
    """
    with open_stores(settings) as stores:
        if index.active(stores.vectors) is None:
            raise index.NoCollection
        yield with_model(stores, settings)


def search(deps: Deps, query: Query) -> Results:
    """Return the items closest to the query's text or picture.

    What Postgres says is deleted is left out, whatever Qdrant still holds.

    Raises:
        NoCollection: nothing has been ingested yet.
        ModelMismatch: the collection was made by another model than `deps.encoder`.
        BadImage: the query's picture cannot be shown to a model.
        OSError: the query's picture cannot be read.
    """
    collection = index.collection_of(deps.vectors, deps.encoder.fingerprint, deps.encoder.name)
    if query.image is not None:
        data = query.image.read_bytes()
        prepared = prepare(deps.encoder.preparation, data, name=str(query.image))
        [vector] = deps.encoder.prepared([prepared.features])
    else:
        [vector] = deps.encoder.texts([query.text or ""])
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
    with deps.sessions() as session:
        items = catalog.items_with_digests(session, [hit.id for hit in hits])
    found = tuple(Found(hit, _as_matched(hit, *items[hit.id])) for hit in hits if hit.id in items)
    return Results(query, deps.encoder.name, found)


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
