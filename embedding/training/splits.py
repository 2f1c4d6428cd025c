"""Assign records to the train, validation and held-out splits."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

SplitName = Literal["train", "validation", "held-out"]


@dataclass(frozen=True, slots=True)
class Split:
    """Assign groups of images to splits by a stable hash.

    A group is an image with all its near duplicates; its name is the smallest of their SHA-256.
    """

    seed: int = 0
    held_out: float = 0.2
    """The share of groups that training never reads, in [0, 1)."""

    validation: float = 0.1
    """The share of groups that decide when training stops, in [0, 1)."""

    keys: tuple[str, ...] | None = None
    """Keys of items that are held out instead of a share, each with its whole group."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the split that `as_json` described."""
        keys = document["keys"]
        return cls(
            document["seed"],
            document["held_out"],
            document["validation"],
            None if keys is None else tuple(keys),
        )

    def part_of(self, group: str, *, named: bool) -> SplitName:
        """Return the split of the images of a group.

        Args:
            named: whether an item with one of `keys` has an image of the group.
        """
        draw = _draw(self.seed, group)
        if self.keys is not None:
            if named:
                return "held-out"
            return "validation" if draw < self.validation else "train"
        if draw < self.held_out:
            return "held-out"
        return "validation" if draw < self.held_out + self.validation else "train"


def _draw(seed: int, group: str) -> float:
    """Return a number in [0, 1) from seed and group name."""
    digest = hashlib.sha256(json.dumps([seed, group]).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
