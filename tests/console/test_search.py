"""Search by text, image, both or a record; the URL holds the search."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from sqlalchemy import text

from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.delete import delete_items
from flows.resources.connections import open_deps
from storage.postgres.catalog import Selection
from storage.records import item_id
from tests.console.conftest import PATIENCE_S, SHOTS, Running, reload, sign_in
from tests.support.builders import a_folder, encoded, noise, png

RED, GREEN, BLUE = (item_id("shop", f"{colour}.png") for colour in ("red", "green", "blue"))
HAND_IN = """([kind, data]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "query.png", { type: "image/png" }));
  const held = kind === "paste" ? { clipboardData: transfer } : { dataTransfer: transfer };
  const event = kind === "paste" ? new ClipboardEvent(kind, { ...held, bubbles: true, cancelable: true })
                                 : new DragEvent(kind, { ...held, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


@pytest.fixture(autouse=True)
def _patient() -> Iterator[None]:
    """The first search loads the model, on a machine that does other things as well."""
    expect.set_options(timeout=PATIENCE_S * 1000)
    yield
    expect.set_options(timeout=5000)


def status(page: Page) -> Locator:
    return page.get_by_role("status").filter(has_text="· model")


def cards(page: Page) -> Locator:
    return page.get_by_role("list", name="Hits").get_by_role("listitem")


def card(page: Page, key: str) -> Locator:
    return cards(page).filter(has=page.get_by_text(key, exact=True))


def keys(page: Page) -> list[str]:
    return cards(page).locator(".sl-card-key").all_inner_texts()


def ask(page: Page, words: str) -> None:
    page.get_by_role("searchbox").fill(words)
    page.keyboard.press("Enter")


def hand_in(page: Page, how: str, data: bytes) -> None:
    page.evaluate(HAND_IN, [how, base64.b64encode(data).decode()])


def finds_itself(page: Page, key: str) -> None:
    """The image with the bytes of the query comes first, with a cosine of 1."""
    expect(cards(page).first).to_contain_text(key)
    expect(cards(page).first).to_contain_text("1.000")


def loaded(page: Page) -> None:
    """Wait until all images have loaded, so that leaving the page interrupts none."""
    page.wait_for_function("[...document.images].every((one) => one.complete)")


def test_words_find_images_and_the_page_says_who_answered_and_how_fast(page: Page):
    page.goto("/search")
    expect(page.get_by_role("searchbox")).to_be_focused()

    ask(page, "a red square")

    expect(status(page)).to_contain_text(re.compile(r"3 images · model .* · collection items__\w+ · \d+ ms"))
    expect(status(page)).to_contain_text(re.compile(r"\(encode \d+, Qdrant \d+, Postgres \d+\)"))
    assert set(keys(page)) == {"red.png", "green.png", "blue.png"}
    expect(card(page, "red.png")).to_contain_text("a red square")
    expect(card(page, "red.png")).to_contain_text("shop")
    loaded(page)
    assert page.evaluate("document.querySelector('.sl-card img').naturalWidth") == 16


def test_texts_are_found_as_well_and_filters_narrow_what_is_found(page: Page):
    page.goto("/search")
    page.get_by_role("button", name="Texts").click()
    ask(page, "the sea")
    expect(status(page)).to_contain_text("4 texts")
    loaded(page)

    page.get_by_role("combobox").fill("kind=poem")
    page.keyboard.press("Enter")

    expect(status(page)).to_contain_text("1 text ·")
    assert keys(page) == ["a"]
    expect(page).to_have_url("/search?q=the+sea&find=texts&where=kind%3Dpoem")
    page.get_by_role("combobox").fill("source=nowhere")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Remove a filter, or lower the minimum score.")).to_be_visible()


def test_filters_are_suggested_and_what_is_none_is_rejected(page: Page):
    page.goto("/search")
    box = page.get_by_role("combobox")

    box.click()
    expect(page.get_by_role("option")).to_have_text(["source=shop", "source=words", "kind=poem"])
    page.keyboard.press("Escape")
    box.fill("poems")
    page.keyboard.press("Enter")

    expect(page.get_by_text("'poems' is not a filter; write it as field=value")).to_be_visible()


def test_a_least_score_leaves_out_what_is_below_it(page: Page):
    page.goto(f"/search?like={RED}")
    expect(status(page)).to_contain_text("2 images")

    page.get_by_role("spinbutton", name="Minimum score").fill("1")

    expect(page.get_by_text("lower the minimum score")).to_be_visible()
    expect(page).to_have_url(f"/search?like={RED}&min=1")


def test_an_image_that_is_chosen_finds_itself(page: Page, running: Running):
    page.goto("/search")

    page.locator("input[type=file]").set_input_files(running.folder / "shop" / "green.png")

    finds_itself(page, "green.png")
    expect(page.get_by_text("your image")).to_be_visible()
    loaded(page)
    page.get_by_role("button", name="Remove: your image").click()
    expect(page.get_by_text("Type words, or choose, drop or paste an image")).to_be_visible()
    assert keys(page) == []


@pytest.mark.parametrize(("how", "colour"), [("drop", "red"), ("paste", "blue")])
def test_an_image_that_is_dropped_or_pasted_finds_itself(page: Page, how: str, colour: str):
    page.goto("/search")
    expect(page.get_by_role("status").first).to_contain_text("Type words")

    hand_in(page, how, png(colour))

    finds_itself(page, f"{colour}.png")
    loaded(page)


def test_words_and_an_image_are_searched_together(page: Page):
    page.goto("/search")
    expect(page.get_by_role("status").first).to_contain_text("Type words")
    hand_in(page, "drop", png("red"))
    finds_itself(page, "red.png")
    loaded(page)

    ask(page, "a green square")

    expect(cards(page).first).not_to_contain_text("1.000")
    expect(page).to_have_url(re.compile(r"/search\?q=a\+green\+square&picture=[0-9a-f]{64}$"))
    loaded(page)
    shown = cards(page).locator(".sl-card-score").all_inner_texts()
    reload(page)
    expect(page.get_by_role("searchbox")).to_have_value("a green square")
    expect(page.get_by_text("your image")).to_be_visible()
    expect(cards(page)).to_have_count(3)
    assert cards(page).locator(".sl-card-score").all_inner_texts() == shown
    loaded(page)


def test_an_image_that_cannot_be_decoded_is_rejected_by_name(page: Page, tmp_path: Path):
    (tmp_path / "letter.png").write_bytes(b"Dear Sir or Madam")
    page.goto("/search")

    page.locator("input[type=file]").set_input_files(tmp_path / "letter.png")

    expect(page.get_by_role("alert").filter(has_text="letter.png: not an image")).to_be_visible()


def test_an_image_that_is_no_longer_kept_is_reported_as_expired(page: Page):
    page.goto(f"/search?picture={'0' * 64}")

    expect(page.get_by_role("alert").filter(has_text="drop, paste or choose it again")).to_be_visible()


def test_more_like_a_record_leaves_it_out_and_back_leads_back(page: Page):
    page.goto("/search?q=a+red+square")
    expect(status(page)).to_contain_text("3 images")
    loaded(page)

    card(page, "red.png").get_by_role("link", name="More like red.png").click()

    expect(status(page)).to_contain_text("2 images")
    expect(page.get_by_text("like red.png", exact=True)).to_be_visible()
    assert set(keys(page)) == {"green.png", "blue.png"}
    expect(page).to_have_url(f"/search?like={RED}")
    loaded(page)
    page.go_back()
    expect(status(page)).to_contain_text("3 images")
    expect(page.get_by_role("searchbox")).to_have_value("a red square")


def test_an_address_shows_the_same_again_and_a_wrong_one_says_what_it_takes(page: Page):
    page.goto("/search?q=sea&find=texts&where=kind%3Dpoem&min=-0.9")

    expect(status(page)).to_contain_text("1 text ·")
    expect(page.get_by_role("searchbox")).to_have_value("sea")
    expect(page.get_by_role("spinbutton", name="Minimum score")).to_have_value("-0.9")
    expect(page.get_by_text("kind=poem")).to_be_visible()
    page.goto("/search?q=sea&find=sounds")
    expect(page.get_by_role("alert").filter(has_text="find=sounds; it takes images or texts")).to_be_visible()


def test_keys_find_the_box_and_clear_it(page: Page):
    page.goto("/search?q=a+red+square")
    expect(status(page)).to_contain_text("3 images")
    loaded(page)
    page.get_by_role("button", name="Texts").focus()

    page.keyboard.press("/")

    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("searchbox")).to_have_value("")
    expect(cards(page)).to_have_count(0)
    expect(page).to_have_url("/search")
    for name in ("Choose an image", "Search", "Images", "Texts"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()


def test_more_hits_come_below_those_that_are_shown_and_a_deleted_record_vanishes(
    page: Page, running: Running
):
    many = {f"{number}.png": encoded(noise((8 + number, 8)), "PNG") for number in range(26)}
    folder = a_folder(running.folder / "many", many)
    with open_deps(running.settings) as deps:
        ingest_source(deps, running.settings, Request(folder))
        try:
            page.goto("/search?q=noise&where=source%3Dmany")
            expect(cards(page)).to_have_count(24)
            first = keys(page)

            page.get_by_role("button", name="Show more").click()

            expect(cards(page)).to_have_count(26)
            assert keys(page)[:24] == first
            expect(page).to_have_url(re.compile("&limit=48$"))
            expect(page.get_by_role("button", name="Show more")).to_be_hidden()
            loaded(page)
            delete_items(deps, Selection((first[0],), source="many"), running.folder, for_s=60)
            reload(page)
            expect(cards(page)).to_have_count(25)
            assert first[0] not in keys(page)
            loaded(page)
            gone = item_id("many", first[0])
            page.goto(f"/records/{gone}")
            expect(page.get_by_text("was deleted")).to_contain_text("by request")
            with running.client() as client:
                assert client.get(f"/thumbnails/{gone}").status_code == 404
            page.goto(f"/search?like={gone}")
            expect(page.get_by_role("alert").filter(has_text="is not searchable")).to_be_visible()
        finally:
            delete_items(deps, Selection(source="many"), running.folder, for_s=60)
            with deps.sessions.begin() as session:
                session.execute(text("delete from items where source = 'many'"))
                session.execute(text("delete from runs where source = 'many'"))


def test_a_record_has_a_page_with_all_that_is_kept_of_it(page: Page):
    page.goto("/search?q=a+red+square")
    expect(status(page)).to_be_visible()
    loaded(page)

    card(page, "red.png").get_by_role("link", name="Details of red.png").click()

    expect(page.get_by_role("heading", name="red.png")).to_be_visible()
    expect(page).to_have_url(f"/records/{RED}")
    expect(page.get_by_role("row").filter(has_text="searchable")).to_contain_text("yes, in items__")
    expect(page.get_by_role("row").filter(has_text="a red square")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="16 × 16 PNG")).to_be_visible()
    expect(page.get_by_text("sightline duplicates --near")).to_be_visible()
    loaded(page)
    page.get_by_role("link", name="Texts like this").click()
    expect(status(page)).to_contain_text("3 texts")
    loaded(page)
    page.goto(f"/records/{item_id('words', 'a')}")
    expect(page.get_by_role("row").filter(has_text="kind")).to_contain_text("poem")
    page.goto("/records/42")
    expect(page.get_by_text("'42' is no record's id")).to_be_visible()


def test_images_reach_a_browser_small_encoded_anew_and_with_a_tag(running: Running):
    with running.client() as client:
        first = client.get(f"/thumbnails/{RED}")
        again = client.get(f"/thumbnails/{RED}", headers={"If-None-Match": first.headers["etag"]})
        nobody = client.get(f"/thumbnails/{item_id('shop', 'never')}")
        whole = client.get(f"/pictures/{RED}")

    assert (first.status_code, first.headers["content-type"]) == (200, "image/webp")
    assert first.headers["cache-control"] == "private, no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    assert (again.status_code, again.content) == (304, b"")
    assert (nobody.status_code, nobody.headers["content-type"]) == (404, "image/svg+xml")
    assert whole.headers["etag"] != first.headers["etag"]


def is_within_its_frame(page: Page) -> bool:
    """Whether the image of a record is whole within the plate around it."""
    image, plate = (page.locator(one).bounding_box() for one in (".sl-plate img", ".sl-plate"))
    assert image is not None
    assert plate is not None
    return all(
        plate[at] <= image[at] and image[at] + image[size] <= plate[at] + plate[size]
        for at, size in (("x", "width"), ("y", "height"))
    )


@pytest.mark.parametrize(("scheme", "size"), [("light", (3000, 60)), ("dark", (60, 3000))])
def test_it_fits_a_phone_in_both_themes(
    browser: Browser, running: Running, scheme: str, size: tuple[int, int]
):
    phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    sign_in(phone.context, running)
    large = encoded(noise(size), "PNG")
    phone.route("**/pictures/*", lambda route: route.fulfill(body=large, content_type="image/png"))
    for name, address, seen in (
        ("search", "/search?q=a+red+square&where=source%3Dshop", "3 images"),
        ("record", f"/records/{RED}", "sightline duplicates --near"),
    ):
        phone.goto(f"{running.url}{address}")
        expect(phone.get_by_text(seen)).to_be_visible()
        loaded(phone)
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
        phone.screenshot(path=SHOTS / f"phone_{name}_{scheme}.png", full_page=True)
    assert is_within_its_frame(phone)
    phone.close()
