"""The stream beside `SentenceTransformer.encode`: same model, same input, in turns.

Pictures go through the model in batches of the same size; of texts `encode` takes 32 at once, its default.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from embedding.encoders.sentence_encoder import SentenceEncoder, load_encoder
from embedding.images.worker_pool import Workers
from embedding.pipeline import prefetch
from embedding.process_tuning import keep_freed_memory
from tests.bench.material import MODELS, Row, captions, model_at, photos, scratch, worker_counts

ROUNDS = 5
PICTURES = {"cpu": 128, "cuda": 4096}
TEXTS = {"cpu": 512, "cuda": 16_384}
BATCHES = 4
"""As many of the model's own batches are decoded ahead as an ingest decodes."""


def run() -> Iterator[Row]:
    """Yield pictures (from JPEG files) and texts a second, by both."""
    keep_freed_memory()
    for label in MODELS:
        with scratch() as folder:
            yield from measure(label, load_encoder(model_at(label, folder)), folder)


def measure(label: str, encoder: SentenceEncoder, folder: Path) -> Iterator[Row]:
    kind = encoder.model.device.type
    files = photos(folder / "photos", PICTURES[kind])
    texts = captions(TEXTS[kind])
    for workers in worker_counts():
        with Workers(encoder.preparation, workers) as pool:
            ways = in_turns(
                partial(encode_files, encoder, files),
                partial(stream, encoder, pool, files),
            )
        yield line(label, f"JPEG, {workers} workers", len(files), ways)
    ways = in_turns(partial(encode, encoder, texts, 32), partial(encoder.texts, texts))
    yield line(label, "texts", len(texts), ways)


def encode_files(encoder: SentenceEncoder, files: Sequence[Path]) -> None:
    encode(encoder, [Image.open(file) for file in files], encoder.images_per_chunk)


def encode(encoder: SentenceEncoder, inputs: Sequence[object], batch_size: int) -> None:
    with encoder._precision():
        encoder.model.encode(list(inputs), batch_size=batch_size, show_progress_bar=False)


def stream(encoder: SentenceEncoder, pool: Workers, files: Sequence[Path]) -> None:
    """Embed pictures as an ingest does: the next ones are decoded meanwhile."""

    def decoding() -> Iterator[list]:
        rest = iter(files)
        while some := list(islice(rest, BATCHES * encoder.images_per_chunk)):
            yield [pool.submit(file.read_bytes(), name=file.name) for file in some]

    with prefetch(decoding(), depth=2) as batches:
        for batch in batches:
            encoder.encode_prepared([one.result().features for one in batch])


def in_turns(*ways: Callable[[], object]) -> list[list[float]]:
    """Return the seconds of each way, `ROUNDS` times in turns, after one time that does not count."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(ROUNDS + 1):
        for way, taken in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                taken.append(time.perf_counter() - start)
    return seconds


def line(model: str, what: str, many: int, ways: list[list[float]]) -> Row:
    encode_s, stream_s = (median(seconds) for seconds in ways)
    ratio = median(one / other for one, other in zip(*ways, strict=True))
    return {
        "model": model,
        "input": what,
        "encode, a second": round(many / encode_s, 1),
        "stream, a second": round(many / stream_s, 1),
        "times": round(ratio, 2),
    }
