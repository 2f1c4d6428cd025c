"""Convert pixels of any mode to sRGB over a backdrop."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from embedding.images.limits import BadImage
from embedding.images.profiles import to_srgb

KEEP_SIDE = 640  # more than any model reads

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
DEEP = (*SIXTEEN_BIT, "I", "F")
EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB")
GREY = ("1", "L", "LA", "La", *DEEP)
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that scanners and detectors have; files store them in 16."""

BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
SEEN = 32
"""Levels of 256 by which a pixel differs from a backdrop that it is seen on."""

MIN_TRANSPARENT = 1 / 16
"""Share of an image from which its outline is a shape, and not a rounded corner."""


def check_pixels(opened: ImageFile.ImageFile, name: str) -> None:
    """Reject pixel formats without a defined brightness."""
    if opened.mode not in (*EIGHT_BIT, *DEEP):
        what = f"the brightness of its pixels (mode {opened.mode}) is not defined"
        raise BadImage("unsupported_pixels", name, f"{what}; export it with 8 bits a channel")


def to_rgb(opened: ImageFile.ImageFile) -> Image.Image:
    """Return the loaded frame as RGB; reduced where it is very large."""
    whole = _eight_bit(opened)
    small = whole.reduce(max(1, min(whole.size) // KEEP_SIDE))  # or a batch fills the memory
    return _over_backdrop(to_srgb(small, opened.info.get("icc_profile"), is_grey=opened.mode in GREY))


def _eight_bit(opened: ImageFile.ImageFile) -> Image.Image:
    """Return RGB, RGBA if transparent, or CMYK if it has a profile."""
    image: Image.Image = _scale_to_eight_bits(opened) if opened.mode in DEEP else opened
    image = image.convert("LA") if image.mode == "La" else image
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        return image
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def _scale_to_eight_bits(opened: ImageFile.ImageFile) -> Image.Image:
    """Scale deep grey to 8 bits; Pillow's own conversion clips at 255."""
    values = np.asarray(opened)
    levels = _levels_of_floats(values) if opened.mode == "F" else _levels_of_integers(values, opened)
    grey = Image.fromarray(~levels if _tag(opened, PHOTOMETRIC) == WHITE_IS_ZERO else levels)
    if "transparency" in opened.info:
        grey.putalpha(Image.fromarray((values != opened.info["transparency"]).astype(np.uint8) * 255))
    return grey


def _levels_of_integers(values: NDArray[np.integer], opened: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Scale by the stated depth, or the least that holds the values."""
    if int(values.min()) < 0 or int(values.max()) >= 1 << DEPTHS[-1]:
        return _levels_of_floats(values.astype(np.float32))
    stated = _tag(opened, BITS_PER_SAMPLE)
    depth = stated[0] if isinstance(stated, tuple) and stated[0] in DEPTHS[:-1] else _depth_of(values)
    return (values >> (depth - 8)).astype(np.uint8)


def _depth_of(values: NDArray[np.integer]) -> int:
    highest = int(values.max())
    return next(depth for depth in DEPTHS if highest < 1 << depth)


def _levels_of_floats(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Scale 0 to 1, or other values from least to largest."""
    finite = np.isfinite(values)
    low = float(np.min(values, initial=np.inf, where=finite))
    high = float(np.max(values, initial=-np.inf, where=finite))
    if (low >= 0 and high <= 1) or low > high:
        low, high = 0.0, 1.0
    scaled = np.subtract(values, low, dtype=np.float32)
    scaled *= np.float32(255 / max(high - low, 1e-30))
    np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
    levels: NDArray[np.uint8] = scaled.clip(0, 255, out=scaled).round().astype(np.uint8)
    return levels


def _tag(opened: ImageFile.ImageFile, tag: int) -> object:
    return opened.tag_v2.get(tag) if isinstance(opened, TiffImagePlugin.TiffImageFile) else None


def _over_backdrop(image: Image.Image) -> Image.Image:
    """Composite over white, or over black if white hides the shape."""
    if image.mode == "RGB":
        return image
    pixels = np.asarray(image)
    colours, alpha = pixels[..., :3], pixels[..., 3]
    if not alpha.any() and np.ptp(colours.reshape(-1, 3), axis=0).any():
        return image.convert("RGB")  # all is hidden, and drawn nevertheless: an export that lost its mask
    canvas = Image.new("RGB", image.size, "white" if _is_seen_on_white(colours, alpha) else "black")
    canvas.paste(image, mask=image)
    return canvas


def _is_seen_on_white(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> bool:
    if np.count_nonzero(alpha < SEEN) < MIN_TRANSPARENT * alpha.size:
        return True
    drawn = int(alpha.sum(dtype=np.int64))
    on_white = int(alpha.sum(dtype=np.int64, where=colours.min(axis=-1) <= 255 - SEEN))
    on_black = int(alpha.sum(dtype=np.int64, where=colours.max(axis=-1) >= SEEN))
    return 2 * on_white >= drawn or on_white >= on_black
