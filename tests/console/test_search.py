"""Search by words, a picture, both or a record; what a page shows is in its address."""

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from flows.deletes import delete_items
from flows.deps import open_deps
from flows.intake import Request, ingest_source
from storage.catalog import Selection
from storage.records import item_id
from tests.builders import a_manifest, png
from tests.console.conftest import SHOTS, Running

RED, GREEN, BLUE = (item_id("shop", f"{colour}.png") for colour in ("red", "green", "blue"))


def cards(page: Page) -> Locator:
    return page.get_by_role("list", name="Hits").get_by_role("listitem")


def keys(page: Page) -> list[str]:
    return cards(page).locator(".sl-card-key").all_inner_texts()


def settled(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text="ms (encode")).to_be_visible()


def test_words(page: Page):
    page.goto("/search")
    page.get_by_role("searchbox").fill("a red square")
    page.keyboard.press("Enter")
    settled(page)
    assert sorted(keys(page)) == ["blue.png", "green.png", "red.png"]
