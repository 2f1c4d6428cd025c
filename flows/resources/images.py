"""Load stored images, verified by SHA-256, and decode them."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Protocol, TypeVar

from embedding.images.preparation import PreparedImage
from embedding.images.worker_pool import Workers
from embedding.pipeline import map_in_order
from flows.config.settings import Limits
from storage.blobs import Blobs
from storage.records import Origin
from storage.redaction import redacted
from storage.sources import FetchError, fetch

LOADS_AT_ONCE = 8
"""Most of a load is waiting for a disk or a network."""

Key = TypeVar("Key")


class BlobAccess(Protocol):
    """Give access to the blob store, as `Stores` does."""

    @property
    def blobs(self) -> Blobs | None: ...


def load_image(
    stores: BlobAccess, sha256: str, origin: Origin, limits: Limits, *, or_origin: bool = False
) -> bytes | None:
    """Load the bytes of a stored image and verify them.

    Returns None if the image is missing or has changed. Without a blob store it is fetched from its origin,
    by the rules of that origin.

    Args:
        or_origin: fetch an image that the blob store lacks from its origin.

    Raises:
        OSError: the blob store cannot be read.
    """
    if stores.blobs is not None:
        try:
            data = stores.blobs.get(sha256)
        except FileNotFoundError:
            data = None
        if data is not None and _matches(data, sha256):
            return data
        if not or_origin:
            return None
    try:
        data = fetch_image(origin, limits)
    except FetchError:
        return None
    return data if _matches(data, sha256) else None


def fetch_image(origin: Origin, limits: Limits) -> bytes:
    """Fetch the bytes at an origin, as `fetch` does, within `limits`.

    Raises:
        FetchError: the bytes cannot be read.
    """
    return fetch(
        origin.uri,
        max_bytes=limits.max_picture_bytes,
        timeout_s=limits.fetch_timeout_s,
        private_redirects=limits.private_redirects,
        from_strangers=origin.from_strangers and not limits.private_images,
        folder=origin.folder,
        hosts=limits.hosts,
    )


def decode_many(
    workers: Workers, origins: Mapping[Key, Origin], load: Callable[[Key, Origin], bytes | None]
) -> dict[Key, "Future[PreparedImage]"]:
    """Load images concurrently and submit them to the worker pool.

    Args:
        load: returns the bytes of an image, or None if it is missing; called in several threads.

    Returns:
        By key, in the order of `origins`, the images that were loaded. A future may raise `BadImage` or
        `WorkersFailed`.
    """

    def read(entry: tuple[Key, Origin]) -> tuple[Key, Origin, bytes | None]:
        return *entry, load(*entry)

    loaded = map_in_order(read, origins.items(), threads=LOADS_AT_ONCE, slow=lambda _: True)
    return {
        key: workers.submit(data, name=redacted(origin.uri))
        for key, origin, data in loaded
        if data is not None
    }


def _matches(data: bytes, sha256: str) -> bool:
    return hashlib.sha256(data).hexdigest() == sha256
