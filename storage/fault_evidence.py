"""Extract the codes and messages of errors of the stores' clients."""

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

Store = Literal["Qdrant", "Postgres", "the object store"]
MAX_ANSWER_CHARS = 200
MAX_MESSAGE_CHARS = 1000
MAX_BODY_BYTES = 64 * 1024
"""A longer answer is no error message of Qdrant, and is not parsed."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Hold the facts of an error that the table compares."""

    store: Store
    codes: frozenset[str]
    text: str
    wait_s: float | None = None
    """Seconds until the next attempt, as the server demands."""


def evidence_of(error: BaseException) -> Evidence | None:
    """Extract the codes and the message of a store's error."""
    match error:
        case ResourceExhaustedResponse():
            return Evidence("Qdrant", frozenset({"429"}), str(error), max(0.0, error.retry_after_s))
        case QdrantException():  # its Retry-After is no number of seconds
            return Evidence("Qdrant", frozenset({"429"}), str(error))
        case UnexpectedResponse():
            status = str(error.status_code)
            return Evidence(
                "Qdrant", frozenset({status, "response"}), f"{status}: {_answer(error)}", _named(error)
            )
        case ResponseHandlingException():
            codes = frozenset(_codes(error.source)) | {"no response"}
            return Evidence("Qdrant", codes, str(error.source) or type(error.source).__name__)
        case DBAPIError():
            return Evidence("Postgres", frozenset(_sql_codes(error)), str(error.orig))
    return _object_store(error)


def demanded_wait_s(error: BaseException) -> float | None:
    """Return the seconds to wait that the server names (Retry-After)."""
    found = evidence_of(error)
    return found.wait_s if found else None


def message_of(error: BaseException) -> str:
    """Return the message of a store or its driver in one line."""
    found = evidence_of(error)
    text = found.text if found else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _sql_codes(error: DBAPIError) -> Iterator[str]:
    state = getattr(error.orig, "sqlstate", None)
    if state:
        yield state
    elif isinstance(error, OperationalError):
        yield "no session"
    elif isinstance(error, ProgrammingError):
        yield "no statement"
    if error.connection_invalidated:
        yield "connection lost"
    if isinstance(error, OperationalError):
        yield "operational"


def _codes(error: BaseException) -> Iterator[str]:
    """Yield the classes and TLS reasons of an error and its causes."""
    for one in _chain(error):
        yield from (kind.__name__ for kind in type(one).__mro__)
        if isinstance(one, ssl.SSLError) and one.reason:
            yield one.reason


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _object_store(error: BaseException) -> Evidence | None:
    """Find the error of an object store, or one that it caused.

    The clients are optional: their classes are compared by name.
    """
    for one in _chain(error):
        if type(one).__module__.split(".")[0] in ("botocore", "aiohttp", "aiobotocore", "gcsfs", "azure"):
            codes = _client_codes(one) | set(_codes(one))
            return Evidence("the object store", frozenset(codes), str(one))
    return None


def _client_codes(error: Any) -> set[str]:
    """Return the service code and HTTP status of an error."""
    try:
        own = error.response["Error"]["Code"]
    except (AttributeError, KeyError, TypeError):
        own = None
    return {str(code) for code in (own, getattr(error, "status", None)) if code}


def _answer(error: UnexpectedResponse) -> str:
    if len(error.content) <= MAX_BODY_BYTES:
        try:
            return str(json.loads(error.content)["status"]["error"])[:MAX_MESSAGE_CHARS]
        except (ValueError, KeyError, TypeError, RecursionError):  # the server is no Qdrant
            pass
    words = error.content[:MAX_ANSWER_CHARS].decode(errors="replace").split()
    return " ".join(words) or error.reason_phrase


def _named(error: UnexpectedResponse) -> float | None:
    named = error.headers.get("Retry-After", "") if error.headers else ""
    return float(named) if named.isascii() and named.isdecimal() else None
