"""Serve the images of records over HTTP with safe headers."""

import asyncio
from contextlib import suppress
from typing import Any
from uuid import UUID

from fastapi import Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from embedding.images.decode import MEDIA_TYPES
from flows.api import limits, queries
from flows.api.limits import MOST_BODIES, ByteBudget
from flows.api.problems import ApiError
from flows.resources.images import load_image
from flows.service.pool import Backend
from storage.postgres import catalog

RETRY_AFTER_S = 10
PART_BYTES = 256 * 2**10
"""Bytes of an image that are sent at once: a server buffers each part until the caller has read it."""

SAFELY = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Content-Disposition": "inline",
    "Cache-Control": "private, no-cache",
}
"""The bytes are untrusted: a browser shows them as an image and as nothing else."""


class ImageSender:
    """Send images within a byte budget, as callers may read slowly."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._most = backend.settings.max_picture_bytes
        self._held = ByteBudget(MOST_BODIES * self._most, most_per_caller=MOST_BODIES * self._most // 2)

    async def answer(self, id: UUID, known: str | None, caller: UUID) -> Response:
        """Return the response of `image_response`, which releases its reservation once sent.

        Raises:
            ApiError: as `image_response`; 503, too many images are being sent.
        """
        await self._held.take(self._most, caller)
        reservation = Reservation(self._held, self._most, caller)
        try:
            found = await run_in_threadpool(image_response, self._backend, id, known)
            reservation.shrink(len(found.body))
        except BaseException:
            reservation.shrink(0)
            raise
        return ImageResponse(found, reservation)


class Reservation:
    """Reserve bytes of the budget for one image."""

    def __init__(self, budget: ByteBudget, size: int, caller: UUID) -> None:
        self._budget, self._size, self._caller = budget, size, caller

    def shrink(self, size: int) -> None:
        """Release all but `size` bytes."""
        spare = max(0, self._size - size)
        self._budget.give(spare, self._caller)
        self._size -= spare


class ImageResponse(Response):
    """Send an image in parts, while its caller reads fast enough."""

    def __init__(self, answer: Response, reservation: Reservation) -> None:
        super().__init__(answer.body, answer.status_code)
        self.raw_headers = answer.raw_headers
        self._reservation = reservation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        data = memoryview(self.body)
        begin = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        try:
            with suppress(TimeoutError):  # then the answer lacks its end, and the server ends the connection
                async with asyncio.timeout(limits.GRACE_S + len(data) / limits.LEAST_RATE):
                    await send(begin)
                    for start in range(0, len(data), PART_BYTES):
                        part = bytes(data[start : start + PART_BYTES])
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._reservation.shrink(0)


def image_response(backend: Backend, id: UUID, known: str | None) -> Response:
    """Return the bytes of an image, or 304 if unchanged.

    Raises:
        ApiError: 404, there is no such record, or no image of it; 503, it cannot be read now.
    """
    with backend.stores() as stores:
        with stores.sessions() as session:
            item, _ = queries.living_item(catalog.items_with_digests(session, [id]), id)
        if item.image is None:
            raise ApiError(404, f"record {id} has no image")
        headers = SAFELY | {"ETag": f'"{item.image.sha256}"'}
        if known is not None and headers["ETag"] in known:
            return Response(status_code=304, headers=headers)
        try:
            data = load_image(stores, item.image.sha256, item.image.origin, backend.settings.limits)
        except OSError as error:
            why = f"images cannot be read now ({error.strerror or error}); see SIGHTLINE_PICTURES_URL"
            raise ApiError(503, why, retry_after_s=RETRY_AFTER_S) from error
    if data is None:
        raise ApiError(404, f"the image of record {id} is gone; see: sightline reconcile")
    return Response(data, headers=headers, media_type=MEDIA_TYPES[item.image.format])


def image_responses() -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of image responses."""
    content = {"schema": {"type": "string", "format": "binary"}}
    etag = {"ETag": {"schema": {"type": "string"}, "description": "The SHA-256 of the bytes."}}
    return {
        200: {
            "description": "The image.",
            "content": dict.fromkeys(MEDIA_TYPES.values(), content),
            "headers": etag,
        },
        304: {"description": "Not modified: If-None-Match names the current image.", "headers": etag},
    }
