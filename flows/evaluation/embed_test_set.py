"""What a model makes of a test set: rows of texts and images, from its collection where they are there."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding.encoders.sentence_encoder import Encoder, Vectors
from embedding.evaluation.ranks import Modality
from embedding.images.decode import BadImage
from embedding.images.preparation import PreparedImage
from embedding.images.worker_pool import Workers
from embedding.pipeline import prefetch
from flows.config.settings import Settings
from flows.datasets.test_sets import EvaluationImage, TestSet
from flows.resources.connections import Stores
from flows.resources.images import decode_many, fetch_image, load_image
from flows.tracking.progress import Progress
from storage import qdrant
from storage.postgres import model_registry
from storage.sources import FetchError

CHUNK = 256


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedTestSet:
    """The rows of a test set as one model has them."""

    model: str
    fingerprint: str
    dim: int
    collection: str | None
    rows: Mapping[Modality, Vectors]
    present: NDArray[np.bool_]
    """Which images it has been shown."""


def embed_test_set(stores: Stores, settings: Settings, encoder: Encoder, test_set: TestSet, progress: Progress) -> EmbeddedTestSet:
    """Return the rows of a test set: texts encoded, images shown that the collection has no vector of."""
    texts, shots = test_set.texts, test_set.images
    rows = [np.empty((0, encoder.dim), np.float32)]
    for start in range(0, len(texts), CHUNK):
        rows.append(encoder.texts(texts[start : start + CHUNK]))
        progress(f"{encoder.name}: texts", start + len(rows[-1]), len(texts))
    collection = _collection_of(stores, encoder)
    pictures, present = np.zeros((len(shots), encoder.dim), np.float32), np.zeros(len(shots), bool)
    with Workers(encoder.preparation, settings.decode_workers) as workers:
        chunks = (
            _Chunk.begin(stores, settings, workers, collection, start, shots[start : start + CHUNK])
            for start in range(0, len(shots), CHUNK)
        )
        with prefetch(chunks) as ready:
            for chunk in ready:
                for place, vector in chunk.vectors(encoder):
                    pictures[place], present[place] = vector, True
                progress(f"{encoder.name}: pictures", chunk.start + len(chunk.shots), len(shots))
    sides: dict[Modality, Vectors] = {"texts": np.concatenate(rows), "images": pictures}
    return EmbeddedTestSet(encoder.name, encoder.fingerprint, encoder.dim, collection, sides, present)


def _collection_of(stores: Stores, encoder: Encoder) -> str | None:
    """Return the name of the model's collection, if it is on record and there."""
    name = qdrant.collection_name(encoder.fingerprint)
    with stores.sessions() as session:
        known = {one.name for one in model_registry.known_collections(session)}
    return name if name in known and stores.vectors.collection_exists(name) else None


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some images: their vectors, or what is being decoded to make these."""

    start: int
    shots: Sequence[EvaluationImage]
    known: Mapping[Any, NDArray[np.float32]]
    decoding: Mapping[int, "Future[PreparedImage]"]

    @classmethod
    def begin(
        cls,
        stores: Stores,
        settings: Settings,
        workers: Workers,
        collection: str | None,
        start: int,
        shots: Sequence[EvaluationImage],
    ) -> "_Chunk":
        wanted = {shot.id: shot.content_hash for shot in shots if shot.id and shot.content_hash}
        known = {} if collection is None else qdrant.image_vectors_of(stores.vectors, collection, wanted)
        origins = {number: shot.origin for number, shot in enumerate(shots) if shot.id not in known}
        decoding = decode_many(workers, origins, lambda number, _: _bytes_of(stores, settings, shots[number]))
        return cls(start, shots, known, decoding)

    def vectors(self, encoder: Encoder) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the vectors that there are, each with its image's place in the test set."""
        prepared = {}
        for number, future in self.decoding.items():
            try:
                prepared[number] = future.result().features
            except BadImage:
                continue  # it is counted as left out
        made = encoder.encode_prepared(list(prepared.values()))
        yield from ((self.start + number, row) for number, row in zip(prepared, made, strict=True))
        for number, shot in enumerate(self.shots):
            if shot.id in self.known:
                yield self.start + number, self.known[shot.id]


def _bytes_of(stores: Stores, settings: Settings, shot: EvaluationImage) -> bytes | None:
    if shot.sha256 is not None:
        return load_image(stores, shot.sha256, shot.origin, settings.limits)
    try:
        return fetch_image(shot.origin, settings.limits)
    except FetchError:
        return None
