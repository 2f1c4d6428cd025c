"""How images reach a model: what the workers do to each, and what is left for the device."""

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
"""One image that most models enlarge, and one that they reduce; one wide, one tall."""

TOLERANCE = 1e-4
"""Of a pixel value, which is about 1: floating-point arithmetic differs by a hundredth of that."""

log = logging.getLogger(__name__)


class ImageInput:
    """The image side of one model.

    What its image processor does is read from its settings. No reading is taken on trust: on two images
    it must give what the model's own `preprocess` gives, or else the model's own processor runs in the
    workers, or, where that too gives something else, all of `preprocess` runs beside the device.
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

    def chunks(self, pictures: Sequence[Features], most: int) -> Iterator[list[int]]:
        """Yield the places of `pictures` in chunks of at most `most` that can be embedded at once."""
        shapes: dict[object, list[int]] = {}
        for place, picture in enumerate(pictures):
            shape = tuple((name, array.shape) for name, array in picture.items())
            shapes.setdefault(None if isinstance(self.preparation, NoPreparation) else shape, []).append(
                place
            )
        for places in shapes.values():
            for start in range(0, len(places), most):
                yield places[start : start + most]

    def features(self, pictures: Sequence[Features]) -> dict[str, Any]:
        """Return what the model takes of `pictures`, on its device.

        Args:
            images: what `preparation` made of each; those of one call have equal shapes, unless it
                leaves them as they are.
        """
        if isinstance(self.preparation, NoPreparation):
            images = [Image.fromarray(picture[PIXELS]) for picture in pictures]
            features = self._model.preprocess(images)
            return {name: to_device(value, self._model) for name, value in features.items()}
        stacked = {
            name: to_device(torch.from_numpy(np.stack([picture[name] for picture in pictures])), self._model)
            for name in pictures[0]
        }
        if isinstance(self.preparation, ResizeCrop):
            stacked[PIXELS] = self.preparation.to_floats(stacked[PIXELS])
        return self._rest | stacked

    def _gives(self, expected: dict[str, Any], probes: Sequence[Image.Image]) -> bool:
        try:
            found = self.features([self.preparation(probe) for probe in probes])
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            log.debug("%r cannot prepare pictures by itself: %s", self.preparation, error)
            return False
        return same_features(expected, found)


def _candidates(model: "SentenceTransformer") -> Iterator[Preparation]:
    """Yield what may be done to an image in a worker, fastest first."""
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
    """Move a tensor to the device of `model`; return any other value as it is."""
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
    """Return an image with detail of all sizes, the same every time."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[: height // 2, :, 0] = 255
    noise[:, : width // 3, 1] //= 4
    return Image.fromarray(noise)
