"""A restore goes from any store to any other, proves itself on request, and trusts nothing that it reads."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient
from sqlalchemy import URL, Engine, text
from sqlalchemy.orm import sessionmaker

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance import restore as restoring
from flows.maintenance.backup import backup
from flows.maintenance.backup_files import BadBackup, described, last_proof, read_manifest
from flows.maintenance.restore import check, restore
from flows.resources.connections import Deps, Stores, open_stores
from storage import qdrant
from storage.embedded.postgres.server import postgres_runs
from storage.postgres import dump
from storage.postgres.dump import DumpFailed, NotEmpty
from storage.postgres.engine import open_engine
from storage.qdrant.snapshots import IncompletePoints, load_points, make_collection
from tests.conftest import emptied, local_mode
from tests.support.builders import a_folder, png
from tests.support.old_backups import an_old_backup, execute, rewrite
from tests.support.processes import HomeAt, let_in
from tests.support.saved_stores import a_store_of, contents

FILES = {
    "red.png": png("red"),
    "red.txt": "red\nred again",
    "blue.png": png("blue"),
    "words.png": png("grey"),
}


@pytest.fixture
def shop(deps: Deps, settings: Settings, tmp_path: Path) -> Deps:
    ingest_source(deps, settings, Request(a_folder(tmp_path / "shop", FILES)))
    return deps


@pytest.fixture
def backups(shop: Deps, tmp_path: Path) -> Path:
    """A folder with one backup."""
    backup(shop, str(tmp_path / "backups"), tmp_path / "scratch")
    return tmp_path / "backups"


@pytest.fixture
def elsewhere(home: Path) -> Settings:
    """An empty home."""
    return Settings(home=home)


def at(settings: Settings, url: URL) -> Settings:
    return settings.model_copy(update={"database_url": SecretStr(url.render_as_string(hide_password=False))})


def the_backup(target: Path) -> Path:
    [manifest] = target.glob("*/manifest.json")
    return manifest.parent


def everything_below(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}


# --- from anything into anything


@pytest.mark.parametrize(
    ("records", "way"),
    [
        pytest.param(300, "18 to 15"),
        pytest.param(20_000, "18 to 15", marks=pytest.mark.full),
        pytest.param(20_000, "15 to 18", marks=pytest.mark.full),
        pytest.param(20_000, "18 to 18", marks=pytest.mark.full),
    ],
)
def test_rows_points_and_pictures_are_equal_after_a_restore_into_another_release_of_postgres(
    deps: Deps, engine_15: Engine, elsewhere: Settings, tmp_path: Path, records: int, way: str
):
    source_15, target_15 = way.split(" to ")[0] == "15", way.split(" to ")[1] == "15"
    source = replace(deps, engine=engine_15, sessions=sessionmaker(engine_15)) if source_15 else deps
    a_store_of(source, records)
    wanted = contents(source)
    backup(source, str(tmp_path / "backups"), tmp_path / "scratch")
    settings = at(elsewhere, engine_15.url) if target_15 else elsewhere

    restored = restore(settings, str(tmp_path / "backups"))

    assert sum(restored.points.values()) == records
    with open_stores(settings) as stores:
        assert contents(stores) == wanted
        assert restored.report.work == 0
        with stores.sessions() as session:
            version = str(session.scalar(text("show server_version")))
            roles = session.scalar(text("select count(*) from pg_roles where rolname like 'sightline%'"))
    assert version.startswith("15." if target_15 else "18.")
    assert roles == 0


class PartOfACluster:
    """A client whose server gives of a collection's points only those that one node holds, and counts all."""

    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def scroll(self, *args: Any, **named: Any) -> Any:
        points, offset = self._client.scroll(*args, **named)
        return points[::3], offset


def test_a_backup_that_would_hold_a_part_of_the_points_is_none(shop: Deps, tmp_path: Path):
    partial = replace(shop, vectors=PartOfACluster(shop.vectors))

    with pytest.raises(IncompletePoints, match="holds 3 points, but 1 could be read"):
        backup(partial, str(tmp_path / "backups"), tmp_path / "scratch")

    assert [path.name for path in (tmp_path / "backups").iterdir()] == ["pictures"]


class LosesPoints(PartOfACluster):
    """A client whose server acknowledges points and counts fewer of them."""

    def count(self, *args: Any, **named: Any) -> Any:
        found = self._client.count(*args, **named)
        return found.model_copy(update={"count": found.count - 1})


def test_points_that_do_not_arrive_are_noticed(backups: Path, vectors: QdrantClient):
    _, manifest = read_manifest(str(backups))
    [saved] = manifest.collections
    vectors.delete_collection(saved.name)
    make_collection(vectors, saved.name, saved.shape)

    with pytest.raises(IncompletePoints, match="holds 2 points after 3 were written"):
        load_points(LosesPoints(vectors), saved.name, the_backup(backups) / saved.file)


# --- backups of the release before


@pytest.fixture
def vectors(request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    """Local mode, but where snapshots are taken."""
    wants_snapshots = "old" in request.node.name
    yield from emptied(request.getfixturevalue("embedded")) if wants_snapshots else local_mode()


@pytest.mark.parametrize("target", ["embedded", pytest.param("Postgres 15", marks=pytest.mark.full)])
def test_an_old_backup_comes_back(
    shop: Deps, elsewhere: Settings, postgres_15: URL, tmp_path: Path, target: str
):
    wanted = contents(shop)
    an_old_backup(shop, tmp_path / "backups")
    settings = elsewhere if target == "embedded" else at(elsewhere, postgres_15)

    restored = restore(settings, str(tmp_path / "backups"))

    assert restored.points == {"items__colour1": 3}
    assert restored.report.work == 0
    with open_stores(settings) as stores:
        assert contents(stores) == wanted


def test_an_old_backup_of_another_kind_of_qdrant_brings_everything_but_points(
    shop: Deps, elsewhere: Settings, tmp_path: Path
):
    rewrite(an_old_backup(shop, tmp_path / "backups"), index="qdrant")

    restored = restore(elsewhere, str(tmp_path / "backups"))

    assert restored.points == {}
    assert restored.report.counts["missing"] == 3
    with open_stores(elsewhere) as stores, pytest.raises(qdrant.NoCollection, match="reconcile --repair"):
        qdrant.require_collection(stores.vectors, "colour1", "colour")


def test_no_statement_of_an_old_archive_is_run(shop: Deps, elsewhere: Settings, tmp_path: Path):
    execute(
        shop,
        "create function public.harm() returns int language sql as 'select 1'",
        "create table harmful (n int default public.harm())",
        "insert into harmful values (1)",
    )
    try:
        an_old_backup(shop, tmp_path / "backups", also=("harmful",))
    finally:
        execute(shop, "drop table harmful", "drop function public.harm")

    restore(elsewhere, str(tmp_path / "backups"))

    with open_stores(elsewhere) as stores, stores.sessions() as session:
        assert session.scalar(text("select to_regclass('harmful')")) is None


# --- the proof


def test_a_check_proves_a_backup_and_changes_nothing_else(
    backups: Path, shop: Deps, settings: Settings, tmp_path: Path
):
    let_in(tmp_path)  # as root, Postgres has a user of its own
    before = everything_below(tmp_path)

    checked = check(settings, str(backups))

    proof = the_backup(backups) / "proved.json"
    assert checked.proof is not None
    assert (checked.proof.items, checked.proof.points) == (3, 3)
    assert everything_below(tmp_path).keys() - before.keys() == {str(proof)}
    assert not postgres_runs(settings.home)
    again = backup(shop, str(backups), tmp_path / "scratch")
    assert again.proved == checked.proof == last_proof(str(backups))


def test_a_backup_that_does_not_come_back_whole_is_not_proved(shop: Deps, settings: Settings, tmp_path: Path):
    [id] = [point.id for point in shop.vectors.scroll(qdrant.ALIAS, limit=1)[0]]
    shop.vectors.delete(qdrant.ALIAS, [id])
    backup(shop, str(tmp_path / "backups"), tmp_path / "scratch")
    let_in(tmp_path)  # as root, Postgres has a user of its own

    checked = check(settings, str(tmp_path / "backups"))

    assert checked.proof is None
    assert checked.report.counts["missing"] == 1
    assert last_proof(str(tmp_path / "backups")) is None


# --- what is there is never replaced


def test_points_that_are_there_are_not_replaced_though_the_backup_has_their_collection(
    backups: Path, vectors: QdrantClient, shop: Deps, postgres_15: URL, settings: Settings
):
    url = postgres_15.render_as_string(hide_password=False)
    engine = open_engine(url, timeout_s=60)
    stores = Stores(engine, sessionmaker(engine), vectors, shop.blobs)
    _, manifest = read_manifest(str(backups))

    with pytest.raises(NotEmpty, match="Qdrant holds items__colour1 already"):
        restoring._require_empty(stores, settings, manifest, backups, set())

    assert vectors.count("items__colour1").count == 3
    engine.dispose()


@pytest.mark.full
def test_another_model_of_the_same_name_stays(shop: Deps, elsewhere: Settings, tmp_path: Path):
    a_folder(tmp_path / "models", {"colour/weights": b"1"})
    backup(shop, str(tmp_path / "backups"), tmp_path / "scratch", models=tmp_path / "models")
    own = a_folder(elsewhere.home / "models", {"colour/weights": b"2"})

    with pytest.raises(NotEmpty, match="holds another model"):
        restore(elsewhere, str(tmp_path / "backups"))

    assert (own / "colour" / "weights").read_bytes() == b"2"


# --- what must not be restored


def refused(backups: Path, tmp_path: Path, match: str) -> None:
    """Make sure that the backup is refused before anything is written anywhere."""
    before = everything_below(tmp_path)

    with pytest.raises(BadBackup, match=match):
        restore(Settings(home=tmp_path / "never made"), str(backups))

    assert everything_below(tmp_path) == before


def test_a_backup_cut_or_damaged_anywhere_is_refused_before_anything_is_written(shop: Deps, tmp_path: Path):
    a_folder(tmp_path / "models", {"colour/weights": b"1"})
    backup(shop, str(tmp_path / "backups"), tmp_path / "scratch", models=tmp_path / "models")
    files = sorted(path for path in (tmp_path / "backups").rglob("*") if path.is_file())
    assert len(files) > 15

    for path in files:
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0", flipped(whole)):
            if damaged == whole:
                continue  # an empty table's file has nothing to cut
            path.write_bytes(damaged)
            refused(tmp_path / "backups", tmp_path, "damaged|manifest.json|no complete backup")
        path.write_bytes(whole)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :] if data else data


FOREIGN = ["../outside", "/tmp/outside", "a/b", "..", ".", ".hidden", "", "a\\b/../c", "a\n", "x" * 300]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_name_that_leads_elsewhere_is_refused(backups: Path, tmp_path: Path, name: str):
    folder = the_backup(backups)
    whole = json.loads((folder / "manifest.json").read_bytes())
    file, collection = whole["files"][0], whole["collections"][0]
    postgres = whole["postgres"] | {"files": [name, *whole["postgres"]["files"][1:]]}
    for changes in (
        {"files": [file | {"name": name}, *whole["files"][1:]]},
        {"files": [file | {"name": name}, *whole["files"][1:]], "postgres": postgres},
        {"collections": [collection | {"file": name}]},
        {"collections": [collection | {"name": name}]},
        {"models": [name]},
        {"active": name},
        {"snapshots": [{"collection": name, "file": name, "points": 1}]},
    ):
        rewrite(folder, **whole | changes)

        refused(backups, tmp_path, "manifest.json is of another release of Sightline, or damaged")


def test_a_link_is_not_followed(backups: Path, tmp_path: Path):
    folder = the_backup(backups)
    a_folder(tmp_path, {"secret": (folder / "pictures.txt").read_bytes()})
    (folder / "pictures.txt").unlink()
    (folder / "pictures.txt").symlink_to(tmp_path / "secret")

    refused(backups, tmp_path, "pictures.txt is damaged")


def members(*made: tuple[str, bytes, str]) -> bytes:
    """A tar file; each member with its name, its type and what it links to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, kind, target in made:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            file.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        members(("../outside", tarfile.REGTYPE, "")),
        members(("/outside", tarfile.REGTYPE, "")),
        members(("other/weights", tarfile.REGTYPE, "")),
        members(("colour/../../outside", tarfile.REGTYPE, "")),
        members(("colour", tarfile.DIRTYPE, ""), ("colour/link", tarfile.SYMTYPE, "/etc/passwd")),
        members(("colour", tarfile.DIRTYPE, ""), ("colour/link", tarfile.LNKTYPE, "../../manifest.json")),
        members(("colour", tarfile.SYMTYPE, "/"), ("colour/tmp/outside", tarfile.REGTYPE, "")),
        members(("colour/pipe", tarfile.FIFOTYPE, "")),
        members(("colour/device", tarfile.CHRTYPE, "")),
        members(("colour", tarfile.REGTYPE, "")),
        members(),
        b"no tar at all",
    ],
)
def test_a_model_that_holds_more_than_its_files_is_refused(shop: Deps, tmp_path: Path, content: bytes):
    a_folder(tmp_path / "models", {"colour/weights": b"1"})
    backup(shop, str(tmp_path / "backups"), tmp_path / "scratch", models=tmp_path / "models")
    folder = the_backup(tmp_path / "backups")

    replaced(folder, "colour.model.tar", content)

    refused(tmp_path / "backups", tmp_path, "model colour")


def replaced(folder: Path, name: str, content: bytes) -> None:
    """Put another file in the place of one, with a manifest that says so."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    others = [one for one in files if one["name"] != name]
    rewrite(folder, files=[*others, described(folder / name).model_dump()])


def lies_about_points(whole: dict[str, Any]) -> dict[str, Any]:
    return {"collections": [whole["collections"][0] | {"points": 4}]}


def lies_about_size(whole: dict[str, Any]) -> dict[str, Any]:
    collection = json.loads(json.dumps(whole["collections"][0]))
    collection["shape"]["config"]["vectors"]["image"]["size"] = 4
    return {"collections": [collection]}


def lies_about_vectors(whole: dict[str, Any]) -> dict[str, Any]:
    collection = json.loads(json.dumps(whole["collections"][0]))
    del collection["shape"]["config"]["vectors"]["text"]
    return {"collections": [collection]}


def names_a_file_twice(whole: dict[str, Any]) -> dict[str, Any]:
    return {"files": [*whole["files"], whole["files"][0]]}


def leaves_a_file_out(whole: dict[str, Any]) -> dict[str, Any]:
    return {"files": whole["files"][1:]}


def comes_from_the_future(_: dict[str, Any]) -> dict[str, Any]:
    return {"format": 3}


@pytest.mark.parametrize(
    "lie",
    [
        lies_about_points,
        lies_about_size,
        lies_about_vectors,
        names_a_file_twice,
        leaves_a_file_out,
        comes_from_the_future,
    ],
)
def test_a_manifest_that_lies_is_refused(
    backups: Path, tmp_path: Path, lie: Callable[[dict[str, Any]], dict[str, Any]]
):
    folder = the_backup(backups)
    whole = json.loads((folder / "manifest.json").read_bytes())

    rewrite(folder, **lie(whole))

    refused(backups, tmp_path, ".")


@pytest.mark.parametrize(
    "lie", ["rows", *(pytest.param(lie, marks=pytest.mark.full) for lie in ("values", "revision", "columns"))]
)
def test_rows_that_do_not_go_into_our_tables_are_refused_before_anything_is_written(
    backups: Path, tmp_path: Path, home_at: HomeAt, lie: str
):
    folder = the_backup(backups)
    postgres = json.loads((folder / "manifest.json").read_bytes())["postgres"]
    name = "models.copy.zst"
    rows = pa.input_stream(str(folder / name)).read()
    match lie:
        case "rows":
            rewrite(folder, postgres=postgres | {"rows": postgres["rows"] | {"items": 4}})
        case "revision":
            rewrite(folder, postgres=postgres | {"revision": "9999"})
        case "columns":
            replaced(folder, name, zst(rows.replace(b"fingerprint", b"pg_sleep(9)", 1)))
        case "values":
            replaced(folder, name, zst(rows.replace(b"active", b"harmful")))
    home = home_at(tmp_path / "home")

    with pytest.raises(DumpFailed, match="do not go into this Postgres"):
        restore(Settings(home=home), str(backups))

    with open_stores(Settings(home=home)) as stores:
        assert qdrant.list_collections(stores.vectors) == []
        assert dump.first_filled(stores.engine) is None
    assert not (home / "pictures").exists()


def zst(data: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as file:
        file.write(data)
    return buffer.getvalue().to_pybytes()


def test_a_picture_list_that_leads_elsewhere_is_refused(backups: Path, tmp_path: Path):
    replaced(the_backup(backups), "pictures.txt", b"../../../../etc/passwd\n")

    refused(backups, tmp_path, "names no image by")
