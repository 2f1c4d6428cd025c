"""Limit the nesting of JSON to the depth of the log.

The engine writes each operation to its write-ahead log as CBOR, and reads back 127 levels of maps and arrays.
A deeper record is written all the same, and from then on the log cannot be read. A Qdrant server has the
same log, and stops at 127 levels of JSON when it reads a request.
"""

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from storage.embedded.qdrant.protocol.errors import RequestError

MAX_LEVELS = 127
"""Limit of levels of a request's JSON, and of a record of the log."""

MAX_PAYLOAD_LEVELS = 123
"""The record of an upsert has four levels around a payload; graphs and snapshots copy points by upserts."""

ALL_BUT_MARKS = bytes(set(range(256)) - set(b'"[]{}'))
ESCAPE = re.compile(rb"\\.", re.DOTALL)
CASE = 0xDF
OPENING = ord("[")
QUOTED = re.compile(r'"[^"]*"')


def require_shallow(body: bytearray) -> None:
    """Reject a JSON body that nests too deep.

    It takes a tenth of the time of parsing vectors: one pass keeps only quotes and brackets.

    Raises:
        RequestError: it has more than `MAX_LEVELS`.
    """
    # No backslash stands outside of a string, so all pairs can go.
    plain = ESCAPE.sub(b"", body) if b"\\" in body else body
    outside_strings = b"".join(plain.translate(None, ALL_BUT_MARKS).split(b'"')[::2])
    if len(outside_strings) <= MAX_LEVELS:
        return
    # Braces and brackets differ by the bit of a letter's case: without it two marks are left.
    marks = np.frombuffer(outside_strings, np.uint8) & CASE
    deepest = int(np.where(marks == OPENING, 1, -1).cumsum().max())
    if deepest > MAX_LEVELS:
        raise RequestError(
            f"the request is nested {deepest} levels deep; the limit is {MAX_LEVELS} levels of JSON"
        )


def require_payload(payload: Any, key: str | None = None) -> None:
    """Reject a payload that nests deeper than the engine can read.

    Args:
        payload: an object of JSON, or None.
        key: the path below which it is to be merged.

    Raises:
        RequestError: path and payload have more than `MAX_PAYLOAD_LEVELS`.
    """
    above = 0 if key is None else path_levels(key)
    if above + levels(payload, MAX_PAYLOAD_LEVELS - above) > MAX_PAYLOAD_LEVELS:
        below = f" below {key[:40]!r}" if key is not None else ""
        raise RequestError(
            f"the payload{below} is nested deeper than the limit of {MAX_PAYLOAD_LEVELS} levels"
        )


def path_levels(path: str) -> int:
    """Count the levels of a payload path: `a.b[0]` has three."""
    plain = QUOTED.sub("", path)
    return 1 + plain.count(".") + plain.count("[")


def levels(value: Any, enough: int = MAX_LEVELS) -> int:
    """Count nested objects and arrays, up to `enough` and one more."""
    count = 0
    layer = _containers([value])
    while layer and count <= enough:
        count += 1
        layer = _containers(chain.from_iterable(map(_inner, layer)))
    return count


def _containers(values: Iterable[Any]) -> list[dict[str, Any] | list[Any]]:
    return [value for value in values if isinstance(value, dict | list)]


def _inner(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
