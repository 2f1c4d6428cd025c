"""What packed and shortened vectors cost in recall: the ten nearest of each query, beside an exact search.

The gallery is captions that the starter encodes, so that its vectors lie as real ones do; the index has its
graph. The starter was not trained to be shortened, so its figures for that are what one must not expect to
be better than.
"""

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from embedding.encoders.sentence_encoder import Encoder, load_encoder
from embedding.encoders.starter import class_texts
from storage import qdrant
from storage.embedded.qdrant.process.client import index_client
from storage.qdrant import Quantization
from tests.bench.material import Row, a_point, scratch

POINTS = 20_000
QUERIES = 200
LIMIT = 10
BATCH = 1024
WAYS: tuple[tuple[Quantization, int | None], ...] = (
    ("none", None),
    ("int8", None),
    ("turbo", None),
    ("product", None),
    ("binary", None),
    ("none", 192),
    ("none", 96),
)
OVERSAMPLING = (1.0, 3.0, 10.0)


def run() -> Iterator[Row]:
    """Yield recall@10 against exact search, and the time of a search, for each way of a first look."""
    encoder = load_encoder("starter")
    names = [caption.removeprefix("a photo of a ") for caption, _ in class_texts()]
    pairs = np.random.default_rng(0).integers(0, len(names), (POINTS + QUERIES, 2))
    rows = encode(encoder, [f"a {names[one]} beside a {names[other]}" for one, other in pairs])
    gallery, queries = rows[:POINTS], rows[POINTS:]
    nearest = np.argsort(-(queries @ gallery.T), axis=1)[:, :LIMIT]
    for quantization, short_dim in WAYS:
        with scratch() as folder, index_client(folder / "home", timeout_s=600) as client:
            collection = fill(client, gallery, quantization, short_dim)
            for oversampling in (1.0,) if (quantization, short_dim) == ("none", None) else OVERSAMPLING:
                yield measure(client, collection, queries, nearest, oversampling)


def encode(encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    return np.concatenate(
        [encoder.texts(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    )


def fill(
    client: QdrantClient, gallery: NDArray[np.float32], quantization: Quantization, short_dim: int | None
) -> qdrant.Collection:
    """Make the collection, and wait until its graph is built."""
    name = qdrant.create_collection(
        client,
        model="starter",
        fingerprint="bench",
        dim=gallery.shape[1],
        filter_fields={},
        quantization=quantization,
        short_dim=short_dim,
    )
    qdrant.activate(client, name)
    collection = qdrant.describe(client, name)
    client.update_collection(name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1000))
    numbers = iter(range(len(gallery)))
    while some := list(islice(numbers, BATCH)):
        qdrant.upsert(client, collection, [a_point(number, gallery[number]) for number in some])
    spaces = 1 if short_dim is None else 2
    while (client.get_collection(name).indexed_vectors_count or 0) < spaces * len(gallery):
        time.sleep(1)
    return collection


def measure(
    client: QdrantClient,
    collection: qdrant.Collection,
    queries: NDArray[np.float32],
    nearest: NDArray[np.int64],
    oversampling: float,
) -> Row:
    found_share, seconds = [], []
    for query, wanted in zip(queries, nearest, strict=True):
        start = time.perf_counter()
        hits = qdrant.search_points(
            client, collection, query, using="image", limit=LIMIT, oversampling=oversampling
        )
        seconds.append(time.perf_counter() - start)
        found = {int(hit.point.key) for hit in hits}
        found_share.append(len(found & set(wanted.tolist())) / LIMIT)
    return {
        "packed": collection.quantization,
        "first look": f"{collection.short_dim or collection.dim} of {collection.dim}",
        "oversampling": oversampling,
        "recall@10": round(float(np.mean(found_share)), 4),
        "p50 ms": round(1000 * float(np.median(seconds)), 1),
    }
