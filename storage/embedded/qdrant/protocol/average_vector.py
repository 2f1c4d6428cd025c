"""Average positive and negative examples, as a Qdrant server does."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray

from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.vectors import EngineVector, is_rows


def average(positive: Sequence[EngineVector], negative: Sequence[EngineVector]) -> EngineVector:
    """Compute the mean of positive vectors, moved away from the negative mean.

    The result is mean(positive) + (mean(positive) - mean(negative)).

    Multivectors are not averaged: their rows are put together, those of `negative` negated.

    Args:
        positive: at least one; both lists are of one kind: all dense, all sparse or all multivectors.

    Raises:
        RequestError: `positive` is empty, or the kinds are mixed.
    """
    if not positive:
        raise RequestError("At least one positive vector is required with the average_vector strategy")
    liked, disliked = _VectorsByKind.of(positive), _VectorsByKind.of(negative)
    match liked, disliked:
        case _VectorsByKind(dense=[_, *_], sparse=[], multi=[]), _VectorsByKind(sparse=[], multi=[]):
            return _dense(liked.dense, disliked.dense)
        case _VectorsByKind(dense=[], sparse=[_, *_], multi=[]), _VectorsByKind(dense=[], multi=[]):
            return _sparse(_weights(liked.sparse), _weights(disliked.sparse))
        case _VectorsByKind(dense=[], sparse=[]), _VectorsByKind(dense=[], sparse=[]):
            return liked.multi + [[-number for number in row] for row in disliked.multi]
    raise RequestError("Can't average vectors with different types")


@dataclass(frozen=True, slots=True)
class _VectorsByKind:
    dense: list[list[float]]
    sparse: list[edge.SparseVector]
    multi: list[list[float]]
    """The rows of all multivectors."""

    @classmethod
    def of(cls, vectors: Sequence[EngineVector]) -> "_VectorsByKind":
        kinds = cls([], [], [])
        for vector in vectors:
            if isinstance(vector, edge.SparseVector):
                kinds.sparse.append(vector)
            elif is_rows(vector):
                kinds.multi.extend(vector)
            else:
                kinds.dense.append(vector)
        return kinds


def _dense(positive: list[list[float]], negative: list[list[float]]) -> list[float]:
    mean = _mean(positive)
    return [float(number) for number in (mean + mean - _mean(negative) if negative else mean)]


def _mean(vectors: list[list[float]]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.asarray(vectors, np.float32).mean(axis=0)
    return mean


def _weights(vectors: Sequence[edge.SparseVector]) -> dict[int, float]:
    sums: defaultdict[int, float] = defaultdict(float)
    for vector in vectors:
        for index, value in zip(vector.indices, vector.values, strict=True):
            sums[index] += value
    return {index: total / len(vectors) for index, total in sums.items()}


def _sparse(positive: dict[int, float], negative: dict[int, float]) -> edge.SparseVector:
    indices = sorted(positive.keys() | negative.keys())
    factor = 2 if negative else 1
    return edge.SparseVector(
        indices, [factor * positive.get(index, 0.0) - negative.get(index, 0.0) for index in indices]
    )
