"""Define the trainable head on the image tower of a frozen model."""

import math
from typing import Any

import torch
from sentence_transformers.base.modules import Module
from torch import Tensor
from torch.nn.functional import normalize

from embedding.images.preparation import PIXELS

HEAD_INPUT = "head_input"
"""Features of an image tower for a head, richer than its vectors, shape (n, any)."""

VECTOR = "sentence_embedding"
"""The library's name of the vectors of texts and of images."""


class PictureHead(Module):
    """Add a linear map of its features to each image vector.

    Text vectors stay as they are. The map begins at zero, so that an untrained head changes nothing. A map
    of the images alone is as general as one of both towers: scores are products, and t'(A i) covers every
    bilinear form.

    Args:
        in_features: length of the rows that `head_input_of` returns.
        out_features: length of the vectors.
        dropout: share of the features that training leaves out at random.
    """

    config_keys = ["in_features", "out_features", "dropout"]  # noqa: RUF012 (the library has it as a list)

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.3) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.in_features, self.out_features, self.dropout = in_features, out_features, dropout
        self.map = torch.nn.Linear(in_features, out_features)
        torch.nn.init.zeros_(self.map.weight)
        torch.nn.init.zeros_(self.map.bias)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        if PIXELS in features or HEAD_INPUT in features:
            rows = head_input_of(features)
            # of length 1 in the mean of each feature, so that one learning rate suits all towers
            scaled = normalize(rows, dim=-1) * math.sqrt(rows.shape[-1])
            moved = torch.nn.functional.dropout(scaled, self.dropout, self.training)
            features[VECTOR] = normalize(normalize(features[VECTOR], dim=-1) + self.map(moved), dim=-1)
        return features

    def get_embedding_dimension(self) -> int:
        return self.out_features

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *_: Any, **__: Any) -> "PictureHead":
        head = cls(**cls.load_config(model_name_or_path, subfolder=subfolder))
        cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=head)
        return head


def head_input_of(features: dict[str, Any]) -> Tensor:
    """Return the tower's features, shape (n, any), else its vectors."""
    rows: Tensor = features.get(HEAD_INPUT, features[VECTOR])
    return rows
