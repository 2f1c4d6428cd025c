"""Open a collection's shard on demand, and track its writes."""

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine import log_salvage
from storage.embedded.qdrant.engine.bindings import EngineFault, engine_errors, to_engine
from storage.embedded.qdrant.engine.state import CollectionState
from storage.embedded.qdrant.protocol.config import (
    PLACEHOLDER,
    bytes_per_point,
    collection_info,
    engine_config,
    spaces_of,
)
from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.named_vectors import Spaces
from storage.embedded.qdrant.protocol.writes import PointId, Write, require_points

FLUSH_AFTER_POINTS = 20_000
FLUSH_AFTER_S = 5.0
PAGE = 10_000
ASIDE = "aside"
"""Folder beside the shards, for the unreadable parts of their logs."""

OPENING = "opening"
"""File in a shard's folder while the engine opens it; its presence marks a crash of the engine."""

log = logging.getLogger("sightline.qdrant")


class Collection:
    """Represent one open collection.

    It is not thread-safe: the engine takes one call at a time anyway.
    """

    def __init__(
        self,
        name: str,
        stored: CollectionState,
        shards: Path,
        save: Callable[[CollectionState], None] = lambda _: None,
    ) -> None:
        """Describe a collection; the shard is opened on first use.

        Args:
            name: its name in the state file.
            stored: its state on disk.
            shards: the folder of its files.
            save: writes a state that changes while it is opened.
        """
        self.name = name
        self.stored = stored
        self._save = save
        self.spaces: Spaces = spaces_of(stored.config, stored.payload_schema)
        self.path = shards / stored.folder
        self.changed: set[PointId] | None = None
        """Points written since a graph build started; None while none runs."""

        self.replicating = asyncio.Lock()
        """Held while all points are copied, for a graph or a snapshot."""

        self.last_write_s = time.monotonic()
        self._shard: edge.EdgeShard | None = None
        self._ungraphed = 0
        self._unflushed = 0

    @staticmethod
    def create_files(path: Path, stored: CollectionState) -> None:
        """Create an empty shard with its payload indexes."""
        path.mkdir(parents=True)
        with engine_errors():
            shard = edge.EdgeShard.create(str(path), engine_config(stored.config))
            if not stored.config.vectors and not stored.config.sparse_vectors:
                shard.update(edge.UpdateOperation.delete_vector_name(PLACEHOLDER))
            for field, schema in stored.payload_schema.items():
                shard.update(edge.UpdateOperation.create_field_index(field, to_engine(schema)))
            shard.flush()
            shard.close()

    @property
    def shard(self) -> edge.EdgeShard:
        """Return the engine's shard, opened on first use.

        Opening it replays the write-ahead log, so nothing acknowledged is lost by a kill.

        Raises:
            EngineFault: its files cannot be read; the message names the remedy.
        """
        if self._shard is None:
            self._shard = self._open()
            found = self._shard.info().points_count
            self._ungraphed = max(found - self.stored.graph_points, 0)
        return self._shard

    @property
    def points(self) -> int:
        """Return the exact number of points."""
        return int(self.shard.info().points_count)

    @property
    def ungraphed_bytes(self) -> int:
        """Return the size of the vectors outside the graph, in bytes.

        A search scans them. Deleted and repeated points count as well.
        """
        return max(self._ungraphed, 0) * bytes_per_point(self.spaces)

    @property
    def ungraphed_points(self) -> int:
        """Return the number of points written since the graph was built."""
        return self._ungraphed

    def apply(self, writes: Sequence[Write], *, wait: bool = True) -> None:
        """Apply checked writes; each is in the write-ahead log on return.

        Raises:
            NotFound: the client waits, and a point that must be there is not; nothing was written.
        """
        for write in require_points(self.shard, writes, wait=wait):
            touched = self._touched(write)
            with self._reopen_on_fault(), engine_errors():
                self.shard.update(write.operation)
            self._ungraphed += len(touched)
            self._unflushed += len(touched)
            self.last_write_s = time.monotonic()

    def alter(self, operation: edge.UpdateOperation) -> None:
        """Change the schema and sync it, before the state file names it.

        Earlier writes are synced first: the log could not be replayed over another schema.
        """
        self.flush()
        with self._reopen_on_fault(), engine_errors():
            self.shard.update(operation)
        self._unflushed += 1
        self.flush()

    def flush_if_due(self) -> None:
        """Sync pending writes if they are many or old."""
        is_old = time.monotonic() - self.last_write_s > FLUSH_AFTER_S
        if is_old or self._unflushed >= FLUSH_AFTER_POINTS:
            self.flush()

    def flush(self) -> None:
        """Sync pending writes to disk, so that the write-ahead log is truncated."""
        if self._shard is not None and self._unflushed:
            with engine_errors():
                self._shard.flush()
            self._unflushed = 0

    def close(self) -> None:
        """Sync and close the shard; the next use opens it again."""
        if self._shard is not None:
            self.flush()
            with engine_errors():
                self._shard.close()
            self._shard = None

    def reopen(self) -> None:
        """Drop the engine's shard in any state.

        The next use opens it again.
        """
        shard, self._shard, self._unflushed = self._shard, None, 0
        if shard is not None:
            with suppress(EngineFault, RequestError), engine_errors():
                shard.close()

    def switch(self, stored: CollectionState, shards: Path) -> None:
        """Switch to the folder in `stored`, which holds the same points."""
        self.close()
        self.stored = stored
        self.spaces = spaces_of(stored.config, stored.payload_schema)
        self.path = shards / stored.folder
        self.changed = None
        _ = self.shard

    def info(self) -> models.CollectionInfo:
        """Return counts, configuration and payload indexes.

        It is yellow while a graph is being built, and red when writes could not be read back from the log.
        """
        shard = self.shard.info()
        status = models.CollectionStatus.GREEN if self.changed is None else models.CollectionStatus.YELLOW
        return collection_info(
            self.stored.config,
            shard,
            self.stored.payload_schema,
            status=models.CollectionStatus.RED if self.stored.damage else status,
            damage=self.stored.damage,
        )

    @contextmanager
    def _reopen_on_fault(self) -> Iterator[None]:
        """Reopen the shard after a fault.

        The record of the failed write may stop the replay of its log.
        """
        try:
            yield
        except EngineFault:
            self.reopen()
            with suppress(EngineFault, RequestError):
                self._shard = self._open(has_failed=True)
            raise

    def _open(self, *, has_failed: bool = False) -> edge.EdgeShard:
        """Open the shard, after cutting its log if needed.

        Args:
            has_failed: whether the last record of the log is of a write that returned an error.
        """
        shutil.rmtree(self.path / "temp_segments", ignore_errors=True)
        opening = self.path / OPENING
        try:
            self._require_segments()
            is_deadly = opening.exists() and log_salvage.probe_failure(self.path) is not None
            if log_salvage.is_cut_unfinished(self.path) or is_deadly or log_salvage.is_damaged(self.path):
                self._cut_log(has_failed)
            opening.touch()
            try:
                shard = self._load()
            except (EngineFault, RequestError) as error:
                if log_salvage.is_machine_fault(str(error)):
                    raise
                self._cut_log(has_failed)
                shard = self._load()
            finally:
                opening.unlink(missing_ok=True)
        except (EngineFault, RequestError) as error:
            raise EngineFault(self._remedy(str(error))) from error
        return shard

    def _load(self) -> edge.EdgeShard:
        with engine_errors():
            return edge.EdgeShard.load(str(self.path))

    def _require_segments(self) -> None:
        # The engine would silently make an empty segment.
        segments = self.path / log_salvage.SEGMENTS
        if not segments.is_dir() or not any(segments.iterdir()):
            raise EngineFault(f"{segments} has no files")

    def _cut_log(self, has_failed: bool) -> None:
        cut = log_salvage.cut_log(self.path, self.path.parents[1] / ASIDE)
        file = cut.file.relative_to(self.path.parents[2])
        sentence = (
            f"record {cut.number} ({cut.kind}) of the write-ahead log could not be replayed. It and the "
            f"{cut.following} after it are kept in {file}, and the collection goes on without: "
            f"`sightline reconcile --repair` restores their points. The engine says: {cut.reason}"
        )
        if has_failed and not cut.following:
            log.warning("%s: %s (its request returned an error)", self.name, sentence)
        else:
            log.error("%s: %s", self.name, sentence)
            self.stored = self.stored.model_copy(update={"damage": sentence})
            self._save(self.stored)
        log_salvage.remove_cut_log(self.path)

    def _remedy(self, reason: str) -> str:
        if log_salvage.is_machine_fault(reason):
            return f"collection {self.name!r} cannot be opened: {reason}"
        return (
            f"collection {self.name!r} cannot be opened: put back a copy of its files, or delete it and make "
            f"it again with `sightline reindex`. All others go on working. Its files in {self.path} are left "
            f"as they are. The engine says: {reason}"
        )

    def _touched(self, write: Write) -> Sequence[PointId]:
        touched = write.ids if write.where is None else self.ids(write.where)
        if self.changed is not None:
            self.changed.update(touched)
        return touched

    def ids(self, where: edge.Filter | None) -> list[PointId]:
        """Return the ids of the points that match a filter.

        They are in the engine's order.
        """
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
