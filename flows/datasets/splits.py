"""Split images for training, with near duplicates in one part."""

import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from embedding.images.decode import BadImage
from embedding.images.perceptual_hash import HASH_INPUT
from embedding.images.worker_pool import Workers
from embedding.training.splits import Split, SplitName
from flows.config.settings import Limits
from flows.datasets.near_duplicates import duplicate_groups, hash_of
from flows.datasets.relevance_judgments import BadJudgments, Judgment, file_sha256, query_images
from flows.resources.connections import Stores
from flows.resources.images import decode_many
from storage.postgres import catalog, perceptual_hashes
from storage.records import Origin


@dataclass(frozen=True, slots=True)
class ImageSplit:
    """Assign images to the parts of a training split.

    Near duplicates form a group, and a group is always in one part.
    """

    groups: Mapping[str, str]
    """Name of the group of each image, by SHA-256."""

    split: Split
    named: frozenset[str]
    """Groups with an item that the split names by its key."""

    unreadable: frozenset[str] = frozenset()
    """Stored images that are missing or cannot be decoded: no pair is made of them."""

    def part_of(self, sha256: str) -> SplitName:
        group = self.groups.get(sha256, sha256)
        return self.split.part_of(group, named=group in self.named)

    def group_number(self, sha256: str) -> int:
        """Return the number of the group of an image."""
        return stable_number(self.groups.get(sha256, sha256))


def split_images(
    stores: Stores, limits: Limits, split: Split, judgments: Sequence[Judgment] = ()
) -> ImageSplit:
    """Hash the new images, group near duplicates and split the groups.

    Raises:
        BadJudgments: an image that is a query cannot be read.
    """
    hashes = _hashes(judgments)
    groups = duplicate_groups(stores, limits, others=hashes)
    return image_split(stores, groups | _beside_their_items(stores, groups, set(hashes), judgments), split)


def _beside_their_items(
    stores: Stores, groups: Mapping[str, str], queries: AbstractSet[str], judgments: Sequence[Judgment]
) -> dict[str, str]:
    """Move each query image that no stored image resembles.

    Its group becomes that of its first relevant item.
    """
    stored = {group for sha256, group in groups.items() if sha256 not in queries}
    moved: dict[str, str] = {}
    with stores.sessions() as session:
        for one in judgments:
            own = None if one.image is None else groups[file_sha256(one.image)]
            if own is None or own in stored or own in moved or one.relevance == 0:
                continue
            for item in catalog.items_with_key(session, one.key, one.source):
                if item.image is not None:
                    moved.setdefault(own, groups.get(item.image.sha256, item.image.sha256))
    return {sha256: moved[groups[sha256]] for sha256 in queries if groups[sha256] in moved}


def image_split(stores: Stores, groups: Mapping[str, str], split: Split) -> ImageSplit:
    """Split images with known groups."""
    with stores.sessions() as session:
        named = catalog.images_of_keys(session, split.keys or ())
        unreadable = frozenset(perceptual_hashes.unhashed(session))
    return ImageSplit(groups, split, frozenset(groups.get(sha256, sha256) for sha256 in named), unreadable)


def _hashes(judgments: Sequence[Judgment]) -> dict[str, int]:
    """Return the perceptual hashes of query images, by SHA-256."""
    origins = {sha256: Origin(path) for sha256, path in query_images(judgments).items()}
    with Workers(HASH_INPUT, 0) as workers:
        decoding = decode_many(workers, origins, lambda _, origin: Path(origin.uri).read_bytes())
        try:
            return {sha256: hash_of(future.result()) for sha256, future in decoding.items()}
        except BadImage as error:
            raise BadJudgments(f"the image of a judgment cannot be used: {error}") from error


def stable_number(name: str) -> int:
    """Return a 64-bit number derived from `name`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
