"""Test that workers prepare images as the model's own library does."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil

from embedding.images.preparation import PIXELS, ResizeCrop
from tests.support.builders import noise

PROCESSORS = {
    "CLIP": CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
    "CLIP with a crop of another shape": CLIPImageProcessorPil(
        size={"shortest_edge": 30}, crop_size={"height": 21, "width": 26}
    ),
    "CLIP with a crop larger than the picture": CLIPImageProcessorPil(
        size={"shortest_edge": 11}, crop_size={"height": 24, "width": 17}
    ),
    "SigLIP": SiglipImageProcessorPil(size={"height": 24, "width": 20}),
    "ViT": ViTImageProcessorPil(size={"height": 24, "width": 24}),
    "without a normalisation": ViTImageProcessorPil(size={"height": 9, "width": 9}, do_normalize=False),
    "without a rescaling": ViTImageProcessorPil(size={"height": 9, "width": 9}, do_rescale=False),
}


@pytest.mark.parametrize("kind", PROCESSORS)
@given(width=st.integers(4, 90), height=st.integers(4, 90))
def test_pixels_are_those_of_the_processor_that_the_settings_are_of(kind: str, width: int, height: int):
    processor, picture = PROCESSORS[kind], noise((width, height))
    expected = processor(images=[picture], return_tensors="pt")[PIXELS]

    preparation = ResizeCrop.from_settings(processor.to_dict())

    assert preparation is not None
    pixels = preparation(picture)[PIXELS]
    assert pixels.dtype == np.uint8
    found = preparation.to_floats(torch.tensor(pixels)[None])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"do_pad": True}, id="padding"),
        pytest.param({"do_resize": False}, id="pictures of any size"),
        pytest.param({"size": {"longest_edge": 24}}, id="the longer side"),
        pytest.param({"size": {"shortest_edge": 24, "longest_edge": 40}}, id="both sides bounded"),
        pytest.param({"size": None}, id="no size"),
        pytest.param({"resample": None}, id="no filter"),
        pytest.param({"crop_size": {"shortest_edge": 24}}, id="a crop of no shape"),
    ],
)
def test_a_processor_that_does_something_else_is_left_to_do_it(more: dict[str, Any]):
    assert ResizeCrop.from_settings(PROCESSORS["CLIP"].to_dict() | more) is None
