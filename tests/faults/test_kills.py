"""Whatever dies, whenever: the next run finishes the work; nothing is lost, doubled or falsely promised."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from qdrant_client import QdrantClient, models
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import sessionmaker

from embedding.encoders.sentence_encoder import Encoder, load_encoder
from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.backup_files import BadBackup, fetch_checked, read_manifest
from flows.maintenance.purge import purge
from flows.reindexing.reindex import rollback
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps, Stores, open_stores
from storage import qdrant
from storage.blobs import Blobs
from storage.embedded.qdrant.process.discovery import find
from tests.conftest import emptied
from tests.faults import victim
from tests.faults.points import (
    BACKUP,
    DELETE,
    FIRST_INGEST,
    MOVE,
    OFTEN,
    REINDEX,
    REPAIR,
    RESTORE,
    SECOND_INGEST,
    HalfARequest,
    KillPoint,
)
from tests.support import forks
from tests.support.builders import a_folder, png
from tests.support.processes import environment_of, homes
from tests.support.tiny_clip import write_tiny_clip

pytestmark = pytest.mark.system

Sightline = Callable[..., int]
BATCH = 4
GOOD = {f"{n}.png": png("red", (16, 16 + n)) for n in range(8)} | {"copy.png": png("red", (16, 16))}
CAPTIONS = {"1.txt": "one", "2.txt": "two"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("tiny clip"))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("other tiny clip"), seed=1)


@pytest.fixture(scope="module")
def encoder(model: Path) -> Encoder:
    return load_encoder(str(model), device="cpu")


@pytest.fixture
def stores(engine: Engine, embedded: QdrantClient, tmp_path: Path) -> Iterator[Stores]:
    for client in emptied(embedded):
        yield Stores(engine, sessionmaker(engine), client, Blobs(str(tmp_path / "home" / "pictures")))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return a_folder(tmp_path / "shop", GOOD | CAPTIONS | {"bad.png": b"no picture"})


@pytest.fixture
def ingested(stores: Stores, encoder: Encoder, model: Path, shop: Path, tmp_path: Path) -> Path:
    """The same shop, taken in by this process."""
    deps = Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, encoder)
    settings = Settings(home=tmp_path / "home", model=str(model), batch_size=BATCH)
    ingest_source(deps, settings, Request(shop))
    return shop


@pytest.fixture
def empty_database(engine: Engine) -> Iterator[Engine]:
    """Another database of the same server."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("create database restored"))
        other = create_engine(engine.url.set(database="restored"))
        yield other
        other.dispose()
        connection.execute(text("drop database restored with (force)"))


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder, model: Path) -> Iterator[Path]:
    """A home with embedded stores that hold the shop; moves leave it as it is."""
    shop = a_folder(tmp_path_factory.mktemp("own") / "shop", GOOD | CAPTIONS | {"bad.png": b"no picture"})
    with homes() as home_at:
        home = home_at(shop.parent / "home")
        settings = Settings(home=home, model=str(model), batch_size=BATCH)
        with open_stores(settings) as own:
            deps = Deps(own.engine, own.sessions, own.vectors, own.blobs, encoder)
            ingest_source(deps, settings, Request(shop))
        yield home


@pytest.fixture
def sightline(engine: Engine, index_home: Path, model: Path, tmp_path: Path) -> Sightline:
    """Runs the command line in a process of its own, and returns how it ended."""
    environment = {
        **os.environ,
        **environment_of(tmp_path / "home", engine.url, find(index_home), model),
        "SIGHTLINE_BATCH_SIZE": str(BATCH),
        "SIGHTLINE_DECODE_WORKERS": "1",
        "OMP_NUM_THREADS": "1",
    }

    def run(*arguments: object, kill: str | None = None, **elsewhere: str) -> int:
        done = forks.run(victim.run, kill, *map(str, arguments), environment=environment | elsewhere)
        if done.returncode not in (0, -signal.SIGKILL):
            pytest.fail(f"{arguments}, killed at {kill!r}: ended with {done.returncode}\n{done.stderr}")
        return done.returncode

    return run


def check(stores: Stores, home: Path, expected: set[str], pictures: int) -> None:
    """Everything that is good is searchable, once; nothing else is; the stores agree; no blob too many."""
    with stores.sessions() as session:
        items = dict(
            session.execute(text("select id::text, key from items where deleted is null")).tuples().all()
        )
        marks = session.scalar(text("select count(*) from marks"))
        running = session.scalar(text("select count(*) from runs where outcome = 'running'"))
        rejects = list(session.scalars(text("select place from rejects where resolved is null")))
    points, _ = stores.vectors.scroll(qdrant.ALIAS, limit=1000, with_vectors=["image"])
    assert sorted(items.values()) == sorted(expected)
    assert {str(point.id) for point in points} == items.keys()
    assert len(points) == len(items) == marks
    assert (running, rejects) == (0, ["bad.png"])
    assert stores.vectors.get_collection(qdrant.ALIAS).payload_schema.keys() == {"source", "key"}
    for point in points:
        found = stores.vectors.query_points(
            qdrant.ALIAS, query=point.vector["image"], using="image", limit=20
        )
        assert str(point.id) in {hit.id for hit in found.points if hit.score > 0.999}
    assert reconcile(stores).work == 0
    purge(stores, Settings(home=home), max_delete=1, yes=True, dry_run=False)
    assert not list(home.glob(".*"))
    kept = [path for path in (Path(stores.blobs._root)).rglob("*") if path.is_file()]
    assert len(kept) == pictures


def break_everything(stores: Stores) -> None:
    """Lose a picture, two points and the alias, change a payload, and add a point that nobody knows."""
    collection = qdrant.active_collection(stores.vectors).name
    points, _ = stores.vectors.scroll(collection, limit=20, with_vectors=["image"])
    stores.vectors.delete(collection, [points[0].id, points[1].id], wait=True)
    stores.vectors.set_payload(collection, {"record_hash": "old"}, points=[points[2].id], wait=True)
    stray = models.PointStruct(id=str(uuid4()), vector={"image": points[0].vector["image"]}, payload={})
    stores.vectors.upsert(collection, [stray], wait=True)
    gone = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=qdrant.ALIAS))
    stores.vectors.update_collection_aliases(change_aliases_operations=[gone])
    with stores.sessions() as session:
        stores.blobs.delete(session.scalar(text("select image_sha256 from items where key = '5.png'")))


def named(points: Sequence[KillPoint | HalfARequest]) -> pytest.MarkDecorator:
    marked = [pytest.param(point, marks=() if point in OFTEN else pytest.mark.full) for point in points]
    return pytest.mark.parametrize("point", marked, ids=lambda point: point.name)


@named(FIRST_INGEST)
def test_a_first_ingest_that_dies_is_finished_by_the_next(
    stores: Stores, sightline: Sightline, shop: Path, tmp_path: Path, point
):
    assert sightline("ingest", shop, kill=point.name) == -signal.SIGKILL
    sightline("ingest", shop)

    check(stores, tmp_path / "home", set(GOOD), pictures=8)


@named(SECOND_INGEST)
def test_an_ingest_of_changes_and_deletes_that_dies_is_finished_by_the_next(
    stores: Stores, sightline: Sightline, ingested: Path, tmp_path: Path, point
):
    (ingested / "3.png").unlink()
    (ingested / "copy.png").unlink()
    a_folder(ingested, {"1.txt": "another", "2.json": '{"year": 1999}', "new.png": png("blue")})

    assert sightline("ingest", ingested, "--delete-missing", kill=point.name) == -signal.SIGKILL
    sightline("ingest", ingested, "--delete-missing")

    check(stores, tmp_path / "home", {*GOOD, "new.png"} - {"3.png", "copy.png"}, pictures=8)


@named(DELETE)
def test_a_delete_that_dies_is_finished_by_the_next_and_what_it_took_stays_away(
    stores: Stores, sightline: Sightline, ingested: Path, tmp_path: Path, point
):
    assert sightline("delete", "3.png", "copy.png", kill=point.name) == -signal.SIGKILL
    sightline("delete", "3.png", "copy.png")
    sightline("ingest", ingested)

    check(stores, tmp_path / "home", set(GOOD) - {"3.png", "copy.png"}, pictures=7)


@pytest.mark.usefixtures("ingested")
@named(REPAIR)
def test_a_repair_that_dies_is_finished_by_the_next(
    stores: Stores, sightline: Sightline, tmp_path: Path, point
):
    break_everything(stores)

    assert sightline("reconcile", "--repair", "--yes", kill=point.name) == -signal.SIGKILL
    sightline("reconcile", "--repair", "--yes")

    check(stores, tmp_path / "home", set(GOOD), pictures=8)


@pytest.mark.usefixtures("ingested")
@named(BACKUP)
def test_a_backup_that_dies_is_none_and_the_next_is_whole(
    stores: Stores, sightline: Sightline, tmp_path: Path, point
):
    target, fetched = str(tmp_path / "backups"), tmp_path / "fetched"

    assert sightline("backup", target, kill=point.name) == -signal.SIGKILL
    with pytest.raises(BadBackup):
        read_manifest(target)
    sightline("backup", target)

    fetched.mkdir()
    fetch_checked(*read_manifest(target), fetched, advance=lambda _: None)
    check(stores, tmp_path / "home", set(GOOD), pictures=8)


@pytest.mark.usefixtures("ingested")
@named(RESTORE)
def test_a_restore_that_dies_is_done_again(
    stores: Stores, sightline: Sightline, empty_database: Engine, tmp_path: Path, point
):
    sightline("backup", tmp_path / "backups")
    for name in qdrant.list_collections(stores.vectors):
        stores.vectors.delete_collection(name)
    elsewhere = {
        "SIGHTLINE_HOME": str(tmp_path / "other"),
        "SIGHTLINE_DATABASE_URL": empty_database.url.render_as_string(hide_password=False),
    }

    assert sightline("restore", tmp_path / "backups", kill=point.name, **elsewhere) == -signal.SIGKILL
    sightline("restore", tmp_path / "backups", **elsewhere)

    blobs = Blobs(str(tmp_path / "other" / "pictures"))
    other = Stores(empty_database, sessionmaker(empty_database), stores.vectors, blobs)
    check(other, tmp_path / "other", set(GOOD), pictures=8)


@pytest.mark.usefixtures("ingested")
@named(REINDEX)
def test_a_killed_reindex_leaves_searches_whole_and_is_finished_by_the_next(
    point: KillPoint | HalfARequest,
    stores: Stores,
    encoder: Encoder,
    other_model: Path,
    sightline: Sightline,
    tmp_path: Path,
):
    command = ("reindex", "--model", other_model, "--force")

    assert sightline(*command, kill=point.name) == -signal.SIGKILL
    searched = qdrant.active_collection(stores.vectors)
    assert searched is not None
    assert qdrant.count(stores.vectors, searched.name) == len(GOOD)

    assert sightline(*command) == 0
    searched = qdrant.active_collection(stores.vectors)
    assert searched is not None
    assert searched.model == str(other_model)
    assert reconcile(stores).work == 0
    with stores.sessions() as session:
        by_state = session.execute(text("select state, count(*) from collections group by 1"))
        states = dict(by_state.tuples().all())
        open_runs = session.scalar(text("select count(*) from runs where outcome = 'running'"))
        forced = session.scalar(text("select count(*) from promotions where forced"))
    assert (states, open_runs, forced) == ({"active": 1, "retired": 1}, 0, 1)

    rollback(stores, Settings(home=tmp_path / "home"), load=lambda *_: encoder)
    searched = qdrant.active_collection(stores.vectors)
    assert searched is not None
    assert searched.fingerprint == encoder.fingerprint
    assert reconcile(stores).work == 0


@named(MOVE)
def test_a_move_that_dies_is_finished_by_the_next(
    stores: Stores, sightline: Sightline, own_home: Path, point
):
    home = {"SIGHTLINE_HOME": str(own_home)}

    assert sightline("move", "--to-servers", kill=point.name, **home) == -signal.SIGKILL
    assert sightline("move", "--to-servers", **home) == 0

    moved = Stores(stores.engine, stores.sessions, stores.vectors, Blobs(str(own_home / "pictures")))
    check(moved, own_home, set(GOOD), pictures=8)
