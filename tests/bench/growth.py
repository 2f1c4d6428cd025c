"""Do time and memory per record stay what they are as a source grows? Each run is a command of its own.

Small pictures and a tiny model: what is measured is everything but the model.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.material import Row, captions, photos, scratch
from tests.support.tiny_clip import write_tiny_clip

SIZES = (1_000, 10_000, 100_000)


def run() -> Iterator[Row]:
    """Yield milliseconds and memory of an ingest at each size."""
    for size in SIZES:
        with scratch() as folder:
            pictures = photos(folder / "photos", size, size=(64, 48))
            for picture, caption in zip(pictures, captions(size), strict=True):
                picture.with_suffix(".txt").write_text(caption)
            yield measure(folder, size)


def measure(folder: Path, size: int) -> Row:
    model = write_tiny_clip(folder / "model")
    env = os.environ | {"SIGHTLINE_HOME": str(folder / "home"), "SIGHTLINE_MODEL": str(model)}
    command = [sys.executable, "-m", "flows.cli", "ingest", str(folder / "photos"), "--json"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
    report = json.loads(done.stdout)
    assert report["embedded"] == size
    speed = report["speed"]
    return {
        "records": size,
        "records a second": speed["records_per_s"],
        "ms each": round(1000 * report["seconds"] / size, 3),
        "peak MiB": round(speed["peak_mib"]),
        "limit": speed["bottleneck"],
    }
