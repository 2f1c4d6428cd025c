"""Build HNSW graphs in a separate process, and switch to them atomically.

A search scans the vectors outside a graph, 10 ms for 100,000 vectors of 512 dimensions, so small collections
need none. Building takes minutes and would block the engine, so another process makes a new shard: it is sent
every point in slices, builds the graph, is sent later changes, and closes. The last changes are then applied
here, and the collection switches to the new shard's folder.
"""

import asyncio
import logging
import pickle
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import EngineFault, engine_errors
from storage.embedded.qdrant.engine.collection import Collection
from storage.embedded.qdrant.engine.state import CollectionState
from storage.embedded.qdrant.engine.store import Store
from storage.embedded.qdrant.process.graph_builder import DONE, LENGTH, Row, copy
from storage.embedded.qdrant.protocol.config import OPTIMIZERS, with_defaults
from storage.embedded.qdrant.protocol.config_changes import changes_modifier
from storage.embedded.qdrant.protocol.errors import Conflict, RequestError
from storage.embedded.qdrant.protocol.vectors import rest_id
from storage.embedded.qdrant.protocol.writes import PointId
from storage.errors import SightlineError

SLICE = 200
CHECK_INTERVAL_S = 2.0
QUIET_S = 10.0
RETRY_S = 300.0
NOT_WAITING_FOR_QUIET = 3
REBUILD_SHARE = 0.2
LAST_CHANGES = 1000
NO_CHANGES: Mapping[str, Any] = {}
log = logging.getLogger("sightline.qdrant")


class BuildFailed(SightlineError):
    """Report that the build process ended early."""


class CollectionChanged(SightlineError):
    """Report that the collection was deleted or altered during a build."""


class Graphs:
    """Build the graphs of a store's collections, one at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._not_before: dict[str, float] = {}

    async def build_when_due(self) -> None:
        """Build due graphs, forever."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            for collection in self._store.open_collections():
                if is_due(collection) and time.monotonic() > self._not_before.get(collection.name, 0):
                    await self._try(collection)

    async def _try(self, collection: Collection) -> None:
        started = time.monotonic()
        try:
            points = await build(self._store, collection)
            log.info(
                "%s: a graph over %d points in %.0f s", collection.name, points, time.monotonic() - started
            )
        except CollectionChanged:
            log.info("%s: it changed while its graph was built; started again later", collection.name)
        except (BuildFailed, EngineFault, RequestError, OSError) as error:
            self._not_before[collection.name] = time.monotonic() + RETRY_S
            log.error("%s: no graph (%s); searches go on without; tried again later", collection.name, error)


def is_due(collection: Collection) -> bool:
    """Return whether a graph is worth building and writes have paused."""
    threshold = with_defaults(OPTIMIZERS, collection.stored.config.optimizers_config).indexing_threshold or 0
    if threshold <= 0:  # as on a server, 0 turns graphs off
        return False
    open_bytes, graphed = collection.ungraphed_bytes, collection.stored.graph_points
    is_much = open_bytes >= threshold * 1024 and collection.ungraphed_points >= REBUILD_SHARE * graphed
    quiet_s = time.monotonic() - collection.last_write_s
    return is_much and (quiet_s > QUIET_S or open_bytes >= NOT_WAITING_FOR_QUIET * threshold * 1024)


async def update_collection(store: Store, name: str, change: models.UpdateCollection) -> bool:
    """Change the configuration of a collection.

    The engine fixes the modifier of a sparse vector when it creates a shard: where that changes, the points
    are copied to another one.

    Raises:
        Conflict: the collection was deleted or altered meanwhile.
    """
    collection = store.get(name)
    fields = store.updated_fields(collection, change)
    if not changes_modifier(collection.stored.config, fields["config"]):
        store.update(name, change)
        return True
    has_graph = collection.stored.graph_points > 0
    try:
        async with (
            collection.replicating,
            replica(
                store, collection, has_graph=has_graph, fields=store.updated_fields(collection, change)
            ) as stored,
        ):
            store.adopt(collection.name, stored)
    except (CollectionChanged, BuildFailed) as error:
        raise Conflict(f"not updated: {error or 'the collection changed meanwhile'}; try again") from error
    return True


async def build(store: Store, collection: Collection) -> int:
    """Build a collection's graph and switch to it; return its points.

    Raises:
        CollectionChanged: the collection was deleted or its schema was changed meanwhile.
        BuildFailed: the other process ended early.
    """
    async with collection.replicating, replica(store, collection, has_graph=True) as stored:
        store.adopt(collection.name, stored)
    return stored.graph_points


@asynccontextmanager
async def replica(
    store: Store, collection: Collection, *, has_graph: bool, fields: Mapping[str, Any] = NO_CHANGES
) -> AsyncIterator[CollectionState]:
    """Copy a collection to new files that are consistent when yielded.

    They are removed on the way out, unless the store has adopted them. The caller holds
    `collection.replicating`.

    Args:
        store: the collections.
        collection: the source of the points.
        has_graph: whether a graph is built over them.
        fields: changes of the state that the new files are created by.

    Raises:
        CollectionChanged: the collection was deleted or its schema was changed meanwhile.
        BuildFailed: the other process ended early.
    """
    if not store.holds(collection):
        raise CollectionChanged
    stored = collection.stored.model_copy(update={**fields, "folder": uuid4().hex, "graph_points": 0})
    path = store.shards / stored.folder
    changed: set[PointId] = set()
    collection.changed = changed
    try:
        store.new_files(stored)
        async with _builder(str(path)) as builder:
            await builder.send_all(collection, changed)
            await builder.send_changed(collection, changed)
            if has_graph:
                await builder.request("optimize")
                await builder.send_changed(collection, changed)
            await builder.request("flush")
            await builder.request("close")
        _require_current(collection, changed)
        points = _catch_up(path, collection, changed)
        collection.changed = None
        yield stored.model_copy(update={"graph_points": points if has_graph else 0})
    finally:
        if collection.changed is changed:
            collection.changed = None
        if collection.stored.folder != stored.folder:
            shutil.rmtree(path, ignore_errors=True)


def _catch_up(path: Path, collection: Collection, changed: set[PointId]) -> int:
    """Apply the last changes to the new shard; return its points.

    No write comes in between, since this does not await.
    """
    with engine_errors():
        shard = edge.EdgeShard.load(str(path))
        for ids in _slices(changed):
            copy(shard, read_rows(collection.shard, ids), ids)
        shard.flush()
        points = int(shard.info().points_count)
        shard.close()
    if points != collection.points:
        raise BuildFailed(f"the new shard holds {points} points, the old one {collection.points}")
    return points


def _require_current(collection: Collection, changed: set[PointId]) -> None:
    if collection.changed is not changed:
        raise CollectionChanged


def _slices(ids: set[PointId]) -> Iterator[list[PointId]]:
    """Remove `ids` in slices, until none is left."""
    while ids:
        taken = list(islice(ids, SLICE))
        ids.difference_update(taken)
        yield taken


@asynccontextmanager
async def _builder(path: str) -> AsyncIterator["_Builder"]:
    """Run the process that builds the shard at `path`."""
    module = "storage.embedded.qdrant.process.graph_builder"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        module,
        path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield _Builder(process)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()


class _Builder:
    """Control the process of the new shard, one command at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def request(self, *call: object) -> None:
        """Send a command and wait until it is done.

        Raises:
            BuildFailed: the process has ended instead.
        """
        message = pickle.dumps(call, protocol=pickle.HIGHEST_PROTOCOL)
        pipe, replies = self._process.stdin, self._process.stdout
        if pipe is None or replies is None:
            raise BuildFailed("no pipe to the process that builds")
        try:
            pipe.write(LENGTH.pack(len(message)) + message)
            await pipe.drain()
            await replies.readexactly(len(DONE))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            status = await self._process.wait()
            raise BuildFailed(f"the process that builds ended with status {status}") from error

    async def send_all(self, collection: Collection, changed: set[PointId]) -> None:
        """Send every point by id; points written meanwhile stay in `changed`."""
        offset: PointId | None = None
        while True:
            _require_current(collection, changed)
            request = edge.ScrollRequest(offset=offset, limit=SLICE, with_payload=False, with_vector=False)
            with engine_errors():
                page, following = collection.shard.scroll(request)
            ids = [rest_id(point.id) for point in page]
            await self.request("copy", read_rows(collection.shard, ids), ids)
            if following is None:
                return
            offset = rest_id(following)

    async def send_changed(self, collection: Collection, changed: set[PointId]) -> None:
        """Send changed points until few are left, while more may change."""
        while len(changed) > LAST_CHANGES:
            for ids in _slices(changed):
                _require_current(collection, changed)
                await self.request("copy", read_rows(collection.shard, ids), ids)


def read_rows(shard: edge.EdgeShard, ids: Sequence[PointId]) -> list[Row]:
    """Read the existing points of `ids`."""
    with engine_errors():
        found = shard.retrieve(list(ids), with_payload=True, with_vector=True)
    return [(rest_id(point.id), _plain(point.vector), point.payload) for point in found]


def _plain(vector: object) -> object:
    """Convert vectors to a picklable form."""
    if isinstance(vector, dict):
        return {name: _plain(part) for name, part in vector.items()}
    return (vector.indices, vector.values) if isinstance(vector, edge.SparseVector) else vector
