"""Convert REST models and errors to and from Qdrant's Rust engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import qdrant_edge as edge
from pydantic import BaseModel

from storage.embedded.qdrant.protocol.errors import RequestError
from storage.errors import SightlineError

FAULTS = ("Service runtime error", "Service internal error", "Out of memory")
OTHER_NAMES = {
    "Datatype": "VectorStorageDatatype",
    "DisabledStemmerParams": "DisabledStemmer",
    "HnswConfig": "HnswIndexConfig",
}


PANIC = "PanicException"


class EngineFault(SightlineError):
    """Report a failure of the engine that no request has caused."""


class EnginePanic(EngineFault):
    """Report a panic of the engine; its shard must be reopened."""


@contextmanager
def engine_errors() -> Iterator[None]:
    """Convert the engine's errors to `RequestError` and `EngineFault`.

    The engine raises `Exception` itself, no subclass, to reject a call, and ValueError or TypeError
    while its arguments are built. Its panics derive from BaseException, by a class that cannot be imported.

    Raises:
        RequestError: with the engine's own sentence.
        EngineFault: the disk is full, a file is damaged and the like.
        EnginePanic: the engine panicked.
    """
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestError(str(error)) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        if str(error).startswith(FAULTS):
            raise EngineFault(str(error)) from error
        raise RequestError(str(error)) from error
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise EnginePanic(f"the engine panicked: {error}") from error


def to_engine(value: Any) -> Any:
    """Convert a configuration model of the REST API to the engine's object.

    Classes and fields have the same names in both, except `OTHER_NAMES`; unset fields keep the engine's
    defaults. A field whose enum the engine lacks only selects the class in the REST API.
    Lists, of stop words and their languages, become sets.
    """
    if isinstance(value, list):
        return {to_engine(part) for part in value}
    if isinstance(value, Enum):
        return _member(_engine_class(value), str(value.value))
    if not isinstance(value, BaseModel):
        return value
    given = {name: part for name in type(value).model_fields if (part := getattr(value, name)) is not None}
    known = {
        name: to_engine(part)
        for name, part in given.items()
        if not isinstance(part, Enum) or _engine_class(part) is not None
    }
    with engine_errors():
        return _engine_class(value)(**known)


def _engine_class(value: object) -> Any:
    name = type(value).__name__
    return getattr(edge, OTHER_NAMES.get(name, name), None)


def _member(kind: Any, value: str) -> Any:
    # They differ in case and underscores alone: `one_and_half_bits` is `OneAndHalfBits`.
    plain = value.replace("_", "").lower()
    for name in dir(kind):
        if name.replace("_", "").lower() == plain:
            return getattr(kind, name)
    raise RequestError(f"the engine has no {value!r}")
