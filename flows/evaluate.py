"""How well texts find their pictures, and pictures their texts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np

from embedding.encoder import Encoder, Vectors
from embedding.metrics import Ranks, best_of_groups, retrieval_figures, target_ranks
from flows.deps import Deps
from storage import catalog, index, registry

CHUNK = 256


class NothingToEvaluate(ValueError):
    """There is not one record with both a picture and a caption among what was asked for."""


@dataclass(frozen=True, slots=True)
class Direction:
    """The figures of one direction, with the sizes without which they mean nothing."""

    queries: int
    gallery: int
    figures: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return self.figures | {"queries": self.queries, "gallery": self.gallery}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Both directions over the records of a collection.

    Text to image counts each caption as a query. Image to text ranks items by their best caption, so its
    recall is the hit rate over items, not the share of captions found.
    """

    model: str
    collection: str
    left_out: int
    """Captions whose item has no picture, and pictures without a caption: no queries, but in a gallery."""

    text_to_image: Direction
    image_to_text: Direction

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "collection": self.collection,
            "gallery": self.text_to_image.gallery,
            "queries": self.text_to_image.queries,
            "left_out": self.left_out,
            "text_to_image": self.text_to_image.as_json(),
            "image_to_text": self.image_to_text.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Captions:
    """The captions of some items, those of one item side by side, items in id order."""

    owners: tuple[UUID, ...]
    starts: tuple[int, ...]
    texts: tuple[str, ...]

    @property
    def owner_of_each(self) -> list[UUID]:
        ends = (*self.starts[1:], len(self.texts))
        return [
            owner
            for owner, start, end in zip(self.owners, self.starts, ends, strict=True)
            for _ in range(start, end)
        ]


def evaluate(
    deps: Deps,
    *,
    keys: Sequence[str] | None = None,
    lang: str | None = None,
    dataset: str = "all",
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Rank every picture for every caption and the other way round, and keep the figures in Postgres.

    Captions are encoded anew, as a user's query would be; picture vectors are those of the collection.

    Args:
        keys: only records with these keys; gallery and queries both shrink to them.
        lang: captions in this language instead of those that are embedded.
        dataset: what to call the selection in Postgres.
        advance: told how many more captions are encoded.

    Raises:
        NothingToEvaluate: no record has both a picture and such a caption.
        NoCollection: nothing has been ingested yet.
        ModelMismatch: another model made the collection.
    """
    collection = index.collection_of(deps.vectors, deps.encoder.fingerprint, deps.encoder.name)
    captions, ids = read_captions(deps, collection.name, keys, lang)
    images = {id: row for id, row in index.image_vectors(deps.vectors, collection.name) if id in ids}
    both = set(captions.owners) & images.keys()
    if not both:
        what = f"a caption in {lang!r}" if lang else "an embedded caption"
        raise NothingToEvaluate(f"no record has both a picture and {what}; check --keys and --lang")
    rows = encode_in_chunks(deps.encoder, captions.texts, advance)
    order = sorted(images)
    pictures = np.stack([images[id] for id in order])
    t2i = text_to_image(captions, rows, order, pictures)
    i2t = image_to_text(captions, rows, order, pictures)
    left_out = len(captions.texts) - len(t2i) + len(order) - len(i2t)
    result = Evaluation(
        deps.encoder.name,
        collection.name,
        left_out,
        Direction(len(t2i), len(order), retrieval_figures(t2i)),
        Direction(len(i2t), len(captions.owners), retrieval_figures(i2t)),
    )
    with deps.sessions.begin() as session:
        for name, part in (("text_to_image", result.text_to_image), ("image_to_text", result.image_to_text)):
            registry.save_evaluation(
                session,
                model=deps.encoder.fingerprint,
                collection=collection.name,
                dataset=dataset,
                direction=name,
                lang=lang,
                figures=part.figures,
                queries=part.queries,
                gallery=part.gallery,
            )
    return result


def read_captions(
    deps: Deps, collection: str, keys: Sequence[str] | None, lang: str | None
) -> tuple[Captions, set[UUID]]:
    """Return the captions to evaluate, and the ids of all items that were asked for."""
    ids: set[UUID] = set()
    owners: list[UUID] = []
    starts: list[int] = []
    texts: list[str] = []
    with deps.sessions() as session:
        for item in catalog.embedded_items(session, collection, keys):
            ids.add(item.id)
            own = [text.text for text in item.texts if (text.embedded if lang is None else text.lang == lang)]
            if own:
                owners.append(item.id)
                starts.append(len(texts))
                texts += own
    return Captions(tuple(owners), tuple(starts), tuple(texts)), ids


def encode_in_chunks(encoder: Encoder, texts: Sequence[str], advance: Callable[[int], None]) -> Vectors:
    """Return a unit row for each text, shape (n, dim)."""
    rows = []
    for start in range(0, len(texts), CHUNK):
        rows.append(encoder.texts(texts[start : start + CHUNK]))
        advance(len(rows[-1]))
    return np.concatenate(rows)


def text_to_image(captions: Captions, rows: Vectors, order: Sequence[UUID], pictures: Vectors) -> Ranks:
    """Return the rank of each caption's own picture; captions without a picture are no queries."""
    column = {id: number for number, id in enumerate(order)}
    owners = captions.owner_of_each
    asked = [number for number, owner in enumerate(owners) if owner in column]
    parts = [
        target_ranks(rows[chunk] @ pictures.T, [column[owners[number]] for number in chunk])
        for chunk in _chunks(asked)
    ]
    return np.concatenate(parts)


def image_to_text(captions: Captions, rows: Vectors, order: Sequence[UUID], pictures: Vectors) -> Ranks:
    """Return the rank of each picture's own item, where an item is as close as its best caption."""
    column = {id: number for number, id in enumerate(captions.owners)}
    asked = [number for number, id in enumerate(order) if id in column]
    parts = [
        target_ranks(
            best_of_groups(pictures[chunk] @ rows.T, captions.starts),
            [column[order[number]] for number in chunk],
        )
        for chunk in _chunks(asked)
    ]
    return np.concatenate(parts)


def _chunks(numbers: Sequence[int]) -> Iterable[list[int]]:
    return (list(numbers[start : start + CHUNK]) for start in range(0, len(numbers), CHUNK))
