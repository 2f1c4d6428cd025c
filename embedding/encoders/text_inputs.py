"""Tokenize texts once, and turn the tokens into model inputs."""

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embedding.images.model_inputs import same_features, to_device

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

PROBES = ("a", "Two small boats, on a calm sea.", "Straße, 東京, naïve: 3.5%")
MOST_PROBE_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Store the tokens of texts, in their order."""

    texts: Sequence[str]
    columns: Mapping[str, Sequence[Sequence[int]]]
    """By the name of a model input, a list of integers for each text; empty without `is_padded_here`."""

    lengths: list[int]
    """Tokens of each text that the model reads."""

    truncated: list[bool]
    """Whether the model reads only the beginning of each text."""


class TextInput:
    """Prepare texts for one model.

    Tokens are padded here rather than by `preprocess`, so that the tokens that were counted and sorted are
    the tokens that are embedded. On a few texts the result must equal that of the model's own `preprocess`;
    a model for which it does not tokenizes each batch again in its own way.
    """

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model
        self._prompt = model.prompts.get(model.default_prompt_name or "")
        # A tokenizer keeps the truncation and padding of its last call. This copy has only one kind of call,
        # so that threads can share it while the model's own one serves `preprocess`.
        self._tokenizer = deepcopy(model.tokenizer)
        long_probe = "boat " * min((model.max_seq_length or 0) + 9, MOST_PROBE_TOKENS)  # to be truncated
        probes = (PROBES, [long_probe])
        expected = [self._preprocessed(texts) for texts in probes]
        tensors = {name: value for name, value in expected[0].items() if isinstance(value, torch.Tensor)}
        self._constants = {name: value for name, value in expected[0].items() if name not in tensors}
        widths = [tensor.shape[-1] for tensor in tensors.values()]
        self._fixed_width: int | None = None
        self.is_padded_here = True
        for width in (None, *widths[:1]):
            self._fixed_width = width
            if all(self._gives(*pair) for pair in zip(expected, probes, strict=True)):
                return
        self.is_padded_here = False

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize texts, each at most to the model's limit."""
        prompted = [f"{self._prompt or ''}{text}" for text in texts]
        if not self.is_padded_here:
            limit = self._model.max_seq_length or sys.maxsize
            rows = self._tokenizer(prompted, truncation=False, verbose=False)["input_ids"]
            lengths = [len(row) for row in rows]
            truncated = [length > limit for length in lengths]
            return TokenizedTexts(texts, {}, [min(length, limit) for length in lengths], truncated)
        tokens = self._tokenizer(prompted, truncation="longest_first", verbose=False)
        return TokenizedTexts(
            texts,
            dict(tokens),
            [len(row) for row in tokens["input_ids"]],
            [bool(encoding.overflowing) for encoding in tokens.encodings],
        )

    def features(self, tokens: TokenizedTexts, places: Sequence[int]) -> dict[str, Any]:
        """Return the model's inputs for the texts at `places`, on its device."""
        if not self.is_padded_here:
            features = self._preprocessed([tokens.texts[place] for place in places])
            return {name: to_device(value, self._model) for name, value in features.items()}
        padded = {
            name: to_device(self._padded(name, [rows[place] for place in places]), self._model)
            for name, rows in tokens.columns.items()
        }
        return self._constants | padded

    def _preprocessed(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return the output of the model's own `preprocess`.

        The library reads a bare string that is a URL, a path or a data URI of an image as that image; a
        dictionary says that it is a text.
        """
        return self._model.preprocess([{"text": text} for text in texts], prompt=self._prompt)

    def _padded(self, name: str, rows: Sequence[Sequence[int]]) -> "Tensor":
        """Return `rows` as int64, shape (n, tokens of the longest)."""
        tokenizer = self._tokenizer
        fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        width = self._fixed_width or max(map(len, rows))
        padded = np.full((len(rows), width), fill.get(name) or 0, np.int64)
        at_the_end = tokenizer.padding_side == "right"
        for target, row in zip(padded, rows, strict=True):
            start = 0 if at_the_end else width - len(row)
            target[start : start + len(row)] = row
        return torch.from_numpy(padded)

    def _gives(self, expected: Mapping[str, Any], probes: Sequence[str]) -> bool:
        try:
            found = self.features(self.tokenize(probes), range(len(probes)))
        except (TypeError, ValueError, KeyError, AttributeError):
            return False
        return same_features(expected, found)
