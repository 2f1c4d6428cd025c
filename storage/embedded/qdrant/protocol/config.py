"""Convert and update the configuration of a collection."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors, to_engine
from storage.embedded.qdrant.protocol.errors import Conflict, NotFound, NotSupported, RequestError
from storage.embedded.qdrant.protocol.named_vectors import UNNAMED, Fields, Spaces

NO_INDEXES: Mapping[str, models.PayloadFieldSchema] = {}
HNSW = models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=0)
OPTIMIZERS = models.OptimizersConfig(
    deleted_threshold=0.2,
    vacuum_min_vector_number=1000,
    default_segment_number=1,
    indexing_threshold=200_000,  # kB: 100,000 vectors of 512 dimensions, which a scan passes in 10 ms
    flush_interval_sec=5,
)
WAL = models.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0)
"""A server's default; without effect here, but `QdrantClient.migrate` copies it."""

GRAPH_FROM_KB = 1  # for the engine; `graphs.is_due` decides whether a graph is built at all
BYTES_A_DIMENSION = 4
MAX_DIMENSIONS = 65_536
MAX_VECTOR_NAME_BYTES = 200
FORBIDDEN_IN_VECTOR_NAMES = re.compile(r'[<>:"/\\|?*\x00\x1f]')
Config = TypeVar("Config", bound=BaseModel)
Diff = TypeVar("Diff", models.HnswConfigDiff, models.OptimizersConfigDiff)
Params = TypeVar("Params")
ONE_MACHINE = "the embedded index is one shard on one machine: a Qdrant server does this"


def require_supported(wanted: models.CreateCollection) -> None:
    """Reject a configuration that this index cannot honour.

    Raises:
        NotSupported: shards, replicas, strict mode, or a collection without any vectors.
        RequestError: a vector's name or size is invalid.
    """
    if wanted.sharding_method not in (None, models.ShardingMethod.AUTO):
        raise NotSupported(f"sharding_method: {ONE_MACHINE}")
    for name in ("shard_number", "replication_factor", "write_consistency_factor"):
        if getattr(wanted, name) not in (None, 1):
            raise NotSupported(f"{name} other than 1: {ONE_MACHINE}")
    if wanted.strict_mode_config and wanted.strict_mode_config.enabled:
        raise NotSupported("strict mode is not enforced here; a Qdrant server does that")
    spaces = spaces_of(wanted)
    if not spaces.dense and not spaces.sparse:
        raise NotSupported("a collection without vectors: name at least one dense or sparse vector")
    if spaces.dense.keys() & spaces.sparse.keys():
        raise RequestError("a dense and a sparse vector have the same name")
    for name in (*spaces.dense, *spaces.sparse):
        _require_vector_name(name)
    for name, params in spaces.dense.items():
        _require_size(name, params.size)


def _require_vector_name(name: str) -> None:
    """Reject a vector name that cannot be a folder on every system.

    The engine keeps each vector in a folder of that name.
    """
    too_long = len(name.encode()) > MAX_VECTOR_NAME_BYTES
    if too_long or FORBIDDEN_IN_VECTOR_NAMES.search(name) or name in (".", ".."):
        raise RequestError(
            f"{name[:MAX_VECTOR_NAME_BYTES]!r} cannot name a vector: at most {MAX_VECTOR_NAME_BYTES} bytes "
            'of UTF-8, none of < > : " / \\ | ? * and NUL'
        )


def _require_size(name: str, size: int) -> None:
    if not 1 <= size <= MAX_DIMENSIONS:
        raise RequestError(f"vector {name!r}: size must be 1 to {MAX_DIMENSIONS}, not {size}")


def spaces_of(
    config: models.CreateCollection, indexes: Mapping[str, models.PayloadFieldSchema] = NO_INDEXES
) -> Spaces:
    """Return the named vectors and payload indexes of a collection."""
    dense = config.vectors or {}
    named = {UNNAMED: dense} if isinstance(dense, models.VectorParams) else dense
    return Spaces(named, config.sparse_vectors or {}, Fields(indexes))


def bytes_per_point(spaces: Spaces) -> int:
    """Return the minimum size of a point's dense vectors, in bytes.

    A multivector counts as one row.
    """
    return sum(params.size for params in spaces.dense.values()) * BYTES_A_DIMENSION


def engine_config(config: models.CreateCollection) -> edge.EdgeConfig:
    """Return the engine's configuration of a collection.

    Its optimizer builds a graph over any number of points.
    """
    spaces = spaces_of(config)
    optimizers = with_defaults(OPTIMIZERS, config.optimizers_config)
    with engine_errors():
        return edge.EdgeConfig(
            vectors={name: _dense(params, config) for name, params in spaces.dense.items()} or None,
            sparse_vectors={name: _sparse(params) for name, params in spaces.sparse.items()} or None,
            on_disk_payload=config.on_disk_payload,
            payload_memory=to_engine(config.payload.memory) if config.payload else None,
            id_tracker_memory=to_engine(config.id_tracker.memory) if config.id_tracker else None,
            hnsw_config=_hnsw(HNSW, config.hnsw_config),
            quantization_config=_quantization(config.quantization_config),
            optimizers=edge.EdgeOptimizersConfig(
                deleted_threshold=optimizers.deleted_threshold,
                vacuum_min_vector_number=optimizers.vacuum_min_vector_number,
                default_segment_number=optimizers.default_segment_number or 1,
                max_segment_size=optimizers.max_segment_size,
                indexing_threshold=GRAPH_FROM_KB,
            ),
        )


def collection_info(
    config: models.CreateCollection,
    shard: "edge.ShardInfo",
    schema: dict[str, models.PayloadFieldSchema],
    *,
    status: models.CollectionStatus,
    damage: str | None,
) -> models.CollectionInfo:
    """Return the response to `GET /collections/{name}`; `damage` is its optimizer error."""
    return models.CollectionInfo(
        status=status,
        optimizer_status=models.OptimizersStatusOneOf1(error=damage)
        if damage
        else models.OptimizersStatusOneOf.OK,
        points_count=shard.points_count,
        indexed_vectors_count=shard.indexed_vectors_count,
        segments_count=shard.segments_count,
        config=models.CollectionConfig(
            params=models.CollectionParams(
                vectors=config.vectors,
                on_disk_payload=config.on_disk_payload,
                payload=config.payload,
                id_tracker=config.id_tracker,
                sparse_vectors=config.sparse_vectors,
            ),
            hnsw_config=with_defaults(HNSW, config.hnsw_config),
            optimizer_config=with_defaults(OPTIMIZERS, config.optimizers_config),
            wal_config=with_defaults(WAL, config.wal_config),
            quantization_config=config.quantization_config,
            metadata=config.metadata,
        ),
        payload_schema={
            field: _index_info(given, shard.payload_schema[field].points)
            for field, given in schema.items()
            if field in shard.payload_schema
        },
    )


def apply_update(config: models.CreateCollection, change: models.UpdateCollection) -> models.CreateCollection:
    """Return a configuration after a `PATCH`.

    Changes of the vectors' indexes take effect when the graph is next built.

    Raises:
        NotSupported: replicas or strict mode.
        NotFound: a vector of that name is not there.
    """
    if change.params and change.params.model_dump(exclude_none=True).keys() - {"on_disk_payload", "payload"}:
        raise NotSupported(f"params: {ONE_MACHINE}")
    if change.strict_mode_config and change.strict_mode_config.enabled:
        raise NotSupported("strict mode is not enforced here; a Qdrant server does that")
    result = config.model_copy(deep=True)
    spaces = spaces_of(result)
    for name, diff in (change.vectors or {}).items():
        _update_vector(_named(spaces.dense, name), diff)
    for name, params in (change.sparse_vectors or {}).items():
        _named(spaces.sparse, name).index = params.index
    result.hnsw_config = _merged(result.hnsw_config, change.hnsw_config)
    result.optimizers_config = _merged(result.optimizers_config, change.optimizers_config)
    result.quantization_config = _changed_quantization(result.quantization_config, change.quantization_config)
    if change.params:
        if change.params.on_disk_payload is not None:
            result.on_disk_payload = change.params.on_disk_payload
        result.payload = change.params.payload or result.payload
    if change.metadata:
        result.metadata = {**(result.metadata or {}), **change.metadata}
    return result


def with_defaults(defaults: Config, given: BaseModel | None) -> Config:
    """Merge explicit values over defaults."""
    changes = given.model_dump(exclude_none=True) if given else {}
    return defaults.model_copy(update=changes)


def _dense(params: models.VectorParams, config: models.CreateCollection) -> edge.EdgeVectorParams:
    has_own_graph = params.hnsw_config is not None
    own_graph = _hnsw(with_defaults(HNSW, config.hnsw_config), params.hnsw_config) if has_own_graph else None
    return edge.EdgeVectorParams(
        size=params.size,
        distance=to_engine(params.distance),
        on_disk=params.on_disk,
        multivector_config=_multivector(params.multivector_config),
        datatype=to_engine(params.datatype),
        quantization_config=_quantization(params.quantization_config),
        hnsw_config=own_graph,
        memory=to_engine(params.memory),
    )


def _multivector(config: models.MultiVectorConfig | None) -> edge.MultiVectorConfig | None:
    return edge.MultiVectorConfig(to_engine(config.comparator)) if config else None


def _sparse(params: models.SparseVectorParams) -> edge.EdgeSparseVectorParams:
    index = params.index or models.SparseIndexParams()
    return edge.EdgeSparseVectorParams(
        full_scan_threshold=index.full_scan_threshold,
        on_disk=index.on_disk,
        modifier=to_engine(params.modifier),
        datatype=to_engine(index.datatype),
        memory=to_engine(index.memory),
    )


def _hnsw(defaults: models.HnswConfig, diff: models.HnswConfigDiff | None) -> edge.HnswIndexConfig:
    config: edge.HnswIndexConfig = to_engine(with_defaults(defaults, diff))
    return config


def _quantization(config: models.QuantizationConfig | None) -> Any:
    """Unwrap `{"scalar": {...}}`, of which the engine takes the inner part."""
    if config is None:
        return None
    [kind] = type(config).model_fields
    return to_engine(getattr(config, kind))


def _index_info(given: models.PayloadFieldSchema, points: int) -> models.PayloadIndexInfo:
    if isinstance(given, models.PayloadSchemaType):
        return models.PayloadIndexInfo(data_type=given, points=points)
    return models.PayloadIndexInfo(
        data_type=models.PayloadSchemaType(given.type.value), params=given, points=points
    )


def _update_vector(params: models.VectorParams, diff: models.VectorParamsDiff) -> None:
    params.hnsw_config = _merged(params.hnsw_config, diff.hnsw_config)
    params.quantization_config = _changed_quantization(params.quantization_config, diff.quantization_config)
    for name in ("on_disk", "memory"):
        if getattr(diff, name) is not None:
            setattr(params, name, getattr(diff, name))


def _changed_quantization(
    before: models.QuantizationConfig | None, change: models.QuantizationConfigDiff | None
) -> models.QuantizationConfig | None:
    if isinstance(change, models.Disabled):
        return None
    return change or before


def _merged(before: Diff | None, change: Diff | None) -> Diff | None:
    return with_defaults(before, change) if before and change else change or before


def _named(known: Mapping[str, Params], name: str) -> Params:
    if name not in known:
        raise NotFound(f"the collection has no vector named {name!r}; it has {sorted(known)}")
    return known[name]


def with_vector(
    config: models.CreateCollection, name: str, wanted: models.VectorNameConfig
) -> models.CreateCollection:
    """Add a named vector to a configuration.

    Returns `config` itself where it has the same vector already.

    Raises:
        Conflict: it has a vector of that name with another schema.
        RequestError: the name or the size is invalid, a vector of the other kind has the name, or the
            collection's vector is unnamed, which excludes others.
    """
    _require_vector_name(name)
    spaces = spaces_of(config)
    if isinstance(wanted, models.SparseVectorNameConfig):
        _require_free(name, "dense", spaces.dense)
        params = models.SparseVectorParams(
            index=models.SparseIndexParams(datatype=wanted.sparse.datatype), modifier=wanted.sparse.modifier
        )
        if name in spaces.sparse:
            _require_same(name, _sparse_schema(spaces.sparse[name]), _sparse_schema(params))
            return config
        return config.model_copy(update={"sparse_vectors": {**(config.sparse_vectors or {}), name: params}})
    _require_free(name, "sparse", spaces.sparse)
    if isinstance(config.vectors, models.VectorParams):
        raise RequestError("the collection's vector has no name; make another collection with named vectors")
    _require_size(name, wanted.dense.size)
    dense = models.VectorParams(**wanted.dense.model_dump(exclude_none=True))
    if name in spaces.dense:
        _require_same(name, _dense_schema(spaces.dense[name]), _dense_schema(dense))
        return config
    return config.model_copy(update={"vectors": {**(config.vectors or {}), name: dense}})


def _require_free(name: str, kind: str, known: Mapping[str, object]) -> None:
    if name in known:
        raise RequestError(f"vector {name!r} already exists as a {kind} vector")


def _require_same(name: str, known: object, wanted: object) -> None:
    if known != wanted:
        raise Conflict(
            f"vector {name!r} already exists with another schema; delete it first, or choose another name"
        )


def _dense_schema(params: models.VectorParams) -> object:
    datatype = params.datatype or models.Datatype.FLOAT32
    return params.size, params.distance, params.multivector_config, datatype


def _sparse_schema(params: models.SparseVectorParams) -> object:
    datatype = params.index.datatype if params.index else None
    return params.modifier or models.Modifier.NONE, datatype or models.Datatype.FLOAT32


def without_vector(config: models.CreateCollection, name: str) -> models.CreateCollection:
    """Remove a named vector from a configuration.

    Raises:
        NotFound: there is none of that name.
        RequestError: it is the only one.
    """
    spaces = spaces_of(config)
    _named({**spaces.dense, **spaces.sparse}, name)
    if len(spaces.dense) + len(spaces.sparse) == 1:
        raise RequestError(f"{name!r} is the collection's only vector; delete the collection instead")
    dense = {other: params for other, params in spaces.dense.items() if other != name}
    sparse = {other: params for other, params in spaces.sparse.items() if other != name}
    vectors = config.vectors if isinstance(config.vectors, models.VectorParams) and dense else dense
    return config.model_copy(update={"vectors": vectors, "sparse_vectors": sparse})
