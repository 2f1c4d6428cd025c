"""Which items show the same image, or nearly the same."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any

from PIL import Image

from embedding.images.decode import BadImage
from embedding.images.perceptual_hash import SEEN, near_groups, perceptual_hash
from embedding.images.preparation import PIXELS
from embedding.images.worker_pool import Workers
from flows.config.settings import Limits
from flows.resources.connections import Stores
from flows.resources.images import load_image
from storage.postgres import catalog, perceptual_hashes
from storage.postgres.perceptual_hashes import Copy
from storage.redaction import redacted

BATCH = 200


@dataclass(frozen=True, slots=True)
class Groups:
    """Items that belong together, group by group."""

    near: bool
    """Whether they look alike, or have the same bytes."""

    groups: tuple[tuple[Copy, ...], ...]
    unreadable: int = 0
    """Pictures that could not be had, and were left out."""

    def as_json(self) -> dict[str, Any]:
        groups = [
            [{"source": c.source, "key": c.key, "id": str(c.id), "sha256": c.sha256} for c in group]
            for group in self.groups
        ]
        return {"near": self.near, "groups": groups, "unreadable": self.unreadable}


def same_bytes(stores: Stores) -> Groups:
    """Return the items that share a image's bytes with another."""
    with stores.sessions() as session:
        copies = perceptual_hashes.copies(session)
    return Groups(False, tuple(tuple(group) for _, group in groupby(copies, key=lambda copy: copy.sha256)))


def look_alikes(stores: Stores, limits: Limits, *, advance: Callable[[int], None] = lambda _: None) -> Groups:
    """Return the items whose images look alike, those with the same bytes among them.

    What an image looks like is worked out once and kept, so that the next call costs little.

    Args:
        advance: told how many images have been looked at.
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
    return Groups(True, tuple(map(tuple, _in_order(found))), unreadable)


def picture_groups(
    stores: Stores, limits: Limits, *, others: Mapping[str, int] = MappingProxyType({})
) -> dict[str, str]:
    """Return for each living image, by SHA-256, its group: the smallest SHA-256 among its near duplicates.

    An image that could not be looked at is a group of its own.

    Args:
        others: perceptual hashes of images that no item has, and that are grouped as well.
    """
    _hash_new(stores, limits, lambda _: None)
    with stores.sessions() as session:
        hashes = dict(sorted((dict(others) | perceptual_hashes.hashes(session)).items()))
        groups = {sha256: sha256 for sha256 in (*others, *catalog.living_pictures(session))}
    shas = list(hashes)  # in order, so that the first of a group is its smallest
    for group in near_groups(list(hashes.values())):
        for position in group:
            groups[shas[position]] = shas[group[0]]
    return groups


def _hash_new(stores: Stores, limits: Limits, advance: Callable[[int], None]) -> int:
    with Workers(SEEN, 0) as workers:
        return _hash_with(workers, stores, limits, advance)


def hash_of(workers: Workers, data: bytes, *, name: str) -> int:
    """Return the perceptual hash of an image that workers decode to `SEEN`.

    Raises:
        BadImage: it cannot be decoded.
    """
    return perceptual_hash(Image.fromarray(workers.submit(data, name=name).result().features[PIXELS]))


def _hash_with(workers: Workers, stores: Stores, limits: Limits, advance: Callable[[int], None]) -> int:
    after, unreadable = "", 0
    while True:
        with stores.sessions() as session:
            pictures = perceptual_hashes.unhashed(session, after, BATCH)
        if not pictures:
            return unreadable
        hashes = {}
        for sha256, origin in pictures.items():
            data = load_image(stores, sha256, origin, limits)
            try:
                hashes[sha256] = hash_of(workers, data or b"", name=redacted(origin.uri))
            except BadImage:
                unreadable += 1  # also where it is gone: `reconcile` tells which those are
        with stores.sessions.begin() as session:
            perceptual_hashes.save_hashes(session, hashes)
        advance(len(pictures))
        after = max(pictures)


def _in_order(groups: Iterable[list[Copy]]) -> list[list[Copy]]:
    own = (sorted(group, key=lambda copy: (copy.source, copy.key)) for group in groups)
    return sorted(own, key=lambda group: (group[0].source, group[0].key))
