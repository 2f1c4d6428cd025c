"""What one caller may use up: the size of a request, and how many there are a minute."""

from collections.abc import Callable
from threading import Lock
from time import monotonic
from uuid import UUID

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.api.problems import Refusal

MINUTE_S = 60.0
MAX_QUEUED = 10_000
"""Requests that may wait to be carried out."""

MAX_QUEUED_BYTES = 2 * 2**30
"""Of all of these."""

MAX_DELETES = 1000
"""Records that one request may delete whose key lacks the scope `admin`."""

MOST_DIGITS = 20
"""Of a stated length: that is more than anybody takes."""


class Rates:
    """A token bucket for each key: it holds a minute's requests, and fills up evenly.

    It counts in this process alone: with several of them a key may make so many requests of each.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = monotonic) -> None:
        self._most, self._clock = float(per_minute), clock
        self._left: dict[UUID, tuple[float, float]] = {}
        """By key, how many requests were left, and when that was."""

        self._turn = Lock()

    def take(self, key: UUID) -> float:
        """Count a request of `key`; return 0 if it may be made, else in how many seconds one may."""
        a_second = self._most / MINUTE_S
        with self._turn:
            now = self._clock()
            left, at = self._left.get(key, (self._most, now))
            left = min(self._most, left + (now - at) * a_second)
            if left < 1:
                self._left[key] = (left, now)
                return (1 - left) / a_second
            self._left[key] = (left - 1, now)
            return 0.0


class BodyLimit:
    """Refuses the body of a request that is too large, as soon as somebody reads it: a key comes first."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "")
        expected = int(stated[:MOST_DIGITS]) if stated.isdecimal() else 0
        read = 0

        async def counted() -> Message:
            nonlocal read
            if expected > self._max_bytes:
                raise self._too_large()
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            f"the request has more than {self._max_bytes:,} bytes; send fewer records at once "
            "(SIGHTLINE_API__MAX_BODY_BYTES is the limit)",
        )
