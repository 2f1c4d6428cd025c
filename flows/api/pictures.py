"""A record's picture over HTTP: a stranger's bytes, handed on so that they do no harm."""

from typing import Any
from uuid import UUID

from fastapi import Response

from embedding.images import MEDIA_TYPES
from flows.api import looks
from flows.api.problems import Refusal
from flows.backend import Backend
from flows.stored_images import load_image
from storage import catalog

RETRY_AFTER_S = 10
SAFELY = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Content-Disposition": "inline",
    "Cache-Control": "private, no-cache",
}
"""The bytes are a stranger's: a browser shows them as a picture and as nothing else."""


def picture(backend: Backend, id: UUID, known: str | None) -> Response:
    """Return the bytes of a picture, or that the caller has them.

    Raises:
        Refusal: 404, there is no such record, or no picture of it; 503, it cannot be read now.
    """
    with backend.stores() as stores:
        with stores.sessions() as session:
            item, _ = looks.living(catalog.items_with_digests(session, [id]), id)
        if item.picture is None:
            raise Refusal(404, f"record {id} has no picture")
        headers = SAFELY | {"ETag": f'"{item.picture.sha256}"'}
        if known is not None and headers["ETag"] in known:
            return Response(status_code=304, headers=headers)
        try:
            data = load_image(stores, item.picture.sha256, item.picture.origin, backend.settings.limits)
        except OSError as error:
            why = f"pictures cannot be read now ({error.strerror or error}); see SIGHTLINE_PICTURES_URL"
            raise Refusal(503, why, retry_after_s=RETRY_AFTER_S) from error
    if data is None:
        raise Refusal(404, f"the picture of record {id} is gone; see: sightline reconcile")
    return Response(data, headers=headers, media_type=MEDIA_TYPES[item.picture.format])


def described_picture() -> dict[int | str, dict[str, Any]]:
    """Return how the description tells of a picture."""
    content = {"schema": {"type": "string", "format": "binary"}}
    etag = {"ETag": {"schema": {"type": "string"}, "description": "The SHA-256 of the bytes."}}
    return {
        200: {
            "description": "The picture.",
            "content": dict.fromkeys(MEDIA_TYPES.values(), content),
            "headers": etag,
        },
        304: {"description": "The caller has it, as If-None-Match says.", "headers": etag},
    }
