"""Rank the gallery for the queries of one direction, as positions in rows of vectors."""

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
    """Some queries, the gallery they are asked of, and its right answers."""

    name: str
    """Such as `text_to_image`."""

    query_modality: Modality
    queries: Positions
    """Shape (queries,): rows of the side that query_modality."""

    gallery_modality: Modality
    gallery: Positions
    """Shape (rows,): rows of the side that is found, in the order of the ids of what they belong to."""

    starts: Positions
    """Shape (candidates,): the first gallery row of each; a candidate is as close as its best row."""

    of_query: Positions
    """Shape (answers,): whose answer each is, rising from 0 without a gap."""

    answers: Positions
    """Shape (answers,): the candidates that are right."""

    gains: Scores
    records: Positions
    """Shape (queries,): the record that each query comes from."""

    parts: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """By name, such as `lang=de`, which queries belong to it, shape (queries,)."""


def rank_answers(direction: Direction, rows: Mapping[Modality, Vectors]) -> Answers:
    """Return where the right answers come out, by cosine.

    Args:
        rows: unit rows of both sides, shape (n, dim) each.
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
