"""Create, list, download, recover and delete snapshots of a collection.

A snapshot is a tar file of this index, not a server's: `collection.json` beside the shard's files. It holds
the collection as it is at one moment, and no graph: after a recovery, that is built again. It is compressed,
as the engine keeps files of a size that an empty collection has already.

A recovery reads only files that this index wrote or received: a server that opened any file or address for
its clients would read them with rights that its clients may not have.
"""

import asyncio
import gzip
import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from pydantic import ValidationError
from qdrant_client import models
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

from storage.embedded.qdrant.engine.collection import Collection
from storage.embedded.qdrant.engine.graphs import BuildFailed, CollectionChanged, replica
from storage.embedded.qdrant.engine.state import CollectionState
from storage.embedded.qdrant.engine.store import Store
from storage.embedded.qdrant.protocol.errors import Conflict, NotFound, NotSupported, RequestError, TooLarge
from storage.embedded.qdrant.protocol.http import Gateway
from storage.files import NotPrivate, durable_rename, open_file

CHECKSUM = ".checksum"
DESCRIPTION = "collection.json"
SHARD = "shard"

SPARE_BYTES = 256 * 2**20
"""Disk space that an upload and an unpacked snapshot leave free."""

COPIES = 3
"""Copies of an upload during a recovery: the form's, ours, and one that no client can change."""

MAX_FILES = 100_000
MAX_DESCRIPTION_BYTES = 16 * 2**20
MAX_READ_BYTES = 2**20
"""Limit of names and attributes in an archive, which `tarfile` holds in memory; files are read in parts."""


def routes(store: Store, gateway: Gateway) -> Iterator[Route]:
    """Yield the routes of snapshots."""
    path = "/collections/{name}/snapshots"

    def act(method: str, path: str, do: Any, body: Any = None) -> Route:
        return gateway.route(method, path, lambda request, body: do(store, request, body), body)

    yield act("GET", path, _list)
    yield act("POST", path, _create)
    yield act("PUT", f"{path}/recover", _recover, models.SnapshotRecover)
    yield act("POST", f"{path}/upload", _upload)
    yield act("GET", f"{path}/{{snapshot}}", _download)
    yield act("DELETE", f"{path}/{{snapshot}}", _delete)


def _list(store: Store, request: Request, _: None) -> list[models.SnapshotDescription]:
    folder = _folder(store, store.get(request.path_params["name"]).name)
    return [_description(path) for path in sorted(folder.glob("*.snapshot"))]


async def _create(store: Store, request: Request, _: None) -> models.SnapshotDescription:
    collection = store.get(request.path_params["name"])
    folder = _folder(store, collection.name)
    folder.mkdir(parents=True, exist_ok=True)
    moment = datetime.now(UTC).strftime("%Y-%m-%d-%H-%M-%S-%f")
    path = folder / f"{collection.name}-{moment}.snapshot"
    try:
        async with collection.replicating, replica(store, collection, has_graph=False) as stored:
            await asyncio.to_thread(_pack, store.shards / stored.folder, stored, path)
    except (CollectionChanged, BuildFailed) as error:
        raise Conflict(f"no snapshot: {error or 'the collection changed its schema'}; try again") from error
    return _description(path)


def _download(store: Store, request: Request, _: None) -> FileResponse:
    return FileResponse(_require_snapshot(store, request), media_type="application/octet-stream")


def _delete(store: Store, request: Request, _: None) -> bool:
    path = _require_snapshot(store, request)
    path.unlink()
    _checksum_file(path).unlink(missing_ok=True)
    return True


async def _recover(store: Store, request: Request, wanted: models.SnapshotRecover) -> bool:
    snapshot = _snapshot_path(store, wanted.location)
    return await _recover_from(store, request.path_params["name"], snapshot, wanted.checksum)


async def _upload(store: Store, request: Request, _: None) -> bool:
    """Recover from an uploaded form file `snapshot`, streamed to disk."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise RequestError("send the length of the upload as Content-Length")
    for folder, copies in ((Path(gettempdir()), 1), (store.folder, COPIES)):
        if copies * int(length) > _room(folder):
            raise TooLarge(f"no room in {folder} for {copies} copies of this upload; free space on its disk")
    path = store.folder / f"upload-{uuid4().hex}"
    async with request.form(max_files=1, max_fields=0) as form:
        upload = form.get("snapshot")
        if not isinstance(upload, UploadFile):
            raise RequestError("send the snapshot as the file `snapshot` of a form")
        try:
            with path.open("xb") as file:
                await asyncio.to_thread(shutil.copyfileobj, upload.file, file)
            checksum = request.query_params.get("checksum")
            return await _recover_from(store, request.path_params["name"], path, checksum)
        finally:
            path.unlink(missing_ok=True)


async def _recover_from(store: Store, name: str, snapshot: Path, checksum: str | None) -> bool:
    unpacked = store.folder / f"recover-{uuid4().hex}"
    try:
        stored = await asyncio.to_thread(_unpack, snapshot, checksum, unpacked)
        target = store.shards / stored.folder
        durable_rename(unpacked / SHARD, target)
        try:
            stored = _open_once(name, stored, store.shards)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    store.adopt(store.aliases.get(name, name), stored)
    return True


def _pack(shard: Path, stored: CollectionState, path: Path) -> None:
    """Write a snapshot atomically."""
    unfinished = path.with_suffix(".new")
    description = shard.parent / f"{shard.name}.json"
    try:
        description.write_text(stored.model_dump_json())
        with tarfile.open(unfinished, "w:gz", compresslevel=1) as tar:
            tar.add(description, DESCRIPTION)
            tar.add(shard, SHARD)
        with unfinished.open("rb") as file:
            _checksum_file(path).write_text(hashlib.file_digest(file, "sha256").hexdigest())
        durable_rename(unfinished, path)
    finally:
        description.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)


def _snapshot_path(store: Store, location: str) -> Path:
    """Return the path of the index's snapshot at `location`.

    Args:
        store: the collections, beside whose files the snapshots lie.
        location: a path or a file URL.

    Raises:
        NotSupported: it is elsewhere.
    """
    parts = urlsplit(location)
    path = Path(unquote(parts.path) if parts.scheme == "file" else location)
    snapshots = store.folder / "snapshots"
    if path.parent.parent != snapshots or ".." in path.parts or not path.name.endswith(".snapshot"):
        raise NotSupported(
            f"the embedded index recovers from the snapshots in {snapshots} and from uploads, not from "
            f"{location}; upload that file instead (POST /collections/NAME/snapshots/upload)"
        )
    return path


def _unpack(path: Path, checksum: str | None, folder: Path) -> CollectionState:
    folder.mkdir(mode=0o700)
    snapshot = folder / "snapshot"
    _copy(path, snapshot)
    with snapshot.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum is not None and checksum != found:
        raise RequestError(f"the snapshot's SHA-256 is {found}, not {checksum}")
    try:
        _extract(snapshot, folder)
        if (folder / DESCRIPTION).stat().st_size > MAX_DESCRIPTION_BYTES:
            raise TooLarge(f"{DESCRIPTION} in the snapshot has over {MAX_DESCRIPTION_BYTES:,} bytes")
        stored = CollectionState.model_validate_json((folder / DESCRIPTION).read_bytes())
    except (*NO_ARCHIVE, FileNotFoundError, ValidationError) as error:
        raise RequestError(
            f"{path.name} is no snapshot of this index ({error}); a Qdrant server's is another format: "
            "copy its points with `QdrantClient.migrate` instead"
        ) from error
    return stored.model_copy(update={"folder": uuid4().hex, "graph_points": 0})


class _BoundedGzip(gzip.GzipFile):
    """Decompress an archive in bounded reads."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_READ_BYTES:
            raise tarfile.ReadError(f"names or attributes of over {MAX_READ_BYTES:,} bytes")
        return super().read(size)


NO_ARCHIVE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RecursionError)


def _extract(snapshot: Path, folder: Path) -> None:
    """Unpack files and folders while the disk has room.

    Raises:
        TooLarge: the disk has no room for the sizes that the archive states, or it has too many files.
        TarError, BadGzipFile, zlib.error, EOFError, RecursionError: it is no such archive.
    """
    room = _room(folder)
    with _BoundedGzip(snapshot) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
        for number, member in enumerate(tar, 1):
            room -= member.size
            if number > MAX_FILES:
                raise TooLarge(
                    f"the snapshot holds over {MAX_FILES:,} files; it is no snapshot of this index"
                )
            if room < 0:
                raise TooLarge(
                    f"the snapshot unpacks to more than the disk of {folder.parent} has room for; free space "
                    "there, or recover from another snapshot"
                )
            if not (member.isreg() or member.isdir()):
                raise tarfile.ReadError(f"{member.name[:100]!r} is neither a file nor a folder")
            tar.extract(member, folder, filter="data")


def _room(folder: Path) -> int:
    """Return the number of bytes that may be written beside `folder`."""
    return shutil.disk_usage(folder).free - SPARE_BYTES


def _copy(path: Path, target: Path) -> None:
    try:
        with os.fdopen(open_file(path, os.O_RDONLY), "rb") as source, target.open("wb") as file:
            if os.fstat(source.fileno()).st_size > _room(target.parent):
                raise TooLarge(
                    f"no room for a copy of the snapshot in {target.parent.parent}; free space there"
                )
            shutil.copyfileobj(source, file)
    except (FileNotFoundError, NotPrivate) as error:
        raise RequestError(f"cannot read the snapshot {path}: {error}") from error


def _open_once(name: str, stored: CollectionState, shards: Path) -> CollectionState:
    """Open a recovered collection's shard once; return its checked state."""
    probe = Collection(name, stored, shards)
    _ = probe.points
    probe.close()
    return probe.stored


def _require_snapshot(store: Store, request: Request) -> Path:
    folder = _folder(store, store.get(request.path_params["name"]).name)
    name = str(request.path_params["snapshot"])
    path = folder / name
    if path.parent != folder or not name.endswith(".snapshot") or not path.is_file():
        raise NotFound(f"there is no snapshot {name!r} of this collection")
    return path


def _folder(store: Store, collection: str) -> Path:
    return store.folder / "snapshots" / collection


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + CHECKSUM)


def _description(path: Path) -> models.SnapshotDescription:
    found = path.stat()
    made = datetime.fromtimestamp(found.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    checksum = None
    with suppress(FileNotFoundError):
        checksum = _checksum_file(path).read_text()
    return models.SnapshotDescription(
        name=path.name, creation_time=made, size=found.st_size, checksum=checksum
    )
