"""Compute the fingerprint of a model: equal fingerprints mean equal vectors."""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PREPROCESSING_VERSION = 2
"""To be raised with every change after which the same input gives another vector."""


def fingerprint_of(model: "SentenceTransformer") -> str:
    """Return twelve hex digits that identify the vectors of a model.

    A SHA-256 over weights, configuration and preprocessing version.

    Buffers that a module computes from these, and does not save, are left out, so that machines with other
    rounding agree.
    """
    import torch

    digest = hashlib.sha256(f"preprocessing {PREPROCESSING_VERSION}".encode())
    digest.update(json.dumps(list(_configuration(model)), default=str, sort_keys=True).encode())
    for key, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _configuration(model: "SentenceTransformer") -> Iterator[object]:
    """Yield the settings that vectors depend on, unchanged by save and load."""
    from sentence_transformers.base.modules import Transformer

    yield model.max_seq_length, model.prompts, model.default_prompt_name
    for module in model.modules():
        if callable(config := getattr(module, "get_config_dict", None)):
            yield type(module).__name__, repr(config())
        if isinstance(module, Transformer):
            yield _without(module.model.config.to_diff_dict(), "transformers_version")
            if images := getattr(module.processor, "image_processor", None):
                yield images.to_dict()
            if tokenizer := getattr(module.tokenizer, "backend_tokenizer", None):
                yield _without(
                    json.loads(tokenizer.to_str()), "truncation", "padding"
                )  # set by the last call


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}
