from dataclasses import replace
from pathlib import Path

import pytest

from embedding.images.decode import BadImage
from flows.config.settings import Limits, Settings
from flows.ingestion.pipeline import Request, ingest_source
from flows.resources.connections import Deps
from flows.search.gallery import render
from flows.search.query import NoSuchRecord, Query, gallery_page, search
from storage import qdrant
from storage.postgres import catalog
from storage.records import item_id
from tests.support.builders import a_folder, a_manifest, png
from tests.support.fakes import ColourEncoder

LIMITS = Limits(max_picture_bytes=10**6, fetch_timeout_s=5)
SHOP = {
    "rose.png": png("red"),
    "rose.txt": "grey\nred rose",
    "leaf.png": png("green"),
    "leaf.txt": "green leaf",
    "leaf.json": '{"kind": "plant"}',
    "sky.png": png("blue"),
}
NOTES = [{"key": "note", "text": "red red grey"}]


@pytest.fixture
def shop(deps: Deps, settings: Settings, tmp_path: Path) -> Deps:
    ingest_source(deps, settings, Request(a_folder(tmp_path / "shop", SHOP)))
    return deps


def keys(deps: Deps, query: Query) -> list[str]:
    return [one.item.key for one in search(deps, query).found]


def a_picture(folder: Path, colour: str) -> Path:
    (folder / "query.png").write_bytes(png(colour))
    return folder / "query.png"


def test_a_text_finds_pictures(shop: Deps):
    assert keys(shop, Query(text="red", limit=1)) == ["rose.png"]


def test_a_text_finds_texts_and_a_picture_without_any_is_not_among_them(shop: Deps):
    assert keys(shop, Query(text="green", find="texts")) == ["leaf.png", "rose.png"]


def test_a_picture_finds_pictures(shop: Deps, tmp_path: Path):
    assert keys(shop, Query(image=a_picture(tmp_path, "blue"), limit=1)) == ["sky.png"]


def test_a_picture_finds_texts_and_says_which_text_of_the_item_it_was(shop: Deps, tmp_path: Path):
    [best] = search(shop, Query(image=a_picture(tmp_path, "red"), find="texts", limit=1)).found

    assert (best.item.key, best.text) == ("rose.png", "red rose")


def test_a_text_and_a_picture_together_find_what_is_like_both(shop: Deps, tmp_path: Path):
    green = a_picture(tmp_path, "green")

    both = search(shop, Query(text="red", image=green))

    scores = {one.item.key: one.hit.score for one in both.found}
    halfway = pytest.approx(2**-0.5, abs=0.01)
    assert (scores["leaf.png"], scores["rose.png"], both.found[-1].item.key) == (halfway, halfway, "sky.png")
    assert (both.as_json()["query"], both.as_json()["image"]) == ("red", str(green))


def test_a_picture_that_is_no_file_finds_what_the_file_finds(shop: Deps, tmp_path: Path):
    of_bytes = search(shop, Query(picture=png("blue")))

    of_file = search(shop, Query(image=a_picture(tmp_path, "blue")))
    assert [one.hit for one in of_bytes.found] == [one.hit for one in of_file.found]
    with pytest.raises(BadImage, match="the picture: not a picture"):
        search(shop, Query(picture=b"no picture"))


def test_more_like_a_record_finds_others_by_what_it_has_in_the_space_that_is_searched(
    shop: Deps, settings: Settings, tmp_path: Path
):
    ingest_source(shop, settings, Request(a_manifest(tmp_path / "n.jsonl", NOTES)))
    odd_folder = a_folder(tmp_path / "odd", {"odd.png": png("blue", (9, 9)), "odd.txt": "green"})
    ingest_source(shop, settings, Request(odd_folder))
    rose, note, odd = item_id("shop", "rose.png"), item_id("n", "note"), item_id("odd", "odd.png")

    assert keys(shop, Query(like=odd, limit=1)) == ["sky.png"]
    assert keys(shop, Query(like=odd, find="texts", limit=1)) == ["leaf.png"]
    assert set(keys(shop, Query(like=rose))) == {"leaf.png", "sky.png", "odd.png"}
    assert keys(shop, Query(like=rose, find="texts", limit=1)) == ["note"]
    assert keys(shop, Query(like=note, limit=1)) == ["rose.png"]
    assert keys(shop, Query(like=rose, text="blue", where={"source": "shop"}, limit=1)) == ["sky.png"]


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        (Query(text="red"), "text"),
        (Query(picture=b"x"), "image"),
        (Query(text="red", image=Path("query.png")), "both"),
        (Query(text="red", like=item_id("shop", "rose.png")), "record"),
    ],
)
def test_searches_are_counted_by_what_they_are_asked_with(query: Query, asked: str):
    assert query.asked == asked


def test_more_like_a_record_that_is_gone_says_so(shop: Deps):
    rose = item_id("shop", "rose.png")
    with shop.sessions.begin() as session:
        catalog.tombstone(session, [rose], asked=False)

    with pytest.raises(NoSuchRecord, match=f"{rose} is not searchable"):
        search(shop, Query(like=rose))
    with pytest.raises(NoSuchRecord):
        search(shop, Query(like=item_id("shop", "never")))


def test_metadata_and_a_least_score_narrow_a_search(shop: Deps):
    assert keys(shop, Query(text="red", where={"kind": "plant"})) == ["leaf.png"]
    assert keys(shop, Query(text="red", min_score=0.9)) == ["rose.png"]


def test_the_result_as_json_has_what_scripts_need(shop: Deps, tmp_path: Path):
    document = search(shop, Query(text="red", limit=1)).as_json()

    [hit] = document["hits"]
    assert (document["query"], document["model"]) == ("red", "colour")
    assert hit == {
        "id": str(item_id("shop", "rose.png")),
        "key": "rose.png",
        "source": "shop",
        "score": pytest.approx(1, abs=0.01),
        "text": "red rose",
        "uri": str(tmp_path / "shop" / "rose.png"),
    }


def test_the_plain_client_finds_the_same_with_the_alias_and_the_encoder(shop: Deps):
    [query] = shop.encoder.texts(["red red green"])

    plain = shop.vectors.query_points("items", query=query.tolist(), using="image", limit=10).points

    ours = [(str(one.hit.id), one.hit.score) for one in search(shop, Query(text="red red green")).found]
    assert [(point.id, point.score) for point in plain] == ours


def test_what_postgres_says_is_deleted_is_not_shown_whatever_qdrant_still_holds(shop: Deps):
    with shop.sessions.begin() as session:
        catalog.tombstone(session, [item_id("shop", "rose.png")], asked=False)

    assert "rose.png" not in keys(shop, Query(text="red"))


def test_before_the_first_ingest_the_error_says_what_to_run(deps: Deps):
    with pytest.raises(qdrant.NoCollection, match="run: sightline ingest SOURCE"):
        search(deps, Query(text="red"))


def test_a_search_with_another_model_is_refused(shop: Deps):
    other = replace(shop, encoder=ColourEncoder("clip", "clip1"))

    with pytest.raises(qdrant.ModelMismatch, match="sightline reindex --model clip"):
        search(other, Query(text="red"))


def test_a_query_that_is_no_picture_is_refused_by_name(shop: Deps, tmp_path: Path):
    (tmp_path / "query.png").write_text("no picture")

    with pytest.raises(BadImage, match=r"query\.png: not a picture"):
        search(shop, Query(image=tmp_path / "query.png"))


def test_the_gallery_shows_the_pictures_even_after_the_source_is_gone(shop: Deps, tmp_path: Path):
    (tmp_path / "shop" / "rose.png").unlink()

    page = gallery_page(shop, search(shop, Query(text="red", limit=1)), LIMITS)

    assert page.cards[0].picture == png("red")
    assert "red rose" in render(page)


def test_without_kept_pictures_the_gallery_takes_them_from_the_source_while_it_is_there(
    shop: Deps, tmp_path: Path
):
    unkept = replace(shop, blobs=None)
    results = search(unkept, Query(text="red", limit=1))
    assert gallery_page(unkept, results, LIMITS).cards[0].picture == png("red")

    (tmp_path / "shop" / "rose.png").unlink()

    assert gallery_page(unkept, results, LIMITS).cards[0].picture is None


def test_a_gallery_of_texts_needs_no_pictures(deps: Deps, settings: Settings, tmp_path: Path):
    ingest_source(deps, settings, Request(a_manifest(tmp_path / "n.jsonl", [{"key": "a", "text": "red"}])))

    page = gallery_page(deps, search(deps, Query(text="red", find="texts")), LIMITS)

    assert [card.picture for card in page.cards] == [None]
    assert "red" in render(page)
