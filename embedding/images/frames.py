"""Choose the page of a TIFF, or the frame of an animation."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from embedding.images.leaks import LEAKS
from embedding.images.limits import BadImage

MAX_PAGES = 32
MAX_FRAMES = 32
MAX_FRAME_PIXELS = 16_000_000
"""Of all frames that are compared, which bounds the time of an animation that begins blank."""

ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
BLANK_RANGE = 8
"""Levels of 256 between the darkest and the brightest pixel of a frame that shows nothing."""

SUBFILE_TYPE, REDUCED, MASK = 254, 1, 4
SUB_DIRECTORIES, DNG_VERSION = 330, 50706
UNREAD_COMPRESSIONS = ("webp", "jpeg2000")
"""Of a TIFF: Pillow knows their names, and its libtiff does not unpack them."""

THUMBNAIL = 2
"""An unmarked first page is a thumbnail of a page with this many times its sides, or more."""

SAME_SHAPE = 0.03


def choose_page(opened: ImageFile.ImageFile, name: str) -> None:
    """Go to the first full page of a TIFF.

    Raises:
        BadImage: the file is a camera's RAW, or packed in a way that is not read.
    """
    if not isinstance(opened, TiffImagePlugin.TiffImageFile):
        return
    if (packed := opened.info.get("compression")) in UNREAD_COMPRESSIONS:
        what = f"a TIFF packed by {packed}, which is not read"
        raise BadImage("unsupported_format", name, f"{what}; export it with another compression")
    is_raw = DNG_VERSION in opened.tag_v2
    has_others = SUB_DIRECTORIES in opened.tag_v2
    pages = list(_pages(opened))
    whole = [(page, size) for page, size, kind in pages if not kind & (REDUCED | MASK)]
    if is_raw or (not whole and has_others):
        what = "a camera's RAW (DNG, NEF, ARW or similar), of which only a preview can be read"
        raise BadImage("unsupported_format", name, f"{what}; develop it to JPEG or TIFF")
    first, size = whole[0] if whole else pages[0][:2]
    larger = next((page for page, other in whole if _is_thumbnail_of(size, other)), first)
    if opened.tell() != larger:
        opened.seek(larger)


def _pages(opened: TiffImagePlugin.TiffImageFile) -> Iterator[tuple[int, tuple[int, int], int]]:
    """Yield the number, size and kind of each readable page."""
    for page in range(MAX_PAGES):
        try:
            opened.seek(page)
        except (*LEAKS, Image.DecompressionBombError):
            return  # the end, or a broken page, which costs the pages from here on
        kind = opened.tag_v2.get(SUBFILE_TYPE, 0)
        yield page, opened.size, kind if isinstance(kind, int) else 0


def _is_thumbnail_of(size: tuple[int, int], other: tuple[int, int]) -> bool:
    across, down = (long / short for long, short in zip(other, size, strict=True))
    return min(across, down) >= THUMBNAIL and abs(across / down - 1) <= SAME_SHAPE


def representative(
    opened: ImageFile.ImageFile, first: Image.Image, read: Callable[[ImageFile.ImageFile], Image.Image]
) -> Image.Image:
    """Return the first frame, or if blank, the frame of most contrast.

    Args:
        first: the first frame, as `read` returned it.
        read: converts the current frame to RGB.
    """
    if opened.format not in ANIMATED or not _is_blank(first):
        return first
    best, most = first, _contrast(first)
    for _ in _later_frames(opened):
        try:
            image = read(opened)
        except LEAKS:
            break
        if (contrast := _contrast(image)) > most:
            best, most = image, contrast
    return best


def _later_frames(opened: ImageFile.ImageFile) -> Iterator[int]:
    """Go to each later frame within the limits; broken frames end it."""
    width, height = opened.size
    for frame in range(1, min(MAX_FRAMES, MAX_FRAME_PIXELS // (width * height))):
        try:
            opened.seek(frame)
            opened.load()
        except (*LEAKS, Image.DecompressionBombError):  # EOFError at the end
            return
        yield frame


def _is_blank(image: Image.Image) -> bool:
    return all(high - low <= BLANK_RANGE for low, high in image.getextrema())  # type: ignore[misc]


def _contrast(image: Image.Image) -> float:
    return float(np.asarray(image.convert("L"), np.float32).std())
