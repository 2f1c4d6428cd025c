"""Hard negatives: images that the index has close to a text and that do not belong to it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

import numpy as np

from embedding.encoders.sentence_encoder import Encoder
from embedding.training.batches import Row
from embedding.training.splits import Part
from flows.datasets.splits import ImageSplit
from flows.datasets.training_pairs import StoredTrainingData, text_number
from flows.resources.connections import Stores
from storage import qdrant
from storage.postgres import catalog
from storage.records import Item

CANDIDATES = 50
SCORE_MARGIN = 0.05
"""How much further than the own image a negative must be: what is as close is likely to be right too."""

ROWS_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Candidate:
    """A image that is close to a text."""

    sha256: str
    group: int
    captions: frozenset[int]
    """Numbers of the texts that it has."""

    score: float


def select_negatives(
    row: Row, own_score: float, candidates: Sequence[Candidate], many: int
) -> list[Candidate]:
    """Return the `many` closest candidates that are no false negatives.

    Left out is what scores within a margin of the own image or above it (as in Moreira et al., 2024), what
    is the same image or nearly so, and what has the same caption.
    """
    good: dict[int, Candidate] = {}
    for one in sorted(candidates, key=lambda one: (-one.score, one.sha256)):
        false = (
            one.score > own_score - SCORE_MARGIN
            or one.group == row["picture_group"]
            or row["text_group"] in one.captions
        )
        if not false:
            good.setdefault(one.group, one)
    return list(good.values())[:many]


def add_negatives(
    stores: Stores,
    encoder: Encoder,
    sides: ImageSplit,
    material: StoredTrainingData,
    pairs: Iterator[tuple[Part, Row]],
    many: int,
) -> Iterator[tuple[Part, Row]]:
    """Yield the pairs, those to learn from with up to `many` negatives of the collection that is searched.

    Raises:
        NoCollection: nothing has been ingested yet.
        ModelMismatch: another model than `encoder` made the collection.
    """
    collection = qdrant.require_collection(stores.vectors, encoder.fingerprint, encoder.name)
    while chunk := list(islice(pairs, ROWS_AT_ONCE)):
        rows = [row for part, row in chunk if part == "train"]
        texts = material.texts([row["text"] for row in rows])
        asked = [(row, text) for row, text in zip(rows, texts, strict=True) if text is not None]
        if asked:
            _mine(stores, encoder, collection, sides, asked, many)
        yield from chunk


def _mine(
    stores: Stores,
    encoder: Encoder,
    collection: qdrant.Collection,
    sides: ImageSplit,
    asked: Sequence[tuple[Row, str]],
    many: int,
) -> None:
    """Add negatives to these rows, in place."""
    queries = encoder.texts([text for _, text in asked])
    found = qdrant.nearest_images(stores.vectors, collection, queries, CANDIDATES)
    ids = sorted({id for hits in found for id, _ in hits})
    with stores.sessions() as session:
        items = {id: item for id, (item, _) in catalog.items_with_digests(session, ids).items()}
        own = catalog.embedded_twins(session, collection.name, [row["picture"] for row, _ in asked])
    vectors = qdrant.image_vectors_of(
        stores.vectors, collection.name, {twin.id: twin.content_hash for twin in own.values()}
    )
    for (row, _), query, hits in zip(asked, queries, found, strict=True):
        twin = own.get(row["picture"])
        if twin is None or twin.id not in vectors:
            continue
        own_score = float(np.dot(query, vectors[twin.id]))
        picked = select_negatives(row, own_score, _candidates(hits, items, sides), many)
        row["negatives"] += [one.sha256 for one in picked]
        row["negative_groups"] += [one.group for one in picked]


def _candidates(
    hits: Sequence[tuple[UUID, float]], items: Mapping[UUID, Item], sides: ImageSplit
) -> list[Candidate]:
    """Return those hits that may be learned from: what is held out is seen by no training."""
    pictures = ((items[id], score) for id, score in hits if id in items)
    return [
        Candidate(
            item.image.sha256,
            sides.number_of(item.image.sha256),
            frozenset(text_number(text.text) for text in item.texts),
            score,
        )
        for item, score in pictures
        if item.image is not None and sides.part_of(item.image.sha256) == "train"
    ]
