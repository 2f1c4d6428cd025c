"""Measure the time and memory of backup, restore and check.

Each runs in a process of its own, over embedded stores that were filled without a model.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flows.config.settings import Settings
from flows.maintenance.backup import backup
from flows.maintenance.restore import check, restore
from flows.resources.connections import open_stores
from storage.embedded.postgres.server import stop_postgres
from storage.embedded.qdrant.process.client import stop as stop_index
from tests.bench.reconcile import peak_kib
from tests.support.processes import let_in
from tests.support.saved_stores import a_store_of

SIZES = (2_000, 20_000)
DIM = 512


def measure(work: str, home: Path, target: str, many: int) -> None:
    """Print one line about one kind of work."""
    settings = Settings(home=home).with_time()
    before, start = peak_kib(), time.perf_counter()
    match work:
        case "backup":
            with open_stores(settings) as stores:
                points = sum(backup(stores, target, home).manifest.points.values())
        case "restore":
            points = sum(restore(settings, target).points.values())
        case _:
            proof = check(settings, target).proof
            points = proof.points if proof else 0
    seconds, peak = time.perf_counter() - start, peak_kib()
    if points != many:
        raise SystemExit(f"{work}: {points:,} points of {many:,}")
    added = (peak - before) / 1024
    print(f"{many:>8,} {work:>8} {seconds:>8.1f} {many / seconds:>9,.0f} {peak / 1024:>9,.0f} {added:>9,.0f}")


def main() -> None:
    head = f"{'records':>8} {'':>8} {'seconds':>8} {'a second':>9} {'peak MiB':>9} {'added MiB':>9}"
    print(head, flush=True)
    for many in SIZES:
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
            let_in(Path(folder))
            home, other, target = Path(folder) / "home", Path(folder) / "other", str(Path(folder) / "backups")
            try:
                with open_stores(Settings(home=home)) as stores:
                    a_store_of(stores, many, dim=DIM)
                for work, own in (("backup", home), ("restore", other), ("check", home)):
                    argv = [sys.executable, "-m", "tests.bench.backup", work, str(own), target, str(many)]
                    subprocess.run(argv, check=True)
            finally:
                for own in (home, other):
                    stop_index(own)
                    stop_postgres(own)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
