"""Convert point ids and vectors between the REST API and the engine."""

from math import hypot
from uuid import UUID

import qdrant_edge as edge
from qdrant_client import models
from typing_extensions import TypeIs

from storage.embedded.qdrant.protocol.errors import NotSupported, RequestError
from storage.embedded.qdrant.protocol.named_vectors import UNNAMED, Spaces

EngineVector = list[float] | list[list[float]] | edge.SparseVector
EngineVectors = list[float] | list[list[float]] | dict[str, EngineVector]
Rows = list[float] | list[list[float]]

MAX_ID = 2**64 - 1
MAX_INDEX = 2**32 - 1
MAX_NORM = 1e18


def point_id(id: models.ExtendedPointId) -> int | str:
    """Return the canonical form of a point id.

    It is a number, or a UUID with hyphens in lower case.

    Raises:
        RequestError: it is neither an unsigned 64-bit number nor a UUID.
    """
    if isinstance(id, UUID):
        return str(id)
    if isinstance(id, int) and 0 <= id <= MAX_ID:
        return id
    try:
        return str(UUID(str(id)))
    except ValueError as error:
        raise RequestError(f"{id!r} is not a point id: use an unsigned 64-bit number or a UUID") from error


def rest_id(id: int | UUID | str) -> int | str:
    """Convert a point id of the engine to the REST API's form."""
    return id if isinstance(id, int) else str(id)


def to_engine(vector: models.VectorStruct, spaces: Spaces) -> EngineVectors:
    """Check all vectors of a point and convert them for the engine.

    The engine must not receive an invalid one: it panics on ragged rows, and it stores NaN.

    Raises:
        RequestError: a vector is unknown, has another kind or size than its space, or is not finite.
        NotSupported: it is a text or an image still to be embedded.
    """
    if isinstance(vector, dict):
        return {name: _check(part, name, spaces) for name, part in vector.items()}
    if isinstance(vector, list):
        return _rows(vector, UNNAMED, spaces)
    raise _inference()


def query_vector(vector: models.Vector, using: str, spaces: Spaces) -> EngineVector:
    """Check one vector to search with in the space `using`.

    In a multivector space, a plain list is one row, as on a server.

    Raises:
        RequestError: there is no such space, or the vector does not belong in it.
        NotSupported: it is a text or an image still to be embedded.
    """
    return _check(vector, using, spaces)


def to_rest(vector: object) -> models.VectorStructOutput | None:
    """Convert the engine's vectors of a point to the REST API's form.

    The unnamed vector, when alone, is a plain list.
    """
    if isinstance(vector, dict):
        return {name: _to_rest(part) for name, part in vector.items()}
    return vector if isinstance(vector, list) else None


def stored_vector(point: edge.Record | edge.ScoredPoint, name: str) -> models.Vector | None:
    """Return one vector of a point that was read, or None."""
    vectors = to_rest(point.vector)
    return vectors.get(name) if isinstance(vectors, dict) else vectors


def _to_rest(vector: EngineVector) -> models.VectorOutput:
    if isinstance(vector, edge.SparseVector):
        return models.SparseVector(indices=vector.indices, values=vector.values)
    return vector


def _check(vector: models.Vector, name: str, spaces: Spaces) -> EngineVector:
    if isinstance(vector, list):  # first, because telling apart the models below costs more than the check
        return _rows(vector, name, spaces)
    if isinstance(vector, models.SparseVector):
        return _sparse(vector, name, spaces)
    raise _inference()


def _sparse(vector: models.SparseVector, name: str, spaces: Spaces) -> edge.SparseVector:
    if name not in spaces.sparse:
        raise _wrong_vector("sparse", name, spaces)
    indices = vector.indices
    if len(indices) != len(vector.values):
        raise RequestError(f"vector {name!r} has {len(indices)} indices but {len(vector.values)} values")
    if len(set(indices)) != len(indices):
        raise RequestError(f"vector {name!r} has the same index twice; indices must be unique")
    if indices and not 0 <= min(indices) <= max(indices) <= MAX_INDEX:
        raise RequestError(f"vector {name!r} has an index outside 0 to {MAX_INDEX}")
    _check_numbers(vector.values, name)
    return edge.SparseVector(indices, vector.values)


def _rows(vector: Rows, name: str, spaces: Spaces) -> Rows:
    space = spaces.dense.get(name)
    if space is None:
        raise _wrong_vector("dense", name, spaces)
    many = is_rows(vector)
    if many and space.multivector_config is None:
        raise RequestError(f"vector {name!r} is one list of numbers, not a list of lists")
    for row in vector if many else [vector]:
        _check_row(row, name, space.size)
    return vector


def is_rows(vector: Rows) -> TypeIs[list[list[float]]]:
    """Return whether a vector is a multivector, which is never empty."""
    return bool(vector) and isinstance(vector[0], list)


def _check_row(row: object, name: str, size: int) -> None:
    if not isinstance(row, list):
        raise RequestError(f"vector {name!r} mixes numbers and lists")
    if len(row) != size:
        raise RequestError(f"vector {name!r} has {size} dimensions, got {len(row)}")
    _check_numbers(row, name)


def _check_numbers(numbers: list[float], name: str) -> None:
    norm = hypot(*numbers)  # NaN and infinity show in it, and it is one fast call
    if not norm <= MAX_NORM:
        raise RequestError(
            f"vector {name!r} has the norm {norm}; its numbers must be finite, and the norm at most "
            f"{MAX_NORM}: beyond, scores overflow 32-bit floats"
        )


def _wrong_vector(kind: str, name: str, spaces: Spaces) -> RequestError:
    known = sorted([*spaces.dense, *spaces.sparse])
    if name in known:
        return RequestError(f"vector {name!r} is not {kind} in this collection")
    return RequestError(f"Not existing vector name error: {name!r}; the collection has {known}")


def _inference() -> NotSupported:
    return NotSupported(
        "the embedded index has no models: embed texts and images on the client, send vectors"
    )
