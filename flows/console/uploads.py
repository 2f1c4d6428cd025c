"""Pictures that people search by: handed in, and kept for a while, so that an address can name them."""

import hashlib
from asyncio import to_thread
from collections import OrderedDict
from threading import Lock
from time import monotonic

from nicegui import app
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from embedding.images.decode import BadImage
from embedding.images.preparation import Shrink
from embedding.images.worker_pool import WorkersFailed, prepare_soon
from flows.api.limits import BoundedBody, ByteBudget, stated_size
from flows.api.problems import ApiError
from flows.console.thumbnails import SMALL_SIDE, Original, Thumbnails

TOO_LARGE = 413
KEPT_FOR_S = 3600
MOST_BYTES = 128 * 2**20
MOST_AT_ONCE = 2
"""How many images of the largest size are handed in at once; of smaller ones more."""


class UploadExpired(LookupError):
    """A search is by an image that is no longer kept."""

    def __init__(self) -> None:
        super().__init__(
            "the picture of this search is gone: such pictures are kept for an hour, and not beyond a "
            "restart of the console; drop, paste or choose it again"
        )


class Uploads:
    """Pictures in memory, each under its SHA-256, for an hour after it was last asked for."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        """The one that was asked for last is last."""

        self._turn = Lock()

    def keep(self, data: bytes) -> str:
        """Keep an image, and return its token; what has not been asked for the longest may go for it."""
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
            Gone: it is no longer kept.
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
            oldest, (asked_at, _) = next(iter(self._kept.items()))
            if monotonic() - asked_at < KEPT_FOR_S:
                return
            del self._kept[oldest]


def add_routes(uploads: Uploads, thumbnails: Thumbnails, max_bytes: int) -> None:
    """Add where a page hands an image in, `/search/pictures`, and where it shows it again."""
    budget = ByteBudget(MOST_AT_ONCE * max_bytes)

    async def take(request: Request) -> Response:
        """Answer with a token, or with what is wrong; both with status 200, for the page shows both."""
        name = request.query_params.get("name") or "the picture"
        body = BoundedBody(request.receive, stated_size(request.scope), max_bytes, budget)
        try:
            data = b"".join([part async for part in Request(request.scope, body.receive).stream()])
            await to_thread(prepare_soon, Shrink(SMALL_SIDE), data, name=name)
            return JSONResponse({"token": uploads.keep(data)})
        except (BadImage, WorkersFailed) as error:
            return JSONResponse({"problem": str(error)})
        except ApiError as error:
            if error.status != TOO_LARGE:
                return PlainTextResponse(error.detail, error.status, error.headers)
            problem = f"{name}: larger than {max_bytes / 2**20:,.0f} MiB; supply a smaller picture"
            return JSONResponse({"problem": problem}, headers={"Connection": "close"})
        finally:
            body.release()

    async def show(request: Request, token: str) -> Response:
        return await thumbnails.answer(request, lambda: uploaded_image(uploads, token), SMALL_SIDE)

    app.post("/search/pictures", include_in_schema=False)(take)
    app.get("/search/pictures/{token}", include_in_schema=False)(show)


def uploaded_image(uploads: Uploads, token: str) -> Original | None:
    """Return an image that was handed in, as far as it is still kept."""
    try:
        data = uploads.get(token)
    except UploadExpired:
        return None
    return Original(token, lambda: data)
