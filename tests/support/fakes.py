"""Small working stand-ins. Each obeys the contract that tests/embedding/test_encoder.py states."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from PIL import Image

from embedding.encoders.sentence_encoder import EncodedTexts, Vectors, unit_rows
from embedding.images.preparation import PIXELS, Features, ResizeCrop

PALETTE = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}
MAX_WORDS = 8
BOX = Image.Resampling.BOX


class ColourEncoder:
    """Places a picture by its mean colour, and a text by the colours it names.

    A text that names none lies at grey; a text of more than eight words is cut, as models do. It counts
    what it was asked for, so that a test can tell work from none.
    """

    dim = 3
    images_per_chunk = 8
    peak_device_mib = None
    preparation = ResizeCrop(size=(8, 8), crop=None, resample=BOX, scale=(1.0,) * 3, shift=(0.0,) * 3)

    def __init__(self, name: str = "colour", fingerprint: str = "colour1") -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.seen_texts: list[str] = []
        self.seen_images = 0

    def texts(self, texts: Sequence[str]) -> Vectors:
        self.seen_texts += texts
        rows = [
            np.sum([PALETTE.get(word, (1, 1, 1)) for word in self._words(text)], axis=0) for text in texts
        ]
        return unit_rows(np.array(rows, float).reshape(len(texts), 3))

    def images(self, images: Sequence[Image.Image]) -> Vectors:
        return self.encode_prepared([self.preparation(image) for image in images])

    def encode_prepared(self, images: Sequence[Features]) -> Vectors:
        self.seen_images += len(images)
        rows = [picture[PIXELS].mean(axis=(0, 1)) + 1.0 for picture in images]
        return unit_rows(np.array(rows, float).reshape(len(images), 3))

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        return EncodedTexts(self.texts(texts), [len(text.split()) > MAX_WORDS for text in texts])

    def _words(self, text: str) -> list[str]:
        return text.lower().replace(".", "").split()[:MAX_WORDS] or ["grey"]


class Within:
    """Stands before an object: each use of one of its attributes, and each call, happens within a context.

    Args:
        context: returns the context of one use.
    """

    def __init__(self, real: Any, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self._real, self._context = real, context

    def __getattr__(self, name: str) -> Any:
        with self._context():
            found = getattr(self._real, name)
        if not callable(found):
            return found

        def call(*args: Any, **named: Any) -> Any:
            with self._context():
                return found(*args, **named)

        return call
