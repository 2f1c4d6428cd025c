"""Encode texts and images as vectors, train models and judge them.

Public: `load_encoder` loads a model that takes texts and images.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedding.encoders.sentence_encoder import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embedding.encoders import sentence_encoder  # on first use: workers decode images without a model

    return getattr(sentence_encoder, name)
