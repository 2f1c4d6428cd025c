"""The overview says whether the index is fresh and consistent."""

import re

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from flows.console.auth import generated_password
from tests.console.conftest import SHOTS, Running, reload, sign_in
from tests.support.signed_in import link_to


def figure(page: Page, name: str) -> str:
    return page.locator(f'[data-figure="{name}"] .sl-value').inner_text()


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
    for link in phone.get_by_role("navigation", name="Pages").get_by_role("link").all():
        right = link.evaluate("one => one.getBoundingClientRect().right")
        assert right <= 390, "a page that a phone cannot reach"
    assert ("body--dark" in str(phone.locator("body").get_attribute("class"))) == (scheme == "dark")
    phone.screenshot(path=SHOTS / f"phone_{scheme}.png", full_page=True)
    phone.close()


def test_the_theme_that_was_chosen_stays(page: Page):
    page.goto("/")
    expect(page.get_by_text("As of")).to_be_visible()
    page.get_by_role("button", name="Dark or light").click()
    expect(page.locator("body.body--dark")).to_be_attached()
    page.wait_for_function("document.cookie.includes('theme=dark')")

    reload(page)

    expect(page.locator("body.body--dark")).to_be_attached()


def test_keys_lead_to_pages(page: Page):
    page.goto("/")
    expect(page.get_by_text("Last 30 days")).to_be_visible()

    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to main content")).to_be_focused()


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
