"""Cache the images of a run until they are stored."""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedding.images.preparation import PreparedImage
from embedding.images.worker_pool import Workers
from storage.records import ImageInfo


class CachedImage:
    """Hold one image while it is decoded, encoded and stored."""

    def __init__(self, decoding: "Future[PreparedImage]") -> None:
        self._decoding = decoding
        self.vector: NDArray[np.float32] | None = None
        """Shape (dim,), unit length; None until the image is encoded."""

    @classmethod
    def decoded(cls, prepared: PreparedImage) -> Self:
        """Return an image that is decoded already."""
        done: Future[PreparedImage] = Future()
        done.set_result(prepared)
        return cls(done)

    @classmethod
    def with_vector(cls, info: ImageInfo, vector: NDArray[np.float32]) -> Self:
        """Return an image that has a stored vector."""
        image = cls.decoded(PreparedImage(info.width, info.height, info.format, {}))
        image.vector = vector
        return image

    def prepared(self) -> PreparedImage:
        """Wait for the decoded image.

        It has no features once it has a vector.

        Raises:
            BadImage: the image cannot be decoded, or no model can use it.
            WorkersFailed: no worker could decode it.
        """
        return self._decoding.result()

    def set_vector(self, vector: NDArray[np.float32]) -> None:
        """Keep the vector, and release the pixels."""
        self.vector = vector
        self._decoding = self.decoded(replace(self.prepared(), features={}))._decoding


class ImageCache:
    """Hold the images of a run that are not stored yet.

    They are known by SHA-256.

    One thread adds images; others only remove them, so that no lock is needed.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._images: dict[str, CachedImage] = {}

    def pending(self, shas: Iterable[str]) -> dict[str, CachedImage]:
        """Return those of `shas` that an earlier record has brought."""
        return {sha256: image for sha256 in shas if (image := self._images.get(sha256)) is not None}

    def decode(self, sha256: str, data: bytes, *, name: str) -> CachedImage:
        """Submit an image for decoding."""
        image = self._images[sha256] = CachedImage(self._workers.submit(data, name=name))
        return image

    def discard(self, shas: Iterable[str]) -> None:
        """Release images that are in the stores, or that no item needs."""
        for sha256 in shas:
            self._images.pop(sha256, None)
