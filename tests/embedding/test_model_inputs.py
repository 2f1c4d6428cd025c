"""Test that vectors equal those of plain sentence-transformers."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedding.encoders.sentence_encoder import SentenceEncoder, load_encoder
from embedding.images.preparation import ModelProcessor, NoPreparation, Preparation, ResizeCrop
from embedding.images.worker_pool import Workers
from tests.support.builders import encoded, noise
from tests.support.tiny_clip import write_tiny_clip

pytestmark = pytest.mark.services

TOLERANCE = 1e-5
"""Of a component of a unit vector: the same arithmetic in another order."""

SIZES = (
    (40, 30),
    (300, 200),
    (64, 64),
    (31, 90),
    (500, 375),
    (40, 30),
    (12, 19),
    (33, 32),
    (200, 33),
    (5, 6),
)
TEXTS = [f"{'a small red boat on a calm sea ' * (n % 5)}number {n}" for n in range(70)]


def smooth(width: int, height: int) -> Image.Image:
    return noise((max(2, width // 9), max(2, height // 9))).resize((width, height))


@pytest.fixture(scope="module")
def starter() -> SentenceEncoder:
    return load_encoder("starter", device="cpu")


def a_clip(folder: Path, **picture_settings: Any) -> SentenceEncoder:
    """Load a tiny CLIP model whose image processor has other settings."""
    write_tiny_clip(folder)
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"] |= picture_settings
    path.write_text(json.dumps(config))
    return load_encoder(str(folder), device="cpu")


SQUARE = {"height": 32, "width": 32}
MODELS: dict[str, tuple[dict[str, Any], type[Preparation]]] = {
    "CLIP": ({}, ResizeCrop),
    "SigLIP": (
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": SQUARE,
            "do_center_crop": False,
            "image_mean": 0.5,
            "image_std": 0.5,
        },
        ResizeCrop,
    ),
    "ViT": (
        {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "do_center_crop": False},
        ResizeCrop,
    ),
    "a padding one": ({"do_pad": True, "pad_size": SQUARE}, ModelProcessor),
    "one that crops by a share": (
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_pct": 0.5,
            "do_center_crop": False,
        },
        ModelProcessor,
    ),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.full if "share" in kind or "padding" in kind else ())
        for kind in MODELS
    ],
)
def test_vectors_are_those_of_the_library_for_every_kind_of_image_processor(kind: str, tmp_path: Path):
    settings, expected_way = MODELS[kind]
    encoder = a_clip(tmp_path, **settings)

    assert type(encoder.preparation) is expected_way
    agrees_with_the_library(encoder)


def test_vectors_of_the_starter_are_those_of_the_library(starter: SentenceEncoder):
    assert type(starter.preparation) is ResizeCrop
    agrees_with_the_library(starter)


def agrees_with_the_library(encoder: SentenceEncoder) -> None:
    """Compare with `encode` on decoded images, through a worker process."""
    pictures = [smooth(*size) for size in SIZES]
    expected = encoder.model.encode(pictures, normalize_embeddings=True)
    with Workers(encoder.preparation, 1) as pool:
        waiting = [pool.submit(encoded(picture, "PNG"), name="any.png") for picture in pictures]
        found = encoder.encode_prepared([one.result().features for one in waiting])

    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert encoder.images(pictures) == pytest.approx(expected, abs=TOLERANCE)
    assert encoder.texts(TEXTS) == pytest.approx(
        encoder.model.encode(TEXTS, normalize_embeddings=True), abs=TOLERANCE
    )


class CountedTokenizer:
    """Count the texts that pass through a tokenizer."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.texts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __call__(self, texts: list[str], **named: Any) -> Any:
        self.texts += len(texts)
        return self._real(texts, **named)


def test_a_text_is_tokenized_once(starter: SentenceEncoder, monkeypatch: pytest.MonkeyPatch):
    counted = CountedTokenizer(starter._texts._tokenizer)
    monkeypatch.setattr(starter._texts, "_tokenizer", counted)
    monkeypatch.setattr(starter.model, "preprocess", None)

    encoded = starter.encode_texts([*TEXTS, "long " * 1000])

    assert counted.texts == len(TEXTS) + 1
    assert encoded.truncated == [False] * len(TEXTS) + [True]


@pytest.mark.parametrize(
    ("settings", "is_padded_here"),
    [
        pytest.param({}, True, id="as long as the longest"),
        pytest.param({"text": {"padding": "max_length"}}, True, id="as long as the limit"),
        pytest.param({"text": {"padding": "max_length", "max_length": 12}}, False, id="a limit of its own"),
    ],
)
@pytest.mark.parametrize("prompt", [None, "query: "])
def test_texts_are_prepared_as_the_library_prepares_them(
    settings: dict[str, Any], is_padded_here: bool, prompt: str | None, tmp_path: Path
):
    model = load_encoder(str(write_tiny_clip(tmp_path)), device="cpu").model
    model[0].processing_kwargs = settings
    if prompt:
        model.prompts, model.default_prompt_name = {"query": prompt}, "query"

    encoder = SentenceEncoder("tiny", model)

    assert encoder._texts.is_padded_here is is_padded_here
    texts = [f"{'a b ' * (n % 9)}{n}" for n in range(70)]
    found = encoder.encode_texts([*texts, "https://127.0.0.1:9/red.png"])
    assert found.vectors[:70] == pytest.approx(model.encode(texts, normalize_embeddings=True), abs=TOLERANCE)
    assert found.truncated[0] is False
    assert found.truncated[8] is True


def test_a_model_that_prepares_images_in_a_way_of_its_own_is_left_to_do_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = load_encoder(str(write_tiny_clip(tmp_path)), device="cpu")
    preprocess = plain.model.preprocess

    def inverted(inputs: list[Any], **named: Any) -> dict[str, Any]:
        features = preprocess(inputs, **named)
        return (
            features | {"pixel_values": -features["pixel_values"]} if "pixel_values" in features else features
        )

    monkeypatch.setattr(plain.model, "preprocess", inverted)
    encoder = SentenceEncoder("inverted", plain.model)

    assert type(encoder.preparation) is NoPreparation
    agrees_with_the_library(encoder)


@pytest.mark.parametrize("size", [(1280, 1280), (2600, 1300), (1700, 3000), (5300, 5200)])
def test_a_large_jpeg_decoded_at_a_part_of_its_size_gives_nearly_the_same_vector(
    size: tuple[int, int], starter: SentenceEncoder
):
    picture = smooth(size[0] // 8, size[1] // 8).resize(size)
    data = encoded(picture, "JPEG", quality=92)

    with Workers(starter.preparation, 0) as pool:
        prepared = pool.submit(data, name="photo.jpg").result()
    found = starter.encode_prepared([prepared.features])

    expected = starter.model.encode([Image.open(BytesIO(data))], normalize_embeddings=True)
    assert (prepared.width, prepared.height) == size
    assert (found @ expected.T).item() > 0.99


def test_texts_of_any_lengths_come_back_in_their_order(starter: SentenceEncoder):
    order = np.random.default_rng(0).permutation(len(TEXTS))

    rows, shuffled = starter.texts(TEXTS), starter.texts([TEXTS[n] for n in order])

    assert shuffled == pytest.approx(rows[order], abs=TOLERANCE)


def test_numbers_of_pixels_lie_in_memory_as_convolutions_like_it(starter: SentenceEncoder):
    features = starter._images.features([starter.preparation(smooth(50, 40)) for _ in range(3)])

    assert features["pixel_values"].is_contiguous(memory_format=torch.channels_last)
