"""A backup brings everything back into an empty home, or is refused before anything is written."""

from pathlib import Path

import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient
from sqlalchemy import text

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance import restore as restoring
from flows.maintenance.backup import BackupResult, backup
from flows.maintenance.backup_files import BadBackup
from flows.maintenance.restore import RestoreResult, restore
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps, Stores, open_stores
from storage import qdrant
from storage.postgres import api_keys, dump, request_queue
from storage.postgres.dump import NotEmpty
from storage.postgres.locks import Busy, source_lock
from tests.support.builders import a_folder, png

FILES = {"red.png": png("red"), "red.txt": 'red, with "quotes", a\ttab and a \\N', "blue.png": png("blue")}


@pytest.fixture
def shop(deps: Deps, settings: Settings, tmp_path: Path) -> Path:
    """Two pictures, and a row that could not be taken in."""
    folder = a_folder(tmp_path / "shop", FILES | {"bad.png": b"no picture", "none.txt": ""})
    ingest_source(deps, settings, Request(folder))
    return folder


@pytest.fixture
def elsewhere(home: Path) -> Settings:
    """An empty home."""
    return Settings(home=home)


def made(deps: Deps, tmp_path: Path) -> BackupResult:
    return backup(deps, str(tmp_path / "backups"), tmp_path / "scratch")


def rows(stores: Stores, table: str) -> list[str]:
    with stores.sessions() as session:
        return sorted(session.scalars(text(f"select t::text from {table} t where true")))


def a_request_that_waits(deps: Deps) -> None:
    """Somebody with a key has sent something, and it has not had its turn."""
    with deps.sessions.begin() as session:
        _, key = api_keys.create(session, "shop", ["read", "write"])
        request_queue.accept(
            session, key.id, "ingest", source="s", body=b'{"\\n": 1}', fingerprint="f", idempotency_key="i"
        )


def points(client: QdrantClient) -> list:
    found, _ = client.scroll(qdrant.ALIAS, limit=100, with_vectors=True)
    return [(point.id, point.payload, point.vector) for point in found]


@pytest.mark.usefixtures("shop")
def test_a_model_that_was_trained_here_comes_back_with_its_collection(
    deps: Deps, elsewhere: Settings, tmp_path: Path
):
    models = tmp_path / "models"
    a_folder(models, {"colour/modules.json": "[]", "colour/1_Head/weights": b"1", "never used/weights": b"2"})

    written = backup(deps, str(tmp_path / "backups"), tmp_path / "scratch", models=models)
    restore(elsewhere, str(tmp_path / "backups"))

    there = elsewhere.home / "models"
    assert written.manifest.models == ("colour",)
    assert {
        str(path.relative_to(there)): path.read_bytes() for path in there.rglob("*") if path.is_file()
    } == {
        "colour/modules.json": b"[]",
        "colour/1_Head/weights": b"1",
    }


@pytest.mark.usefixtures("shop")
def test_everything_comes_back_and_the_stores_agree(deps: Deps, elsewhere: Settings, tmp_path: Path):
    a_request_that_waits(deps)
    before = {table.name: rows(deps, table.name) for table in dump.tables() if table.name != "runs"}
    written = made(deps, tmp_path)

    restored: RestoreResult = restore(elsewhere, str(tmp_path / "backups"))

    assert (restored.location, restored.report.work) == (written.location, 0)
    assert restored.points == written.manifest.points == {"items__colour1": 2}
    with open_stores(elsewhere) as stores:
        assert {name: rows(stores, name) for name in before} == before
        assert points(stores.vectors) == points(deps.vectors)
        assert reconcile(stores).pictures == 2
        assert not any("running" in run for run in rows(stores, "runs"))


@pytest.mark.usefixtures("shop")
def test_a_second_backup_copies_new_pictures_only(deps: Deps, settings: Settings, shop: Path, tmp_path: Path):
    copied: list[int] = []
    backup(deps, str(tmp_path / "backups"), tmp_path / "scratch", progress=lambda *_: copied.append(1))
    ingest_source(deps, settings, Request(a_folder(shop, {"new.png": png("grey")})))

    second = backup(
        deps, str(tmp_path / "backups"), tmp_path / "scratch", progress=lambda *_: copied.append(1)
    )

    assert sum(copied) == 3
    assert second.manifest.items == 3
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("victim", "damage"),
    [
        ("items.copy.zst", "a bit"),
        ("*.parquet", "a bit"),
        ("pictures.txt", "the end"),
        ("items.copy.zst", "all of it"),
        ("manifest.json", "a bit"),
        ("manifest.json", "all of it"),
        ("manifest.sha256", "all of it"),
    ],
)
def test_a_damaged_backup_is_refused_before_anything_is_written(
    deps: Deps, tmp_path: Path, victim: str, damage: str
):
    folder = Path(made(deps, tmp_path).location)
    [path] = folder.glob(victim)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    if damage == "all of it":
        path.unlink()
    else:
        path.write_bytes(data if damage == "a bit" else path.read_bytes()[:-1])

    with pytest.raises(BadBackup):
        restore(Settings(home=tmp_path / "never made"), str(tmp_path / "backups"))

    assert {path.name for path in (tmp_path / "never made").rglob("*")} == set()


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("missing", [True, False])
def test_a_picture_that_is_damaged_or_missing_is_noticed(deps: Deps, tmp_path: Path, missing: bool):
    made(deps, tmp_path)
    picture = next(path for path in (tmp_path / "backups" / "pictures").rglob("*") if path.is_file())
    picture.unlink() if missing else picture.write_bytes(b"other")

    with pytest.raises(BadBackup, match=f"image {picture.name} is {'missing' if missing else 'damaged'}"):
        restore(Settings(home=tmp_path / "never made"), str(tmp_path / "backups"))


def test_a_folder_without_a_backup_is_said_to_have_none(tmp_path: Path):
    with pytest.raises(BadBackup, match="no complete backup"):
        restore(Settings(home=tmp_path / "never made"), str(tmp_path))


@pytest.mark.usefixtures("shop")
def test_a_home_that_holds_something_is_not_overwritten(deps: Deps, settings: Settings, tmp_path: Path):
    made(deps, tmp_path)
    own = deps.engine.url.render_as_string(hide_password=False)
    full = settings.model_copy(update={"database_url": SecretStr(own)})

    with pytest.raises(NotEmpty, match="the database holds"):
        restore(full, str(tmp_path / "backups"))


@pytest.mark.usefixtures("shop")
def test_a_restore_that_was_interrupted_can_be_run_again(
    deps: Deps, elsewhere: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made(deps, tmp_path)
    with monkeypatch.context() as crashing:
        crashing.setattr(restoring.qdrant, "activate", _crash)
        with pytest.raises(KeyboardInterrupt):
            restore(elsewhere, str(tmp_path / "backups"))

    assert restore(elsewhere, str(tmp_path / "backups")).report.work == 0


@pytest.mark.usefixtures("shop")
def test_a_backup_does_not_begin_while_an_ingest_runs(deps: Deps, tmp_path: Path):
    with source_lock(deps.engine, "shop"), pytest.raises(Busy):
        made(deps, tmp_path)


@pytest.mark.usefixtures("shop")
def test_pictures_may_stay_where_they_are(deps: Deps, elsewhere: Settings, tmp_path: Path):
    backup(deps, str(tmp_path / "backups"), tmp_path / "scratch", pictures="reference")
    there = elsewhere.model_copy(update={"pictures_url": str(tmp_path / "blobs")})

    assert restore(there, str(tmp_path / "backups")).report.work == 0
    assert not (tmp_path / "backups" / "pictures").exists()


@pytest.mark.usefixtures("shop")
def test_a_backup_goes_to_any_filesystem(deps: Deps, elsewhere: Settings, tmp_path: Path):
    written = backup(deps, "memory://backups", tmp_path / "scratch")

    assert written.location.startswith("memory://backups/")
    assert restore(elsewhere, "memory://backups").report.work == 0


@pytest.mark.usefixtures("shop")
def test_new_rows_after_a_restore_get_ids_of_their_own(deps: Deps, elsewhere: Settings, tmp_path: Path):
    insert = text(
        "insert into evaluations (model, collection, dataset, direction, metric, value, queries, gallery)"
        " select fingerprint, name, 'd', 'd', 'm', 1, 1, 1 from collections returning id"
    )
    with deps.sessions.begin() as session:
        first = session.scalar(insert)
    made(deps, tmp_path)

    restore(elsewhere, str(tmp_path / "backups"))

    with open_stores(elsewhere) as stores, stores.sessions.begin() as session:
        assert session.scalar(insert) == first + 1


def _crash(*_: object) -> None:
    raise KeyboardInterrupt
