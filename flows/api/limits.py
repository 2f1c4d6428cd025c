"""Limit the rate, the size and the memory of requests."""

import asyncio
from collections import Counter
from collections.abc import Callable
from threading import Lock
from time import monotonic
from uuid import UUID

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.api.problems import ApiError

MINUTE_S = 60.0
MAX_QUEUED = 10_000
"""Requests in the queue at most."""

MAX_QUEUED_BYTES = 2 * 2**30
"""Bytes of all queued requests."""

MAX_DELETES = 1000
"""Records that one request may delete whose key lacks the scope `admin`."""

MOST_DIGITS = 20
"""Digits of a stated length: more than any limit has."""

MOST_BODIES = 4
"""Bodies of the largest size held at once; each takes about four times its size meanwhile."""

SMALL_BYTES = 64 * 2**10
"""Bodies up to this size are not counted: connections are limited anyway."""

STEP_BYTES = 2**20
"""Step by which the reservation of a body without a stated size grows."""

WAIT_S = 5.0
"""Seconds to wait for room."""

RETRY_AFTER_S = 5
GRACE_S = 20.0
LEAST_RATE = 128 * 2**10
"""Bytes a second at which a body must arrive, once `GRACE_S` are over."""

TOO_LARGE = "send fewer records at once (SIGHTLINE_API__MAX_BODY_BYTES is the limit)"
CALLER = "sightline.caller"
"""Key of the request's scope that holds the id of its API key."""


class RateLimiter:
    """Limit requests with a token bucket for each key.

    A bucket holds a minute's requests and refills evenly. It counts in this process alone: with several of
    them a key may make so many requests of each.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = monotonic) -> None:
        self._most, self._clock = float(per_minute), clock
        self._left: dict[UUID, tuple[float, float]] = {}
        """By key: the requests left, and the time of that count."""

        self._turn = Lock()

    def take(self, key: UUID) -> float:
        """Count a request; return the seconds to wait, 0 if allowed."""
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


class ByteBudget:
    """Limit the bytes that requests hold in a process at once.

    A body takes its room with its first byte, and gives it back with the answer. One event loop at a time
    uses a budget.

    Args:
        most: bytes of all bodies together; a body up to `SMALL_BYTES` is not counted, and never waits.
        most_per_caller: bytes of the bodies of one caller; by default as many as of all.
    """

    def __init__(self, most: int, most_per_caller: int | None = None) -> None:
        self._most = most
        self._most_per_caller = most if most_per_caller is None else most_per_caller
        self._held: Counter[object] = Counter()
        self._released = asyncio.Event()

    async def take(self, size: int, caller: object) -> None:
        """Reserve `size` bytes for a caller, waiting up to `WAIT_S`.

        Raises:
            ApiError: 503, there is no room.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                while not self._try_take(size, caller):
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError as error:
            why = "too many large requests at once; send them one after another"
            raise ApiError(503, why, kind="too-many-bodies", retry_after_s=RETRY_AFTER_S) from error

    def give(self, size: int, caller: object) -> None:
        """Release bytes of a caller."""
        self._held[caller] -= size
        if self._held[caller] <= 0:
            del self._held[caller]
        self._released.set()

    def _try_take(self, size: int, caller: object) -> bool:
        held = self._held[caller]
        if held + size > self._most_per_caller or self._held.total() + size > self._most:
            return False
        self._held[caller] = held + size
        return True


class BoundedBody:
    """Receive one body within limits of size, time and memory.

    Args:
        receive: the ASGI receive channel.
        expected: bytes that the request states; 0 where it states none.
        caller: returns the sender, once the body is read.
        remedy: advice for a body that is too large.
    """

    def __init__(
        self,
        receive: Receive,
        expected: int,
        max_bytes: int,
        budget: ByteBudget,
        *,
        caller: Callable[[], object] = lambda: None,
        remedy: str = "send less at once",
    ) -> None:
        self._receive, self._expected, self._max_bytes = receive, expected, max_bytes
        self._budget, self._find_caller, self._remedy = budget, caller, remedy
        self._caller: object = None
        self._began: float | None = None
        self._read = self._held = 0
        self._is_whole = False

    async def receive(self) -> Message:
        """Return the next part.

        Raises:
            ApiError: 408, it comes too slowly; 413, it is too large; 503, there is no room for it.
        """
        if self._is_whole:
            return await self._receive()  # waits for the end of the connection
        self._refuse_large(self._expected)
        if self._began is None:
            self._caller = self._find_caller()
            await self._hold(self._expected)
            self._began = monotonic()
        try:
            async with asyncio.timeout(self._began + GRACE_S + self._read / LEAST_RATE - monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            why = f"the body came slower than {LEAST_RATE / 2**10:,.0f} KiB a second; send less at once"
            raise ApiError(408, why, headers={"Connection": "close"}) from error
        self._read += len(message.get("body", b""))
        self._refuse_large(self._read)
        self._is_whole = not message.get("more_body", False)
        await self._hold(self._read)
        return message

    def release(self) -> None:
        """Release the reserved bytes."""
        if self._held:
            self._budget.give(self._held, self._caller)
            self._held = 0

    def _refuse_large(self, size: int) -> None:
        if size > self._max_bytes:
            raise ApiError(413, f"the request has more than {self._max_bytes:,} bytes; {self._remedy}")

    async def _hold(self, size: int) -> None:
        if size <= max(self._held, SMALL_BYTES):
            return
        more = min(max(size, self._held + STEP_BYTES if self._held else size), self._max_bytes) - self._held
        await self._budget.take(more, self._caller)
        self._held += more


class BodyLimitMiddleware:
    """Limit the body of each request while the application reads it.

    The key is checked before that.

    Args:
        budget: shared by all requests that hold bodies at once.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, budget: ByteBudget) -> None:
        self._app, self._max_bytes, self._budget = app, max_bytes, budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = BoundedBody(
            receive,
            stated_size(scope),
            self._max_bytes,
            self._budget,
            caller=lambda: scope.get(CALLER),
            remedy=TOO_LARGE,
        )

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                body.release()  # the answer is ready, and a client may take its time to read it
            await send(message)

        try:
            await self._app(scope, body.receive, sending)
        finally:
            body.release()


def stated_size(scope: Scope) -> int:
    """Return the stated size of a request's body; 0 without one."""
    stated = Headers(scope=scope).get("content-length", "")
    return int(stated[:MOST_DIGITS]) if stated.isdecimal() else 0
