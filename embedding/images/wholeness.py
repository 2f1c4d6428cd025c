"""Read images that have all of their pixels, and damage beside them.

An image is whole if its pixels are decoded from bytes that are there. It is damaged if rows are missing.
"""

import struct
import zlib
from collections.abc import Iterator

from embedding.images.jpeg_scans import has_all_coefficients

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
OPTIONAL = (b"iCCP", b"eXIf")
"""Kept where they are intact; texts, times and animations are left out."""

MAX_PROFILE_BYTES = 2**20
"""Pillow's limit of a packed profile or text."""

END_OF_JPEG = b"\xff\xd9"
PATTERN = b"\xb5\x6d\x5b\xa9" * 1024
TAILS = tuple(bits + END_OF_JPEG for bits in (b"", PATTERN, bytes(255 - byte for byte in PATTERN)))
"""What follows a JPEG without an end. Before an end at once, its decoder reads zeros."""


def essential_png(data: bytes) -> bytes | None:
    """Return a PNG without the chunks that its pixels do not need.

    None for other bytes. A missing end is added. Chunks of pixels stay as they are, so that damage to them
    is still found.
    """
    if not data.startswith(PNG_SIGNATURE):
        return None
    kept = [PNG_SIGNATURE, *(chunk for kind, chunk in _chunks(data) if _is_kept(kind, chunk))]
    if not kept[-1].startswith(b"\0\0\0\0IEND"):
        kept.append(_chunk(b"IEND", b""))
    return b"".join(kept)


def endings_of_jpeg(data: bytes) -> Iterator[bytes]:
    """Yield a JPEG that lacks its end with different ends.

    None for other bytes. Its decoder fills missing pixels from the bytes that follow. Several ends give the
    same pixels only where none is missing.
    """
    begun = data.rstrip(b"\xff")  # half a marker, which would make one of the next byte
    if data.startswith(JPEG_SIGNATURE) and has_all_coefficients(begun):
        yield from (begun + tail for tail in TAILS)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and bytes of each chunk.

    A last one of pixels that is cut short is closed.
    """
    at = len(PNG_SIGNATURE)
    while len(data) >= at + 8:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunk = data[at : at + size + 12]
        if len(chunk) == size + 12:
            yield kind, chunk
        elif kind == b"IDAT":
            yield kind, _chunk(kind, chunk[8 : 8 + size])
        at += size + 12
        if kind == b"IEND":
            return


def _is_kept(kind: bytes, chunk: bytes) -> bool:
    if kind in NEEDED:
        return True
    return kind in OPTIONAL and _is_intact(chunk) and not (kind == b"iCCP" and _is_too_long(chunk))


def _is_intact(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _is_too_long(chunk: bytes) -> bool:
    """Return whether a packed profile is too long or broken."""
    _, _, packed = chunk[8:-4].partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return True
    return bool(unpacker.unconsumed_tail)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
