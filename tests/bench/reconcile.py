"""What comparing the two stores costs, at two sizes: seconds, and the peak memory of the process.

Each size gets a home of its own, filled without a model; one record in a hundred then loses its point. The
vectors are short, as a reconcile reads none of them.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from flows.config.settings import Settings
from flows.resources.comparison import reconcile
from flows.resources.connections import Stores, open_stores
from storage import qdrant
from storage.embedded.postgres.server import stop_postgres
from storage.embedded.qdrant.process.client import stop as stop_index
from storage.postgres import catalog, model_registry
from storage.qdrant import Point
from storage.records import Digest, Item, Text
from tests.support.processes import let_in

SIZES = (20_000, 200_000)
DIM = 16
BATCH = 1000
LOST_EVERY = 100


def records(many: int) -> Iterator[tuple[Item, Digest]]:
    for n in range(many):
        item = Item("bench", f"{n}", (Text(f"text {n}"),), None, {"n": n})
        yield item, Digest(f"{n:064x}", f"{n:064x}")


def fill(stores: Stores, many: int) -> None:
    """Put `many` records into both stores, in step."""
    name = qdrant.create_collection(
        stores.vectors, model="bench", fingerprint="bench", dim=DIM, filter_fields={}
    )
    qdrant.activate(stores.vectors, name)
    collection = qdrant.describe(stores.vectors, name)
    with stores.sessions.begin() as session:
        model_registry.activate_collection(session, name=name, model="bench", fingerprint="bench", dim=DIM)
    rows = np.random.default_rng(0).standard_normal((BATCH, 1, DIM)).astype(np.float32)
    waiting = records(many)
    while batch := list(islice(waiting, BATCH)):
        with stores.sessions.begin() as session:
            catalog.save_items(session, {item.id: (item, digest) for item, digest in batch})
        points = [Point(item, digest, None, row) for (item, digest), row in zip(batch, rows, strict=True)]
        qdrant.upsert(stores.vectors, collection, points)
        with stores.sessions.begin() as session:
            catalog.mark_embedded(session, name, {item.id: digest for item, digest in batch})
    lost = [item.id for item, _ in islice(records(many), 0, None, LOST_EVERY)]
    for start in range(0, len(lost), BATCH):
        qdrant.delete_points(stores.vectors, name, lost[start : start + BATCH])


def peak_kib() -> int:
    """Return the peak memory of this program; ru_maxrss may be that of whoever started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def measure(home: Path, many: int) -> None:
    """Print one line about a home that is filled already; in a process of its own, for its memory."""
    with open_stores(Settings(home=home)) as stores:
        before = peak_kib()
        start = time.perf_counter()
        report = reconcile(stores)
        seconds = time.perf_counter() - start
    peak = peak_kib()
    if report.counts["missing"] != many // LOST_EVERY or report.damage != many // LOST_EVERY:
        raise SystemExit(f"found {report.counts}, and {many // LOST_EVERY} points are missing")
    added = (peak - before) / 1024
    print(f"{many:>8,} {seconds:>8.1f} {1e6 * seconds / many:>8.0f} {peak / 1024:>9,.0f} {added:>9,.0f}")


def main() -> None:
    print(f"{'items':>8} {'seconds':>8} {'µs each':>8} {'peak MiB':>9} {'added MiB':>9}", flush=True)
    for many in SIZES:
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
            home = let_in(Path(folder)) / "home"
            try:
                with open_stores(Settings(home=home)) as stores:
                    fill(stores, many)
                own = [sys.executable, "-m", "tests.bench.reconcile", str(home), str(many)]
                subprocess.run(own, check=True)
            finally:
                stop_index(home)
                stop_postgres(home)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
