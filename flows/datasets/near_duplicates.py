"""Find items with the same image, or nearly the same."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import MappingProxyType
from typing import Any

from PIL import Image

from embedding.images.decode import BadImage
from embedding.images.perceptual_hash import HASH_INPUT, near_groups, perceptual_hash
from embedding.images.preparation import PIXELS, PreparedImage
from embedding.images.worker_pool import Workers
from flows.config.settings import Limits
from flows.resources.connections import Stores
from flows.resources.images import decode_many, load_image
from flows.tracking.progress import Steps, no_steps
from storage.postgres import catalog, perceptual_hashes
from storage.postgres.perceptual_hashes import Copy

BATCH = 200


@dataclass(frozen=True, slots=True)
class DuplicateGroups:
    """Hold groups of items with duplicate images."""

    near: bool
    """Whether the groups hold near duplicates, or images with the same bytes."""

    groups: tuple[tuple[Copy, ...], ...]
    unreadable: int = 0
    """Images that are missing or cannot be decoded; they are left out."""

    def as_json(self) -> dict[str, Any]:
        groups = [
            [{"source": c.source, "key": c.key, "id": str(c.id), "sha256": c.sha256} for c in group]
            for group in self.groups
        ]
        return {"near": self.near, "groups": groups, "unreadable": self.unreadable}


def exact_duplicates(stores: Stores) -> DuplicateGroups:
    """Return the items that share the bytes of an image."""
    with stores.sessions() as session:
        copies = perceptual_hashes.copies(session)
    return DuplicateGroups(
        False, tuple(tuple(group) for _, group in groupby(copies, key=lambda copy: copy.sha256))
    )


def near_duplicates(stores: Stores, limits: Limits, *, advance: Steps = no_steps) -> DuplicateGroups:
    """Return the items with near-duplicate images, exact duplicates included.

    A perceptual hash is computed once and stored, so that the next call costs little.

    Args:
        advance: receives the number of images hashed since the last call.
    """
    unreadable = _hash_new(stores, limits, advance)
    with stores.sessions() as session:
        hashes = perceptual_hashes.hashes(session)
        shas = list(hashes)
        found = []
        for group in near_groups(list(hashes.values())):
            found.append(perceptual_hashes.items_with(session, [shas[position] for position in group]))
        grouped = {copy.sha256 for group in found for copy in group}
        same = groupby(perceptual_hashes.copies(session), key=lambda copy: copy.sha256)
        found += [list(group) for sha256, group in same if sha256 not in grouped]
    return DuplicateGroups(True, tuple(map(tuple, _in_order(found))), unreadable)


def duplicate_groups(
    stores: Stores, limits: Limits, *, others: Mapping[str, int] = MappingProxyType({})
) -> dict[str, str]:
    """Return the group of each image, by SHA-256.

    A group is named after the smallest SHA-256 among its near duplicates.

    An image that cannot be decoded is a group by itself.

    Args:
        others: perceptual hashes of images without an item, which are grouped as well.
    """
    _hash_new(stores, limits, no_steps)
    with stores.sessions() as session:
        hashes = dict(sorted((dict(others) | perceptual_hashes.hashes(session)).items()))
        groups = {sha256: sha256 for sha256 in (*others, *catalog.living_images(session))}
    shas = list(hashes)  # in order, so that the first of a group is its smallest
    for group in near_groups(list(hashes.values())):
        for position in group:
            groups[shas[position]] = shas[group[0]]
    return groups


def hash_of(decoded: PreparedImage) -> int:
    """Return the perceptual hash of an image decoded to `SEEN`."""
    return perceptual_hash(Image.fromarray(decoded.features[PIXELS]))


def _hash_new(stores: Stores, limits: Limits, advance: Steps) -> int:
    """Hash the images without a hash; count the unreadable ones."""
    after, unreadable = "", 0
    with Workers(HASH_INPUT, 0) as workers:
        while True:
            with stores.sessions() as session:
                origins = perceptual_hashes.unhashed(session, after, BATCH)
            if not origins:
                return unreadable
            hashes = {}
            decoding = decode_many(workers, origins, partial(load_image, stores, limits=limits))
            for sha256, future in decoding.items():
                with suppress(BadImage):
                    hashes[sha256] = hash_of(future.result())
            unreadable += len(origins) - len(hashes)  # `reconcile` reports which of them are missing
            with stores.sessions.begin() as session:
                perceptual_hashes.save_hashes(session, hashes)
            advance(len(origins))
            after = max(origins)


def _in_order(groups: Iterable[list[Copy]]) -> list[list[Copy]]:
    own = (sorted(group, key=lambda copy: (copy.source, copy.key)) for group in groups)
    return sorted(own, key=lambda group: (group[0].source, group[0].key))
