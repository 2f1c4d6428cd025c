"""From rows of pairs to what a loss takes of them; the rows are ids and numbers, and never hold an image."""

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
    """One pair of a text and an image that belong together, as the file of pairs has it."""

    text: str
    """What `Material` knows the text by."""

    picture: str
    """SHA-256."""

    text_group: int
    """Texts with the same words have the same number."""

    picture_group: int
    """Near duplicates have the same number."""

    negatives: list[str]
    """SHA-256 of images that are close to the text and do not belong to it."""

    negative_groups: list[int]


class Batch(TypedDict):
    """What a step of training takes."""

    sides: list[list[dict[str, Any]]]
    """The chunks of the texts, and those of the images: own ones first, then negatives."""

    texts: Tensor
    """The groups of the texts, int64."""

    pictures: Tensor
    """The groups of the images, int64."""


class PairSource(Protocol):
    """Where texts and images are had from when a batch needs them."""

    def texts(self, names: Sequence[str]) -> list[str | None]:
        """Return each text; None for one that is gone."""

    def pictures(self, shas: Sequence[str]) -> list[Features | None]:
        """Return what the model takes of each image; None for one that is gone."""


class NoPairs(UnusableInput):
    """Not one pair of a batch could be had any more."""


@dataclass(frozen=True, slots=True)
class FrozenFeatures:
    """What a tower that is not trained makes of everything, computed once and kept in files."""

    text_rows: Mapping[str, int]
    texts: NDArray[np.float32]
    """Shape (texts, dim)."""

    picture_rows: Mapping[str, int]
    pictures: NDArray[np.float32]
    """Shape (images, dim)."""

    inputs: NDArray[np.float32]
    """Shape (images, any): what a head maps."""

    def has(self, row: PairRow) -> bool:
        """Whether neither side of the pair is gone."""
        return row["text"] in self.text_rows and row["picture"] in self.picture_rows

    def __call__(self, rows: Sequence[PairRow]) -> Batch:
        negatives = [
            (sha256, group)
            for row in rows
            for sha256, group in zip(row["negatives"], row["negative_groups"], strict=True)
            if sha256 in self.picture_rows
        ]
        shas = [row["picture"] for row in rows] + [sha256 for sha256, _ in negatives]
        texts = [self.text_rows[row["text"]] for row in rows]
        pictures = [self.picture_rows[sha256] for sha256 in shas]
        return {
            "sides": [
                [{VECTOR: torch.from_numpy(self.texts[texts])}],
                [
                    {
                        VECTOR: torch.from_numpy(self.pictures[pictures]),
                        HEAD_INPUT: torch.from_numpy(self.inputs[pictures]),
                    }
                ],
            ],
            "texts": torch.tensor([row["text_group"] for row in rows]),
            "pictures": torch.tensor(
                [row["picture_group"] for row in rows] + [group for _, group in negatives]
            ),
        }


@dataclass(frozen=True, slots=True)
class LiveBatches:
    """Texts and images as they are, for towers that are trained; what is gone is left out.

    Args:
        chunk: how many of them the model sees at once; more than that are embedded twice.
    """

    encoder: SentenceEncoder
    material: PairSource
    chunk: int

    def __call__(self, rows: Sequence[PairRow]) -> Batch:
        """Return a batch.

        Raises:
            NoPairs: none of it is left.
        """
        texts = self.material.texts([row["text"] for row in rows])
        pictures = self.material.pictures([row["picture"] for row in rows])
        pairs = [
            (row, text, picture)
            for row, text, picture in zip(rows, texts, pictures, strict=True)
            if text is not None and picture is not None
        ]
        if not pairs:
            raise NoPairs("no pair of a batch can be had any more; was the source deleted meanwhile?")
        wanted = [
            pair for row, _, _ in pairs for pair in zip(row["negatives"], row["negative_groups"], strict=True)
        ]
        found = self.material.pictures([sha256 for sha256, _ in wanted])
        negatives = [
            (picture, group) for picture, (_, group) in zip(found, wanted, strict=True) if picture is not None
        ]
        shown = [picture for _, _, picture in pairs] + [picture for picture, _ in negatives]
        groups = [row["picture_group"] for row, _, _ in pairs] + [group for _, group in negatives]
        return {
            "sides": [
                [
                    self.encoder.text_features([text for _, text, _ in pairs[start : start + self.chunk]])
                    for start in range(0, len(pairs), self.chunk)
                ],
                [
                    self.encoder.features(shown[start : start + self.chunk])
                    for start in range(0, len(shown), self.chunk)
                ],
            ],
            "texts": torch.tensor([row["text_group"] for row, _, _ in pairs]),
            "pictures": torch.tensor(groups),
        }
