"""Upload and search through the whole of our code: points a second, and where the time of a search goes.

Vectors are random and of the starter's length; queries are texts that the starter encodes.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from random import Random

import numpy as np
from sqlalchemy import Engine, event

from embedding.encoders.sentence_encoder import unit_rows
from embedding.pipeline import Clock
from flows.config.settings import Qdrant, Settings
from flows.resources.collections import open_collection
from flows.resources.connections import Deps, open_deps
from flows.search.query import Query, search
from storage import qdrant
from storage.postgres import catalog
from storage.qdrant import Collection
from tests.bench.material import WORDS, Row, a_point, scratch
from tests.support.fakes import Within

SIZES = (1_000, 10_000, 100_000)
BATCH = 1024
SEARCHES = 200
SERVER = os.environ.get("SIGHTLINE_TEST_QDRANT_URL")


def run() -> Iterator[Row]:
    """Yield one line a size; on a server as well, where SIGHTLINE_TEST_QDRANT_URL names an empty one."""
    for kind, url in (("embedded", None), *([("server", SERVER)] if SERVER else [])):
        for size in SIZES:
            with scratch() as folder:
                settings = Settings(home=folder / "home", qdrant=Qdrant(url=url))
                with open_deps(settings) as deps:
                    yield measure(kind, deps, open_collection(deps, settings), size)
                    if url is not None:
                        for name in qdrant.list_collections(deps.vectors):
                            deps.vectors.delete_collection(name)


def measure(kind: str, deps: Deps, collection: Collection, size: int) -> Row:
    seconds = fill(deps, collection, size)
    random = Random(0)
    queries = [" ".join(random.choices(WORDS, k=4)) for _ in range(SEARCHES)]
    search(deps, Query(queries[0]))
    clock = Clock()
    watched = replace(
        deps,
        encoder=Within(deps.encoder, partial(clock, "model")),
        vectors=Within(deps.vectors, partial(clock, "Qdrant")),
    )
    with watched_sql(deps.engine, clock):
        wall = [timed(partial(search, watched, Query(query))) for query in queries]
    total = sum(wall)
    inside = clock.seconds
    return {
        "index": kind,
        "points": size,
        "upload, a second": round(size / seconds),
        "search p50 ms": round(1000 * float(np.percentile(wall, 50)), 1),
        "p99 ms": round(1000 * float(np.percentile(wall, 99)), 1),
        "in the model": f"{inside['model'] / total:.0%}",
        "in Qdrant": f"{inside['Qdrant'] / total:.0%}",
        "in Postgres": f"{inside['Postgres'] / total:.0%}",
        "elsewhere": f"{1 - sum(inside.values()) / total:.1%}",
    }


def fill(deps: Deps, collection: Collection, size: int) -> float:
    """Put `size` items into both stores; return the seconds that their points took."""
    rng = np.random.default_rng(0)
    numbers, seconds = iter(range(size)), 0.0
    while some := list(islice(numbers, BATCH)):
        rows = unit_rows(rng.standard_normal((len(some), collection.dim)))
        points = [
            a_point(number, row, f"picture number {number}") for number, row in zip(some, rows, strict=True)
        ]
        with deps.sessions.begin() as session:
            catalog.save_items(session, {one.item.id: (one.item, one.digest) for one in points})
        seconds += timed(partial(qdrant.upsert, deps.vectors, collection, points))
        with deps.sessions.begin() as session:
            catalog.mark_embedded(session, collection.name, {one.item.id: one.digest for one in points})
    return seconds


def timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


@contextmanager
def watched_sql(engine: Engine, clock: Clock) -> Iterator[None]:
    """Count the time between a statement's way out and its answer."""
    begun: list[float] = []

    def before(*_: object) -> None:
        begun.append(time.perf_counter())

    def after(*_: object) -> None:
        clock.seconds["Postgres"] += time.perf_counter() - begun.pop()

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "after_cursor_execute", after)
