"""Graphs are built beside the collection and switched to without loss or remains."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from storage.embedded.qdrant.engine import graphs
from storage.embedded.qdrant.engine.collection import Collection
from storage.embedded.qdrant.engine.graphs import BuildFailed, CollectionChanged, Graphs, build, is_due
from storage.embedded.qdrant.engine.store import Store
from storage.embedded.qdrant.engine.target import Target
from storage.embedded.qdrant.process.client import index_client
from storage.embedded.qdrant.process.discovery import find
from storage.embedded.qdrant.protocol import reads, writes
from storage.embedded.qdrant.protocol.query import query_points
from tests.support.embedded_points import INDEXES, POINTS, SPACES, V, some_points, value_is
from tests.support.processes import wait_until

pytestmark = pytest.mark.services

NAME = "points"
CONFIG = models.CreateCollection(vectors=dict(SPACES.dense), sparse_vectors=dict(SPACES.sparse))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def collection(store: Store) -> Collection:
    """Points with dense vectors, multivectors and sparse ones, some without."""
    store.create(NAME, CONFIG)
    for field, schema in INDEXES.items():
        store.create_index(NAME, models.CreateFieldIndex(field_name=field, field_schema=schema))
    collection = store.get(NAME)
    upsert(collection, POINTS)
    return collection


def upsert(collection: Collection, points: list[models.PointStruct]) -> None:
    collection.apply(writes.upsert(models.PointsList(points=points), collection.spaces))


def delete(collection: Collection, ids: list[Any]) -> None:
    collection.apply(writes.delete(models.PointIdsList(points=ids), collection.spaces))


def held(collection: Collection) -> dict[Any, Any]:
    request = models.ScrollRequest(limit=10_000, with_vector=True, with_payload=True)
    found = reads.scroll(request, Target(collection.shard, collection.spaces))
    return {point.id: point for point in found.points}


def nearest(collection: Collection, using: str = "cos") -> list[Any]:
    request = models.QueryRequest(
        query=V, using=using, limit=20, filter=models.Filter(must=[value_is("ok", True)])
    )
    found = query_points(request, Target(collection.shard, collection.spaces), lambda _: None)
    return [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in found]


def folders(store: Store) -> list[str]:
    return sorted(path.name for path in store.shards.iterdir())


def during(work: Awaitable[int], act: Callable[[], object]) -> int | BaseException:
    """Run `work`, and call `act` at each wait; return result or error."""

    async def run() -> int | BaseException:
        task = asyncio.ensure_future(work)
        await asyncio.sleep(0.002)
        while not task.done():
            act()
            await asyncio.sleep(0.002)
        return task.exception() or task.result()

    return asyncio.run(run())


def test_a_graph_holds_what_the_collection_held_and_finds_the_same(store: Store, collection: Collection):
    before, ranking, old = held(collection), nearest(collection), folders(store)
    indexed = collection.info().indexed_vectors_count

    assert asyncio.run(build(store, collection)) == len(POINTS)

    assert held(collection) == before
    assert nearest(collection) == ranking
    assert collection.info().indexed_vectors_count > indexed
    assert collection.info().payload_schema.keys() == INDEXES.keys()
    assert folders(store) != old
    assert len(folders(store)) == 1


def test_what_is_written_and_deleted_meanwhile_is_there_and_gone(store: Store, collection: Collection):
    expected = {point.id: point.payload for point in POINTS}
    todo = cycle(some_points(seed=9, n=400))
    changes = count()

    def act() -> None:
        point, gone = next(todo), POINTS[next(changes) % 100].id
        upsert(collection, [point])
        expected[point.id] = point.payload
        delete(collection, [gone])
        expected.pop(gone, None)
        assert collection.points == len(expected)

    points = during(build(store, collection), act)

    assert next(changes) > 10, "nothing was written meanwhile"
    assert {id: point.payload for id, point in held(collection).items()} == expected
    assert points == len(expected)


def test_the_changes_of_the_last_moment_are_not_lost(
    store: Store, collection: Collection, monkeypatch: pytest.MonkeyPatch
):
    last = models.PointStruct(id=10**6, vector={"cos": V}, payload={"n": 1})
    require_current = graphs._require_current

    def just_before_the_switch(*given: Any) -> None:
        if collection.stored.folder in folders(store):
            upsert(collection, [last])
        require_current(*given)

    monkeypatch.setattr(graphs, "_require_current", just_before_the_switch)

    asyncio.run(build(store, collection))

    assert held(collection)[last.id].payload == {"n": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.delete(NAME),
        lambda store: store.create_index(
            NAME, models.CreateFieldIndex(field_name="new", field_schema=models.PayloadSchemaType.KEYWORD)
        ),
        lambda store: store.delete_vector(NAME, "l1"),
        lambda store: store.update(NAME, models.UpdateCollection(metadata={"a": 1})),
    ],
)
def test_a_graph_of_what_has_changed_its_shape_is_given_up(
    store: Store, collection: Collection, change: Callable[[Store], object]
):
    todo = iter([change])

    outcome = during(build(store, collection), lambda: next(todo, lambda _: None)(store))

    assert isinstance(outcome, CollectionChanged)
    assert folders(store) == [store.get(name).stored.folder for name in store.names]


def test_the_collection_goes_on_when_the_process_that_builds_is_killed(store: Store, collection: Collection):
    before = held(collection)

    outcome = during(build(store, collection), lambda: kill_children(os.getpid(), "process.graph_builder"))

    assert isinstance(outcome, BuildFailed)
    assert held(collection) == before
    assert folders(store) == [collection.stored.folder]
    upsert(collection, some_points(seed=9, n=5))
    assert asyncio.run(build(store, collection)) == len(POINTS)


def kill_children(parent: int, named: str) -> int:
    """SIGKILL the children of `parent` that run a module; return their number."""
    killed = 0
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            is_child = f"\nPPid:\t{parent}\n" in (path / "status").read_text()
            if is_child and f"storage.embedded.qdrant.{named}" in (path / "cmdline").read_text():
                os.kill(int(path.name), signal.SIGKILL)
                killed += 1
    return killed


@pytest.mark.full
def test_a_graph_is_due_once_much_was_written_and_it_is_quiet(
    store: Store, collection: Collection, monkeypatch: pytest.MonkeyPatch
):
    assert not is_due(collection)

    threshold = models.OptimizersConfigDiff(indexing_threshold=collection.ungraphed_bytes // 1024)
    store.update(NAME, models.UpdateCollection(optimizers_config=threshold))
    assert not is_due(collection), "someone is writing just now"
    monkeypatch.setattr(graphs, "QUIET_S", -1)
    assert is_due(collection)

    asyncio.run(build(store, collection))
    assert not is_due(collection)
    upsert(collection, POINTS[: len(POINTS) // 10])
    assert not is_due(collection), "a tenth is not worth it"

    never = models.OptimizersConfigDiff(indexing_threshold=0)
    store.update(NAME, models.UpdateCollection(optimizers_config=never))
    upsert(collection, POINTS * 5)
    assert not is_due(collection)


def test_a_failed_build_is_told_and_not_tried_again_at_once(
    store: Store, collection: Collection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    tries = []

    async def fails(*_: object) -> int:
        tries.append(1)
        raise BuildFailed("the disk is full")

    monkeypatch.setattr(graphs, "build", fails)
    monkeypatch.setattr(graphs, "CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(graphs, "is_due", lambda _: True)

    async def a_while() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(Graphs(store).build_when_due(), timeout=0.3)

    asyncio.run(a_while())

    assert len(tries) == 1
    assert "points: no graph (the disk is full); searches go on without" in caplog.text
    assert collection.points == len(POINTS)


@pytest.mark.full  # graphs are built in the process of the test anyway
def test_an_owner_builds_by_itself_and_survives_a_kill_in_the_middle(home: Path):
    rng = np.random.default_rng(0)
    with index_client(home, timeout_s=30) as client:
        client.create_collection(
            NAME,
            vectors_config=models.VectorParams(size=64, distance=models.Distance.COSINE),
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=100),
        )
        rows = rng.normal(size=(3000, 64))
        columns = models.Batch(ids=list(range(len(rows))), vectors=rows.tolist())
        client.upsert(NAME, columns)
        wait_until(lambda: client.get_collection(NAME).status == "yellow")
        os.kill(find(home).pid, signal.SIGKILL)
        wait_until(lambda: find(home) is None)

        assert client.count(NAME).count == len(rows)
        wait_until(lambda: client.get_collection(NAME).indexed_vectors_count == len(rows))

        assert client.get_collection(NAME).status == "green"
        assert client.query_points(NAME, rows[7].tolist(), limit=1).points[0].id == 7
        assert len(list((home / "qdrant" / "shards").iterdir())) == 1


def test_files_that_a_killed_process_left_unfinished_are_removed_at_the_next_start(tmp_path: Path):
    Store(tmp_path).close()
    (tmp_path / "aside").mkdir()
    left = [tmp_path / ".collections.json.x.part", tmp_path / "aside" / ".shard-from-3.log.y.part"]
    for path in left:
        path.write_bytes(b"ha")

    Store(tmp_path).close()

    assert not any(path.exists() for path in left)
