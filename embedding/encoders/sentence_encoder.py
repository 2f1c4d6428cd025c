"""Encode texts and images as unit vectors of one space."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedding.encoders.fingerprint import fingerprint_of
from embedding.errors import EncoderUnavailable, UnusableInput
from embedding.images.preparation import Features, Preparation
from embedding.process_tuning import garbage_collection_paused

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

Vectors = NDArray[np.float32]

HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """Limit the size of one chunk that the model embeds at once."""

    images: int
    texts: int
    tokens: int
    """Of the texts, padding included."""


CPU_LIMITS = ChunkLimits(images=16, texts=64, tokens=1024)
"""Measured: more does not fit the caches. A module with large images states fewer, as `images_on_cpu`."""

GPU_LIMITS = ChunkLimits(images=256, texts=256, tokens=16_384)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTexts:
    """Store the vectors of texts, and which texts were truncated."""

    vectors: Vectors
    """Shape (n, dim), unit rows."""

    truncated: list[bool]
    """Whether the model reads only the beginning of each text."""


class Encoder(Protocol):
    """Map texts and images into one space, compared by the dot product.

    Every row that `texts` and `images` return is float32 of length `dim` with L2 norm 1.
    """

    @property
    def name(self) -> str:
        """Return the name that was passed to `load_encoder`."""

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Identify the model: it changes whenever an input could give another vector."""

    def texts(self, texts: Sequence[str]) -> Vectors: ...

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Return the vectors of texts, and which texts were truncated."""

    def images(self, images: Sequence[Image.Image]) -> Vectors:
        """Encode upright RGB images, and prepare them in this process."""

    @property
    def preparation(self) -> Preparation:
        """Return the step before `encode_prepared`, which workers can run."""

    def encode_prepared(self, images: Sequence[Features]) -> Vectors:
        """Encode images that `preparation` has prepared."""

    @property
    def images_per_chunk(self) -> int:
        """Return the number of images that the model embeds at once."""

    @property
    def peak_device_mib(self) -> float | None:
        """Return the peak GPU memory of tensors in MiB; None on CPUs."""


class ModelUnavailable(EncoderUnavailable):
    """Report a model that cannot be loaded; the message names the remedy."""


class ZeroVector(UnusableInput):
    """Report a row of zeros, with which no cosine is defined."""


def load_encoder(name: str, *, device: str = "auto", folder: Path | None = None) -> "SentenceEncoder":
    """Load a model that takes texts and images.

    Args:
        name: `starter`; a folder that sentence-transformers wrote; or a model's name on the hub,
            such as `sentence-transformers/clip-ViT-B-32`.
        folder: its path, if the name is not a path.
        device: `auto` takes CUDA when there is one, else the CPU; or a torch device such as `cuda:1`.

    Raises:
        ModelUnavailable: there is no such model here, no hub can be reached, or the model takes
            only texts or only images.
    """
    with garbage_collection_paused():
        import torch
        from transformers.utils.logging import disable_progress_bar

        import_module("sentence_transformers")  # most of the import time, for any model
    disable_progress_bar()  # of reading weights; the bars of downloads are others
    torch_device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name == "starter" and folder is None:
        from embedding.encoders.starter import build_starter

        model = build_starter(torch_device)
    else:
        model = _load_sentence_transformer(str(folder or name), torch_device)
    if missing := [kind for kind in ("text", "image") if not model.supports(kind)]:
        raise ModelUnavailable(
            f"model {name!r} does not take {' or '.join(missing)}; choose one that takes texts and images, "
            "such as starter, a CLIP or a SigLIP model (SIGHTLINE_MODEL)"
        )
    return SentenceEncoder(name, model)


def _load_sentence_transformer(name: str, device: str) -> "SentenceTransformer":
    """Load `name` with known modules; never run code that a model brings."""
    from sentence_transformers import SentenceTransformer

    from embedding.encoders.starter import MODULES

    folder = Path(name)
    if folder.is_dir() and not (folder / "modules.json").exists() and not (folder / "config.json").exists():
        raise ModelUnavailable(
            f"folder {name!r} holds no model (no modules.json, no config.json); "
            "set SIGHTLINE_MODEL to a folder that sentence-transformers wrote"
        )
    offline = folder.is_dir() or not _hub_answers(name)
    try:
        # Private, but the public way to classes of ours is trust_remote_code, which trusts everything.
        return SentenceTransformer._load_with_module_classes(
            name, MODULES, device=device, local_files_only=offline
        )
    except OSError as error:
        where = (
            f"the folder lacks a file or holds a damaged one ({_first_line(error)})"
            if folder.is_dir()
            else "it is no folder here, and the hub did not answer or has no such model"
        )
        raise ModelUnavailable(
            f"cannot load model {name!r}: {where}; set SIGHTLINE_MODEL to starter or to a local folder"
        ) from error
    except (ValueError, ImportError) as error:
        raise ModelUnavailable(
            f"cannot load model {name!r}: it is damaged, or needs code that is not known here, and code that "
            f"comes with a model is never run ({_first_line(error)}); set SIGHTLINE_MODEL to another model"
        ) from error
    except Exception as error:  # a damaged file can raise anything in the libraries
        raise ModelUnavailable(
            f"cannot load model {name!r}: a file of it is damaged, or fits none that is known here "
            f"({type(error).__name__}: {_first_line(error)}); set SIGHTLINE_MODEL to another model"
        ) from error


def _hub_answers(name: str) -> bool:
    """Query the hub once; the library waits half a minute per file."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever of httpx and httpx2 it has

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError:
        return True
    except (OSError, httpx.HTTPError, HFValidationError):
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class SentenceEncoder:
    """Encode with a sentence-transformers model; on CUDA in bfloat16."""

    def __init__(self, name: str, model: "SentenceTransformer") -> None:
        from embedding.encoders.text_inputs import TextInput
        from embedding.images.model_inputs import ImageInput

        self.name = name
        self.model = model.eval()
        self._images = ImageInput(model)
        self._texts = TextInput(model)
        self._limits = _chunk_limits(model)

    @cached_property
    def dim(self) -> int:
        return len(self.texts(["a"])[0])

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.model)

    @property
    def preparation(self) -> Preparation:
        return self._images.preparation

    @property
    def images_per_chunk(self) -> int:
        return self._limits.images

    def texts(self, texts: Sequence[str]) -> Vectors:
        return self.encode_texts(texts).vectors

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenize texts once, and embed them sorted by length to save padding."""
        import torch

        if not texts:
            return EncodedTexts(np.empty((0, self.dim), np.float32), [])
        tokens = self._texts.tokenize(texts)
        chunks = list(chunks_by_length(tokens.lengths, self._limits))
        with torch.inference_mode(), self._precision():
            outputs = [self.model(self._texts.features(tokens, chunk)) for chunk in chunks]
        rows = unit_rows(_in_order([self._row_of(output) for output in outputs], chunks))
        return EncodedTexts(rows, tokens.truncated)

    def text_features(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return the model's inputs for texts, on its device."""
        return self._texts.features(self._texts.tokenize(texts), range(len(texts)))

    def images(self, images: Sequence[Image.Image]) -> Vectors:
        return self.encode_prepared([self.preparation(image) for image in images])

    def encode_prepared(self, images: Sequence[Features]) -> Vectors:
        if not images:
            return np.empty((0, self.dim), np.float32)
        chunks, outputs = self._run(images)
        return unit_rows(_in_order([self._row_of(output) for output in outputs], chunks))

    def with_head_inputs(self, images: Sequence[Features]) -> tuple[Vectors, NDArray[np.float32]]:
        """Return the vectors of images, and the inputs of a head.

        At least one image; the inputs have the shape (n, any).
        """
        from embedding.encoders.head import head_input_of

        chunks, outputs = self._run(images)
        rows = unit_rows(_in_order([self._row_of(output) for output in outputs], chunks))
        return rows, _in_order([head_input_of(output) for output in outputs], chunks)

    def _run(self, images: Sequence[Features]) -> tuple[list[list[int]], list[dict[str, Any]]]:
        """Run the model on images; return positions and outputs by chunk."""
        import torch

        chunks = list(self._images.chunks(images, self._limits.images))
        with torch.inference_mode(), self._precision():
            # no output is read before the last chunk is submitted: a GPU computes while the next is made
            return chunks, [self.model(self.features([images[place] for place in chunk])) for chunk in chunks]

    def features(self, images: Sequence[Features]) -> dict[str, Any]:
        """Return the model's inputs for prepared images of equal shapes."""
        return self._images.features(images)

    @property
    def peak_device_mib(self) -> float | None:
        import torch

        if self.model.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.model.device) / 2**20

    def _row_of(self, output: dict[str, Any]) -> "Tensor":
        rows: Tensor = output["sentence_embedding"]
        return rows[:, : self.model.truncate_dim]

    def _precision(self) -> AbstractContextManager[Any]:
        import torch

        if self.model.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()


def _chunk_limits(model: "SentenceTransformer") -> ChunkLimits:
    if model.device.type != "cpu":
        return GPU_LIMITS
    stated = (getattr(module, "images_on_cpu", CPU_LIMITS.images) for module in model.modules())
    return replace(CPU_LIMITS, images=min(stated))


def chunks_by_length(lengths: Sequence[int], limits: ChunkLimits) -> Iterator[list[int]]:
    """Yield positions of texts in chunks of similar lengths, longest first."""
    chunk: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        most = max(1, min(limits.texts, limits.tokens // max(1, lengths[chunk[0]]))) if chunk else 1
        if chunk and len(chunk) >= most:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def _in_order(rows: "Sequence[Tensor]", chunks: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the rows of all chunks in the original order."""
    import torch

    places = [place for chunk in chunks for place in chunk]
    found: NDArray[np.float32] = torch.cat(list(rows)).float().cpu().numpy()
    ordered = np.empty_like(found)
    ordered[places] = found
    return ordered


def unit_rows(rows: NDArray[np.floating]) -> Vectors:
    """Scale each row to L2 norm 1.

    Args:
        rows: shape (n, dim), any float type; n may be 0.

    Returns:
        Shape (n, dim), float32, C-contiguous; a new array.

    Raises:
        ValueError: `rows` is not two-dimensional, or holds NaN or infinity.
        ZeroVector: a row is all zeros.
    """
    if rows.ndim != 2:
        raise ValueError(f"expected shape (n, dim), got {rows.shape}")
    wide = rows.astype(np.float64)
    if not np.isfinite(wide).all():
        bad = np.flatnonzero(~np.isfinite(wide).all(axis=1))
        raise ValueError(f"rows {bad.tolist()} hold NaN or infinity; check the model's precision")
    peaks = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    if len(zero := np.flatnonzero(peaks == 0)):
        raise ZeroVector(f"rows {zero.tolist()} are all zeros; were their inputs empty?")
    wide /= peaks
    return np.ascontiguousarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), np.float32)
