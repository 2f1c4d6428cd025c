"""Split the preparation of images between worker processes and the device."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from embedding.images.preparation import (
    PIXELS,
    Features,
    ModelProcessor,
    NoPreparation,
    Preparation,
    ResizeCrop,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PROBE_SIZES = ((97, 61), (331, 500))
"""One image that most models enlarge and one that they reduce; one tall, one wide."""

TOLERANCE = 1e-4
"""Of a pixel value, which is about 1; floating-point arithmetic differs by a hundredth of it."""

log = logging.getLogger(__name__)


class ImageInput:
    """Prepare images for one model.

    The preparation is derived from the settings of the model's image processor, and verified: on two images
    the result must equal that of the model's own `preprocess`. Otherwise the model's processor runs in the
    workers, and if its result differs as well, all of `preprocess` runs beside the device.
    """

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model
        probes = [_probe(*size) for size in PROBE_SIZES]
        expected = model.preprocess(probes)
        self._rest = {name: value for name, value in expected.items() if not isinstance(value, torch.Tensor)}
        self.preparation: Preparation = NoPreparation()
        for candidate in _candidates(model):
            self.preparation = candidate
            if self._gives(expected, probes):
                return
        self.preparation = NoPreparation()

    def chunks(self, images: Sequence[Features], most: int) -> Iterator[list[int]]:
        """Yield positions in chunks of equal shapes, at most `most` each."""
        shapes: dict[object, list[int]] = {}
        for place, image in enumerate(images):
            shape = tuple((name, array.shape) for name, array in image.items())
            shapes.setdefault(None if isinstance(self.preparation, NoPreparation) else shape, []).append(
                place
            )
        for places in shapes.values():
            for start in range(0, len(places), most):
                yield places[start : start + most]

    def features(self, images: Sequence[Features]) -> dict[str, Any]:
        """Return the model's inputs for prepared images, on its device.

        Args:
            images: results of `preparation`, of equal shapes unless that is `NoPreparation`.
        """
        if isinstance(self.preparation, NoPreparation):
            pixels = [Image.fromarray(image[PIXELS]) for image in images]
            features = self._model.preprocess(pixels)
            return {name: to_device(value, self._model) for name, value in features.items()}
        stacked = {
            name: to_device(torch.from_numpy(np.stack([image[name] for image in images])), self._model)
            for name in images[0]
        }
        if isinstance(self.preparation, ResizeCrop):
            stacked[PIXELS] = self.preparation.to_floats(stacked[PIXELS])
        return self._rest | stacked

    def _gives(self, expected: dict[str, Any], probes: Sequence[Image.Image]) -> bool:
        try:
            found = self.features([self.preparation(probe) for probe in probes])
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            log.debug("%r cannot prepare images by itself: %s", self.preparation, error)
            return False
        return same_features(expected, found)


def _candidates(model: "SentenceTransformer") -> Iterator[Preparation]:
    """Yield candidate preparations for the workers, fastest first."""
    for module in model.modules():
        if isinstance(own := getattr(module, "preparation", None), ResizeCrop):
            yield own
        whole = getattr(module, "processor", None)
        processor = getattr(whole, "image_processor", whole)
        if isinstance(processor, BaseImageProcessor):
            read = ResizeCrop.from_settings(processor.to_dict())
            if read is not None:
                yield read
            yield ModelProcessor(processor)


def to_device(value: Any, model: "SentenceTransformer") -> Any:
    """Move a tensor to the model's device; return other values unchanged."""
    if not isinstance(value, torch.Tensor):
        return value
    if model.device.type != "cuda":
        return value.to(model.device)
    return value.pin_memory().to(model.device, non_blocking=True)


def same_features(expected: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Return whether two sets of model inputs agree within `TOLERANCE`."""
    return found.keys() == expected.keys() and all(
        _same(value, found[name]) for name, value in expected.items()
    )


def _same(expected: Any, found: Any) -> bool:
    if not isinstance(expected, torch.Tensor):
        return bool(expected == found)
    if expected.shape != found.shape:
        return False
    return torch.allclose(expected.double().cpu(), found.double().cpu(), rtol=0, atol=TOLERANCE)


def _probe(height: int, width: int) -> Image.Image:
    """Return a fixed image with detail of all sizes."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[: height // 2, :, 0] = 255
    noise[:, : width // 3, 1] //= 4
    return Image.fromarray(noise)
