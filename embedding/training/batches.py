"""Turn rows of text-image pairs, which hold ids, into batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedding.encoders.head import HEAD_INPUT, VECTOR
from embedding.encoders.sentence_encoder import SentenceEncoder
from embedding.errors import UnusableInput
from embedding.images.preparation import Features


class PairRow(TypedDict):
    """Store one row of the file of text-image pairs."""

    text: str
    """The name of the text in `PairSource`."""

    picture: str
    """SHA-256."""

    text_group: int
    """Equal for texts with the same words."""

    picture_group: int
    """Equal for near duplicates."""

    negatives: list[str]
    """SHA-256 of images that are close to the text, and are not its own."""

    negative_groups: list[int]


class Batch(TypedDict):
    """Store the inputs of a training step."""

    towers: list[list[dict[str, Any]]]
    """Chunks for the text tower and for the image tower; images of pairs first, then negatives."""

    text_groups: Tensor
    """int64."""

    image_groups: Tensor
    """int64."""


class PairSource(Protocol):
    """Load the texts and images of a batch."""

    def texts(self, names: Sequence[str]) -> list[str | None]:
        """Return each text; None for a deleted one."""

    def images(self, shas: Sequence[str]) -> list[Features | None]:
        """Return the prepared features of each image; None for a deleted one."""


class NoPairs(UnusableInput):
    """Report that every pair of a batch has been deleted."""


@dataclass(frozen=True, slots=True)
class FrozenFeatures:
    """Store the outputs of frozen towers for all pairs, computed once."""

    text_rows: Mapping[str, int]
    texts: NDArray[np.float32]
    """Shape (texts, dim)."""

    image_rows: Mapping[str, int]
    images: NDArray[np.float32]
    """Shape (images, dim)."""

    inputs: NDArray[np.float32]
    """Shape (images, any): the inputs of a head."""

    def has(self, row: PairRow) -> bool:
        """Return whether both the text and the image of a pair exist."""
        return row["text"] in self.text_rows and row["picture"] in self.image_rows

    def __call__(self, rows: Sequence[PairRow]) -> Batch:
        negatives = [
            (sha256, group)
            for row in rows
            for sha256, group in zip(row["negatives"], row["negative_groups"], strict=True)
            if sha256 in self.image_rows
        ]
        shas = [row["picture"] for row in rows] + [sha256 for sha256, _ in negatives]
        texts = [self.text_rows[row["text"]] for row in rows]
        images = [self.image_rows[sha256] for sha256 in shas]
        return {
            "towers": [
                [{VECTOR: torch.from_numpy(self.texts[texts])}],
                [
                    {
                        VECTOR: torch.from_numpy(self.images[images]),
                        HEAD_INPUT: torch.from_numpy(self.inputs[images]),
                    }
                ],
            ],
            "text_groups": torch.tensor([row["text_group"] for row in rows]),
            "image_groups": torch.tensor(
                [row["picture_group"] for row in rows] + [group for _, group in negatives]
            ),
        }


@dataclass(frozen=True, slots=True)
class LiveBatches:
    """Load the texts and images of a batch for training towers.

    Args:
        chunk: the number that the model embeds at once; a larger batch is embedded twice.
    """

    encoder: SentenceEncoder
    material: PairSource
    chunk: int

    def __call__(self, rows: Sequence[PairRow]) -> Batch:
        """Return a batch.

        Raises:
            NoPairs: all pairs have been deleted.
        """
        texts = self.material.texts([row["text"] for row in rows])
        images = self.material.images([row["picture"] for row in rows])
        pairs = [
            (row, text, image)
            for row, text, image in zip(rows, texts, images, strict=True)
            if text is not None and image is not None
        ]
        if not pairs:
            raise NoPairs("no pair of a batch is left; was the source deleted meanwhile?")
        wanted = [
            pair for row, _, _ in pairs for pair in zip(row["negatives"], row["negative_groups"], strict=True)
        ]
        found = self.material.images([sha256 for sha256, _ in wanted])
        negatives = [
            (image, group) for image, (_, group) in zip(found, wanted, strict=True) if image is not None
        ]
        encoded = [image for _, _, image in pairs] + [image for image, _ in negatives]
        groups = [row["picture_group"] for row, _, _ in pairs] + [group for _, group in negatives]
        return {
            "towers": [
                [
                    self.encoder.text_features([text for _, text, _ in pairs[start : start + self.chunk]])
                    for start in range(0, len(pairs), self.chunk)
                ],
                [
                    self.encoder.features(encoded[start : start + self.chunk])
                    for start in range(0, len(encoded), self.chunk)
                ],
            ],
            "text_groups": torch.tensor([row["text_group"] for row, _, _ in pairs]),
            "image_groups": torch.tensor(groups),
        }
