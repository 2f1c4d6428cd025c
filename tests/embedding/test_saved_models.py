"""Test that model folders saved before the modules moved still load."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import embedding.head
import embedding.starter
from embedding.encoders.head import PictureHead
from embedding.encoders.sentence_encoder import load_encoder
from embedding.encoders.starter import Centre, ConseTower
from tests.support.builders import a_folder

SAVED = Path(__file__).parents[1] / "support" / "saved_model"
"""A tiny CLIP with a head that is not zero, and its vectors, both written by the code of version 0.1."""


def pictures() -> list[Image.Image]:
    y, x = np.mgrid[:40, :60]
    pattern = np.stack([x * 4 % 256, y * 6 % 256, (x + y) * 2 % 256], axis=-1)
    return [Image.fromarray(pattern.astype(np.uint8)), Image.new("RGB", (33, 32), (255, 0, 0))]


def test_a_folder_that_was_saved_before_the_move_gives_the_same_vectors():
    recorded = json.loads((SAVED / "recorded.json").read_text())
    folder = SAVED / "tiny_clip_0_1"
    assert "embedding.head.PictureHead" in (folder / "modules.json").read_text()

    encoder = load_encoder(str(folder), device="cpu")

    assert encoder.fingerprint == recorded["fingerprint"]
    assert encoder.texts(recorded["texts"]) == pytest.approx(np.array(recorded["text_vectors"]), abs=1e-5)
    assert encoder.images(pictures()) == pytest.approx(np.array(recorded["image_vectors"]), abs=1e-5)


def test_the_old_modules_name_the_same_classes():
    assert embedding.head.PictureHead is PictureHead
    assert embedding.starter.Centre is Centre
    assert embedding.starter.ConseTower is ConseTower


@pytest.mark.full
def test_a_starter_that_was_saved_before_the_move_gives_the_same_vectors(tmp_path: Path):
    starter = load_encoder("starter", device="cpu")
    starter.model.save(str(tmp_path))
    router = next(path for path in tmp_path.rglob("*.json") if "ConseTower" in path.read_text())
    a_folder(tmp_path, {str(router): router.read_text().replace("embedding.encoders.", "embedding.")})
    assert "embedding.starter.ConseTower" in router.read_text()

    again = load_encoder(str(tmp_path), device="cpu")

    assert again.fingerprint == starter.fingerprint
    assert (again.texts(["a red apple"]) == starter.texts(["a red apple"])).all()
    assert (again.images(pictures()) == starter.images(pictures())).all()
