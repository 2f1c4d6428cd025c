"""One collection: the engine's shard, opened on first use, and what changed in it since when."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.config import bytes_per_point, described, engine_config, spaces_of
from storage.embedded.qdrant.engine import engine_errors, to_engine
from storage.embedded.qdrant.spaces import Spaces
from storage.embedded.qdrant.state import Stored
from storage.embedded.qdrant.writes import PointId, Write, require_points

FLUSH_AFTER_POINTS = 20_000
FLUSH_AFTER_S = 5.0
PAGE = 10_000


class Collection:
    """A collection that is open. Not for several threads: the engine takes one call at a time anyway."""

    def __init__(self, name: str, stored: Stored, shards: Path) -> None:
        self.name = name
        self.stored = stored
        self.spaces: Spaces = spaces_of(stored.config)
        self.path = shards / stored.folder
        self.changed: set[PointId] | None = None
        """The points written to since a graph was begun; None while none is being built."""

        self.replicating = asyncio.Lock()
        """Held by whoever copies all points, for a graph or a snapshot."""

        self.last_write_s = time.monotonic()
        self._shard: edge.EdgeShard | None = None
        self._written = 0
        self._unflushed = 0

    @staticmethod
    def create_files(path: Path, stored: Stored) -> None:
        """Make the empty shard of a collection, with its payload indexes."""
        path.mkdir(parents=True)
        with engine_errors():
            shard = edge.EdgeShard.create(str(path), engine_config(stored.config))
            for field, schema in stored.payload_schema.items():
                shard.update(edge.UpdateOperation.create_field_index(field, to_engine(schema)))
            shard.flush()
            shard.close()

    @property
    def shard(self) -> edge.EdgeShard:
        """The engine's shard. Opening it repeats what its write-ahead log holds and a kill left undone."""
        if self._shard is None:
            shutil.rmtree(self.path / "temp_segments", ignore_errors=True)
            with engine_errors():
                self._shard = edge.EdgeShard.load(str(self.path))
            held = self._shard.info().points_count
            self._written = max(held - self.stored.graph_points, 0)
        return self._shard

    @property
    def points(self) -> int:
        """How many points there are, exactly."""
        return int(self.shard.info().points_count)

    @property
    def ungraphed_bytes(self) -> int:
        """How much of the vectors no graph covers: a search scans it. Deletes and repeats count as well."""
        return max(self._written, 0) * bytes_per_point(self.spaces)

    @property
    def ungraphed_points(self) -> int:
        """How many points were written since the graph was built."""
        return self._written

    def apply(self, writes: Sequence[Write]) -> None:
        """Carry out `writes`, all of which were checked; each is in the write-ahead log when this returns.

        Raises:
            NotFound: a point that must be there is not; nothing was written.
        """
        require_points(self.shard, writes)
        for write in writes:
            touched = self._touched(write)
            with engine_errors():
                self.shard.update(write.operation)
            self._written += len(touched)
            self._unflushed += len(touched)
            self.last_write_s = time.monotonic()

    def alter(self, operation: edge.UpdateOperation) -> None:
        """Carry out a change of the schema, and sync it: the state on disk is to name it next."""
        with engine_errors():
            self.shard.update(operation)
        self._unflushed += 1
        self.flush()

    def flush_if_due(self) -> None:
        """Sync what was written, if that is much or some time ago."""
        is_old = time.monotonic() - self.last_write_s > FLUSH_AFTER_S
        if is_old or self._unflushed >= FLUSH_AFTER_POINTS:
            self.flush()

    def flush(self) -> None:
        """Sync what was written to the disk, so that the write-ahead log can be cut short."""
        if self._shard is not None and self._unflushed:
            with engine_errors():
                self._shard.flush()
            self._unflushed = 0

    def close(self) -> None:
        """Sync and close; the next use opens it again."""
        if self._shard is not None:
            self.flush()
            with engine_errors():
                self._shard.close()
            self._shard = None

    def switch(self, stored: Stored, shards: Path) -> None:
        """Go over to the folder that `stored` names, which holds the same points, and open it."""
        self.close()
        self.stored = stored
        self.spaces = spaces_of(stored.config)
        self.path = shards / stored.folder
        self.changed = None
        _ = self.shard

    def info(self) -> models.CollectionInfo:
        """Return counts, configuration and payload indexes; yellow while a graph is being built."""
        status = models.CollectionStatus.GREEN if self.changed is None else models.CollectionStatus.YELLOW
        shard = self.shard.info()
        return described(self.stored.config, shard, self.stored.payload_schema, status=status)

    def _touched(self, write: Write) -> Sequence[PointId]:
        touched = write.ids if write.where is None else self.ids(write.where)
        if self.changed is not None:
            self.changed.update(touched)
        return touched

    def ids(self, where: edge.Filter | None) -> list[PointId]:
        """Return the ids of all points that `where` matches, in the engine's order."""
        found: list[PointId] = []
        offset = None
        while True:
            request = edge.ScrollRequest(
                offset=offset, limit=PAGE, filter=where, with_payload=False, with_vector=False
            )
            with engine_errors():
                page, offset = self.shard.scroll(request)
            found += [point.id if isinstance(point.id, int) else str(point.id) for point in page]
            if offset is None:
                return found
