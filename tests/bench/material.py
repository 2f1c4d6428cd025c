"""What is measured with: models whose weights do not matter, photographs that nobody took, a home."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flows.config.settings import Settings
from storage.embedded.postgres.server import stop_postgres
from storage.embedded.qdrant.process.client import stop as stop_index
from storage.qdrant import Point
from storage.records import Digest, ImageInfo, Item, Text
from tests.support.processes import let_in
from tests.support.tiny_clip import write_vit_b_32

Row = dict[str, str | int | float]
"""One line of a table; every line of a table has the same columns."""

WORDS = (
    *["red", "blue", "small", "large", "old", "boat", "apple", "flower", "river", "city"],
    *["on", "in", "with", "near", "above", "a"],
)


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder whose home, `home`, has stopped and whose files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        try:
            yield let_in(Path(folder))
        finally:
            stop_index(Path(folder) / "home")
            stop_postgres(Path(folder) / "home")


MODELS = ("starter", "ViT-B/32")


def model_at(label: str, folder: Path) -> str:
    """Return what `load_encoder` takes for one of `MODELS`, written to `folder` where it is no package."""
    return label if label == "starter" else str(write_vit_b_32(folder / "model"))


def worker_counts() -> tuple[int, ...]:
    """Return with how many workers to measure; on a CPU they only take turns with the model."""
    return (1, 4, 8, 16) if torch.cuda.is_available() else (Settings().decode_workers,)


def photos(folder: Path, many: int, *, size: tuple[int, int] = (500, 375)) -> list[Path]:
    """Write JPEGs, all different, a thousand a folder; those of the default size have about 40 kB."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number // 1000:03}" / f"{number:06}.jpg" for number in range(many)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def captions(many: int) -> list[str]:
    """Return texts of 4 to 40 words, most of them short."""
    random = Random(0)
    lengths = (4, 6, 8, 8, 10, 12, 16, 24, 40)
    return [" ".join(random.choices(WORDS, k=random.choice(lengths))) for _ in range(many)]


def a_point(number: int, row: NDArray[np.float32], *texts: str) -> Point:
    """Return an item with a picture and `texts`, all of them at `row`, shape (dim,)."""
    sha256 = f"{number:064x}"
    picture = ImageInfo(sha256, f"/photos/{number}.jpg", 500, 375, "JPEG")
    item = Item("bench", str(number), tuple(map(Text, texts)), picture, {})
    return Point(item, Digest(sha256, sha256), row, np.repeat(row[None], len(texts), axis=0))
