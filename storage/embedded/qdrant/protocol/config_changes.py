"""Change the configuration and the named vectors of a collection."""

from collections.abc import Mapping
from typing import TypeVar

import qdrant_edge as edge
from qdrant_client import models

from storage.embedded.qdrant.engine.bindings import engine_errors, to_engine
from storage.embedded.qdrant.protocol.config import spaces_of, with_defaults
from storage.embedded.qdrant.protocol.config_limits import (
    ONE_MACHINE,
    require_no_strict_mode,
    require_ranges,
    vector_name_error,
)
from storage.embedded.qdrant.protocol.errors import (
    Conflict,
    Invalid,
    NotFound,
    NotSupported,
    RequestError,
)
from storage.embedded.qdrant.protocol.named_vectors import UNNAMED

Diff = TypeVar("Diff", models.HnswConfigDiff, models.OptimizersConfigDiff, models.SparseIndexParams)
Params = TypeVar("Params")


def apply_update(config: models.CreateCollection, change: models.UpdateCollection) -> models.CreateCollection:
    """Return a configuration after a `PATCH`.

    Changes of the vectors' indexes take effect when the graph is next built.

    Raises:
        NotSupported: replicas or strict mode.
        NotFound: a vector of that name is not there.
        Invalid: a value is outside of its range.
    """
    if change.params and change.params.model_dump(exclude_none=True).keys() - {"on_disk_payload", "payload"}:
        raise NotSupported(f"params: {ONE_MACHINE}")
    require_no_strict_mode(change.strict_mode_config)
    require_ranges(change)
    result = config.model_copy(deep=True)
    spaces = spaces_of(result)
    for name, diff in (change.vectors or {}).items():
        _update_vector(_named(spaces.dense, name), diff)
    for name, params in (change.sparse_vectors or {}).items():
        _update_sparse_vector(_named(spaces.sparse, name), params)
    result.hnsw_config = _merged(result.hnsw_config, change.hnsw_config)
    result.optimizers_config = _merged(result.optimizers_config, change.optimizers_config)
    result.quantization_config = _changed_quantization(result.quantization_config, change.quantization_config)
    if change.params:
        if change.params.on_disk_payload is not None:
            result.on_disk_payload = change.params.on_disk_payload
        result.payload = change.params.payload or result.payload
    result.strict_mode_config = _changed_strict_mode(result.strict_mode_config, change.strict_mode_config)
    if change.metadata:
        result.metadata = {**(result.metadata or {}), **change.metadata}
    return result


def _update_vector(params: models.VectorParams, diff: models.VectorParamsDiff) -> None:
    params.hnsw_config = _merged(params.hnsw_config, diff.hnsw_config)
    params.quantization_config = _changed_quantization(params.quantization_config, diff.quantization_config)
    for name in ("on_disk", "memory"):
        if getattr(diff, name) is not None:
            setattr(params, name, getattr(diff, name))


def _update_sparse_vector(params: models.SparseVectorParams, diff: models.SparseVectorParams) -> None:
    params.index = _merged(params.index, diff.index)
    params.modifier = diff.modifier or params.modifier


def _changed_strict_mode(
    before: models.StrictModeConfig | None, change: models.StrictModeConfig | None
) -> models.StrictModeConfig | None:
    given = [part.model_dump(exclude_none=True) for part in (before, change) if part]
    return models.StrictModeConfig.model_validate({**given[0], **given[-1]}) if given else None


def changes_modifier(before: models.CreateCollection, after: models.CreateCollection) -> bool:
    """Return whether the modifier of a sparse vector changes."""
    old, new = spaces_of(before).sparse, spaces_of(after).sparse
    return any(_modifier(old[name]) != _modifier(new[name]) for name in old.keys() & new.keys())


def _modifier(params: models.SparseVectorParams) -> models.Modifier:
    return params.modifier or models.Modifier.NONE


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
        RequestError: a vector of the other kind has the name.
        Invalid: the name or the size is invalid.
    """
    if (reason := vector_name_error(name)) is not None:
        raise Invalid(reason)
    require_ranges(wanted)
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
    dense = models.VectorParams(**wanted.dense.model_dump(exclude_none=True))
    if name in spaces.dense:
        _require_same(name, _dense_schema(spaces.dense[name]), _dense_schema(dense))
        return config
    return config.model_copy(update={"vectors": {**spaces.dense, name: dense}})


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
    return _modifier(params), datatype or models.Datatype.FLOAT32


def without_vector(config: models.CreateCollection, name: str) -> models.CreateCollection:
    """Remove a named vector from a configuration.

    Returns `config` itself where there is none of that name.
    """
    spaces = spaces_of(config)
    if name not in spaces.dense and name not in spaces.sparse:
        return config
    dense = {other: params for other, params in spaces.dense.items() if other != name}
    sparse = {other: params for other, params in spaces.sparse.items() if other != name}
    vectors = dense[UNNAMED] if dense.keys() == {UNNAMED} else dense
    return config.model_copy(update={"vectors": vectors, "sparse_vectors": sparse})


def new_vector(name: str, wanted: models.VectorNameConfig) -> edge.UpdateOperation:
    """Return the operation that adds a named vector."""
    with engine_errors():
        if isinstance(wanted, models.SparseVectorNameConfig):
            sparse = wanted.sparse
            return edge.UpdateOperation.create_sparse_vector(
                name, to_engine(sparse.modifier), to_engine(sparse.datatype)
            )
        dense = wanted.dense
        return edge.UpdateOperation.create_dense_vector(
            name,
            dense.size,
            to_engine(dense.distance),
            to_engine(dense.multivector_config),
            to_engine(dense.datatype),
        )
