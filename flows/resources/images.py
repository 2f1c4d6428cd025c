"""Load the images of records: from where images are kept, or from where they came, always verified."""

import hashlib
from typing import Protocol

from flows.config.settings import Limits
from storage.blobs import Blobs
from storage.records import Origin
from storage.sources import FetchError, fetch


class KeepsImages(Protocol):
    """Knows where images are kept, as `Stores` does."""

    @property
    def blobs(self) -> Blobs | None: ...


def load_image(
    stores: KeepsImages, sha256: str, origin: Origin, limits: Limits, *, or_origin: bool = False
) -> bytes | None:
    """Load the bytes of a stored image; None where they are gone, or are others now.

    Args:
        or_origin: whether an image that is missing where images are kept is read from where it came.

    Raises:
        OSError: where images are kept cannot be read.
    """
    if stores.blobs is not None:
        try:
            data = stores.blobs.get(sha256)
        except FileNotFoundError:
            data = None
        if data is not None and _is(data, sha256):
            return data
        if not or_origin:
            return None
    return fetch_again(sha256, origin, limits)


def fetch_again(sha256: str, origin: Origin, limits: Limits) -> bytes | None:
    """Fetch an image from where it came, by the rules of whom it came from; None unless it is the same."""
    try:
        data = fetch_image(origin, limits)
    except FetchError:
        return None
    return data if _is(data, sha256) else None


def fetch_image(origin: Origin, limits: Limits) -> bytes:
    """Fetch the bytes at an origin, as `fetch` does, within `limits`."""
    return fetch(
        origin.uri,
        max_bytes=limits.max_picture_bytes,
        timeout_s=limits.fetch_timeout_s,
        private_redirects=limits.private_redirects,
        from_strangers=origin.from_strangers and not limits.private_images,
        folder=origin.folder,
    )


def _is(data: bytes, sha256: str) -> bool:
    return hashlib.sha256(data).hexdigest() == sha256
