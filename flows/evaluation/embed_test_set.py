"""Embed a test set with one model, reusing stored vectors."""

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
    """Hold the vectors of a test set from one model."""

    model: str
    fingerprint: str
    dim: int
    collection: str | None
    rows: Mapping[Modality, Vectors]
    present: NDArray[np.bool_]
    """Mask of the images that have a vector, in the order of the test set."""


def embed_test_set(
    stores: Stores, settings: Settings, encoder: Encoder, test_set: TestSet, progress: Progress
) -> EmbeddedTestSet:
    """Encode the texts of a test set, and images without stored vectors."""
    texts, images = test_set.texts, test_set.images
    rows = [np.empty((0, encoder.dim), np.float32)]
    for start in range(0, len(texts), CHUNK):
        rows.append(encoder.texts(texts[start : start + CHUNK]))
        progress(f"{encoder.name}: texts", start + len(rows[-1]), len(texts))
    collection = _collection_of(stores, encoder)
    vectors, present = np.zeros((len(images), encoder.dim), np.float32), np.zeros(len(images), bool)
    with Workers(encoder.preparation, settings.decode_workers) as workers:
        chunks = (
            _ImageChunk.begin(stores, settings, workers, collection, start, images[start : start + CHUNK])
            for start in range(0, len(images), CHUNK)
        )
        with prefetch(chunks) as ready:
            for chunk in ready:
                for place, vector in chunk.vectors(encoder):
                    vectors[place], present[place] = vector, True
                progress(f"{encoder.name}: images", chunk.start + len(chunk.images), len(images))
    by_side: dict[Modality, Vectors] = {"texts": np.concatenate(rows), "images": vectors}
    return EmbeddedTestSet(encoder.name, encoder.fingerprint, encoder.dim, collection, by_side, present)


def _collection_of(stores: Stores, encoder: Encoder) -> str | None:
    """Return the collection of the model, if recorded and present."""
    name = qdrant.collection_name(encoder.fingerprint)
    with stores.sessions() as session:
        known = {one.name for one in model_registry.known_collections(session)}
    return name if name in known and stores.vectors.collection_exists(name) else None


@dataclass(frozen=True, slots=True)
class _ImageChunk:
    """Hold some images with their stored vectors, or while they are decoded."""

    start: int
    images: Sequence[EvaluationImage]
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
        images: Sequence[EvaluationImage],
    ) -> "_ImageChunk":
        wanted = {image.id: image.content_hash for image in images if image.id and image.content_hash}
        known = {} if collection is None else qdrant.image_vectors_of(stores.vectors, collection, wanted)
        origins = {number: image.origin for number, image in enumerate(images) if image.id not in known}
        decoding = decode_many(
            workers, origins, lambda number, _: _bytes_of(stores, settings, images[number])
        )
        return cls(start, images, known, decoding)

    def vectors(self, encoder: Encoder) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield available vectors with the positions of their images."""
        prepared = {}
        for number, future in self.decoding.items():
            try:
                prepared[number] = future.result().features
            except BadImage:
                continue  # it is counted as left out
        made = encoder.encode_prepared(list(prepared.values()))
        yield from ((self.start + number, row) for number, row in zip(prepared, made, strict=True))
        for number, image in enumerate(self.images):
            if image.id in self.known:
                yield self.start + number, self.known[image.id]


def _bytes_of(stores: Stores, settings: Settings, image: EvaluationImage) -> bytes | None:
    if image.sha256 is not None:
        return load_image(stores, image.sha256, image.origin, settings.limits)
    try:
        return fetch_image(image.origin, settings.limits)
    except FetchError:
        return None
