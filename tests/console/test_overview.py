"""The overview says whether the index is fresh and consistent."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import create_engine, text

from flows.console.auth import generated_password
from storage.embedded.postgres.server import postgres_url
from tests.console.conftest import SHOTS, Running, reload, sign_in
from tests.support.signed_in import link_to


def figure(page: Page, name: str) -> str:
    return page.locator(f'[data-figure="{name}"] .sl-value').inner_text()


@contextmanager
def failed_ingests(running: Running, *sources: str) -> Iterator[list[UUID]]:
    """Failed runs on record, which are gone afterwards."""
    engine = create_engine(postgres_url(running.home))
    row = "insert into runs (id, flow, source, started, ended, outcome, error, counts, seconds) values"
    values = "(:id, 'ingest', :source, now(), now(), 'failed', 'BadSource: no such folder', '{}', '{}')"
    ids = [uuid4() for _ in sources]
    rows = [{"id": id, "source": source} for id, source in zip(ids, sources, strict=True)]
    with engine.begin() as connection:
        connection.execute(text(f"{row} {values}"), rows)
    try:
        yield ids
    finally:
        with engine.begin() as connection:
            connection.execute(text("delete from runs where source = any(:sources)"), {"sources": [*sources]})
        engine.dispose()


def test_it_shows_what_is_stored_and_what_is_wrong(page: Page, running: Running):
    page.goto("/")

    shown = {name: figure(page, name) for name in ("Records", "Searchable", "Pending", "Rejected", "Deleted")}
    assert shown == {"Records": "4", "Searchable": "4", "Pending": "0", "Rejected": "2", "Deleted": "0"}
    assert (figure(page, "Freshness"), figure(page, "Postgres"), figure(page, "Qdrant")) == (
        "fresh",
        "up",
        "up",
    )
    expect(page.get_by_role("status").first).to_have_text(
        re.compile("^All is well, apart from.*2 records rejected")
    )
    assert page.locator('a[data-figure="Rejected"]').get_attribute("href") == "/rejects"
    expect(page.locator(".sl-home")).to_have_text(str(running.home.resolve()))
    compared = page.get_by_role("row").filter(has_text="reconcile")
    expect(compared).to_have_count(1)  # another is there while the last comparison has failed
    expect(compared).to_contain_text("completed")
    expect(page.get_by_role("row").filter(has_text="recall@10, text to image")).to_contain_text("100.0%")
    expect(page.get_by_role("img", name="Recall@10, last 30 days").locator("canvas")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.full)])  # dark: search
def test_it_fits_a_phone_in_both_themes(browser: Browser, running: Running, scheme: str):
    phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    sign_in(phone.context, running)

    phone.goto(running.url)

    expect(phone.get_by_text("Last 30 days")).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    tops = set[float]()
    for link in phone.get_by_role("navigation", name="Pages").get_by_role("link").all():
        box = link.evaluate("one => one.getBoundingClientRect()")
        assert box["right"] <= 390, "a page that a phone cannot reach"
        tops.add(box["top"])
    assert len(tops) == 1, "a page alone on a row of its own"
    assert ("body--dark" in str(phone.locator("body").get_attribute("class"))) == (scheme == "dark")
    phone.screenshot(path=SHOTS / f"phone_{scheme}.png", full_page=True)
    phone.close()


def test_a_key_skips_the_header_and_the_theme_that_was_chosen_stays(page: Page):
    page.goto("/")
    expect(page.get_by_text("As of")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to main content")).to_be_focused()
    page.get_by_role("button", name="Dark or light").click()
    expect(page.locator("body.body--dark")).to_be_attached()
    page.wait_for_function("document.cookie.includes('theme=dark')")

    reload(page)

    expect(page.locator("body.body--dark")).to_be_attached()


def test_failures_that_are_acknowledged_leave_the_overview(page: Page, running: Running):
    with failed_ingests(running, "attic", "cellar") as ids:
        page.goto(f"/runs/{ids[1]}")
        reload(page)
        expect(page.get_by_text("BadSource: no such folder")).to_be_visible()
        page.get_by_role("button", name="Acknowledge the failure of ingest of cellar").click()
        expect(page.get_by_text("ingest of cellar: acknowledged")).to_be_visible()

        page.goto("/")
        reload(page)
        health = page.get_by_role("status").first
        expect(health).to_have_text(re.compile("^Not all is well:.*ingest of attic failed"))
        expect(page.get_by_role("row").filter(has_text="BadSource")).to_have_count(1)
        page.get_by_role("button", name="Acknowledge the failure of ingest of attic").click()
        expect(health).to_have_text(re.compile("^All is well"))
        expect(page.get_by_role("row").filter(has_text="BadSource")).to_have_count(0)


def test_the_link_opens_it_for_its_user_and_nobody_else_sees_more_than_the_form(
    browser: Browser, running: Running
):
    page = browser.new_page()

    page.goto(running.url)
    expect(page).to_have_url(f"{running.url}/login")
    expect(page.get_by_text(str(running.home / "console.password"))).to_be_visible()
    page.screenshot(path=SHOTS / "login.png")

    page.goto(link_to(running.url, running.home))
    expect(page).to_have_url(f"{running.url}/")
    expect(page.get_by_text("Last 30 days")).to_be_visible()
    reload(page)
    expect(page.get_by_text("Last 30 days")).to_be_visible()
    assert generated_password(running.home) not in (running.folder / "console.log").read_text()
    page.close()


def test_a_page_of_another_site_cannot_act(running: Running):
    elsewhere = httpx.post(f"{running.url}/login", headers={"Origin": "http://elsewhere.example"})
    renamed = httpx.get(running.url, headers={"Host": "elsewhere.example"})

    assert (elsewhere.status_code, renamed.status_code) == (403, 421)
