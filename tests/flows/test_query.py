from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from qdrant_client import QdrantClient

from embedding.images.decode import BadImage
from flows.config.settings import Limits, Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import Deps
from flows.resources.model_loader import ModelCache
from flows.search.gallery import render
from flows.search.query import NoSuchRecord, Query, SearchDeps, gallery_page, search
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


def warm(deps: Deps, settings: Settings, clock: Callable[[], float]) -> SearchDeps:
    """Return what a process keeps that goes on searching."""
    models = ModelCache(settings, lambda _settings, name: ColourEncoder(name, f"{name}1"))
    alias = qdrant.AliasCache(clock)
    return SearchDeps(deps.engine, deps.sessions, deps.vectors, deps.blobs, deps.encoder, models, alias=alias)


def requests_sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each HTTP request from here on."""
    sent: list[str] = []
    send = httpx.Client.send

    def record(self: httpx.Client, request: httpx.Request, **rest: object) -> httpx.Response:
        sent.append(f"{request.method} {request.url.path}")
        return send(self, request, **rest)

    monkeypatch.setattr(httpx.Client, "send", record)
    return sent


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
    of_bytes = search(shop, Query(image_bytes=png("blue")))

    of_file = search(shop, Query(image=a_picture(tmp_path, "blue")))
    assert [one.hit for one in of_bytes.found] == [one.hit for one in of_file.found]
    with pytest.raises(BadImage, match="the image: not an image"):
        search(shop, Query(image_bytes=b"no picture"))


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
        (Query(image_bytes=b"x"), "image"),
        (Query(text="red", image=Path("query.png")), "both"),
        (Query(text="red", like=item_id("shop", "rose.png")), "record"),
    ],
)
def test_searches_are_counted_by_what_they_are_asked_with(query: Query, asked: str):
    assert query.kind == asked


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
        "metadata": {},
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

    with pytest.raises(BadImage, match=r"query\.png: not an image"):
        search(shop, Query(image=tmp_path / "query.png"))


def test_the_gallery_shows_the_pictures_even_after_the_source_is_gone(shop: Deps, tmp_path: Path):
    (tmp_path / "shop" / "rose.png").unlink()

    page = gallery_page(shop, search(shop, Query(text="red", limit=1)), LIMITS)

    assert page.cards[0].image == png("red")
    assert "red rose" in render(page)


def test_without_kept_pictures_the_gallery_takes_them_from_the_source_while_it_is_there(
    shop: Deps, tmp_path: Path
):
    unkept = replace(shop, blobs=None)
    results = search(unkept, Query(text="red", limit=1))
    assert gallery_page(unkept, results, LIMITS).cards[0].image == png("red")

    (tmp_path / "shop" / "rose.png").unlink()

    assert gallery_page(unkept, results, LIMITS).cards[0].image is None


def test_a_gallery_of_texts_needs_no_pictures(deps: Deps, settings: Settings, tmp_path: Path):
    ingest_source(deps, settings, Request(a_manifest(tmp_path / "n.jsonl", [{"key": "a", "text": "red"}])))

    page = gallery_page(deps, search(deps, Query(text="red", find="texts")), LIMITS)

    assert [card.image for card in page.cards] == [None]
    assert "red" in render(page)


def test_a_search_of_a_warm_process_sends_qdrant_one_request(
    deps: Deps, served: QdrantClient, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shop = replace(deps, vectors=served)
    ingest_source(shop, settings, Request(a_folder(tmp_path / "shop", SHOP)))
    now = [0.0]
    searching = warm(shop, settings, lambda: now[0])
    by_text = Query(text="red", limit=1)
    by_image = Query(image=a_picture(tmp_path, "red"), find="texts", limit=1)
    search(searching, by_text)
    sent = requests_sent(monkeypatch)

    for query in (by_text, by_image):
        sent.clear()
        assert keys(searching, query) == ["rose.png"]
        assert sent == [f"POST /collections/{qdrant.collection_name('colour1')}/points/query"]

    sent.clear()
    now[0] += qdrant.MAX_AGE_S
    assert keys(searching, by_text) == ["rose.png"]
    assert len(sent) == 3  # the alias and its collection are described again


def switched(vectors: QdrantClient, fingerprint: str, *, short_dim: int | None = None) -> str:
    """Have searches go to an empty collection of another model; return its name."""
    name = qdrant.create_collection(
        vectors, model="clip", fingerprint=fingerprint, dim=3, filter_fields={}, short_dim=short_dim
    )
    qdrant.activate(vectors, name)
    return name


def test_a_switch_is_noticed_within_a_second_and_till_then_the_retired_collection_answers(
    shop: Deps, settings: Settings
):
    now = [0.0]
    searching = warm(shop, settings, lambda: now[0])
    before = search(searching, Query(text="red"))

    new = switched(shop.vectors, "clip1")

    meanwhile = search(searching, Query(text="red"))
    assert (meanwhile.model, meanwhile.collection, meanwhile.found) == (
        "colour",
        before.collection,
        before.found,
    )
    now[0] += qdrant.MAX_AGE_S
    after = search(searching, Query(text="red"))
    assert (after.model, after.collection, after.found) == ("clip", new, ())


def test_a_collection_that_was_dropped_or_made_anew_is_noticed_at_once(
    deps: Deps, served: QdrantClient, settings: Settings, tmp_path: Path
):
    shop = replace(deps, vectors=served)
    ingest_source(shop, settings, Request(a_folder(tmp_path / "shop", SHOP)))
    searching = warm(shop, settings, clock=lambda: 0.0)
    first = search(searching, Query(text="red"))

    second = switched(served, "clip1", short_dim=2)
    served.delete_collection(first.collection)
    assert search(searching, Query(text="red")).collection == second

    served.delete_collection(second)
    assert switched(served, "clip1") == second
    assert search(searching, Query(text="red")).collection == second
    served.delete_collection(second)
    with pytest.raises(qdrant.NoCollection):
        search(searching, Query(text="red"))
