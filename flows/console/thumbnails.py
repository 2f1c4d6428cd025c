"""Serve resized images: decoded and encoded anew, never the original bytes."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from uuid import UUID

from nicegui import app
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from embedding.images.decode import BadImage
from embedding.images.preparation import PIXELS, Downscale
from embedding.images.worker_pool import WorkersFailed, prepare_soon
from flows.resources.images import load_image
from flows.service.pool import Backend
from storage.errors import StoreUnavailable
from storage.postgres import catalog

SMALL_SIDE = 320
LARGE_SIDE = 1280
QUALITY = 82
MOST_BYTES = 32 * 2**20
"""Size of the memory cache of thumbnails."""

AT_ONCE = 3
"""Images of pages that are read and decoded at once; the rest of the workers serve other requests."""

HEADERS = {"Cache-Control": "private, no-cache"}
"""A browser revalidates each image: no cache shows a deleted one."""

PLACEHOLDER = (
    b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'>"
    b"<rect width='32' height='32' fill='#8a94a0' fill-opacity='.15'/>"
    b"<path d='M9 21l5-6 4 5 2-2 3 3z' fill='#8a94a0'/></svg>"
)


@dataclass(frozen=True, slots=True)
class Original:
    """Represent an original image."""

    sha256: str
    read: Callable[[], bytes | None]
    """Returns its bytes, or None if they are missing."""


Find = Callable[[], Original | None]


class Thumbnails:
    """Resize images in dedicated threads, with a least-recently-used cache."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._turn = Lock()
        self._decoders = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="thumbnails")

    async def answer(self, request: Request, find: Find, side: int) -> Response:
        """Return an image as WebP, at most `side` pixels wide and high.

        A missing or undecodable image yields a placeholder with status 404.

        Args:
            find: returns the original, or None.
        """
        known = request.headers.get("if-none-match", "")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, self._answer, known, find, side)

    def _answer(self, known: str, find: Find, side: int) -> Response:
        try:
            original = find()
            etag = None if original is None else f'"{original.sha256}-{side}"'
            if etag is not None and etag in known:
                return Response(status_code=304, headers=HEADERS | {"ETag": etag})
            small = None if original is None else self._small(original, side)
        except (WorkersFailed, StoreUnavailable) as error:
            return Response(str(error), 503, HEADERS, "text/plain")
        if small is None or etag is None:
            return Response(PLACEHOLDER, 404, HEADERS, "image/svg+xml")
        return Response(small, headers=HEADERS | {"ETag": etag}, media_type="image/webp")

    def _small(self, original: Original, side: int) -> bytes | None:
        place = original.sha256, side
        with self._turn:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
        data = original.read()
        small = None if data is None else make_thumbnail(data, side)
        if small is not None:
            with self._turn:
                self._kept[place] = small
                while sum(map(len, self._kept.values())) > MOST_BYTES:
                    self._kept.popitem(last=False)
        return small


def make_thumbnail(data: bytes, side: int) -> bytes | None:
    """Return an image as WebP, at most `side` pixels wide and high.

    None if it cannot be decoded.

    Raises:
        WorkersFailed: it cannot be decoded now.
    """
    try:
        pixels = prepare_soon(Downscale(side), data, name="image").features[PIXELS]
    except BadImage:
        return None
    image = Image.fromarray(pixels)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()


def add_routes(backend: Backend, thumbnails: Thumbnails) -> None:
    """Add `/thumbnails/{id}` and the larger `/pictures/{id}` for living records."""

    async def small(request: Request, id: UUID) -> Response:
        return await thumbnails.answer(request, lambda: stored_image(backend, id), SMALL_SIDE)

    async def large(request: Request, id: UUID) -> Response:
        return await thumbnails.answer(request, lambda: stored_image(backend, id), LARGE_SIDE)

    app.get("/thumbnails/{id}", include_in_schema=False)(small)
    app.get("/pictures/{id}", include_in_schema=False)(large)


def stored_image(backend: Backend, id: UUID) -> Original | None:
    """Return the image of a living record, if it has one.

    Raises:
        StoreUnavailable: Postgres is unavailable.
    """
    with backend.sessions() as sessions, sessions() as session:
        found = catalog.items_with_digests(session, [id])
    picture = found[id][0].image if id in found else None
    if picture is None:
        return None
    limits = backend.settings.limits
    return Original(picture.sha256, lambda: load_image(backend, picture.sha256, picture.origin, limits))
