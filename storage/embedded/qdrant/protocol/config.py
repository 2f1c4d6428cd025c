"""Convert the configuration of a collection."""

from collections.abc import Mapping
from typing import Any, TypeVar

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors, to_engine
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
Config = TypeVar("Config", bound=BaseModel)
PLACEHOLDER = "none"
"""Vector that a shard is created with where the collection has none; the engine needs one at that moment."""


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
    optimizers = optimizers_of(config)
    sparse = {name: _sparse(params) for name, params in spaces.sparse.items()}
    if not spaces.dense and not sparse:
        sparse = {PLACEHOLDER: edge.EdgeSparseVectorParams()}
    with engine_errors():
        return edge.EdgeConfig(
            vectors={name: _dense(params, config) for name, params in spaces.dense.items()} or None,
            sparse_vectors=sparse or None,
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
                vectors=config.vectors or {},
                on_disk_payload=config.on_disk_payload,
                payload=config.payload,
                id_tracker=config.id_tracker,
                sparse_vectors=config.sparse_vectors,
            ),
            hnsw_config=with_defaults(HNSW, config.hnsw_config),
            optimizer_config=optimizers_of(config),
            wal_config=with_defaults(WAL, config.wal_config),
            quantization_config=config.quantization_config,
            strict_mode_config=_strict_mode(config.strict_mode_config),
            metadata=config.metadata,
        ),
        payload_schema={
            field: _index_info(given, shard.payload_schema[field].points)
            for field, given in schema.items()
            if field in shard.payload_schema
        },
    )


def with_defaults(defaults: Config, given: BaseModel | None) -> Config:
    """Merge explicit values over defaults."""
    changes = given.model_dump(exclude_none=True) if given else {}
    return defaults.model_copy(update=changes)


def optimizers_of(config: models.CreateCollection) -> models.OptimizersConfig:
    """Return the settings of the optimizers, with `auto` as unset."""
    given = with_defaults(OPTIMIZERS, config.optimizers_config)
    is_number = isinstance(given.max_optimization_threads, int)
    return given if is_number else given.model_copy(update={"max_optimization_threads": None})


def _strict_mode(config: models.StrictModeConfig | None) -> models.StrictModeConfigOutput | None:
    if config is None:
        return None
    return models.StrictModeConfigOutput.model_validate(config.model_dump(exclude_none=True))


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
    if isinstance(given, models.TextIndexParams) and given.tokenizer is None:
        given = given.model_copy(update={"tokenizer": models.TokenizerType.WORD})
    return models.PayloadIndexInfo(
        data_type=models.PayloadSchemaType(given.type.value), params=given, points=points
    )
