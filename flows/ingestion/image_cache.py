"""The images of a run that are on their way: each is decoded and embedded once, whoever shares it."""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedding.images.preparation import Prepared
from embedding.images.worker_pool import Workers
from flows.ingestion.source_batches import Fetched
from storage.records import Picture


class Shown:
    """One image: first it is being decoded, then it has a vector, and its pixels are gone."""

    def __init__(self, decoding: "Future[Prepared]") -> None:
        self._decoding = decoding
        self.vector: NDArray[np.float32] | None = None
        """Shape (dim,), unit length; None before the model has seen it."""

    @classmethod
    def decoded(cls, prepared: Prepared) -> Self:
        """Return an image that need not be waited for."""
        done: Future[Prepared] = Future()
        done.set_result(prepared)
        return cls(done)

    @classmethod
    def with_vector(cls, picture: Picture, vector: NDArray[np.float32]) -> Self:
        """Return an image whose vector was there already."""
        shown = cls.decoded(Prepared(picture.width, picture.height, picture.format, {}))
        shown.vector = vector
        return shown

    def prepared(self) -> Prepared:
        """Wait until it is decoded; once it has a vector, what this returns has no features.

        Raises:
            BadImage: it cannot be shown to a model.
            WorkersFailed: there was nobody to decode it.
        """
        return self._decoding.result()

    def embedded(self, vector: NDArray[np.float32]) -> None:
        """Keep the vector, and let the pixels go."""
        self.vector = vector
        self._decoding = self.decoded(replace(self.prepared(), features={}))._decoding


class Pictures:
    """Those images of a run that are not in the stores yet, by SHA-256.

    One thread has them shown; others only take them out, so nobody has to wait for anybody.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._shown: dict[str, Shown] = {}

    def under_way(self, shas: Iterable[str]) -> dict[str, Shown]:
        """Return those of `shas` that another record has brought, whatever has become of them since."""
        return {sha256: shown for sha256 in shas if (shown := self._shown.get(sha256)) is not None}

    def show(self, fetched: Iterable[Fetched]) -> dict[str, Shown]:
        """Have the images of records decoded, each once; return them."""
        new: dict[str, Shown] = {}
        for one in fetched:
            if one.data is not None and one.sha256 is not None and one.sha256 not in new:
                new[one.sha256] = Shown(self._workers.submit(one.data, name=one.record.place))
        self._shown |= new
        return new

    def forget(self, shas: Iterable[str]) -> None:
        """Let images go that the stores have, or that no item needs."""
        for sha256 in shas:
            self._shown.pop(sha256, None)
