"""Fuse text and image vectors into one query vector."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedding.encoders.sentence_encoder import unit_rows


def fuse_vectors(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the direction of the sum of unit vectors of one space.

    The cosine with it is, up to a factor common to all items, the mean of the cosines with each vector. It
    therefore ranks as late fusion of the scores does, in one search, and stays comparable with a minimum
    score. It is the usual way to compose a query without training: "Image + Text" in Saito et al.,
    Pic2Word (2023), and Baldrati et al., SEARLE (2023); score-level fusion in Wei et al., UniIR (2024).
    Fusing two rankings by their ranks (RRF) would lose the scores, and items that neither ranks high.
    Where a model has images closer to images than to texts (Liang et al., 2022), an image counts for
    more among images, and words among texts.

    Args:
        vectors: one or more, each of shape (dim,) and unit length.

    Returns:
        Shape (dim,), unit length.

    Raises:
        ZeroVector: the vectors cancel each other out.
    """
    if len(vectors) == 1:
        return vectors[0]
    total: NDArray[np.float32] = unit_rows(np.sum(vectors, axis=0, keepdims=True))[0]
    return total
