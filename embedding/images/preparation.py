"""Prepare images for models, without torch, so that workers start quickly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedding.images.decode import decode_image

if TYPE_CHECKING:
    from torch import Tensor

Features = Mapping[str, NDArray[Any]]
"""The inputs of a model for one image, by name, without the batch axis."""

PIXELS = "pixel_values"


class Preparation(Protocol):
    """Turn an upright RGB image into features; picklable, for worker processes."""

    def __call__(self, image: Image.Image) -> Features: ...


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """Store an image's features, and the size and format of its file."""

    width: int
    height: int
    format: str
    features: Features


def prepare(preparation: Preparation, data: bytes, *, name: str) -> PreparedImage:
    """Decode `data` and prepare the image; see `decode_image`.

    Raises:
        BadImage: the only exception that any bytes can cause.
    """
    decoded = decode_image(data, name=name)
    features = preparation(decoded.image)
    return PreparedImage(decoded.width, decoded.height, decoded.format, features)


@dataclass(frozen=True, slots=True)
class Downscale:
    """Reduce an image to the size of a thumbnail."""

    side: int
    """Of the longer side, at most."""

    def __call__(self, image: Image.Image) -> Features:
        """Return `pixel_values` of `image`, an RGB image: uint8, shape (height, width, 3)."""
        small = image.copy()
        small.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
        return {PIXELS: np.asarray(small)}


@dataclass(frozen=True, slots=True)
class GreySquare:
    """Reduce an image to grey levels for its perceptual hash."""

    side: int

    def __call__(self, image: Image.Image) -> Features:
        """Return `pixel_values` of `image`: uint8, shape (side, side)."""
        small = image.convert("L").resize((self.side, self.side), Image.Resampling.LANCZOS)
        return {PIXELS: np.asarray(small)}


@dataclass(frozen=True, slots=True)
class ResizeCrop:
    """Resize an image and crop its centre; the device scales the pixels.

    Pixels stay uint8, a quarter of their size as floats. The model was trained with
    value = pixel * scale + shift.
    """

    size: int | tuple[int, int]
    """Of the shorter side; or height and width."""

    crop: tuple[int, int] | None
    """Height and width; black where the image is smaller."""

    resample: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    square: float | None = None
    """The side of the centred square that is resized, as a share of the shorter side; None for all."""

    def __call__(self, image: Image.Image) -> Features:
        """Return `pixel_values` of `image`, an RGB image: uint8, shape (height, width, 3)."""
        resized = image.resize(self._resized_to(image), Image.Resampling(self.resample), self._box(image))
        return {PIXELS: np.asarray(resized if self.crop is None else _centre(resized, *self.crop))}

    def to_floats(self, pixels: "Tensor") -> "Tensor":
        """Scale pixels to the values of the model's training, on their device.

        Args:
            pixels: uint8, shape (n, height, width, 3).

        Returns:
            float32, shape (n, 3, height, width), channels last in memory, as convolutions like it.
        """
        # (n, height, width, channel) -> (n, channel, height, width)
        values = pixels.permute(0, 3, 1, 2).float()
        scale, shift = (values.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (self.scale, self.shift))
        return values.mul_(scale).add_(shift)

    def _resized_to(self, image: Image.Image) -> tuple[int, int]:
        if not isinstance(self.size, int):
            height, width = self.size
            return width, height
        shorter = min(image.size)
        width, height = (int(self.size * length / shorter) for length in image.size)
        return width, height

    def _box(self, image: Image.Image) -> tuple[float, float, float, float] | None:
        if self.square is None:
            return None
        side = min(image.size) * self.square
        left, top = ((length - side) / 2 for length in image.size)
        return left, top, left + side, top + side

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self | None:
        """Return the equivalent of a transformers image processor, or None.

        Args:
            settings: from `to_dict` of the processor. They may be incomplete, so the caller compares the
                features of an image.
        """
        steps = {name for name, on in settings.items() if name.startswith("do_") and on}
        if not steps <= {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}:
            return None
        size = _size(settings.get("size"))
        crop = _size(settings.get("crop_size")) if "do_center_crop" in steps else None
        resample = settings.get("resample")
        if "do_resize" not in steps or size is None or isinstance(crop, int) or resample is None:
            return None
        factor = settings["rescale_factor"] if "do_rescale" in steps else 1.0
        normalised = "do_normalize" in steps
        mean = _three(settings["image_mean"] if normalised else 0.0)
        std = _three(settings["image_std"] if normalised else 1.0)
        return cls(
            size=size,
            crop=crop,
            resample=int(resample),
            scale=tuple(factor / deviation for deviation in std),
            shift=tuple(-middle / deviation for middle, deviation in zip(mean, std, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class ModelProcessor:
    """Run the model's own image processor on one image, in a worker."""

    processor: Any

    def __call__(self, image: Image.Image) -> Features:
        batch = self.processor(images=[image], return_tensors="np")
        return {name: np.asarray(values)[0] for name, values in batch.items()}


@dataclass(frozen=True, slots=True)
class NoPreparation:
    """Keep the decoded image, for models with their own preparation."""

    def __call__(self, image: Image.Image) -> Features:
        return {PIXELS: np.asarray(image)}


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _size(given: Mapping[str, int] | None) -> int | tuple[int, int] | None:
    """Return the shorter side, or height and width; None for other settings."""
    sizes = {name: value for name, value in dict(given or {}).items() if value is not None}
    if sizes.keys() == {"shortest_edge"}:
        return int(sizes["shortest_edge"])
    if sizes.keys() == {"height", "width"}:
        return int(sizes["height"]), int(sizes["width"])
    return None


def _three(given: float | Sequence[float]) -> tuple[float, ...]:
    return (float(given),) * 3 if isinstance(given, int | float) else tuple(map(float, given))
