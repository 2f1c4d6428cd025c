"""Reject images by size and cost, before pixels are decoded."""

import re

from PIL import Image

from embedding.errors import UnusableInput
from embedding.images.jpeg_scans import has_more_scans

MAX_PIXELS = 80_000_000  # below the 89 million at which Pillow begins to warn
DECODE_BYTES = 800 * 2**20
"""Memory limit of decoding one image: enough for a JPEG of `MAX_PIXELS`, four channels and many scans."""

BYTES_PER_PIXEL = {"PNG": 13, "WEBP": 24, "GIF": 13, "BMP": 9, "TIFF": 13, "AVIF": 18, "HEIF": 13}
"""Peak memory of decoding formats that are always read at full size, as measured.

A HEIF of 10 bits with alpha takes 21; such a file of over 39 million pixels meets the worker's limit.
"""

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


class BadImage(UnusableInput):
    """Report bytes that cannot be decoded or encoded.

    Attributes:
        reason: a code to count by: `empty_file`, `not_a_picture`, `damaged_picture`, `too_many_pixels`,
            `too_small`, `extreme_shape`, `unsupported_format`, `unsupported_pixels`, `too_costly` or
            `crashed_decoder`.
    """

    def __init__(self, reason: str, name: str, problem: str) -> None:
        super().__init__(reason, name, problem)  # all, or it could not be pickled back from a worker process
        self.reason = reason

    def of(self, name: str) -> "BadImage":
        """Return the same problem for another record with these bytes."""
        return BadImage(self.reason, name, self.args[2])

    def __str__(self) -> str:
        return f"{self.args[1]}: {self.args[2]}"


def check_size(size: tuple[int, int], format: str, name: str) -> None:
    """Reject an image by its header's size, before decoding pixels."""
    (short, long), shape = sorted(size), f"{size[0]}x{size[1]} pixels"
    most = MAX_PIXELS_OF_FORMAT.get(format, MAX_PIXELS)
    if short * long > most:
        raise too_large(shape, most, name, "" if most == MAX_PIXELS else f", the most for {format}")
    if short < MIN_SIDE:
        raise BadImage("too_small", name, f"{shape} show nothing; supply {MIN_SIDE} or more a side")
    if long > MAX_ASPECT * short:
        raise BadImage("extreme_shape", name, f"{shape}, a side over {MAX_ASPECT} times the other; crop it")


def too_large(size: str, most: int, name: str, limit_of: str = "") -> BadImage:
    """Return the reject of an image of too many pixels."""
    return BadImage("too_many_pixels", name, f"{size} is over {most:,}{limit_of}; resize it at the source")


def check_cost(size: tuple[int, int], data: bytes, format: str, name: str) -> None:
    """Reject a small file of high decoding cost, before decoding pixels."""
    pixels = size[0] * size[1]
    if pixels > max(BLANK_PIXELS, MAX_PIXELS_PER_BYTE * len(data)):
        why = f"{len(data):,} bytes that say {pixels:,} pixels show nothing; leave it out"
        raise BadImage("too_costly", name, why)
    if format == "JPEG" and has_more_scans(data, MAX_SCANS):
        why = f"a JPEG of more than {MAX_SCANS} scans, each of which costs a whole decoding; export it again"
        raise BadImage("too_costly", name, why)


def webp_size(data: bytes) -> tuple[int, int] | None:
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


def pixels_in(error: Image.DecompressionBombError) -> str:
    """Return the number of pixels that Pillow found."""
    found = re.search(r"\d+", str(error))  # Pillow reports only the product
    return f"{int(found[0]):,} pixels" if found else "its size"
