"""The kill points: places in the write path, by name, where a process is ended with SIGKILL."""

import importlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import count
from typing import Any, Literal

import httpx


@dataclass(frozen=True, slots=True)
class KillPoint:
    """Before or after the `nth` call of something in the write path."""

    name: str
    target: str
    """`module:attribute`, where the attribute may be one of a class."""

    when: Literal["before", "after"]
    nth: int = 1


@dataclass(frozen=True, slots=True)
class HalfARequest:
    """Half of a request to Qdrant has been sent: the `nth` one to a path that ends so."""

    name: str
    path: str
    nth: int = 1


FIRST_INGEST = (
    KillPoint("before the collection is made", "storage.qdrant:create_collection", "before"),
    KillPoint("the collection without its indexes", "qdrant_client:QdrantClient.create_collection", "after"),
    KillPoint("between two payload indexes", "qdrant_client:QdrantClient.create_payload_index", "after"),
    KillPoint("before the alias", "storage.qdrant:activate", "before"),
    HalfARequest("in the middle of the alias switch", "/collections/aliases"),
    KillPoint("the alias has moved, Postgres does not know", "storage.qdrant:activate", "after"),
    KillPoint(
        "the collection on record, not committed",
        "storage.postgres.model_registry:activate_collection",
        "after",
    ),
    KillPoint("before the run is on record", "storage.postgres.runs:start_run", "before"),
    KillPoint("the run on record, not committed", "storage.postgres.runs:start_run", "after"),
    KillPoint("the first batch is read", "flows.ingestion.stages:look_up", "after"),
    KillPoint("its pictures are being decoded", "flows.ingestion.stages:decoding_errors", "before"),
    KillPoint(
        "its pictures are decoded, nothing is written", "flows.ingestion.stages:decoding_errors", "after"
    ),
    KillPoint("the first keys are claimed, not committed", "storage.postgres.catalog:claim", "after"),
    KillPoint("half a blob", "os:replace", "before", 2),
    KillPoint("after the first blob", "storage.blobs:Blobs.put", "after"),
    KillPoint(
        "after all blobs of a batch, before its items", "storage.postgres.catalog:save_items", "before"
    ),
    KillPoint("the items are written, not committed", "storage.postgres.catalog:save_items", "after"),
    KillPoint("after the items, before the model", "flows.ingestion.stages:encode_items", "before"),
    KillPoint(
        "in the middle of embedding",
        "embedding.encoders.sentence_encoder:SentenceEncoder.encode_prepared",
        "after",
    ),
    KillPoint("embedded, nothing in Qdrant", "storage.qdrant:upsert", "before"),
    HalfARequest("in the middle of a Qdrant write", "/points"),
    HalfARequest("in the middle of the last Qdrant write", "/points", 3),
    KillPoint("after the points, before the marks", "storage.qdrant:upsert", "after"),
    KillPoint("the marks are written, not committed", "storage.postgres.catalog:mark_embedded", "after"),
    KillPoint("one batch is done", "flows.ingestion.pipeline:write_points", "after"),
    KillPoint("in the middle of the second batch", "flows.ingestion.stages:encode_items", "after", 2),
    KillPoint("the last points, before their marks", "storage.postgres.catalog:mark_embedded", "before", 3),
    KillPoint("all batches are done", "flows.ingestion.pipeline:finish", "before"),
    KillPoint("rejects are resolved, not committed", "flows.ingestion.pipeline:resolve_rejects", "after"),
    KillPoint("before the run is closed", "storage.postgres.runs:end_run", "before"),
    KillPoint("the run is closed, not committed", "storage.postgres.runs:end_run", "after"),
)
"""While a source is taken in for the first time."""

SECOND_INGEST = (
    KillPoint("before payloads are replaced", "storage.qdrant:overwrite_payloads", "before"),
    HalfARequest("in the middle of new payloads", "/points/batch"),
    KillPoint("payloads are new, marks are old", "storage.postgres.catalog:mark_embedded", "before"),
    KillPoint("the tombstones are written, not committed", "storage.postgres.catalog:tombstone", "after"),
    KillPoint("tombstones, and points that answer", "storage.qdrant:delete_everywhere", "before"),
    HalfARequest("in the middle of deleting points", "/points/delete"),
    KillPoint("the points are gone, the pictures are not", "storage.qdrant:delete_everywhere", "after"),
    KillPoint("a picture is gone, its tombstone says it has one", "storage.blobs:Blobs.delete", "after"),
    KillPoint("the tombstones are cleared, not committed", "storage.postgres.catalog:clear", "after"),
)
"""While changes, new records and deletes are taken in."""

DELETE = (
    KillPoint("a delete: before its tombstones", "storage.postgres.catalog:tombstone", "before"),
    KillPoint("a delete: its tombstones, not committed", "storage.postgres.catalog:tombstone", "after"),
    KillPoint("a delete: tombstones, and points that answer", "storage.qdrant:delete_everywhere", "before"),
    HalfARequest("a delete: in the middle of deleting points", "/points/delete"),
    KillPoint(
        "a delete: the points are gone, the pictures are not", "storage.qdrant:delete_everywhere", "after"
    ),
    KillPoint("a delete: the pictures are gone", "storage.blobs:Blobs.delete", "after"),
    KillPoint("a delete: cleared, not committed", "storage.postgres.catalog:clear", "after"),
    KillPoint(
        "a delete: rejects forgotten, not committed", "flows.maintenance.delete:forget_rejects", "after"
    ),
    KillPoint("a delete: done, its receipt without its name", "pathlib:Path.rename", "before"),
)
"""While items are deleted because somebody asked for it."""

REPAIR = (
    KillPoint("a repair: before the first picture is fetched again", "storage.blobs:Blobs.put", "before"),
    KillPoint("a repair: a picture is back", "storage.blobs:Blobs.put", "after"),
    KillPoint("a repair: the alias is back", "storage.qdrant:activate", "after"),
    KillPoint("a repair: strays are still there", "storage.qdrant:delete_points", "before"),
    KillPoint("a repair: strays are gone", "storage.qdrant:delete_points", "after"),
    KillPoint("a repair: embedded, not written", "storage.qdrant:upsert", "before"),
    HalfARequest("a repair: in the middle of lost points", "/points"),
    KillPoint("a repair: lost points are back", "storage.qdrant:upsert", "after"),
    KillPoint("a repair: payloads are right again", "storage.qdrant:overwrite_payloads", "after"),
    KillPoint("a repair: before the second comparison", "flows.maintenance.repair:reconcile", "before"),
    KillPoint("a repair: before it is closed", "storage.postgres.runs:end_run", "before"),
)
"""While what differs between the stores is mended."""

BACKUP = (
    KillPoint("a backup: the first picture is copied", "storage.blobs:Blobs.put", "after"),
    KillPoint("a backup: Postgres is dumped", "storage.postgres.dump:dump", "after"),
    KillPoint(
        "a backup: before the points of a collection", "flows.maintenance.backup:save_points", "before"
    ),
    KillPoint("a backup: after the points of a collection", "flows.maintenance.backup:save_points", "after"),
    KillPoint("a backup: some files are written", "fsspec.spec:AbstractFileSystem.pipe_file", "before"),
    KillPoint("a backup: all but its manifest", "fsspec.spec:AbstractFileSystem.pipe_file", "before", 2),
)
"""While everything is written to another place."""

RESTORE = (
    KillPoint("a restore: checked, nothing written", "flows.maintenance.restore:fetch_checked", "after"),
    KillPoint("a restore: one picture is back", "storage.blobs:Blobs.put", "after"),
    KillPoint("a restore: its rows are being tried", "storage.postgres.dump:renew_sequences", "before"),
    HalfARequest("a restore: in the middle of its points", "/points"),
    KillPoint("a restore: the collection is back", "flows.maintenance.restore:load_points", "after"),
    KillPoint("a restore: before Postgres", "storage.postgres.dump:restore", "before", 2),
    KillPoint("a restore: rows inserted, not committed", "storage.postgres.dump:renew_sequences", "after", 2),
)
"""While empty stores are filled from a backup."""

REINDEX = (
    KillPoint("a re-index: before its collection is made", "storage.qdrant:create_collection", "before"),
    HalfARequest("a re-index: in the middle of its points", "/points"),
    KillPoint(
        "a re-index: the first points, before their marks", "storage.postgres.catalog:mark_current", "before"
    ),
    KillPoint("a re-index: the first marks, not committed", "storage.postgres.catalog:mark_current", "after"),
    KillPoint("a re-index: all is filled, nothing verified", "storage.qdrant:is_settled", "before"),
    KillPoint("a re-index: verified, the alias is old", "storage.qdrant:activate", "before"),
    HalfARequest("a re-index: in the middle of the alias switch", "/collections/aliases"),
    KillPoint("a re-index: the alias has moved, nothing is committed", "storage.qdrant:activate", "after"),
    KillPoint("a re-index: before it is closed", "storage.postgres.runs:end_run", "before"),
)
"""While searches change to another model."""

MOVE = (
    KillPoint("a move: the run on record, not committed", "storage.postgres.runs:start_run", "after"),
    KillPoint("a move: before the collection is made", "storage.transfer:make_collection", "before"),
    HalfARequest("a move: in the middle of its points", "/points", 2),  # the first reads them
    KillPoint("a move: the points are there, no row is", "storage.transfer:copy_points", "after"),
    KillPoint("a move: in the middle of the rows", "storage.transfer:copy_table", "after", 4),
    KillPoint("a move: the rows are written, not committed", "storage.transfer:copy_rows", "after"),
    KillPoint("a move: before the alias", "storage.transfer:copy_aliases", "before"),
    HalfARequest("a move: in the middle of the alias", "/collections/aliases"),
    KillPoint("a move: compared, not closed", "storage.postgres.runs:end_run", "before"),
)
"""While an embedded home is copied into servers."""

EVERYWHERE = (*FIRST_INGEST, *SECOND_INGEST, *DELETE, *REPAIR, *BACKUP, *RESTORE, *REINDEX, *MOVE)
ALL = {point.name: point for point in EVERYWHERE}

OFTEN = tuple(
    ALL[name]
    for name in (
        "the collection without its indexes",
        "half a blob",
        "in the middle of a Qdrant write",
        "after the points, before the marks",
        "a picture is gone, its tombstone says it has one",
        "a delete: tombstones, and points that answer",
        "a delete: the points are gone, the pictures are not",
        "a repair: a picture is back",
        "a backup: all but its manifest",
        "a restore: in the middle of its points",
        "a re-index: the first points, before their marks",
        "a re-index: the alias has moved, nothing is committed",
        "a move: the points are there, no row is",
    )
)
"""What `make test` tries, one of each kind of step; `make test-all` tries all.

Tombstones before their points are tried with a delete, half a write of points with an ingest.
"""


def arm(name: str) -> None:
    """Have this process end itself at the kill point `name`."""
    arm_point(ALL[name])


def arm_point(point: KillPoint | HalfARequest) -> None:
    """Have this process end itself at `point`."""
    if isinstance(point, HalfARequest):
        _arm_request(point)
        return
    module_name, path = point.target.split(":")
    owner: Any = importlib.import_module(module_name)
    *classes, attribute = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    setattr(owner, attribute, _killing(getattr(owner, attribute), point))


def _killing(real: Callable[..., Any], point: KillPoint) -> Callable[..., Any]:
    calls = count(1)  # each call takes a number of its own, also beside others in other threads

    @wraps(real)
    def call(*args: Any, **named: Any) -> Any:
        nth = next(calls)
        if nth == point.nth and point.when == "before":
            die()
        result = real(*args, **named)
        if nth == point.nth:
            die()
        return result

    return call


def _arm_request(point: HalfARequest) -> None:
    real, calls = httpx.HTTPTransport.handle_request, count(1)

    def handle(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.method != "GET" and request.url.path.endswith(point.path) and next(calls) == point.nth:
            _send_half(request)
            die()
        return real(self, request)

    httpx.HTTPTransport.handle_request = handle  # type: ignore[method-assign]


def _send_half(request: httpx.Request) -> None:
    body = request.read()
    lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    with socket.create_connection((request.url.host, request.url.port or 80), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
