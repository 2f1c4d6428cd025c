"""Whatever dies, whenever: the next run finishes the work; nothing is lost, doubled or falsely promised."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness
from qdrant_client import QdrantClient
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker

from flows.deps import Stores
from flows.purge import purge
from flows.reconcile import reconcile
from storage import index
from storage.blobs import Blobs
from storage.embedded.qdrant.access import find
from tests.builders import a_folder, png
from tests.conftest import emptied
from tests.faults.points import FIRST_INGEST, SECOND_INGEST
from tests.tiny_clip import write_tiny_clip

Sightline = Callable[..., int]
ROOT = Path(__file__).parents[2]
BATCH = 4
GOOD = {f"{n}.png": png("red", (16, 16 + n)) for n in range(8)} | {"copy.png": png("red", (16, 16))}
CAPTIONS = {"1.txt": "one", "2.txt": "two"}


@pytest.fixture(scope="module")
def prefect_url() -> Iterator[str]:
    with prefect_test_harness():
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("tiny clip"))


@pytest.fixture(scope="module")
def victims(prefect_url: str, model: Path) -> Iterator[subprocess.Popen[str]]:
    """Forks a `sightline` for each order."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect_url,
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.faults.victim", "--serve", str(model)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def stores(engine: Engine, embedded: QdrantClient, tmp_path: Path) -> Iterator[Stores]:
    for client in emptied(embedded):
        yield Stores(engine, sessionmaker(engine), client, Blobs(str(tmp_path / "home" / "pictures")))


@pytest.fixture
def sightline(
    victims: subprocess.Popen[str], engine: Engine, index_home: Path, model: Path, tmp_path: Path
) -> Sightline:
    """Runs the command line in a process of its own, and returns how it ended."""
    access = find(index_home)
    environment = {
        "SIGHTLINE_HOME": str(tmp_path / "home"),
        "SIGHTLINE_DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "SIGHTLINE_QDRANT__URL": access.url,
        "SIGHTLINE_QDRANT__API_KEY": access.key,
        "SIGHTLINE_MODEL": str(model),
        "SIGHTLINE_BATCH_SIZE": str(BATCH),
    }

    def run(*arguments: object, kill: str | None = None) -> int:
        order = {
            "arguments": [str(argument) for argument in arguments],
            "environment": environment,
            "kill": kill,
            "log": str(tmp_path / "log"),
        }
        victims.stdin.write(json.dumps(order) + "\n")
        victims.stdin.flush()
        ended = int(victims.stdout.readline())
        if ended not in (0, -signal.SIGKILL):
            pytest.fail(
                f"{arguments}, killed at {kill!r}: ended with {ended}\n{(tmp_path / 'log').read_text()}"
            )
        return ended

    return run


def check(stores: Stores, expected: set[str], pictures: int) -> None:
    """Everything that is good is searchable, once; nothing else is; the stores agree; no blob too many."""
    with stores.sessions() as session:
        items = dict(
            session.execute(text("select id::text, key from items where deleted is null")).tuples().all()
        )
        marks = session.scalar(text("select count(*) from marks"))
        running = session.scalar(text("select count(*) from runs where outcome = 'running'"))
        rejects = list(session.scalars(text("select place from rejects where resolved is null")))
    points, _ = stores.vectors.scroll(index.ALIAS, limit=1000, with_vectors=["image"])
    assert sorted(items.values()) == sorted(expected)
    assert {str(point.id) for point in points} == items.keys()
    assert len(points) == len(items) == marks
    assert (running, rejects) == (0, ["bad.png"])
    assert stores.vectors.get_collection(index.ALIAS).payload_schema.keys() == {"source", "key"}
    for point in points:
        found = stores.vectors.query_points(index.ALIAS, query=point.vector["image"], using="image", limit=20)
        assert str(point.id) in {hit.id for hit in found.points if hit.score > 0.999}
    assert reconcile(stores).work == 0
    purge(stores, max_delete=1, yes=True, dry_run=False)
    kept = [path for path in (Path(stores.blobs._root)).rglob("*") if path.is_file()]
    assert len(kept) == pictures


@pytest.mark.parametrize("point", FIRST_INGEST, ids=lambda point: point.name)
def test_a_first_ingest_that_dies_is_finished_by_the_next(
    stores: Stores, sightline: Sightline, tmp_path: Path, point
):
    shop = a_folder(tmp_path / "shop", GOOD | CAPTIONS | {"bad.png": b"no picture"})

    assert sightline("ingest", shop, kill=point.name) == -signal.SIGKILL
    sightline("ingest", shop)

    check(stores, set(GOOD), pictures=8)


@pytest.mark.parametrize("point", SECOND_INGEST, ids=lambda point: point.name)
def test_an_ingest_of_changes_and_deletes_that_dies_is_finished_by_the_next(
    stores: Stores, sightline: Sightline, tmp_path: Path, point
):
    shop = a_folder(tmp_path / "shop", GOOD | CAPTIONS | {"bad.png": b"no picture"})
    sightline("ingest", shop)
    (shop / "3.png").unlink()
    (shop / "copy.png").unlink()
    a_folder(shop, {"1.txt": "another", "2.json": '{"year": 1999}', "new.png": png("blue")})

    assert sightline("ingest", shop, "--delete-missing", kill=point.name) == -signal.SIGKILL
    sightline("ingest", shop, "--delete-missing")

    check(stores, {*GOOD, "new.png"} - {"3.png", "copy.png"}, pictures=8)
