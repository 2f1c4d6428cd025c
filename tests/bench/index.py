"""How fast is the embedded index, beside qdrant-client's local mode and the engine without its REST hop?

All go through `QdrantClient`, one after another in one run, with the same vectors, payloads and queries.
Vectors are random, so this says nothing about how many of the nearest a graph finds.
"""

import gc
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from storage.embedded.qdrant.engine.store import Store
from storage.embedded.qdrant.process.client import index_client, stop
from storage.embedded.qdrant.process.discovery import folder_of

LOCAL_SIZES = (5_000, 50_000)
EMBEDDED_SIZES = (5_000, 50_000, 200_000)
DIM = 512
BATCH = 256
SHELVES = 100
LIMIT = 10
QUERIES = 200
SLOW_QUERIES = 30
NAME = "bench"
SHELF = models.Filter(must=[models.FieldCondition(key="shelf", match=models.MatchValue(value=7))])
CHUNK = 8 * BATCH
HEADER = (
    f"{'points':>8} {'index':<9} {'points/s':>9} {'2 threads':>10} {'query p50':>10} {'p99':>7} "
    f"{'filtered p50':>13} {'p99':>7}"
)


def main() -> None:
    warnings.simplefilter("ignore")  # local mode says of itself that it is slow
    print(
        f"{DIM} dimensions, {BATCH} points a request, the {LIMIT} nearest, a filter that keeps 1 in {SHELVES}"
    )
    print(f"times in ms\n\n{HEADER}")
    for points in EMBEDDED_SIZES:
        with scratch() as folder:
            if points in LOCAL_SIZES:
                local = QdrantClient(path=str(folder / "local"))
                measure("local", local, points, queries=SLOW_QUERIES, threads=1)
                local.close()
            with index_client(folder, timeout_s=60) as client:
                measure("embedded", client, points, queries=QUERIES, threads=2)
                if points == EMBEDDED_SIZES[-1]:
                    measure_graph(client, points)
            stop(folder)
            measure_engine(folder, points)


def measure(label: str, client: QdrantClient, points: int, *, queries: int, threads: int) -> None:
    """Fill a collection with one thread, then with `threads`; search it; print a row."""
    rates = []
    for streams in range(1, threads + 1):
        make(client)
        rates.append(f"{points / fill(client, points, streams):,.0f}")
    plain, filtered = searches(client, queries)
    row(points, label, rates, plain, filtered)


def measure_graph(client: QdrantClient, points: int) -> None:
    """Search and write while the graph is built, then search with it."""
    while status(client) is not models.CollectionStatus.YELLOW:
        time.sleep(0.5)  # it waits until nobody writes
    begun = time.perf_counter()
    rng = np.random.default_rng(2)
    query_s, write_s = [], []
    while status(client) is models.CollectionStatus.YELLOW:
        query_s += timed(lambda: search(client, unit(rng, 1)[0]), 10)
        write_s += timed(lambda: client.upsert(NAME, batch(rng, 0, BATCH)), 1)
        time.sleep(0.1)
    seconds = time.perf_counter() - begun
    plain, filtered = searches(client, QUERIES)
    row(points, "+ graph", [], plain, filtered)
    print(
        f"\nthe graph took {seconds:.0f} s; meanwhile the slowest of {len(query_s):,} searches took "
        f"{1000 * max(query_s):.0f} ms, the slowest of {len(write_s):,} writes {1000 * max(write_s):.0f} ms\n"
    )


def status(client: QdrantClient) -> models.CollectionStatus:
    return client.get_collection(NAME).status


def measure_engine(home: Path, points: int) -> None:
    """Ask the engine in this process what the embedded index was asked: the difference is the REST hop."""
    store = Store(folder_of(home))
    shard = store.get(NAME).shard
    condition = edge.FieldCondition("shelf", match=edge.MatchValue(7))

    def ask(vector: NDArray[np.float32], where: edge.Filter | None) -> None:
        query = edge.Query.Nearest(vector.tolist(), using="image")
        shard.query(edge.QueryRequest(query=query, limit=LIMIT, filter=where, with_payload=True))

    rng = np.random.default_rng(1)
    plain = timed(lambda: ask(unit(rng, 1)[0], None), QUERIES)
    filtered = timed(lambda: ask(unit(rng, 1)[0], edge.Filter(must=[condition])), QUERIES)
    row(points, "no hop", [], plain, filtered)
    store.close()


def make(client: QdrantClient) -> None:
    client.delete_collection(NAME)
    image = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection(NAME, vectors_config={"image": image})
    client.create_payload_index(NAME, "shelf", models.PayloadSchemaType.INTEGER)


def fill(client: QdrantClient, points: int, threads: int) -> float:
    """Return the seconds that the upserts took; making the points is not in them."""
    rng = np.random.default_rng(0)
    seconds = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, points, CHUNK):
            end = min(start + CHUNK, points)
            made = [batch(rng, first, min(BATCH, end - first)) for first in range(start, end, BATCH)]
            begun = time.perf_counter()
            list(pool.map(lambda points: client.upsert(NAME, points), made))
            seconds += time.perf_counter() - begun
    return seconds


def batch(rng: np.random.Generator, start: int, count: int) -> list[models.PointStruct]:
    rows = unit(rng, count).tolist()
    return [
        models.PointStruct(
            id=start + row, vector={"image": vector}, payload={"key": f"{row}.png", "shelf": row % SHELVES}
        )
        for row, vector in enumerate(rows)
    ]


def unit(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    rows = rng.normal(size=(count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def searches(client: QdrantClient, queries: int) -> tuple[list[float], list[float]]:
    """Return the seconds that each search took, without a filter and with one."""
    rng = np.random.default_rng(1)
    plain = timed(lambda: search(client, unit(rng, 1)[0]), queries)
    return plain, timed(lambda: search(client, unit(rng, 1)[0], SHELF), queries)


def search(client: QdrantClient, vector: NDArray[np.float32], where: models.Filter | None = None) -> None:
    found = client.query_points(NAME, vector.tolist(), using="image", limit=LIMIT, query_filter=where)
    assert len(found.points) == LIMIT


def timed(act: Callable[[], object], times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begun)
    return seconds


def row(points: int, label: str, rates: list[str], plain: list[float], filtered: list[float]) -> None:
    one, two = (*rates, "", "")[:2]
    print(
        f"{points:>8,} {label:<9} {one:>9} {two:>10} {ms(plain, 50):>10} {ms(plain, 99):>7} "
        f"{ms(filtered, 50):>13} {ms(filtered, 99):>7}",
        flush=True,
    )


def ms(seconds: list[float], percentile: int) -> str:
    return f"{1000 * statistics.quantiles(seconds, n=100, method='inclusive')[percentile - 1]:.2f}"


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder whose index has stopped and whose files are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sightline-bench-"))
    try:
        yield folder
    finally:
        stop(folder)
        shutil.rmtree(folder)
        gc.collect()


if __name__ == "__main__":
    main()
