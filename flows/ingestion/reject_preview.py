"""Preview the image of a reject."""

from io import BytesIO
from pathlib import Path
from uuid import UUID

from PIL import Image
from sqlalchemy.orm import Session, sessionmaker

from embedding.images.decode import BadImage
from embedding.images.preparation import PIXELS, Downscale
from embedding.images.worker_pool import WorkersFailed, prepare_soon
from flows.config.settings import Limits
from flows.resources.images import fetch_image
from storage.errors import NotFound
from storage.postgres import runs
from storage.postgres.rejects import open_rejects
from storage.records import Origin, Rejected
from storage.sources import BadSource, FetchError, find_row
from storage.sources.read_options import ReadOptions

SIDE = 480
JPEG_QUALITY = 82
SAME_KEY = "duplicate_key"
"""Reason of a row that its key does not identify: another record has the same key."""


class NoPreview(NotFound):
    """Report that a reject has no image to preview, and the remedy."""


def preview_reject(sessions: sessionmaker[Session], limits: Limits, id: UUID) -> bytes:
    """Return the image of an open reject as a small JPEG.

    The JPEG holds only the pixels of the file. The row is read again from where its source was read last, by
    the same rules: no path leads out of the source, no more is fetched than an ingest fetches, and redirects
    lead to no private network. The file is decoded in a process of its own, as a file that crashes a decoder
    may be among rejects.

    Raises:
        NoPreview: there is no such image, or it cannot be decoded.
    """
    with sessions() as session:
        found = open_rejects(session, ids=[id])
        read = runs.last_read(session, found[0].source) if found else None
    if not found or read is None:
        raise NoPreview("this reject is not open any more")
    [reject], (location, options) = found, read
    try:
        reading = ReadOptions.of_json(options, limits.links_within)
        row = find_row(Path(location), reject.place, reject.key, reading)
    except (BadSource, OSError) as error:
        raise NoPreview(f"its source cannot be read: {error}") from error
    if row is None or (row.place != reject.place and reject.reason == SAME_KEY):
        raise NoPreview("its source has this row no longer; a retry takes it off this list")
    if isinstance(row, Rejected):
        raise NoPreview(row.message)
    if row.image is None:
        raise NoPreview("the record names no image")
    try:
        data = row.data or fetch_image(Origin(row.image, folder=row.folder), limits)
        return as_small_jpeg(data, name=row.place)
    except (FetchError, BadImage, WorkersFailed) as error:
        raise NoPreview(str(error)) from error


def as_small_jpeg(data: bytes, *, name: str) -> bytes:
    """Decode an image and encode it as a small JPEG.

    Raises:
        BadImage: the bytes cannot be decoded, or crash the decoder.
        WorkersFailed: too many others wait.
    """
    shown = prepare_soon(Downscale(SIDE), data, name=name)
    buffer = BytesIO()
    Image.fromarray(shown.features[PIXELS]).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()
