"""Save the points of a collection to Parquet, and load them.

The file fits the embedded index, a Qdrant server and a cluster alike.

A file has a row for each point, in the order of ids: its id, its payload as JSON, and a column for each
named vector: numbers, rows of numbers, or indices with values. Vectors come back bit for bit.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.parquet import ParquetFile, ParquetWriter
from pydantic import BaseModel
from qdrant_client import QdrantClient, models

from storage.consistency.differences import PointId, id_order
from storage.errors import InvalidInput, SightlineError
from storage.qdrant import points
from storage.qdrant.limits import POINTS_A_REQUEST, limits_of

PAGE = 2 * POINTS_A_REQUEST
GROUP_ROWS = 1024
GROUP_BYTES = 32 * 2**20
"""A row group ends at either limit; a reader holds one in memory."""

ID, PAYLOAD, VECTOR = "id", "payload", "vector:"
FLOATS = pa.list_(pa.float32())
SPARSE = pa.struct({"indices": pa.list_(pa.uint32()), "values": pa.list_(pa.float32())})

Advance = Callable[[int], None]
"""Receives the number of rows or points since its last call."""


def no_advance(steps: int) -> None:
    """Discard a number of steps."""


class IncompletePoints(SightlineError):
    """Signal that points were lost or added while they were copied."""


class BadPointFile(InvalidInput):
    """Signal a file without the expected points."""


class Shape(BaseModel, frozen=True):
    """Store the configuration of a collection, without its points."""

    config: models.CreateCollection
    payload_schema: dict[str, models.PayloadFieldSchema]


def shape_of(client: QdrantClient, name: str) -> Shape:
    """Return the configuration and payload indexes of a collection.

    When to optimize, and how many shards and replicas there are, is the server's own affair.
    """
    found = client.get_collection(name)
    config, params = found.config, found.config.params
    wanted = models.CreateCollection(
        vectors=params.vectors,
        sparse_vectors=params.sparse_vectors,
        on_disk_payload=params.on_disk_payload,
        hnsw_config=models.HnswConfigDiff(**config.hnsw_config.model_dump(exclude_none=True)),
        quantization_config=config.quantization_config,
        metadata=config.metadata,
    )
    schema = {field: info.params or info.data_type for field, info in found.payload_schema.items()}
    return Shape(config=wanted, payload_schema=schema)


def make_collection(client: QdrantClient, name: str, shape: Shape) -> None:
    """Create a collection and its payload indexes, unless they exist."""
    config = shape.config
    if not client.collection_exists(name):
        client.create_collection(
            name,
            vectors_config=config.vectors,
            sparse_vectors_config=config.sparse_vectors,
            on_disk_payload=config.on_disk_payload,
            hnsw_config=config.hnsw_config,
            quantization_config=config.quantization_config,
            metadata=config.metadata,
        )
    for field, schema in shape.payload_schema.items():
        client.create_payload_index(name, field, schema, wait=True)


def save_points(client: QdrantClient, name: str, path: Path, *, advance: Advance = no_advance) -> int:
    """Write all points of a collection to a Parquet file.

    The collection must not change meanwhile.

    Args:
        advance: called with the number of points written since the last call.

    Returns:
        How many there are.

    Raises:
        IncompletePoints: the collection counts more or fewer, or gave them out of order.
    """
    schema = _schema(shape_of(client, name).config)
    written, last = 0, None
    with ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as file:
        for group in _groups(_pages(client, name, schema)):
            ids = list(map(_point_id, group.column(ID).to_pylist()))
            _require_order(name, [*([] if last is None else [last]), *ids])
            file.write_table(group, row_group_size=group.num_rows)
            written, last = written + group.num_rows, ids[-1]
            advance(group.num_rows)
    if written != (held := points.count(client, name)):
        raise IncompletePoints(
            f"{name} holds {held:,} points, but {written:,} could be read: a part of the cluster may be "
            "unavailable, or something else writes to it; the backup is not complete, try again"
        )
    return written


def check_points(path: Path, name: str, shape: Shape, points: int) -> None:
    """Check that a file holds points of a given number and shape.

    All of it is read.

    Raises:
        BadPointFile: it does not.
    """
    schema, sizes = _schema(shape.config), _sizes(shape.config)
    found, last = 0, None
    try:
        with ParquetFile(path) as file:
            if file.schema_arrow != schema:
                raise BadPointFile(f"{path.name} has other columns than the vectors of {name}")
            for batch in file.iter_batches(batch_size=GROUP_ROWS):
                ids = list(map(_point_id, batch.column(ID).to_pylist()))
                _require_order(name, [*([] if last is None else [last]), *ids])
                for vector, size in sizes.items():
                    _require_size(path, batch.column(f"{VECTOR}{vector}"), size)
                found, last = found + len(ids), ids[-1] if ids else last
    except (pa.ArrowException, OSError, ValueError, IncompletePoints) as error:
        if isinstance(error, BadPointFile):
            raise
        raise BadPointFile(f"{path.name} cannot be read as the points of {name} ({error})") from error
    if found != points:
        raise BadPointFile(f"{path.name} holds {found:,} points, not {points:,}")


def load_points(client: QdrantClient, name: str, path: Path, *, advance: Advance = no_advance) -> int:
    """Write the points of a file to a collection of its shape.

    The collection holds no other points. Safe to repeat.

    Args:
        path: as `check_points` has found it right.
        advance: called with the number of points made searchable since the last call.

    Returns:
        How many there are.

    Raises:
        IncompletePoints: the collection counts more or fewer afterwards.
    """
    loaded = 0
    with ParquetFile(path) as file, ThreadPoolExecutor(points.STREAMS) as streams:
        batches = file.iter_batches(batch_size=limits_of(client, name).upsert)
        while some := list(islice(batches, points.STREAMS)):
            many = sum(streams.map(partial(_send, client, name), some))
            loaded += many
            advance(many)
    if loaded != (held := points.count(client, name)):
        raise IncompletePoints(f"{name} holds {held:,} points after {loaded:,} were written to it")
    return loaded


def load_snapshot(client: QdrantClient, collection: str, path: Path) -> None:
    """Recover a collection from a snapshot file; the collection may be absent."""
    with path.open("rb") as file:
        client.http.snapshots_api.recover_from_uploaded_snapshot(
            collection, wait=True, priority=models.SnapshotPriority.SNAPSHOT, snapshot=file
        )


def server_kind(client: QdrantClient) -> str:
    """Return the kind of the server; snapshots fit no other kind."""
    return client.info().title.split()[0]


def _pages(client: QdrantClient, name: str, schema: pa.Schema) -> Iterator[pa.Table]:
    offset: Any = None
    page = min(PAGE, limits_of(client, name).page)
    while True:
        points, offset = client.scroll(name, limit=page, offset=offset, with_payload=True, with_vectors=True)
        if points:
            columns: dict[str, list[Any]] = {
                ID: [str(point.id) for point in points],
                PAYLOAD: [orjson.dumps(point.payload or {}).decode() for point in points],
            }
            for field in list(schema)[len(columns) :]:
                vector = field.name.removeprefix(VECTOR)
                columns[field.name] = [_vector_of(point, vector) for point in points]
            yield pa.table([pa.array(columns[field.name], field.type) for field in schema], schema)
        if offset is None:
            return


def _groups(pages: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join pages to row groups."""
    waiting: list[pa.Table] = []
    for page in pages:
        waiting.append(page)
        if (
            sum(one.num_rows for one in waiting) >= GROUP_ROWS
            or sum(one.nbytes for one in waiting) >= GROUP_BYTES
        ):
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _vector_of(point: models.Record, name: str) -> Any:
    """Return one vector of a point for Arrow, None if absent."""
    vectors = point.vector
    if not isinstance(vectors, dict):
        vectors = {} if vectors is None else {"": vectors}
    vector = vectors.get(name)
    return vector.model_dump() if isinstance(vector, models.SparseVector) else vector


def _send(client: QdrantClient, name: str, rows: pa.RecordBatch) -> int:
    points = [_struct(row) for row in rows.to_pylist()]
    client.upsert(name, points, wait=True)
    return len(points)


def _struct(row: dict[str, Any]) -> models.PointStruct:
    vectors = {
        column.removeprefix(VECTOR): models.SparseVector(**value) if isinstance(value, dict) else value
        for column, value in row.items()
        if column.startswith(VECTOR) and value is not None
    }
    vector = vectors[""] if vectors.keys() == {""} else vectors
    id = row[ID]
    return models.PointStruct(
        id=int(id) if id.isdecimal() else id, vector=vector, payload=orjson.loads(row[PAYLOAD])
    )


def _schema(config: models.CreateCollection) -> pa.Schema:
    fields = [(ID, pa.string()), (PAYLOAD, pa.string())]
    for name, params in sorted(_dense(config).items()):
        fields.append((f"{VECTOR}{name}", FLOATS if params.multivector_config is None else pa.list_(FLOATS)))
    fields += [(f"{VECTOR}{name}", SPARSE) for name in sorted(config.sparse_vectors or {})]
    return pa.schema(fields)


def _sizes(config: models.CreateCollection) -> dict[str, int]:
    return {name: params.size for name, params in _dense(config).items()}


def _dense(config: models.CreateCollection) -> dict[str, models.VectorParams]:
    vectors = config.vectors or {}
    return {"": vectors} if isinstance(vectors, models.VectorParams) else vectors


def _require_size(path: Path, vectors: pa.Array, size: int) -> None:
    present = vectors.drop_null()
    rows = present.flatten() if present.type == pa.list_(FLOATS) else present
    lengths = pc.unique(pc.list_value_length(rows)).to_pylist()
    if rows.null_count or not set(lengths) <= {size}:
        raise BadPointFile(f"{path.name} holds vectors of {lengths} numbers, not of {size}")


def _require_order(name: str, ids: list[PointId]) -> None:
    for first, second in pairwise(ids):
        if id_order(first) >= id_order(second):
            raise IncompletePoints(f"{name}: Qdrant gave point {second} after {first}; try again")


def _point_id(id: str) -> PointId:
    return int(id) if id.isdecimal() else UUID(id)
