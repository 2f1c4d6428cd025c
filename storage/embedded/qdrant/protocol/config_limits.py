"""Reject configurations that this index or a Qdrant server does not accept."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from qdrant_client import models

from storage.embedded.qdrant.protocol.config import spaces_of
from storage.embedded.qdrant.protocol.errors import Invalid, NotSupported, RequestError

MAX_DIMENSIONS = 65_536
MAX_VECTOR_NAME_BYTES = 200
FORBIDDEN_IN_VECTOR_NAMES = re.compile(r'[<>:"/\\|?*\x00\x1f]')
ONE_MACHINE = "the embedded index is one shard on one machine: a Qdrant server does this"

RANGES: dict[type[BaseModel], dict[str, tuple[float, float | None]]] = {
    models.DenseVectorConfig: {"size": (1, MAX_DIMENSIONS)},
    models.HnswConfigDiff: {"ef_construct": (4, None), "full_scan_threshold": (10, None)},
    models.OptimizersConfigDiff: {
        "deleted_threshold": (0, 1),
        "vacuum_min_vector_number": (100, None),
        "max_segment_size": (1, None),
    },
    models.ScalarQuantizationConfig: {"quantile": (0.5, 1)},
    models.VectorParams: {"size": (1, MAX_DIMENSIONS)},
    models.WalConfigDiff: {"wal_capacity_mb": (1, None)},
}
"""Lowest and highest value that a Qdrant server accepts for a field."""


def require_supported(wanted: models.CreateCollection) -> None:
    """Reject a configuration that this index cannot honour.

    Raises:
        NotSupported: shards, replicas or strict mode.
        RequestError: a vector's name is invalid.
        Invalid: a value is outside of its range.
    """
    if wanted.sharding_method not in (None, models.ShardingMethod.AUTO):
        raise NotSupported(f"sharding_method: {ONE_MACHINE}")
    for name in ("shard_number", "replication_factor", "write_consistency_factor"):
        if getattr(wanted, name) not in (None, 1):
            raise NotSupported(f"{name} other than 1: {ONE_MACHINE}")
    require_no_strict_mode(wanted.strict_mode_config)
    spaces = spaces_of(wanted)
    if spaces.dense.keys() & spaces.sparse.keys():
        raise RequestError("a dense and a sparse vector have the same name")
    for name in (*spaces.dense, *spaces.sparse):
        if (reason := vector_name_error(name)) is not None:
            raise RequestError(reason)
    require_ranges(wanted)


def require_no_strict_mode(wanted: models.StrictModeConfig | None) -> None:
    """Reject a strict mode that is on."""
    if wanted and wanted.enabled:
        raise NotSupported("strict mode is not enforced here; a Qdrant server does that")


def vector_name_error(name: str) -> str | None:
    """Return the reason why a vector name is invalid, or None.

    The engine keeps each vector in a folder of that name.
    """
    too_long = len(name.encode()) > MAX_VECTOR_NAME_BYTES
    if not too_long and not FORBIDDEN_IN_VECTOR_NAMES.search(name) and name not in (".", ".."):
        return None
    return (
        f"{name[:MAX_VECTOR_NAME_BYTES]!r} cannot name a vector: at most {MAX_VECTOR_NAME_BYTES} bytes "
        'of UTF-8, none of < > : " / \\ | ? * and NUL'
    )


def require_index_use(schema: models.PayloadFieldSchema) -> None:
    """Reject an integer index with neither lookup nor range."""
    if isinstance(schema, models.IntegerIndexParams) and schema.lookup is False and schema.range is False:
        raise Invalid("an integer index needs lookup or range: with neither it answers no condition")


def require_ranges(wanted: BaseModel) -> None:
    """Reject a configuration with a value outside of `RANGES`."""
    for path, value, low, high in _bounded_values(wanted, ""):
        if value < low or (high is not None and value > high):
            limits = f"{low} or larger" if high is None else f"{low} to {high}"
            raise Invalid(f"{path.removeprefix('.')} is {value}, must be {limits}")


def _bounded_values(part: Any, path: str) -> Iterator[tuple[str, float, float, float | None]]:
    if isinstance(part, dict):
        for name, inner in part.items():
            yield from _bounded_values(inner, f"{path}.{name}")
    elif isinstance(part, BaseModel):
        ranges = RANGES.get(type(part), {})
        for name in type(part).model_fields:
            value = getattr(part, name)
            if name in ranges and value is not None:
                yield f"{path}.{name}", value, *ranges[name]
            else:
                yield from _bounded_values(value, f"{path}.{name}")
