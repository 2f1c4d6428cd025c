"""Decode untrusted bytes to an upright RGB image, or raise `BadImage`."""

import re
import warnings
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageFile, UnidentifiedImageError

from embedding.images.formats import (
    FORMATS,
    MEDIA_TYPES,
    NAMED,
    SIGNATURE,
    UNSUPPORTED,
    foreign_format,
    formats_of,
)
from embedding.images.frames import choose_page, representative
from embedding.images.leaks import LEAKS
from embedding.images.limits import (
    DECODE_BYTES,
    MAX_PIXELS,
    MAX_SCANS,
    BadImage,
    check_cost,
    check_size,
    pixels_in,
    too_large,
    webp_size,
)
from embedding.images.pixels import KEEP_SIDE, check_pixels, to_rgb
from embedding.images.wholeness import endings_of_jpeg, essential_png

__all__ = (
    "DECODE_BYTES",
    "FORMATS",
    "MAX_PIXELS",
    "MAX_SCANS",
    "MEDIA_TYPES",
    "BadImage",
    "DecodedImage",
    "decode_image",
)

OUT_OF_MEMORY = re.compile(r"(?i)out of memory|decoder error -9")
"""Messages of Pillow and its libraries."""

ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Store a decoded image, and the size and format of its file."""

    image: Image.Image
    """sRGB, upright, over white or black; reduced where the file is very large."""

    width: int
    height: int
    format: str
    """One of `FORMATS`."""


def decode_image(data: bytes, *, name: str) -> DecodedImage:
    """Decode one image of `data`; safe in threads and worker processes.

    Missing pixels are rejected; damage beside the pixels is not. Damage that leaves every pixel in place,
    such as a flipped bit in a JPEG, is not detected by its decoder. Untrusted bytes are decoded by a worker
    process (`embedding.images.worker_pool`), which limits their memory and time.

    Args:
        data: the bytes of a file, from any source.
        name: the name of the record in an error.

    Raises:
        BadImage: the only exception that any bytes can cause, except
        MemoryError: the process may not allocate as much memory as decoding takes.
    """
    if not data:
        raise BadImage("empty_file", name, "the file is empty; fetch or export it again")
    if (foreign := foreign_format(data)) is not None:
        raise _unsupported(f"its format, {foreign}, is not read", name)
    _silence_pillow()
    try:
        return _decode(data, name)
    except BadImage:
        raise
    except LEAKS as error:
        _raise_if_out_of_memory(error)
        if (whole := _decode_whole(data, name)) is not None:
            return whole
        raise _unreadable(data, name, error) from error


def _decode_whole(data: bytes, name: str) -> DecodedImage | None:
    """Decode an image damaged beside its pixels; None where some are missing."""
    try:
        if (png := essential_png(data)) is not None:
            return _decode(png, name)
        decoded = [_decode(jpeg, name) for jpeg in endings_of_jpeg(data)]
        if len({one.image.tobytes() for one in decoded}) == 1:
            return decoded[0]
    except BadImage:
        raise
    except LEAKS as error:
        _raise_if_out_of_memory(error)
    return None


def _raise_if_out_of_memory(error: BaseException) -> None:
    if OUT_OF_MEMORY.search(str(error)):
        raise MemoryError from error


def _silence_pillow() -> None:
    """Suppress Pillow's warnings about corrupt tags, also under `-W error`.

    `warnings.catch_warnings` swaps the filters of the whole process, so threads that overlap restore
    each other's. This puts one filter, for Pillow's own modules only, before all others and leaves
    it there. A reset of the filters drops it (pytest does so for each test), hence the check in every call.
    """
    hushed = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if not warnings.filters or warnings.filters[0] != hushed:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _decode(data: bytes, name: str) -> DecodedImage:
    """Decode `data`, or raise one of `LEAKS`."""
    try:
        if (size := webp_size(data)) is not None:
            check_size(size, "WEBP", name)  # Pillow allocates its canvas before the size can be read
        with Image.open(BytesIO(data), formats=formats_of(data)) as opened:
            choose_page(opened, name)
            format = _format_of(opened)
            check_size(opened.size, format, name)
            check_cost(opened.size, data, format, name)
            check_pixels(opened, name)
            return _decode_frame(opened, format)
    except Image.DecompressionBombError as error:
        raise too_large(pixels_in(error), MAX_PIXELS, name) from error


def _format_of(opened: ImageFile.ImageFile) -> str:
    # Pillow's name for a phone's JPEG with a preview or a depth map behind it is MPO.
    return "JPEG" if opened.format == "MPO" else str(opened.format)


def _decode_frame(opened: ImageFile.ImageFile, format: str) -> DecodedImage:
    size = opened.size
    opened.draft(None, (KEEP_SIDE, KEEP_SIDE))  # a JPEG of twice these sides or more comes at half its size
    opened.load()  # this frame only, and all of it, or it raises
    image, orientation = to_rgb(opened), _orientation(opened)
    image = representative(opened, image, to_rgb)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    image.info.clear()  # profiles and tags, which would only travel between processes
    width, height = size[::-1] if orientation >= 5 else size
    return DecodedImage(image, width, height, format)


def _orientation(opened: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where EXIF is broken."""
    try:
        orientation = opened.getexif().get(ORIENTATION)
    except LEAKS:
        return 1
    return orientation if orientation in UPRIGHT else 1


def _unsupported(problem: str, name: str) -> BadImage:
    return BadImage("unsupported_format", name, f"{problem}; export it as {NAMED}")


def _unreadable(data: bytes, name: str, error: BaseException) -> BadImage:
    if not SIGNATURE.match(data):
        found = f"not an image, it starts with {data[:16]!r}"
        return BadImage("not_a_picture", name, f"{found}; supply one of {', '.join(FORMATS)}")
    cause = _cause_of(data, error)
    if UNSUPPORTED.search(cause):
        return _unsupported(f"an unusual variant of its format, which is not read ({cause})", name)
    return BadImage("damaged_picture", name, f"damaged or cut short ({cause}); fetch or export it again")


def _cause_of(data: bytes, error: BaseException) -> str:
    """Return the message of the decoder that knows the file."""
    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    # Image.open keeps the reason to itself, and its message holds an address in memory, new every time
    for format in formats_of(data):
        make, accept = Image.OPEN[format]
        try:
            if accept is None or accept(data[:16]):
                make(BytesIO(data), "").close()
        except LEAKS as reason:
            return str(reason) or "header"
    return "header"
