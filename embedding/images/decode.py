"""Decode untrusted bytes to an upright RGB image, or raise `BadImage`."""

import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from embedding.errors import UnusableInput

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MEDIA_TYPES = {format: f"image/{format.lower()}" for format in FORMATS}
MAX_PIXELS = 80_000_000  # below the 89 million at which Pillow begins to warn
DECODE_BYTES = 800 * 2**20
"""Memory limit of decoding one image: enough for a JPEG of `MAX_PIXELS`, four channels and many scans."""

BYTES_PER_PIXEL = {"PNG": 13, "WEBP": 24, "GIF": 13, "BMP": 9, "TIFF": 13, "AVIF": 18}
"""Peak memory of decoding formats that are always read at full size, as measured."""

MAX_PIXELS_OF_FORMAT = {
    format: min(MAX_PIXELS, DECODE_BYTES // size // 1_000_000 * 1_000_000)
    for format, size in BYTES_PER_PIXEL.items()
}
"""A JPEG is read at a part of its size, so that it may have `MAX_PIXELS`."""

MAX_PIXELS_PER_BYTE = 100_000
"""More than a blank page has in any format. Applies above `BLANK_PIXELS`."""

BLANK_PIXELS = 4_000_000
MAX_SCANS = 100
"""Encoders write about ten; each scan of a progressive JPEG costs as much as a whole image."""

MIN_SIDE = 4
MAX_ASPECT = 100  # a model scales the shorter side to a few hundred pixels, and the longer one with it
KEEP_SIDE = 640  # more than any model reads

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB")

SIGNATURE = re.compile(
    rb"(?s)\xff\xd8\xff|\x89PNG|RIFF....WEBP|GIF8[79]a|BM....\0{4}|II[*+]\0|MM\0[*+]|....ftypavi[fs]"
)
OUT_OF_MEMORY = re.compile(r"(?i)out of memory|decoder error -9")
"""Messages of Pillow and its libraries."""

MARKER = re.compile(rb"(?s)\xff([\x01-\xcf\xd8-\xfe])")
"""Of a JPEG, except restarts and stuffed bytes, of which compressed data are full."""

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
WITHOUT_LENGTH = (0x01, 0xD8)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC = 0x0112, 258, 262
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Exceptions of Pillow on corrupt bytes: found by fuzzing; raised in its source; under `-W error`.
FUZZED = (OSError, SyntaxError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError)
LEAKS = (*FUZZED, LookupError, EOFError, struct.error, zlib.error, Warning)


class BadImage(UnusableInput):
    """Report bytes that cannot be decoded or encoded.

    Attributes:
        reason: a code to count by: `empty_file`, `not_a_picture`, `damaged_picture`, `too_many_pixels`,
            `too_small`, `extreme_shape`, `unsupported_pixels`, `too_costly` or `crashed_decoder`.
    """

    def __init__(self, reason: str, name: str, problem: str) -> None:
        super().__init__(reason, name, problem)  # all, or it could not be pickled back from a worker process
        self.reason = reason

    def of(self, name: str) -> "BadImage":
        """Return the same problem for another record with these bytes."""
        return BadImage(self.reason, name, self.args[2])

    def __str__(self) -> str:
        return f"{self.args[1]}: {self.args[2]}"


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Store a decoded image, and the size and format of its file."""

    image: Image.Image
    """RGB, upright, over white; reduced where the file is very large."""

    width: int
    height: int
    format: str
    """One of `FORMATS`."""


def decode_image(data: bytes, *, name: str) -> DecodedImage:
    """Decode the first frame of `data`; safe in threads and worker processes.

    Missing pixels are rejected. Damage that leaves every pixel in place, such as a flipped bit in a
    JPEG, is not detected by its decoder. Untrusted bytes are decoded by a worker process
    (`embedding.images.worker_pool`), which limits their memory and time.

    Args:
        data: the bytes of a file, from any source.
        name: the name of the record in an error.

    Raises:
        BadImage: the only exception that any bytes can cause, except
        MemoryError: the process may not allocate as much memory as decoding takes.
    """
    if not data:
        raise BadImage("empty_file", name, "the file is empty; fetch or export it again")
    _silence_pillow()
    try:
        if (size := _webp_size(data)) is not None:
            _check_size(size, "WEBP", name)  # Pillow allocates its canvas before the size can be read
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            format = _format_of(opened)
            _check_size(opened.size, format, name)
            _check_cost(opened.size, data, format, name)
            _check_pixels(opened, name)
            return _decode_frame(opened, format)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(_pixels_in(error), MAX_PIXELS, name) from error
    except LEAKS as error:
        if OUT_OF_MEMORY.search(str(error)):
            raise MemoryError from error
        raise _unreadable(data, name, error) from error


def _silence_pillow() -> None:
    """Suppress Pillow's warnings about corrupt tags, also under `-W error`.

    `warnings.catch_warnings` swaps the filters of the whole process, so threads that overlap restore
    each other's. This puts one filter, for Pillow's own modules only, before all others and leaves
    it there. A reset of the filters drops it (pytest does so for each test), hence the check in every call.
    """
    hushed = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if not warnings.filters or warnings.filters[0] != hushed:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_size(size: tuple[int, int], format: str, name: str) -> None:
    """Reject an image by its header's size, before decoding pixels."""
    (short, long), shape = sorted(size), f"{size[0]}x{size[1]} pixels"
    most = MAX_PIXELS_OF_FORMAT.get(format, MAX_PIXELS)
    if short * long > most:
        raise _too_large(shape, most, name, "" if most == MAX_PIXELS else f", the most for {format}")
    if short < MIN_SIDE:
        raise BadImage("too_small", name, f"{shape} show nothing; supply {MIN_SIDE} or more a side")
    if long > MAX_ASPECT * short:
        raise BadImage("extreme_shape", name, f"{shape}, a side over {MAX_ASPECT} times the other; crop it")


def _too_large(size: str, most: int, name: str, limit_of: str = "") -> BadImage:
    return BadImage("too_many_pixels", name, f"{size} is over {most:,}{limit_of}; resize it at the source")


def _check_cost(size: tuple[int, int], data: bytes, format: str, name: str) -> None:
    """Reject a small file of high decoding cost, before decoding pixels."""
    pixels = size[0] * size[1]
    if pixels > max(BLANK_PIXELS, MAX_PIXELS_PER_BYTE * len(data)):
        why = f"{len(data):,} bytes that say {pixels:,} pixels show nothing; leave it out"
        raise BadImage("too_costly", name, why)
    if format == "JPEG" and _has_more_scans(data, MAX_SCANS):
        why = f"a JPEG of more than {MAX_SCANS} scans, each of which costs a whole decoding; export it again"
        raise BadImage("too_costly", name, why)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the size in a WebP's header; None for other bytes."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    match data[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
            return width + 1, height + 1
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
            return width, height
    return None


def _has_more_scans(data: bytes, most: int) -> bool:
    """Return whether a JPEG's first image has more than `most` scans.

    Reads the markers as libjpeg does. Where the first scan of a sequential JPEG holds all of its
    components, as nearly all photographs have it, libjpeg reads no other, and neither does this.
    """
    at, scans, components, is_progressive = 2, 0, 0, False
    while scans <= most and (found := MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == END_OF_IMAGE:
            return False
        if marker in WITHOUT_LENGTH:
            continue
        if marker in FRAMES and len(data) > at + 7:
            components, is_progressive = data[at + 7], marker & 3 == 2
        if marker == START_OF_SCAN and len(data) > at + 2:
            scans += 1
            if data[at + 2] >= components and not is_progressive:
                return False
        at += int.from_bytes(data[at : at + 2], "big")
    return scans > most


def _pixels_in(error: Image.DecompressionBombError) -> str:
    found = re.search(r"\d+", str(error))  # Pillow reports only the product
    return f"{int(found[0]):,} pixels" if found else "its size"


def _check_pixels(opened: ImageFile.ImageFile, name: str) -> None:
    """Reject pixel formats without a defined brightness."""
    if opened.mode in EIGHT_BIT or (opened.mode in SIXTEEN_BIT and _fills_sixteen_bits(opened)):
        return
    what = f"the brightness of its pixels (mode {opened.mode}) is not defined"
    raise BadImage("unsupported_pixels", name, f"{what}; export it with 8 bits a channel")


def _fills_sixteen_bits(opened: ImageFile.ImageFile) -> bool:
    """Return whether 0 is black and 65,535 white.

    Pillow does not convert 12-bit and inverted TIFFs.
    """
    if not isinstance(opened, TiffImagePlugin.TiffImageFile):
        return True
    return (opened.tag_v2.get(BITS_PER_SAMPLE), opened.tag_v2.get(PHOTOMETRIC)) == ((16,), 1)


def _format_of(opened: ImageFile.ImageFile) -> str:
    # Pillow's name for a phone's JPEG with a preview or a depth map behind it is MPO.
    return "JPEG" if opened.format == "MPO" else str(opened.format)


def _decode_frame(opened: ImageFile.ImageFile, format: str) -> DecodedImage:
    size = opened.size
    opened.draft(None, (KEEP_SIDE, KEEP_SIDE))  # a JPEG of twice these sides or more comes at half its size
    opened.load()  # this frame only, and all of it, or it raises
    whole = _eight_bit(opened)
    image = _over_white(whole.reduce(max(1, min(whole.size) // KEEP_SIDE)))  # or a batch fills the memory
    orientation = _orientation(opened)
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


def _eight_bit(opened: Image.Image) -> Image.Image:
    """Return RGB, or RGBA for an image with transparency."""
    image = _scale_to_eight_bits(opened) if opened.mode in SIXTEEN_BIT else opened
    image = image.convert("LA") if image.mode == "La" else image
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def _scale_to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray((values != image.info["transparency"]).astype(np.uint8) * 255))
    return grey


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def _unreadable(data: bytes, name: str, error: BaseException) -> BadImage:
    if not SIGNATURE.match(data):
        found = f"not an image, it starts with {data[:16]!r}"
        return BadImage("not_a_picture", name, f"{found}; supply one of {', '.join(FORMATS)}")
    # Pillow's message for an unreadable header holds an address in memory, new every time.
    cause = "header" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return BadImage("damaged_picture", name, f"damaged or cut short ({cause}); fetch or export it again")
