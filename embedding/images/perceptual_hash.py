"""Find near duplicates without a model: resized, re-encoded or edited copies."""

from collections.abc import Sequence

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from embedding.images.preparation import GreySquare

MAX_DISTANCE = 4
"""Bits of 64 in which hashes of near duplicates may differ; copies of other sizes differ in 0 to 4."""

HASH_INPUT = GreySquare(32)
"""The input of `perceptual_hash`; a worker process prepares it from untrusted bytes."""

MIN_BITS = 3
"""A hash with fewer bits set is of an image without detail; such hashes are not compared."""


def perceptual_hash(image: Image.Image) -> int:
    """Return the image's pHash (Zauner, 2010), in [0, 2**64).

    The hashes of similar images differ in few bits.
    """
    return int(str(imagehash.phash(image)), 16)


def near_groups(hashes: Sequence[int]) -> list[list[int]]:
    """Group hashes by chains of neighbours within `MAX_DISTANCE` bits.

    Of `MAX_DISTANCE` + 1 parts, two hashes that differ in so few bits have one in common, so that only hashes
    that share a part are compared.

    Returns:
        Positions in `hashes`, in groups of two or more; each in order, the groups by their first.
    """
    unique, which = np.unique(np.array(hashes, np.uint64), return_inverse=True)
    detailed = np.bitwise_count(unique) >= MIN_BITS
    left, right = _near_pairs(unique)
    both = detailed[left] & detailed[right]
    edges = coo_matrix((np.ones(both.sum(), np.int8), (left[both], right[both])), (len(unique),) * 2)
    labels = connected_components(edges, directed=False)[1] if len(unique) else np.empty(0, int)
    members: dict[int, list[int]] = {}
    for position, value in enumerate(which):
        if detailed[value]:
            members.setdefault(int(labels[value]), []).append(position)
    return sorted(group for group in members.values() if len(group) > 1)


def _near_pairs(unique: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the positions of all pairs within `MAX_DISTANCE` bits, some repeatedly."""
    lefts, rights = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    width = -(-64 // (MAX_DISTANCE + 1))
    for shift in range(0, 64, width):
        part = (unique >> np.uint64(shift)) & np.uint64(2**width - 1)
        by_part = np.argsort(part, kind="stable")
        starts = np.flatnonzero(np.diff(part[by_part], prepend=part[by_part][:1] + np.uint64(1)))
        for bucket in np.split(by_part, starts[1:] if len(starts) else []):
            for position, one in enumerate(bucket[:-1]):
                others = bucket[position + 1 :]
                near = others[np.bitwise_count(unique[one] ^ unique[others]) <= MAX_DISTANCE]
                lefts.append(np.full(len(near), one, np.intp))
                rights.append(near)
    return np.concatenate(lefts), np.concatenate(rights)
