"""A delete leaves nothing that answers, nothing that lies about, and a receipt."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.report import IngestReport
from flows.ingestion.request import Request
from flows.maintenance import delete
from flows.maintenance.delete import NoSuchItem, count_selected, delete_items
from flows.resources import deletion
from flows.resources.connections import Deps
from storage import qdrant
from storage.postgres import rejects, runs
from storage.postgres.catalog import Selection
from storage.postgres.locks import Busy, source_lock
from storage.records import item_id
from tests.support.builders import a_folder, a_manifest, png


def ingest(deps: Deps, settings: Settings, location: Path, **asked: object) -> IngestReport:
    return ingest_source(deps, settings, Request(location, **asked))


def delete(deps: Deps, tmp_path: Path, *keys: str, source: str | None = None, **where: str) -> delete.Receipt:
    return delete_items(deps, Selection(keys, source, where), tmp_path / "receipts", for_s=0)


def points(deps: Deps) -> set[str]:
    held, _ = deps.vectors.scroll(qdrant.ALIAS, limit=1000)
    return {point.payload["key"] for point in held if point.payload}


def blobs(tmp_path: Path) -> int:
    return sum(path.is_file() for path in (tmp_path / "blobs").rglob("*"))


def living(deps: Deps) -> set[str]:
    with deps.sessions() as session:
        return set(session.scalars(text("select key from items where deleted is null")))


def last_run(deps: Deps) -> tuple[str, str, dict[str, int]]:
    with deps.sessions() as session:
        [run] = runs.recent_runs(session, 1)
    return run.flow, run.outcome, run.counts


@pytest.fixture
def shop(deps: Deps, settings: Settings, tmp_path: Path) -> Path:
    """Three pictures, of which two share their bytes."""
    files = {"a.png": png("red"), "a.txt": "a secret", "b.png": png("red"), "c.png": png("blue")}
    folder = a_folder(tmp_path / "shop", files)
    ingest(deps, settings, folder)
    return folder


@pytest.mark.usefixtures("shop")
def test_what_is_deleted_is_gone_from_both_stores_and_the_receipt_says_where_it_was(
    deps: Deps, tmp_path: Path
):
    receipt = delete(deps, tmp_path, "a.png", "c.png")

    document = json.loads(receipt.path.read_text())
    collection = qdrant.collection_name(deps.encoder.fingerprint)
    assert points(deps) == living(deps) == {"b.png"}
    assert blobs(tmp_path) == 1
    assert document["totals"] == {
        "items": 2,
        "points": {collection: 2},
        "marks": 2,
        "rejects": 0,
        "pictures": {"kept for another item": 1, "removed": 1},
    }
    entry = next(one for one in document["items"] if one["key"] == "a.png")
    assert entry == {
        "id": str(item_id("shop", "a.png")),
        "source": "shop",
        "key": "a.png",
        "points_removed_from": [collection],
        "marks_removed": 1,
        "picture": "kept for another item",
    }


@pytest.mark.usefixtures("shop")
def test_nothing_of_the_content_stays_in_the_tombstone(deps: Deps, tmp_path: Path):
    delete(deps, tmp_path, "a.png")

    with deps.sessions() as session:
        row = session.scalar(text("select items::text from items where key = 'a.png'"))
    assert "secret" not in row
    assert str(tmp_path) not in row


@pytest.mark.usefixtures("shop")
def test_points_in_every_collection_go(deps: Deps, tmp_path: Path):
    old = qdrant.create_collection(deps.vectors, model="old", fingerprint="old", dim=3, filter_fields={})
    held, _ = deps.vectors.scroll(qdrant.ALIAS, limit=10, with_vectors=True)
    deps.vectors.upload_points(old, held, wait=True)

    receipt = delete(deps, tmp_path, "a.png")

    assert deps.vectors.count(old).count == 2
    assert receipt.points == {old: 1, qdrant.collection_name("colour1"): 1}


def test_a_deleted_key_that_comes_again_stays_deleted_until_it_is_revived(
    deps: Deps, settings: Settings, tmp_path: Path, shop: Path
):
    delete(deps, tmp_path, "a.png")

    again = ingest(deps, settings, shop)
    kept_out = living(deps)
    revived = ingest(deps, settings, shop, revive=True)

    assert (again.read, again.unchanged, again.still_deleted) == (3, 2, 1)
    assert kept_out == {"b.png", "c.png"}
    assert (revived.embedded, revived.still_deleted) == (1, 0)
    assert living(deps) == points(deps) == {"a.png", "b.png", "c.png"}


def test_what_was_missing_from_its_source_comes_back_by_itself(deps: Deps, settings: Settings, shop: Path):
    (shop / "c.png").unlink()
    ingest(deps, settings, shop, delete_missing=True)
    a_folder(shop, {"c.png": png("blue")})

    assert ingest(deps, settings, shop).embedded == 1
    assert points(deps) == {"a.png", "b.png", "c.png"}


@pytest.mark.usefixtures("shop")
def test_a_source_or_some_metadata_select_as_well(deps: Deps, settings: Settings, tmp_path: Path):
    rows = [
        {"key": "x", "text": "red", "year": 1999, "tags": ["old", "red"]},
        {"key": "y", "text": "red", "year": 2024},
    ]
    ingest(deps, settings, a_manifest(tmp_path / "notes.jsonl", rows))

    assert count_selected(deps, Selection(where={"year": "1999"})) == {"notes": 1}
    assert count_selected(deps, Selection(where={"tags": "red"})) == {"notes": 1}
    assert count_selected(deps, Selection(where={"year": ("1999", "2024")})) == {"notes": 2}
    assert count_selected(deps, Selection(where={"year": "7"})) == {}
    assert count_selected(deps, Selection(source="shop")) == {"shop": 3}
    delete(deps, tmp_path, source="shop")
    delete(deps, tmp_path, year="1999")

    assert living(deps) == points(deps) == {"y"}


@pytest.mark.usefixtures("shop")
def test_a_key_that_is_nowhere_deletes_nothing(deps: Deps, tmp_path: Path):
    with pytest.raises(NoSuchItem, match=r"'nowhere\.png'"):
        delete(deps, tmp_path, "a.png", "nowhere.png")

    assert len(living(deps)) == 3


def test_a_key_in_two_sources_has_to_be_told_apart(
    deps: Deps, settings: Settings, tmp_path: Path, shop: Path
):
    ingest(deps, settings, shop, name="other")

    with pytest.raises(NoSuchItem, match="other, shop; say which with --source"):
        delete(deps, tmp_path, "a.png")

    assert delete(deps, tmp_path, "a.png", source="other").items == 1


@pytest.mark.usefixtures("shop")
def test_a_delete_during_an_ingest_of_the_same_source_is_refused(deps: Deps, tmp_path: Path):
    with source_lock(deps.engine, "shop"), pytest.raises(Busy):
        delete(deps, tmp_path, "a.png")

    assert len(living(deps)) == 3


def test_a_delete_that_was_interrupted_is_finished_by_the_next(
    deps: Deps, settings: Settings, tmp_path: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
):
    a_folder(shop, {"a.png": b"no picture"})
    ingest(deps, settings, shop)
    with monkeypatch.context() as crashing:
        crashing.setattr(deletion.qdrant, "delete_everywhere", _crash)
        with pytest.raises(KeyboardInterrupt):
            delete(deps, tmp_path, "a.png")
    assert points(deps) == {"a.png", "b.png", "c.png"}
    assert last_run(deps) == ("delete", "cancelled", {"deleted": 0})

    receipt = delete(deps, tmp_path, "a.png")

    assert receipt.items == 1
    assert points(deps) == {"b.png", "c.png"}
    with deps.sessions() as session:
        assert rejects.open_rejects(session) == []
    assert last_run(deps) == ("delete", "completed", {"deleted": 1})


def _crash(*_: object) -> None:
    raise KeyboardInterrupt
