"""Check write requests completely, and convert them for the engine.

The engine applies the valid points of a batch with an invalid one, and accepts NaN. So names, sizes, ids and
numbers are checked here, and only then is anything written.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors
from storage.embedded.qdrant.protocol.errors import Invalid, NotFound, NotSupported, RequestError
from storage.embedded.qdrant.protocol.filters import to_filter
from storage.embedded.qdrant.protocol.json_depth import require_payload
from storage.embedded.qdrant.protocol.named_vectors import Spaces
from storage.embedded.qdrant.protocol.vectors import point_id, rest_id, to_engine

PointId = int | str
FILTER_LEVEL = 3
"""Level of a filter in the engine's record of an operation; in that of a delete it is lower."""

Operation = edge.UpdateOperation
MODES = {
    models.UpdateMode.UPSERT: edge.UpdateMode.Upsert,
    models.UpdateMode.INSERT_ONLY: edge.UpdateMode.InsertOnly,
    models.UpdateMode.UPDATE_ONLY: edge.UpdateMode.UpdateOnly,
}


EMPTY = "the update is empty: it names no points"


@dataclass(frozen=True, slots=True)
class Write:
    """Represent one operation of the engine and its points.

    They are those of `ids`, or those that match `where`.
    """

    operation: edge.UpdateOperation
    ids: tuple[PointId, ...] = ()
    where: edge.Filter | None = None
    creates: bool = False
    """Whether it creates `ids`; else they must exist before."""

    deletes: bool = False
    """Whether it deletes its points, which then need not exist."""

    of: Callable[[Sequence[PointId]], edge.UpdateOperation] | None = None
    """Returns the operation of some of `ids`, of which the others do not exist."""


def require_points(shard: edge.EdgeShard, writes: Sequence[Write], *, wait: bool) -> Sequence[Write]:
    """Return the writes, limited to existing points.

    Raises:
        NotFound: the client waits, and a point that must be there is not.
    """
    missing = _missing_points(shard, writes)
    if missing and wait:
        raise NotFound(f"no point with id {min(missing, key=str)}; nothing was written")
    return _without_points(writes, missing) if missing else writes


def _missing_points(shard: edge.EdgeShard, writes: Sequence[Write]) -> set[PointId]:
    """Return changed points that neither exist nor are created before."""
    made: set[PointId] = set()
    needed: set[PointId] = set()
    for write in writes:
        if write.creates:
            made.update(write.ids)
        elif not write.deletes:
            needed.update(id for id in write.ids if id not in made)
    if not needed:
        return set()
    with engine_errors():
        found = shard.retrieve(list(needed), with_payload=False, with_vector=False)
    return needed - {rest_id(point.id) for point in found}


def _without_points(writes: Sequence[Write], missing: set[PointId]) -> list[Write]:
    """Return the writes without points missing in their turn."""
    absent, kept = set(missing), []
    for write in writes:
        ids = tuple(id for id in write.ids if id not in absent)
        if write.creates:
            absent.difference_update(write.ids)
        if write.of is None or len(ids) == len(write.ids):
            kept.append(write)
        elif ids:
            kept.append(replace(write, operation=write.of(ids), ids=ids))
    return kept


def upsert(request: models.PointInsertOperations, spaces: Spaces) -> list[Write]:
    """Convert a `PUT /points`, of a list or of columns."""
    _refuse_shards(request.shard_key)
    points = request.points if isinstance(request, models.PointsList) else list(_rows(request.batch))
    if not points:
        raise RequestError(EMPTY)
    condition = to_filter(request.update_filter, spaces.fields, FILTER_LEVEL)
    mode = MODES[request.update_mode] if request.update_mode else None
    with engine_errors():
        made = [_point(point, spaces) for point in points]
        operation = Operation.upsert_points(made, condition, mode)
    ids = tuple(point_id(point.id) for point in points)
    return [Write(operation, ids, creates=True)]


def delete(selector: models.PointsSelector, spaces: Spaces) -> list[Write]:
    """Convert a `POST /points/delete`."""
    return _by_selector(
        selector, spaces, Operation.delete_points, Operation.delete_points_by_filter, deletes=True
    )


def clear_payload(selector: models.PointsSelector, spaces: Spaces) -> list[Write]:
    """Convert a `POST /points/payload/clear`."""
    return _by_selector(selector, spaces, Operation.clear_payload, Operation.clear_payload_by_filter)


def set_payload(request: models.SetPayload, spaces: Spaces) -> list[Write]:
    """Convert a `POST /points/payload`, which keeps the other keys."""
    require_payload(request.payload, request.key)
    more = (request.payload, request.key)
    return _by_ids_and_filter(request, spaces, Operation.set_payload, Operation.set_payload_by_filter, *more)


def overwrite_payload(request: models.SetPayload, spaces: Spaces) -> list[Write]:
    """Convert a `PUT /points/payload`, which removes the other keys.

    It ignores `key`, as a server does.
    """
    require_payload(request.payload)
    return _by_ids_and_filter(
        request, spaces, Operation.overwrite_payload, Operation.overwrite_payload_by_filter, request.payload
    )


def delete_payload(request: models.DeletePayload, spaces: Spaces) -> list[Write]:
    """Convert a `POST /points/payload/delete`."""
    return _by_ids_and_filter(
        request, spaces, Operation.delete_payload, Operation.delete_payload_by_filter, request.keys
    )


def delete_vectors(request: models.DeleteVectors, spaces: Spaces) -> list[Write]:
    """Convert a `POST /points/vectors/delete`."""
    if not request.vector:
        raise Invalid("vector: name at least one vector to delete")
    for name in request.vector:
        if name not in spaces.dense and name not in spaces.sparse:
            raise RequestError(f"the collection has no vector named {name!r}")
    return _by_ids_and_filter(
        request, spaces, Operation.delete_vectors, Operation.delete_vectors_by_filter, request.vector
    )


def update_vectors(request: models.UpdateVectors, spaces: Spaces) -> list[Write]:
    """Convert a `PUT /points/vectors`."""
    _refuse_shards(request.shard_key)
    if not request.points:
        raise Invalid("points: name at least one point to update")
    condition = to_filter(request.update_filter, spaces.fields, FILTER_LEVEL)
    ids = tuple(point_id(point.id) for point in request.points)
    with engine_errors():
        points = [
            edge.PointVectors(id, to_engine(point.vector, spaces))
            for id, point in zip(ids, request.points, strict=True)
        ]
        operation = Operation.update_vectors(points, condition)

    def of(kept: Sequence[PointId]) -> edge.UpdateOperation:
        chosen = set(kept)
        rows = [point for id, point in zip(ids, points, strict=True) if id in chosen]
        return Operation.update_vectors(rows, condition)

    return [Write(operation, ids, of=of)]


def batch(request: models.UpdateOperations, spaces: Spaces) -> list[list[Write]]:
    """Convert each operation of a `POST /points/batch`, all of them checked."""
    return [_single_operation(operation, spaces) for operation in request.operations]


def _single_operation(operation: models.UpdateOperation, spaces: Spaces) -> list[Write]:
    [(name, request)] = [(name, getattr(operation, name)) for name in type(operation).model_fields]
    kinds: dict[str, Callable[[Any, Spaces], list[Write]]] = {
        "upsert": upsert,
        "delete": delete,
        "set_payload": set_payload,
        "overwrite_payload": overwrite_payload,
        "delete_payload": delete_payload,
        "clear_payload": clear_payload,
        "update_vectors": update_vectors,
        "delete_vectors": delete_vectors,
    }
    if name not in kinds:
        raise NotSupported(f"{name} in a batch; a Qdrant server may do this")
    return kinds[name](request, spaces)


def _point(point: models.PointStruct, spaces: Spaces) -> edge.Point:
    require_payload(point.payload)
    return edge.Point(point_id(point.id), to_engine(point.vector, spaces), point.payload)


def _rows(batch: models.Batch) -> Iterator[models.PointStruct]:
    vectors: Any = batch.vectors
    payloads: Sequence[Any] = batch.payloads or [None] * len(batch.ids)
    columns = {"": vectors} if isinstance(vectors, list) else vectors
    for name, column in (*columns.items(), ("payloads", payloads)):
        if len(column) != len(batch.ids):
            raise RequestError(f"{len(batch.ids)} ids, but {len(column)} of {name or 'vectors'!r}")
    for row, (id, payload) in enumerate(zip(batch.ids, payloads, strict=True)):
        named = {name: column[row] for name, column in columns.items()}
        vector = named[""] if isinstance(vectors, list) else named
        yield models.PointStruct.model_construct(id=id, vector=vector, payload=payload)


def _by_selector(
    selector: models.PointsSelector, spaces: Spaces, by_ids: Any, by_filter: Any, *, deletes: bool = False
) -> list[Write]:
    _refuse_shards(selector.shard_key)
    if isinstance(selector, models.PointIdsList):
        return [_by_ids(selector.points, by_ids, deletes=deletes)]
    where = to_filter(selector.filter, spaces.fields) or edge.Filter()
    return [Write(by_filter(where), where=where, deletes=deletes)]


def _by_ids_and_filter(request: Any, spaces: Spaces, by_ids: Any, by_filter: Any, *more: Any) -> list[Write]:
    """Return one write, by ids where given, else by filter."""
    _refuse_shards(request.shard_key)
    if request.points is None and request.filter is None:
        raise RequestError("say which points: neither `points` nor `filter` is given")
    if request.points is not None:
        return [_by_ids(request.points, by_ids, *more)]
    where = to_filter(request.filter, spaces.fields, FILTER_LEVEL) or edge.Filter()
    with engine_errors():
        return [Write(by_filter(where, *more), where=where)]


def _by_ids(
    points: Sequence[models.ExtendedPointId], by_ids: Any, *more: Any, deletes: bool = False
) -> Write:
    if not points:
        raise RequestError(EMPTY)
    ids = tuple(point_id(id) for id in points)

    def of(kept: Sequence[PointId]) -> edge.UpdateOperation:
        with engine_errors():
            operation: edge.UpdateOperation = by_ids(list(kept), *more)
        return operation

    return Write(of(ids), ids, deletes=deletes, of=None if deletes else of)


def _refuse_shards(shard_key: models.ShardKeySelector | None) -> None:
    if shard_key is not None:
        raise NotSupported("shard_key: the embedded index is one shard on one machine")


def flatten(writes: Sequence[Sequence[Write]]) -> list[Write]:
    """Return the writes of all operations of a batch, in order."""
    return list(chain.from_iterable(writes))
