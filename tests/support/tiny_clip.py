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
    tokenizer = _tokenizer(MAX_TOKENS)
    return _write(folder, _tiny_config(tokenizer), tokenizer, SIDE, seed)


def write_vit_b_32(folder: Path) -> Path:
    """Write a model with the architecture of CLIP ViT-B/32 and random weights: as fast as the real one."""
    return _write(folder, CLIPConfig(), _tokenizer(77), 224, seed=0)


def _write(folder: Path, config: CLIPConfig, tokenizer: CLIPTokenizer, side: int, seed: int) -> Path:
    parts = folder / "parts"
    pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    CLIPProcessor(pictures, tokenizer).save_pretrained(parts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(parts)
    SentenceTransformer(modules=[Transformer(str(parts))], device="cpu").save(str(folder))
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()
    return folder


def _tokenizer(max_tokens: int) -> CLIPTokenizer:
    """Byte-level BPE with one merge, so that a word is about as many tokens as it has letters."""
    letters = list(bytes_to_unicode().values())
    merge = ("a", "t</w>")
    words = [*letters, *(f"{letter}</w>" for letter in letters), "".join(merge)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocabulary, [merge], model_max_length=max_tokens)


def _tiny_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPConfig(
        text_config=tower | words,
        vision_config=tower | {"image_size": SIDE, "patch_size": 8},
        projection_dim=DIM,
    )
