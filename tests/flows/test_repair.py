"""Postgres and Qdrant brought apart in every way that happened to others, found, and mended."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from qdrant_client import QdrantClient, models
from sqlalchemy import text

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance import repair as repairing
from flows.maintenance.delete import delete_items
from flows.maintenance.repair import RepairResult, TooManyDeletes
from flows.resources import comparison
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps
from storage import qdrant
from storage.blobs import prefix_of
from storage.postgres import catalog
from storage.postgres.catalog import Selection
from storage.postgres.locks import Busy, source_lock
from storage.records import item_id
from tests.support.builders import a_folder, png
from tests.support.fakes import ColourEncoder

NAME = qdrant.collection_name("colour1")
FILES = {f"{colour}.png": png(colour) for colour in ("red", "green", "blue", "grey")} | {
    "red.txt": "red",
    "blue.txt": "blue",
}


@pytest.fixture
def vectors(any_index: QdrantClient) -> QdrantClient:
    """All of this holds of local mode, of the embedded index and of a server alike."""
    return any_index


@pytest.fixture
def shop(deps: Deps, settings: Settings, tmp_path: Path) -> Path:
    folder = a_folder(tmp_path / "shop", FILES)
    ingest_source(deps, settings, Request(folder))
    return folder


def repair(deps: Deps, settings: Settings, *, max_delete: float = 1, yes: bool = False) -> RepairResult:
    return repairing.repair(deps, settings, max_delete=max_delete, yes=yes)


def differences(deps: Deps) -> dict[str, int]:
    return {kind: many for kind, many in reconcile(deps).counts.items() if many}


def run(deps: Deps, statement: str) -> None:
    with deps.sessions.begin() as session:
        session.execute(text(statement))


def id_of(name: str) -> str:
    return str(item_id("shop", name))


def sha_of(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()


@pytest.fixture
def copies(deps: Deps) -> Iterator[list[str]]:
    """Tables of the catalogue, as an older backup would hold them."""
    names = ["items", "marks"]
    yield names
    for name in names:
        run(deps, f"drop table if exists old_{name}")


@pytest.mark.usefixtures("shop")
def test_stores_that_agree_are_said_to_agree(deps: Deps):
    report = reconcile(deps)

    assert report.work == 0
    assert (report.items, report.points, report.pictures) == (4, 4, 4)


@pytest.mark.usefixtures("shop")
def test_points_that_are_gone_are_made_again(deps: Deps, settings: Settings):
    deps.vectors.delete(NAME, [id_of("red.png"), id_of("blue.png")])
    assert differences(deps) == {"missing": 2}

    mended = repair(deps, settings)

    assert (mended.before.counts["missing"], mended.after.work) == (2, 0)
    assert deps.vectors.count("items").count == 4


@pytest.mark.usefixtures("shop")
def test_points_that_nobody_has_are_removed_whatever_their_id(deps: Deps, settings: Settings):
    vector = {"image": [1.0, 0.0, 0.0]}
    deps.vectors.upsert(NAME, [models.PointStruct(id=id, vector=vector) for id in (7, str(uuid4()))])
    assert differences(deps) == {"stray": 2}

    repair(deps, settings)

    assert differences(deps) == {}
    assert deps.vectors.count("items").count == 4


@pytest.mark.usefixtures("shop")
def test_a_text_vector_of_an_item_without_texts_is_found(deps: Deps, settings: Settings):
    extra = models.PointVectors(id=id_of("green.png"), vector={"text": [[1.0, 0.0, 0.0]]})
    deps.vectors.update_vectors(NAME, [extra])
    deps.vectors.delete_vectors(NAME, ["text"], [id_of("red.png")])
    assert differences(deps) == {"wrong_vectors": 2}

    repair(deps, settings)

    assert differences(deps) == {}


@pytest.mark.usefixtures("shop")
def test_a_payload_alone_is_mended_without_the_model(deps: Deps, settings: Settings):
    deps.vectors.set_payload(NAME, {"record_hash": "other"}, [id_of("red.png")])
    assert differences(deps) == {"stale": 1}
    again = replace(deps, encoder=ColourEncoder())

    repair(again, settings)

    assert differences(deps) == {}
    assert (again.encoder.seen_images, again.encoder.seen_texts) == (0, [])


def test_a_postgres_backup_restored_over_newer_data_is_found_out(
    deps: Deps, settings: Settings, shop: Path, copies: list[str]
):
    for name in copies:
        run(deps, f"create table old_{name} as table {name}")
    a_folder(shop, {"red.txt": "green", "new.png": png("red", (32, 32))})
    (shop / "grey.png").unlink()
    ingest_source(deps, settings, Request(shop, delete_missing=True))

    run(deps, "delete from marks")
    run(deps, "delete from items")
    for name in copies:
        run(deps, f"insert into {name} table old_{name}")

    assert differences(deps) == {"stale": 1, "stray": 1, "missing": 1, "missing_picture": 1}
    mended = repair(deps, settings)
    assert (mended.after.counts, len(mended.unrepaired)) == ({"missing": 1, "missing_picture": 1}, 2)
    a_folder(shop, {"grey.png": png("grey")})
    assert repair(deps, settings).after.work == 0


def test_a_qdrant_collection_restored_from_an_older_copy_is_found_out(
    deps: Deps, settings: Settings, shop: Path
):
    old, _ = deps.vectors.scroll(NAME, limit=10, with_vectors=True)
    a_folder(shop, {"red.txt": "green", "new.png": png("red", (32, 32))})
    (shop / "grey.png").unlink()
    ingest_source(deps, settings, Request(shop, delete_missing=True))

    deps.vectors.delete(NAME, models.Filter())
    deps.vectors.upsert(
        NAME, [models.PointStruct(id=one.id, vector=one.vector, payload=one.payload) for one in old]
    )

    assert differences(deps) == {"missing": 1, "stale": 1, "stray": 1}
    assert repair(deps, settings).after.work == 0


@pytest.mark.usefixtures("shop")
def test_a_collection_or_an_alias_that_is_gone_is_made_anew(deps: Deps, settings: Settings):
    deps.vectors.delete_collection(NAME)
    assert differences(deps) == {"no_alias": 1, "missing": 4}

    assert repair(deps, settings).after.work == 0

    gone = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="items"))
    deps.vectors.update_collection_aliases([gone])
    assert differences(deps) == {"no_alias": 1}
    assert repair(deps, settings).after.work == 0


@pytest.mark.usefixtures("shop")
def test_a_collection_that_another_model_made_is_replaced(deps: Deps, settings: Settings):
    points, _ = deps.vectors.scroll(NAME, limit=10, with_vectors=True)
    info = deps.vectors.get_collection(NAME).config
    deps.vectors.delete_collection(NAME)
    deps.vectors.create_collection(
        NAME, vectors_config=info.params.vectors, metadata={"model": "m", "fingerprint": "other", "dim": 3}
    )
    deps.vectors.upload_points(NAME, points, wait=True)
    qdrant.activate(deps.vectors, NAME)
    assert differences(deps) == {"other_model": 1}

    with pytest.raises(TooManyDeletes):
        repair(deps, settings, max_delete=0.5)
    mended = repair(deps, settings, max_delete=0.5, yes=True)

    assert mended.after.work == 0
    assert qdrant.active_collection(deps.vectors).fingerprint == "colour1"


@pytest.mark.usefixtures("shop")
def test_a_repair_that_would_delete_much_is_refused_and_changes_nothing(deps: Deps, settings: Settings):
    deps.vectors.delete(NAME, [id_of("red.png")])
    run(deps, "delete from marks")
    run(deps, "delete from items")

    with pytest.raises(TooManyDeletes, match="3 of 3 points"):
        repair(deps, settings, max_delete=0.05)
    assert deps.vectors.count("items").count == 3

    repair(deps, settings, max_delete=0.05, yes=True)
    assert deps.vectors.count("items").count == 0


@pytest.mark.usefixtures("shop")
def test_items_that_no_ingest_has_finished_are_no_damage_but_are_embedded(deps: Deps, settings: Settings):
    run(deps, "delete from marks where item_id in (select item_id from marks limit 2)")
    report = reconcile(deps)
    assert (report.damage, report.counts["pending"]) == (0, 2)

    assert repair(deps, settings).after.work == 0


def test_a_lost_picture_is_fetched_again_or_said_to_be_lost(
    deps: Deps, settings: Settings, tmp_path: Path, shop: Path
):
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
    (shop / "grey.png").write_bytes(png("blue"))
    assert differences(deps) == {"missing_picture": 4}

    mended = repair(deps, settings)

    assert differences(deps) == {"missing_picture": 1}
    assert "grey.png" in mended.unrepaired[0]


@pytest.mark.usefixtures("shop")
def test_marks_of_a_retired_collection_promise_no_more_than_it_holds(deps: Deps, settings: Settings):
    old = qdrant.create_collection(deps.vectors, model="old", fingerprint="old", dim=3, filter_fields={})
    run(deps, "insert into models (fingerprint, name, dim, state) values ('old', 'old', 3, 'retired')")
    run(deps, f"insert into collections (name, fingerprint, state) values ('{old}', 'old', 'retired')")
    run(
        deps,
        "insert into marks (item_id, collection, content_hash, record_hash)"
        f" select item_id, '{old}', content_hash, record_hash from marks",
    )
    assert differences(deps) == {"missing": 4}

    assert repair(deps, settings).after.work == 0


@pytest.mark.usefixtures("shop")
def test_a_repair_does_not_begin_while_an_ingest_runs(deps: Deps, settings: Settings):
    with source_lock(deps.engine, "shop"), pytest.raises(Busy):
        repair(deps, settings)


@pytest.mark.usefixtures("shop")
def test_a_comparison_reads_each_store_once_and_the_suspects_a_second_time(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
):
    deps.vectors.delete(NAME, [id_of("red.png")])
    deps.vectors.set_payload(NAME, {"record_hash": "other"}, [id_of("blue.png")])
    scroll, entries = deps.vectors.scroll, catalog.entries
    points: list[str] = []
    items: list[str] = []

    def counted_scroll(*args: Any, **named: Any) -> Any:
        page = scroll(*args, **named)
        points.extend(str(point.id) for point in page[0])
        return page

    def counted_entries(*args: Any, **named: Any) -> Any:
        page = entries(*args, **named)
        items.extend(str(item.id) for item in page)
        return page

    monkeypatch.setattr(deps.vectors, "scroll", counted_scroll)
    monkeypatch.setattr(catalog, "entries", counted_entries)

    assert differences(deps) == {"missing": 1, "stale": 1}

    once, gone, suspect = map(id_of, ("grey.png", "red.png", "blue.png"))
    assert Counter(points) == {once: 1, id_of("green.png"): 1, suspect: 2}
    assert Counter(items) == {once: 1, id_of("green.png"): 1, suspect: 3, gone: 3}


@pytest.mark.usefixtures("shop")
def test_more_records_than_a_page_are_compared_in_order(
    deps: Deps, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(comparison, "PAGE", 2)
    monkeypatch.setattr(comparison, "CONFIRM", 1)
    monkeypatch.setattr("storage.qdrant.limits.SCROLL_PAGE", 1)
    deps.vectors.delete(NAME, [id_of("red.png"), id_of("grey.png")])

    assert differences(deps) == {"missing": 2}
    assert repair(deps, settings).after.work == 0

    deps.blobs.delete(sha_of("grey.png"))
    report = reconcile(deps)
    assert (report.pictures, report.counts["missing_picture"]) == (4, 1)


@pytest.mark.usefixtures("shop")
def test_an_image_that_is_deleted_during_a_comparison_is_not_lost(
    deps: Deps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names, sha256 = deps.blobs.names, sha_of("red.png")

    def deleted_meanwhile(prefix: str) -> set[str]:
        if prefix == prefix_of(sha256):
            delete_items(deps, Selection(keys=("red.png",)), tmp_path / "receipts", for_s=1)
            assert sha256 not in names(prefix)
        return names(prefix)

    monkeypatch.setattr(deps.blobs, "names", deleted_meanwhile)

    assert differences(deps) == {}
