"""A home moves into servers whole: nothing is embedded again, nothing in them is lost, the home stays."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker

from flows.config.settings import Qdrant, Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.delete import delete_items
from flows.maintenance.migrate_to_servers import MoveFailed, MoveResult, NothingToMove, move, move_to_servers
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps, Stores, open_stores
from storage import qdrant, transfer
from storage.blobs import Blobs
from storage.postgres import dump
from storage.postgres.catalog import Selection
from storage.postgres.dump import NotEmpty
from storage.postgres.locks import Busy, source_lock
from storage.transfer import AlreadyMoved
from tests.support.builders import a_folder, png
from tests.support.fakes import ColourEncoder
from tests.support.processes import homes

PICTURES = {f"{number}.png": png("red", (16, 16 + number)) for number in range(5)}
FILES = {"0.txt": 'red, with "quotes", a\ttab,\na line and a \\N', "1.json": '{"kind": "fruit"}'}
FOREIGN = "not one of ours"


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with homes() as home_at:
        yield home_at(tmp_path_factory.mktemp("own home"))


@pytest.fixture
def here(own_home: Path) -> Settings:
    """A home with all that a home may have: words and pictures, a reject, filters, packed vectors."""
    chosen = Qdrant(quantization="int8", filter_fields={"kind": "keyword"})
    return Settings(home=own_home, batch_size=4, decode_workers=0, retry_for_s=5, qdrant=chosen)


@pytest.fixture
def source(here: Settings, tmp_path: Path) -> Iterator[Stores]:
    with open_stores(here) as stores:
        folder = a_folder(tmp_path / "shop", PICTURES | FILES | {"bad.png": b"no picture"})
        ingest(stores, here, folder)
        yield stores
        for name in transfer.collection_names(stores.vectors):
            stores.vectors.delete_collection(name)
        tables = ", ".join(table.name for table in dump.tables())
        with stores.sessions.begin() as session:
            session.execute(text(f"truncate {tables}"))
        shutil.rmtree(here.home / "pictures")


@pytest.fixture
def target(engine: Engine, served: QdrantClient, own_home: Path) -> Stores:
    """Servers by URL, which see the home's pictures where they are."""
    return Stores(engine, sessionmaker(engine), served, Blobs(str(own_home / "pictures")))


def ingest(stores: Stores, settings: Settings, folder: Path) -> None:
    deps = Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, ColourEncoder())
    ingest_source(deps, settings, Request(folder))


def rows(stores: Stores, table: str) -> list[str]:
    with stores.sessions() as session:
        return sorted(session.scalars(text(f"select t::text from {table} t where true")))


def points(client: QdrantClient, name: str = qdrant.ALIAS) -> dict[Any, tuple[Any, Any]]:
    found, _ = client.scroll(name, limit=100, with_vectors=True)
    return {point.id: (point.payload, _rounded(point.vector)) for point in found}


def _rounded(vector: Any) -> Any:
    """Each server makes vectors unit length anew, which may change the last bit."""
    if isinstance(vector, dict):
        return {name: _rounded(one) for name, one in vector.items()}
    return [_rounded(one) for one in vector] if isinstance(vector, list) else round(vector, 5)


def interrupted(source: Stores, target: Stores, settings: Settings, step: str) -> None:
    """Have a move be interrupted by Ctrl-C where it would do `step`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dump if hasattr(dump, step) else transfer, step, _interrupt)
        with pytest.raises(KeyboardInterrupt):
            move(source, target, settings)


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_all_that_a_home_holds_is_in_the_servers_afterwards(source: Stores, target: Stores, here: Settings):
    held = {table.name: rows(source, table.name) for table in dump.tables()}

    moved: MoveResult = move(source, target, here)

    collection = qdrant.active_collection(source.vectors)
    assert moved.report.work == 0
    assert moved.report.items == moved.report.points == moved.rows["items"] == 5
    assert moved.points == {collection.name: 5}
    assert points(target.vectors) == points(source.vectors)
    assert qdrant.active_collection(target.vectors).name == collection.name
    for name, were in held.items():
        if name != "runs":
            assert rows(target, name) == were
    assert set(held["runs"]) < set(rows(target, "runs"))
    assert {table.name: rows(source, table.name) for table in dump.tables()} == held
    assert [path.name for path in moved.stays] == ["pictures"]


def test_a_collection_is_made_as_it_was(source: Stores, target: Stores, here: Settings):
    move(source, target, here)

    there, here_is = (client.get_collection(qdrant.ALIAS) for client in (target.vectors, source.vectors))
    assert qdrant.active_collection(target.vectors) == qdrant.active_collection(source.vectors)
    assert qdrant.active_collection(target.vectors).quantization == "int8"
    assert there.config.params.vectors == here_is.config.params.vectors
    assert there.payload_schema.keys() == {"source", "key", "metadata.kind"}


def test_collections_of_others_come_along_with_their_aliases(source: Stores, target: Stores, here: Settings):
    dense = models.VectorParams(size=2, distance=models.Distance.DOT)
    source.vectors.create_collection(FOREIGN, vectors_config=dense)
    theirs = [models.PointStruct(id=number, vector=[number, 1.0], payload={"n": number}) for number in (1, 2)]
    source.vectors.upsert(FOREIGN, theirs, wait=True)
    alias = models.CreateAlias(alias_name="theirs", collection_name=FOREIGN)
    source.vectors.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])

    moved = move(source, target, here)

    assert moved.points[FOREIGN] == 2
    assert points(target.vectors, "theirs") == points(source.vectors, FOREIGN)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("make_collection", marks=pytest.mark.full),
        "copy_points",
        pytest.param("copy_rows", marks=pytest.mark.full),
        pytest.param("renew_sequences", marks=pytest.mark.full),
        "copy_aliases",
    ],
)
def test_a_move_that_was_interrupted_goes_on_when_it_is_run_again(
    source: Stores, target: Stores, here: Settings, step: str
):
    interrupted(source, target, here, step)
    assert qdrant.active_collection(target.vectors) is None

    moved = move(source, target, here)

    assert moved.report.work == 0
    assert points(target.vectors) == points(source.vectors)
    assert [run for run in rows(target, "runs") if "running" in run] == []


def test_what_has_arrived_is_not_sent_again(
    source: Stores, target: Stores, here: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "PAGE", 2)
    sent: list[int] = []
    real = transfer.copy_points

    def copy(source: QdrantClient, target: QdrantClient, name: str, ids: list[Any]) -> None:
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(len(ids))
        real(source, target, name, ids)

    monkeypatch.setattr(transfer, "copy_points", copy)
    with pytest.raises(KeyboardInterrupt):
        move(source, target, here)
    arrived = sum(sent)
    sent.clear()
    monkeypatch.setattr(transfer, "copy_points", lambda *given: (sent.append(len(given[3])), real(*given)))

    move(source, target, here)

    assert (arrived, sum(sent)) == (4, 1)
    assert points(target.vectors) == points(source.vectors)


def test_what_the_home_has_changed_after_an_interruption_arrives_as_it_is_now(
    source: Stores, target: Stores, here: Settings, tmp_path: Path
):
    interrupted(source, target, here, "copy_aliases")
    changed = a_folder(tmp_path / "shop", {"2.txt": "blue", "new.png": png("blue")})
    ingest(source, here, changed)
    delete_items(source, Selection(("3.png",), None, {}), tmp_path / "receipts", for_s=5)

    moved = move(source, target, here)

    assert moved.report.work == 0
    assert points(target.vectors) == points(source.vectors)
    assert len(points(target.vectors)) == 5


def test_a_collection_that_was_made_anew_meanwhile_is_made_anew_there(
    source: Stores, target: Stores, here: Settings
):
    interrupted(source, target, here, "copy_rows")
    with source.sessions.begin() as session:
        session.execute(text("delete from marks"))
    name = qdrant.active_collection(source.vectors).name
    source.vectors.delete_collection(name)
    qdrant.create_collection(
        source.vectors, model="colour", fingerprint="colour1", dim=3, filter_fields={}, short_dim=2
    )
    qdrant.activate(source.vectors, name)

    move(source, target, here)

    assert qdrant.active_collection(target.vectors).short_dim == 2


def test_pictures_go_where_the_settings_keep_them(
    source: Stores, target: Stores, here: Settings, tmp_path: Path
):
    elsewhere = here.model_copy(update={"pictures_url": str(tmp_path / "bucket")})
    bucket = Stores(target.engine, target.sessions, target.vectors, Blobs(str(tmp_path / "bucket")))

    moved = move(source, bucket, elsewhere)

    assert (moved.pictures, moved.report.work, moved.stays) == (5, 0, ())
    assert reconcile(bucket).pictures == 5


def test_servers_that_hold_something_else_are_left_alone(
    source: Stores, target: Stores, here: Settings, tmp_path: Path
):
    ingest(target, here, a_folder(tmp_path / "theirs", {"a.png": png("blue")}))
    before = rows(target, "items"), points(target.vectors)

    with pytest.raises(NotEmpty, match="the database holds"):
        move(source, target, here)

    assert (rows(target, "items"), points(target.vectors)) == before


def test_a_collection_in_the_servers_is_left_alone(source: Stores, target: Stores, here: Settings):
    dense = models.VectorParams(size=2, distance=models.Distance.DOT)
    target.vectors.create_collection(FOREIGN, vectors_config=dense)

    with pytest.raises(NotEmpty, match=f"Qdrant holds {FOREIGN} already"):
        move(source, target, here)

    assert transfer.collection_names(target.vectors) == [FOREIGN]
    assert rows(target, "runs") == []


def test_servers_that_were_used_after_an_interruption_are_left_alone(
    source: Stores, target: Stores, here: Settings, tmp_path: Path
):
    interrupted(source, target, here, "copy_rows")
    ingest(target, here, a_folder(tmp_path / "theirs", {"a.png": png("blue")}))

    with pytest.raises(NotEmpty, match="used since \\(ingest on"):
        move(source, target, here)

    assert len(rows(target, "items")) == 1


def test_a_home_that_has_moved_does_not_move_again(source: Stores, target: Stores, here: Settings):
    move(source, target, here)

    with pytest.raises(AlreadyMoved, match="sightline reconcile"):
        move(source, target, here)


def test_another_homes_interrupted_move_is_left_alone(source: Stores, target: Stores, here: Settings):
    interrupted(source, target, here, "copy_aliases")
    with target.sessions.begin() as session:
        session.execute(text("""update runs set options = '{"home": "another"}' where flow = 'move'"""))

    with pytest.raises(NotEmpty):
        move(source, target, here)


@pytest.mark.parametrize("which", ["source", "target"])
def test_nothing_moves_while_somebody_writes(source: Stores, target: Stores, here: Settings, which: str):
    hasty = here.model_copy(update={"retry_for_s": 0})
    engine = source.engine if which == "source" else target.engine

    with source_lock(engine, "shop"), pytest.raises(Busy):
        move(source, target, hasty)


def test_what_differs_in_the_home_comes_along_and_is_told(source: Stores, target: Stores, here: Settings):
    gone = next(iter(points(source.vectors)))
    source.vectors.delete(qdrant.ALIAS, [gone], wait=True)

    moved = move(source, target, here)

    assert moved.report.counts == {"missing": 1}
    assert any("completed" in run for run in rows(target, "runs") if "move" in run)


def test_what_does_not_arrive_is_a_failure_and_the_next_move_mends_it(
    source: Stores, target: Stores, here: Settings, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "copy_points", lambda *_: None)
        with pytest.raises(MoveFailed, match="5 missing"):
            move(source, target, here)

    assert move(source, target, here).report.work == 0


def test_new_rows_in_the_servers_get_ids_of_their_own(source: Stores, target: Stores, here: Settings):
    insert = text(
        "insert into evaluations (model, collection, dataset, direction, metric, value, queries, gallery)"
        " select fingerprint, name, 'd', 'd', 'm', 1, 1, 1 from collections returning id"
    )
    with source.sessions.begin() as session:
        first = session.scalar(insert)

    move(source, target, here)

    with target.sessions.begin() as session:
        assert session.scalar(insert) > first


def test_a_home_without_stores_is_not_made_to_have_any(tmp_path: Path):
    servers = {"database_url": "postgresql+psycopg://nowhere/x", "qdrant": Qdrant(url="http://nowhere")}

    with pytest.raises(NothingToMove, match="holds no embedded stores"):
        move_to_servers(Settings(home=tmp_path / "never made", **servers))

    assert not (tmp_path / "never made").exists()


def test_both_servers_have_to_be_named(own_home: Path):
    with pytest.raises(NothingToMove, match="set SIGHTLINE_DATABASE_URL to where"):
        move_to_servers(Settings(home=own_home, qdrant=Qdrant(url="http://nowhere")))
