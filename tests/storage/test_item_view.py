from uuid import UUID

import pytest

from flows.config.settings import Settings
from flows.console.pages.record import searchable
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import Deps
from storage.postgres import catalog, model_registry, perceptual_hashes
from storage.postgres.item_view import details
from storage.records import Digest, item_id
from tests.support.builders import a_folder, an_item, png

RED, GREEN = item_id("shop", "red.png"), item_id("shop", "green.png")


@pytest.fixture
def shop(deps: Deps, settings: Settings, tmp_path) -> Deps:
    files = {"red.png": png("red"), "red.txt": "red", "green.png": png("green"), "copy.png": png("red")}
    ingest_source(deps, settings, Request(a_folder(tmp_path / "shop", files)))
    return deps


def told(deps: Deps, id: UUID) -> str:
    with deps.sessions() as session:
        collection = model_registry.active_collection(session)
        found = details(session, id, collection)
    return searchable(found, collection)


def test_a_record_says_whether_searches_find_it_as_it_is(shop: Deps):
    item = an_item("new", source="shop")
    with shop.sessions.begin() as session:
        catalog.save_items(session, {item.id: (item, Digest("c", "r"))})
        green, digest = catalog.items_with_digests(session, [GREEN])[GREEN]
        catalog.save_items(session, {GREEN: (green, Digest(digest.content, "changed"))})

    assert told(shop, RED).startswith("yes, in items__")
    assert told(shop, GREEN).startswith("as it was before it changed")
    assert told(shop, item.id).startswith("not yet")


def test_of_a_deleted_record_only_that_it_was_deleted_is_told(shop: Deps):
    with shop.sessions.begin() as session:
        catalog.tombstone(session, [RED], asked=True)

        found = details(session, RED, None)

    assert found is not None
    assert (found.source, found.key, found.item, found.deletion) == ("shop", "red.png", None, "asked")


def test_of_a_record_that_never_was_there_is_nothing(shop: Deps):
    with shop.sessions() as session:
        assert details(session, item_id("shop", "never"), None) is None


def copies(deps: Deps, sha256: str, hashes: dict[str, int]) -> list[str] | None:
    with deps.sessions.begin() as session:
        perceptual_hashes.save_hashes(session, hashes)
        found = perceptual_hashes.near(session, sha256, bits=4, least_bits=3, limit=10)
    return None if found is None else [one.key for one in found]


def test_copies_are_those_with_the_same_bytes_and_those_that_look_alike(shop: Deps):
    with shop.sessions() as session:
        items = catalog.items_with_digests(session, [RED, GREEN])
    red, green = (items[id][0].image.sha256 for id in (RED, GREEN))

    assert copies(shop, green, {}) is None
    assert copies(shop, red, {}) == ["copy.png", "red.png"]
    assert copies(shop, red, {red: 0xFF00, green: 0xFF1E}) == ["copy.png", "red.png", "green.png"]


def test_a_picture_without_detail_looks_like_none_and_far_ones_are_no_copies(shop: Deps):
    with shop.sessions() as session:
        items = catalog.items_with_digests(session, [RED, GREEN])
    red, green = (items[id][0].image.sha256 for id in (RED, GREEN))

    assert copies(shop, red, {red: 1 << 63, green: 1 << 63 | 1}) == ["copy.png", "red.png"]
    with shop.sessions.begin() as session:
        session.execute(perceptual_hashes.PerceptualHashRow.__table__.delete())
    assert copies(shop, red, {red: 0xFF00, green: 0xFF1F}) == ["copy.png", "red.png"]
