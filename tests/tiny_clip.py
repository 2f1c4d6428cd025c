"""A CLIP model small enough to write for one test: random weights, the real classes and file formats."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

SIDE = 32
DIM = 16
MAX_TOKENS = 16


def write_tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a CLIP model with random weights to `folder`, as sentence-transformers saves one; return it."""
    parts = folder / "parts"
    tokenizer = _tokenizer()
    picture_size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=picture_size)
    CLIPProcessor(pictures, tokenizer).save_pretrained(parts)
    _random_model(tokenizer, seed).save_pretrained(parts)
    SentenceTransformer(modules=[Transformer(str(parts))], device="cpu").save(str(folder))
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()
    return folder


def _tokenizer() -> CLIPTokenizer:
    """Byte-level BPE with one merge, so that a word is about as many tokens as it has letters."""
    letters = list(bytes_to_unicode().values())
    merge = ("a", "t</w>")
    words = [*letters, *(f"{letter}</w>" for letter in letters), "".join(merge)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocabulary, [merge], model_max_length=MAX_TOKENS)


def _random_model(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config=tower | words,
        vision_config=tower | {"image_size": SIDE, "patch_size": 8},
        projection_dim=DIM,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIPModel(config)
