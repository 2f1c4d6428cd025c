"""Keep uploaded query images for a while, under tokens that URLs contain."""

import hashlib
from asyncio import to_thread
from collections import OrderedDict
from threading import Lock
from time import monotonic

from nicegui import app
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from embedding.images.decode import BadImage
from embedding.images.preparation import Downscale
from embedding.images.worker_pool import WorkersFailed, prepare_soon
from flows.api.limits import BoundedBody, ByteBudget, stated_size
from flows.api.problems import ApiError
from flows.console.thumbnails import SMALL_SIDE, Original, Thumbnails
from storage.errors import NotFound

TOO_LARGE = 413
KEPT_FOR_S = 3600
MOST_BYTES = 128 * 2**20
MOST_AT_ONCE = 2
"""Uploads of the largest size at once; of smaller ones more."""


class UploadExpired(NotFound):
    """Report a query image that is no longer kept."""

    def __init__(self) -> None:
        super().__init__(
            "the image of this search has expired: uploaded images are kept for an hour, and not beyond a "
            "restart of the console; drop, paste or choose it again"
        )


class Uploads:
    """Keep images in memory by SHA-256.

    An image expires an hour after its last use.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        """The most recently used image is last."""

        self._turn = Lock()

    def keep(self, data: bytes) -> str:
        """Keep an image, and return its token.

        The least recently used image may go.
        """
        token = hashlib.sha256(data).hexdigest()
        with self._turn:
            self._touch(token, data)
            self._forget_old()
            while len(self._kept) > 1 and sum(len(one) for _, one in self._kept.values()) > MOST_BYTES:
                self._kept.popitem(last=False)
        return token

    def get(self, token: str) -> bytes:
        """Return an image.

        Raises:
            UploadExpired: it is no longer kept.
        """
        with self._turn:
            self._forget_old()
            if token not in self._kept:
                raise UploadExpired
            data = self._kept[token][1]
            self._touch(token, data)
            return data

    def __contains__(self, token: str) -> bool:
        with self._turn:
            self._forget_old()
            return token in self._kept

    def _touch(self, token: str, data: bytes) -> None:
        self._kept[token] = monotonic(), data
        self._kept.move_to_end(token)

    def _forget_old(self) -> None:
        while self._kept:
            oldest, (used_at, _) = next(iter(self._kept.items()))
            if monotonic() - used_at < KEPT_FOR_S:
                return
            del self._kept[oldest]


def add_routes(uploads: Uploads, thumbnails: Thumbnails, max_bytes: int) -> None:
    """Add `/search/pictures`, which receives and shows query images."""
    budget = ByteBudget(MOST_AT_ONCE * max_bytes)

    async def take(request: Request) -> Response:
        """Return a token or an error message, both with status 200."""
        name = request.query_params.get("name") or "the image"
        body = BoundedBody(request.receive, stated_size(request.scope), max_bytes, budget)
        try:
            data = b"".join([part async for part in Request(request.scope, body.receive).stream()])
            await to_thread(prepare_soon, Downscale(SMALL_SIDE), data, name=name)
            return JSONResponse({"token": uploads.keep(data)})
        except (BadImage, WorkersFailed) as error:
            return JSONResponse({"problem": str(error)})
        except ApiError as error:
            if error.http_status != TOO_LARGE:
                return PlainTextResponse(error.detail, error.http_status, error.headers)
            problem = f"{name}: larger than {max_bytes / 2**20:,.0f} MiB; supply a smaller image"
            return JSONResponse({"problem": problem}, headers={"Connection": "close"})
        finally:
            body.release()

    async def show(request: Request, token: str) -> Response:
        return await thumbnails.answer(request, lambda: uploaded_image(uploads, token), SMALL_SIDE)

    app.post("/search/pictures", include_in_schema=False)(take)
    app.get("/search/pictures/{token}", include_in_schema=False)(show)


def uploaded_image(uploads: Uploads, token: str) -> Original | None:
    """Return an uploaded image, or None if it has expired."""
    try:
        data = uploads.get(token)
    except UploadExpired:
        return None
    return Original(token, lambda: data)
