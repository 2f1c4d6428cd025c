"""Rank the gallery rows of one direction for its queries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedding.encoders.sentence_encoder import Vectors
from embedding.evaluation.metrics import Answers, Scores, best_of_groups, target_ranks

Modality = Literal["texts", "images"]
Positions = NDArray[np.int64]
QUERIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """Store queries, their gallery and the relevant answers in it."""

    name: str
    """Such as `text_to_image`."""

    query_modality: Modality
    queries: Positions
    """Shape (queries,): rows of the query modality."""

    gallery_modality: Modality
    gallery: Positions
    """Shape (rows,): rows of the gallery modality, in the order of the ids of their items."""

    starts: Positions
    """Shape (candidates,): the first gallery row of each candidate, which scores as its best row."""

    of_query: Positions
    """Shape (answers,): the query of each answer, rising from 0 without a gap."""

    answers: Positions
    """Shape (answers,): the relevant candidates."""

    gains: Scores
    records: Positions
    """Shape (queries,): the record of each query."""

    parts: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Subsets of the queries by name, such as `lang=de`, shape (queries,)."""


def rank_answers(direction: Direction, rows: Mapping[Modality, Vectors]) -> Answers:
    """Return the ranks of the relevant answers, by cosine.

    Args:
        rows: unit rows by modality, shape (n, dim) each.
    """
    gallery = rows[direction.gallery_modality][direction.gallery]
    grouped = len(direction.starts) < len(gallery)
    found = []
    for first in range(0, len(direction.queries), QUERIES_AT_ONCE):
        asking = rows[direction.query_modality][direction.queries[first : first + QUERIES_AT_ONCE]]
        scores = asking @ gallery.T
        if grouped:
            scores = best_of_groups(scores, direction.starts.tolist())
        begin, end = np.searchsorted(direction.of_query, [first, first + QUERIES_AT_ONCE])
        own = direction.of_query[begin:end] - first
        found.append(target_ranks(scores[own], direction.answers[begin:end].tolist()))
    return Answers(direction.of_query, np.concatenate(found), direction.gains)
