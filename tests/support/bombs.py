"""Images and manifests of few bytes that cost whoever reads them much, in every format that is read."""

import struct
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from tests.support.builders import encoded

MARK = "\N{COMBINING ACUTE ACCENT}"
MIXED_MARKS = "\N{COMBINING ACUTE ACCENT}\N{COMBINING CEDILLA}"
"""Two marks that have to be sorted, whose order takes the square of their number."""


def tall(format: str, **options: Any) -> bytes:
    """A plain image of 32 million pixels, which any format may have."""
    return encoded(Image.new("RGB", (8000, 4000), (200, 30, 30)), format, **options)


def flat_webp(size: tuple[int, int]) -> bytes:
    """A lossless WebP of one colour: some forty bytes, and as many pixels as they say."""
    with BytesIO() as buffer:
        Image.new("RGB", (16, 16)).save(buffer, "WEBP", lossless=True)
        data = bytearray(buffer.getvalue())
    bits = int.from_bytes(data[21:25], "little")
    bits = bits >> 28 << 28 | size[1] - 1 << 14 | size[0] - 1
    data[21:25] = bits.to_bytes(4, "little")
    return bytes(data)


def many_scans(side: int = 4096, scans: int = 85) -> bytes:
    """A progressive JPEG whose last scan, of no bits, is there over and over."""
    data = encoded(Image.new("L", (side, side), 200), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * scans + data[-2:]


def large_png(size: tuple[int, int], *, depth: int = 8, colours: int = 6) -> bytes:
    """A PNG of nothing, whose rows are compressed at the most there is."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colours]
    row = bytes(1 + size[0] * channels * depth // 8)
    packer = zlib.compressobj(9)
    rows = b"".join([*(packer.compress(row) for _ in range(size[1])), packer.flush()])
    header = struct.pack(">IIBBBBB", *size, depth, colours, 0, 0, 0)
    parts = (
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiled_tiff() -> bytes:
    """A TIFF of four pixels a side, whose one tile says that it has billions."""
    tags = {256: 4, 257: 4, 258: 8, 259: 8, 262: 1, 322: 60_000, 323: 60_000, 324: 200, 325: 20}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + zlib.compress(bytes(64))


def film(format: str, **options: Any) -> bytes:
    """An animation of five large frames."""
    first, *later = [Image.new("RGB", (2000, 2000), (0, 0, n)) for n in (0, *range(4))]
    return encoded(first, format, save_all=True, append_images=later, **options)


def claim() -> bytes:
    """A BMP of a header that says that it has 72 million pixels."""
    header = struct.pack("<IiiHHIIiiII", 40, 9000, 8000, 1, 32, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "flat.webp": (lambda: flat_webp((10_000, 7_990)), "too_many_pixels"),
    "large.webp": (lambda: tall("WEBP", lossless=True, method=0), "too_costly"),
    "scans.jpg": (many_scans, None),
    "more-scans.jpg": (lambda: many_scans(1024, 5000), "too_costly"),
    "large.png": (lambda: large_png((8000, 7500)), None),
    "large.gif": (lambda: tall("GIF"), None),
    "film.gif": (lambda: film("GIF"), None),
    "film.webp": (lambda: film("WEBP", lossless=True, method=0), None),
    "large.tiff": (lambda: tall("TIFF", compression="tiff_deflate"), None),
    "tile.tiff": (tiled_tiff, "too_costly"),
    "large.avif": (lambda: tall("AVIF", speed=10), None),
    "large.heic": (lambda: tall("HEIF", quality=20), None),
    "claim.bmp": (claim, "too_costly"),
}
"""How each image is made, one or more of every format, and why it is rejected.

None for those that are just within the limits, and decoded.
"""

OUTCOMES = {name: reason for name, (_, reason) in BOMBS.items()}


@cache
def image(name: str) -> bytes:
    """Return one of the bombs."""
    make, _ = BOMBS[name]
    return make()


def nested_parquet(path: Path) -> Path:
    """A list of millions of numbers in one cell, packed as one of them and how often it is there."""
    table = pa.table({"key": ["a"], "values": pa.array([[7] * 30_000_000], pa.list_(pa.int64()))})
    parquet.write_table(table, path, compression="zstd")
    return path


def long_parquet(path: Path) -> Path:
    """As many rows as are read at once, with the same cell of megabytes, which is there once."""
    rows = 256
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 4_000_000]))
    table = pa.table({"key": [str(number) for number in range(rows)], "text": cells})
    parquet.write_table(table, path, compression="zstd", store_schema=False)
    return path


def quoted_csv(folder: Path) -> Path:
    """A row over the whole file: each of its lines would begin another that goes on to the end."""
    path = folder / "quoted.csv"
    path.write_text('key,text\n"' + 'a","b\n' * 9_000 + '"\n')
    return path


def nested_jsonl(folder: Path) -> Path:
    """A line of millions of empty objects, each of which Python holds in 64 bytes."""
    path = folder / "nested.jsonl"
    path.write_text('{"key": "a", "text": "a cat", "values": [' + "{}," * 5_000_000 + "0]}\n")
    return path
