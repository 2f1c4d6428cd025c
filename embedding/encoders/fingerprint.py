"""Telling models apart by what decides about their vectors."""

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PREPROCESSING_VERSION = 2
"""Raise it whenever the image decoder or the encoder would turn the same input into another vector."""


def fingerprint_of(model: "SentenceTransformer") -> str:
    """Return twelve hex digits of a SHA-256 over weights, configuration and preprocessing version.

    What a module computes from these (a buffer that is not persistent) stays out of it, so that two
    machines whose arithmetic differs in the last bit agree.
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
    """Yield what decides about a vector beside the weights, the same before and after a save and a load."""
    from sentence_transformers.base.modules import Transformer

    yield model.max_seq_length, model.prompts, model.default_prompt_name
    for module in model.modules():
        if callable(config := getattr(module, "get_config_dict", None)):
            yield type(module).__name__, repr(config())
        if isinstance(module, Transformer):
            yield _without(module.model.config.to_diff_dict(), "transformers_version")
            if pictures := getattr(module.processor, "image_processor", None):
                yield pictures.to_dict()
            if words := getattr(module.tokenizer, "backend_tokenizer", None):
                yield _without(json.loads(words.to_str()), "truncation", "padding")  # set by the last call


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}
