"""How much of the model's own speed an ingest reaches: the forward pass alone, and the whole of it."""

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median

from embedding.encoders.sentence_encoder import SentenceEncoder
from embedding.images.preparation import Features, prepare
from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import open_deps
from tests.bench.material import MODELS, Row, model_at, photos, scratch, worker_counts

PICTURES = {"cpu": 1024, "cuda": 32_768}
FORWARD = {"cpu": 128, "cuda": 4096}
ROUNDS = 3


def run() -> Iterator[Row]:
    """Yield pictures a second: forward from pixels in memory, and from JPEG files to both stores."""
    for label, workers in product(MODELS, worker_counts()):
        with scratch() as folder:
            model = model_at(label, folder)
            settings = Settings(home=folder / "home", model=model, decode_workers=workers)
            yield measure(label, settings, folder / "photos")


def measure(label: str, settings: Settings, folder: Path) -> Row:
    with open_deps(settings) as deps:
        encoder = deps.encoder
        assert isinstance(encoder, SentenceEncoder)
        kind = encoder.model.device.type
        files = photos(folder, PICTURES[kind])
        pixels = [
            prepare(encoder.preparation, file.read_bytes(), name=file.name).features
            for file in files[: FORWARD[kind]]
        ]
        rates = forward(encoder, pixels)
        report = ingest_source(deps, settings, Request(folder))
        alone = median(rates + forward(encoder, pixels))
    assert report.embedded == len(files)
    return {
        "model": label,
        "workers": settings.decode_workers,
        "forward alone, a second": round(alone, 1),
        "ingest, a second": report.speed.pictures_per_s,
        "share": f"{report.speed.pictures_per_s / alone:.0%}",
        "limit": report.speed.bottleneck,
        "peak MiB": round(report.speed.peak_mib),
    }


def forward(encoder: SentenceEncoder, pixels: list[Features]) -> list[float]:
    """Return pictures a second of the forward pass, several times, after one that does not count."""
    rates = []
    for turn in range(ROUNDS + 1):
        start = time.perf_counter()
        encoder.encode_prepared(pixels)
        if turn:
            rates.append(len(pixels) / (time.perf_counter() - start))
    return rates
