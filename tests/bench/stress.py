"""Eight processes write, delete, search and scroll at once for a minute; then again, and the owner is killed.

Each writer has ids of its own, so it knows what must be there in the end. A point's vector follows from its
id and version, so any reader can tell a point that is half old and half new.
"""

import multiprocessing
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import TypeVar

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException

from storage.embedded.qdrant.process.client import index_client, stop
from storage.embedded.qdrant.process.discovery import find

SECONDS = 60
ROLES = ("ingest", "ingest", "ingest", "delete", "search", "search", "scroll", "scroll")
NAME = "stress"
DIM = 64
BATCH = 50
IDS_A_WRITER = 2_000
SLOTS = 10
Answer = TypeVar("Answer")


@dataclass(slots=True)
class Report:
    """What one process did, how long each act took in seconds, and what must be there because of it."""

    role: str
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)
    """The version of each point that this process wrote and did not delete."""


def stress(home: Path, seconds: float, *, kill: bool) -> list[Report]:
    """Let eight processes use the index of `home` for `seconds`; SIGKILL its owner halfway if asked.

    Raises:
        AssertionError: a reader saw a torn point, or the final state is not what was acknowledged.
    """
    with index_client(home, timeout_s=60) as client:
        client.delete_collection(NAME)
        image = models.VectorParams(size=DIM, distance=models.Distance.DOT)
        client.create_collection(NAME, vectors_config={"image": image})
        client.create_payload_index(NAME, "slot", models.PayloadSchemaType.INTEGER)
        forks = multiprocessing.get_context("forkserver")
        with forks.Manager() as manager, ProcessPoolExecutor(len(ROLES), forks) as pool:
            all_here = manager.Barrier(len(ROLES) + 1)
            running = [
                pool.submit(work, home, role, number, seconds, all_here) for number, role in enumerate(ROLES)
            ]
            all_here.wait()
            if kill:
                time.sleep(seconds / 2)
                owner = find(home)
                assert owner is not None, "the owner has ended by itself"
                os.kill(owner.pid, signal.SIGKILL)
            reports = [one.result() for one in running]
        expected = {id: version for report in reports for id, version in report.versions.items()}
        found = scroll(client)
        differing = found.items() ^ expected.items()
        assert not differing, f"{len(differing)} points differ from what was acknowledged"
        assert client.count(NAME).count == len(expected)
    return reports


def work(home: Path, role: str, number: int, seconds: float, all_here: Barrier) -> Report:
    """Do what `role` does, again and again; what fails because the owner is gone is tried again."""
    rng = np.random.default_rng(number)
    report = Report(role)
    with index_client(home, timeout_s=60) as client:
        acts: dict[str, Callable[[], object]] = {
            "ingest": lambda: upsert(client, report, rng, number),
            "delete": lambda: upsert_or_delete(client, report, rng, number),
            "search": lambda: search(client, report, rng),
            "scroll": lambda: attempt(report, lambda: scroll(client)),
        }
        all_here.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begun = time.perf_counter()
            acts[role]()
            report.seconds.append(time.perf_counter() - begun)
    return report


def attempt(report: Report, act: Callable[[], Answer]) -> Answer:
    """Call `act` until it is answered; it must be one that can be repeated."""
    while True:
        try:
            return act()
        except ResponseHandlingException as error:
            report.errors.append(str(error))


def upsert(client: QdrantClient, report: Report, rng: np.random.Generator, number: int) -> None:
    first = number * IDS_A_WRITER
    ids = rng.choice(IDS_A_WRITER, size=BATCH, replace=False) + first
    versions = {int(id): report.versions.get(int(id), 0) + 1 for id in ids}
    points = [a_point(id, version) for id, version in versions.items()]
    attempt(report, lambda: client.upsert(NAME, points))
    report.versions |= versions


def upsert_or_delete(client: QdrantClient, report: Report, rng: np.random.Generator, number: int) -> None:
    if rng.random() < 0.5:
        return upsert(client, report, rng, number)
    slot = int(rng.integers(SLOTS))
    own = models.FieldCondition(key="writer", match=models.MatchValue(value=number))
    which = models.FilterSelector(filter=models.Filter(must=[own, in_slot(slot)]))
    attempt(report, lambda: client.delete(NAME, which))
    report.versions = {id: version for id, version in report.versions.items() if id % SLOTS != slot}
    return None


def in_slot(slot: int) -> models.FieldCondition:
    return models.FieldCondition(key="slot", match=models.MatchValue(value=slot))


def search(client: QdrantClient, report: Report, rng: np.random.Generator) -> None:
    query = rng.normal(size=DIM).tolist()
    where = models.Filter(must=[in_slot(int(rng.integers(SLOTS)))]) if rng.random() < 0.5 else None
    found = attempt(
        report,
        lambda: client.query_points(
            NAME, query, using="image", limit=20, with_vectors=True, query_filter=where
        ),
    )
    for hit in found.points:
        require_whole(hit)


def scroll(client: QdrantClient) -> dict[int, int]:
    """Return the version of every point."""
    versions: dict[int, int] = {}
    offset = None
    while True:
        page, offset = client.scroll(NAME, limit=1_000, offset=offset, with_vectors=True)
        for point in page:
            require_whole(point)
            assert point.id not in versions, f"{point.id} came twice"
            versions[point.id] = point.payload["version"]
        if offset is None:
            return versions


def a_point(id: int, version: int) -> models.PointStruct:
    payload = {"version": version, "slot": id % SLOTS, "writer": id // IDS_A_WRITER}
    return models.PointStruct(id=id, vector={"image": vector_of(id, version)}, payload=payload)


def vector_of(id: int, version: int) -> list[float]:
    """Return small whole numbers, which no float rounds."""
    return ((np.arange(DIM) * (id % 97 + 1) + version) % 101).astype(float).tolist()


def require_whole(point: models.Record | models.ScoredPoint) -> None:
    version = point.payload["version"]
    assert point.vector == {"image": vector_of(point.id, version)}, f"{point.id} is torn"


def main() -> None:
    for kill in (False, True):
        with tempfile.TemporaryDirectory(prefix="sightline-stress-") as folder:
            try:
                reports = stress(Path(folder), SECONDS, kill=kill)
            finally:
                stop(Path(folder))
        print(f"\n{len(ROLES)} processes, {SECONDS} s" + (", the owner killed in the middle" if kill else ""))
        tell(reports)
        if not kill and any(report.errors for report in reports):
            raise SystemExit("there were errors, though nothing was killed")


def tell(reports: list[Report]) -> None:
    print(f"{'role':<8} {'done':>8} {'a second':>9} {'p50 ms':>8} {'p99 ms':>8} {'worst':>8} {'errors':>7}")
    for role in dict.fromkeys(ROLES):
        seconds = [one for report in reports if report.role == role for one in report.seconds]
        errors = Counter(error for report in reports if report.role == role for error in report.errors)
        p50, p99, worst = (1000 * np.percentile(seconds, share) for share in (50, 99, 100))
        rate = len(seconds) / SECONDS
        print(
            f"{role:<8} {len(seconds):>8,} {rate:>9,.0f} {p50:>8.1f} {p99:>8.1f} {worst:>8.1f} "
            f"{errors.total():>7}"
        )
        for error, times in errors.items():
            print(f"{'':8} {times} x {error}")
    print("every point is as it was acknowledged")


if __name__ == "__main__":
    main()
