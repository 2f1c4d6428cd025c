"""Mine hard negatives for the pairs of a training set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

import numpy as np

from embedding.encoders.sentence_encoder import Encoder
from embedding.training.batches import PairRow
from embedding.training.splits import SplitName
from flows.datasets.splits import ImageSplit
from flows.datasets.training_pairs import StoredTrainingData, text_number
from flows.resources.connections import Stores
from storage import qdrant
from storage.postgres import catalog
from storage.records import Item

CANDIDATES = 50
SCORE_MARGIN = 0.05
"""Least distance to the score of the positive image: a closer candidate is likely to be relevant too."""

ROWS_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Candidate:
    """Represent an image close to a text."""

    sha256: str
    group: int
    captions: frozenset[int]
    """Numbers of its texts."""

    score: float


def select_negatives(
    row: PairRow, own_score: float, candidates: Sequence[Candidate], many: int
) -> list[Candidate]:
    """Return the closest candidates that are no false negatives.

    Candidates are left out that score within a margin of the positive image or above it (as in Moreira et
    al., 2024), that are near duplicates of it, or that have the same caption.
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
    split: ImageSplit,
    material: StoredTrainingData,
    pairs: Iterator[tuple[SplitName, PairRow]],
    many: int,
) -> Iterator[tuple[SplitName, PairRow]]:
    """Yield the pairs, with mined negatives for those of training.

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
            _mine(stores, encoder, collection, split, asked, many)
        yield from chunk


def _mine(
    stores: Stores,
    encoder: Encoder,
    collection: qdrant.Collection,
    split: ImageSplit,
    asked: Sequence[tuple[PairRow, str]],
    many: int,
) -> None:
    """Add mined negatives to rows, in place."""
    queries = encoder.texts([text for _, text in asked])
    found = qdrant.nearest_images(stores.vectors, collection, queries, CANDIDATES)
    ids = sorted({id for hits in found for id, _ in hits})
    with stores.sessions() as session:
        items = {id: item for id, (item, _) in catalog.items_with_digests(session, ids).items()}
        own = catalog.embedded_duplicates(session, collection.name, [row["picture"] for row, _ in asked])
    vectors = qdrant.image_vectors_of(
        stores.vectors, collection.name, {positive.id: positive.content_hash for positive in own.values()}
    )
    for (row, _), query, hits in zip(asked, queries, found, strict=True):
        positive = own.get(row["picture"])
        if positive is None or positive.id not in vectors:
            continue
        own_score = float(np.dot(query, vectors[positive.id]))
        picked = select_negatives(row, own_score, _candidates(hits, items, split), many)
        row["negatives"] += [one.sha256 for one in picked]
        row["negative_groups"] += [one.group for one in picked]


def _candidates(
    hits: Sequence[tuple[UUID, float]], items: Mapping[UUID, Item], split: ImageSplit
) -> list[Candidate]:
    """Return the hits that belong to the training part."""
    pictures = ((items[id], score) for id, score in hits if id in items)
    return [
        Candidate(
            item.image.sha256,
            split.group_number(item.image.sha256),
            frozenset(text_number(text.text) for text in item.texts),
            score,
        )
        for item, score in pictures
        if item.image is not None and split.part_of(item.image.sha256) == "train"
    ]
