"""Convert colours from an embedded ICC profile to sRGB."""

from functools import lru_cache
from io import BytesIO
from itertools import product

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 2**20
"""Profiles of printing presses have two or three million bytes."""

MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
SAME_COLOUR = 4
"""Levels of 256 within which a profile is another writing of sRGB; its images keep their pixels."""

PROBE_LEVELS = (0, 16, 51, 102, 153, 204, 255)


def to_srgb(image: Image.Image, profile: bytes | None, *, is_grey: bool) -> Image.Image:
    """Convert an image to sRGB by its profile.

    A profile that is broken, too large or of other colours than the image costs the profile only.

    Args:
        image: RGB, RGBA or CMYK.
        profile: the bytes of an ICC profile, from any source.
        is_grey: whether its file stores one channel of colour.

    Returns:
        RGB, or RGBA for RGBA.
    """
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    converted = _converted(image, profile, is_grey) if profile else None
    if converted is None:
        return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _converted(image: Image.Image, profile: bytes, is_grey: bool) -> Image.Image | None:
    space = _space_of(profile)
    if space is None or (space == "CMYK") != (image.mode == "CMYK") or (space == "L" and not is_grey):
        return None
    transform = _transform(profile, space)
    if transform is None:
        return None
    flat = image if image.mode == space else image.convert("RGB").convert(space)
    return transform.apply(flat)


def _space_of(profile: bytes) -> str | None:
    """Return the mode of a profile's colours; None for others."""
    if not 128 <= len(profile) <= MAX_PROFILE_BYTES:
        return None
    return MODE_OF_SPACE.get(profile[16:20].decode("latin-1").rstrip())


@lru_cache(maxsize=4)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB; None for a broken profile, or sRGB."""
    try:
        transform = ImageCms.ImageCmsTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "CMYK":
        return False
    levels = [*product(PROBE_LEVELS, repeat=3)] if mode == "RGB" else [(n,) * 3 for n in range(0, 256, 5)]
    probe = Image.fromarray(np.array([levels], np.uint8))
    after = transform.apply(probe if mode == "RGB" else probe.convert(mode))
    change = np.asarray(after, np.int16) - np.asarray(probe, np.int16)
    return int(np.abs(change).max()) <= SAME_COLOUR
